//! A call turned into what a backend does, and back.
//!
//! There is one trait per interface ([`interfaces`]); a backend implements those that it serves and
//! lists them in one declaration ([`backend!`](macro@backend)), from which dispatch and capability set come. What
//! holds on every backend is written once above them ([`validate`](interfaces::validate)), and one
//! suite of cases per interface ([`conformance`]) says what serving it means.
//!
//! This crate knows no namespaces' policies and no log, and reaches the network only through `prism_io`: on a shard's own
//! loop, or on the thread beside the shards through a client that brings its own connections.

pub mod backend;
pub mod breaker;
pub mod call;
mod claims;
pub mod conformance;
pub mod ending;
pub mod error;
pub mod filter;
pub mod glob;
pub mod interfaces;
pub mod kafka;
pub mod kafka_postgres;
pub mod lane;
pub mod limits;
mod members;
pub mod memory;
pub mod nats;
pub mod news;
pub mod outbox;
pub mod postgres;
pub mod reader;
pub mod redis;
mod shared;
mod sharing;
mod sources;
pub mod tls;
mod together;
pub mod topic;

pub use backend::{Admission, Backend};
pub use call::{Context, NO_DEADLINE_NS, PageSink, Reply, Revision};
pub use error::{Error, Kind};
pub use limits::Limits;
pub use news::{Listener, News};

#[doc(hidden)]
pub use prism_proto::catalogue;
