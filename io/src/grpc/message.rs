//! The framing of messages in DATA (gRPC `PROTOCOL-HTTP2.md`, Length-Prefixed-Message).
//!
//! A message that lies whole in one DATA frame is handed out as a slice of the read buffer; one that is spread over frames is
//! gathered into one buffer with one copy. What is being gathered is bounded per message and per connection.

use super::compress::Encoding;
use super::gather::GatherBuffer;
use bytes::Bytes;

/// Bytes of the prefix: a compressed flag and a length.
pub const PREFIX_BYTES: usize = 5;

/// A message to send: encoded fields, and behind them a payload that may be large.
#[derive(Debug, Clone, Default)]
pub struct Message<'a> {
    /// Copied into the output.
    pub head: &'a [u8],
    /// Follows `head`; by reference when it is large.
    pub tail: Bytes,
}

impl<'a> Message<'a> {
    /// A message without a tail.
    pub fn new(head: &'a [u8]) -> Self {
        Self { head, tail: Bytes::new() }
    }

    /// Bytes of the message without its prefix.
    #[inline]
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Whether the message is empty, which is legal.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prefix of this message, not compressed.
    #[inline]
    pub(crate) fn prefix(&self) -> [u8; PREFIX_BYTES] {
        prefix(false, self.len())
    }
}

/// A message up to this size may be a slice of a frame, and with it of a whole read buffer; a larger one was gathered, and is by itself.
const SLICED_BYTES_MAX: usize = 64 << 10;

/// Makes a message that is kept independent of the buffer that it was read into, which it would keep as well.
pub(crate) fn unshare(message: &mut Bytes) {
    if message.len() <= SLICED_BYTES_MAX {
        *message = Bytes::copy_from_slice(message);
    }
}

/// The prefix of a message of `bytes` bytes.
#[inline]
pub(crate) fn prefix(compressed: bool, bytes: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = (bytes as u32).to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The stream has ended.
    Closed,
    /// `Limits::queue_bytes_max` is reached on this connection.
    QueueFull,
}

/// Why the framing of a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramingError {
    /// Larger than the limit; the length that was announced.
    TooLarge(u32),
    /// Too much is being gathered on this connection.
    NoRoom,
    /// The compressed flag is neither 0 nor 1.
    BadFlag,
    /// A compressed message in an encoding that we do not know.
    UnknownEncoding,
    /// A compressed message, although the head names no encoding.
    NotAnnounced,
}

/// Cuts one direction of a stream into messages.
#[derive(Debug, Default)]
pub(crate) struct Deframer {
    /// A prefix that is not whole yet.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: u8,
    /// The encoding that the head of this direction names.
    encoding: Encoding,
    /// Whether the message that came last is compressed.
    compressed: bool,
    /// The message that is being gathered, and how long it will be.
    gathering: Option<Box<GatherBuffer>>,
    message_bytes: u32,
}

impl Deframer {
    /// Compressed messages are to be in `encoding`.
    #[inline]
    pub(crate) fn set_encoding(&mut self, encoding: Encoding) {
        self.encoding = encoding;
    }

    /// Whether the message that `next` gave last is compressed.
    #[inline]
    pub(crate) fn was_compressed(&self) -> bool {
        self.compressed
    }

    /// Whether everything so far was whole messages.
    #[inline]
    pub(crate) fn is_clean(&self) -> bool {
        self.prefix_bytes == 0 && self.gathering.is_none()
    }

    /// Bytes that this stream holds of the connection's `gather` budget.
    pub(crate) fn gathered_claim(&self) -> usize {
        if self.gathering.is_some() { self.message_bytes as usize } else { 0 }
    }

    /// Takes the next message from the front of `data`; `None` when it is used up. `gathered` counts the bytes of messages
    /// being gathered on the connection.
    #[inline]
    pub(crate) fn next(
        &mut self,
        data: &mut Bytes,
        message_bytes_max: u32,
        gathered: &mut usize,
        gather_bytes_max: usize,
    ) -> Result<Option<Bytes>, FramingError> {
        if data.is_empty() {
            return Ok(None);
        }
        if self.is_clean()
            && let Some(&[flag, a, b, c, d]) = data.first_chunk::<PREFIX_BYTES>()
        {
            let length = u32::from_be_bytes([a, b, c, d]);
            self.check(flag, length, message_bytes_max)?;
            let end = PREFIX_BYTES + length as usize;
            if data.len() == end {
                // The common case: one message in one frame.
                let mut message = std::mem::take(data);
                bytes::Buf::advance(&mut message, PREFIX_BYTES);
                return Ok(Some(message));
            }
            if data.len() > end {
                let mut message = data.split_to(end);
                bytes::Buf::advance(&mut message, PREFIX_BYTES);
                return Ok(Some(message));
            }
        }
        self.gather(data, message_bytes_max, gathered, gather_bytes_max)
    }

    /// Leaves out the whole messages at the front of `data`; how many that were. None where a message has begun already.
    #[inline]
    pub(crate) fn skip(
        &mut self,
        data: &mut Bytes,
        message_bytes_max: u32,
    ) -> Result<u64, FramingError> {
        let (mut at, mut count) = (0, 0);
        while self.is_clean()
            && let Some(&[flag, a, b, c, d]) = data[at..].first_chunk::<PREFIX_BYTES>()
        {
            let length = u32::from_be_bytes([a, b, c, d]);
            self.check(flag, length, message_bytes_max)?;
            let end = at + PREFIX_BYTES + length as usize;
            if end > data.len() {
                break;
            }
            (at, count) = (end, count + 1);
        }
        bytes::Buf::advance(data, at);
        Ok(count)
    }

