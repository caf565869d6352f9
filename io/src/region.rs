//! Memory in large pieces straight from the kernel, for who keeps very many small things.
//!
//! What is not used of a region takes no memory, what is about to be used can be had at once instead of by a page fault for each
//! 4 KiB, and a region that is dropped goes back to the kernel, whatever else the process has allocated meanwhile.

#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// Bytes of a region, and its alignment: those of a huge page, for where the machine's owner wants them everywhere.
pub const REGION_BYTES: usize = 2 << 20;

/// [`REGION_BYTES`] bytes with one owner, zero at first.
#[derive(Debug)]
pub struct Region {
    pointer: NonNull<[u8; REGION_BYTES]>,
}

// SAFETY: the memory is owned by exactly one `Region`, like that of a `Box`.
unsafe impl Send for Region {}

impl Region {
    /// Takes a region from the kernel.
    ///
    /// # Errors
    /// The process may not have more memory, or not in more pieces.
    pub fn new() -> io::Result<Region> {
        let start = pages::take()?;
        let pointer = NonNull::new(start.cast()).expect("the kernel maps nothing at address zero");
        Ok(Region { pointer })
    }

    /// Has the kernel give memory for the pages in `bytes`, whose ends are multiples of their size. A kernel that cannot (before
    /// 5.14) gives it later, page by page.
    pub fn populate(&mut self, bytes: Range<usize>) {
        let part = &mut self[bytes];
        pages::populate(part);
    }
}

/// The pages of regions, from the kernel.
#[cfg(not(miri))]
mod pages {
    use std::{io, ptr};

    use super::REGION_BYTES;

    /// The pages of a region, zeroed and aligned, which belong to nobody else.
    pub(super) fn take() -> io::Result<*mut u8> {
        // The kernel mostly puts one region right below the other; only where it does not, more is taken and trimmed.
        let mut start = map(REGION_BYTES)?;
        if !(start as usize).is_multiple_of(REGION_BYTES) {
            // SAFETY: just mapped, and nobody knows of it.
            unsafe { unmap(start, REGION_BYTES) };
            let wide = map(2 * REGION_BYTES)?;
            let before = wide.align_offset(REGION_BYTES);
            start = wide.wrapping_add(before);
            // SAFETY: what was just mapped before the region and after it, of which nobody knows.
            unsafe {
                unmap(wide, before);
                unmap(start.wrapping_add(REGION_BYTES), REGION_BYTES - before);
            }
        }
        Ok(start)
    }

    /// # Safety
    /// [`take`] has returned them, and nobody refers to them any more.
    pub(super) unsafe fn give_back(start: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { unmap(start, REGION_BYTES) };
    }

    /// Has the kernel give memory for these pages; their contents stay what they are.
    pub(super) fn populate(part: &mut [u8]) {
        // SAFETY: the part is mapped and borrowed alone.
        unsafe { libc::madvise(part.as_mut_ptr().cast(), part.len(), libc::MADV_POPULATE_WRITE) };
    }

    /// New zeroed pages that belong to nobody else.
    fn map(bytes: usize) -> io::Result<*mut u8> {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses an address where nothing is yet, so no memory that anybody has is touched.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(start.cast())
    }

    /// Gives pages back; does nothing for no bytes.
    ///
    /// # Safety
    /// [`map`] has returned them, and nobody refers to them any more.
    unsafe fn unmap(start: *mut u8, bytes: usize) {
        if bytes > 0 {
            // SAFETY: as the caller promises.
            let result = unsafe { libc::munmap(start.cast(), bytes) };
            debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
    }
}

/// The same from the allocator, for Miri, which knows no alignment and no trimming of mappings: what is done with them is checked by it,
/// and their tests above check the kernel's.
#[cfg(miri)]
mod pages {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;

    use super::REGION_BYTES;

    const LAYOUT: Layout = match Layout::from_size_align(REGION_BYTES, REGION_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    pub(super) fn take() -> io::Result<*mut u8> {
        // SAFETY: its size is not 0.
        Ok(unsafe { alloc_zeroed(LAYOUT) })
    }

    /// # Safety
    /// [`take`] has returned it, and nobody refers to it any more.
    pub(super) unsafe fn give_back(start: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { dealloc(start, LAYOUT) };
    }

    pub(super) fn populate(_: &mut [u8]) {}
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region's own pages, whose borrows have ended.
        unsafe { pages::give_back(self.pointer.as_ptr().cast()) };
    }
}

impl Deref for Region {
    type Target = [u8; REGION_BYTES];
    #[inline]
    fn deref(&self) -> &[u8; REGION_BYTES] {
        // SAFETY: mapped readable and whole until the drop, zeroed by the kernel, and borrowed with `self`.
        unsafe { self.pointer.as_ref() }
    }
}

impl DerefMut for Region {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8; REGION_BYTES] {
        // SAFETY: as for `deref`, mapped writable, and `&mut self` makes the borrow unique.
        unsafe { self.pointer.as_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pages of a region the kernel has given memory.
    #[cfg(not(miri))]
    fn resident_pages(region: &Region) -> usize {
        let mut pages = vec![0u8; REGION_BYTES / 4096];
        // SAFETY: the region is mapped, and there is a byte for each of its pages.
        let result = unsafe {
            libc::mincore(region.pointer.as_ptr().cast(), REGION_BYTES, pages.as_mut_ptr())
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[test]
    fn regions_are_aligned_zeroed_and_apart() {
        // Each byte takes Miri a while.
        let step = if cfg!(miri) { 65_521 } else { 1 };
        let is_all =
            |region: &Region, wanted: u8| region.iter().step_by(step).all(|&byte| byte == wanted);
        let mut regions: Vec<Region> = (0..8).map(|_| Region::new().unwrap()).collect();
        for (number, region) in regions.iter_mut().enumerate() {
            assert_eq!(region.as_ptr() as usize % REGION_BYTES, 0);
            assert!(is_all(region, 0));
            region.fill(number as u8 + 1);
        }
        regions.remove(3);
        regions.remove(5);
        for (region, number) in regions.iter().zip([0, 1, 2, 4, 5, 7]) {
            assert!(is_all(region, number + 1));
        }
        regions.push(Region::new().unwrap());
        assert!(is_all(&regions[6], 0), "it may lie where another one lay");
    }

    #[cfg(not(miri))]
    #[test]
    fn memory_is_there_when_it_was_asked_for_and_not_before() {
        let mut region = Region::new().unwrap();
        assert_eq!(resident_pages(&region), 0);
        region[3 * 65_536] = 7;
        region.populate(2 * 65_536..4 * 65_536);
        assert!(resident_pages(&region) >= 2 * 16);
        assert_eq!((region[2 * 65_536], region[3 * 65_536]), (0, 7), "contents stay");
    }

    #[test]
    fn a_region_can_be_given_to_another_thread() {
        let mut region = Region::new().unwrap();
        region[7] = 7;
        let region = std::thread::spawn(move || region).join().unwrap();
        assert_eq!(region[7], 7);
    }
}
