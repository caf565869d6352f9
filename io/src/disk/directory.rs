//! A data directory on a real file system: lock, names, and files that are durable when they say so.

use std::fmt;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::stream::{ReadAhead, read_full};
use super::{
    AlignedMemory, BufferPool, ChunkStream, File, FileEntry, PAGE_BYTES, Storage, SyncMethod,
    SyncProbe, page_ceiling, probe,
};

/// Name of the file whose lock says that the directory is in use.
const LOCK_NAME: &str = "LOCK";
/// Name of the file that the probe writes; removed afterwards.
const PROBE_NAME: &str = "PROBE";
/// Bytes of one piece when a file is filled with zeros: small enough not to hold up the log's own writes.
const ZERO_PIECE_BYTES: usize = 256 * 1024;

/// What to do where a file system has no O_DIRECT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Write through the page cache instead, with O_DSYNC; [`Directory::is_direct`] says so, for the caller to warn.
    #[default]
    Preferred,
    /// Refuse the directory.
    Required,
    /// Always write through the page cache.
    Off,
}

/// How to open a [`Directory`].
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectoryOptions {
    /// Whether to do without O_DIRECT.
    pub direct: Direct,
    /// The sync method, `None` to take the faster one.
    pub sync: Option<SyncMethod>,
}

