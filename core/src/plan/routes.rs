//! The decision table: for each kind of request the backends in the order in which they are taken, and the figures that a
//! backend is planned with.
//!
//! Figures are for planning, on the safe side of what such a server does on ordinary hardware; they decide what is passed
//! over, and are shown with the reason. docs/planner.md shows both tables; a test compares.

use std::time::Duration;

use super::Target;
use crate::config::platform::BackendType::{
    self, ClickHouse, DynamoDb, InfluxDb, Kafka, Memstore, Nats, Postgres, RabbitMq, Redis, Sqs,
    TimescaleDb,
};
use crate::config::request::Api;
use crate::config::units::{show_bytes, show_duration, show_rate};

/// One row of the decision table.
#[derive(Debug)]
pub struct Route {
    /// The client API.
    pub api: Api,
    /// Which requests for it, in words.
    pub when: &'static str,
    /// Which requests for it.
    pub shape: Shape,
    /// In the order in which they are taken; the first that fits, is allowed, is there and can be run.
    pub targets: &'static [Target],
}

/// What tells requests for the same API apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any.
    Any,
    /// Key-value data with a `ttl`, or best-effort.
    Cache,
    /// Events that outlive their subscribers' absence: a durability that logs, a retention, or replay.
    Lasting,
}

const fn one(kind: BackendType) -> Target {
    Target::of(kind)
}

const MEMORY: Target = one(Memstore);

/// The decision table. The first row whose API and shape are those of the request.
pub const ROUTES: &[Route] = &[
    Route {
        api: Api::KeyValue,
        when: "a cache: `ttl`, or best-effort",
        shape: Shape::Cache,
        targets: &[one(Redis), MEMORY, one(Postgres), one(Nats), one(DynamoDb)],
    },
    Route {
        api: Api::KeyValue,
        when: "data",
        shape: Shape::Any,
        targets: &[one(Postgres), one(Redis), one(DynamoDb), MEMORY, one(Nats)],
    },
    Route {
        api: Api::PubSub,
        when: "events that last: strong or eventual, a `retention`, or `replay`",
        shape: Shape::Lasting,
        targets: &[one(Kafka), one(Nats), one(Postgres), one(Redis), MEMORY],
    },
    Route {
        api: Api::PubSub,
        when: "events for whoever is there",
        shape: Shape::Any,
        targets: &[one(Nats), one(Redis), MEMORY, one(Kafka), one(Postgres), one(RabbitMq)],
    },
    Route {
        api: Api::Queue,
        when: "",
        shape: Shape::Any,
        targets: &[
            one(Postgres),
            Target::KAFKA_AND_POSTGRES,
            one(Nats),
            one(RabbitMq),
            one(Sqs),
            one(Redis),
            MEMORY,
        ],
    },
    Route {
        api: Api::Stream,
        when: "",
        shape: Shape::Any,
        targets: &[one(Kafka), one(Nats), one(Redis), MEMORY],
    },
    Route {
        api: Api::Reader,
        when: "",
        shape: Shape::Any,
        targets: &[one(Kafka), one(Nats), one(Redis), MEMORY],
    },
    Route {
        api: Api::Transact,
        when: "",
        shape: Shape::Any,
        targets: &[one(Postgres), one(Redis), one(DynamoDb), MEMORY],
    },
    Route { api: Api::List, when: "", shape: Shape::Any, targets: &[one(Redis), MEMORY] },
    Route { api: Api::Set, when: "", shape: Shape::Any, targets: &[one(Redis), MEMORY] },
    Route { api: Api::SortedSet, when: "", shape: Shape::Any, targets: &[one(Redis), MEMORY] },
    Route {
        api: Api::TimeSeries,
        when: "",
        shape: Shape::Any,
        targets: &[one(ClickHouse), one(TimescaleDb), one(InfluxDb), one(Postgres), MEMORY],
    },
    Route { api: Api::Graph, when: "", shape: Shape::Any, targets: &[one(Postgres), MEMORY] },
    Route {
        api: Api::Document,
        when: "",
        shape: Shape::Any,
        targets: &[one(Postgres), one(DynamoDb), MEMORY],
    },
];

/// The row of a request.
pub(super) fn route(api: Api, shape: Shape) -> &'static Route {
    let fits = |route: &&Route| {
        route.api == api && matches!(route.shape, of if of == shape || of == Shape::Any)
    };
    match ROUTES.iter().find(fits) {
        Some(route) => route,
        None => unreachable!("every API has a row for any shape"),
    }
}

