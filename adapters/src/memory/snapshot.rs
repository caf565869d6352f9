//! Snapshots: the state as of one moment, written while the shard goes on.
//!
//! The moment is a *cut*. A cursor walks over the slots and writes what was there at the cut; a
//! change of an entry that the cursor has not reached yet first writes that entry as it was. So every
//! entry of the cut is contained once, and nothing later. All work is done in bounded steps and no
//! step does I/O: bytes are handed out ([`Snapshot::step`]) and taken in ([`restore`]).

use std::collections::VecDeque;
use std::io::Read;
use std::rc::Rc;

use super::entry::{NEVER, Stored};
use super::format::{
    BLOCK_BYTES, BlockKind, BlockReader, BlockWriter, SnapshotError, SnapshotFacts, put_entry,
    put_header, put_outcome, take_entry, take_header, take_outcome,
};
use super::outcomes::Outcomes;
use super::store::{Expiry, Store};
use super::{Memstore, MemstoreLimits};

/// Slots that one step looks at.
const STEP_SLOTS: usize = 1024;

/// A snapshot that holds more finished blocks than this because changes come faster than it is
/// written is given up.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The moment a snapshot is of, and how far the cursor has come; a part of the store.
#[derive(Debug)]
pub(crate) struct Cut {
    log_time_us: u64,
    /// Position one past the last at the cut, of each lane.
    ends: Vec<u32>,
    lane: usize,
    position: u32,
    writer: BlockWriter,
    block: Vec<u8>,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    entries: u64,
}

impl Cut {
    /// Writes an entry that is about to change, unless the cursor has passed it.
    pub(crate) fn save(&mut self, lane: u32, position: u32, entry: Stored<'_>) {
        let at = (lane as usize, position);
        if at >= (self.lane, self.position) && self.lane < self.ends.len() {
            self.write(lane, entry);
        }
    }

    fn write(&mut self, lane: u32, entry: Stored<'_>) {
        if !entry.is_live(self.log_time_us) {
            return;
        }
        put_entry(&mut self.block, lane, entry);
        self.entries += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.close(BlockKind::Entries);
        }
    }

    fn close(&mut self, kind: BlockKind) {
        let mut block = std::mem::replace(&mut self.block, BlockWriter::begin(BLOCK_BYTES + 8192));
        self.writer.finish(kind, &mut block);
        self.waiting_bytes += block.len();
        self.waiting.push_back(block);
    }

    fn close_unless_empty(&mut self, kind: BlockKind) {
        if self.block.len() > super::format::BLOCK_HEAD_BYTES {
            self.close(kind);
        }
    }
}

/// What a step of a snapshot has brought.
#[derive(Debug)]
pub enum SnapshotStep {
    /// The next bytes of the snapshot.
    Bytes(Vec<u8>),
    /// Nothing to write yet; let others have a turn and call again.
    Working,
    /// Everything has been handed out.
    Done,
}

/// A snapshot that is being taken; dropping it gives it up.
#[derive(Debug)]
pub struct Snapshot {
    memstore: Rc<Memstore>,
    outcomes: OutcomesCursor,
    lsn: u64,
    footer_written: bool,
}

#[derive(Debug)]
struct OutcomesCursor {
    generation: u32,
    end: u32,
    position: u32,
    written: u64,
}

impl Snapshot {
    /// Cuts now: what is in the store at this moment is what the snapshot will contain.
    pub(super) fn begin(
        memstore: Rc<Memstore>,
        facts: &SnapshotFacts,
    ) -> Result<Snapshot, SnapshotError> {
        let cursor = {
            let mut store = memstore.store.borrow_mut();
            let mut outcomes = memstore.outcomes.borrow_mut();
            if store.cut.is_some() {
                return Err(SnapshotError::Running);
            }
            store.begin_cut(facts);
            outcomes.generation += 1;
            let (generation, end) = (outcomes.generation, outcomes.end());
            OutcomesCursor { generation, end, position: 0, written: 0 }
        };
        Ok(Snapshot { memstore, outcomes: cursor, lsn: facts.lsn, footer_written: false })
    }

    /// Every record up to this LSN is contained.
    pub fn lsn(&self) -> u64 {
        self.lsn
    }

    /// Does a bounded piece of work; see [`SnapshotStep`].
    ///
    /// # Errors
    /// [`SnapshotError::Overrun`]; the snapshot is then of no use.
    pub fn step(&mut self) -> Result<SnapshotStep, SnapshotError> {
        let mut store = self.memstore.store.borrow_mut();
        if let Some(block) = store.take_block()? {
            return Ok(SnapshotStep::Bytes(block));
        }
        if self.footer_written {
            return Ok(SnapshotStep::Done);
        }
        if !store.walk(STEP_SLOTS) && !self.outcomes.walk(&self.memstore, &mut store) {
            let cut = store.cut.as_mut().expect("a snapshot is being taken");
            let footer = cut.writer.footer(cut.entries, self.outcomes.written);
            self.footer_written = true;
            return Ok(SnapshotStep::Bytes(footer));
        }
        Ok(store.take_block()?.map_or(SnapshotStep::Working, SnapshotStep::Bytes))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.memstore.store.borrow_mut().cut = None;
    }
}

