//! The chain: how a line of the audit log is written, and whether lines follow from one another. Without files and clock.
//!
//! A line is a JSON object that ends in `,"hash":"…"}`. Its hash is the SHA-256 (FIPS 180-4) of the 32 bytes of the hash before
//! it and of all that stands in the line before `,"hash"`. Sequence numbers count from 1. The first line of each file has the hash that it
//! follows from in `previous`, zeros at the very beginning, so that a file can be looked at by itself.

use std::io::Write;

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::Value;

/// The SHA-256 of a line and of what is before it.
pub(crate) type Hash = [u8; 32];

/// What the first line of all follows from.
pub(crate) const BEGINNING: Hash = [0; 32];
/// The `event` of the first line of a file.
pub(crate) const FILE_EVENT: &str = "file";

/// What stands before the hash in a line.
const MARK: &[u8] = b",\"hash\":\"";
/// What stands behind it.
const END: &[u8] = b"\"}";
const DIGITS: usize = 64;

/// What a line says beside number, time and hash, in the order in which it says it.
pub(crate) type Fields = Vec<(&'static str, Value)>;

/// The last line of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its number; 0: there is none yet.
    pub(crate) sequence: u64,
    pub(crate) hash: Hash,
}

impl Head {
    /// Of a chain without a line.
    pub(crate) const NONE: Self = Self { sequence: 0, hash: BEGINNING };

    /// Writes the next line, its end included, and is its head from now on.
    pub(crate) fn write(&mut self, time: &str, fields: &Fields, into: &mut Vec<u8>) {
        let (begin, sequence) = (into.len(), self.sequence + 1);
        into.extend_from_slice(format!("{{\"sequence\":{sequence},\"time\":\"{time}\"").as_bytes());
        for (key, value) in fields {
            // To memory, and of text: neither can fail.
            let _ = write!(into, ",\"{key}\":{value}");
        }
        self.hash = hash_of(&self.hash, &into[begin..]);
        self.sequence = sequence;
        into.extend_from_slice(MARK);
        into.extend_from_slice(show(&self.hash).as_bytes());
        into.extend_from_slice(END);
        into.push(b'\n');
    }

    /// Of a chain whose last line, without its end, is this.
    pub(crate) fn of_line(line: &[u8]) -> Option<Self> {
        let line = Line::parse(line)?;
        Some(Self { sequence: line.sequence, hash: line.hash })
    }
}

fn hash_of(previous: &Hash, covered: &[u8]) -> Hash {
    let mut text = Vec::with_capacity(previous.len() + covered.len());
    text.extend_from_slice(previous);
    text.extend_from_slice(covered);
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, &text).as_ref());
    hash
}

/// A hash as lower-case hexadecimal digits.
pub(crate) fn show(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash that 64 hexadecimal digits stand for.
pub(crate) fn parse_hash(text: &[u8]) -> Option<Hash> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut hash = Hash::default();
    if text.len() != DIGITS {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(hash)
}

/// A line, taken apart.
struct Line<'a> {
    sequence: u64,
    /// What the hash covers beside the one before.
    covered: &'a [u8],
    hash: Hash,
    /// Of the first line of a file.
    previous: Option<Hash>,
}

#[derive(Deserialize)]
struct Read {
    sequence: u64,
    event: String,
    #[serde(default)]
    previous: String,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let body = line.strip_suffix(END)?;
        let (covered, digits) = body.split_at_checked(body.len().checked_sub(DIGITS)?)?;
        let covered = covered.strip_suffix(MARK)?;
        let read: Read = serde_json::from_slice(line).ok()?;
        let previous = match read.event == FILE_EVENT {
            true => Some(parse_hash(read.previous.as_bytes())?),
            false => None,
        };
        Some(Self { sequence: read.sequence, covered, hash: parse_hash(digits)?, previous })
    }
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) file: String,
    /// The line in the file, from 1.
    pub(crate) line: u64,
    pub(crate) what: String,
}

/// Most faults that are told; all are counted.
const FAULTS_TOLD_MAX: usize = 100;

/// Looks at lines in their order, file after file.
#[derive(Debug, Default)]
pub(crate) struct Verifier {
    file: String,
    line: u64,
    /// The number of the last line, and its hash where that could be read.
    last: Option<(u64, Option<Hash>)>,
    /// A head that somebody has kept elsewhere, until its line was seen.
    anchor: Option<Head>,
    pub(crate) lines: u64,
    /// The number of the first line of all, and whether nothing was before it.
    pub(crate) first: Option<(u64, bool)>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) faults_count: u64,
}

impl Verifier {
    /// One that also wants to find this line, as somebody has kept it elsewhere.
    pub(crate) fn with_anchor(anchor: Option<Head>) -> Self {
        Self { anchor, ..Self::default() }
    }

