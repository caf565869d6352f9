//! Snapshots: consistent at one LSN while writes go on, whole or refused, and with the log after them
//! as good as the state that they replace.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::conformance::{Collect, block_on};
use prism_adapters::memory::{
    Lookup, Memstore, MemstoreLimits, Outcome, OutcomeKey, RestoreError, Snapshot, SnapshotError,
    SnapshotFacts, SnapshotFiles, SnapshotStep,
};
use prism_adapters::{Backend, Context, Limits, Reply, Revision};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchSetItem, BatchSetRequest, CompareAndSwapRequest, DeleteRequest, ExpireRequest,
    PersistRequest, ScanRequest, SetRequest, TransactRequest, compare_and_swap_request,
    expire_request,
};
use prism_proto::prism::r#type::v1::{
    Condition, Operation, Put, condition::Requirement, operation::Action,
};
use prost::Message;

const BEGIN_US: u64 = 1_700_000_000_000_000;
const LANES: u64 = 3;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A record of the log, as far as a backend sees it.
#[derive(Clone)]
struct Record {
    lsn: u64,
    now_us: u64,
    lane: (u32, u16),
    method: Method,
    body: Vec<u8>,
    key: Option<Vec<u8>>,
}

fn random_record(random: &mut Random, lsn: u64, now_us: u64, keys: u64) -> Record {
    let mut key = || format!("key {}", random.below(keys));
    let (key, other) = (key(), key());
    let bytes = match random.below(10) {
        0 => 5_000,
        1 => 0,
        _ => random.below(200),
    };
    let value = Bytes::from(vec![lsn as u8; bytes as usize]);
    let duration = |ms: u64| prost_types::Duration {
        seconds: (ms / 1000) as i64,
        nanos: (ms % 1000) as i32 * 1_000_000,
    };
    let ttl = (random.below(3) == 0).then(|| duration(1 + random.below(2_000)));
    let keep_ttl = ttl.is_none() && random.below(3) == 0;
    let condition = random.below(3) as i32;
    let (method, body) = match random.below(10) {
        0 => (Method::KEYVALUE_DELETE, DeleteRequest { key, ..Default::default() }.encode_to_vec()),
        1 => {
            let expiry = Some(expire_request::Expiry::Ttl(duration(1 + random.below(500))));
            let request = ExpireRequest { key, expiry, ..Default::default() };
            (Method::KEYVALUE_EXPIRE, request.encode_to_vec())
        }
        2 => {
            let request = PersistRequest { key, ..Default::default() };
            (Method::KEYVALUE_PERSIST, request.encode_to_vec())
        }
        3 => {
            let exists =
                Condition { key: other.clone(), requirement: Some(Requirement::Exists(())) };
            let put = Put { ttl, keep_ttl, value };
            let mut operations =
                vec![Operation { key: key.clone(), action: Some(Action::Put(put)) }];
            if other != key {
                operations.push(Operation { key: other, action: Some(Action::Delete(())) });
            }
            let conditions = vec![exists];
            let request = TransactRequest { conditions, operations, ..Default::default() };
            (Method::KEYVALUE_TRANSACT, request.encode_to_vec())
        }
        4 => {
            let mut items = vec![BatchSetItem { key: key.clone(), ttl, keep_ttl, value }];
            if other != key {
                items.push(BatchSetItem { key: other, ..BatchSetItem::default() });
            }
            let request = BatchSetRequest { items, ..Default::default() };
            (Method::KEYVALUE_BATCH_SET, request.encode_to_vec())
        }
        5 => {
            let expected = Some(compare_and_swap_request::Expected::ExpectedAbsent(()));
            let request =
                CompareAndSwapRequest { key, ttl, keep_ttl, value, expected, ..Default::default() };
            (Method::KEYVALUE_COMPARE_AND_SWAP, request.encode_to_vec())
        }
        _ => {
            let request = SetRequest {
                key,
                ttl,
                keep_ttl,
                only_if: condition,
                return_previous: condition == 1,
                value,
                ..Default::default()
            };
            (Method::KEYVALUE_SET, request.encode_to_vec())
        }
    };
    let lane = (1 + random.below(LANES) as u32, random.below(2) as u16);
    let key = (random.below(4) == 0).then(|| format!("retry {lsn}").into_bytes());
    Record { lsn, now_us, lane, method, body, key }
}

