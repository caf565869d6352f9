//! What a call allocates after warm-up, counted: nothing for a Get, nor for a Set of a small value.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use prism_adapters::conformance::block_on;
use prism_adapters::memory::Memstore;
use prism_adapters::{Admission, Backend, Context, Limits, Reply, Revision, interfaces};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{DeleteRequest, ExistsRequest, GetRequest, SetRequest};
use prism_proto::view::protobuf::Duration;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is handed on to the system's allocator as it came; counting touches a plain
// thread-local integer that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Caller {
    memstore: Memstore,
    limits: Limits,
    reply: Reply,
    lsn: u64,
}

impl Caller {
    /// Carries a call out the way the core does and returns how many allocations that took.
    fn call(&mut self, method: Method, request: &[u8]) -> usize {
        self.reply.clear();
        self.lsn += 1;
        let context = Context {
            namespace: 1,
            namespace_name: "orders",
            partition: 0,
            now_us: 1_700_000_000_000_000 + self.lsn,
            revision: Revision::logged(self.lsn),
            limits: &self.limits,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        };
        let before = ALLOCATIONS.get();
        interfaces::validate(method, request, Memstore::SERVES, &self.limits).unwrap();
        self.memstore.admit(method, request).unwrap();
        block_on(self.memstore.unary(&context, method, request, &mut self.reply)).unwrap();
        ALLOCATIONS.get() - before
    }
}

#[test]
fn a_get_and_a_set_allocate_nothing() {
    const KEYS: usize = 3_000;
    let (memstore, limits) = (Memstore::default(), Limits::default());
    let mut caller = Caller { memstore, limits, reply: Reply::default(), lsn: 0 };
    let keys: Vec<String> = (0..KEYS).map(|number| format!("user:{number:011}")).collect();
    let set = |key: &str, bytes: usize, ttl_s: Option<i64>| {
        let mut request = Vec::new();
        let ttl = ttl_s.map(|seconds| Duration { seconds, nanos: 0 });
        let value = &vec![7; bytes];
        SetRequest { namespace: "orders", key, value, ttl, ..SetRequest::default() }
            .encode(&mut request);
        request
    };
    let get = |key: &str| {
        let mut request = Vec::new();
        GetRequest { namespace: "orders", key }.encode(&mut request);
        request
    };

    // Warm-up: the lane, its first chunk and its tables come into being, the reply gets its capacity.
    for key in &keys {
        caller.call(Method::KEYVALUE_SET, &set(key, 128, Some(3_600)));
        caller.call(Method::KEYVALUE_GET, &get(key));
    }
    for key in &keys {
        let mut request = Vec::new();
        DeleteRequest { namespace: "orders", key }.encode(&mut request);
        assert_eq!(caller.call(Method::KEYVALUE_DELETE, &request), 0, "Delete");
    }

    for key in &keys {
        let request = set(key, 128, None);
        assert_eq!(caller.call(Method::KEYVALUE_SET, &request), 0, "Set of a new key");
        assert_eq!(caller.call(Method::KEYVALUE_SET, &request), 0, "Set in the same place");
        let with_ttl = set(key, 100, Some(60));
        assert_eq!(caller.call(Method::KEYVALUE_SET, &with_ttl), 0, "a shorter one, with ttl");
        assert_eq!(caller.call(Method::KEYVALUE_GET, &get(key)), 0, "Get");
        assert!(caller.reply.head.len() > 100 && caller.reply.tail.is_empty());
        let mut request = Vec::new();
        ExistsRequest { namespace: "orders", key }.encode(&mut request);
        assert_eq!(caller.call(Method::KEYVALUE_EXISTS, &request), 0, "Exists");
    }
    assert_eq!(caller.call(Method::KEYVALUE_GET, &get("missing")), 0, "Get of nothing");
}

#[test]
fn a_large_value_is_replied_by_reference() {
    let (memstore, limits) = (Memstore::default(), Limits::default());
    let mut caller = Caller { memstore, limits, reply: Reply::default(), lsn: 0 };
    let value = vec![9; 1 << 20];
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key: "large", value: &value, ..SetRequest::default() }
        .encode(&mut request);
    caller.call(Method::KEYVALUE_SET, &request);
    request.clear();
    GetRequest { namespace: "orders", key: "large" }.encode(&mut request);
    caller.call(Method::KEYVALUE_GET, &request);
    assert_eq!(caller.call(Method::KEYVALUE_GET, &request), 0, "not copied");
    assert!(caller.reply.head.len() < 100);
    assert_eq!(caller.reply.tail, value);
}
