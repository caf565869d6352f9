//! memstore's queues.
//!
//! A queue's state is a function of its entries and the time of its records: each call first lets the time pass (leases that
//! have ended, delays, expiries), then does its work, so that replay takes the same turns. Messages, what is known about their
//! deliveries, dead letters and settings are entries of their own, so that a delivery rewrites a few bytes and no payload.
//!
//! - `state`: which message is next, and what becomes of it
//! - `entries`: the way to the store and back
//! - `calls`: the interfaces
//! - `peek`: looking at messages without taking them

mod calls;
mod entries;
mod peek;
mod state;

use std::collections::HashMap;

pub(super) use self::state::Queue;

/// The queues of a shard, by namespace and name.
pub(super) type Queues = HashMap<(u32, Box<str>), Queue, ahash::RandomState>;
