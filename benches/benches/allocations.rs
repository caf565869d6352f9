//! `cargo bench -p prism-benches --bench allocations`: how often Prism asks the allocator, and copies a payload, per Get and per Set.
//!
//! At memstore and, as far as Redis is concerned, through a real `redis-server`, which the run starts.
//!
//! The server runs inside this process, whose allocator counts; the load is a process of its own and is not counted. What is counted beside the calls
//! (housekeeping, metrics) disappears among them. Options: `--requests <n>`, `--no-build`. Results: `target/bench/allocations.json`.

use std::alloc::System;
use std::io::{Error, Result};
use std::process::{Command, Stdio};
use std::time::Duration;

use prism_benches::prism::{binary, build, metric};
use prism_benches::process::{free_address, http_get};
use prism_benches::redis_server::RedisServer;
use prism_benches::report::{Table, folder, save};
use serde::Serialize;
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What one kind of call costs.
#[derive(Serialize)]
struct Row {
    call: &'static str,
    requests: u64,
    allocations_per_request: f64,
    /// Calls of `realloc`, which are not among the allocations.
    reallocations_per_request: f64,
    bytes_per_request: f64,
    /// Copies of a payload between socket and backend; nothing for reads.
    payload_copies_per_request: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let requests =
        option("--requests").map_or(Ok(200_000), |text| text.parse()).map_err(Error::other)?;
    if !arguments.iter().any(|word| word == "--no-build") {
        build()?;
    }
    let loadtest = binary("prism-loadtest")?;
    let scratch = tempfile::tempdir_in(folder()?)?;
    let (endpoint, admin) = (free_address()?, free_address()?);
    let redis = RedisServer::start(&scratch.path().join("redis"), 1)?;
    let file = scratch.path().join("prism.yaml");
    let text = format!(
        "listen: {endpoint}\nadmin: {admin}\ndata_dir: {}\ncores: 0\nlog: {{level: warn}}\nnamespaces:\n\
         - {{name: memory, client_api: keyvalue, durability: memory}}\n\
         - {{name: durable, client_api: keyvalue, durability: wal}}\n\
         - {{name: on-redis, client_api: keyvalue, durability: memory, backend: real}}\n\
         - {{name: on-redis-durable, client_api: keyvalue, durability: wal, backend: real}}\n\
         backends:\n- {{name: real, type: redis, address: \"{}\"}}\n",
        scratch.path().join("data").display(),
        redis.address,
    );
    std::fs::write(&file, text)?;
    let config = prism_core::config::load(Some(&file), &Default::default());
    let config = config.map_err(|errors| Error::other(errors.to_string()))?;
    std::thread::spawn(move || prism_core::serve::run(config));
    while !matches!(http_get(admin, "/readyz"), Ok(Some(_))) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let load = |namespace: &str, mix: &str, requests: u64, preload: bool| {
        let mut command = Command::new(&loadtest);
        command
            .args([
                "kv",
                "--namespace",
                namespace,
                "--mix",
                mix,
                "--connections",
                "8",
                "--in-flight",
                "16",
            ])
            .args(["--endpoint", &endpoint.to_string(), "--requests", &requests.to_string()])
            .args(["--warmup", "0s", "--duration", "100s", "--keys", "1000"]);
        run(&mut command, preload)
    };
    let copies = || metric(admin, "prism_payload_copies_total");
    let mut rows = Vec::new();
    let cases = [
        ("Get, memory", "memory", "1:0"),
        ("Set, memory", "memory", "0:1"),
        ("Set, wal", "durable", "0:1"),
        ("Get, Redis", "on-redis", "1:0"),
        ("Set, Redis", "on-redis", "0:1"),
        ("Set, Redis, wal", "on-redis-durable", "0:1"),
    ];
    for (call, namespace, mix) in cases {
        // Pools, tables and buffers have grown to their size after this.
        load(namespace, mix, requests / 2, true)?;
        let (before, copies_before) = (ALLOCATOR.stats(), copies()?);
        load(namespace, mix, requests, false)?;
        let (used, copied) = (ALLOCATOR.stats() - before, copies()? - copies_before);
        rows.push(row(call, requests, used, copied));
    }
    let columns = ["", "allocations", "reallocations", "bytes", "payload copies"];
    let mut table = Table::new(format!("Per request, over {requests} requests"), &columns);
    for row in &rows {
        table.row(vec![
            row.call.to_owned(),
            format!("{:.3}", row.allocations_per_request),
            format!("{:.3}", row.reallocations_per_request),
            format!("{:.1}", row.bytes_per_request),
            format!("{:.3}", row.payload_copies_per_request),
        ]);
    }
    println!("{table}\nwritten to {}", save("allocations", &rows)?.display());
    drop(redis);
    // The server's threads end with the process; its directory must still be there for them until then.
    std::process::exit(0)
}

fn row(call: &'static str, requests: u64, used: Stats, copied: f64) -> Row {
    let each = |count: usize| count as f64 / requests as f64;
    Row {
        call,
        requests,
        allocations_per_request: each(used.allocations),
        reallocations_per_request: each(used.reallocations),
        bytes_per_request: each(used.bytes_allocated),
        payload_copies_per_request: copied / requests as f64,
    }
}

fn run(command: &mut Command, preload: bool) -> Result<()> {
    if !preload {
        command.arg("--no-preload");
    }
    let status = command.stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(Error::other("the load failed")) }
}
