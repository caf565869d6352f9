//! Repeated fields that are walked in place.

use std::fmt;
use std::marker::PhantomData;

use super::{DecodeError, Reader, WireType};

/// What can be repeated in a view.
pub trait Element<'a>: Sized {
    /// The wire type of one element.
    const WIRE: WireType;

    /// Reads one element of field `field`, whose tag was just read.
    fn read(reader: &mut Reader<'a>, field: u32) -> Result<Self, DecodeError>;
}

/// A repeated field: decoded anew each time it is walked, never collected.
///
/// All elements were checked when the message was decoded, so that walking
/// them cannot fail.
pub struct Repeated<'a, T> {
    /// From the first element's tag to the end of the last; other fields may lie between.
    buf: &'a [u8],
    field: u32,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Repeated<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Repeated<'_, T> {}

impl<T> Default for Repeated<'_, T> {
    fn default() -> Self {
        Repeated { buf: &[], field: 0, len: 0, element: PhantomData }
    }
}

impl<'a, T: Element<'a> + fmt::Debug> fmt::Debug for Repeated<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Element<'a> + PartialEq> PartialEq for Repeated<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<'a, T: Element<'a>> Repeated<'a, T> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// There is no element.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in wire order.
    pub fn iter(&self) -> RepeatedIter<'a, T> {
        RepeatedIter {
            reader: Reader::new(self.buf),
            packed: Reader::new(&[]),
            field: self.field,
            left: self.len,
            element: PhantomData,
        }
    }

    /// Takes in the element, or the packed elements, that `reader` stands
    /// before and whose tag began at `tag_start`.
    ///
    /// A message field that is given twice is merged, but not when both
    /// occurrences carry elements of the same repeated field: that is refused
    /// as a duplicate, since the elements would not lie in one buffer.
    pub(crate) fn extend(
        &mut self,
        reader: &mut Reader<'a>,
        tag: u32,
        tag_start: usize,
    ) -> Result<(), DecodeError> {
        let field = tag >> 3;
        let mut added = 0;
        if tag & 7 == T::WIRE as u32 {
            T::read(reader, field)?;
            added = 1;
        } else {
            let mut packed = Reader::new(reader.bytes()?);
            while !packed.is_empty() {
                T::read(&mut packed, field)?;
                added += 1;
            }
        }
        let end = reader.position();
        let start = if self.field == 0 {
            tag_start
        } else {
            let offset =
                (self.buf.as_ptr() as usize).wrapping_sub(reader.buffer().as_ptr() as usize);
            if offset > tag_start {
                return Err(DecodeError::Duplicate { field });
            }
            offset
        };
        self.buf = &reader.buffer()[start..end];
        self.field = field;
        self.len += added;
        Ok(())
    }
}

impl<'a, T: Element<'a>> IntoIterator for Repeated<'a, T> {
    type Item = T;
    type IntoIter = RepeatedIter<'a, T>;

    fn into_iter(self) -> RepeatedIter<'a, T> {
        self.iter()
    }
}

/// Walks a [`Repeated`].
#[derive(Clone, Debug)]
pub struct RepeatedIter<'a, T> {
    reader: Reader<'a>,
    packed: Reader<'a>,
    field: u32,
    left: usize,
    element: PhantomData<fn() -> T>,
}

impl<'a, T: Element<'a>> RepeatedIter<'a, T> {
    fn read(&mut self) -> Result<Option<T>, DecodeError> {
        if !self.packed.is_empty() {
            return T::read(&mut self.packed, self.field).map(Some);
        }
        while let Some(tag) = self.reader.tag()? {
            if tag >> 3 != self.field {
                self.reader.skip(tag)?;
            } else if tag & 7 == T::WIRE as u32 {
                return T::read(&mut self.reader, self.field).map(Some);
            } else {
                self.packed = Reader::new(self.reader.bytes()?);
                if !self.packed.is_empty() {
                    return T::read(&mut self.packed, self.field).map(Some);
                }
            }
        }
        Ok(None)
    }
}

impl<'a, T: Element<'a>> Iterator for RepeatedIter<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let item = self.read().ok().flatten();
        debug_assert_eq!(item.is_some(), self.left > 0, "elements were checked by decode");
        self.left = self.left.saturating_sub(1);
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, T: Element<'a>> ExactSizeIterator for RepeatedIter<'a, T> {}