/// What a backend is planned with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Writes a second of one namespace.
    pub writes: f64,
    /// Data of one namespace; `None`: no bound that matters.
    pub data: Option<u64>,
    /// The largest message.
    pub message: u64,
    /// How quick a call can be promised to be, at the 99th percentile.
    pub latency: Duration,
    /// How long it keeps messages at most.
    pub retention: Option<Duration>,
}

const KB: u64 = 1_000;
const MB: u64 = 1_000_000;
const GB: u64 = 1_000_000_000;
const TB: u64 = 1_000_000_000_000;
/// What a message of the protocol may have at most.
const MESSAGE: u64 = 64 << 20;

/// The figures of a target for an API.
pub fn figures(target: Target, api: Api) -> Figures {
    let figures = |writes, data, message, latency_ms| Figures {
        writes,
        data,
        message,
        latency: Duration::from_millis(latency_ms),
        retention: None,
    };
    if target == Target::KAFKA_AND_POSTGRES {
        return figures(50e3, None, MB, 50);
    }
    match target.kinds()[0] {
        Memstore => figures(100e3, Some(8 * GB), MESSAGE, 1),
        Redis => figures(50e3, Some(32 * GB), MESSAGE, 5),
        // A queue there costs three writes for each message.
        Postgres if api == Api::Queue => figures(1e3, Some(TB), MESSAGE, 20),
        Postgres => figures(5e3, Some(TB), MESSAGE, 20),
        Kafka => figures(500e3, None, MB, 50),
        Nats => figures(50e3, Some(TB), MB, 10),
        DynamoDb => figures(10e3, None, 400 * KB, 20),
        Sqs => Figures {
            retention: Some(Duration::from_secs(14 * 86_400)),
            ..figures(3e3, Some(TB), 256 << 10, 50)
        },
        RabbitMq => figures(10e3, Some(100 * GB), MESSAGE, 20),
        ClickHouse => figures(500e3, None, MESSAGE, 200),
        TimescaleDb => figures(50e3, Some(10 * TB), MESSAGE, 50),
        InfluxDb => figures(100e3, Some(10 * TB), MESSAGE, 50),
    }
}

/// Writes a second that a partition of a topic is planned with.
pub(super) const PARTITION_WRITES: f64 = 1e3;
/// Partitions of a topic at most.
pub(super) const PARTITIONS_MAX: u32 = 1_000;
/// Copies of a topic, unless the platform says otherwise.
pub(super) const REPLICATION: u32 = 3;
/// A message is taken for this large where only the number of messages is told.
pub(super) const MESSAGE_TYPICAL: u64 = KB;
/// How quick the log can be promised to be, at the 99th percentile.
pub(super) const LOG_LATENCY: Duration = Duration::from_millis(5);

/// Both tables, as docs/planner.md shows them.
pub fn tables() -> String {
    let mut text = String::from("| `client_api` | when | taken in this order |\n|---|---|---|\n");
    for route in ROUTES {
        let when = if route.when.is_empty() { "always" } else { route.when };
        let targets: Vec<_> = route.targets.iter().map(|target| target.name()).collect();
        text.push_str(&format!("| {} | {when} | {} |\n", route.api, targets.join(", ")));
    }
    text.push_str(
        "\n| backend | writes | data | message | p99 | keeps |\n|---|---|---|---|---|---|\n",
    );
    let mut row = |name: String, figures: Figures| {
        let data = figures.data.map_or("any".into(), show_bytes);
        let keeps = figures.retention.map_or("any time".into(), show_duration);
        text.push_str(&format!(
            "| {name} | {} | {data} | {} | {} | {keeps} |\n",
            show_rate(figures.writes),
            show_bytes(figures.message),
            show_duration(figures.latency)
        ));
    };
    for kind in BackendType::ALL.iter().copied() {
        row(kind.name().into(), figures(Target::of(kind), Api::KeyValue));
        if kind == Postgres {
            row("postgres, as a queue".into(), figures(Target::of(kind), Api::Queue));
        }
    }
    row(Target::KAFKA_AND_POSTGRES.name(), figures(Target::KAFKA_AND_POSTGRES, Api::Queue));
    text
}
