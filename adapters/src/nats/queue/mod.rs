//! QueueService on NATS: a queue is a work-queue stream of JetStream, `QUEUE_<namespace>_<queue>` (`=` for dots), from which a message goes
//! when it was dealt with.
//!
//! Messages lie on the subject `$QUEUE.<namespace>.<queue>`, those with an ordering key on `$QUEUE_KEY.<namespace>.<queue>.<lane>`, and what
//! is for later on `$QUEUE_LATER.<namespace>.<queue>.<id>`, from where the server itself brings it when it is due. Durable pull consumers
//! hand them out and count deliveries. The `ack_wait` of a consumer is one for all of its messages; a lease of another length is
//! asked for of each message, as a negative acknowledgement with a delay. A receipt has all that the subject of its acknowledgement needs.
//! What no receipt can know (that its delivery was extended or given back) is a mark in the namespace's bucket, which expires.
//! Dead letters lie in the stream `DEAD_<namespace>_<queue>`; after how many deliveries a message becomes one stands in the
//! metadata of the queue's stream.
//!
//! - `message`: messages as messages of NATS, and back
//! - `lanes`: who hands out what; `leases`: what is known of what was handed out
//! - `send`, `receive`, `settle`, `dead`: what is done; `calls`: the interfaces
//! - `peek`: looking at messages without taking them

mod calls;
mod dead;
mod lanes;
mod leases;
mod message;
mod peek;
mod receive;
mod send;
mod settle;

use self::leases::Leases;
use crate::claims::Promises;
use crate::sources::Sources;

/// The queues of a shard.
#[derive(Default)]
pub(super) struct Queues {
    sources: Sources,
    /// What calls on their way have been promised.
    promises: Promises,
    leases: Leases,
}
