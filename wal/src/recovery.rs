//! Recovery: the one table that decides what a log directory means. It only reads.
//!
//! | found | done | where |
//! |---|---|---|
//! | unknown format or semantics version | refuse | [`survey`], [`Replay::take_record`] |
//! | read error | refuse | every read |
//! | zero or stale header, a file that nothing needs | spare | [`Recovery::spares`] |
//! | gap; first LSN beyond the newest `trim_upto` | refuse | [`Recovery::check_beginning`] |
//! | invalid at *b*, something proves > *b* | refuse | [`Recovery::end_of_log`] |
//! | invalid at *b*, nothing proves > *b* | cut | [`Recovery::end_of_log`] |
//! | valid, but beyond the end that a newer open batch records | void | [`Recovery::replay`] stops at that end |
//! | invalid before that end | refuse | [`Recovery::replay`] |
//! | open batch torn, nothing after it | the epoch before it | [`Recovery::choose_epoch`] |
//! | open batch torn, valid batches after it | refuse | they prove > *b* in [`Recovery::end_of_log`] |
//!
//! Promises: never panics on any bytes; reading twice gives the same; a torn tail is never called damage, and damage to
//! what was acknowledged is never taken for a torn tail. The log that goes on from the result ([`crate::Log::open`])
//! makes every decision final with its open batch; a crash before that leaves everything as it was found.

use prism_io::disk::Storage;

use crate::config::LogConfig;
use crate::epoch::EpochEnd;
use crate::error::{Damage, LsnRange, RecoverError};
use crate::format::{CHECKPOINT_NAME, Nonce, segment_name};
use crate::lanes::Lanes;
use crate::record::{Record, Sink};
use crate::replay::{Piece, Replay, Stop, read_open_record};
use crate::scan::{SegmentReader, headers_behind};
use crate::segment::UsedSegment;
use crate::survey::{SegmentFile, Survey, survey};

/// LSNs and lane numbers left out by a repair beyond the highest that is known to have been used: more than any log of this
/// size can hold.
pub(crate) const REPAIR_SKIP: u64 = 1 << 32;

/// A log as it was found, ready to be gone on with ([`crate::Log::open`]).
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Identity of the log; zero for a new one.
    pub directory_id: [u8; 16],
    /// The highest epoch ever begun.
    pub epoch: u64,
    /// Where the log ends.
    pub end: EpochEnd,
    /// LSNs left out by a repair, else 0.
    pub skipped: u64,
    /// No LSN up to this one is needed.
    pub trim_upto: u64,
    /// Log time of the last record, µs since the Unix epoch.
    pub log_time_us: u64,
    /// Last number of every lane.
    pub lanes: Lanes,
    /// Segments that hold records, oldest first.
    pub used: Vec<UsedSegment>,
    /// Segment files that nothing needs, those never used first.
    pub spare: Vec<u32>,
    /// Above every activation number ever seen.
    pub next_segment_seq: u64,
    /// Whether the checkpoint file is there.
    pub checkpoint_file: bool,
    /// Sequence of the newest slot.
    pub checkpoint_sequence: u64,
    /// The caller's data given with the last trim.
    pub checkpoint_data: Vec<u8>,
    /// LSN of the record with that data; 0 for none.
    pub checkpoint_lsn: u64,
    /// Files that nothing needs and that are of no use either (another size, leftovers of a creation). They may be
    /// removed.
    pub useless: Vec<String>,
    /// What was read and decided, for people.
    pub report: RecoveryReport,
}

/// What recovery read and decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the log was closed cleanly.
    pub clean: bool,
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed, internal ones included.
    pub records: u64,
    /// Bytes of those batches.
    pub bytes: u64,
    /// The first LSN that is there, 0 for none.
    pub first_lsn: u64,
    /// The last LSN, 0 for none.
    pub last_lsn: u64,
    /// The torn tail that was cut, if any.
    pub cut: Option<Cut>,
}

/// A torn tail that nobody was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: String,
    /// Where in it the log ends now.
    pub offset: u64,
    /// The first LSN that was cut.
    pub first_lsn: u64,
    /// Intact batches behind it, void from now on.
    pub void_batches: u64,
}

/// What a salvage had to give up.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Each refusal that a plain recovery would have stopped at.
    pub(crate) refusals: Vec<RecoverError>,
    /// Files that hold nothing of the good prefix and are part of the damage.
    pub(crate) quarantine: Vec<String>,
    /// Files that hold good and damaged parts.
    pub(crate) damaged: Vec<String>,
}

