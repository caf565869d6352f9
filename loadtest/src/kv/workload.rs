//! Which request comes next, and its bytes.
//!
//! Requests of one kind differ only in the digits of the key, so that a request costs a copy of a template and sixteen digits.

use prism_proto::prism::keyvalue::v1::{GetRequest, SetRequest};
use prism_proto::prism::stream::v1::{AppendRequest, NewRecord};
use prost::Message;

use crate::random::{Distribution, Keys, Random};

/// Bytes of a key: a prefix and decimal digits.
pub const KEY_BYTES: usize = 16;
const KEY_PREFIX: &str = "key:";

/// The name of key number `number`.
pub fn key_name(number: u64) -> String {
    format!("{KEY_PREFIX}{number:0digits$}", digits = KEY_BYTES - KEY_PREFIX.len())
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// KeyValueService/Get.
    Read,
    /// KeyValueService/Set.
    Write,
    /// StreamService/Append.
    Append,
}

impl Kind {
    /// The method's path.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Read => "/prism.keyvalue.v1.KeyValueService/Get",
            Kind::Write => "/prism.keyvalue.v1.KeyValueService/Set",
            Kind::Append => "/prism.stream.v1.StreamService/Append",
        }
    }
}

/// The shares of reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Reads in `reads + writes` requests.
    pub reads: u32,
    /// Writes in `reads + writes` requests.
    pub writes: u32,
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(reads, writes)| {
            Some(Self { reads: reads.parse().ok()?, writes: writes.parse().ok()? })
        });
        parts
            .filter(|mix| mix.reads.checked_add(mix.writes).is_some_and(|sum| sum > 0))
            .ok_or_else(|| "reads to writes, as in 90:10, 1:0 or 0:1".to_owned())
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.reads, self.writes)
    }
}

/// An encoded request with the place of the key's digits.
#[derive(Clone)]
struct Template {
    bytes: Vec<u8>,
    digits: std::ops::Range<usize>,
}

impl Template {
    fn new(message: &impl Message) -> Self {
        let bytes = message.encode_to_vec();
        let name = key_name(0);
        let start = bytes
            .windows(KEY_BYTES)
            .position(|window| window == name.as_bytes())
            .expect("the key is in the message");
        Self { bytes, digits: start + KEY_PREFIX.len()..start + KEY_BYTES }
    }

    #[inline]
    fn set(&mut self, mut number: u64) -> &[u8] {
        for digit in self.bytes[self.digits.clone()].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        &self.bytes
    }
}

/// The stream of requests of one thread.
#[derive(Clone)]
pub struct Workload {
    random: Random,
    keys: Keys,
    mix: Mix,
    read: Template,
    write: Template,
    /// What `write` is.
    write_kind: Kind,
    preload: std::ops::Range<u64>,
}

/// What a workload is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Namespace of every request.
    pub namespace: String,
    /// Writes append to this stream; absent: they are Sets.
    pub stream: Option<String>,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Reads to writes.
    pub mix: Mix,
    /// Keys there are.
    pub keys: u64,
    /// How keys are chosen.
    pub distribution: Distribution,
    /// Seed of everything that is chosen at random.
    pub seed: u64,
}

impl Workload {
    /// The share of thread `thread` of `threads`.
    pub fn new(recipe: &Recipe, thread: usize, threads: usize) -> Self {
        let mut random = Random::new(recipe.seed ^ (thread as u64) << 48);
        let value: Vec<u8> = (0..recipe.value_bytes).map(|_| random.bits() as u8).collect();
        let (thread, threads) = (thread as u64, threads as u64);
        let namespace = recipe.namespace.clone();
        let read = GetRequest { namespace: namespace.clone(), key: key_name(0) };
        let (key, value) = (key_name(0), value.into());
        let (write_kind, write) = match recipe.stream.clone() {
            None => {
                let request = SetRequest { namespace, key, value, ..Default::default() };
                (Kind::Write, Template::new(&request))
            }
            Some(stream) => {
                let record = Some(NewRecord { key: Some(key), value, ..Default::default() });
                let request = AppendRequest { namespace, stream, record, ..Default::default() };
                (Kind::Append, Template::new(&request))
            }
        };
        let share = |index: u64| recipe.keys * index / threads;
        Self {
            keys: Keys::new(recipe.keys, recipe.distribution, share(thread)),
            random,
            mix: recipe.mix,
            read: Template::new(&read),
            write,
            write_kind,
            preload: share(thread)..share(thread + 1),
        }
    }

    /// The next write of the preload, until every key of this thread's share is stored.
    pub fn preload(&mut self) -> Option<(Kind, &[u8])> {
        let key = self.preload.next()?;
        Some((self.write_kind, self.write.set(key)))
    }

    /// The next request, encoded.
    #[inline]
    pub fn request(&mut self) -> (Kind, &[u8]) {
        let key = self.keys.choose(&mut self.random);
        let turn = self.random.below(u64::from(self.mix.reads) + u64::from(self.mix.writes));
        if turn < u64::from(self.mix.reads) {
            (Kind::Read, self.read.set(key))
        } else {
            (self.write_kind, self.write.set(key))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(mix: &str) -> Recipe {
        Recipe {
            namespace: "keyvalue".into(),
            stream: None,
            value_bytes: 128,
            mix: mix.parse().unwrap(),
            keys: 1000,
            distribution: Distribution::Sequential,
            seed: 1,
        }
    }

    #[test]
    fn requests_decode_to_what_was_meant() {
        let mut workload = Workload::new(&recipe("0:1"), 1, 2);
        for number in 500..1000 {
            let (kind, bytes) = workload.request();
            let message = SetRequest::decode(bytes).unwrap();
            assert_eq!((kind, message.key), (Kind::Write, key_name(number)));
            assert_eq!((message.namespace.as_str(), message.value.len()), ("keyvalue", 128));
        }
        let stream = Some("s".to_owned());
        let mut workload = Workload::new(&Recipe { stream, ..recipe("0:1") }, 0, 1);
        let (kind, bytes) = workload.request();
        let message = AppendRequest::decode(bytes).unwrap();
        assert_eq!((kind, message.stream.as_str()), (Kind::Append, "s"));
        assert_eq!(message.record.unwrap().key, Some(key_name(0)));
        let mut workload = Workload::new(&recipe("1:0"), 0, 1);
        assert_eq!(GetRequest::decode(workload.request().1).unwrap().key, key_name(0));
        assert_eq!(GetRequest::decode(workload.request().1).unwrap().key, key_name(1));
        assert_eq!(key_name(7).len(), KEY_BYTES);
    }

    #[test]
    fn the_preload_visits_every_key_once_over_all_threads() {
        let mut seen = vec![0; 1000];
        for thread in 0..3 {
            let mut workload = Workload::new(&recipe("1:0"), thread, 3);
            while let Some((_, bytes)) = workload.preload() {
                let key = SetRequest::decode(bytes).unwrap().key;
                seen[key[4..].parse::<usize>().unwrap()] += 1;
            }
        }
        assert!(seen.iter().all(|&count| count == 1));
    }

    #[test]
    fn the_mix_is_kept() {
        let mut workload = Workload::new(&recipe("9:1"), 0, 1);
        let reads = (0..10_000).filter(|_| workload.request().0 == Kind::Read).count();
        assert!((8_800..9_200).contains(&reads), "{reads}");
        for wrong in ["", "1", "0:0", "a:b", "1:2:3", "4294967295:1"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }
}
