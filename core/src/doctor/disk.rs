//! The disk under the data directory: can it be written, past the page cache, durably, how fast, and is there room?
//!
//! Measured in a directory of its own beside the data, so that a running server is not disturbed.

use std::path::{Path, PathBuf};

use prism_io::disk::{Directory, DirectoryError, DirectoryOptions};
use prism_io::probe;

use super::Check;
use crate::config::units::{round_bytes, show_bytes};
use crate::config::{Config, Direct};

/// A log write slower than this makes every durable call slow.
const SYNC_US_WANTED: u64 = 5_000;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let data_dir = std::path::absolute(&config.data_dir).unwrap_or(config.data_dir.clone());
    let existing = nearest_existing(&data_dir);
    let mut checks = vec![file_system(
        &existing,
        &std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
    )];
    let scratch = Scratch(existing.join(format!(".prism-doctor-{}", std::process::id())));
    match Directory::open(&scratch.0, DirectoryOptions::default()) {
        Ok(directory) => {
            checks.push(Check::ok("data directory", format!("{} is writable", data_dir.display())));
            checks.push(direct(config.wal.direct, directory.is_direct()));
            let probe = directory.probe();
            checks.push(sync(probe.method.name(), probe.latency_us()));
        }
        Err(error) => checks.push(unusable(&data_dir, &error)),
    }
    drop(scratch);
    match probe::space(&existing) {
        Ok(space) => checks.push(room(config, space)),
        Err(error) => checks.push(Check::warn(
            "free space",
            format!("unknown: {error}"),
            "look with df; a full disk stops writes until there is room",
        )),
    }
    checks
}

/// A directory that goes away with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

/// The type of the file system that holds `path`, from the text of `/proc/self/mountinfo`.
fn file_system_type<'a>(path: &Path, mountinfo: &'a str) -> Option<&'a str> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        // Blanks in a path are written as octal escapes.
        let place = place.split(' ').nth(4)?.replace("\\040", " ");
        path.starts_with(&place).then_some((place.len(), kind.split(' ').next()?))
    });
    // Of mounts on the same place the last one is seen.
    mounts.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

fn file_system(path: &Path, mountinfo: &str) -> Check {
    const NAME: &str = "file system";
    match file_system_type(path, mountinfo) {
        Some(kind @ ("tmpfs" | "ramfs")) => Check::fail(
            NAME,
            format!("{kind}: kept in memory, lost with the machine"),
            "put the data directory on a disk with --data-dir",
        ),
        Some(kind) if is_remote(kind) => Check::warn(
            NAME,
            format!("{kind}: what is durable is up to another machine"),
            "put the data directory on a local disk with --data-dir",
        ),
        Some("overlay") => Check::warn(
            NAME,
            "overlay: lost with the container",
            "mount a volume for the data directory",
        ),
        Some(kind) => Check::ok(NAME, kind),
        None => Check::ok(NAME, "unknown"),
    }
}

fn is_remote(kind: &str) -> bool {
    ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs"].contains(&kind) || kind.starts_with("fuse")
}

fn direct(wanted: Direct, is_direct: bool) -> Check {
    const NAME: &str = "direct writes";
    if is_direct {
        return Check::ok(NAME, "O_DIRECT works");
    }
    let found = "no O_DIRECT here; the log would go through the page cache";
    match wanted {
        Direct::Required => Check::fail(
            NAME,
            found,
            "use a file system that has it (ext4, xfs), or set wal.direct: preferred",
        ),
        _ => Check::warn(NAME, found, "use a file system that has it, such as ext4 or xfs"),
    }
}

fn sync(method: &str, latency_us: u64) -> Check {
    const NAME: &str = "sync";
    let found = format!("{method}, {latency_us} µs for 4 KiB");
    match latency_us {
        0..=9 => Check::warn(
            NAME,
            format!("{found}: faster than any disk"),
            "this disk may acknowledge what it has not stored; check its write cache and the hypervisor's",
        ),
        10..=SYNC_US_WANTED => Check::ok(NAME, found),
        _ => Check::warn(
            NAME,
            format!("{found}: every durable call waits as long"),
            "use an SSD, with power-loss protection if you can",
        ),
    }
}

