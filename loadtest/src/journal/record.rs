//! The journal file: one line per thing that happened, and what they add up to.
//!
//! Promises: a line is handed to the kernel before the next step is taken, so that the file outlives this process; a line cut short by its death
//! is ignored. The journal of an earlier run is continued, not overwritten.
//!
//! ```text
//! prism-journal 1 <run> <namespace> <value bytes>
//! + <key> <number>        a write was sent
//! = <key> <number>        it was acknowledged
//! - <key> <number>        it was refused: it must never appear
//! ! <text>                a promise was broken
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Write};
use std::path::Path;

const MAGIC: &str = "prism-journal 1";

/// How the writes of a key are made, which says what can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Set without an idempotency key; one whose outcome is unknown is left behind.
    Plain,
    /// Set with an idempotency key and `return_previous`, repeated until it is answered: the answer must always be that of the first
    /// time.
    Keyed,
    /// CompareAndSwap from the number before, with an idempotency key, repeated until it is answered: a lost write or one applied
    /// twice makes it fail.
    Counter,
}

impl Way {
    /// The way of a key, told by the first letter of its name.
    pub(super) fn of(key: &str) -> Self {
        match key.as_bytes().first() {
            Some(b'k') => Way::Keyed,
            Some(b'c') => Way::Counter,
            _ => Way::Plain,
        }
    }

    /// The letter that the names of its keys begin with.
    pub(super) fn letter(self) -> char {
        match self {
            Way::Plain => 'p',
            Way::Keyed => 'k',
            Way::Counter => 'c',
        }
    }
}

/// What is known of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// The last number that was acknowledged; zero: none.
    pub(super) acknowledged: u64,
    /// The last number that was sent; zero: none.
    pub(super) sent: u64,
    /// Numbers after the acknowledged one that were refused.
    pub(super) refused: BTreeSet<u64>,
}

impl History {
    /// Whether the outcome of the last write is unknown.
    pub(super) fn is_open(&self) -> bool {
        self.sent > self.acknowledged && !self.refused.contains(&self.sent)
    }

    /// Whether `found` (zero: no such key) may be what the server holds.
    pub(super) fn allows(&self, found: u64) -> bool {
        let in_time = (self.acknowledged..=self.sent).contains(&found);
        in_time && !self.refused.contains(&found)
    }
}

/// What stands at the beginning of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Part of every key and idempotency key, so that two journals never meet.
    pub(super) run: String,
    /// The namespace that was written to.
    pub(super) namespace: String,
    /// Bytes of each value.
    pub(super) value_bytes: usize,
}

impl Header {
    /// The value that write `number` of `key` stores: it names both, and every other byte follows from them.
    pub(super) fn value(&self, key: &str, number: u64) -> Vec<u8> {
        let mut value = format!("{number} {key} ").into_bytes();
        let mut random = crate::random::Random::new(number ^ (key.len() as u64) << 56);
        while value.len() < self.value_bytes {
            value.push(b'a' + random.below(26) as u8);
        }
        value
    }

    /// The number of a value that was read, if it is one that `value` makes for `key`.
    pub(super) fn number(&self, key: &str, value: &[u8]) -> Option<u64> {
        let digits = value.split(|&byte| byte == b' ').next()?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (self.value(key, number) == value).then_some(number)
    }
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// How it begins.
    pub(super) header: Header,
    /// By key.
    pub(super) histories: BTreeMap<String, History>,
    /// Writes that were acknowledged.
    pub(super) acknowledgements: u64,
    /// What was found wrong while writing.
    pub(super) violations: Vec<String>,
}

impl Contents {
    /// Reads the text of a journal. An unfinished last line is ignored; any other line that makes no sense is an error.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines();
        let header = lines
            .next()
            .and_then(|line| line.strip_prefix(MAGIC))
            .map(|rest| rest.split_whitespace().collect::<Vec<_>>());
        let Some([run, namespace, value_bytes]) = header.as_deref() else {
            return Err(Error::other("this is not a journal of prism-loadtest"));
        };
        let header = Header {
            run: (*run).to_owned(),
            namespace: (*namespace).to_owned(),
            value_bytes: value_bytes.parse().map_err(Error::other)?,
        };
        let mut contents = Self {
            header,
            histories: BTreeMap::new(),
            acknowledgements: 0,
            violations: Vec::new(),
        };
        for (index, line) in lines.enumerate() {
            contents.line(line).ok_or_else(|| {
                Error::other(format!("line {} of the journal makes no sense: {line}", index + 2))
            })?;
        }
        Ok(contents)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (sign, rest) = line.split_once(' ')?;
        if sign == "!" {
            self.violations.push(rest.to_owned());
            return Some(());
        }
        let (key, number) = rest.split_once(' ')?;
        let number = number.parse().ok().filter(|&number| number > 0)?;
        let history = self.histories.entry(key.to_owned()).or_default();
        match sign {
            // Sent again under the same idempotency key, a number stays the same.
            "+" if number >= history.sent => history.sent = number,
            "=" if number > history.acknowledged && number == history.sent => {
                history.acknowledged = number;
                history.refused.retain(|&refused| refused > number);
                self.acknowledgements += 1;
            }
            "-" if number == history.sent => {
                history.refused.insert(number);
            }
            _ => return None,
        }
        Some(())
    }
}