fn outcome_key(record: &Record) -> Option<OutcomeKey<'_>> {
    let (namespace, partition) = record.lane;
    let key = record.key.as_deref()?;
    Some(OutcomeKey { namespace, partition, caller: 5, key })
}

/// Applies a record and returns the answer.
fn apply(memstore: &Memstore, record: &Record) -> Bytes {
    let limits = Limits::default();
    let context = Context {
        namespace: record.lane.0,
        namespace_name: "name",
        partition: record.lane.1,
        now_us: record.now_us,
        revision: Revision::logged(record.lsn),
        limits: &limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    let key = outcome_key(record);
    let window = Duration::from_secs(3_600);
    let ticket =
        key.map(|key| memstore.outcomes_mut().begin(key, 7, record.now_us, window, true).unwrap());
    let mut reply = Reply::default();
    block_on(memstore.unary(&context, record.method, &record.body, &mut reply)).unwrap();
    let message = reply.to_bytes();
    if let Some(ticket) = ticket {
        let outcome = Outcome { lsn: record.lsn, code: 0, level: 1, message: message.clone() };
        memstore.outcomes_mut().settle(ticket, outcome, record.now_us);
    }
    message
}

/// Everything that a caller can see, in a fixed order.
fn dump(memstore: &Memstore, now_us: u64) -> Vec<Vec<u8>> {
    let limits = Limits::default();
    let mut seen = Vec::new();
    for namespace in 1..=LANES as u32 {
        for partition in 0..2 {
            let context = Context {
                namespace,
                namespace_name: "name",
                partition,
                now_us,
                revision: Revision::default(),
                limits: &limits,
                deadline_ns: prism_adapters::NO_DEADLINE_NS,
            };
            let mut sink = Collect { messages: Vec::new(), messages_max: usize::MAX, now_us };
            let request = ScanRequest::default().encode_to_vec();
            block_on(memstore.stream(&context, Method::KEYVALUE_SCAN, &request, &mut sink))
                .unwrap();
            for page in sink.messages {
                let page = prism_proto::prism::keyvalue::v1::ScanResponse::decode(page).unwrap();
                for entry in page.entries {
                    let lane = format!("{namespace} {partition} ").into_bytes();
                    seen.push([lane, entry.encode_to_vec()].concat());
                }
            }
        }
    }
    seen.sort();
    seen
}

fn drain(snapshot: &mut Snapshot, mut between: impl FnMut()) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match snapshot.step().unwrap() {
            SnapshotStep::Bytes(chunk) => bytes.extend_from_slice(&chunk),
            SnapshotStep::Working => {}
            SnapshotStep::Done => return bytes,
        }
        between();
    }
}

fn facts(lsn: u64, log_time_us: u64) -> SnapshotFacts {
    SnapshotFacts { shard: 3, lsn, log_time_us, attachment: Bytes::from_static(b"plan") }
}

fn restored(bytes: &[u8]) -> (Memstore, SnapshotFacts) {
    Memstore::restore(MemstoreLimits::default(), bytes).unwrap()
}

#[test]
fn state_and_answers_after_snapshot_and_replay_are_those_before() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("seed {seed:#x}");
    prism_io::rt::run(async move {
        for round in 0..8 {
            replay_equality(&mut Random(seed.wrapping_add(round << 8)), 20 + 400 * round);
        }
    })
    .unwrap();
}