impl<'a> Element<'a> for &'a str {
    const WIRE: WireType = WireType::LengthDelimited;

    #[inline]
    fn read(reader: &mut Reader<'a>, field: u32) -> Result<Self, DecodeError> {
        reader.string(field)
    }
}

impl<'a> Element<'a> for &'a [u8] {
    const WIRE: WireType = WireType::LengthDelimited;

    #[inline]
    fn read(reader: &mut Reader<'a>, _field: u32) -> Result<Self, DecodeError> {
        reader.bytes()
    }
}

macro_rules! scalar_elements {
    ($($type:ty, $wire:ident, |$reader:ident| $read:expr;)*) => {$(
        impl<'a> Element<'a> for $type {
            const WIRE: WireType = WireType::$wire;

            #[inline]
            fn read($reader: &mut Reader<'a>, _field: u32) -> Result<Self, DecodeError> {
                Ok($read)
            }
        }
    )*};
}

scalar_elements! {
    bool, Varint, |reader| reader.varint()? != 0;
    u32, Varint, |reader| reader.varint()? as u32;
    u64, Varint, |reader| reader.varint()?;
    i32, Varint, |reader| reader.varint()? as i32;
    i64, Varint, |reader| reader.varint()? as i64;
    f32, Fixed32, |reader| f32::from_le_bytes(reader.fixed32()?);
    f64, Fixed64, |reader| f64::from_le_bytes(reader.fixed64()?);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{put_bytes, put_tag, put_varint, tag};

    fn read<'a, T: Element<'a>>(buf: &'a [u8], field: u32) -> Result<Vec<T>, DecodeError> {
        let mut repeated = Repeated::<T>::default();
        let mut reader = Reader::new(buf);
        loop {
            let start = reader.position();
            let Some(tag) = reader.tag()? else { break };
            if tag >> 3 == field {
                repeated.extend(&mut reader, tag, start)?;
            } else {
                reader.skip(tag)?;
            }
        }
        assert_eq!(repeated.iter().len(), repeated.len());
        Ok(repeated.into_iter().collect())
    }

    #[test]
    fn elements_may_have_other_fields_between_them() {
        let mut buf = Vec::new();
        put_bytes(&mut buf, 1, b"before");
        put_bytes(&mut buf, 2, b"a");
        put_bytes(&mut buf, 3, b"between");
        put_bytes(&mut buf, 2, b"b");
        put_bytes(&mut buf, 1, b"after");
        assert_eq!(read::<&str>(&buf, 2), Ok(vec!["a", "b"]));
        assert_eq!(read::<&[u8]>(&buf, 9), Ok(vec![]));
    }

    #[test]
    fn scalars_may_be_packed_or_not() {
        let mut buf = Vec::new();
        put_bytes(&mut buf, 2, b"");
        put_bytes(&mut buf, 2, &[1, 0xac, 0x02]);
        put_tag(&mut buf, 2, WireType::Varint);
        put_varint(&mut buf, 7);
        put_bytes(&mut buf, 2, &[9]);
        put_bytes(&mut buf, 2, b"");
        assert_eq!(read::<u32>(&buf, 2), Ok(vec![1, 300, 7, 9]));
        assert_eq!(read::<u32>(&[0x12, 1, 0x80], 2), Err(DecodeError::Truncated));
        assert_eq!(read::<f64>(&[0x12, 4, 0, 0, 0, 0], 2), Err(DecodeError::Truncated));
    }

    #[test]
    fn elements_of_two_buffers_are_refused() {
        let (one, two) = ([0x12, 1, b'a'], [0x12, 1, b'b']);
        let both = [one, two].concat();
        let mut repeated = Repeated::<&str>::default();
        for part in both.chunks(3) {
            let mut reader = Reader::new(part);
            let read = reader.tag().expect("tag").expect("one");
            assert_eq!(read, tag(2, WireType::LengthDelimited));
            let taken = repeated.extend(&mut reader, read, 0);
            let first = part.as_ptr() == both.as_ptr();
            assert_eq!(taken.is_ok(), first);
        }
        assert_eq!(repeated.iter().collect::<Vec<_>>(), ["a"]);
    }
}
