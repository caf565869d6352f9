//! Whether the machine did anything else while something was measured.
//!
//! A build in the next window changes a figure more than the code does. What is not quiet is measured again.

use std::io::{Error, Result};

use prism_loadtest::process::cpu_ns;

/// Share of all cores that may go to others while a round counts.
pub const OTHERS_MAX: f64 = 0.04;

/// Nanoseconds of one tick of `/proc/stat`.
const TICK_NS: u64 = 10_000_000;

/// CPU time of the machine, of some processes, and of the children that have ended.
pub struct Watch {
    servers: Vec<u32>,
    busy_ns: u64,
    idle_ns: u64,
    known_ns: u64,
}

impl Watch {
    /// Begins to watch; what `servers` and the children of this process use is not "others".
    pub fn begin(servers: &[u32]) -> Result<Self> {
        let (busy_ns, idle_ns) = machine()?;
        Ok(Self { servers: servers.to_vec(), busy_ns, idle_ns, known_ns: known(servers)? })
    }

    /// The share of all cores that went to others since the beginning; time stolen from the virtual machine counts as well.
    pub fn others(&self) -> Result<f64> {
        let (busy_ns, idle_ns) = machine()?;
        let known_ns = known(&self.servers)? - self.known_ns;
        let (busy_ns, idle_ns) = (busy_ns - self.busy_ns, idle_ns - self.idle_ns);
        let total_ns = (busy_ns + idle_ns).max(1);
        Ok(busy_ns.saturating_sub(known_ns) as f64 / total_ns as f64)
    }
}

/// Busy and idle time of all cores. Interrupts are left out of both: they work for whoever is measured.
fn machine() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let [user, nice, system, idle, waiting, _, _, stolen, ..] = ticks[..] else {
        return Err(Error::other("unreadable /proc/stat"));
    };
    Ok(((user + nice + system + stolen) * TICK_NS, (idle + waiting) * TICK_NS))
}

/// What the servers, this process and its ended children have used.
fn known(servers: &[u32]) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything; what follows are fields 3 and on of proc(5).
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
    if ticks.len() != 4 {
        return Err(Error::other("unreadable /proc/self/stat"));
    }
    let servers = servers.iter().map(|&id| cpu_ns(id)).sum::<Result<u64>>()?;
    Ok(ticks.iter().sum::<u64>() * TICK_NS + servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_known() {
        let before = known(&[]).unwrap();
        while known(&[]).unwrap() < before + 5 * TICK_NS {
            std::hint::black_box(before);
        }
        let others = Watch::begin(&[]).unwrap().others().unwrap();
        assert!((0.0..=1.0).contains(&others), "{others}");
    }
}
