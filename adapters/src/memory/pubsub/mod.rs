//! memstore's topics: events for those who are subscribed when they are published, and for durable subscriptions.
//!
//! A subscription that is not durable is there as long as streams are attached to it; what it has not sent yet waits in a line of its own, bounded in
//! events and bytes, of which all lines of a shard together hold a bounded amount. A subscriber that stays behind by more loses its subscription and
//! is told so; it holds nobody up. Backends outside that tell a shard of every event share them out the same way. Nothing of these is state: replay publishes to nobody.
//!
//! - `subscriptions`: who hears what
//! - `calls`: the interfaces
//! - `topics`, `durable`: what is kept for durable subscriptions, and their interface

mod calls;
mod durable;
mod subscriptions;
mod topics;

pub(crate) use self::calls::{deliver, response};
pub(crate) use self::durable::{mismatch, not_found, receipt_expired};
pub(crate) use self::subscriptions::{Event, Heard, Standing, Subscriptions};
pub(super) use self::topics::Topics;
