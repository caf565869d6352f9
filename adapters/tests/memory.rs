//! How much memstore takes in, what it gives back, and that nothing holds up the shard.

use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};

use prism_adapters::conformance::{Collect, block_on};
use prism_adapters::memory::{Memstore, MemstoreLimits};
use prism_adapters::{Admission, Backend, Context, Error, Kind, Limits, Reply, Revision};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    CountRequest, CountResponse, DeleteRequest, GetRequest, GetResponse, ScanRequest, SetRequest,
    TransactRequest,
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
    let mut future = pin!(shard.memstore.unary(&context, Method::KEYVALUE_SET, &set, &mut reply));
    assert_eq!(polls(&mut |task| future.as_mut().poll(task).is_ready()), 1);

    let mut reply = Reply::default();
    let mut future = pin!(shard.memstore.unary(&context, Method::KEYVALUE_COUNT, &[], &mut reply));
    let count = polls(&mut |task| future.as_mut().poll(task).is_ready());
    assert!((40..60).contains(&count), "Count was polled {count} times");

    let glob = prism_proto::prism::keyvalue::v1::scan_request::Selection::Glob("nothing*".into());
    let request = ScanRequest { selection: Some(glob), ..ScanRequest::default() }.encode_to_vec();
    let mut sink =
        Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: context.now_us };
    let mut future =
        pin!(shard.memstore.stream(&context, Method::KEYVALUE_SCAN, &request, &mut sink));
    let scan = polls(&mut |task| matches!(future.as_mut().poll(task), Poll::Ready(Ok(()))));
    assert!((40..60).contains(&scan), "Scan was polled {scan} times");
}