fn replay_equality(random: &mut Random, keys: u64) {
    let memstore = Rc::new(Memstore::default());
    let mut now_us = BEGIN_US;
    let mut answers: Vec<(Record, Bytes)> = Vec::new();
    let mut write = |memstore: &Memstore, random: &mut Random| {
        now_us += random.below(3_000);
        let record = random_record(random, answers.len() as u64 + 1, now_us, keys);
        let answer = apply(memstore, &record);
        answers.push((record, answer));
        // Reaping at times of its own must change neither state nor answers.
        if random.below(20) == 0 {
            memstore.expire(now_us, 10);
        }
        (answers.len() as u64, now_us)
    };
    let mut at = (0, BEGIN_US);
    for _ in 0..6_000 {
        at = write(&memstore, random);
    }
    // Outcomes of later calls come to stand where the cursor has yet to pass.
    let abandoned: Vec<_> = (0..100_u32)
        .map(|number| {
            let key = &number.to_le_bytes();
            let key = OutcomeKey { namespace: 1, partition: 0, caller: 6, key };
            let window = Duration::from_secs(3_600);
            memstore.outcomes_mut().begin(key, 7, at.1, window, false).unwrap()
        })
        .collect();
    for ticket in abandoned {
        memstore.outcomes_mut().abandon(ticket);
    }
    let cut = facts(at.0, at.1);
    let state = dump(&memstore, cut.log_time_us);
    let mut snapshot = memstore.snapshot(&cut).unwrap();
    assert!(matches!(memstore.snapshot(&cut), Err(SnapshotError::Running)));
    // Writes go on while it is taken.
    let bytes = drain(&mut snapshot, || {
        for _ in 0..300 {
            at = write(&memstore, random);
        }
    });
    drop(snapshot);
    for _ in 0..2_000 {
        at = write(&memstore, random);
    }

    let (copy, found) = restored(&bytes);
    assert_eq!(found, cut);
    assert_eq!(dump(&copy, cut.log_time_us), state, "the snapshot is of its LSN");
    for (record, answer) in answers.iter().filter(|(record, _)| record.lsn > cut.lsn) {
        assert_eq!(apply(&copy, record), answer, "the answer to record {}", record.lsn);
    }
    assert_eq!(dump(&copy, at.1), dump(&memstore, at.1), "the state at the end");
    for (record, answer) in &answers {
        let Some(key) = outcome_key(record) else { continue };
        match copy.outcomes().lookup(key, 7, at.1) {
            Lookup::Settled(outcome) => {
                assert_eq!((outcome.lsn, &outcome.message), (record.lsn, answer));
            }
            other => panic!("the outcome of record {} was forgotten: {other:?}", record.lsn),
        }
    }
    assert!(memstore.snapshot(&facts(at.0, at.1)).is_ok(), "another one can be taken");
}

#[test]
fn every_damaged_byte_is_found() {
    prism_io::rt::run(async {
        let memstore = Rc::new(Memstore::default());
        let mut random = Random(99);
        for lsn in 1..200 {
            apply(&memstore, &random_record(&mut random, lsn, BEGIN_US + lsn, 60));
        }
        let good = drain(&mut memstore.snapshot(&facts(200, BEGIN_US + 200)).unwrap(), || {});
        for (step, index) in (0..good.len()).step_by(7).chain(0..64).enumerate() {
            let mut bad = good.clone();
            bad[index] ^= 1 << (step % 8);
            let result = Memstore::restore(MemstoreLimits::default(), &bad[..]);
            assert!(
                matches!(result, Err(SnapshotError::Damaged { .. } | SnapshotError::Version(_))),
                "a flipped bit in byte {index} passed"
            );
        }
        for length in [0, 1, 15, 16, 17, good.len() / 2, good.len() - 1] {
            let result = Memstore::restore(MemstoreLimits::default(), &good[..length]);
            assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "cut off at {length}");
        }
        let (copy, _) = restored(&[&good[..], &[0; 4_096]].concat());
        assert_eq!(
            dump(&copy, BEGIN_US + 200),
            dump(&memstore, BEGIN_US + 200),
            "padding is ignored"
        );
    })
    .unwrap();
}

