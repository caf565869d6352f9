//! The blocking view of a data directory, as recovery, repair and simulation use it.

use std::io;

/// The unit that a disk writes as a whole: a power cut keeps or loses each sector of an unflushed write on its own.
pub const SECTOR_BYTES: usize = 512;

/// One file of a data directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileEntry {
    /// Name within the directory.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// Chunks of one file, in order.
pub trait ChunkStream {
    /// The next chunk, empty at the end of the file. Every chunk but the last is a whole number of pages.
    fn next_chunk(&mut self) -> io::Result<&[u8]>;

    /// The chunk that came last, empty before the first.
    fn chunk(&self) -> &[u8];
}

/// What a log needs of a data directory when it may block. Names are plain file names, or `folder/name` as the target of
/// [`Storage::rename`] and [`Storage::create_zeroed`]. Every change is durable, its directory entry included, when the
/// call returns.
pub trait Storage {
    /// Every file directly in the directory, sorted by name.
    fn list(&mut self) -> io::Result<Vec<FileEntry>>;

    /// Reads from `offset` (a multiple of the page size) until `into` is full or the file ends; returns the bytes read.
    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Reads a whole file from `offset` (a multiple of the page size) on, ahead of the reader.
    fn stream(&mut self, name: &str, offset: u64) -> io::Result<Box<dyn ChunkStream>>;

    /// Creates a file of `bytes` zero bytes, really written; fails where the name is taken.
    fn create_zeroed(&mut self, name: &str, bytes: u64) -> io::Result<()>;

    /// Writes whole pages at a page boundary.
    fn write_durable(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything that was ever written to the file durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name, replacing what had it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// Whether the error says that the disk (or the quota) is full.
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
