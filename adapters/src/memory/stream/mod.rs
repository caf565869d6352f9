//! memstore's streams: records in partitions that keep their order, read by anybody from where they stand.
//!
//! Records are entries; an index of offsets and times stands beside them. A reader holds a place and one page, and is told when
//! there is more. Records without a key are in partition 0, in the order of their appends.
//!
//! - `state`: partitions, and what retention leaves of them
//! - `calls`: the interfaces
//! - `walk`: reading

mod calls;
mod state;
mod walk;

use std::collections::HashMap;

pub(super) use self::state::Stream;

/// The streams of a shard, by namespace and name.
pub(super) type Streams = HashMap<(u32, Box<str>), Stream, ahash::RandomState>;
