//! Random calls, compared with a model that is too simple to be wrong.
//!
//! The model is a map from keys to values and expiries. Few keys are used, so that calls meet. Time
//! moves in steps of ten seconds and times to live end between the steps, so that the model need not
//! know the exact time. The same seed makes the same calls.

use std::collections::BTreeMap;
use std::time::Duration;

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::keyvalue::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchSetItem,
    BatchSetRequest, BatchSetResponse, CompareAndDeleteRequest, CompareAndDeleteResponse,
    CompareAndSwapRequest, CompareAndSwapResponse, PersistRequest, PersistResponse, SetCondition,
    SetRequest, TransactRequest, TransactResponse, compare_and_delete_request,
    compare_and_swap_request, expire_request,
};
use prism_proto::prism::r#type::v1::{
    Condition, Entry, Operation, Put, condition::Requirement, operation::Action,
};

use super::caller::{Caller, Select, assert_if_known, ms, payload};
use super::{Client, Running};

const KEYS: u64 = 12;
const STEP_S: u64 = 10;

/// A small generator of random numbers (SplitMix64, Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    value: Vec<u8>,
    expires_s: Option<u64>,
}

struct Model<'a, 'c, C> {
    caller: &'a Caller<'c, C>,
    random: Random,
    entries: BTreeMap<String, Kept>,
    now_s: u64,
    with_ttl: bool,
}

/// Makes `steps` random calls of what is offered and compares every answer with a model.
///
/// Wants a namespace in which nothing else happens. `seed` decides what is called.
///
/// # Panics
/// When an answer is not the model's; the seed stands on stderr.
pub async fn random_sequence<C: Client>(client: &C, seed: u64, steps: usize) {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("random sequence failed with seed {:#x}", self.0);
            }
        }
    }
    let _seed = Seed(seed);
    let _running = Running::begin("random_sequence");
    let caller = Caller::new(client, "random_sequence");
    let offers = client.offers();
    let mut model = Model {
        caller: &caller,
        random: Random(seed),
        entries: BTreeMap::new(),
        now_s: 0,
        with_ttl: offers.contains(Interface::KeyValueTtl),
    };
    model.clear().await;
    for _ in 0..steps {
        match model.random.below(16) {
            0..=3 => model.set().await,
            4 | 5 => model.get().await,
            6 => model.delete().await,
            7 if model.with_ttl => model.expire().await,
            8 if model.with_ttl => model.persist().await,
            9 if client.is_time_simulated() => model.wait().await,
            10 if offers.contains(Interface::KeyValueTransactional) => model.transact().await,
            11 if offers.contains(Interface::KeyValueBatch) => model.batch().await,
            12 if offers.contains(Interface::KeyValueCas) => model.compare_and_swap().await,
            13 if offers.contains(Interface::KeyValueCas) => model.compare_and_delete().await,
            14 if offers.contains(Interface::KeyValueScan) => model.scan().await,
            _ => model.exists().await,
        }
    }
    model.compare_all().await;
}

impl<C: Client> Model<'_, '_, C> {
    fn key(&mut self) -> String {
        let number = self.random.below(KEYS);
        self.caller.key(&number.to_string())
    }

    fn all_keys(&self) -> Vec<String> {
        (0..KEYS).map(|number| self.caller.key(&number.to_string())).collect()
    }

    fn value(&mut self) -> Vec<u8> {
        let bytes = match self.random.below(8) {
            0 => 0,
            1 => self.random.below(8_192),
            2 => 4_090 + self.random.below(12),
            _ => self.random.below(6),
        };
        let mut value = payload(bytes as usize);
        if let Some(first) = value.first_mut() {
            *first = self.random.below(3) as u8;
        }
        value
    }

    /// A time to live in seconds that ends between two steps.
    fn ttl_s(&mut self) -> Option<u64> {
        let wanted = self.with_ttl && self.random.one_in(3);
        wanted.then(|| (self.steps_min() + self.random.below(4)) * STEP_S + STEP_S / 2)
    }

