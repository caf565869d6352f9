//! The plain client: async-nats, publishing to a stream of JetStream with a bounded number of acknowledgements awaited.

use std::cell::RefCell;
use std::io::{Error, Result};
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::context::{Context, ContextBuilder};
use async_nats::jetstream::stream::{Config, StorageType};
use bytes::Bytes;
use hdrhistogram::Histogram;
use prism_benches::rounds::Round;
use prism_loadtest::process::cpu_ns;

/// As those that `prism-loadtest` makes.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 128;

/// How a turn is to be made.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) address: String,
    pub(crate) stream: String,
    /// Acknowledgements that are awaited at a time; the client is told the same.
    pub(crate) under_way: usize,
    pub(crate) warmup: Duration,
    pub(crate) length: Duration,
    pub(crate) core: usize,
}

/// Makes an empty stream over the subject of its own name, on disk, as Prism's are.
pub(crate) fn make_stream(address: &str, stream: &str) -> Result<()> {
    block_on(None, async {
        let config = Config {
            name: stream.to_owned(),
            subjects: vec![stream.to_owned()],
            storage: StorageType::File,
            allow_direct: true,
            ..Config::default()
        };
        connect(address, 1).await?.create_stream(config).await.map_err(Error::other)?;
        Ok(())
    })
}

/// Takes streams away with all that is in them.
pub(crate) fn delete_streams(address: &str, streams: &[String]) -> Result<()> {
    block_on(None, async {
        let client = connect(address, 1).await?;
        for stream in streams {
            client.delete_stream(stream).await.map_err(Error::other)?;
        }
        Ok(())
    })
}

/// One turn, on a thread of its own, which the client's tasks share.
pub(crate) fn measure(load: Load) -> Result<Round> {
    let thread = std::thread::spawn(move || block_on(Some(load.core), run(load)));
    thread.join().unwrap_or_else(|_| Err(Error::other("the client has panicked")))
}

fn block_on<T>(core: Option<usize>, work: impl Future<Output = Result<T>>) -> Result<T> {
    if let Some(core) = core {
        prism_io::rt::pin(core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

async fn connect(address: &str, under_way: usize) -> Result<Context> {
    let client = async_nats::connect(format!("nats://{address}")).await.map_err(Error::other)?;
    Ok(ContextBuilder::new().max_ack_inflight(under_way).build(client))
}

async fn run(load: Load) -> Result<Round> {
    // Up to a hundred seconds, in ns.
    let latencies = Histogram::<u64>::new_with_max(100_000_000_000, 3).map_err(Error::other)?;
    let latencies = Rc::new(RefCell::new(latencies));
    let client = connect(&load.address, load.under_way).await?;
    let begin = Instant::now() + load.warmup;
    let end = begin + load.length;
    let mut tasks = Vec::new();
    for task in 0..load.under_way {
        let (client, stream, latencies) = (client.clone(), load.stream.clone(), latencies.clone());
        tasks.push(tokio::task::spawn_local(async move {
            calls(&client, stream, task * 7919, begin, end, &latencies).await
        }));
    }
    tokio::time::sleep_until(begin.into()).await;
    let cpu_before = cpu_ns(std::process::id())?;
    tokio::time::sleep_until(end.into()).await;
    let cpu_us = (cpu_ns(std::process::id())? - cpu_before) as f64 / 1e3;
    for task in tasks {
        task.await.map_err(Error::other)??;
    }
    let latencies = latencies.borrow();
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Round {
        requests_per_second: latencies.len() as f64 / load.length.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        server_cpu_us: Some(cpu_us / latencies.len().max(1) as f64),
    })
}

/// The calls of one task, one at a time.
async fn calls(
    client: &Context,
    stream: String,
    first: usize,
    begin: Instant,
    end: Instant,
    latencies: &RefCell<Histogram<u64>>,
) -> Result<()> {
    let value = Bytes::from_static(&[7; VALUE_BYTES]);
    for number in first.. {
        let began = Instant::now();
        if began >= end {
            break;
        }
        // 16 bytes, as the keys of `prism-loadtest` are; a header, as Prism has it.
        let mut headers = HeaderMap::new();
        headers.insert("Prism-Key", format!("client:{:09}", number % KEYS));
        let sent = client.publish_with_headers(stream.clone(), headers, value.clone());
        sent.await.map_err(Error::other)?.await.map_err(Error::other)?;
        let ended = Instant::now();
        if began >= begin && ended <= end {
            latencies.borrow_mut().saturating_record((ended - began).as_nanos() as u64);
        }
    }
    Ok(())
}
