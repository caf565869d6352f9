//! A consumer that one reader has for itself, and keeps for the next one.
//!
//! The client fetches ahead, up to a bound in bytes, and rings a bell when there is something. The shard looks and never blocks;
//! a reader that does not look stops its own fetch, and nobody else's.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prism_io::bell::Bell;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::cluster::{Cluster, Turn, Watcher};
use super::errors::Fault;
use super::link::Counted;

/// How often it is looked whether anything has to be answered before a member leaves its group, and for how long each time.
const LEAVING_LOOKS_MAX: usize = 1000;
const LEAVING_LOOK: Duration = Duration::from_millis(20);

/// What a look found.
pub(super) enum Found<'a> {
    /// A record.
    Record(BorrowedMessage<'a>),
    /// The end of a partition, as it was when the broker was asked.
    End(u32),
    /// A failure; the consumer goes on by itself where that can help.
    Failure(KafkaError),
    /// Nothing for now.
    Nothing,
}

/// See the module.
pub(super) struct Reader {
    consumer: BaseConsumer<Watcher>,
    bell: Arc<Bell>,
    /// It takes part in a group.
    is_member: bool,
}

impl Drop for Reader {
    /// Leaves its group. The client closes only once what Kafka does with its partitions is answered, and does not once it closes: so
    /// that is served first.
    fn drop(&mut self) {
        self.consumer.context().is_leaving.store(true, Ordering::Relaxed);
        if !self.is_member {
            return;
        }
        let _ = self.consumer.unassign();
        self.consumer.unsubscribe();
        for _ in 0..LEAVING_LOOKS_MAX {
            let served = self.consumer.context().served.load(Ordering::Relaxed);
            let polled = self.consumer.poll(LEAVING_LOOK).is_some();
            if !polled && self.consumer.context().served.load(Ordering::Relaxed) == served {
                return;
            }
        }
    }
}

impl Reader {
    fn new(cluster: &Cluster) -> Result<Self, Fault> {
        Reader::start(cluster, &cluster.config().consumer(), Arc::default())
    }

    fn start(cluster: &Cluster, config: &ClientConfig, bell: Arc<Bell>) -> Result<Self, Fault> {
        let mut consumer: BaseConsumer<Watcher> =
            config.create_with_context(Watcher::new(&cluster.health)).map_err(cluster.fault())?;
        let ring = bell.clone();
        consumer.set_nonempty_callback(move || ring.ring());
        Ok(Reader { consumer, bell, is_member: false })
    }

    /// One that takes part in a group of Kafka's, and rings this bell. It reads nothing before [`Reader::go_to`] has followed
    /// [`Reader::next_turn`]. Blocks.
    pub(super) fn member(
        cluster: &Cluster,
        group: &str,
        topic: &str,
        bell: Arc<Bell>,
    ) -> Result<Self, Fault> {
        let mut reader = Reader::start(cluster, &cluster.config().member(group), bell)?;
        reader.is_member = true;
        reader.consumer.subscribe(&[topic]).map_err(cluster.fault())?;
        Ok(reader)
    }

    /// One in the name of a group of Kafka's that does not take part in it. Blocks.
    pub(super) fn clerk(cluster: &Cluster, group: &str) -> Result<Self, Fault> {
        Reader::start(cluster, &cluster.config().member(group), Arc::default())
    }

    /// The client itself, to ask what its group has committed.
    pub(super) fn consumer(&self) -> &BaseConsumer<Watcher> {
        &self.consumer
    }

    /// What Kafka has done with the partitions of a member; each is to be followed by [`Reader::go_to`] or [`Reader::rest`].
    pub(super) fn next_turn(&self) -> Option<Turn> {
        self.consumer.context().next_turn()
    }

    /// Stops the fetch of these partitions of a topic, or has it go on. Does not block.
    pub(super) fn pause(&self, topic: &str, partitions: &[u32], pauses: bool) {
        if partitions.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(topic, *partition as i32);
        }
        // A partition that is not read any more needs neither.
        let _ = match pauses {
            true => self.consumer.pause(&list),
            false => self.consumer.resume(&list),
        };
    }

    /// One that reads these partitions of a topic from these offsets. Blocks.
    pub(super) fn at(
        idle: Option<Reader>,
        cluster: &Cluster,
        topic: &str,
        places: &[(u32, i64)],
    ) -> Result<Self, Fault> {
        let reader = Reader::of(idle, cluster)?;
        reader.go_to(cluster, topic, places)?;
        Ok(reader)
    }

    /// One that reads nothing yet. Blocks.
    pub(super) fn of(idle: Option<Reader>, cluster: &Cluster) -> Result<Self, Fault> {
        idle.map_or_else(|| Reader::new(cluster), Ok)
    }

    /// Goes on with these partitions of a topic from these offsets. Blocks.
    pub(super) fn go_to(
        &self,
        cluster: &Cluster,
        topic: &str,
        places: &[(u32, i64)],
    ) -> Result<(), Fault> {
        let mut list = TopicPartitionList::with_capacity(places.len());
        for (partition, offset) in places {
            list.add_partition_offset(topic, *partition as i32, Offset::Offset(*offset))
                .map_err(cluster.fault())?;
        }
        self.consumer.assign(&list).map_err(cluster.fault())
    }

    /// Stops fetching. Blocks.
    pub(super) fn rest(&self) -> bool {
        self.consumer.unassign().is_ok()
    }

    /// How often there was something. Ask before looking.
    pub(super) fn heard(&self) -> u64 {
        self.bell.heard()
    }

    /// Waits until there was something since.
    pub(super) async fn wait(&self, heard: u64) {
        self.bell.wait(heard).await;
    }

    /// What rings when there is something.
    pub(super) fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// Looks whether there is something.
    pub(super) fn look(&self) -> Found<'_> {
        self.look_for(Duration::ZERO)
    }

    /// Looks for so long whether there is something. Blocks, unless that is no time at all.
    pub(super) fn look_for(&self, timeout: Duration) -> Found<'_> {
        loop {
            let served = self.consumer.context().served.load(Ordering::Relaxed);
            match self.consumer.poll(timeout) {
                Some(Ok(record)) => return Found::Record(record),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    return Found::End(partition as u32);
                }
                Some(Err(error)) => return Found::Failure(error),
                // Something that is not for us is taken for nothing by the client: then there may be more.
                None if self.consumer.context().served.load(Ordering::Relaxed) != served => {}
                None => return Found::Nothing,
            }
        }
    }
}

/// A reader while it is used; goes back by itself.
pub(super) struct Lease {
    reader: Option<Reader>,
    counted: Counted,
}

impl Lease {
    pub(super) fn new(reader: Reader, counted: Counted) -> Self {
        Lease { reader: Some(reader), counted }
    }
}

impl std::ops::Deref for Lease {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader.as_ref().unwrap_or_else(|| unreachable!("it goes back when it is dropped"))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.counted.0.give_back(reader);
        }
    }
}

/// Readers that are not used.
#[derive(Default)]
pub(super) struct Idle {
    /// Those that still have to stop fetching.
    pub(super) returned: RefCell<Vec<Reader>>,
    pub(super) resting: RefCell<Vec<Reader>>,
}
