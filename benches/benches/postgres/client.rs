//! The plain client: tokio-postgres, one prepared statement per call, which is one transaction each.

use std::cell::RefCell;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_benches::rounds::Round;
use tokio_postgres::{Client, Config, NoTls, Statement};

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 128;

/// How a round is to be made.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) database: &'static str,
    pub(crate) connections: usize,
    pub(crate) at_a_time: usize,
    pub(crate) warmup: Duration,
    pub(crate) length: Duration,
    pub(crate) core: usize,
}

/// Makes an empty database.
pub(crate) fn empty_database(address: SocketAddr, database: &str) -> Result<()> {
    block_on(None, async {
        let client = connect(address, "prism").await?;
        let gone = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
        client.execute(&gone, &[]).await.map_err(Error::other)?;
        client.execute(&format!("CREATE DATABASE {database}"), &[]).await.map_err(Error::other)?;
        Ok(())
    })
}

/// Makes the client's table: what an application would have that keeps values by key.
pub(crate) fn prepare(address: SocketAddr, database: &str) -> Result<()> {
    block_on(None, async {
        let client = connect(address, database).await?;
        let table =
            "CREATE TABLE by_key (key text COLLATE \"C\" PRIMARY KEY, value bytea NOT NULL)";
        client.execute(table, &[]).await.map_err(Error::other)?;
        Ok(())
    })
}

/// One round, on a thread of its own.
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

async fn connect(address: SocketAddr, database: &str) -> Result<Client> {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port());
    config.user("prism").password("prism").dbname(database);
    let (client, connection) = config.connect(NoTls).await.map_err(Error::other)?;
    tokio::task::spawn_local(connection);
    Ok(client)
}

async fn run(load: Load) -> Result<Round> {
    // Up to a hundred seconds, in ns.
    let latencies = Histogram::<u64>::new_with_max(100_000_000_000, 3).map_err(Error::other)?;
    let latencies = Rc::new(RefCell::new(latencies));
    let begin = Instant::now() + load.warmup;
    let end = begin + load.length;
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        let client = connect(load.address, load.database).await?;
        let insert = "INSERT INTO by_key (key, value) VALUES ($1, $2) \
                      ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let statement = client.prepare(insert).await.map_err(Error::other)?;
        clients.push(Rc::new((client, statement)));
    }
    let mut tasks = Vec::new();
    for task in 0..load.at_a_time {
        let client = clients[task % clients.len()].clone();
        let latencies = latencies.clone();
        tasks.push(tokio::task::spawn_local(async move {
            calls(&client, task * 7919, begin, end, &latencies).await
        }));
    }
    for task in tasks {
        task.await.map_err(Error::other)??;
    }
    let latencies = latencies.borrow();
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Round {
        requests_per_second: latencies.len() as f64 / load.length.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        server_cpu_us: None,
    })
}

/// The calls of one task, one at a time.
async fn calls(
    (client, statement): &(Client, Statement),
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
        // 16 bytes, as the keys of `prism-loadtest` are.
        let key = format!("client:{:09}", number % KEYS);
        client.execute(statement, &[&key, &&value[..]]).await.map_err(Error::other)?;
        let ended = Instant::now();
        if began >= begin && ended <= end {
            latencies.borrow_mut().saturating_record((ended - began).as_nanos() as u64);
        }
    }
    Ok(())
}
