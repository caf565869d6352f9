//! memstore's streams: records in partitions that keep their order, read by anybody from where they stand.
//!
//! Records are entries; an index of offsets and times stands beside them. A reader holds a place and one page, and is told when
//! there is more. Records without a key are in partition 0, in the order of their appends.
//!
//! - `state`: partitions, and what retention leaves of them
//! - `calls`: the interfaces
//! - `walk`: reading
//! - `groups`: consumer groups, what is state of them and what is not
//! - `group_calls`, `members`: their interfaces, and a member's stream

mod calls;
mod group_calls;
mod groups;
mod members;
mod state;
mod walk;

use std::collections::HashMap;

pub(super) use self::groups::Groups;
pub(super) use self::state::Stream;

/// The streams of a shard, by namespace and name.
pub(super) type Streams = HashMap<(u32, Box<str>), Stream, ahash::RandomState>;