impl OutcomesCursor {
    /// Writes the outcomes of the next slots; whether there were any slots left.
    fn walk(&mut self, memstore: &Memstore, store: &mut Store) -> bool {
        if self.position == self.end {
            return false;
        }
        let outcomes = memstore.outcomes.borrow();
        let cut = store.cut.as_mut().expect("a snapshot is being taken");
        let upto = self.end.min(self.position + STEP_SLOTS as u32);
        for position in self.position..upto {
            if let Some(remembered) = outcomes.remembered(position, self.generation) {
                put_outcome(&mut cut.block, &remembered);
                self.written += 1;
                if cut.block.len() >= BLOCK_BYTES {
                    cut.close(BlockKind::Outcomes);
                }
            }
        }
        self.position = upto;
        if upto == self.end {
            cut.close_unless_empty(BlockKind::Outcomes);
        }
        true
    }
}

impl Store {
    fn begin_cut(&mut self, facts: &SnapshotFacts) {
        self.generation += 1;
        let mut cut = Cut {
            log_time_us: facts.log_time_us,
            ends: self.lanes.iter().map(|lane| lane.entries.end()).collect(),
            lane: 0,
            position: 0,
            writer: BlockWriter::default(),
            block: BlockWriter::begin(BLOCK_BYTES),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            entries: 0,
        };
        let lanes = self.lanes.iter();
        let lanes = lanes.map(|lane| (lane.namespace, lane.partition, &*lane.namespace_name));
        put_header(&mut cut.block, facts, lanes);
        cut.close(BlockKind::Header);
        self.cut = Some(cut);
    }

    fn take_block(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let cut = self.cut.as_mut().expect("a snapshot is being taken");
        if cut.waiting_bytes > WAITING_BYTES_MAX {
            return Err(SnapshotError::Overrun);
        }
        let block = cut.waiting.pop_front();
        cut.waiting_bytes -= block.as_ref().map_or(0, Vec::len);
        Ok(block)
    }

    /// Writes the entries of the next slots; whether there were any slots left.
    fn walk(&mut self, slots: usize) -> bool {
        let cut = self.cut.as_mut().expect("a snapshot is being taken");
        let Some(&end) = cut.ends.get(cut.lane) else { return false };
        let (number, lane) = (cut.lane as u32, &self.lanes[cut.lane]);
        let upto = end.min(cut.position + slots as u32);
        for position in cut.position..upto {
            if let Some(entry) = lane.entries.get(position)
                && entry.generation < self.generation
            {
                cut.write(number, Stored { entry, payloads: &self.payloads });
            }
        }
        cut.position = upto;
        if upto == end {
            (cut.lane, cut.position) = (cut.lane + 1, 0);
            if cut.lane == cut.ends.len() {
                cut.close_unless_empty(BlockKind::Entries);
            }
        }
        true
    }
}

/// Builds a memstore from a snapshot; every byte is checked before anything is believed.
///
/// # Errors
/// [`SnapshotError::Damaged`] says where; the older snapshot may still be good.
pub(super) fn restore(
    limits: MemstoreLimits,
    source: impl Read,
) -> Result<(Memstore, SnapshotFacts), SnapshotError> {
    let mut blocks = BlockReader::new(source);
    let mut store = Store::default();
    let mut outcomes = Outcomes::new(limits.outcomes_max, limits.outcome_bytes_max);
    let (_, mut header) = blocks.next()?;
    let facts = take_header(&mut header)?;
    let lanes = header.u32()?;
    for number in 0..lanes {
        let (namespace, partition) = (header.u32()?, header.u16()?);
        let length = header.u16()? as usize;
        let name = std::str::from_utf8(header.take(length)?);
        let name = name.map_err(|_| header.damaged("a namespace's name is not text"))?;
        if store.lane_or_new(namespace, partition, name) != number {
            return Err(header.damaged("a lane stands twice in the header"));
        }
    }
    let (mut entries_read, mut outcomes_read) = (0, 0);
    loop {
        let (kind, mut fields) = blocks.next()?;
        match kind {
            BlockKind::Header => return Err(fields.damaged("a second header")),
            BlockKind::Entries => {
                while !fields.is_empty() {
                    let entry = take_entry(&mut fields)?;
                    if entry.lane >= lanes {
                        return Err(fields.damaged("an entry of a lane that is not in the header"));
                    }
                    let expiry = Expiry::At(entry.expires_us.unwrap_or(NEVER));
                    let spot = store.locate(entry.lane, entry.key);
                    let (key, value) = (entry.key, entry.value);
                    store.put(spot, key, value, expiry, entry.revision, facts.log_time_us);
                    entries_read += 1;
                }
            }
            BlockKind::Outcomes => {
                while !fields.is_empty() {
                    take_outcome(&mut fields, |kept| outcomes.restore(kept, facts.log_time_us))?;
                    outcomes_read += 1;
                }
            }
            BlockKind::Footer => {
                let chain = fields.chain;
                if (fields.u64()?, fields.u64()?) != (entries_read, outcomes_read)
                    || fields.u32()? != chain
                    || store.entries() as u64 != entries_read
                {
                    return Err(fields.damaged("the footer does not agree with what stands before"));
                }
                return Ok((Memstore::assemble(limits, store, outcomes), facts));
            }
        }
    }
}
