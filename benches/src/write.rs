//! A durable log write, repeated: 4 KiB to 64 KiB, O_DIRECT and O_DSYNC, over a file that was written before.
//!
//! The figure that group commit lives on. Every driver writes the same pages of the same kind of file in the same order.

use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_loadtest::process::cpu_ns;
use serde::{Deserialize, Serialize};

/// Bytes of the file that the writes go round in: one log segment.
pub const FILE_BYTES: u64 = 64 << 20;
/// Alignment of buffers, offsets and lengths that O_DIRECT asks for.
pub const PAGE: usize = 4096;

/// Latency of a repeated write, in microseconds, and what it cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// CPU time of the writing process per write.
    pub cpu_us: f64,
    /// Writes that were measured.
    pub writes: u64,
}

impl Figures {
    /// Figures of `latencies` (nanoseconds) that took `cpu_ns` altogether.
    pub fn of(latencies: &Histogram<u64>, cpu_ns: u64) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            cpu_us: cpu_ns as f64 / 1e3 / latencies.len().max(1) as f64,
            writes: latencies.len(),
        }
    }
}

/// An empty histogram from one nanosecond up to ten seconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("the bounds are constants")
}

/// Makes the file at `path` as the log makes a segment: every byte written once and synced, so that a later write changes no metadata.
pub fn prepare(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..FILE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Opens the file at `path` for durable writes past the page cache.
pub fn open(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)
}

/// A buffer with `bytes` aligned bytes, and where they begin.
pub fn aligned(bytes: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0xa5; bytes + PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    (buffer, start)
}

/// The offsets that a writer visits: it starts at its own place and goes round the file.
pub struct Offsets {
    next: u64,
    step: u64,
}

impl Offsets {
    /// Offsets for writer number `writer` of `writers`, for writes of `bytes` each.
    pub fn new(writer: usize, writers: usize, bytes: usize) -> Self {
        let share = FILE_BYTES / writers as u64;
        Self { next: share * writer as u64 / bytes as u64 * bytes as u64, step: bytes as u64 }
    }

    /// Where the next write goes.
    pub fn take(&mut self) -> u64 {
        let offset = self.next;
        self.next = (self.next + self.step) % FILE_BYTES;
        offset
    }
}

/// Writes of `bytes` one after another from the calling thread with plain `pwrite`, for `duration`: what the disk itself takes.
pub fn raw(path: &Path, bytes: usize, duration: Duration) -> Result<Figures> {
    let file = open(path)?;
    let (buffer, start) = aligned(bytes);
    let (mut latencies, mut offsets) = (histogram(), Offsets::new(0, 1, bytes));
    let before = cpu_ns(std::process::id())?;
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let sent = Instant::now();
        file.write_all_at(&buffer[start..start + bytes], offsets.take())?;
        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    Ok(Figures::of(&latencies, cpu_ns(std::process::id())? - before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_in_the_file_and_on_pages() {
        for bytes in [PAGE, 4 * PAGE, 16 * PAGE] {
            for writer in 0..4 {
                let mut offsets = Offsets::new(writer, 4, bytes);
                for _ in 0..100_000 {
                    let offset = offsets.take();
                    assert_eq!(offset % PAGE as u64, 0);
                    assert!(offset + bytes as u64 <= FILE_BYTES);
                }
            }
        }
    }

    #[test]
    fn an_aligned_buffer_is_aligned() {
        let (buffer, start) = aligned(PAGE);
        assert_eq!(buffer[start..start + PAGE].as_ptr() as usize % PAGE, 0);
    }
}
