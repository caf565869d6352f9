//! The scripts that run within Redis, where one command is not enough to be atomic or bounded.
//!
//! They are loaded with every connection and called by their digest. Redis forgets them when it restarts or is told to;
//! then a call sends the source along once, and Redis knows them again.

use std::sync::LazyLock;

use sha1::{Digest, Sha1};

/// A script, see its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Conditions, then operations, all or nothing.
    Transact,
    /// A Set that tells what was there.
    Replace,
    /// Entries of many keys, no more than fit.
    Read,
    /// A record that is appended if the newest one is as expected.
    StreamAppend,
    /// Where a stream stands, and its next records.
    StreamRead,
    /// Where many streams end.
    StreamEnds,
    /// What a stream's retention does not keep.
    StreamTrim,
    /// Events with what is beside them.
    Publish,
    /// A consumer group that begins somewhere.
    GroupPlace,
    /// The end of a consumer group.
    GroupDelete,
    /// What members have done.
    GroupAcknowledge,
    /// What comes next to a member.
    GroupNext,
    /// How far a group is.
    GroupLook,
    /// Messages for a queue.
    QueueSend,
    /// Messages that are leased.
    QueueReceive,
    /// Deliveries that end for good.
    QueueSettle,
    /// A delivery that ends at another time.
    QueueChange,
    /// After how many deliveries a message is given up.
    QueueConfigure,
    /// Messages or dead letters, looked at.
    QueueList,
    /// Dead letters that are put back.
    QueueRedrive,
    /// How many messages there are.
    QueueCount,
    /// A durable subscription that begins somewhere.
    TopicSubscribe,
    /// What comes next to a stream of a durable subscription.
    TopicNext,
    /// What was done with events.
    TopicAcknowledge,
    /// The end of a durable subscription.
    TopicUnsubscribe,
    /// What a stream of a durable subscription leaves behind.
    TopicLeave,
    /// Events that all durable subscriptions are done with.
    TopicTrim,
    /// Which messages of transactions wait.
    OutboxList,
    /// Messages of transactions.
    OutboxRead,
}

/// A script of queues: what Redis has to know of it, what they all begin with, and itself.
macro_rules! of_queues {
    ($flags:literal, $source:literal) => {
        concat!("#!lua", $flags, "\n", include_str!("queue/queue.lua"), include_str!($source))
    };
}

impl Script {
    pub(super) const ALL: [Script; 29] = [
        Script::Transact,
        Script::Replace,
        Script::Read,
        Script::StreamAppend,
        Script::StreamRead,
        Script::StreamEnds,
        Script::StreamTrim,
        Script::Publish,
        Script::GroupPlace,
        Script::GroupDelete,
        Script::GroupAcknowledge,
        Script::GroupNext,
        Script::GroupLook,
        Script::QueueSend,
        Script::QueueReceive,
        Script::QueueSettle,
        Script::QueueChange,
        Script::QueueConfigure,
        Script::QueueList,
        Script::QueueRedrive,
        Script::QueueCount,
        Script::TopicSubscribe,
        Script::TopicNext,
        Script::TopicAcknowledge,
        Script::TopicUnsubscribe,
        Script::TopicLeave,
        Script::TopicTrim,
        Script::OutboxList,
        Script::OutboxRead,
    ];

    pub(super) fn source(self) -> &'static str {
        match self {
            Script::Transact => include_str!("transact.lua"),
            Script::Replace => include_str!("replace.lua"),
            Script::Read => include_str!("read.lua"),
            Script::StreamAppend => include_str!("stream_append.lua"),
            Script::StreamRead => include_str!("stream_read.lua"),
            Script::StreamEnds => include_str!("stream_ends.lua"),
            Script::StreamTrim => include_str!("stream_trim.lua"),
            Script::Publish => include_str!("publish.lua"),
            Script::GroupPlace => include_str!("group_place.lua"),
            Script::GroupDelete => include_str!("group_delete.lua"),
            Script::GroupAcknowledge => include_str!("group_acknowledge.lua"),
            Script::GroupNext => include_str!("group_next.lua"),
            Script::GroupLook => include_str!("group_look.lua"),
            // What takes messages in is refused as a whole where there is no memory for it; what takes them out goes on.
            Script::QueueSend => of_queues!("", "queue/queue_send.lua"),
            Script::QueueReceive => of_queues!(" flags=allow-oom", "queue/queue_receive.lua"),
            Script::QueueSettle => of_queues!(" flags=allow-oom", "queue/queue_settle.lua"),
            Script::QueueChange => of_queues!(" flags=allow-oom", "queue/queue_change.lua"),
            Script::QueueConfigure => of_queues!("", "queue/queue_configure.lua"),
            Script::QueueList => of_queues!(" flags=no-writes", "queue/queue_list.lua"),
            Script::QueueRedrive => of_queues!("", "queue/queue_redrive.lua"),
            Script::QueueCount => of_queues!(" flags=no-writes", "queue/queue_count.lua"),
            Script::TopicSubscribe => include_str!("topic_log/topic_subscribe.lua"),
            Script::TopicNext => include_str!("topic_log/topic_next.lua"),
            Script::TopicAcknowledge => include_str!("topic_log/topic_acknowledge.lua"),
            Script::TopicUnsubscribe => include_str!("topic_log/topic_unsubscribe.lua"),
            Script::TopicLeave => include_str!("topic_log/topic_leave.lua"),
            Script::TopicTrim => include_str!("topic_log/topic_trim.lua"),
            Script::OutboxList => include_str!("outbox_list.lua"),
            Script::OutboxRead => include_str!("outbox_read.lua"),
        }
    }

    /// What EVALSHA calls it.
    pub(super) fn digest(self) -> &'static [u8; 40] {
        static DIGESTS: LazyLock<[[u8; 40]; Script::ALL.len()]> =
            LazyLock::new(|| Script::ALL.map(|script| hex(&sha1(script.source().as_bytes()))));
        &DIGESTS[self as usize]
    }
}

/// The SHA-1 digest of a value: its version, which Redis can compute too.
#[inline]
pub(super) fn sha1(value: &[u8]) -> [u8; 20] {
    Sha1::digest(value).into()
}

/// Bytes in hexadecimal, as Redis writes digests.
pub(super) fn hex(digest: &[u8; 20]) -> [u8; 40] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|index| {
        let byte = digest[index / 2];
        DIGITS[usize::from(if index % 2 == 0 { byte >> 4 } else { byte & 15 })]
    })
}
