//! Page-aligned memory for O_DIRECT, pooled so that the hot path allocates nothing.
//!
//! A buffer is filled by one owner ([`AlignedBuffer`]), then frozen ([`SharedBuffer`]) and from there on only read: by the
//! kernel that writes it out and by everybody who wants the bytes again. When the last reader lets go, it returns to its
//! pool. This module holds the only `unsafe` of the disk path.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment and granularity of every buffer and of every write, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// The smallest multiple of [`PAGE_BYTES`] that is at least `bytes`.
pub const fn page_ceiling(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// A page-aligned, zeroed region with one owner.
#[derive(Debug)]
pub struct AlignedMemory {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the region is owned by exactly one `AlignedMemory`, like the heap of a `Box<[u8]>`.
unsafe impl Send for AlignedMemory {}

impl AlignedMemory {
    /// Allocates `bytes` (rounded up to whole pages, at least one), all zero.
    pub fn zeroed(bytes: usize) -> AlignedMemory {
        let bytes = page_ceiling(bytes.max(1));
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        AlignedMemory { pointer, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, PAGE_BYTES)
            .expect("a buffer is far smaller than the address space")
    }
}

impl Drop for AlignedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.bytes)) }
    }
}

impl Deref for AlignedMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the region is `bytes` long, initialised by `alloc_zeroed`, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

#[derive(Debug)]
struct Contents {
    memory: AlignedMemory,
    length: usize,
    marks: Vec<u32>,
    /// Where to return to; `None` while there, so that pool and buffer do not keep each other alive.
    pool: Option<BufferPool>,
}

/// A page-aligned buffer that is being filled. See [`AlignedBuffer::freeze`] for what comes after.
#[derive(Debug)]
pub struct AlignedBuffer {
    shared: SharedBuffer,
}

impl AlignedBuffer {
    fn contents(&mut self) -> &mut Contents {
        let contents = self.shared.contents.as_mut().and_then(Rc::get_mut);
        contents.expect("a buffer that is being filled has one owner")
    }

    /// Bytes filled so far.
    pub fn len(&self) -> usize {
        self.shared.contents().length
    }

    /// Whether nothing was filled in yet.
    pub fn is_empty(&self) -> bool {
        self.shared.contents().length == 0
    }

    /// Bytes that fit altogether.
    pub fn capacity(&self) -> usize {
        self.shared.contents().memory.len()
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.shared.contents().memory.len() - self.shared.contents().length
    }

    /// The filled part.
    pub fn as_slice(&self) -> &[u8] {
        self.shared.as_slice()
    }

    /// The filled part, to be changed in place.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let contents = self.contents();
        &mut contents.memory[..contents.length]
    }

    /// Extends the filled part by `bytes` and returns that part, whose old contents are unspecified, to be written.
    ///
    /// # Panics
    /// When it does not fit: the caller asks [`AlignedBuffer::remaining`] first.
    pub fn extend(&mut self, bytes: usize) -> &mut [u8] {
        let contents = self.contents();
        let start = contents.length;
        contents.length += bytes;
        &mut contents.memory[start..contents.length]
    }

    /// Notes the current length as a place that the owner wants to find again.
    pub fn mark(&mut self) {
        let contents = self.contents();
        contents
            .marks
            .push(u32::try_from(contents.length).expect("a buffer is smaller than 4 GiB"));
    }

    /// The places noted with [`AlignedBuffer::mark`].
    pub fn marks(&self) -> &[u32] {
        self.shared.marks()
    }

    /// Zeroes up to the end of the page that is being filled. The length becomes a multiple of [`PAGE_BYTES`].
    pub fn pad_to_page(&mut self) {
        let bytes = page_ceiling(self.len()) - self.len();
        self.extend(bytes).fill(0);
    }

    /// Ends the filling: from now on the bytes are only read.
    pub fn freeze(self) -> SharedBuffer {
        self.shared
    }
}

/// A filled buffer; clones are cheap and read the same bytes. The last one to go returns the buffer to its pool.
#[derive(Clone, Debug)]
pub struct SharedBuffer {
    /// `None` only while dropping.
    contents: Option<Rc<Contents>>,
}

impl SharedBuffer {
    fn contents(&self) -> &Contents {
        self.contents.as_deref().expect("present until the drop")
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let contents = self.contents();
        &contents.memory[..contents.length]
    }

    /// The places that were noted while it was filled.
    pub fn marks(&self) -> &[u32] {
        &self.contents().marks
    }

    /// How many clones there are, this one included.
    pub fn clones(&self) -> usize {
        self.contents.as_ref().map_or(0, Rc::strong_count)
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        let Some(mut contents) = self.contents.take() else { return };
        if let Some(last) = Rc::get_mut(&mut contents) {
            last.length = 0;
            last.marks.clear();
            if let Some(pool) = last.pool.take() {
                pool.give_back(contents);
            }
        }
    }
}

