//! Files that only grow, and whose every append is on stable storage when it returns. Blocking; not for a shard's thread.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file that only grows.
#[derive(Debug)]
pub struct AppendFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl AppendFile {
    /// Opens a file, which is made where it is missing, and its folder with it. What was made stays after a power cut.
    pub fn open(folder: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(name);
        let is_new = !path.exists();
        let file = fs::OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        if is_new {
            for directory in [folder, folder.parent().unwrap_or(folder)] {
                File::open(directory)?.sync_all()?;
            }
        }
        let bytes = file.metadata()?.len();
        Ok(Self { file, path, bytes })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long it is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends. After an error nobody knows what is there: give it up, and open it again.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Cuts off what stands behind the first so many bytes.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.file.sync_all()?;
        self.bytes = bytes;
        Ok(())
    }

    /// Its last bytes, `most` of them or all.
    pub fn tail(&mut self, most: u64) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(self.bytes.saturating_sub(most)))?;
        let mut tail = Vec::new();
        (&self.file).take(most).read_to_end(&mut tail)?;
        Ok(tail)
    }
}

/// The right to append in a folder, which one process has at a time.
#[derive(Debug)]
pub struct FolderLock {
    /// Held for its lock.
    _file: File,
}

impl FolderLock {
    /// Takes it, by a lock on the file `lock`; `None` where another process has it. The folder is made where it is missing.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let path = folder.join("lock");
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_there_and_what_was_cut_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("a/b");
        let mut file = AppendFile::open(&folder, "lines").unwrap();
        file.append(b"one\n").unwrap();
        file.append(b"two\nthr").unwrap();
        let mut file = AppendFile::open(&folder, "lines").unwrap();
        assert_eq!((file.bytes(), file.tail(5).unwrap()), (11, b"o\nthr".to_vec()));
        file.cut(8).unwrap();
        file.append(b"three\n").unwrap();
        assert_eq!(file.tail(100).unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(file.bytes(), 14);
    }

    #[test]
    fn a_folder_has_one_that_appends() {
        let directory = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(directory.path()).unwrap();
        assert!(lock.is_some());
        assert!(FolderLock::take(directory.path()).unwrap().is_none());
        drop(lock);
        assert!(FolderLock::take(directory.path()).unwrap().is_some());
    }
}
