//! Small files that are read and replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::AppendFile;

/// Largest file that is read as a whole, in bytes.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// The contents of a file, or `None` where there is none.
pub fn read_whole(directory: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let path = directory.join(name);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > WHOLE_BYTES_MAX => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has {} bytes, far more than it can have", path.display(), metadata.len()),
        )),
        Ok(_) => fs::read(&path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file as a whole: after a crash either the old contents are there or the new ones. When it returns, the new
/// ones are on stable storage.
pub fn replace_whole(directory: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let fresh = directory.join(format!("{name}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&fresh, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// Appends to a file, which is made where it is missing, and its folder with it. When this returns, everything is on stable
/// storage. Blocking.
pub fn append_durable(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    AppendFile::open(folder, name)?.append(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_whole(directory.path(), "facts").unwrap(), None);
        for contents in [&b"one"[..], b"two"] {
            replace_whole(directory.path(), "facts", contents).unwrap();
            assert_eq!(read_whole(directory.path(), "facts").unwrap().as_deref(), Some(contents));
        }
    }
}
