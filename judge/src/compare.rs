//! Both state machines, frame by frame.

use crate::differences::{Block, Case, DIFFERENCES};
use crate::frames::{Frame, Sequence};
use crate::ours::Ours;
use crate::seen::{Seen, Told, Written};
use crate::theirs::Theirs;
use prism_io::h2::frame::{flag, kind};
use prism_io::h2::hpack::Decoder;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same after every frame; that many were taken before the connection ended or the frames did.
    Same {
        /// Frames that were compared.
        frames: usize,
    },
    /// The same up to a frame after which a known difference applies; its place in `DIFFERENCES`.
    Known {
        /// Frames that were compared before.
        frames: usize,
        /// Which.
        row: usize,
    },
}

/// A difference that nobody has explained.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What differs, the same for cases that are alike.
    pub kind: String,
    /// All that led to it.
    pub story: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}", self.kind, self.story)
    }
}

/// What came of a comparison that goes on behind known differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Frames that were compared, in the longest run.
    pub frames: usize,
    /// The known differences that were met, by their places in `DIFFERENCES`.
    pub known: Vec<usize>,
    /// The frames were compared to the last, but for those of `known`.
    pub to_the_end: bool,
}

/// Known differences of one sequence behind which the comparison goes on.
pub const KNOWN_MAX: usize = 12;

/// As [`compare`], and where a known difference applies once more without the frames that brought it about: what comes behind them is
/// compared too.
///
/// # Errors
/// When they differ in a way that `DIFFERENCES` does not have.
pub fn compare_on(sequence: &Sequence) -> Result<Compared, Finding> {
    let mut compared = Compared { frames: 0, known: Vec::new(), to_the_end: false };
    let mut rest = sequence.clone();
    loop {
        match compare(&rest)? {
            Verdict::Same { frames } => {
                compared.frames = compared.frames.max(frames);
                compared.to_the_end = true;
                return Ok(compared);
            }
            Verdict::Known { frames, row } => {
                compared.frames = compared.frames.max(frames);
                compared.known.push(row);
                if compared.known.len() > KNOWN_MAX {
                    return Ok(compared);
                }
                rest.frames.drain(beginning_of_block(&rest.frames, frames)..=frames);
            }
        }
    }
}

/// Where the header block begins that the frame at `nth` is a part of; `nth` where it is none.
fn beginning_of_block(frames: &[Frame], nth: usize) -> usize {
    let mut begin = nth;
    while frames[begin].kind == kind::CONTINUATION && begin > 0 {
        begin -= 1;
    }
    if frames[begin].kind == kind::HEADERS { begin } else { nth }
}

/// Feeds both and compares after each frame.
///
/// # Errors
/// When they differ in a way that `DIFFERENCES` does not have.
pub fn compare(sequence: &Sequence) -> Result<Verdict, Finding> {
    let mut ours = Ours::new(sequence.role);
    let mut theirs = Theirs::new(sequence.role);
    ours.feed(sequence.opening());
    theirs.feed(sequence.opening());
    let mut bystander = Bystander::default();
    let mut before = ours.seen.clone();
    for (nth, frame) in sequence.frames.iter().enumerate() {
        let bytes = frame.bytes();
        ours.feed(&bytes);
        theirs.feed(&bytes);
        let block = bystander.take(frame);
        // `h2` decodes a header block as it comes, we when it is whole: they can be compared when it is.
        if bystander.waits() && !ours.seen.closed {
            continue;
        }
        let (a, b) = (observed(&ours.seen), observed(&theirs.seen));
        if a == b {
            if a.closed {
                return Ok(Verdict::Same { frames: nth + 1 });
            }
            before.clone_from(&ours.seen);
            continue;
        }
        let case = Case {
            role: sequence.role,
            frame,
            earlier: &sequence.frames[..nth],
            nameless: bystander.nameless,
            block,
            before: &before,
            ours: &a,
            theirs: &b,
        };
        return match DIFFERENCES.iter().position(|row| (row.applies)(&case)) {
            Some(row) => Ok(Verdict::Known { frames: nth, row }),
            None => Err(Finding { kind: kind_of(&case), story: story(sequence, nth, &case) }),
        };
    }
    Ok(Verdict::Same { frames: sequence.frames.len() })
}

/// Reads the header blocks along, so that a difference can be explained by what they say.
#[derive(Default)]
struct Bystander {
    decoder: Decoder,
    waiting: Option<(u32, bool, Vec<u8>)>,
    nameless: bool,
}

impl Bystander {
    /// A header block that ends with this frame.
    fn take(&mut self, frame: &Frame) -> Option<Block> {
        let end_stream = frame.flags & flag::END_STREAM != 0;
        match frame.kind {
            kind::HEADERS => {
                let mut part = &frame.payload[..];
                let mut pad = 0;
                if frame.flags & flag::PADDED != 0 {
                    let (&first, rest) = part.split_first()?;
                    (pad, part) = (usize::from(first), rest);
                }
                if frame.flags & flag::PRIORITY != 0 {
                    part = part.get(5..)?;
                }
                let part = part.get(..part.len().checked_sub(pad)?)?;
                self.waiting = Some((frame.stream, end_stream, part.to_vec()));
            }
            kind::CONTINUATION => self.waiting.as_mut()?.2.extend_from_slice(&frame.payload),
            _ => return None,
        }
        if frame.flags & flag::END_HEADERS == 0 {
            return None;
        }
        let (stream, end, block) = self.waiting.take()?;
        let mut fields = Vec::new();
        let decoded = self
            .decoder
            .decode(&block, |field| fields.push((field.name.to_vec(), field.value.to_vec())));
        self.nameless |=
            frame.kind == kind::CONTINUATION && fields.iter().any(|(name, _)| name.is_empty());
        Some(Block { stream: stream & 0x7fff_ffff, end, fields, sound: decoded.is_ok() })
    }

