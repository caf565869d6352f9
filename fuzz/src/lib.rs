//! What the targets measure besides panics: how much memory an input makes us hold, and how its cost grows with its length.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let live = LIVE_BYTES.fetch_add(bytes, Relaxed) + bytes;
    PEAK_BYTES.fetch_max(live, Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it came; only numbers are kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        grow(bytes);
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs something that may hold at most `bytes_max` more than is held now, at any moment, and nothing more in the end.
///
/// # Panics
/// When it holds more.
pub fn bounded(bytes_max: usize, run: impl FnOnce()) {
    let before = LIVE_BYTES.load(Relaxed);
    PEAK_BYTES.store(before, Relaxed);
    run();
    let held = PEAK_BYTES.load(Relaxed).saturating_sub(before);
    assert!(held <= bytes_max, "{held} bytes were held at once, {bytes_max} are allowed");
    let kept = LIVE_BYTES.load(Relaxed).saturating_sub(before);
    assert!(kept <= KEPT_BYTES, "{kept} bytes were not given back");
}

/// What the standard library may keep for the thread, bytes.
const KEPT_BYTES: usize = 4096;

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "there is a clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How often longer the long run is, and how much more than that many times it may cost: a square law costs `TIMES` times more.
pub const TIMES: usize = 8;
const MARGIN: u64 = 4;
/// Below this a run costs too little to be judged, nanoseconds.
const JUDGED_NS: u64 = 2_000_000;

/// Checks that `run(TIMES)` costs about `TIMES` as much as `run(1)`. Each is measured anew when it looks wrong, and its best counts.
///
/// # Panics
/// When it costs far more.
pub fn linear(mut run: impl FnMut(usize)) {
    let mut cost = |times: usize| {
        let before = cpu_ns();
        run(times);
        cpu_ns() - before
    };
    let (mut short_ns, mut long_ns) = (cost(1), cost(TIMES));
    let allowed_ns = |short_ns: u64| (TIMES as u64 * MARGIN * short_ns).max(JUDGED_NS);
    for _ in 0..5 {
        if long_ns <= allowed_ns(short_ns) {
            return;
        }
        // Not the best of the short ones: whatever disturbs would let it look worse than it is.
        short_ns = short_ns.max(cost(1));
        long_ns = long_ns.min(cost(TIMES));
    }
    panic!("{short_ns} ns for a length, {long_ns} ns for {TIMES} times as much");
}
