//! Which topic a stream is, and which partition a key.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The longest name that Kafka takes for a topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// Hexadecimal digits that stand for what a topic's name has no room for, and the dot before them.
const DIGEST_BYTES: usize = 17;

/// The topic of a stream: `<namespace>.<stream>`. Of a name that is too long for Kafka the end is replaced by its digest.
pub(super) fn topic_of(namespace: &str, stream: &str) -> String {
    let mut topic = format!("{namespace}.{stream}");
    if topic.len() > TOPIC_BYTES_MAX {
        let mut hasher = SipHasher13::new_with_keys(0, 0);
        hasher.write(topic.as_bytes());
        topic.truncate(TOPIC_BYTES_MAX - DIGEST_BYTES);
        topic += &format!(".{:016x}", hasher.finish());
    }
    topic
}

/// The group of Kafka's that a consumer group is: `<namespace>.<stream>:<group>`. No name has a colon.
pub(super) fn group_of(namespace: &str, stream: &str, group: &str) -> String {
    format!("{namespace}.{stream}:{group}")
}

/// The group of Kafka's that a durable subscription is: `<namespace>:<id>`. No namespace has a dot.
pub(super) fn subscription_of(namespace: &str, id: &str) -> String {
    format!("{namespace}:{id}")
}

/// The topic that holds what Prism keeps of a namespace's groups and durable subscriptions. No namespace begins with `_`.
pub(super) fn notes_topic(namespace: &str) -> String {
    format!("_prism.groups.{namespace}")
}

/// The partition of a key: that of its first `{…}`, else of the whole, as Kafka's own clients choose it. Records without a key
/// are in partition 0, in the order of their appends.
pub(super) fn partition_of(key: Option<&str>, partitions: u32) -> u32 {
    let Some(key) = key else { return 0 };
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    (murmur2(hashed.as_bytes()) & 0x7fff_ffff) % partitions.max(1)
}

/// MurmurHash2 with the seed of Kafka's clients (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut mixed = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        mixed = (mixed ^ mixed >> 24).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ mixed;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hashed_as_the_java_client_hashes_them() {
        // The vectors of its UtilsTest.
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }

    #[test]
    fn a_tag_in_braces_decides_the_partition() {
        assert_eq!(partition_of(Some("{a}:1"), 7), partition_of(Some("x{a}2"), 7));
        assert_eq!(partition_of(Some("a"), 7), partition_of(Some("{a}"), 7));
        assert_eq!(partition_of(Some("{}a"), 7), (murmur2(b"{}a") & 0x7fff_ffff) % 7);
        assert_eq!(partition_of(None, 7), 0);
    }

    #[test]
    fn every_stream_has_a_topic_of_its_own_that_kafka_takes() {
        assert_eq!(topic_of("orders", "placed.eu"), "orders.placed.eu");
        let namespace = "n".repeat(63);
        let streams = ["a", "b"].map(|end| "s".repeat(199) + end);
        let topics = streams.each_ref().map(|stream| topic_of(&namespace, stream));
        assert!(topics.iter().all(|topic| topic.len() == TOPIC_BYTES_MAX), "{topics:?}");
        assert_ne!(topics[0], topics[1]);
    }
}
