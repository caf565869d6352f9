//! How much memstore takes in, what it gives back, and that nothing holds up the shard.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

use prism_adapters::conformance::{Collect, block_on};
use prism_adapters::memory::{Memstore, MemstoreLimits};
use prism_adapters::{Admission, Backend, Context, Error, Kind, Limits, Reply, Revision};
use prism_io::calls::{CallPool, StartCall};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    CountRequest, CountResponse, DeleteRequest, GetRequest, GetResponse, ScanRequest, ScanResponse,
    SetRequest, TransactRequest,
};
use prism_proto::prism::r#type::v1::{Operation, Put, operation::Action};
use prost::Message;

const BEGIN_US: u64 = 1_700_000_000_000_000;

struct Shard {
    memstore: Memstore,
    limits: Limits,
    lsn: u64,
    now_us: u64,
}

impl Shard {
    fn new(limits: MemstoreLimits) -> Self {
        let memstore = Memstore::new(limits);
        Shard { memstore, limits: Limits::default(), lsn: 0, now_us: BEGIN_US }
    }

    fn context(&self) -> Context<'_> {
        Context {
            namespace: 1,
            namespace_name: "orders",
            partition: 0,
            now_us: self.now_us,
            revision: Revision::logged(self.lsn),
            limits: &self.limits,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        }
    }

    fn call(&mut self, method: Method, request: &impl Message) -> Result<Reply, Error> {
        let request = request.encode_to_vec();
        self.memstore.admit(method, &request)?;
        self.lsn += 1;
        let mut reply = Reply::default();
        block_on(self.memstore.unary(&self.context(), method, &request, &mut reply))?;
        Ok(reply)
    }

    fn set(&mut self, key: &str, bytes: usize, ttl_s: i64) -> Result<(), Error> {
        let ttl = (ttl_s > 0).then_some(prost_types::Duration { seconds: ttl_s, nanos: 0 });
        let (key, value) = (key.to_owned(), vec![1; bytes].into());
        let request = SetRequest { key, value, ttl, ..SetRequest::default() };
        self.call(Method::KEYVALUE_SET, &request).map(drop)
    }

    fn delete(&mut self, key: &str) -> Result<(), Error> {
        let request = DeleteRequest { key: key.to_owned(), ..DeleteRequest::default() };
        self.call(Method::KEYVALUE_DELETE, &request).map(drop)
    }
}

#[test]
fn a_full_store_refuses_what_takes_space_and_nothing_else() {
    let limits = MemstoreLimits { bytes_max: 1 << 20, ..MemstoreLimits::default() };
    let mut shard = Shard::new(limits);
    let mut stored = 0;
    let error = loop {
        match shard.set(&format!("key {stored}"), 1_000, 0) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!((800..1_050).contains(&stored), "{stored} entries of 1,000 bytes in 1 MiB");
    assert!(shard.memstore.used_bytes() <= 1 << 20);
    assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "MEMORY_FULL"));
    assert!(error.retry_delay().is_some());

    let put = |key: &str| Operation {
        key: key.to_owned(),
        action: Some(Action::Put(Put { value: vec![1; 900].into(), ..Put::default() })),
    };
    let transact = |operations| TransactRequest { operations, ..TransactRequest::default() };
    let refused = shard.call(Method::KEYVALUE_TRANSACT, &transact(vec![put("new")]));
    assert_eq!(refused.unwrap_err().reason(), "MEMORY_FULL");
    let delete = Operation { key: "key 0".to_owned(), action: Some(Action::Delete(())) };
    shard.call(Method::KEYVALUE_TRANSACT, &transact(vec![delete])).unwrap();
    let get = GetRequest { key: "key 1".to_owned(), ..GetRequest::default() };
    let reply = shard.call(Method::KEYVALUE_GET, &get).unwrap();
    assert!(GetResponse::decode(reply.to_bytes()).unwrap().found, "reads go on");
    for number in 1..10 {
        shard.delete(&format!("key {number}")).unwrap();
    }
    shard.set("new", 1_000, 0).expect("there is room again");
}

