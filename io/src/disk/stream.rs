//! Sequential reading at the disk's own speed: a thread reads ahead with O_DIRECT while the caller parses.
//!
//! The thread lives only as long as the stream, and recovery, repair and inspection are the only callers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::{AlignedMemory, ChunkStream};

/// Bytes of one read.
const CHUNK_BYTES: usize = 1 << 20;
/// Reads that may be ahead of the caller.
const CHUNKS_AHEAD_MAX: usize = 3;

type Chunk = (AlignedMemory, io::Result<usize>);

pub(super) struct ReadAhead {
    full: Option<Receiver<Chunk>>,
    empty: Option<SyncSender<AlignedMemory>>,
    current: Option<(AlignedMemory, usize)>,
    reader: Option<JoinHandle<()>>,
    ended: bool,
}

impl ReadAhead {
    /// Starts to read `file` from `offset` on. The file is open for O_DIRECT where the file system takes it.
    pub(super) fn start(file: File, offset: u64) -> io::Result<ReadAhead> {
        let (full_sender, full) = sync_channel::<Chunk>(CHUNKS_AHEAD_MAX);
        let (empty, empty_receiver) = sync_channel::<AlignedMemory>(CHUNKS_AHEAD_MAX + 1);
        for _ in 0..CHUNKS_AHEAD_MAX {
            empty.send(AlignedMemory::zeroed(CHUNK_BYTES)).expect("the receiver is in scope");
        }
        let reader = std::thread::Builder::new().name("log-read".into()).spawn(move || {
            // The thread that waits for it is pinned; this one runs wherever there is room, and where it would be in the way least.
            crate::affinity::unpin();
            let mut offset = offset;
            while let Ok(mut memory) = empty_receiver.recv() {
                let result = read_full(&file, offset, &mut memory);
                let last = !matches!(result, Ok(CHUNK_BYTES));
                offset += CHUNK_BYTES as u64;
                if full_sender.send((memory, result)).is_err() || last {
                    return;
                }
            }
        })?;
        let (full, empty) = (Some(full), Some(empty));
        Ok(ReadAhead { full, empty, current: None, reader: Some(reader), ended: false })
    }
}

impl ChunkStream for ReadAhead {
    fn next_chunk(&mut self) -> io::Result<&[u8]> {
        if let (Some((memory, _)), Some(empty)) = (self.current.take(), &self.empty) {
            // The thread may have come to the end already and be gone.
            let _ = empty.send(memory);
        }
        if self.ended {
            return Ok(&[]);
        }
        let full = self.full.as_ref().expect("present until the drop");
        let (memory, result) =
            full.recv().map_err(|_| io::Error::other("the reading thread ended early"))?;
        let bytes = result?;
        self.ended = bytes < CHUNK_BYTES;
        self.current = Some((memory, bytes));
        Ok(self.chunk())
    }

    fn chunk(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(memory, bytes)| &memory[..*bytes])
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Both channels close first, so that the thread cannot wait for anything any more.
        self.full = None;
        self.empty = None;
        if let Some(reader) = self.reader.take() {
            // A panic there has already shown as a closed channel.
            let _ = reader.join();
        }
    }
}

/// Reads until `into` is full or the file ends.
pub(super) fn read_full(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
