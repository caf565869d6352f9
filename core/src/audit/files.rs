//! The files of the audit log: where it goes on after a start, and when a new one begins.
//!
//! A file is called after the number of its first line. Files are only appended to, and never removed by Prism; a start cuts
//! off what a crash has left unfinished behind the last whole line, of which nobody was told.

use std::io;
use std::path::{Path, PathBuf};

use prism_io::disk::{AppendFile, FolderLock};
use serde_json::Value;

use super::chain::{FILE_EVENT, Fields, Head, show};

/// The folder in the data directory, unless the configuration names another.
pub(crate) const FOLDER: &str = "audit";

/// Of the end of a file so much is looked at: far more than a line may have.
const TAIL_BYTES: u64 = 64 << 10;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// `None` until the first line of a file.
    file: Option<AppendFile>,
    file_bytes_max: u64,
    /// The end of the chain.
    head: Head,
    _lock: FolderLock,
}

/// The files of a folder, in the order of their lines.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let is_log = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".jsonl"));
        number
            .is_some_and(|number| number.len() == 16 && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(folder)?;
    let mut files: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(is_log);
    files.sort();
    Ok(files)
}

impl Files {
    /// Goes on in a folder where the last line was, and tells how many bytes of an unfinished one were cut off; the error says
    /// what to do.
    pub(super) fn open(folder: &Path, file_bytes_max: u64) -> Result<(Self, u64), String> {
        let wrong = |what: String| format!("the audit log in {}: {what}", folder.display());
        let failed = |error: io::Error| {
            wrong(format!("{error}; see that it can be written, then start again"))
        };
        let lock = FolderLock::take(folder).map_err(failed)?;
        let lock = lock.ok_or_else(|| wrong("another process writes there".to_owned()))?;
        let (mut head, mut file, mut cut_bytes) = (Head::NONE, None, 0);
        for path in list(folder).map_err(failed)?.iter().rev() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let mut last = AppendFile::open(folder, name).map_err(failed)?;
            let tail = last.tail(TAIL_BYTES).map_err(failed)?;
            let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let torn = (tail.len() - whole) as u64;
            if whole == 0 && torn == last.bytes() {
                // Nothing of it was ever finished.
                cut_bytes += torn;
                std::fs::remove_file(path).map_err(failed)?;
                continue;
            }
            let line = tail[..whole]
                .strip_suffix(b"\n")
                .and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
            let Some(of_line) = line.and_then(Head::of_line) else {
                return Err(wrong(format!(
                    "the last line of {name} is damaged; see `prism audit verify`, then move the folder away so that a new chain begins"
                )));
            };
            head = of_line;
            if torn > 0 {
                let bytes = last.bytes() - torn;
                last.cut(bytes).map_err(failed)?;
                cut_bytes += torn;
            }
            file = Some(last);
            break;
        }
        Ok((Self { folder: folder.to_owned(), file, file_bytes_max, head, _lock: lock }, cut_bytes))
    }

    /// The last line.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Writes lines, each with its time. When this returns, they are on stable storage. After an error nothing more may be written.
    pub(super) fn write(&mut self, lines: &[(String, Fields)]) -> io::Result<()> {
        let mut text = Vec::new();
        let is_full = |file: &AppendFile| file.bytes() >= self.file_bytes_max;
        if self.file.as_ref().is_none_or(is_full)
            && let Some((time, _)) = lines.first()
        {
            let name = format!("audit-{:016}.jsonl", self.head.sequence + 1);
            let previous = Value::from(show(&self.head.hash));
            self.file = Some(AppendFile::open(&self.folder, &name)?);
            self.head.write(
                time,
                &vec![("event", FILE_EVENT.into()), ("previous", previous)],
                &mut text,
            );
        }
        for (time, fields) in lines {
            self.head.write(time, fields, &mut text);
        }
        match &mut self.file {
            Some(file) => file.append(&text),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::Verifier;

    fn lines(count: usize) -> Vec<(String, Fields)> {
        let line = |number| {
            ("t".to_owned(), vec![("event", "access".into()), ("number", Value::from(number))])
        };
        (0..count).map(line).collect()
    }

    fn verify(folder: &Path) -> Verifier {
        let mut verifier = Verifier::default();
        for path in list(folder).unwrap() {
            verifier.begin_file(&path.display().to_string());
            let text = std::fs::read(&path).unwrap();
            text.split_inclusive(|byte| *byte == b'\n').for_each(|line| {
                verifier.line(line.strip_suffix(b"\n").unwrap_or(line), line.ends_with(b"\n"))
            });
        }
        verifier.finish();
        assert_eq!(verifier.faults, []);
        verifier
    }

    #[test]
    fn the_chain_goes_on_over_files_starts_and_what_a_crash_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("log");
        let open = || Files::open(&folder, 1000).unwrap();
        let (mut files, cut) = open();
        assert_eq!(cut, 0);
        for _ in 0..10 {
            files.write(&lines(3)).unwrap();
        }
        let head = files.head();
        drop(files);
        assert_eq!(verify(&folder).head(), Some(head));
        let all = list(&folder).unwrap();
        assert!(all.len() > 2, "{all:?}");

        // A line that was not finished.
        let name = all.last().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        AppendFile::open(&folder, &name).unwrap().append(b"{\"sequence\":").unwrap();
        let (mut files, cut) = open();
        assert_eq!((cut, files.head()), (12, head));
        files.write(&lines(1)).unwrap();
        let head = files.head();
        drop(files);
        assert_eq!(verify(&folder).head(), Some(head));

        // A file that was begun, and nothing in it.
        AppendFile::open(&folder, "audit-9999999999999999.jsonl")
            .unwrap()
            .append(b"{\"seq")
            .unwrap();
        let (mut files, cut) = open();
        assert_eq!((cut, files.head()), (5, head));
        files.write(&lines(1)).unwrap();
        drop(files);
        assert_eq!(verify(&folder).first, Some((1, true)));
    }

    #[test]
    fn one_writes_at_a_time_and_a_damaged_end_is_not_written_after() {
        let directory = tempfile::tempdir().unwrap();
        let (mut files, _) = Files::open(directory.path(), 1000).unwrap();
        files.write(&lines(2)).unwrap();
        let error = Files::open(directory.path(), 1000).unwrap_err();
        assert!(error.contains("another process"), "{error}");
        drop(files);
        let name =
            list(directory.path()).unwrap()[0].file_name().unwrap().to_str().unwrap().to_owned();
        AppendFile::open(directory.path(), &name).unwrap().append(b"{}\n").unwrap();
        let error = Files::open(directory.path(), 1000).unwrap_err();
        assert!(error.contains("prism audit verify"), "{error}");
    }
}
