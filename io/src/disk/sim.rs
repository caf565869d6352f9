//! A data directory in memory that fails the way disks do, seeded so that every failure can be had again.
//!
//! A write is first *submitted* and, once *completed*, durable. Until then a power cut may keep, lose or tear each of its
//! sectors on its own. Any operation can be made to fail or to be the moment at which the power goes; afterwards nothing
//! works until [`Simulation::power_on`]. At rest, bytes can be changed at will (rot, zeroed or swapped pages, files cut
//! short). Time is a number that every operation advances.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use super::{ChunkStream, FileEntry, PAGE_BYTES, SECTOR_BYTES, Storage};

/// Simulated time that one operation takes, µs.
const OPERATION_US: u64 = 100;

/// Random numbers from a seed (SplitMix64): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// Any 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

/// What becomes of one unflushed sector in a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorFate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
    /// Its first bytes, this many, reached the disk.
    Torn(usize),
}

impl SectorFate {
    /// Any fate, each about as likely.
    pub fn any(random: &mut Seeded) -> SectorFate {
        match random.below(3) {
            0 => SectorFate::Kept,
            1 => SectorFate::Lost,
            _ => SectorFate::Torn(random.below(SECTOR_BYTES as u64) as usize),
        }
    }
}

/// How an operation is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device says no.
    Io,
    /// The disk is full.
    OutOfSpace,
    /// The power goes while the operation is under way.
    PowerCut,
}

#[derive(Clone, Debug)]
struct Unflushed {
    id: u64,
    name: String,
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct World {
    files: BTreeMap<String, Vec<u8>>,
    unflushed: Vec<Unflushed>,
    faults: BTreeMap<u64, Fault>,
    unreadable: BTreeSet<String>,
    operations: u64,
    next_id: u64,
    space_bytes: Option<u64>,
    is_off: bool,
    now_us: u64,
}

/// The directory. Clones are handles to the same one; [`Simulation::fork`] makes another.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    world: Rc<RefCell<World>>,
}

impl Simulation {
    /// An empty directory at time `now_us`.
    pub fn new(now_us: u64) -> Simulation {
        Simulation { world: Rc::new(RefCell::new(World { now_us, ..World::default() })) }
    }

    /// An independent copy of everything.
    pub fn fork(&self) -> Simulation {
        Simulation { world: Rc::new(RefCell::new(self.world.borrow().clone())) }
    }

    /// The simulated time, µs.
    pub fn now_us(&self) -> u64 {
        self.world.borrow().now_us
    }

    /// Lets time pass.
    pub fn advance(&self, span_us: u64) {
        self.world.borrow_mut().now_us += span_us;
    }

    /// Operations that changed, or tried to change, something so far.
    pub fn operations(&self) -> u64 {
        self.world.borrow().operations
    }

    /// Makes the operation with this number (counted from 0 like [`Simulation::operations`]) fail.
    pub fn fail(&self, operation: u64, fault: Fault) {
        self.world.borrow_mut().faults.insert(operation, fault);
    }

    /// Limits what further files may take; `None` for no limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.world.borrow_mut().space_bytes = bytes;
    }

    /// Makes every read of the file fail, or work again.
    pub fn set_unreadable(&self, name: &str, unreadable: bool) {
        let unreadable_files = &mut self.world.borrow_mut().unreadable;
        if unreadable {
            unreadable_files.insert(name.to_string());
        } else {
            unreadable_files.remove(name);
        }
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.world.borrow().is_off
    }

    /// Cuts the power now, between two operations.
    pub fn cut_power(&self) {
        self.world.borrow_mut().is_off = true;
    }

    /// Sectors whose fate a power cut at this moment would decide.
    pub fn unflushed_sectors(&self) -> usize {
        let world = self.world.borrow();
        world.unflushed.iter().map(|write| write.bytes.len().div_ceil(SECTOR_BYTES)).sum()
    }

    /// Puts the power on again: `fate` decides about every unflushed sector, in the order of submission. Planned faults
    /// are forgotten.
    pub fn power_on(&self, fate: &mut dyn FnMut() -> SectorFate) {
        let mut world = self.world.borrow_mut();
        for write in std::mem::take(&mut world.unflushed) {
            let Some(file) = world.files.get_mut(&write.name) else { continue };
            for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
                let kept = match fate() {
                    SectorFate::Kept => sector.len(),
                    SectorFate::Lost => 0,
                    SectorFate::Torn(bytes) => bytes.min(sector.len()),
                };
                let start = write.offset + index * SECTOR_BYTES;
                file[start..start + kept].copy_from_slice(&sector[..kept]);
            }
        }
        world.faults.clear();
        world.is_off = false;
    }

    /// The bytes of a file at rest.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.world.borrow().files.get(name).cloned()
    }

    /// Changes a file behind the back of whoever relies on it.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.world.borrow_mut().files.get_mut(name).expect("the file is there"));
    }

    /// Submits a write. It is durable once [`Simulation::complete`] says so.
    pub fn submit(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        assert!(
            bytes.len().is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(PAGE_BYTES as u64),
            "whole pages"
        );
        let mut world = self.world.borrow_mut();
        if world.is_off {
            return Err(io::Error::other("the power is off"));
        }
        let offset = usize::try_from(offset).expect("simulated files are small");
        match world.files.get(name) {
            None => return Err(io::ErrorKind::NotFound.into()),
            Some(file) => {
                assert!(offset + bytes.len() <= file.len(), "writes stay inside the file")
            }
        }
        let id = world.next_id;
        world.next_id += 1;
        let write = Unflushed { id, name: name.to_string(), offset, bytes: bytes.to_vec() };
        world.unflushed.push(write);
        Ok(id)
    }

    /// Completes a submitted write, in any order. A write that fails stays unflushed: a part of it may be on the disk.
    pub fn complete(&self, id: u64) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.step()?;
        let position = world.unflushed.iter().position(|write| write.id == id);
        let write = world.unflushed.remove(position.expect("a submitted write completes once"));
        let file = world.files.get_mut(&write.name).expect("checked when it was submitted");
        file[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        Ok(())
    }
}

