//! What is wrong with a configuration: where it stands, what it is, and what to write instead.
//!
//! Errors are collected, not thrown one at a time, and are printed in the order of the file.

use std::fmt;

use super::units::UnitError;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration file as a whole.
    File,
    /// A place in the configuration file; both count from 1, the column in characters.
    Place {
        /// Line of the file.
        line: u64,
        /// Column of the line.
        column: u64,
    },
    /// A flag of the command line, by its long name without the dashes.
    Flag(&'static str),
    /// Nobody wrote it: a default that does not fit this machine.
    Default,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

/// Everything that is wrong with one configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name as it was given, for messages.
    pub file: String,
    /// In the order of the file, flags last.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    /// `file:line:column: message`, then an indented remedy; one pair of lines for each error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match error.origin {
                Origin::File => write!(f, "{}", self.file)?,
                Origin::Place { line, column } => write!(f, "{}:{line}:{column}", self.file)?,
                Origin::Flag(name) => write!(f, "--{name}")?,
                Origin::Default => f.write_str("default")?,
            }
            write!(f, ": {}\n    {}", error.message, error.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Why a value was refused, before it is known where it stands.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) remedy: String,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

impl From<UnitError> for Problem {
    fn from(error: UnitError) -> Self {
        Self { message: error.message, remedy: error.remedy }
    }
}

/// The candidate that was probably meant by `word`: the nearest by edit distance, where it is near enough for its
/// length (a third of it, at least one edit).
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(edits, candidate)| {
            let candidate = plain(candidate);
            let longer = word.len() >= 4 && candidate.starts_with(&word);
            let shorter = candidate.len() >= 4 && word.starts_with(&candidate);
            *edits <= limit || longer || shorter
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which a swap of two neighbours counts once (optimal string alignment, after Damerau 1964).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    let mut current = vec![0; b.len() + 1];
    for i in 1..=a.len() {
        current[0] = i;
        for j in 1..=b.len() {
            let replaced = previous[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            current[j] = replaced.min(previous[j] + 1).min(current[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                current[j] = current[j].min(before[j - 2] + 1);
            }
        }
        std::mem::swap(&mut before, &mut previous);
        std::mem::swap(&mut previous, &mut current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_a_stranger_is_not() {
        let keys = ["listen", "admin", "data_dir", "shards", "durability", "message_bytes_max"];
        let cases = [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("data-dir", Some("data_dir")),
            ("durabilty", Some("durability")),
            ("hsards", Some("shards")),
            ("message_bytes", Some("message_bytes_max")),
            ("admin_address", Some("admin")),
            ("colour", None),
            ("x", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
