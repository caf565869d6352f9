//! The plain client: redis-rs, multiplexed connections, one call at a time per task.

use std::cell::RefCell;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_loadtest::process::cpu_ns;
use serde::Serialize;

use crate::Call;

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 128;

/// What one round came to.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Round {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of the watched process, if there is one.
    pub(crate) server_cpu_us: Option<f64>,
}

/// How a round is to be made.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) call: Call,
    pub(crate) address: SocketAddr,
    /// Connections and tasks on each.
    pub(crate) shape: (usize, usize),
    pub(crate) warmup: Duration,
    pub(crate) length: Duration,
    /// The core of the client.
    pub(crate) core: usize,
    /// The process whose CPU time is read.
    pub(crate) server: Option<u32>,
}

/// 16 bytes, as the keys of `prism-loadtest` are.
fn key(number: usize) -> String {
    format!("client:{number:09}")
}

/// One round, on a thread of its own.
pub(crate) fn measure(load: Load) -> Result<Round> {
    let thread = std::thread::spawn(move || {
        prism_io::rt::pin(load.core)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, run(load))
    });
    thread.join().unwrap_or_else(|_| Err(Error::other("the client has panicked")))
}

/// Stores every key.
pub(crate) fn preload(address: SocketAddr) -> Result<()> {
    let client = redis::Client::open(format!("redis://{address}/")).map_err(Error::other)?;
    let mut connection = client.get_connection().map_err(Error::other)?;
    for number in 0..KEYS {
        let mut command = redis::cmd("SET");
        command.arg(key(number)).arg(&[7u8; VALUE_BYTES][..]);
        let () = command.query(&mut connection).map_err(Error::other)?;
    }
    Ok(())
}

async fn run(load: Load) -> Result<Round> {
    let client = redis::Client::open(format!("redis://{}/", load.address)).map_err(Error::other)?;
    // Up to ten seconds, in ns.
    let latencies = Histogram::<u64>::new_with_max(10_000_000_000, 3).map_err(Error::other)?;
    let latencies = Rc::new(RefCell::new(latencies));
    let keys: Rc<Vec<String>> = Rc::new((0..KEYS).map(key).collect());
    let begin = Instant::now() + load.warmup;
    let end = begin + load.length;
    let mut tasks = Vec::new();
    for connection in 0..load.shape.0 {
        let one = client.get_multiplexed_async_connection().await.map_err(Error::other)?;
        for task in 0..load.shape.1 {
            let (one, keys, latencies) = (one.clone(), keys.clone(), latencies.clone());
            let first = (connection * load.shape.1 + task) * 7919;
            tasks.push(tokio::task::spawn_local(async move {
                calls(load.call, one, &keys, first, begin, end, &latencies).await
            }));
        }
    }
    tokio::time::sleep_until(begin.into()).await;
    let cpu = || load.server.map(cpu_ns).transpose();
    let before = cpu()?;
    tokio::time::sleep_until(end.into()).await;
    let after = cpu()?;
    for task in tasks {
        task.await.map_err(Error::other)??;
    }
    let latencies = latencies.borrow();
    let count = latencies.len() as f64;
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Round {
        requests_per_second: count / load.length.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        server_cpu_us: before
            .zip(after)
            .map(|(before, after)| (after - before) as f64 / 1e3 / count),
    })
}

/// The calls of one task, one at a time.
async fn calls(
    call: Call,
    mut connection: redis::aio::MultiplexedConnection,
    keys: &[String],
    first: usize,
    begin: Instant,
    end: Instant,
    latencies: &RefCell<Histogram<u64>>,
) -> Result<()> {
    let value = [7u8; VALUE_BYTES];
    for number in first.. {
        let began = Instant::now();
        if began >= end {
            break;
        }
        let key = &keys[number % KEYS];
        match call {
            Call::Get => {
                let mut command = redis::cmd("GET");
                let stored: Option<Vec<u8>> =
                    command.arg(key).query_async(&mut connection).await.map_err(Error::other)?;
                if stored.is_none_or(|stored| stored.len() != VALUE_BYTES) {
                    return Err(Error::other("a key that was stored is gone"));
                }
            }
            Call::Set => {
                let mut command = redis::cmd("SET");
                command.arg(key).arg(&value[..]);
                let () = command.query_async(&mut connection).await.map_err(Error::other)?;
            }
        }
        let ended = Instant::now();
        if began >= begin && ended <= end {
            latencies.borrow_mut().saturating_record((ended - began).as_nanos() as u64);
        }
    }
    Ok(())
}