    fn waits(&self) -> bool {
        self.waiting.is_some()
    }
}

/// What counts of what was seen.
fn observed(seen: &Seen) -> Seen {
    let mut seen = seen.clone();
    // Once the connection has ended, how it did; what was still told of streams then is chance.
    seen.closed |= seen.goaway.is_some_and(|(_, code)| code != 0);
    if seen.closed {
        // A good-bye is polite and nothing else.
        let goaway = seen.goaway.filter(|&(_, code)| code != 0);
        return Seen { goaway, granted: seen.granted, closed: true, ..Seen::default() };
    }
    seen.told.retain(|_, told| *told != Told::default());
    seen.written.retain(|_, written| *written != Written::default());
    for told in seen.told.values_mut() {
        // The type by which `h2` shows a request cannot hold a scheme without an authority.
        if let Some(head) = &mut told.head
            && !head.contains_key(":authority")
        {
            head.remove(":scheme");
        }
    }
    seen
}

/// What differs, without the numbers that make every case look like another.
fn kind_of(case: &Case<'_>) -> String {
    let mut text = format!("{:?} kind {}", case.role, case.frame.kind);
    let (ours, theirs) = (case.ours, case.theirs);
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            let _ = write!(text, "; {what}: ours {a}, theirs {b}");
        }
    };
    let code = |seen: &Seen| format!("{:?}", seen.goaway.map(|(_, code)| code));
    differ("closed", ours.closed.to_string(), theirs.closed.to_string());
    differ("goaway code", code(ours), code(theirs));
    differ("goaway", (ours.goaway != theirs.goaway).to_string(), false.to_string());
    if ours.closed || theirs.closed {
        return text;
    }
    differ(
        "settings",
        ours.settings_acknowledged.to_string(),
        theirs.settings_acknowledged.to_string(),
    );
    differ("pongs", ours.pongs.len().to_string(), theirs.pongs.len().to_string());
    let none = Told::default();
    let numbers = ours.told.keys().chain(theirs.told.keys()).collect::<BTreeSet<_>>();
    for number in numbers {
        let (a, b) =
            (ours.told.get(number).unwrap_or(&none), theirs.told.get(number).unwrap_or(&none));
        differ("head", a.head.is_some().to_string(), b.head.is_some().to_string());
        differ("fields", (a.head != b.head).to_string(), false.to_string());
        differ("body", (a.body != b.body).to_string(), false.to_string());
        differ("trailers", (a.trailers != b.trailers).to_string(), false.to_string());
        differ("ended", a.ended.to_string(), b.ended.to_string());
        differ("told reset", format!("{:?}", a.reset), format!("{:?}", b.reset));
    }
    let none = Written::default();
    let numbers = ours.written.keys().chain(theirs.written.keys()).collect::<BTreeSet<_>>();
    for number in numbers {
        let (a, b) = (
            ours.written.get(number).unwrap_or(&none),
            theirs.written.get(number).unwrap_or(&none),
        );
        differ("answer", (a.head != b.head).to_string(), false.to_string());
        differ("answer bytes", (a.data_bytes != b.data_bytes).to_string(), false.to_string());
        differ("answer ended", a.ended.to_string(), b.ended.to_string());
        differ("written reset", format!("{:?}", a.reset), format!("{:?}", b.reset));
    }
    text
}

fn story(sequence: &Sequence, nth: usize, case: &Case<'_>) -> String {
    let mut text = format!("{:?}, frame by frame:\n", sequence.role);
    for frame in &sequence.frames[..=nth] {
        let _ = writeln!(text, "  {}", frame.describe());
    }
    let _ = writeln!(text, "after the last one, where they differ:");
    for (who, of, other) in [("ours  ", case.ours, case.theirs), ("theirs", case.theirs, case.ours)]
    {
        let _ = writeln!(
            text,
            "{who}: closed {}, goaway {:?}, {} SETTINGS and {} PINGs acknowledged",
            of.closed,
            of.goaway,
            of.settings_acknowledged,
            of.pongs.len()
        );
        for (number, told) in &of.told {
            if other.told.get(number) != Some(told) {
                let body = told.body.len();
                let _ = writeln!(
                    text,
                    "{who}: told {number}: head {:?} body {body} trailers {:?} ended {} reset {:?}",
                    told.head, told.trailers, told.ended, told.reset
                );
            }
        }
        for (number, written) in &of.written {
            if other.written.get(number) != Some(written) {
                let _ = writeln!(text, "{who}: written {number}: {written:?}");
            }
        }
    }
    text
}