    /// The steps that a time to live lasts at least: where the time is real nothing may end before the calls do.
    fn steps_min(&self) -> u64 {
        if self.caller.client.is_time_simulated() { 0 } else { 1_000 }
    }

    fn keep_ttl(&mut self, ttl_s: Option<u64>) -> bool {
        self.with_ttl && ttl_s.is_none() && self.random.one_in(3)
    }

    fn kept(&self, key: &str) -> Option<&Kept> {
        let now_s = self.now_s;
        self.entries.get(key).filter(|kept| kept.expires_s.is_none_or(|at| at > now_s))
    }

    fn put(&mut self, key: &str, value: Vec<u8>, ttl_s: Option<u64>, keep_ttl: bool) {
        let before = self.kept(key).and_then(|kept| kept.expires_s);
        let expires_s = match ttl_s {
            Some(ttl_s) => Some(self.now_s + ttl_s),
            None if keep_ttl => before,
            None => None,
        };
        self.entries.insert(key.to_owned(), Kept { value, expires_s });
    }

    fn remove(&mut self, key: &str) -> bool {
        let existed = self.kept(key).is_some();
        self.entries.remove(key);
        existed
    }

    fn assert_entry(&self, key: &str, entry: Option<&Entry>) {
        let kept = self.kept(key);
        let value = kept.map(|kept| &kept.value[..]);
        assert_eq!(entry.map(|entry| &entry.value[..]), value, "{key}");
        let expires = kept.is_some_and(|kept| kept.expires_s.is_some());
        assert_eq!(entry.is_some_and(|entry| entry.expires_at.is_some()), expires, "{key}");
    }

    async fn clear(&mut self) {
        for key in self.all_keys() {
            self.caller.delete(&key).await;
        }
    }

    async fn compare_all(&mut self) {
        for key in self.all_keys() {
            let entry = self.caller.get(&key).await;
            self.assert_entry(&key, entry.as_ref());
        }
    }

    async fn wait(&mut self) {
        self.caller.client.advance(Duration::from_secs(STEP_S)).await;
        self.now_s += STEP_S;
    }

    async fn get(&mut self) {
        let key = self.key();
        let entry = self.caller.get(&key).await;
        self.assert_entry(&key, entry.as_ref());
    }

    async fn exists(&mut self) {
        let key = self.key();
        assert_eq!(self.caller.exists(&key).await, self.kept(&key).is_some(), "{key}");
    }

    async fn set(&mut self) {
        let (key, value, ttl_s) = (self.key(), self.value(), self.ttl_s());
        let keep_ttl = self.keep_ttl(ttl_s);
        let only_if = match self.random.below(6) {
            0 => SetCondition::Absent,
            1 => SetCondition::Exists,
            _ => SetCondition::Unspecified,
        };
        let request = SetRequest {
            ttl: ttl_s.map(|ttl_s| ms(ttl_s * 1000)),
            keep_ttl,
            only_if: only_if as i32,
            return_previous: self.random.one_in(3),
            ..self.caller.set_request(&key, value.clone())
        };
        let response = self.caller.try_set(&request).await.unwrap();
        let applied = match only_if {
            SetCondition::Absent => self.kept(&key).is_none(),
            SetCondition::Exists => self.kept(&key).is_some(),
            SetCondition::Unspecified => true,
        };
        assert_eq!(response.applied, applied, "{key}");
        if request.return_previous {
            self.assert_entry(&key, response.previous.as_ref());
        } else {
            assert_eq!(response.previous, None);
        }
        if applied {
            self.put(&key, value, ttl_s, keep_ttl);
        }
    }

    async fn delete(&mut self) {
        let key = self.key();
        let existed = self.caller.delete(&key).await;
        assert_if_known(existed, self.remove(&key));
    }