    /// The last line that was seen and could be read.
    pub(crate) fn head(&self) -> Option<Head> {
        let (sequence, hash) = self.last?;
        Some(Head { sequence, hash: hash? })
    }

    /// The lines that come are those of this file.
    pub(crate) fn begin_file(&mut self, name: &str) {
        self.file = name.to_owned();
        self.line = 0;
    }

    /// The next line, its end taken off; `is_whole`: it had one.
    pub(crate) fn line(&mut self, line: &[u8], is_whole: bool) {
        self.line += 1;
        if !is_whole {
            return self.fault("the line is cut off: a crash leaves this at the end of the last file, which the next start cuts");
        }
        self.lines += 1;
        let Some(line) = Line::parse(line) else {
            self.last = self.last.map(|(sequence, _)| (sequence + 1, None));
            return self.fault("this is no line of an audit log");
        };
        if self.first.is_none() {
            let is_beginning = line.sequence == 1 && line.previous == Some(BEGINNING);
            self.first = Some((line.sequence, is_beginning));
        }
        self.check(&line);
        if let Some(anchor) = self.anchor.filter(|anchor| anchor.sequence == line.sequence) {
            self.anchor = None;
            if anchor.hash != line.hash {
                self.fault(
                    "its hash is not the one that was kept elsewhere: the log was written anew",
                );
            }
        }
        self.last = Some((line.sequence, Some(line.hash)));
    }

    fn check(&mut self, line: &Line<'_>) {
        let begins_file = self.line == 1;
        if begins_file != line.previous.is_some() {
            return self.fault(match begins_file {
                true => "the file does not begin with the line that says what it follows from: lines are missing before it",
                false => "the first line of a file stands in the middle of one",
            });
        }
        let mut previous = line.previous;
        if let Some((last, hash)) = self.last {
            let next = last + 1;
            if line.sequence > next {
                return self.fault(match line.sequence - 1 {
                    until if until == next => format!("line {next} is missing before it"),
                    until => format!("lines {next} to {until} are missing before it"),
                });
            }
            if line.sequence < next {
                return self.fault(format!(
                    "line {} stands behind line {last}: lines were moved, or are there twice",
                    line.sequence
                ));
            }
            if begins_file && hash.is_some() && hash != previous {
                return self.fault("the file does not follow from the one before it");
            }
            previous = hash;
        }
        if previous.is_some_and(|previous| hash_of(&previous, line.covered) != line.hash) {
            self.fault(
                "it does not fit its hash: it was changed, or the hash of the line before it was",
            );
        }
    }

    /// After the last line.
    pub(crate) fn finish(&mut self) {
        let Some(anchor) = self.anchor.take() else { return };
        let last = self.last.map_or(0, |(sequence, _)| sequence);
        self.fault(match anchor.sequence > last {
            true => format!(
                "the log ends with line {last}, and line {} was kept elsewhere: lines at its end are missing",
                anchor.sequence
            ),
            false => format!("line {}, which was kept elsewhere, is not in these files", anchor.sequence),
        });
    }