/// Reads a log and decides what it means. `sink` gets every record that callers appended and that is not known to be trimmed,
/// in LSN order — also some that turn out to be trimmed, and also when recovery refuses in the end.
pub fn recover(
    storage: &mut dyn Storage,
    config: &LogConfig,
    sink: &mut dyn Sink,
) -> Result<Recovered, RecoverError> {
    Recovery::new(storage, config)?.run(sink, None)
}

/// As [`recover`], but where that refuses for damage, takes the good prefix and says what is lost.
pub(crate) fn salvage(
    storage: &mut dyn Storage,
    config: &LogConfig,
) -> Result<(Recovered, Losses), RecoverError> {
    let mut losses = Losses::default();
    let recovered =
        Recovery::new(storage, config)?.run(&mut |_: &Record<'_>| {}, Some(&mut losses))?;
    Ok((recovered, losses))
}

/// The LSN from which on the piece holds everything: behind a repair an epoch begins with numbers left out.
fn first_needed(storage: &mut dyn Storage, piece: &Piece) -> Result<u64, RecoverError> {
    let open = read_open_record(storage, &piece.file)?.filter(|_| piece.header.is_open());
    Ok(open.map_or(piece.header.first_lsn, |open| open.previous.next_lsn.max(1)))
}

struct Recovery<'a> {
    storage: &'a mut dyn Storage,
    config: &'a LogConfig,
    survey: Survey,
    /// Nonces of epochs whose open batch is torn: headers with them prove something.
    torn_nonces: Vec<Nonce>,
}

/// The segments to be read, oldest first.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
}

/// What proves that records were durable.
#[derive(Default)]
struct Evidence {
    upto: u64,
    proof: String,
    /// Intact headers of batches that would come behind the end.
    void_batches: u64,
    /// Files, other than the one where reading stopped, in which they stand.
    void_files: Vec<String>,
    segment_seq_max: u64,
    /// The LSN that would come next.
    next_lsn: u64,
    /// Whether a clean close makes looking further unnecessary.
    clean: bool,
}