#[test]
fn an_abandoned_snapshot_leaves_no_trace() {
    prism_io::rt::run(async {
        let memstore = Rc::new(Memstore::default());
        let mut random = Random(5);
        for lsn in 1..3_000 {
            apply(&memstore, &random_record(&mut random, lsn, BEGIN_US + lsn, 2_000));
        }
        let mut snapshot = memstore.snapshot(&facts(3_000, BEGIN_US + 3_000)).unwrap();
        snapshot.step().unwrap();
        drop(snapshot);
        for lsn in 3_000..6_000 {
            apply(&memstore, &random_record(&mut random, lsn, BEGIN_US + lsn, 2_000));
        }
        let at = BEGIN_US + 6_000;
        let bytes = drain(&mut memstore.snapshot(&facts(6_000, at)).unwrap(), || {});
        assert_eq!(dump(&restored(&bytes).0, at), dump(&memstore, at));
    })
    .unwrap();
}

#[test]
fn files_keep_the_two_newest_and_survive_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    prism_io::rt::run(async move {
        let data = path.join("data");
        let directory =
            prism_io::disk::Directory::open(&data, prism_io::disk::DirectoryOptions::default())
                .unwrap();
        let snapshots = path.join("snapshots");
        let files = SnapshotFiles::open(&snapshots, 3).unwrap();
        let limits = MemstoreLimits::default();
        assert!(files.restore(limits).unwrap().is_none());

        let memstore = Rc::new(Memstore::default());
        let mut random = Random(7);
        let mut states = Vec::new();
        for round in 1..=4_u64 {
            for lsn in round * 1_000..round * 1_000 + 900 {
                apply(&memstore, &random_record(&mut random, lsn, BEGIN_US + lsn, 3_000));
            }
            let lsn = round * 1_000 + 900;
            let snapshot = memstore.snapshot(&facts(lsn, BEGIN_US + lsn)).unwrap();
            let needed_from = files.write(snapshot, &directory).await.unwrap();
            assert_eq!(needed_from, if round == 1 { 0 } else { lsn - 1_000 });
            states.push((lsn, dump(&memstore, BEGIN_US + lsn)));
        }
        let names = || {
            let mut names: Vec<String> = std::fs::read_dir(&snapshots)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["snapshot-0000000000000f3c.prism", "snapshot-0000000000001324.prism"]);

        let found = files.restore(limits).unwrap().unwrap();
        assert_eq!((found.facts.lsn, found.older_lsn, found.damaged.len()), (4_900, 3_900, 0));
        assert_eq!(dump(&found.memstore, BEGIN_US + 4_900), states[3].1);

        let newest = snapshots.join(&names()[1]);
        let mut bytes = std::fs::read(&newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&newest, bytes).unwrap();
        std::fs::write(snapshots.join("snapshot-00000000ffffffff.prism.new"), b"torn").unwrap();
        let files = SnapshotFiles::open(&snapshots, 3).unwrap();
        let found = files.restore(limits).unwrap().unwrap();
        assert_eq!((found.facts.lsn, found.older_lsn, found.damaged.len()), (3_900, 0, 1));
        assert_eq!(dump(&found.memstore, BEGIN_US + 3_900), states[2].1);
        assert_eq!(
            names(),
            ["snapshot-0000000000000f3c.prism", "snapshot-0000000000001324.prism.damaged"]
        );

        let stranger = SnapshotFiles::open(&snapshots, 4).unwrap();
        let Err(RestoreError::NoneGood(found)) = stranger.restore(limits) else {
            panic!("a snapshot of another shard was taken")
        };
        assert_eq!(found.len(), 1);
    })
    .unwrap();
}