    async fn expire(&mut self) {
        let (key, steps) = (self.key(), self.steps_min());
        let ttl_s = self.ttl_s().unwrap_or(steps * STEP_S + STEP_S / 2);
        let expiry = expire_request::Expiry::Ttl(ms(ttl_s * 1000));
        let existed = self.caller.expire(&key, expiry).await;
        assert_if_known(existed, self.kept(&key).is_some());
        if let Some(kept) = self.kept(&key).cloned() {
            self.put(&key, kept.value, Some(ttl_s), false);
        }
        assert_eq!(self.caller.get_ttl(&key).await.ttl.is_some(), self.kept(&key).is_some());
    }

    async fn persist(&mut self) {
        let key = self.key();
        let request = PersistRequest { namespace: self.caller.namespace(), key: key.clone() };
        let response: PersistResponse =
            self.caller.call(Method::KEYVALUE_PERSIST, &request).await.unwrap();
        assert_if_known(response.existed, self.kept(&key).is_some());
        if let Some(kept) = self.kept(&key).cloned() {
            self.put(&key, kept.value, None, false);
        }
    }

    async fn transact(&mut self) {
        let mut conditions = Vec::new();
        let mut failures = Vec::new();
        for index in 0..self.random.below(3) {
            let key = self.key();
            let (value, kind) = (self.value(), self.random.below(3));
            let kept = self.kept(&key);
            let (requirement, holds) = match kind {
                0 => (Requirement::Exists(()), kept.is_some()),
                1 => (Requirement::Absent(()), kept.is_none()),
                _ => {
                    let holds = kept.is_some_and(|kept| kept.value == value);
                    (Requirement::Value(value.into()), holds)
                }
            };
            if !holds {
                failures.push(index as u32);
            }
            conditions.push(Condition { key, requirement: Some(requirement) });
        }
        let mut operations = BTreeMap::new();
        for _ in 0..=self.random.below(4) {
            let (key, value, ttl_s) = (self.key(), self.value(), self.ttl_s());
            let keep_ttl = self.keep_ttl(ttl_s);
            let change = (!self.random.one_in(4)).then_some((value, ttl_s, keep_ttl));
            operations.insert(key, change);
        }
        let wire = operations.iter().map(|(key, change)| Operation {
            key: key.clone(),
            action: Some(match change.clone() {
                None => Action::Delete(()),
                Some((value, ttl_s, keep_ttl)) => Action::Put(Put {
                    ttl: ttl_s.map(|ttl_s| ms(ttl_s * 1000)),
                    keep_ttl,
                    value: value.into(),
                }),
            }),
        });
        let namespace = self.caller.namespace();
        let request = TransactRequest { namespace, conditions, operations: wire.collect() };
        let response: TransactResponse =
            self.caller.call(Method::KEYVALUE_TRANSACT, &request).await.unwrap();
        assert_eq!(response.committed, failures.is_empty());
        let told: Vec<u32> = response.failures.iter().map(|failure| failure.index).collect();
        assert_eq!(told, failures);
        for failure in &response.failures {
            let key = &request.conditions[failure.index as usize].key;
            self.assert_entry(key, failure.current.as_ref());
        }
        if response.committed {
            for (key, change) in operations {
                match change {
                    None => drop(self.remove(&key)),
                    Some((value, ttl_s, keep_ttl)) => self.put(&key, value, ttl_s, keep_ttl),
                }
            }
        }
    }