impl<'a> Recovery<'a> {
    fn new(
        storage: &'a mut dyn Storage,
        config: &'a LogConfig,
    ) -> Result<Recovery<'a>, RecoverError> {
        let survey = survey(storage, config)?;
        Ok(Recovery { storage, config, survey, torn_nonces: Vec::new() })
    }

    fn run(
        mut self,
        sink: &mut dyn Sink,
        mut losses: Option<&mut Losses>,
    ) -> Result<Recovered, RecoverError> {
        let epoch = self.choose_epoch()?;
        let trim_known = self.trim_known();
        let mut plan = match epoch {
            Some(nonce) => self.plan(&nonce, trim_known)?,
            None => Plan::default(),
        };
        let (mut replay, stop) = loop {
            let mut replay = Replay::new(self.config, trim_known, self.survey.newest_slot());
            let stop = self.replay(&plan, &mut replay, sink)?;
            let Some(next) = plan.pieces.get(stop.piece + 1) else { break (replay, stop) };
            let needed = first_needed(self.storage, next)?;
            if self.trim_behind(&plan, &stop)? + 1 < needed {
                break (replay, stop);
            }
            // Trimmed after all, and perhaps half overwritten: it and what is before it are not needed.
            plan.pieces.drain(..=stop.piece);
        };
        let end = self.end_of_log(&plan, &mut replay, stop, losses.as_deref_mut())?;
        self.check_beginning(&plan, &mut replay, losses.as_deref_mut())?;
        Ok(self.finish(&plan, replay, end, losses))
    }

    /// The newest epoch whose open batch is whole, or was trimmed away; `None` for a log that never began.
    fn choose_epoch(&mut self) -> Result<Option<Nonce>, RecoverError> {
        loop {
            let readable = self
                .survey
                .files
                .iter()
                .filter_map(|file| file.header().map(|header| (file, header)));
            let newest = readable
                .filter(|(_, header)| !self.torn_nonces.contains(&header.nonce))
                .max_by_key(|(_, header)| (header.epoch, header.segment_seq));
            let Some((_, header)) = newest else { return Ok(None) };
            let nonce = header.nonce;
            let open = self.survey.of_epoch(&nonce).find(|(_, header)| header.is_open());
            let Some(open) = open.map(|(file, _)| file.clone()) else { return Ok(Some(nonce)) };
            if read_open_record(self.storage, &open)?.is_some() {
                return Ok(Some(nonce));
            }
            if self.survey.of_epoch(&nonce).count() > 1 {
                // The epoch went on, so this one was whole: it is damaged, or was trimmed and half overwritten since.
                self.survey.forget_header(open.number);
                return Ok(Some(nonce));
            }
            self.torn_nonces.push(nonce);
        }
    }

    /// The newest `trim_upto` that can be known before the segments are read.
    fn trim_known(&self) -> u64 {
        let headers = self.survey.files.iter().filter_map(SegmentFile::header);
        let slots = self.survey.slots.iter().flatten().map(|slot| slot.trim_upto);
        headers.map(|header| header.trim_upto).chain(slots).max().unwrap_or(0)
    }

    /// Walks back from the newest segment of the epoch until everything above `trim_known` is covered, or no further.
    fn plan(&mut self, nonce: &Nonce, trim_known: u64) -> Result<Plan, RecoverError> {
        let newest = self.survey.of_epoch(nonce).max_by_key(|(_, header)| header.segment_seq);
        let (file, header) = newest.expect("the epoch was chosen because it has a segment");
        let mut pieces = vec![Piece { file: file.clone(), header, end: None }];
        loop {
            let piece = pieces.last().expect("there is the newest");
            if first_needed(self.storage, piece)? <= trim_known + 1 {
                break;
            }
            let Piece { file, header, .. } = piece;
            let (nonce, segment_seq, end) = if header.is_open() {
                let Some(open) = read_open_record(self.storage, file)? else { break };
                if open.previous.epoch == 0 {
                    break;
                }
                (open.previous.nonce, open.previous.segment_seq, Some(open.previous))
            } else {
                (header.nonce, header.segment_seq - 1, None)
            };
            let before =
                self.survey.of_epoch(&nonce).find(|(_, header)| header.segment_seq == segment_seq);
            let Some((file, header)) = before else { break };
            pieces.push(Piece { file: file.clone(), header, end });
        }
        pieces.reverse();
        Ok(Plan { pieces })
    }

    /// Reads the pieces in order, up to the first place where the log cannot go on.
    fn replay(
        &mut self,
        plan: &Plan,
        replay: &mut Replay<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Stop, RecoverError> {
        let mut stop = Stop::default();
        for (index, piece) in plan.pieces.iter().enumerate() {
            stop = replay.read_piece(self.storage, index, piece, sink)?;
            let complete = match (&piece.end, plan.pieces.get(index + 1)) {
                (Some(end), _) => replay.is_at(end, stop.offset),
                (None, Some(next)) => replay.leads_to(next),
                (None, None) => false,
            };
            if !complete {
                break;
            }
        }
        Ok(stop)
    }

    /// The newest `trim_upto` that stands in the pieces behind the one where reading stopped.
    fn trim_behind(&mut self, plan: &Plan, stop: &Stop) -> Result<u64, RecoverError> {
        let mut trim_upto = 0;
        for Piece { file, header, .. } in plan.pieces.iter().skip(stop.piece + 1) {
            let fault = |error| RecoverError::Read { file: file.name.clone(), error };
            let mut reader = SegmentReader::open(self.storage, &file.name).map_err(fault)?;
            headers_behind(&mut reader, 0, &header.nonce, &mut |_, header| {
                trim_upto = trim_upto.max(header.trim_upto)
            })
            .map_err(fault)?;
        }
        Ok(trim_upto)
    }

    /// Decides whether the place where reading stopped is the end of the log, a torn tail to be cut, or damage.
    fn end_of_log(
        &mut self,
        plan: &Plan,
        replay: &mut Replay<'_>,
        stop: Stop,
        losses: Option<&mut Losses>,
    ) -> Result<EpochEnd, RecoverError> {
        let piece = plan.pieces.get(stop.piece);
        let next_lsn = replay.next_lsn.max(1);
        let evidence = self.evidence(plan, replay, &stop)?;
        self.survey.segment_seq_max = self.survey.segment_seq_max.max(evidence.segment_seq_max);
        let recorded = piece.and_then(|piece| piece.end).map(|end| end.next_lsn.max(1) - 1);
        let truncated = if evidence.clean { None } else { self.truncated(plan, replay, &stop) };
        let (upto, proof) = match (recorded, truncated) {
            (Some(upto), _) => {
                (upto.max(next_lsn), "a later start recorded where the log ended".to_string())
            }
            _ if evidence.upto >= next_lsn => (evidence.upto, evidence.proof),
            (_, Some(text)) => (next_lsn, text),
            _ if stop.malformed => {
                (next_lsn, "the checksum is right but the records make no sense".to_string())
            }
            _ => (evidence.upto, evidence.proof),
        };
        if upto >= next_lsn {
            let file = piece.map_or_else(|| self.first_suspect(), |piece| piece.file.name.clone());
            let lost = LsnRange { first: next_lsn, last: upto };
            let damage = Damage { file: file.clone(), offset: stop.offset, lost, proof };
            let Some(losses) = losses else { return Err(RecoverError::Damaged(damage)) };
            losses.refusals.push(RecoverError::Damaged(damage));
            if stop.offset > 0 {
                losses.damaged.push(file);
            } else if self.survey.files.iter().any(|candidate| candidate.name == file) {
                losses.quarantine.push(file);
            }
            let later = plan.pieces.iter().skip(stop.piece + 1);
            losses.quarantine.extend(later.map(|piece| piece.file.name.clone()));
            losses.quarantine.extend(evidence.void_files);
            losses.quarantine.sort();
            losses.quarantine.dedup();
            replay.skipped = upto.max(evidence.upto) - next_lsn + 1 + REPAIR_SKIP;
        } else if let Some(piece) = piece
            && (stop.torn || evidence.void_batches > 0)
        {
            let file = piece.file.name.clone();
            let void_batches = evidence.void_batches;
            replay.report.cut =
                Some(Cut { file, offset: stop.offset, first_lsn: next_lsn, void_batches });
        }
        Ok(replay.end(&plan.pieces))
    }

    /// The highest LSN that anything proves to have been durable: slots, and intact headers of known epochs.
    fn evidence(
        &mut self,
        plan: &Plan,
        replay: &Replay<'_>,
        stop: &Stop,
    ) -> Result<Evidence, RecoverError> {
        let mut evidence = Evidence { next_lsn: replay.next_lsn.max(1), ..Evidence::default() };
        if let Some(slot) = self.survey.slots.iter().flatten().max_by_key(|slot| slot.durable_upto)
        {
            evidence.upto = slot.durable_upto;
            evidence.proof = format!("slot {} of {CHECKPOINT_NAME}", slot.sequence % 2);
        }
        let Some(piece) = plan.pieces.get(stop.piece) else {
            return self.search_torn_epochs(evidence);
        };
        if replay.closed_cleanly(self.survey.newest_slot()) {
            evidence.clean = true;
            return Ok(evidence);
        }
        let nonce = piece.header.nonce;
        let rest = piece.file.clone();
        self.search(&rest, stop.offset, &nonce, &mut evidence)?;
        let planned: Vec<&str> = plan.pieces.iter().map(|piece| piece.file.name.as_str()).collect();
        let later: Vec<SegmentFile> =
            plan.pieces.iter().skip(stop.piece + 1).map(|piece| piece.file.clone()).collect();
        let unplanned =
            self.survey.files.iter().filter(|file| !planned.contains(&file.name.as_str()));
        let suspicious = unplanned
            .filter(|file| file.header().is_none() || Some(file.number) == replay.next_file)
            .cloned();
        for file in later.into_iter().chain(suspicious.collect::<Vec<_>>()) {
            self.search(&file, 0, &nonce, &mut evidence)?;
        }
        self.search_torn_epochs(evidence)
    }

    /// What follows an open batch that is torn proves that it was whole once.
    fn search_torn_epochs(&mut self, mut evidence: Evidence) -> Result<Evidence, RecoverError> {
        for nonce in self.torn_nonces.clone() {
            for file in self.survey.files.clone() {
                if file.header().is_none_or(|header| header.nonce == nonce) {
                    self.search(&file, 0, &nonce, &mut evidence)?;
                }
            }
        }
        Ok(evidence)
    }

    fn search(
        &mut self,
        file: &SegmentFile,
        from: u64,
        nonce: &Nonce,
        evidence: &mut Evidence,
    ) -> Result<(), RecoverError> {
        let fault = |error| RecoverError::Read { file: file.name.clone(), error };
        let mut reader = SegmentReader::open(self.storage, &file.name).map_err(fault)?;
        headers_behind(&mut reader, from, nonce, &mut |offset, header| {
            if header.first_lsn >= evidence.next_lsn {
                evidence.void_batches += 1;
                if from == 0 && evidence.void_files.last() != Some(&file.name) {
                    evidence.void_files.push(file.name.clone());
                }
            }
            evidence.segment_seq_max = evidence.segment_seq_max.max(header.segment_seq);
            if header.durable_upto > evidence.upto {
                evidence.upto = header.durable_upto;
                evidence.proof = format!("the batch at offset {offset} of {}", file.name);
            }
        })
        .map_err(fault)
    }

    /// A file that was cut short or taken away: never the work of a crash, for files get their name when they are complete.
    fn truncated(&self, plan: &Plan, replay: &Replay<'_>, stop: &Stop) -> Option<String> {
        let missing = replay
            .next_file
            .filter(|number| self.survey.files.iter().all(|file| file.number != *number));
        if let Some(number) = missing {
            return Some(format!("{} was to come next and is missing", segment_name(number)));
        }
        let short = |file: &&SegmentFile| file.bytes < self.config.segment_bytes;
        let read =
            plan.pieces.get(stop.piece).filter(|_| stop.end_of_file).map(|piece| &piece.file);
        let unreadable = self.survey.files.iter().filter(|file| file.header().is_none());
        let short = read.into_iter().chain(unreadable).find(short);
        short.map(|file| format!("{} is shorter than it was made", file.name))
    }

    fn first_suspect(&self) -> String {
        let suspect = self.survey.files.iter().find(|file| file.header().is_none());
        suspect
            .or(self.survey.files.first())
            .map_or_else(|| segment_name(0), |file| file.name.clone())
    }

    /// Nothing may be missing between what was trimmed and the first record that is there.
    fn check_beginning(
        &mut self,
        plan: &Plan,
        replay: &mut Replay<'_>,
        losses: Option<&mut Losses>,
    ) -> Result<(), RecoverError> {
        let Some(head) = plan.pieces.first() else { return Ok(()) };
        let first_lsn = first_needed(self.storage, head)?;
        if first_lsn <= replay.trim_upto + 1 {
            return Ok(());
        }
        let unreadable = self.survey.files.iter().filter(|file| file.header().is_none());
        let gap = RecoverError::Gap {
            lost: LsnRange { first: replay.trim_upto + 1, last: first_lsn - 1 },
            before: head.file.name.clone(),
            suspects: unreadable.map(|file| file.name.clone()).collect(),
        };
        let Some(losses) = losses else { return Err(gap) };
        losses.refusals.push(gap);
        let unreadable =
            self.survey.files.iter().filter(|file| file.header().is_none() && !file.zero_page);
        losses.quarantine.extend(unreadable.map(|file| file.name.clone()));
        replay.trim_upto = first_lsn - 1;
        Ok(())
    }

    fn finish(
        self,
        plan: &Plan,
        replay: Replay<'_>,
        end: EpochEnd,
        losses: Option<&mut Losses>,
    ) -> Recovered {
        let slot = self.survey.newest_slot();
        let clean = replay.closed_cleanly(slot);
        let report = RecoveryReport { clean, last_lsn: end.next_lsn.max(1) - 1, ..replay.report };
        let used = replay.used;
        let given_up = losses.map(|losses| losses.quarantine.clone()).unwrap_or_default();
        let spare = self.spares(plan, &used, &given_up);
        let is_used = |file: &&SegmentFile| used.iter().any(|segment| segment.file == file.number);
        let odd = self
            .survey
            .files
            .iter()
            .filter(|file| file.bytes != self.config.segment_bytes && !is_used(file));
        let useless = self.survey.leftovers.iter().chain(odd.map(|file| &file.name));
        let useless = useless.filter(|name| !given_up.contains(name)).cloned().collect();
        Recovered {
            directory_id: replay.directory_id,
            epoch: self.survey.epoch_max.max(slot.map_or(0, |slot| slot.epoch)),
            end,
            skipped: replay.skipped,
            trim_upto: replay.trim_upto.min(end.next_lsn.max(1) - 1),
            log_time_us: replay.log_time_us,
            lanes: replay.lanes.unwrap_or_default(),
            used,
            spare,
            next_segment_seq: self.survey.segment_seq_max + 1,
            checkpoint_file: self.survey.checkpoint_file,
            checkpoint_sequence: self
                .survey
                .slots
                .iter()
                .flatten()
                .map(|slot| slot.sequence)
                .max()
                .unwrap_or(0),
            checkpoint_data: replay.checkpoint_data,
            checkpoint_lsn: replay.checkpoint_lsn,
            useless,
            report,
        }
    }

    /// Every segment file that holds nothing needed: never used ones first, those with void batches last.
    fn spares(&self, plan: &Plan, used: &[UsedSegment], given_up: &[String]) -> Vec<u32> {
        let mut spare: Vec<&SegmentFile> = self
            .survey
            .files
            .iter()
            .filter(|file| file.bytes == self.config.segment_bytes)
            .filter(|file| {
                used.iter().all(|segment| segment.file != file.number)
                    && !given_up.contains(&file.name)
            })
            .collect();
        let planned =
            |file: &SegmentFile| plan.pieces.iter().any(|piece| piece.file.number == file.number);
        spare.sort_by_key(|file| {
            (planned(file), file.header().map_or(0, |header| header.segment_seq + 1), file.number)
        });
        spare.into_iter().map(|file| file.number).collect()
    }
}
