//! How quickly a killed server has read its log again, beside reading the same files.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use prism_benches::prism::Prism;
use prism_benches::report::median;
use prism_benches::write::aligned;
use serde::Serialize;

use crate::Plan;

/// Bytes of one sequential read.
const READ_BYTES: usize = 1 << 20;
/// Starts of the same log, each in turn with reading its files.
const ROUNDS: usize = 3;
/// Keeps everything in the log, so that a start has all of it to read.
const NO_SNAPSHOTS: &str = "memory: {snapshot_bytes: 64GiB, snapshot_interval: 1h}";

/// A log whose keys are replaced again and again.
pub(crate) const FEW_KEYS: (&str, &str) = ("10,000 keys", "10000");
/// A log in which hardly a key comes twice, so that the store grows from nothing.
pub(crate) const NEW_KEYS: (&str, &str) = ("every key new", "100000000");

/// The starts after SIGKILL on one log.
#[derive(Serialize)]
pub(crate) struct Recovery {
    keys: &'static str,
    /// Bytes of log that a start reads.
    bytes: f64,
    rounds: Vec<Round>,
    /// Median over the rounds of log bytes over recovery time, against the sequential read speed.
    pub(crate) ratio: f64,
    /// The page cache was emptied before each.
    cold: bool,
}

#[derive(Serialize)]
struct Round {
    /// How long it took by the server's own clock.
    seconds: f64,
    /// O_DIRECT reads of the same files, one after another.
    read_bytes_per_second: f64,
}

impl Recovery {
    /// Fills the log, kills the server, and starts it again and again.
    pub(crate) fn measure(
        plan: &Plan,
        scratch: &Path,
        (keys, number): (&'static str, &str),
    ) -> Result<Self> {
        let data = scratch.join("recovery");
        let start = || Prism::start_with(&plan.prism, &data, &[plan.server_core], NO_SNAPSHOTS);
        let mut prism = start()?;
        // Sets of 1 KiB: the log is read and its records are applied, neither of which may hide behind the other.
        let requests = if plan.quick { "20000" } else { "800000" };
        let status = Command::new(&plan.loadtest)
            .args(["kv", "--output", "json", "--mix", "0:1", "--namespace", "durable"])
            .args(["--no-preload", "--keys", number, "--value-size", "1024"])
            .args(["--endpoint", &prism.endpoint.to_string()])
            .args(["--cores", &plan.load_core.to_string()])
            .args(["--connections", "16", "--in-flight", "16"])
            .args(["--warmup", "0s", "--duration", "10m", "--requests", requests])
            .stdout(std::process::Stdio::null())
            .status()?;
        if !status.success() {
            return Err(Error::other("the log could not be filled"));
        }
        prism.server.kill()?;
        let (mut cold, mut bytes, mut rounds) = (true, 0.0, Vec::new());
        for _ in 0..if plan.quick { 1 } else { ROUNDS } {
            cold &= drop_page_cache();
            let mut prism = start()?;
            bytes = prism.metric("prism_wal_recovery_bytes")?;
            let seconds = prism.metric("prism_wal_recovery_nanoseconds")? / 1e9;
            prism.server.kill()?;
            cold &= drop_page_cache();
            rounds.push(Round { seconds, read_bytes_per_second: read_speed(&data)? });
        }
        std::fs::remove_dir_all(&data)?;
        let ratios = rounds.iter().map(|round| bytes / round.seconds / round.read_bytes_per_second);
        let ratio = median(&ratios.collect::<Vec<_>>());
        eprintln!("measured recovery, {keys}");
        Ok(Self { keys, bytes, rounds, ratio, cold })
    }

    /// Its rows of the table.
    pub(crate) fn rows(&self, row: &mut impl FnMut(&str, String)) {
        let cold = if self.cold { "cold page cache" } else { "WARM page cache" };
        let of =
            |value: fn(&Round) -> f64| median(&self.rounds.iter().map(value).collect::<Vec<_>>());
        let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
        row(
            &format!("recovered after SIGKILL, {}", self.keys),
            format!(
                "{:.0} MiB of log in {:.2} s, {cold}",
                mebibytes(self.bytes),
                of(|round| round.seconds)
            ),
        );
        let read = mebibytes(of(|round| round.read_bytes_per_second));
        row("  reading the same files", format!("{read:.0} MiB/s"));
    }
}

/// Empties the page cache, where we may.
fn drop_page_cache() -> bool {
    let synced = Command::new("sync").status().is_ok_and(|status| status.success());
    synced && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Bytes per second of reading the files below `folder` one after another, past the page cache.
fn read_speed(folder: &Path) -> Result<f64> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let (mut buffer, start) = aligned(READ_BYTES);
    let (begin, mut bytes) = (Instant::now(), 0);
    for path in files {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let file = file.or_else(|_| File::open(&path))?;
        let mut offset = 0;
        loop {
            let count = file.read_at(&mut buffer[start..start + READ_BYTES], offset)?;
            if count == 0 {
                break;
            }
            offset += count as u64;
        }
        bytes += offset;
    }
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if entry.metadata()?.len() >= READ_BYTES as u64 {
            files.push(entry.path());
        }
    }
    Ok(())
}
