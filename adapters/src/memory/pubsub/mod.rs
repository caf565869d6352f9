//! memstore's topics, as far as events are for those who are subscribed when they are published.
//!
//! A subscription is there as long as streams are attached to it; what it has not sent yet waits in a line of its own, bounded in
//! events and bytes, of which all lines of a shard together hold a bounded amount. A subscriber that stays behind by more loses its subscription and
//! is told so; it holds nobody up. Nothing of it is state: replay publishes to nobody.
//!
//! - `subscriptions`: who hears what
//! - `calls`: the interfaces

mod calls;
mod subscriptions;

pub(super) use self::subscriptions::Subscriptions;
