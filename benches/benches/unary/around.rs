//! What needs no peer: memory, start, recovery, idle connections.

use std::io::{Error, Result};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use prism_benches::certificate::Files;
use prism_benches::prism::Prism;
use prism_benches::process::Server;
use prism_benches::report::{Table, median};
use prism_loadtest::process::resident_bytes;
use serde::Serialize;

use crate::Plan;
use crate::recovery::{FEW_KEYS, NEW_KEYS, Recovery};

/// An idle server is left alone for so long before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// The figures, with the rounds they come from.
#[derive(Serialize)]
pub(crate) struct Around {
    /// Resident, two shards, nothing asked yet.
    pub(crate) idle_bytes: u64,
    /// Process start until ready, empty data directory, one shard on each of the machine's cores.
    pub(crate) ready_ms: f64,
    ready_rounds_ms: Vec<f64>,
    /// Of a log of few keys, and of one in which every key is new.
    pub(crate) recoveries: [Recovery; 2],
    idle_connections: usize,
    /// Resident memory that each idle connection adds in the server.
    pub(crate) bytes_per_connection: f64,
    /// The same over TLS.
    pub(crate) bytes_per_tls_connection: f64,
}

impl Around {
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new("Around the calls", &["", "measured"]);
        let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
        row("resident, idle, two shards", mebibytes(self.idle_bytes as f64));
        row("ready on an empty data directory", format!("{:.0} ms", self.ready_ms));
        for recovery in &self.recoveries {
            recovery.rows(&mut row);
        }
        row(
            &format!("{} idle connections", self.idle_connections),
            format!("{:.1} KiB each", self.bytes_per_connection / 1024.0),
        );
        row(
            &format!("{} idle TLS connections", self.idle_connections),
            format!("{:.1} KiB each", self.bytes_per_tls_connection / 1024.0),
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
    let bytes_per_connection = connections(plan, scratch.path(), idle_connections, None)?;
    let files = Files::make()?;
    let bytes_per_tls_connection =
        connections(plan, scratch.path(), idle_connections, Some(&files))?;
    eprintln!("measured idle connections");
    let recoveries = [
        Recovery::measure(plan, scratch.path(), FEW_KEYS)?,
        Recovery::measure(plan, scratch.path(), NEW_KEYS)?,
    ];
    Ok(Around {
        idle_bytes,
        ready_ms: median(&ready_rounds_ms),
        ready_rounds_ms,
        recoveries,
        idle_connections,
        bytes_per_connection,
        bytes_per_tls_connection,
    })
}

/// What each of `count` silent connections costs, over TLS where an identity is given.
fn connections(plan: &Plan, scratch: &Path, count: usize, tls: Option<&Files>) -> Result<f64> {
    let (name, more) = match tls {
        None => ("idle", String::new()),
        Some(files) => {
            let (certificate, key) = (files.certificate(), files.key());
            let (certificate, key) = (certificate.display(), key.display());
            ("idle-tls", format!("tls: {{certificate: {certificate}, key: {key}}}"))
        }
    };
    let cores = [plan.server_core];
    let prism = Prism::start_with(&plan.prism, &scratch.join(name), &cores, &more)?;
    std::thread::sleep(SETTLE);
    let before = resident_bytes(prism.server.id())?;
    let mut command = Command::new(&plan.loadtest);
    let (endpoint, count_text) = (prism.endpoint.to_string(), count.to_string());
    command.args(["idle", "--endpoint", &endpoint, "--connections", &count_text]);
    if let Some(files) = tls {
        command.arg("--tls-ca").arg(files.certificate());
    }
    let mut holder = Server::start(&mut command)?;
    holder.line()?;
    std::thread::sleep(SETTLE);
    let after = resident_bytes(prism.server.id())?;
    if let Some(status) = holder.ended()? {
        return Err(Error::other(format!("the idle connections were not held: {status}")));
    }
    Ok(after.saturating_sub(before) as f64 / count as f64)
}
