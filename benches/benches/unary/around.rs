//! What needs no peer: memory, start, recovery, idle connections.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use prism_benches::prism::Prism;
use prism_benches::process::Server;
use prism_benches::report::{Table, median};
use prism_benches::write::aligned;
use prism_loadtest::process::resident_bytes;
use serde::Serialize;

use crate::Plan;

/// Bytes of one sequential read.
const READ_BYTES: usize = 1 << 20;
/// An idle server is left alone for so long before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Keeps everything in the log, so that a start has all of it to read.
const NO_SNAPSHOTS: &str = "memory: {snapshot_bytes: 1GiB, snapshot_interval: 1h}";

/// The figures, with the rounds they come from.
#[derive(Serialize)]
pub(crate) struct Around {
    /// Resident, two shards, nothing asked yet.
    pub(crate) idle_bytes: u64,
    /// Process start until ready, empty data directory, one shard on each of the machine's cores.
    pub(crate) ready_ms: f64,
    ready_rounds_ms: Vec<f64>,
    /// Bytes of log that a start after SIGKILL read.
    recovered_bytes: f64,
    /// How long that took by the server's own clock.
    recovery_seconds: f64,
    /// Process start until ready, for the same start.
    recovery_ready_seconds: f64,
    /// O_DIRECT reads of the same files, one after another.
    read_bytes_per_second: f64,
    /// Log bytes over recovery time, against the sequential read speed.
    pub(crate) recovery_ratio: f64,
    /// The page cache was emptied before the recovery.
    cold: bool,
    idle_connections: usize,
    /// Resident memory that each idle connection adds in the server.
    pub(crate) bytes_per_connection: f64,
}

impl Around {
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new("Around the calls", &["", "measured"]);
        let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
        row("resident, idle, two shards", mebibytes(self.idle_bytes as f64));
        row("ready on an empty data directory", format!("{:.0} ms", self.ready_ms));
        let cold = if self.cold { "cold page cache" } else { "WARM page cache" };
        row(
            "recovered after SIGKILL",
            format!("{} of log, {cold}", mebibytes(self.recovered_bytes)),
        );
        row(
            "  in",
            format!(
                "{:.2} s, ready after {:.2} s",
                self.recovery_seconds, self.recovery_ready_seconds
            ),
        );
        row("  reading the same files", format!("{}/s", mebibytes(self.read_bytes_per_second)));
        row(
            &format!("{} idle connections", self.idle_connections),
            format!("{:.1} KiB each", self.bytes_per_connection / 1024.0),
        );
        table
    }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

pub(crate) fn measure(plan: &Plan) -> Result<Around> {
    let scratch = tempfile::tempdir_in(&plan.folder)?;
    let all_cores = [plan.server_core, plan.load_core];
    let starts = if plan.quick { 1 } else { 7 };
    let mut ready_rounds_ms = Vec::new();
    let mut idle_bytes = 0;
    for number in 0..starts {
        let data = scratch.path().join(format!("start-{number}"));
        let prism = Prism::start(&plan.prism, &data, &all_cores)?;
        ready_rounds_ms.push(prism.ready_after.as_secs_f64() * 1e3);
        if number + 1 == starts {
            std::thread::sleep(SETTLE);
            idle_bytes = resident_bytes(prism.server.id())?;
        }
        drop(prism);
        std::fs::remove_dir_all(&data)?;
    }
    eprintln!("measured start and idle memory");
    let idle_connections = if plan.quick { 200 } else { 10_000 };
    let bytes_per_connection = connections(plan, scratch.path(), idle_connections)?;
    eprintln!("measured idle connections");
    let mut around = Around {
        idle_bytes,
        ready_ms: median(&ready_rounds_ms),
        ready_rounds_ms,
        recovered_bytes: 0.0,
        recovery_seconds: 0.0,
        recovery_ready_seconds: 0.0,
        read_bytes_per_second: 0.0,
        recovery_ratio: 0.0,
        cold: false,
        idle_connections,
        bytes_per_connection,
    };
    recovery(plan, scratch.path(), &mut around)?;
    eprintln!("measured recovery");
    Ok(around)
}

fn connections(plan: &Plan, scratch: &Path, count: usize) -> Result<f64> {
    let prism = Prism::start(&plan.prism, &scratch.join("idle"), &[plan.server_core])?;
    std::thread::sleep(SETTLE);
    let before = resident_bytes(prism.server.id())?;
    let mut command = Command::new(&plan.loadtest);
    let (endpoint, count_text) = (prism.endpoint.to_string(), count.to_string());
    command.args(["idle", "--endpoint", &endpoint, "--connections", &count_text]);
    let mut holder = Server::start(&mut command)?;
    holder.line()?;
    std::thread::sleep(SETTLE);
    let after = resident_bytes(prism.server.id())?;
    if let Some(status) = holder.ended()? {
        return Err(Error::other(format!("the idle connections were not held: {status}")));
    }
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// Fills the log, kills the server, and starts it again.
fn recovery(plan: &Plan, scratch: &Path, around: &mut Around) -> Result<()> {
    let data = scratch.join("recovery");
    let cores = [plan.server_core];
    let mut prism = Prism::start_with(&plan.prism, &data, &cores, NO_SNAPSHOTS)?;
    // Sets of 1 KiB: the log is read and its records are applied, neither of which may hide behind the other.
    let requests = if plan.quick { "20000" } else { "800000" };
    let status = Command::new(&plan.loadtest)
        .args(["kv", "--output", "json", "--mix", "0:1", "--namespace", "durable", "--no-preload"])
        .args(["--endpoint", &prism.endpoint.to_string(), "--cores", &plan.load_core.to_string()])
        .args(["--connections", "16", "--in-flight", "16", "--value-size", "1024"])
        .args(["--warmup", "0s", "--duration", "10m", "--requests", requests])
        .stdout(std::process::Stdio::null())
        .status()?;
    if !status.success() {
        return Err(Error::other("the log could not be filled"));
    }
    prism.server.kill()?;
    drop(prism);
    around.cold = drop_page_cache();
    let prism = Prism::start_with(&plan.prism, &data, &cores, NO_SNAPSHOTS)?;
    around.recovered_bytes = prism.metric("prism_wal_recovery_bytes")?;
    around.recovery_seconds = prism.metric("prism_wal_recovery_nanoseconds")? / 1e9;
    around.recovery_ready_seconds = prism.ready_after.as_secs_f64();
    drop(prism);
    drop_page_cache();
    around.read_bytes_per_second = read_speed(&data)?;
    around.recovery_ratio =
        around.recovered_bytes / around.recovery_seconds / around.read_bytes_per_second;
    Ok(())
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