/// Why a data directory was refused.
#[derive(Debug)]
pub enum DirectoryError {
    /// Another process (its id where known) uses the directory.
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process id that the lock file names.
        process: Option<u32>,
    },
    /// The file system has no O_DIRECT and [`Direct::Required`] was asked for.
    NoDirect {
        /// The directory.
        path: PathBuf,
    },
    /// A system call failed.
    Io {
        /// What was tried.
        action: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for DirectoryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DirectoryError::Locked { path, process: Some(process) } => write!(
                formatter,
                "data directory {} is in use by process {process}; stop it or choose another directory",
                path.display()
            ),
            DirectoryError::Locked { path, process: None } => write!(
                formatter,
                "data directory {} is in use by another process; stop it or choose another directory",
                path.display()
            ),
            DirectoryError::NoDirect { path } => write!(
                formatter,
                "the file system of {} does not support O_DIRECT, and `wal.direct: required` forbids to do without; \
                 put the data directory on a local ext4 or xfs disk",
                path.display()
            ),
            DirectoryError::Io { action, path, error } => {
                write!(formatter, "could not {action} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for DirectoryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DirectoryError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    direct: bool,
    probe: SyncProbe,
    zeros: BufferPool,
    /// Held for its lock.
    _lock: fs::File,
}

impl Directory {
    /// Creates the directory where it is missing, locks it, and finds out about O_DIRECT and the sync method (a few
    /// milliseconds of small writes).
    pub fn open(path: &Path, options: DirectoryOptions) -> Result<Directory, DirectoryError> {
        let fault = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |error| DirectoryError::Io { action, path, error }
        };
        let existed = path.is_dir();
        fs::create_dir_all(path).map_err(fault("create", path))?;
        if !existed
            && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_directory(parent).map_err(fault("sync", parent))?;
        }
        let lock = lock(path)?;
        let probe_path = path.join(PROBE_NAME);
        let able = supports_direct(&probe_path).map_err(fault("write to", path))?;
        let direct = able && options.direct != Direct::Off;
        if !direct && options.direct == Direct::Required {
            let _ = fs::remove_file(&probe_path);
            return Err(DirectoryError::NoDirect { path: path.to_path_buf() });
        }
        let mut probe = run_probe(&probe_path, direct).map_err(fault("write to", path))?;
        fs::remove_file(&probe_path).map_err(fault("remove", &probe_path))?;
        if let Some(method) = options.sync {
            probe.method = method;
        }
        let zeros = BufferPool::new(ZERO_PIECE_BYTES, 1);
        Ok(Directory { path: path.to_path_buf(), direct, probe, zeros, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether writes bypass the page cache. Where they do not, the caller warns.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// What was measured, and which sync method is in use.
    pub fn probe(&self) -> SyncProbe {
        self.probe
    }

    /// Opens an existing file for durable writes on the ring of the calling thread.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let dsync = self.probe.method == SyncMethod::DsyncWrite;
        File::new(
            self.open_with(&self.path.join(name), Access::Write { dsync, new: false })?,
            self.probe.method,
        )
    }

    /// As [`Storage::create_zeroed`], but in small pieces on the ring, so that the shard is not held up. The file gets
    /// its name only when it is complete; what an interrupted call leaves behind ends in `.new`.
    pub async fn create_zeroed_in_pieces(&self, name: &str, bytes: u64) -> io::Result<()> {
        let (temporary, target) = (self.path.join(format!("{name}.new")), self.path.join(name));
        let result = self.fill_with_zeros(&temporary, bytes).await;
        if result.is_err() {
            // The first error is the one that matters; at the next start leftovers are removed.
            let _ = fs::remove_file(&temporary);
            return result;
        }
        fs::rename(&temporary, &target)?;
        File::new(fs::File::open(&self.path)?, self.probe.method)?.sync_all().await
    }

    async fn fill_with_zeros(&self, path: &Path, bytes: u64) -> io::Result<()> {
        // Removed first: what an earlier attempt left there may be open with other flags or of another size.
        remove_if_present(path)?;
        let file = self.open_with(path, Access::Write { dsync: false, new: true })?;
        reserve(&file, bytes)?;
        let file = File::new(file, self.probe.method)?;
        let piece = self.zero_piece(ZERO_PIECE_BYTES);
        let mut offset = 0;
        while offset + piece.as_slice().len() as u64 <= bytes {
            file.write(piece.clone(), offset).await?;
            offset += piece.as_slice().len() as u64;
        }
        if offset < bytes {
            let rest = usize::try_from(bytes - offset).expect("less than a piece");
            file.write(self.zero_piece(rest), offset).await?;
        }
        file.sync_all().await
    }

    fn zero_piece(&self, bytes: usize) -> super::SharedBuffer {
        let mut buffer = self.zeros.take(bytes);
        buffer.extend(bytes).fill(0);
        buffer.freeze()
    }

    /// Where its files can be streamed from by another thread.
    pub fn streams(&self) -> Streams {
        Streams { path: self.path.clone(), direct: self.direct }
    }

    fn open_with(&self, path: &Path, access: Access) -> io::Result<fs::File> {
        open_with(path, access, self.direct)
    }
}

/// The files of a [`Directory`] for a thread that only reads.
#[derive(Clone, Debug)]
pub struct Streams {
    path: PathBuf,
    direct: bool,
}

impl Streams {
    /// A whole file from its beginning on, read ahead of the reader.
    pub fn open(&self, name: &str) -> io::Result<Box<dyn ChunkStream>> {
        let file = open_with(&self.path.join(name), Access::Read, self.direct)?;
        Ok(Box::new(ReadAhead::start(file, 0)?))
    }
}

impl Storage for Directory {
    fn list(&mut self) -> io::Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if metadata.is_file() && !name.is_empty() && name != LOCK_NAME {
                files.push(FileEntry { name, bytes: metadata.len() });
            }
        }
        files.sort();
        Ok(files)
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = self.open_with(&self.path.join(name), Access::Read)?;
        let mut memory = AlignedMemory::zeroed(into.len());
        let bytes = read_full(&file, offset, &mut memory)?.min(into.len());
        into[..bytes].copy_from_slice(&memory[..bytes]);
        Ok(bytes)
    }

    fn stream(&mut self, name: &str, offset: u64) -> io::Result<Box<dyn ChunkStream>> {
        let file = self.open_with(&self.path.join(name), Access::Read)?;
        Ok(Box::new(ReadAhead::start(file, offset)?))
    }

    fn create_zeroed(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let (temporary, target) = (self.path.join(format!("{name}.new")), self.path.join(name));
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.create_folder(folder)?;
        }
        if target.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        remove_if_present(&temporary)?;
        let file = self.open_with(&temporary, Access::Write { dsync: false, new: true })?;
        let filled = reserve(&file, bytes).and_then(|()| fill_blocking(&file, bytes));
        if let Err(error) = filled {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        fs::rename(&temporary, &target)?;
        sync_directory(target.parent().unwrap_or(&self.path))
    }

    fn write_durable(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(
            bytes.len().is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(PAGE_BYTES as u64),
            "whole pages"
        );
        let file =
            self.open_with(&self.path.join(name), Access::Write { dsync: true, new: false })?;
        let mut memory = AlignedMemory::zeroed(bytes.len());
        memory.copy_from_slice(bytes);
        file.write_all_at(&memory, offset)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.open_with(&self.path.join(name), Access::Write { dsync: false, new: false })?
            .sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if let Some((folder, _)) = to.rsplit_once('/') {
            self.create_folder(folder)?;
        }
        let (from, to) = (self.path.join(from), self.path.join(to));
        fs::rename(&from, &to)?;
        for path in [&from, &to] {
            sync_directory(path.parent().unwrap_or(&self.path))?;
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))?;
        sync_directory(&self.path)
    }
}

impl Directory {
    fn create_folder(&self, folder: &str) -> io::Result<()> {
        fs::create_dir_all(self.path.join(folder))?;
        sync_directory(&self.path)
    }
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write { dsync: bool, new: bool },
}

fn open_with(path: &Path, access: Access, direct: bool) -> io::Result<fs::File> {
    let mut flags = if direct { libc::O_DIRECT } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true);
    if let Access::Write { dsync, new } = access {
        options.write(true).create_new(new);
        flags |= if dsync { libc::O_DSYNC } else { 0 };
    }
    options.custom_flags(flags).open(path)
}

