//! The buffers that sockets are read into: room for a read, and what a read has filled. Without system calls, so that Miri can look.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;

use bytes::BytesMut;

/// What one read brings at most. 8 KiB: some thirty small calls; what is more is read through larger buffers.
pub(crate) const READ_BYTES: usize = 8 * 1024;
/// Below this room a read begins a new buffer.
const READ_BYTES_MIN: usize = 2 * 1024;

thread_local! {
    /// What is read into; one for all connections of a thread, because none waits with it: the processor's caches hold it.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// Gives `buffer` room for a read.
#[inline]
pub(super) fn make_room(buffer: &mut BytesMut) {
    if buffer.capacity() == 0 {
        *buffer = SPARE.take();
    }
    // From its front again, if nothing that came by it is still held somewhere: of a buffer that is walked through, the caches
    // hold nothing.
    let is_whole = buffer.is_empty() && buffer.try_reclaim(READ_BYTES);
    if !is_whole && buffer.capacity() - buffer.len() < READ_BYTES_MIN {
        buffer.reserve(READ_BYTES);
    }
}

/// Takes an empty buffer back for the next connection that has something to read.
pub(super) fn keep(buffer: BytesMut) {
    // One that has grown would make small messages look as if they kept much.
    if (1..=2 * READ_BYTES).contains(&buffer.capacity()) {
        SPARE.set(buffer);
    }
}

/// Has `read` fill the room behind what `buffer` holds, and makes what it says that it has filled a part of the buffer.
///
/// # Safety
/// `read` has written as many bytes as it returns, from the front of the room on.
#[inline]
pub(super) unsafe fn fill(
    buffer: &mut BytesMut,
    read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    debug_assert!(!room.is_empty(), "a read needs room");
    let room_bytes = room.len();
    let count = read(room)?;
    debug_assert!(count <= room_bytes, "{count} bytes in {room_bytes}");
    // SAFETY: the caller promises that so many bytes behind the ones that were there are written; they are within the capacity.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read that brings these bytes, as many as there is room for.
    fn read(buffer: &mut BytesMut, bytes: &[u8]) -> usize {
        let read = |room: &mut [MaybeUninit<u8>]| {
            let count = bytes.len().min(room.len());
            for (place, byte) in room.iter_mut().zip(&bytes[..count]) {
                place.write(*byte);
            }
            Ok(count)
        };
        // SAFETY: it has written what it says.
        unsafe { fill(buffer, read) }.unwrap()
    }

    #[test]
    fn what_a_read_brings_stands_behind_what_was_there() {
        let mut buffer = BytesMut::new();
        make_room(&mut buffer);
        assert!(buffer.capacity() >= READ_BYTES);
        assert_eq!((read(&mut buffer, b"one"), read(&mut buffer, b" two")), (3, 4));
        assert_eq!(buffer, &b"one two"[..]);
        let failed = |_: &mut [MaybeUninit<u8>]| Err(io::ErrorKind::WouldBlock.into());
        // SAFETY: it says that it has written nothing.
        assert!(unsafe { fill(&mut buffer, failed) }.is_err());
        assert_eq!(buffer, &b"one two"[..]);
        // A part that somebody keeps stays what it is while the rest is read over and over.
        let kept = buffer.split_to(3).freeze();
        for round in 0..40_u8 {
            make_room(&mut buffer);
            read(&mut buffer, &[round; 300]);
            assert!(buffer.ends_with(&[round; 300]));
            buffer.clear();
        }
        assert_eq!(kept, &b"one"[..]);
    }

    #[test]
    fn a_buffer_is_filled_to_its_end_and_no_further() {
        let mut buffer = BytesMut::with_capacity(16);
        let room = buffer.capacity();
        assert_eq!(read(&mut buffer, &[7; 100]), room);
        assert_eq!((buffer.len(), buffer.capacity()), (room, room));
        make_room(&mut buffer);
        assert!(buffer.capacity() - buffer.len() >= READ_BYTES_MIN);
        assert!(buffer.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn the_next_connection_gets_the_buffer_of_the_one_before() {
        let mut first = BytesMut::new();
        make_room(&mut first);
        let place = first.as_ptr();
        keep(first);
        let mut second = BytesMut::new();
        make_room(&mut second);
        assert_eq!(second.as_ptr(), place);
        read(&mut second, b"second");
        assert_eq!(second, &b"second"[..]);
        keep(BytesMut::with_capacity(4 * READ_BYTES));
        let mut third = BytesMut::new();
        make_room(&mut third);
        assert!(third.capacity() < 4 * READ_BYTES, "large ones are not kept");
    }
}