    async fn batch(&mut self) {
        let mut keys: Vec<String> = (0..=self.random.below(5)).map(|_| self.key()).collect();
        keys.sort();
        keys.dedup();
        let namespace = self.caller.namespace();
        match self.random.below(3) {
            0 => {
                let mut items = Vec::new();
                for key in &keys {
                    let (value, ttl_s) = (self.value(), self.ttl_s());
                    let keep_ttl = self.keep_ttl(ttl_s);
                    self.put(key, value.clone(), ttl_s, keep_ttl);
                    let ttl = ttl_s.map(|ttl_s| ms(ttl_s * 1000));
                    items.push(BatchSetItem {
                        key: key.clone(),
                        ttl,
                        keep_ttl,
                        value: value.into(),
                    });
                }
                let request = BatchSetRequest { namespace, items };
                let response: BatchSetResponse =
                    self.caller.call(Method::KEYVALUE_BATCH_SET, &request).await.unwrap();
                assert_eq!(response.results.len(), keys.len());
            }
            1 => {
                let request = BatchGetRequest { namespace, keys: keys.clone() };
                let response: BatchGetResponse =
                    self.caller.call(Method::KEYVALUE_BATCH_GET, &request).await.unwrap();
                assert_eq!(response.results.len(), keys.len());
                for (key, result) in keys.iter().zip(&response.results) {
                    self.assert_entry(key, result.entry.as_ref());
                }
            }
            _ => {
                let request = BatchDeleteRequest { namespace, keys: keys.clone() };
                let response: BatchDeleteResponse =
                    self.caller.call(Method::KEYVALUE_BATCH_DELETE, &request).await.unwrap();
                assert_eq!(response.results.len(), keys.len());
                for (key, result) in keys.iter().zip(&response.results) {
                    assert_if_known(result.existed, self.remove(key));
                }
            }
        }
    }

    /// What the key holds, most of the time, else something random.
    fn guess(&mut self, key: &str) -> Vec<u8> {
        let other = self.value();
        let guess = self.kept(key).map(|kept| kept.value.clone());
        guess.filter(|_| !self.random.one_in(3)).unwrap_or(other)
    }

    async fn compare_and_swap(&mut self) {
        let (key, value, ttl_s) = (self.key(), self.value(), self.ttl_s());
        let keep_ttl = self.keep_ttl(ttl_s);
        let guess = self.guess(&key);
        let (expected, holds) = if self.random.one_in(4) {
            let absent = self.kept(&key).is_none();
            (compare_and_swap_request::Expected::ExpectedAbsent(()), absent)
        } else {
            let holds = self.kept(&key).is_some_and(|kept| kept.value == guess);
            (compare_and_swap_request::Expected::ExpectedValue(guess.into()), holds)
        };
        let request = CompareAndSwapRequest {
            namespace: self.caller.namespace(),
            key: key.clone(),
            ttl: ttl_s.map(|ttl_s| ms(ttl_s * 1000)),
            keep_ttl,
            value: value.clone().into(),
            expected: Some(expected),
        };
        let response: CompareAndSwapResponse =
            self.caller.call(Method::KEYVALUE_COMPARE_AND_SWAP, &request).await.unwrap();
        assert_eq!(response.swapped, holds, "{key}");
        if holds {
            self.put(&key, value, ttl_s, keep_ttl);
        } else {
            self.assert_entry(&key, response.current.as_ref());
        }
    }

    async fn compare_and_delete(&mut self) {
        let key = self.key();
        let guess = self.guess(&key);
        let holds = self.kept(&key).is_some_and(|kept| kept.value == guess);
        let expected = Some(compare_and_delete_request::Expected::ExpectedValue(guess.into()));
        let namespace = self.caller.namespace();
        let request = CompareAndDeleteRequest { namespace, key: key.clone(), expected };
        let response: CompareAndDeleteResponse =
            self.caller.call(Method::KEYVALUE_COMPARE_AND_DELETE, &request).await.unwrap();
        assert_eq!(response.deleted, holds, "{key}");
        if holds {
            self.remove(&key);
        } else {
            self.assert_entry(&key, response.current.as_ref());
        }
    }

    async fn scan(&mut self) {
        let all = self.caller.prefix();
        let expected: Vec<String> =
            self.entries.keys().filter(|key| self.kept(key).is_some()).cloned().collect();
        assert_eq!(self.caller.scan_keys(Select::Prefix(&all)).await, expected);
        let count = self.caller.count(Select::Prefix(&all), 0).await;
        assert_eq!((count.count, count.exact), (expected.len() as u64, true));
        for entry in self.caller.scan(Select::Prefix(&all)).await {
            let key = entry.key.clone().expect("a scan tells the keys");
            self.assert_entry(&key, Some(&entry));
        }
    }
}
