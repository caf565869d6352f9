//! The plain client: rdkafka's own producer with the settings that Prism gives its, and a bounded number of records under way.

use std::io::{Error, Result};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_benches::rounds::Round;
use prism_loadtest::process::cpu_ns;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};

/// As those that `prism-loadtest` makes.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 128;

/// How long the last confirmations may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a turn is to be made.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) under_way: usize,
    pub(crate) warmup: Duration,
    pub(crate) length: Duration,
    pub(crate) core: usize,
}

/// Hands on when a record was sent and whether it has been confirmed.
struct Confirmations(Sender<std::result::Result<Instant, String>>);

impl ClientContext for Confirmations {}

impl ProducerContext for Confirmations {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Instant>) {
        let confirmed = match result {
            Ok(_) => Ok(*sent),
            Err((error, _)) => Err(error.to_string()),
        };
        // The turn has ended when nobody listens.
        let _ = self.0.send(confirmed);
    }
}

/// Makes topics with as many partitions as Prism makes.
pub(crate) fn make_topics(brokers: &str, topics: &[&str], partitions: i32) -> Result<()> {
    let new = topics.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1)));
    let new: Vec<_> = new.collect();
    let made = admin(brokers)?;
    let made = futures_lite::future::block_on(made.create_topics(&new, &AdminOptions::new()));
    checked(made.map_err(Error::other)?)
}

/// Takes topics away with all that is in them.
pub(crate) fn delete_topics(brokers: &str, topics: &[&str]) -> Result<()> {
    let deleted = admin(brokers)?;
    let deleted =
        futures_lite::future::block_on(deleted.delete_topics(topics, &AdminOptions::new()));
    checked(deleted.map_err(Error::other)?)
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(Error::other)
}

fn checked(outcomes: Vec<rdkafka::admin::TopicResult>) -> Result<()> {
    for outcome in outcomes {
        outcome.map_err(|(topic, code)| Error::other(format!("{topic}: {code}")))?;
    }
    Ok(())
}

/// One turn, on a thread of its own; the client's threads stand on the same core.
pub(crate) fn measure(load: Load) -> Result<Round> {
    let thread = std::thread::spawn(move || run(&load));
    thread.join().unwrap_or_else(|_| Err(Error::other("the client has panicked")))
}

fn run(load: &Load) -> Result<Round> {
    prism_io::rt::pin(load.core)?;
    let (tell, told) = channel();
    // Those of `adapters/src/kafka/config.rs`.
    let producer: ThreadedProducer<Confirmations> = ClientConfig::new()
        .set("bootstrap.servers", &load.brokers)
        .set("socket.nagle.disable", "true")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("batch.size", "1048576")
        .set("batch.num.messages", "100000")
        .set("queue.buffering.max.messages", "1000000")
        .set("partitioner", "murmur2_random")
        .create_with_context(Confirmations(tell))
        .map_err(Error::other)?;
    let value = [7u8; VALUE_BYTES];
    let mut number = 0;
    let mut send = || {
        // 16 bytes, as the keys of `prism-loadtest` are.
        let key = format!("client:{:09}", (number * 7919) % KEYS);
        number += 1;
        let record = BaseRecord::with_opaque_to(&load.topic, Box::new(Instant::now()));
        let sent = producer.send(record.key(&key).payload(&value[..]));
        sent.map_err(|(error, _)| Error::other(error))
    };
    // Up to a hundred seconds, in ns.
    let mut latencies = Histogram::<u64>::new_with_max(100_000_000_000, 3).map_err(Error::other)?;
    let (mut begun, mut cpu_before) = (None, 0);
    let start = Instant::now();
    let begin = start + load.warmup;
    let end = begin + load.length;
    for _ in 0..load.under_way {
        send()?;
    }
    let mut confirmed = 0;
    loop {
        let sent = told.recv_timeout(PATIENCE).map_err(Error::other)?.map_err(Error::other)?;
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now >= begin {
            if begun.is_none() {
                begun = Some(now);
                cpu_before = cpu_ns(std::process::id())?;
            }
            confirmed += 1;
            if sent >= begin {
                latencies.saturating_record((now - sent).as_nanos() as u64);
            }
        }
        send()?;
    }
    let cpu_us = (cpu_ns(std::process::id())? - cpu_before) as f64 / 1e3;
    // The next turn has the broker for itself.
    producer.flush(PATIENCE).map_err(Error::other)?;
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Round {
        requests_per_second: confirmed as f64 / load.length.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        server_cpu_us: Some(cpu_us / f64::from(confirmed.max(1))),
    })
}