fn lock(path: &Path) -> Result<fs::File, DirectoryError> {
    let lock_path = path.join(LOCK_NAME);
    let fault = |error| DirectoryError::Io { action: "lock", path: lock_path.clone(), error };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(fault)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let process =
                file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(DirectoryError::Locked { path: path.to_path_buf(), process });
        }
        Err(TryLockError::Error(error)) => return Err(fault(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(fault)?;
    writeln!(file, "{}", std::process::id()).map_err(fault)?;
    Ok(file)
}

/// Whether the file system takes a page-sized O_DIRECT write. Creates the file.
fn supports_direct(path: &Path) -> io::Result<bool> {
    remove_if_present(path)?;
    OpenOptions::new().write(true).create_new(true).open(path)?;
    let page = AlignedMemory::zeroed(PAGE_BYTES);
    let attempt = open_with(path, Access::Write { dsync: true, new: false }, true)
        .and_then(|file| file.write_all_at(&page, 0));
    match attempt {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn run_probe(path: &Path, direct: bool) -> io::Result<SyncProbe> {
    let dsync = open_with(path, Access::Write { dsync: true, new: false }, direct)?;
    let plain = open_with(path, Access::Write { dsync: false, new: false }, direct)?;
    probe::measure(&dsync, &plain)
}

/// Reserves the blocks in one go, so that a full disk shows now. File systems that cannot do without.
fn reserve(file: &fs::File, bytes: u64) -> io::Result<()> {
    match reserve_blocks(file, bytes) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
            ) =>
        {
            file.set_len(bytes)
        }
        result => result,
    }
}

#[allow(unsafe_code)]
fn reserve_blocks(file: &fs::File, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let bytes =
        libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open; it touches no memory of ours.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn fill_blocking(file: &fs::File, bytes: u64) -> io::Result<()> {
    const PIECE: u64 = 1 << 20;
    let zeros = AlignedMemory::zeroed(usize::try_from(PIECE.min(bytes)).expect("at most a piece"));
    let mut offset = 0;
    while offset < bytes {
        let piece = usize::try_from(PIECE.min(bytes - offset)).expect("at most a piece");
        file.write_all_at(&zeros[..page_ceiling(piece).min(zeros.len())], offset)?;
        offset += piece as u64;
    }
    file.sync_all()
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Directory {
        Directory::open(path, DirectoryOptions::default()).unwrap()
    }

    #[test]
    fn a_second_user_is_refused_by_name_and_may_come_when_the_first_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = open(&path);
        let error = Directory::open(&path, DirectoryOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("in use by process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        open(&path);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = Directory::open(&file.join("data"), DirectoryOptions::default()).unwrap_err();
        assert!(error.to_string().contains("file/data"), "{error}");
    }

    #[test]
    fn files_are_created_written_listed_renamed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = open(folder.path());
        directory.create_zeroed("a", 3 << 20).unwrap();
        assert_eq!(
            directory.create_zeroed("a", 4096).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        directory.write_durable("a", 8192, &[7; 4096]).unwrap();
        directory.sync("a").unwrap();
        assert_eq!(directory.list().unwrap(), [FileEntry { name: "a".into(), bytes: 3 << 20 }]);
        let mut bytes = [1; 5000];
        assert_eq!(directory.read("a", 8192, &mut bytes).unwrap(), 5000);
        assert!(
            bytes[..4096].iter().all(|&byte| byte == 7)
                && bytes[4096..].iter().all(|&byte| byte == 0)
        );
        directory.rename("a", "quarantine/a").unwrap();
        assert_eq!(directory.list().unwrap(), []);
        directory.create_zeroed("b", 4096).unwrap();
        directory.remove("b").unwrap();
        assert_eq!(directory.list().unwrap(), []);
    }

    #[test]
    fn a_stream_gives_every_byte_once_from_any_page_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = open(folder.path());
        let bytes: Vec<u8> = (0..(5 << 20) + 100).map(|index| (index / 4096) as u8).collect();
        fs::write(folder.path().join("a"), &bytes).unwrap();
        for offset in [0, 4096, 1 << 20, 5 << 20] {
            let mut stream = directory.stream("a", offset).unwrap();
            let mut seen = Vec::new();
            loop {
                let chunk = stream.next_chunk().unwrap();
                if chunk.is_empty() {
                    break;
                }
                seen.extend_from_slice(chunk);
            }
            assert!(seen == bytes[offset as usize..], "from {offset}");
        }
        // A reader that gives up early does not leave a thread waiting.
        drop(directory.stream("a", 0).unwrap());
    }

    #[test]
    fn a_file_is_zero_filled_and_written_on_the_ring() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = open(folder.path());
        let bytes = 2 * ZERO_PIECE_BYTES as u64 + 4096;
        let directory = crate::rt::run(async move {
            directory.create_zeroed_in_pieces("a", bytes).await.unwrap();
            let file = directory.open_file("a").unwrap();
            let pool = BufferPool::new(8192, 1);
            let mut buffer = pool.take(8192);
            buffer.extend(8192).fill(9);
            file.write_durable(buffer.freeze(), 4096).await.unwrap();
            file.sync_all().await.unwrap();
            assert_eq!(directory.list().unwrap(), [FileEntry { name: "a".into(), bytes }]);
            directory
        })
        .unwrap();
        let seen = fs::read(folder.path().join("a")).unwrap();
        assert!(seen[4096..12288].iter().all(|&byte| byte == 9));
        assert_eq!(seen.iter().filter(|&&byte| byte != 0).count(), 8192);
        assert!(directory.probe().latency_us() > 0);
    }
}