#[test]
fn a_namespace_is_held_to_its_own_share() {
    let mut shard = Shard::new(MemstoreLimits::default());
    for number in 0..100 {
        shard.set(&format!("key {number}"), 1_000, 60 * (number % 2)).unwrap();
    }
    let used_bytes = shard.memstore.namespace_used_bytes(1);
    assert_eq!(
        (used_bytes, shard.memstore.namespace_used_bytes(2)),
        (shard.memstore.used_bytes(), 0)
    );

    let admit = |namespace, bytes_max: usize, method| {
        shard.memstore.admit_in(namespace, bytes_max as u64, method, b"")
    };
    admit(1, 2 * used_bytes, Method::KEYVALUE_SET).expect("there is room");
    let error = admit(1, used_bytes, Method::KEYVALUE_SET).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "MEMORY_FULL"));
    assert!(error.message().contains("namespace orders is used up"), "{}", error.message());
    admit(1, used_bytes, Method::KEYVALUE_DELETE).unwrap();
    admit(1, used_bytes, Method::KEYVALUE_GET).unwrap();
    admit(2, used_bytes, Method::KEYVALUE_SET).expect("the share of another namespace is its own");
    assert!(admit(2, 0, Method::KEYVALUE_SET).is_err());

    let mut reply = Reply::default();
    let other = Context { namespace: 2, partition: 7, ..shard.context() };
    let set = SetRequest { key: "key".to_owned(), ..SetRequest::default() }.encode_to_vec();
    block_on(shard.memstore.unary(&other, Method::KEYVALUE_SET, &set, &mut reply)).unwrap();
    assert_eq!(shard.memstore.namespace_used_bytes(1), used_bytes);
    shard.now_us += 3_600_000_000;
    assert_eq!(shard.memstore.expire(shard.now_us, 1_000), 50);
    for number in 0..100 {
        shard.delete(&format!("key {number}")).unwrap();
    }
    for namespace in 3..200 {
        let other = Context { namespace, ..shard.context() };
        block_on(shard.memstore.unary(&other, Method::KEYVALUE_SET, &set, &mut reply)).unwrap();
    }
    let (one, two) =
        (shard.memstore.namespace_used_bytes(1), shard.memstore.namespace_used_bytes(2));
    assert!(one < 1_000 && two < 1_000, "{one} and {two} bytes");
    let all: usize = (1..200).map(|number| shard.memstore.namespace_used_bytes(number)).sum();
    assert_eq!(all, shard.memstore.used_bytes());
}

#[test]
fn what_is_longer_than_a_lowered_limit_is_scanned_on_a_page_of_its_own() {
    prism_io::rt::run(async {
        let mut shard = Shard::new(MemstoreLimits::default());
        for number in 0..20 {
            let bytes = if number % 5 == 0 { 10_000 } else { 10 };
            shard.set(&format!("key {number}"), bytes, 0).unwrap();
        }
        for max_message_size in [0, 63, 64, 200, 5_000] {
            shard.limits = Limits { max_message_size };
            let context = shard.context();
            for method in [Method::KEYVALUE_SCAN, Method::KEYVALUE_SCAN_KEYS] {
                let mut sink =
                    Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: BEGIN_US };
                shard.memstore.stream(&context, method, &[], &mut sink).await.unwrap();
                if method == Method::KEYVALUE_SCAN_KEYS {
                    continue;
                }
                let mut entries = 0;
                for page in sink.messages {
                    let bytes = page.len();
                    let page = ScanResponse::decode(page).unwrap();
                    assert!(bytes <= max_message_size || page.entries.len() == 1, "{bytes} bytes");
                    entries += page.entries.len();
                }
                assert_eq!(entries, 20);
            }
        }
    })
    .unwrap();
}

#[test]
fn a_scan_lets_others_on_between_its_pages() {
    prism_io::rt::run(async {
        let mut shard = Shard::new(MemstoreLimits::default());
        for number in 0..100 {
            shard.set(&format!("key {number}"), 8, 0).unwrap();
        }
        let turns = Rc::new(Cell::new(0));
        let others = turns.clone();
        prism_io::rt::spawn(async move {
            loop {
                others.set(others.get() + 1);
                prism_io::rt::yield_now().await;
            }
        });
        let request = ScanRequest { page_size: 1, ..ScanRequest::default() }.encode_to_vec();
        let context = shard.context();
        let mut sink = Collect { messages: Vec::new(), messages_max: 100, now_us: BEGIN_US };
        let ended = shard.memstore.stream(&context, Method::KEYVALUE_SCAN, &request, &mut sink);
        ended.await.unwrap_err();
        assert!(turns.get() >= 40, "{} turns during 100 pages", turns.get());
    })
    .unwrap();
}