impl World {
    /// One operation begins: it may fail, or be the last one.
    fn step(&mut self) -> io::Result<()> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        let operation = self.operations;
        self.operations += 1;
        self.now_us += OPERATION_US;
        match self.faults.remove(&operation) {
            None => Ok(()),
            Some(Fault::Io) => Err(io::Error::other("injected device error")),
            Some(Fault::OutOfSpace) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::PowerCut) => {
                self.is_off = true;
                Err(io::Error::other("the power was cut"))
            }
        }
    }

    fn read(&self, name: &str) -> io::Result<&Vec<u8>> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if self.unreadable.contains(name) {
            return Err(io::Error::other("injected read error"));
        }
        self.files.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Simulation {
    fn list(&mut self) -> io::Result<Vec<FileEntry>> {
        let world = self.world.borrow();
        let top = world.files.iter().filter(|(name, _)| !name.contains('/'));
        Ok(top
            .map(|(name, bytes)| FileEntry { name: name.clone(), bytes: bytes.len() as u64 })
            .collect())
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let world = self.world.borrow();
        let file = world.read(name)?;
        let rest = file.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn stream(&mut self, name: &str, offset: u64) -> io::Result<Box<dyn ChunkStream>> {
        let world = self.world.borrow();
        let rest = world
            .read(name)?
            .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        Ok(Box::new(Chunks { bytes: rest.to_vec(), taken: 0, next: 0 }))
    }

    fn create_zeroed(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.step()?;
        if world.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let Some(space) = world.space_bytes {
            let rest =
                space.checked_sub(bytes).ok_or(io::Error::from(io::ErrorKind::StorageFull))?;
            world.space_bytes = Some(rest);
        }
        world.files.insert(
            name.to_string(),
            vec![0; usize::try_from(bytes).expect("simulated files are small")],
        );
        Ok(())
    }

    fn write_durable(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let id = self.submit(name, offset, bytes)?;
        self.complete(id)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.step()?;
        if world.files.contains_key(name) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.step()?;
        let bytes = world.files.remove(from).ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        world.files.insert(to.to_string(), bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.step()?;
        world.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Bytes of one chunk: small, so that readers meet the boundaries between chunks in small files too.
const CHUNK_BYTES: usize = 4 * PAGE_BYTES;

struct Chunks {
    bytes: Vec<u8>,
    taken: usize,
    next: usize,
}

impl ChunkStream for Chunks {
    fn next_chunk(&mut self) -> io::Result<&[u8]> {
        self.taken = self.next;
        self.next = (self.taken + CHUNK_BYTES).min(self.bytes.len());
        Ok(&self.bytes[self.taken..self.next])
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.taken..self.next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_decides_sector_by_sector() {
        let mut disk = Simulation::new(0);
        disk.create_zeroed("a", 8192).unwrap();
        disk.write_durable("a", 0, &[1; 4096]).unwrap();
        disk.fail(disk.operations(), Fault::PowerCut);
        assert!(disk.write_durable("a", 0, &[2; 4096]).is_err());
        assert!(disk.is_off() && disk.write_durable("a", 0, &[3; 4096]).is_err());
        let mut fates =
            [SectorFate::Lost, SectorFate::Kept, SectorFate::Torn(100)].into_iter().cycle();
        disk.power_on(&mut || fates.next().unwrap());
        let bytes = disk.bytes("a").unwrap();
        assert_eq!((bytes[511], bytes[512], bytes[1023]), (1, 2, 2));
        assert_eq!((bytes[1024 + 99], bytes[1024 + 100]), (2, 1));
        assert_eq!(bytes[4096], 0);
    }

    #[test]
    fn a_full_disk_refuses_files_and_a_fork_is_independent() {
        let mut disk = Simulation::new(0);
        disk.set_space(Some(4096));
        disk.create_zeroed("a", 4096).unwrap();
        assert!(crate::disk::is_out_of_space(&disk.create_zeroed("b", 4096).unwrap_err()));
        let fork = disk.fork();
        fork.change("a", |bytes| bytes[0] = 9);
        assert_eq!(disk.bytes("a").unwrap()[0], 0);
    }
}
