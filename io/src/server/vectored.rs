//! One write for an output of several parts, without copying the large ones.
#![allow(unsafe_code)]

use std::io;

use monoio::buf::IoVecBuf;

use crate::h2::Output;
use crate::net::WriteHalf;

/// Most parts in one system call (the kernel's IOV_MAX is 1,024).
const PARTS_MAX: usize = 512;

/// An output from `start` on, as the kernel wants it.
struct Vectored {
    output: Output,
    parts: Vec<libc::iovec>,
}

impl Vectored {
    fn new(output: Output, start: usize) -> Self {
        let mut skip = start;
        let mut parts = Vec::with_capacity(8);
        for segment in output.segments() {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let rest = &segment[std::mem::take(&mut skip)..];
            parts.push(libc::iovec {
                iov_base: rest.as_ptr().cast_mut().cast(),
                iov_len: rest.len(),
            });
            if parts.len() == PARTS_MAX {
                break;
            }
        }
        Self { output, parts }
    }
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

/// Above this many bytes a write shows how far it has come; smaller ones take one system call without a list of parts.
const WHOLE_BYTES_MAX: usize = 16 * 1024;

/// Writes all of `output` and gives its buffers back; `progress` is told each time the kernel has taken some.
pub(super) async fn write_output(
    write: &mut WriteHalf,
    mut output: Output,
    progress: impl Fn(),
) -> (io::Result<()>, Output) {
    if output.is_contiguous() && output.len() <= WHOLE_BYTES_MAX {
        let (result, inline) = write.write_all(std::mem::take(&mut output.inline)).await;
        output.inline = inline;
        return (result, output);
    }
    let (mut written, all) = (0, output.len());
    while written < all {
        let (result, vectored) = write.write_vectored(Vectored::new(output, written)).await;
        output = vectored.output;
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), output),
            Ok(count) => {
                written += count;
                progress();
            }
            Err(error) => return (Err(error), output),
        }
    }
    (Ok(()), output)
}
