//! Aligned buffers, durable files, and their simulated twin.
//!
//! A [`Directory`] owns one data directory: it holds the lock, knows whether the file system takes O_DIRECT and which
//! sync method is the faster one, and hands out [`File`]s whose writes run on the shard's ring and complete when the bytes
//! are on stable storage. [`Storage`] is the blocking view used at start, in recovery and by repair; [`sim::Simulation`]
//! is its twin in memory, with seeded faults and power cuts. Nothing here knows what a file means.

mod append;
mod buffer;
mod directory;
mod file;
mod probe;
pub mod sim;
mod storage;
mod stream;
mod whole;

pub use append::{AppendFile, FolderLock};
pub use buffer::{
    AlignedBuffer, AlignedMemory, BufferPool, PAGE_BYTES, SharedBuffer, page_ceiling,
};
pub use directory::{Direct, Directory, DirectoryError, DirectoryOptions, Streams};
pub use file::File;
pub use probe::{SyncMethod, SyncProbe};
pub use storage::{ChunkStream, FileEntry, SECTOR_BYTES, Storage, is_out_of_space};
pub use whole::{append_durable, read_whole, replace_whole};
