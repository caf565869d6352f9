//! File systems that can be filled and broken: ext4 on a loop device, mounted and taken away again.
//!
//! Needs root and loop devices. Where a machine has none, [`LoopDisk::new`] returns `None` after saying so, and the test
//! that asked has nothing to show; set `PRISM_TEST_MOUNTS=required` where they are known to work.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{TempDir, directory};

/// A small disk of its own.
pub struct LoopDisk {
    /// Where it is mounted.
    pub path: PathBuf,
    image: PathBuf,
    mounted: bool,
    _directory: TempDir,
}

impl LoopDisk {
    /// An empty ext4 file system of so many MiB.
    pub fn new(mebibytes: u64) -> Option<Self> {
        let directory = directory();
        let (image, path) = (directory.path().join("image"), directory.path().join("mount"));
        let file = File::create(&image).unwrap();
        file.set_len(mebibytes << 20).unwrap();
        fs::create_dir(&path).unwrap();
        let mut disk = Self { path, image, mounted: false, _directory: directory };
        let made = command("mkfs.ext4", &["-q", "-F", "-m", "0", text(&disk.image)])
            .and_then(|()| disk.mount());
        match made {
            Ok(()) => Some(disk),
            Err(error) => {
                let required =
                    std::env::var("PRISM_TEST_MOUNTS").is_ok_and(|said| said == "required");
                assert!(!required, "no loop mount: {error}");
                println!("NOT SHOWN: this machine cannot mount a loop device ({error})");
                None
            }
        }
    }

    /// Mounts it.
    pub fn mount(&mut self) -> Result<(), String> {
        command("mount", &["-o", "loop", text(&self.image), text(&self.path)])?;
        self.mounted = true;
        Ok(())
    }

    /// Takes it away.
    pub fn unmount(&mut self) -> Result<(), String> {
        command("umount", &[text(&self.path)])?;
        self.mounted = false;
        Ok(())
    }
}

/// From now on nothing reaches the disk that is mounted at `path`, as after a cable was pulled: EXT4_IOC_SHUTDOWN without
/// flushing the journal. The call goes through Perl, which every Debian has, because `unsafe` belongs into `io`.
pub fn shut_down(path: &Path) {
    // _IOR('X', 125, __u32) with EXT4_GOING_FLAGS_NOLOGFLUSH.
    let script = r#"open(my $d, "<", $ARGV[0]) or die $!; my $f = pack("L", 2);
        ioctl($d, 0x8004587d, $f) or die $!"#;
    command("perl", &["-e", script, text(path)]).expect("EXT4_IOC_SHUTDOWN");
}

/// A file system in memory that knows no O_DIRECT: ramfs (tmpfs has it since Linux 6.6).
pub struct RamDisk {
    /// Where it is mounted.
    pub path: PathBuf,
    _directory: TempDir,
}

impl RamDisk {
    /// An empty one, where this machine allows it.
    pub fn new() -> Option<Self> {
        let directory = directory();
        let path = directory.path().join("mount");
        fs::create_dir(&path).unwrap();
        match command("mount", &["-t", "ramfs", "ramfs", text(&path)]) {
            Ok(()) => Some(Self { path, _directory: directory }),
            Err(error) => not_shown("mount a ramfs", &error),
        }
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let _ = command("umount", &["-l", text(&self.path)]);
    }
}

/// Says that a test has nothing to show here.
fn not_shown<T>(what: &str, error: &str) -> Option<T> {
    let required = std::env::var("PRISM_TEST_MOUNTS").is_ok_and(|said| said == "required");
    assert!(!required, "this machine cannot {what}: {error}");
    eprintln!("NOT SHOWN: this machine cannot {what} ({error})");
    None
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily, should something still hold it: the device goes with its last user.
            let _ = command("umount", &["-l", text(&self.path)]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn command(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
