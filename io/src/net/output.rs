//! One output of a connection into its socket: at once as far as the kernel takes it, the rest through the ring; large parts are not
//! copied together.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use monoio::buf::IoVecBuf;
use monoio::io::{AsyncWriteRent, AsyncWriteRentExt};

use super::WriteHalf;
use crate::h2::Output;

/// Most parts in one system call (the kernel's IOV_MAX is 1,024).
const PARTS_MAX: usize = 512;
/// Above this many bytes a write shows how far it has come; smaller ones are one operation without a list of parts.
const WHOLE_BYTES_MAX: usize = 16 * 1024;
/// What the kernel takes at once is written without asking the ring: it never waits, and it breaks no signal handler.
const AT_ONCE: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Lists what `output` holds behind its first `start` bytes.
fn list_parts(output: &Output, start: usize, parts: &mut Vec<libc::iovec>) {
    let mut skip = start;
    parts.clear();
    for segment in output.segments() {
        if skip >= segment.len() {
            skip -= segment.len();
            continue;
        }
        let rest = &segment[std::mem::take(&mut skip)..];
        parts.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        if parts.len() == PARTS_MAX {
            break;
        }
    }
}

/// An output from somewhere on, as the kernel wants it.
struct Vectored {
    output: Output,
    parts: Vec<libc::iovec>,
}

// SAFETY: the parts point into `output`, which is owned by the same value and is not touched while the kernel reads: its
// `inline` buffer and its `Bytes` keep their heap addresses when the value itself moves. The count is that of the vector.
unsafe impl IoVecBuf for Vectored {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.parts.as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.parts.len()
    }
}

impl WriteHalf {
    /// Writes all of `output` and gives its buffers back; `progress` is told how much, each time the kernel has taken
    /// some.
    pub async fn write_output(
        &mut self,
        output: Output,
        progress: impl Fn(usize),
    ) -> (io::Result<()>, Output) {
        match self.write_at_once(&output) {
            Ok(written) => {
                progress(written);
                self.write_rest(output, written, progress).await
            }
            Err(error) => (Err(error), output),
        }
    }

    /// Writes as much of `output` as the kernel takes without waiting, and says how much that was; with TLS nothing.
    #[inline]
    pub(crate) fn write_at_once(&self, output: &Output) -> io::Result<usize> {
        if self.sealing.is_some() {
            return Ok(0);
        }
        let (mut written, mut parts) = (0, Vec::new());
        while written < output.len() {
            match self.send_parts_at_once(output, written, &mut parts) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Like [`WriteHalf::write_output`], of what is behind the first `written` bytes.
    pub(crate) async fn write_rest(
        &mut self,
        mut output: Output,
        mut written: usize,
        progress: impl Fn(usize),
    ) -> (io::Result<()>, Output) {
        if self.sealing.is_some() {
            let result = self.write_sealed(output.segments(), progress).await;
            return (result, output);
        }
        let all = output.len();
        let mut parts = Vec::new();
        while written < all {
            match self.send_parts_at_once(&output, written, &mut parts) {
                Ok(count) => {
                    written += count;
                    progress(count);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return (Err(error), output),
            }
            // The socket is full: the ring waits until there is room, and takes what fits then.
            if output.is_contiguous() && written == 0 && all <= WHOLE_BYTES_MAX {
                let (result, inline) =
                    self.socket.write_all(std::mem::take(&mut output.inline)).await;
                output.inline = inline;
                progress(all);
                return (result.map(|_| ()), output);
            }
            list_parts(&output, written, &mut parts);
            let (result, vectored) = self.socket.writev(Vectored { output, parts }).await;
            (output, parts) = (vectored.output, vectored.parts);
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), output),
                Ok(count) => {
                    written += count;
                    progress(count);
                }
                Err(error) => return (Err(error), output),
            }
        }
        (Ok(()), output)
    }

    /// Hands the kernel what it takes without waiting, of what `output` holds behind its first `start` bytes.
    fn send_parts_at_once(
        &self,
        output: &Output,
        start: usize,
        parts: &mut Vec<libc::iovec>,
    ) -> io::Result<usize> {
        if output.is_contiguous() {
            return send_at_once(self.descriptor, &output.inline[start..]);
        }
        list_parts(output, start, parts);
        // SAFETY: an all-zero `msghdr` is valid: no name, no control data, no parts.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
        // SAFETY: the descriptor is open as long as this half lives; `parts` point into `output`, which outlives the call.
        let sent = unsafe { libc::sendmsg(self.descriptor, &message, AT_ONCE) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

/// Hands the kernel what it takes of `bytes` without waiting.
pub(super) fn send_at_once(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel has read `bytes` when the call returns; a descriptor that is not open is an error and nothing worse.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), AT_ONCE) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would read is what the output holds, wherever the value has moved meanwhile.
    #[test]
    fn the_parts_outlive_a_move() {
        let mut output = Output::default();
        output.inline.extend_from_slice(b"small");
        output.push_large(vec![7; 5000].into());
        output.inline.extend_from_slice(b"behind");
        let all = output.segments().collect::<Vec<_>>().concat();
        for start in [0, 3, 5, 6, 5004, 5005, 5010] {
            let mut parts = Vec::new();
            list_parts(&output, start, &mut parts);
            let moved = Box::new(Vectored { output: std::mem::take(&mut output), parts });
            // SAFETY: the vector has that many entries, and each describes bytes of the output that lives beside it.
            let read: Vec<u8> = unsafe {
                std::slice::from_raw_parts(moved.read_iovec_ptr(), moved.read_iovec_len())
                    .iter()
                    .flat_map(|part| {
                        std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len)
                    })
                    .copied()
                    .collect()
            };
            assert_eq!(read, all[start..], "from {start}");
            output = moved.output;
        }
    }
}
