//! What a group of Kafka's has committed: how far each partition is done, and beside it, as the commit's metadata, what Kafka has no place for.
//!
//! The metadata reads `generation=7 start=12`. Whoever commits without it, such as `kafka-consumer-groups --reset-offsets`, moves
//! the group all the same. Everything here blocks.

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::cluster::Cluster;
use super::crowd::Place;
use super::errors::Fault;
use super::reader::Reader;

fn metadata(place: &Place) -> String {
    format!("generation={} start={}", place.generation, place.start)
}

fn read_place(next: i64, metadata: &str) -> Option<Place> {
    let next = u64::try_from(next).ok()?;
    let mut place = Place { next, start: next, generation: 0 };
    for part in metadata.split(' ') {
        match part.split_once('=').map(|(name, text)| (name, text.parse())) {
            Some(("generation", Ok(generation))) => place.generation = generation,
            Some(("start", Ok(start))) => place.start = start,
            _ => {}
        }
    }
    Some(place)
}

/// What the group in whose name `reader` is has committed of these partitions.
pub(super) fn committed(
    cluster: &Cluster,
    reader: &Reader,
    topic: &str,
    partitions: &[u32],
) -> Result<Vec<Option<Place>>, Fault> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let ask = || {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(topic, *partition as i32);
        }
        let timeout = cluster.config().answer_timeout;
        let told = reader.consumer().committed_offsets(list, timeout).map_err(cluster.fault())?;
        let mut places = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let found = told.find_partition(topic, *partition as i32);
            let Some(found) = found else { return Err(Fault::closed()) };
            found.error().map_err(cluster.fault())?;
            places.push(match found.offset() {
                Offset::Offset(next) => read_place(next, found.metadata()),
                _ => None,
            });
        }
        Ok(places)
    };
    cluster.patiently(ask)
}

/// Commits for the group in whose name `reader` is. Fails where others take part in it and this one does not, or not any more.
pub(super) fn commit(
    cluster: &Cluster,
    reader: &Reader,
    topic: &str,
    places: &[(u32, Place)],
) -> Result<(), Fault> {
    if places.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (partition, place) in places {
        let mut one = list.add_partition(topic, *partition as i32);
        one.set_offset(Offset::Offset(place.next as i64)).map_err(cluster.fault())?;
        one.set_metadata(metadata(place));
    }
    reader.consumer().commit(&list, CommitMode::Sync).map_err(cluster.fault())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_others_words_do_no_harm() {
        let place = Place { next: 40, start: 12, generation: 7 };
        assert_eq!(read_place(40, &metadata(&place)), Some(place));
        let moved = Some(Place { next: 3, start: 3, generation: 0 });
        for text in ["", "x", "generation=x", "NO_METADATA", "start=-1 x=y="] {
            assert_eq!(read_place(3, text), moved, "{text}");
        }
        assert_eq!(read_place(-1001, ""), None);
    }
}