fn unusable(data_dir: &Path, error: &DirectoryError) -> Check {
    Check::fail(
        "data directory",
        format!("{} cannot be written: {error}", data_dir.display()),
        "give this user the right to write there, or name another directory with --data-dir",
    )
}

fn room(config: &Config, space: probe::Space) -> Check {
    const NAME: &str = "free space";
    let found = format!("{} of {}", round_bytes(space.free_bytes), round_bytes(space.total_bytes));
    // A log as large as it may become, and two snapshots of a store as large as it may become.
    let least = config.wal.segment_bytes * config.shards() as u64 * 4;
    let wanted = config.wal.bytes_max.saturating_add(config.memory.bytes_max.saturating_mul(2));
    if space.free_bytes < least {
        return Check::fail(
            NAME,
            format!("{found}, less than the {} that the log needs to start", show_bytes(least)),
            "free some space, lower wal.segment_bytes, or name another directory with --data-dir",
        );
    }
    if space.free_bytes < wanted {
        return Check::warn(
            NAME,
            format!("{found}; log and snapshots may grow to {}", round_bytes(wanted)),
            "lower wal.bytes_max and memory.bytes_max, or use a larger disk",
        );
    }
    Check::ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::{Flags, Machine, read};

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /tmp rw - tmpfs tmpfs rw
31 22 0:27 / /mnt/a\\040b rw - nfs4 host:/x rw
32 22 0:28 / /tmpfiles rw - xfs /dev/vdb rw
33 22 0:29 / /over rw - overlay overlay rw
";

    #[test]
    fn the_file_system_is_that_of_the_deepest_mount() {
        for (path, kind, verdict) in [
            ("/var/lib/prism", "ext4", Verdict::Ok),
            ("/tmp/prism", "tmpfs", Verdict::Fail),
            ("/tmpfiles", "xfs", Verdict::Ok),
            ("/mnt/a b/data", "nfs4", Verdict::Warn),
            ("/over", "overlay", Verdict::Warn),
        ] {
            assert_eq!(file_system_type(Path::new(path), MOUNTS), Some(kind), "{path}");
            assert_eq!(file_system(Path::new(path), MOUNTS).verdict, verdict, "{path}");
        }
    }

    #[test]
    fn a_disk_is_judged_by_what_was_measured() {
        assert_eq!(sync("O_DSYNC write", 123).verdict, Verdict::Ok);
        assert_eq!(sync("O_DSYNC write", 2).verdict, Verdict::Warn);
        assert_eq!(sync("O_DSYNC write", 12_000).verdict, Verdict::Warn);
        assert_eq!(direct(Direct::Preferred, true).verdict, Verdict::Ok);
        assert_eq!(direct(Direct::Preferred, false).verdict, Verdict::Warn);
        assert_eq!(direct(Direct::Required, false).verdict, Verdict::Fail);
    }

    #[test]
    fn room_is_what_log_and_snapshots_may_take() {
        let machine = Machine { cores: vec![0], memory_bytes: 2 << 30 };
        let config = read(None, &Flags::default(), &machine).unwrap();
        let verdict =
            |free_bytes| room(&config, probe::Space { free_bytes, total_bytes: 100 << 30 }).verdict;
        assert_eq!(verdict(50 << 30), Verdict::Ok);
        assert_eq!(verdict(5 << 30), Verdict::Warn);
        assert_eq!(verdict(100 << 20), Verdict::Fail);
    }

    #[test]
    fn a_directory_that_cannot_be_written_fails() {
        let machine = Machine { cores: vec![0], memory_bytes: 2 << 30 };
        let flags = Flags { data_dir: Some("/proc/prism-data".into()), ..Flags::default() };
        let config = read(None, &flags, &machine).unwrap();
        let checks = examine(&config);
        let check = checks.iter().find(|check| check.name == "data directory").unwrap();
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.starts_with("/proc/prism-data cannot be written: "), "{check:?}");
    }
}