#[test]
fn a_count_ends_in_a_pooled_slot() {
    prism_io::rt::run(async {
        let mut shard = Shard::new(MemstoreLimits::default());
        for number in 0..10_000 {
            shard.set(&format!("key {number}"), 8, if number == 0 { 3_600 } else { 0 }).unwrap();
        }
        let (shard, counts) = (Rc::new(shard), Rc::new(RefCell::new(Vec::new())));
        let seen = counts.clone();
        let pool = CallPool::new(4, move |(): ()| {
            let (shard, seen) = (shard.clone(), seen.clone());
            async move {
                let (context, mut reply) = (shard.context(), Reply::default());
                let method = Method::KEYVALUE_COUNT;
                shard.memstore.unary(&context, method, &[], &mut reply).await.unwrap();
                seen.borrow_mut().push(CountResponse::decode(reply.to_bytes()).unwrap().count);
            }
        });
        for _ in 0..4 {
            pool.start(()).unwrap();
        }
        assert_eq!(pool.in_flight(), 4, "all give way");
        while pool.in_flight() > 0 {
            pool.poll_woken();
            prism_io::rt::yield_now().await;
        }
        assert_eq!(counts.take(), [10_000; 4]);
    })
    .unwrap();
}

#[test]
fn everything_taken_is_given_back() {
    let mut shard = Shard::new(MemstoreLimits::default());
    shard.set("first", 10, 0).unwrap();
    shard.delete("first").unwrap();
    let empty = shard.memstore.used_bytes();
    for round in 0..3 {
        for number in 0..5_000 {
            let bytes = [10, 100, 5_000, 0][(number + round) % 4];
            let ttl_s = [0, 5, 50][(number / 4) % 3];
            shard.set(&format!("key {}", number % 3_000), bytes, ttl_s).unwrap();
        }
        assert!(shard.memstore.used_bytes() > empty + 3_000 * 1_000);
        for number in 0..3_000 {
            shard.delete(&format!("key {number}")).unwrap();
        }
        assert_eq!(shard.memstore.used_bytes(), empty);
        assert_eq!(shard.memstore.entries(), 0);
    }
}

#[test]
fn what_has_expired_is_reaped_in_bounded_steps() {
    let mut shard = Shard::new(MemstoreLimits::default());
    for number in 0..1_000 {
        shard.set(&format!("key {number}"), 100, 1 + number % 100).unwrap();
    }
    assert_eq!(shard.memstore.expire(shard.now_us, 10), 0, "nothing has expired yet");
    assert_eq!(shard.memstore.entries(), 1_000);
    shard.now_us += 50_001_000;
    assert_eq!(shard.memstore.expire(shard.now_us, 10), 10);
    assert_eq!(shard.memstore.entries(), 990);
    let count: CountResponse = {
        let reply = shard.call(Method::KEYVALUE_COUNT, &CountRequest::default()).unwrap();
        CountResponse::decode(reply.to_bytes()).unwrap()
    };
    assert_eq!((count.count, count.exact), (500, true), "reaped or not, they do not count");
    while shard.memstore.expire(shard.now_us, 100) > 0 {}
    assert_eq!(shard.memstore.entries(), 500);
    shard.now_us += 60_000_000;
    while shard.memstore.expire(shard.now_us, 100) > 0 {}
    assert_eq!(shard.memstore.entries(), 0);
}

#[test]
fn walks_give_way_and_calls_on_one_key_do_not_wait() {
    prism_io::rt::run(async {
        let mut shard = Shard::new(MemstoreLimits::default());
        for number in 0..50_000 {
            shard.set(&format!("key {number}"), 8, if number == 0 { 3_600 } else { 0 }).unwrap();
        }
        let polls = |future: &mut dyn FnMut(&mut TaskContext<'_>) -> bool| {
            let mut context = TaskContext::from_waker(Waker::noop());
            (1..).find(|_| future(&mut context)).expect("it ends")
        };

        let mut reply = Reply::default();
        let context = shard.context();
        let set = SetRequest { key: "key".to_owned(), ..SetRequest::default() }.encode_to_vec();
        let mut future =
            pin!(shard.memstore.unary(&context, Method::KEYVALUE_SET, &set, &mut reply));
        assert_eq!(polls(&mut |task| future.as_mut().poll(task).is_ready()), 1);

        let mut reply = Reply::default();
        let mut future =
            pin!(shard.memstore.unary(&context, Method::KEYVALUE_COUNT, &[], &mut reply));
        let count = polls(&mut |task| future.as_mut().poll(task).is_ready());
        assert!((40..60).contains(&count), "Count was polled {count} times");

        let glob =
            prism_proto::prism::keyvalue::v1::scan_request::Selection::Glob("nothing*".into());
        let request =
            ScanRequest { selection: Some(glob), ..ScanRequest::default() }.encode_to_vec();
        let mut sink =
            Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: context.now_us };
        let mut future =
            pin!(shard.memstore.stream(&context, Method::KEYVALUE_SCAN, &request, &mut sink));
        let scan = polls(&mut |task| matches!(future.as_mut().poll(task), Poll::Ready(Ok(()))));
        assert!((40..60).contains(&scan), "Scan was polled {scan} times");
    })
    .unwrap();
}
