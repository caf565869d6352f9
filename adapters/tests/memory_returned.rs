//! What memstore takes and gives back by the kernel's account; alone in its process, so that nobody else's memory is counted.

use prism_adapters::conformance::block_on;
use prism_adapters::memory::Memstore;
use prism_adapters::{Backend, Context, Limits, Reply, Revision};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{DeleteRequest, SetRequest};

const KEYS: u64 = 60_000;
const MEBIBYTE: usize = 1 << 20;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

fn call(memstore: &Memstore, lsn: u64, method: Method, request: &[u8], reply: &mut Reply) {
    reply.clear();
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: 1_700_000_000_000_000,
        revision: Revision::logged(lsn),
        limits: &Limits::default(),
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    block_on(memstore.unary(&context, method, request, reply)).unwrap();
}

#[test]
fn the_account_is_true_and_what_is_deleted_goes_back_to_the_kernel() {
    let (memstore, mut reply, mut request) = (Memstore::default(), Reply::default(), Vec::new());
    let begin = resident_bytes();
    for number in 0..KEYS {
        let (key, value) = (&*format!("user:{number:011}"), &[number as u8; 1024][..]);
        request.clear();
        SetRequest { namespace: "orders", key, value, ..SetRequest::default() }
            .encode(&mut request);
        call(&memstore, number, Method::KEYVALUE_SET, &request, &mut reply);
    }
    let (used, taken) = (memstore.used_bytes(), resident_bytes() - begin);
    assert!(used > 60 * MEBIBYTE);
    assert!(taken.abs_diff(used) < used / 8, "{used} by the account, {taken} by the kernel's");
    for number in 0..KEYS {
        let key = &*format!("user:{number:011}");
        request.clear();
        DeleteRequest { namespace: "orders", key }.encode(&mut request);
        call(&memstore, KEYS + number, Method::KEYVALUE_DELETE, &request, &mut reply);
    }
    // The slots of the slab stay, 64 bytes for each key, and the tables of the index.
    let left = resident_bytes().saturating_sub(begin);
    assert!(left < 12 * MEBIBYTE, "{left} of {taken} bytes are still there");
}
