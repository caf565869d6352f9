//! The checks that read text of the kernel: pure functions from what was read to a finding.

use std::io;
use std::net::SocketAddr;

use prism_io::rt::Driver;

use super::{Check, FILES_BESIDE_CONNECTIONS};
use crate::config::units::{round_bytes, show_bytes};
use crate::config::{Config, Machine, show_cores};

/// Major and minor version of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KernelVersion(u32, u32);

impl KernelVersion {
    /// Reads `6.18.44-rc1`.
    pub(super) fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// What the loops ask of the ring: single-issuer rings and cooperative completion.
const KERNEL_WANTED: KernelVersion = KernelVersion(6, 1);
/// The kernel charges rings to memory, not to the limit on locked memory, from here on.
const KERNEL_WITHOUT_MEMLOCK: KernelVersion = KernelVersion(5, 12);

pub(super) fn kernel(release: &str, version: Option<KernelVersion>) -> Check {
    let found = format!("Linux {}", release.trim());
    match version {
        Some(version) if version >= KERNEL_WANTED => Check::ok("kernel", found),
        Some(_) => Check::warn(
            "kernel",
            found,
            "Linux 6.1 or newer lets every core work with fewer system calls; upgrade when you can",
        ),
        None => Check::warn("kernel", "unknown", "Prism runs on Linux with /proc mounted"),
    }
}

pub(super) fn io_uring(driver: Driver, disabled: &str) -> Check {
    if driver == Driver::IoUring {
        return Check::ok("io_uring", "available");
    }
    let (found, remedy) = match disabled.trim() {
        "2" => (
            "disabled for everybody; epoll is used instead, calls cost more",
            "sysctl kernel.io_uring_disabled=0",
        ),
        "1" => (
            "allowed only to privileged processes; epoll is used instead, calls cost more",
            "sysctl kernel.io_uring_disabled=0, or add this user to kernel.io_uring_group",
        ),
        _ => (
            "not permitted; epoll is used instead, calls cost more",
            "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
        ),
    };
    Check::warn("io_uring", found, remedy)
}

/// The soft and the hard limit of a line of `/proc/self/limits`; `u64::MAX` for `unlimited`.
fn limit(limits: &str, name: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut numbers = line.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((numbers.next()??, numbers.next()??))
}

pub(super) fn open_files(limits: &str, connections_max: u32) -> Check {
    let wanted = u64::from(connections_max) + FILES_BESIDE_CONNECTIONS;
    let remedy = format!(
        "ulimit -n {wanted} (systemd: LimitNOFILE={wanted}), or lower limits.connections_max ({connections_max})"
    );
    // `prism serve` raises the soft limit by itself.
    match limit(limits, "Max open files").map(|(_, hard)| hard) {
        Some(limit) if limit >= wanted => {
            let shown = if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
            Check::ok("open files", shown)
        }
        Some(limit) => {
            let connections = limit.saturating_sub(FILES_BESIDE_CONNECTIONS);
            let found = format!("{limit}, enough for about {connections} connections");
            Check::warn("open files", found, remedy)
        }
        None => Check::warn("open files", "unknown", remedy),
    }
}

pub(super) fn locked_memory(limits: &str, kernel: Option<KernelVersion>) -> Check {
    /// Rings of older kernels are locked memory.
    const LOCKED_BYTES_WANTED: u64 = 8 << 20;
    let limit = limit(limits, "Max locked memory").map_or(0, |(soft, _)| soft);
    let shown = if limit == u64::MAX { "unlimited".into() } else { show_bytes(limit) };
    if kernel.is_some_and(|kernel| kernel >= KERNEL_WITHOUT_MEMLOCK) {
        return Check::ok("locked memory", format!("{shown}; this kernel needs none"));
    }
    match limit >= LOCKED_BYTES_WANTED {
        true => Check::ok("locked memory", shown),
        false => Check::warn(
            "locked memory",
            format!("{shown}, less than the rings take on this kernel"),
            "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        ),
    }
}

pub(super) fn cores(config: &Config, machine: &Machine) -> Check {
    let shards = config.shards();
    let found = format!("{} ({})", machine.cores.len(), show_cores(&machine.cores));
    match config.warnings.iter().any(|warning| warning.contains("share a core")) {
        false => Check::ok("cores", found),
        true => Check::warn(
            "cores",
            format!("{found} for {shards} shards"),
            format!("set shards to {} at most", machine.cores.len()),
        ),
    }
}

pub(super) fn memory(config: &Config, machine: &Machine, meminfo: &str) -> Check {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(machine.memory_bytes, |kib| (kib << 10).min(machine.memory_bytes));
    let total = round_bytes(machine.memory_bytes);
    let found = format!("{} of {total} available", round_bytes(available));
    let wanted = config.memory.bytes_max;
    if wanted > available {
        let remedy =
            format!("lower memory.bytes_max ({}), or free some memory", round_bytes(wanted));
        return Check::warn("memory", found, remedy);
    }
    Check::ok("memory", found)
}

pub(super) fn backlog(somaxconn: &str) -> Check {
    const BACKLOG_WANTED: u32 = 1_024;
    match somaxconn.trim().parse::<u32>() {
        Ok(backlog) if backlog >= BACKLOG_WANTED => {
            Check::ok("accept queue", format!("{backlog} connections"))
        }
        Ok(backlog) => Check::warn(
            "accept queue",
            format!("{backlog} connections; bursts of new ones will be dropped"),
            format!("sysctl net.core.somaxconn={}", 4 * BACKLOG_WANTED),
        ),
        Err(_) => Check::ok("accept queue", "unknown"),
    }
}

pub(super) fn address(name: &'static str, address: SocketAddr, bound: io::Result<()>) -> Check {
    match bound {
        Ok(()) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::fail(
            name,
            format!("{address} is in use"),
            format!(
                "stop what uses it (ss -ltnp 'sport = :{}'), or choose another with --{name}",
                address.port()
            ),
        ),
        Err(error) => Check::fail(
            name,
            format!("{address}: {error}"),
            format!("choose an address of this machine and a port of 1024 or more with --{name}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::{Flags, read};

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 4096                 files
Max locked memory         65536                unlimited            bytes
";

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, verdict) in [
            ("6.18.44-fc\n", Verdict::Ok),
            ("6.1.0-debian", Verdict::Ok),
            ("5.15.0-91-generic", Verdict::Warn),
            ("10.0", Verdict::Ok),
            ("", Verdict::Warn),
        ] {
            assert_eq!(
                kernel(release, KernelVersion::parse(release)).verdict,
                verdict,
                "{release}"
            );
        }
    }

    #[test]
    fn limits_are_held_against_what_is_wanted() {
        let check = open_files(LIMITS, 50_000);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.remedy.starts_with("ulimit -n 51024 "), "{}", check.remedy);
        let high = LIMITS.replace("4096     ", "unlimited");
        assert_eq!(open_files(&high, 50_000).verdict, Verdict::Ok);
        assert_eq!(open_files("", 1).verdict, Verdict::Warn);
        assert_eq!(locked_memory(LIMITS, Some(KernelVersion(6, 1))).verdict, Verdict::Ok);
        assert_eq!(locked_memory(LIMITS, Some(KernelVersion(5, 4))).verdict, Verdict::Warn);
    }

    #[test]
    fn a_missing_ring_is_told_with_its_cause() {
        assert_eq!(io_uring(Driver::IoUring, "0").verdict, Verdict::Ok);
        assert!(io_uring(Driver::Epoll, "2\n").remedy.contains("io_uring_disabled=0"));
        assert!(io_uring(Driver::Epoll, "1\n").remedy.contains("io_uring_group"));
        assert!(io_uring(Driver::Epoll, "0\n").remedy.contains("seccomp"));
    }

    #[test]
    fn an_address_that_is_taken_fails_with_the_command_that_finds_its_owner() {
        let at: SocketAddr = "127.0.0.1:7400".parse().unwrap();
        let check = address("listen", at, Err(io::ErrorKind::AddrInUse.into()));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.remedy.contains("sport = :7400") && check.remedy.contains("--listen"));
        assert_eq!(address("listen", at, Ok(())).verdict, Verdict::Ok);
    }

    #[test]
    fn memory_and_cores_are_compared_with_the_configuration() {
        let machine = Machine { cores: vec![0, 1], memory_bytes: 4 << 30 };
        let config = |text| {
            let file = (std::path::Path::new("prism.yaml"), text);
            read(Some(file), &Flags::default(), &machine).unwrap()
        };
        let plenty = "MemAvailable:    3145728 kB\n";
        assert_eq!(memory(&config(""), &machine, plenty).verdict, Verdict::Ok);
        let scarce = "MemAvailable:    1048576 kB\n";
        let check = memory(&config(""), &machine, scarce);
        assert_eq!(check.verdict, Verdict::Warn);
        assert_eq!(check.found, "1GiB of 4GiB available");
        assert_eq!(cores(&config(""), &machine).verdict, Verdict::Ok);
        assert_eq!(cores(&config("shards: 4"), &machine).verdict, Verdict::Warn);
        assert_eq!(backlog("128").verdict, Verdict::Warn);
    }
}
