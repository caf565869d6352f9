//! What a call to Redis allocates after warm-up, counted on the shard's whole thread: the call itself, and the connection's
//! reads and writes.

#![allow(unsafe_code)]

mod servers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend, Context, Limits, Reply};
use prism_io::calls::{CallPool, StartCall, pump};
use prism_io::clock::wall_us;
use prism_io::rt::{self, Signal};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};

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

/// A database of its own.
const DATABASE: u32 = 5;

/// What a test's calls share.
struct Shared {
    redis: Redis,
    limits: Limits,
    replies: RefCell<Vec<Reply>>,
    ended: Cell<usize>,
    turn: Signal,
}

async fn call(shared: Rc<Shared>, method: Method, request: Rc<[u8]>) {
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &shared.limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    let mut reply = shared.replies.borrow_mut().pop().unwrap_or_default();
    let backend = &shared.redis;
    backend.unary_checked(&context, method, &request, Redis::SERVES, &mut reply).await.unwrap();
    reply.clear();
    shared.replies.borrow_mut().push(reply);
    shared.ended.set(shared.ended.get() + 1);
    shared.turn.set();
}

#[test]
fn a_call_allocates_next_to_nothing() {
    let address = servers::address("redis");
    rt::run(async move {
        let config = RedisConfig::at(address.ip().to_string(), address.port());
        let shared = Rc::new(Shared {
            redis: Redis::start(RedisConfig { database: DATABASE, ..config }),
            limits: Limits::default(),
            replies: RefCell::default(),
            ended: Cell::new(0),
            turn: Signal::default(),
        });
        let inner = shared.clone();
        // The way in which the core holds its calls.
        let pool = Rc::new(CallPool::new(256, move |(method, request)| {
            call(inner.clone(), method, request)
        }));
        rt::spawn(pump(pool.clone() as Rc<dyn StartCall<(Method, Rc<[u8]>)>>));
        let (mut set, mut get) = (Vec::new(), Vec::new());
        let value = &[7; 100];
        SetRequest { namespace: "orders", key: "key", value, ..SetRequest::default() }
            .encode(&mut set);
        GetRequest { namespace: "orders", key: "key" }.encode(&mut get);
        let calls: [(&str, Method, Rc<[u8]>); 2] =
            [("Set", Method::KEYVALUE_SET, set.into()), ("Get", Method::KEYVALUE_GET, get.into())];
        for (name, method, request) in calls {
            for at_a_time in [1, 16, 128] {
                let round = async |count: usize| {
                    let before = ALLOCATIONS.get();
                    for _ in 0..count / at_a_time {
                        let begun = shared.ended.get();
                        for _ in 0..at_a_time {
                            assert!(pool.start((method, request.clone())).is_ok());
                        }
                        while shared.ended.get() < begun + at_a_time {
                            shared.turn.wait().await;
                        }
                    }
                    (ALLOCATIONS.get() - before) as f64 / count as f64
                };
                round(2_048).await;
                let facts = shared.redis.facts();
                let allocations = round(8_192).await;
                let (writes, reads) = {
                    let now = shared.redis.facts();
                    (now.writes - facts.writes, now.reads - facts.reads)
                };
                println!(
                    "{name}, {at_a_time} at a time: {allocations:.3} allocations per call, \
                     {:.1} calls per write, {:.1} per read",
                    8_192.0 / writes as f64,
                    8_192.0 / reads as f64
                );
                // One at a time the loop itself allocates for what it gives way with.
                let bound = if at_a_time == 1 { 2.0 } else { 0.5 };
                assert!(allocations <= bound, "{name}: {allocations}");
                assert!(8_192.0 / writes as f64 >= at_a_time as f64 * 0.9, "a turn is one write");
            }
        }
    })
    .unwrap();
}
