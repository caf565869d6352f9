//! A file whose writes run on the shard's ring and complete when they are durable.
//!
//! A write that is dropped before it completes is cancelled by the runtime in an unknown state: whoever starts one awaits
//! it to the end.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use super::buffer::WriteSlice;
use super::{PAGE_BYTES, SharedBuffer, SyncMethod};

/// An open file of a [`super::Directory`].
#[derive(Debug)]
pub struct File {
    file: monoio::fs::File,
    method: SyncMethod,
    /// Set by the first failed write or sync: the kernel may have dropped the pages and say "done" the next time.
    failed: Cell<bool>,
}

impl File {
    pub(super) fn new(file: std::fs::File, method: SyncMethod) -> io::Result<File> {
        let file = monoio::fs::File::from_std(std::fs::File::from(OwnedFd::from(file)))?;
        Ok(File { file, method, failed: Cell::new(false) })
    }

    /// Writes the whole buffer at `offset` and completes when it is durable. After an error every later call fails.
    ///
    /// # Panics
    /// When offset or length is not a multiple of the page size.
    pub async fn write_durable(&self, buffer: SharedBuffer, offset: u64) -> io::Result<()> {
        self.write(buffer, offset).await?;
        match self.method {
            SyncMethod::DsyncWrite => Ok(()),
            SyncMethod::WriteThenDatasync => self.guard(self.file.sync_data().await),
        }
    }

    /// Writes the whole buffer at `offset`; durable only after [`File::sync_all`], unless the file is open with O_DSYNC.
    pub(super) async fn write(&self, buffer: SharedBuffer, offset: u64) -> io::Result<()> {
        let bytes = buffer.as_slice().len();
        assert!(
            bytes.is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(PAGE_BYTES as u64),
            "writes are whole pages at page boundaries"
        );
        if self.failed.get() {
            return Err(io::Error::other("an earlier write of this file failed"));
        }
        let mut slice = WriteSlice { buffer, start: 0 };
        while slice.start < bytes {
            let position = offset + slice.start as u64;
            let (result, returned) = self.file.write_at(slice, position).await;
            crate::rt::note_activity();
            slice = returned;
            match result {
                Ok(0) => return self.guard(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => slice.start += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.guard(Err(error)),
            }
        }
        Ok(())
    }

    /// Makes everything written to the file durable, its length included.
    pub async fn sync_all(&self) -> io::Result<()> {
        if self.failed.get() {
            return Err(io::Error::other("an earlier write of this file failed"));
        }
        self.guard(self.file.sync_all().await)
    }

    fn guard(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.set(true);
        }
        result
    }
}
