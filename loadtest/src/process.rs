//! What a process costs, read from `/proc`: CPU time and resident memory.

use std::io::{Error, Result};

/// Nanoseconds of CPU time that the live threads of process `id` have used, kernel time included.
///
/// From `/proc/<id>/task/*/schedstat`, which counts nanoseconds where `/proc/<id>/stat` counts ticks of 10 ms.
pub fn cpu_ns(id: u32) -> Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let used = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        total += used.ok_or_else(|| Error::other("unreadable schedstat"))?;
    }
    Ok(total)
}

/// Bytes of memory resident in process `id` (`VmRSS`).
pub fn resident_bytes(id: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kilobytes| kilobytes.trim().parse::<u64>().ok())
        .map(|kilobytes| kilobytes * 1024)
        .ok_or_else(|| Error::other("no VmRSS in /proc/<id>/status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let id = std::process::id();
        let before = cpu_ns(id).unwrap();
        while cpu_ns(id).unwrap() == before {
            std::hint::black_box(before);
        }
        assert!(resident_bytes(id).unwrap() > 100 << 10);
    }
}