/// A journal that is being written.
pub(super) struct Journal(File);

impl Journal {
    /// Opens the journal at `path`, and begins it with `header` if it is not there. Returns what it says already.
    pub(super) fn open(path: &Path, header: &Header) -> Result<(Self, Contents)> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let text = std::fs::read_to_string(path)?;
        if text.is_empty() {
            let Header { run, namespace, value_bytes } = header;
            let first = format!("{MAGIC} {run} {namespace} {value_bytes}\n");
            file.write_all(first.as_bytes())?;
            return Ok((Self(file), Contents::parse(&first)?));
        }
        let contents = Contents::parse(&text)?;
        // The torn end of an earlier run would run into the next line.
        file.set_len(text.rfind('\n').map_or(0, |end| end as u64 + 1))?;
        Ok((Self(file), contents))
    }

    /// A write is about to be sent.
    pub(super) fn sent(&mut self, key: &str, number: u64) -> Result<()> {
        self.0.write_all(format!("+ {key} {number}\n").as_bytes())
    }

    /// A write was acknowledged.
    pub(super) fn acknowledged(&mut self, key: &str, number: u64) -> Result<()> {
        self.0.write_all(format!("= {key} {number}\n").as_bytes())
    }

    /// A write was refused for good.
    pub(super) fn refused(&mut self, key: &str, number: u64) -> Result<()> {
        self.0.write_all(format!("- {key} {number}\n").as_bytes())
    }

    /// A promise was broken.
    pub(super) fn violation(&mut self, text: &str) -> Result<()> {
        self.0.write_all(format!("! {}\n", text.replace('\n', " ")).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "prism-journal 1 r7 keyvalue 64\n+ p1 1\n= p1 1\n+ p1 2\n+ k1 1\n- p1 2\n+ p1 3\n! odd\n";

    #[test]
    fn lines_add_up() {
        let contents = Contents::parse(TEXT).unwrap();
        assert_eq!(
            (contents.acknowledgements, &contents.violations[..]),
            (1, &["odd".to_owned()][..])
        );
        let plain = &contents.histories["p1"];
        assert!(plain.is_open() && contents.histories["k1"].is_open());
        assert!(plain.allows(1) && plain.allows(3), "acknowledged, or under way");
        assert!(
            !plain.allows(0) && !plain.allows(2) && !plain.allows(4),
            "lost, refused, never sent"
        );
        assert!(contents.histories["k1"].allows(0));
    }

    #[test]
    fn a_torn_line_is_ignored_and_nonsense_is_not() {
        let whole = Contents::parse(TEXT).unwrap();
        for end in TEXT.len() - 6..TEXT.len() {
            let torn = Contents::parse(&TEXT[..end]).unwrap();
            assert_eq!(torn.histories, whole.histories);
        }
        for wrong in ["", "x\n", "prism-journal 1 a b\n"] {
            assert!(Contents::parse(wrong).is_err(), "{wrong}");
        }
        for line in ["= p1 2", "+ p1 0", "? p1 4", "- p1 1", "+ p1 x", "+"] {
            assert!(Contents::parse(&format!("{TEXT}{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn a_journal_is_continued() {
        let path = std::env::temp_dir().join(format!("prism-journal-{}", std::process::id()));
        let header = Header { run: "r1".into(), namespace: "keyvalue".into(), value_bytes: 32 };
        let (mut journal, _) = Journal::open(&path, &header).unwrap();
        journal.sent("p1", 1).unwrap();
        journal.0.write_all(b"= p").unwrap();
        let other = Header { run: "r2".into(), ..header.clone() };
        let (mut journal, contents) = Journal::open(&path, &other).unwrap();
        assert_eq!(contents.header, header, "what is there counts");
        journal.acknowledged("p1", 1).unwrap();
        let contents = Contents::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(contents.histories["p1"].acknowledged, 1);
    }

    #[test]
    fn a_value_names_its_write() {
        let header = Header { run: "r".into(), namespace: "n".into(), value_bytes: 48 };
        let value = header.value("p-1", 12);
        assert_eq!((value.len(), header.number("p-1", &value)), (48, Some(12)));
        assert_eq!(header.number("p-2", &value), None);
        let mut damaged = value.clone();
        damaged[40] ^= 1;
        assert_eq!(header.number("p-1", &damaged), None);
        assert_eq!(header.number("p-1", b""), None);
    }
}