    fn fault(&mut self, what: impl Into<String>) {
        self.faults_count += 1;
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(Fault { file: self.file.clone(), line: self.line, what: what.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files of a chain with so many lines each, the first of a file included.
    fn chain(lines: usize) -> Vec<Vec<String>> {
        let mut head = Head::NONE;
        let mut files = Vec::new();
        for _ in 0..2 {
            let mut text = Vec::new();
            let previous = Value::from(show(&head.hash));
            head.write("t", &vec![("event", FILE_EVENT.into()), ("previous", previous)], &mut text);
            for number in 1..lines {
                let fields =
                    vec![("event", "access".into()), ("who", format!("a{number}\n").into())];
                head.write("t", &fields, &mut text);
            }
            let text = String::from_utf8(text).unwrap();
            files.push(text.lines().map(str::to_owned).collect());
        }
        files
    }

    fn verify(files: &[Vec<String>], anchor: Option<Head>) -> Verifier {
        let mut verifier = Verifier::with_anchor(anchor);
        for (number, lines) in files.iter().enumerate() {
            verifier.begin_file(&number.to_string());
            lines.iter().for_each(|line| verifier.line(line.as_bytes(), true));
        }
        verifier.finish();
        verifier
    }

    /// File, line and words of every fault.
    fn faults(files: &[Vec<String>]) -> Vec<(String, u64, String)> {
        let faults = verify(files, None).faults;
        faults.into_iter().map(|fault| (fault.file, fault.line, fault.what)).collect()
    }

    fn one(files: &[Vec<String>], file: &str, line: u64, says: &str) {
        let faults = faults(files);
        let fits = |fault: &(String, u64, String)| {
            fault.0 == file && fault.1 == line && fault.2.contains(says)
        };
        assert!(faults.first().is_some_and(fits), "{says} at {file}:{line}: {faults:?}");
    }

    #[test]
    fn what_was_written_verifies_and_tells_its_head() {
        let files = chain(5);
        let verifier = verify(&files, None);
        assert_eq!(
            (verifier.faults, verifier.lines, verifier.first),
            (vec![], 10, Some((1, true)))
        );
        assert_eq!(Head::of_line(files[1][4].as_bytes()), verify(&files, None).head());
        assert_eq!(verify(&files, None).head().unwrap().sequence, 10);
        // A later file by itself verifies too, and says that something was before.
        let verifier = verify(&files[1..], None);
        assert_eq!((verifier.faults_count, verifier.first), (0, Some((6, false))));
    }

    #[test]
    fn every_character_counts() {
        let whole = chain(3);
        for line in 0..3 {
            for at in 0..whole[0][line].len() {
                let mut files = whole.clone();
                let mut bytes = files[0][line].clone().into_bytes();
                bytes[at] ^= 1;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                files[0][line] = text;
                let faults = faults(&files);
                assert!(!faults.is_empty(), "byte {at} of line {line}: {}", files[0][line]);
                assert_eq!(faults[0].1 as usize, line + 1, "{faults:?}");
            }
        }
    }

    #[test]
    fn what_is_removed_moved_doubled_or_put_in_is_found() {
        let whole = chain(6);
        let change = |change: &dyn Fn(&mut Vec<Vec<String>>)| {
            let mut files = whole.clone();
            change(&mut files);
            files
        };
        one(&change(&|files| drop(files[0].remove(2))), "0", 3, "line 3 is missing");
        one(&change(&|files| drop(files[0].drain(2..5))), "0", 3, "lines 3 to 5 are missing");
        one(&change(&|files| files[0].swap(2, 3)), "0", 3, "missing");
        let twice = whole[0][2].clone();
        one(&change(&|files| files[0].insert(3, twice.clone())), "0", 4, "there twice");
        one(&change(&|files| drop(files[0].pop())), "1", 1, "line 6 is missing");
        one(&change(&|files| drop(files[1].remove(0))), "1", 1, "does not begin with");
        one(&change(&|files| files.swap(0, 1)), "1", 1, "moved");
        one(&change(&|files| files[0][3] = "{}".into()), "0", 4, "no line of an audit log");
        one(&change(&|files| files[0][3].truncate(20)), "0", 4, "no line of an audit log");
        let more = chain(8);
        // The end of another chain with the same numbers.
        one(&change(&|files| files[1] = more[0][5..].to_vec()), "1", 1, "missing");
    }

    #[test]
    fn a_line_that_was_forged_with_its_hash_is_betrayed_by_the_next() {
        let mut files = chain(5);
        let mut head = Head::of_line(files[0][1].as_bytes()).unwrap();
        let mut forged = Vec::new();
        head.write("t", &vec![("event", "access".into()), ("who", "nobody".into())], &mut forged);
        files[0][2] = String::from_utf8(forged).unwrap().trim_end().to_owned();
        one(&files, "0", 4, "or the hash of the line before");
    }

    #[test]
    fn a_line_without_its_end_is_a_fault() {
        let mut verifier = Verifier::default();
        verifier.begin_file("f");
        verifier.line(chain(1)[0][0].as_bytes(), true);
        verifier.line(b"{\"sequence\":2", false);
        assert!(verifier.faults[0].what.contains("cut off"));
    }

    #[test]
    fn what_is_missing_at_the_end_only_a_kept_head_betrays() {
        let whole = chain(5);
        let head = verify(&whole, None).head();
        let mut cut = whole.clone();
        cut[1].truncate(2);
        assert_eq!(verify(&cut, None).faults_count, 0, "nothing in the log itself tells");
        assert!(verify(&cut, head).faults[0].what.contains("lines at its end are missing"));
        assert_eq!(verify(&whole, head).faults_count, 0);
        // Everything written anew, every hash right.
        let mut other = Head { hash: [1; 32], ..head.unwrap() };
        assert!(verify(&whole, Some(other)).faults[0].what.contains("written anew"));
        other.sequence = 3;
        assert!(verify(&whole[1..], Some(other)).faults[0].what.contains("is not in these files"));
    }

    #[test]
    fn hashes_read_back() {
        assert_eq!(parse_hash(show(&[0xab; 32]).as_bytes()), Some([0xab; 32]));
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(parse_hash(bad.as_bytes()), None);
        }
    }
}