    #[cold]
    fn gather(
        &mut self,
        data: &mut Bytes,
        message_bytes_max: u32,
        gathered: &mut usize,
        gather_bytes_max: usize,
    ) -> Result<Option<Bytes>, FramingError> {
        if self.gathering.is_none() {
            let have = usize::from(self.prefix_bytes);
            let part = data.split_to(data.len().min(PREFIX_BYTES - have));
            self.prefix[have..have + part.len()].copy_from_slice(&part);
            self.prefix_bytes += part.len() as u8;
            if usize::from(self.prefix_bytes) < PREFIX_BYTES {
                return Ok(None);
            }
            let [flag, a, b, c, d] = self.prefix;
            let length = u32::from_be_bytes([a, b, c, d]);
            self.check(flag, length, message_bytes_max)?;
            if data.len() >= length as usize {
                self.prefix_bytes = 0;
                return Ok(Some(data.split_to(length as usize)));
            }
            if *gathered + length as usize > gather_bytes_max {
                return Err(FramingError::NoRoom);
            }
            *gathered += length as usize;
            self.message_bytes = length;
            self.gathering = Some(Box::new(GatherBuffer::new(length as usize, data.len())));
        }
        let Some(buffer) = &mut self.gathering else { return Ok(None) };
        let wanted = self.message_bytes as usize;
        let part = data.split_to(data.len().min(wanted - buffer.len()));
        buffer.extend(&part, wanted);
        if buffer.len() < wanted {
            return Ok(None);
        }
        *gathered -= wanted;
        self.prefix_bytes = 0;
        let message = self.gathering.take().map(|buffer| buffer.finish());
        Ok(message)
    }

    #[inline]
    fn check(&mut self, flag: u8, length: u32, message_bytes_max: u32) -> Result<(), FramingError> {
        self.compressed = flag != 0;
        if flag != 0 {
            match (flag, self.encoding) {
                (1, Encoding::Gzip) => {}
                (1, Encoding::Unknown) => return Err(FramingError::UnknownEncoding),
                (1, Encoding::Identity) => return Err(FramingError::NotAnnounced),
                _ => return Err(FramingError::BadFlag),
            }
        }
        if length > message_bytes_max {
            return Err(FramingError::TooLarge(length));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut all = Vec::new();
        for message in messages {
            all.extend_from_slice(&Message::new(message).prefix());
            all.extend_from_slice(message);
        }
        all
    }

    #[test]
    fn any_cut_gives_the_same_messages() {
        let messages: [&[u8]; 4] = [b"", b"one", &[7; 300], b"x"];
        let all = framed(&messages);
        for part in 1..=all.len() {
            let mut deframer = Deframer::default();
            let mut gathered = 0;
            let mut out = Vec::new();
            for piece in all.chunks(part) {
                let mut data = Bytes::copy_from_slice(piece);
                while let Some(message) =
                    deframer.next(&mut data, 1000, &mut gathered, 1000).unwrap()
                {
                    out.push(message);
                }
                assert!(data.is_empty());
            }
            assert_eq!(out, messages, "in parts of {part}");
            assert!(deframer.is_clean() && gathered == 0);
        }
    }

    #[test]
    fn what_is_skipped_is_counted_and_what_is_cut_is_not() {
        let all = framed(&[b"", b"one", &[7; 300], b"x"]);
        let (mut deframer, mut data) = (Deframer::default(), Bytes::from(all));
        let mut cut = data.split_to(5 + 5 + 3 + 100);
        assert_eq!(deframer.skip(&mut cut, 1000), Ok(2));
        let mut gathered = 0;
        assert_eq!(deframer.next(&mut cut, 1000, &mut gathered, 1000), Ok(None));
        assert_eq!(deframer.skip(&mut data, 1000), Ok(0), "a message has begun");
        let message = deframer.next(&mut data, 1000, &mut gathered, 1000).unwrap();
        assert_eq!(message.as_deref(), Some(&[7; 300][..]));
        assert_eq!(deframer.skip(&mut data, 1000), Ok(1));
        assert!(data.is_empty() && gathered == 0);
        let mut large = Bytes::from(framed(&[&[0; 11]]));
        assert_eq!(deframer.skip(&mut large, 10), Err(FramingError::TooLarge(11)));
    }

    #[test]
    fn refuses_what_is_beyond_its_bounds() {
        let next = |bytes: &[u8], gathered: usize| {
            let mut gathered = gathered;
            let mut data = Bytes::copy_from_slice(bytes);
            Deframer::default().next(&mut data, 100, &mut gathered, 150).unwrap_err()
        };
        assert_eq!(next(&[0, 0, 0, 0, 101], 0), FramingError::TooLarge(101));
        assert_eq!(next(&[0, 0, 0, 0, 100, 1], 51), FramingError::NoRoom);
        assert_eq!(next(&[1, 0, 0, 0, 1], 0), FramingError::NotAnnounced);
        assert_eq!(next(&[2, 0, 0, 0, 1], 0), FramingError::BadFlag);
    }
}