/// What is left to be written of a shared buffer; keeps it alive while the kernel reads it.
#[derive(Debug)]
pub(super) struct WriteSlice {
    pub(super) buffer: SharedBuffer,
    pub(super) start: usize,
}

// SAFETY: the memory lives on the heap behind an `Rc` that this value holds, does not move with it, is initialised over its
// whole length, and is never written again after `freeze` while any clone lives.
unsafe impl monoio::buf::IoBuf for WriteSlice {
    fn read_ptr(&self) -> *const u8 {
        self.buffer.as_slice()[self.start..].as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.buffer.as_slice().len() - self.start
    }
}

#[derive(Debug)]
struct PoolState {
    free: Vec<Rc<Contents>>,
    kept_max: usize,
    standard_bytes: usize,
    /// Bytes of all buffers that are out: being filled, written or read.
    out_bytes: usize,
}

/// Buffers of one standard size, kept for the next use. Cloning gives the same pool.
#[derive(Clone, Debug)]
pub struct BufferPool {
    state: Rc<RefCell<PoolState>>,
}

impl BufferPool {
    /// A pool of buffers of `standard_bytes` (rounded up to whole pages) that keeps at most `kept_max` free ones.
    pub fn new(standard_bytes: usize, kept_max: usize) -> BufferPool {
        let standard_bytes = page_ceiling(standard_bytes.max(1));
        let free = Vec::with_capacity(kept_max);
        BufferPool {
            state: Rc::new(RefCell::new(PoolState {
                free,
                kept_max,
                standard_bytes,
                out_bytes: 0,
            })),
        }
    }

    /// An empty buffer for at least `bytes`: a kept one of the standard size where that suffices, else a larger one of its
    /// own, which is not kept afterwards.
    pub fn take(&self, bytes: usize) -> AlignedBuffer {
        let mut state = self.state.borrow_mut();
        let bytes = page_ceiling(bytes.max(state.standard_bytes));
        state.out_bytes += bytes;
        let kept = if bytes == state.standard_bytes { state.free.pop() } else { None };
        let mut contents = kept.unwrap_or_else(|| {
            let memory = AlignedMemory::zeroed(bytes);
            Rc::new(Contents { memory, length: 0, marks: Vec::new(), pool: None })
        });
        Rc::get_mut(&mut contents).expect("a free buffer has no readers").pool = Some(self.clone());
        AlignedBuffer { shared: SharedBuffer { contents: Some(contents) } }
    }

    /// Bytes of memory held by buffers that are out (filled, written or pinned by readers).
    pub fn out_bytes(&self) -> usize {
        self.state.borrow().out_bytes
    }

    fn give_back(&self, contents: Rc<Contents>) {
        let mut state = self.state.borrow_mut();
        state.out_bytes -= contents.memory.len();
        if contents.memory.len() == state.standard_bytes && state.free.len() < state.kept_max {
            state.free.push(contents);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        let mut memory = AlignedMemory::zeroed(5000);
        assert_eq!(memory.len(), 8192);
        assert_eq!(memory.as_ptr() as usize % PAGE_BYTES, 0);
        assert!(memory.iter().all(|&byte| byte == 0));
        memory[8191] = 7;
        assert_eq!(memory[8191], 7);
    }

    #[test]
    fn the_last_clone_returns_the_buffer_to_its_pool() {
        let pool = BufferPool::new(4096, 1);
        let mut buffer = pool.take(10);
        buffer.extend(3).copy_from_slice(b"abc");
        buffer.mark();
        buffer.pad_to_page();
        assert_eq!((buffer.len(), buffer.remaining()), (4096, 0));
        let address = buffer.as_slice().as_ptr();
        let shared = buffer.freeze();
        let other = shared.clone();
        drop(shared);
        assert_eq!(&other.as_slice()[..4], b"abc\0");
        assert_eq!((other.marks(), pool.out_bytes()), (&[3][..], 4096));
        drop(other);
        assert_eq!(pool.out_bytes(), 0);
        let again = pool.take(4096);
        assert!(again.is_empty() && again.marks().is_empty());
        assert_eq!(
            again.shared.contents().memory.as_ptr(),
            address,
            "the same memory is used again"
        );
    }

    #[test]
    fn larger_buffers_are_not_kept() {
        let pool = BufferPool::new(4096, 4);
        drop(pool.take(9000).freeze());
        assert_eq!(pool.out_bytes(), 0);
        assert!(pool.state.borrow().free.is_empty());
    }
}
