//! Where threads may run that are not pinned, although their makers are.

#![allow(unsafe_code)]

use std::sync::OnceLock;

/// The cores that the process might run on before its first thread was pinned.
static ALLOWED: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Remembers where the calling thread may run; the first call counts. For threads that are about to be pinned.
pub(crate) fn remember() {
    // SAFETY: a set of zeroes is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than the size that it is told, into a set that lives here.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } == 0 {
        ALLOWED.get_or_init(|| set);
    }
}

/// Lets the calling thread run again on every core that was remembered: it began where its maker is pinned.
pub(crate) fn unpin() {
    if let Some(allowed) = ALLOWED.get() {
        // SAFETY: the set is valid and as large as is said. A refusal leaves the thread where it is, which costs speed only.
        unsafe { libc::sched_setaffinity(0, size_of_val(allowed), allowed) };
    }
}
