//! The two checkpoint slots: work saved, and proof of what was durable.
//!
//! Losing a slot, or both, means more replay and never a loss of data: everything in them can be found in the segments.

use prism_io::disk::{AlignedBuffer, page_ceiling};

use crate::format::{
    CHECKPOINT_FLAG_CLEAN, CHECKPOINT_HEADER_BYTES, CHECKPOINT_MAGIC, FORMAT_VERSION, Nonce, array,
    get_u16, get_u32, get_u64, put_u16, put_u32, put_u64,
};

/// What one slot says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The higher one of two slots is the newer.
    pub sequence: u64,
    /// Nonce of the epoch that wrote it.
    pub nonce: Nonce,
    /// That epoch.
    pub epoch: u64,
    /// Every LSN up to this one was durable.
    pub durable_upto: u64,
    /// No LSN up to this one was needed any more.
    pub trim_upto: u64,
    /// LSN of the record that carries the same data; 0 for none.
    pub record_lsn: u64,
    /// Shard whose log this is.
    pub shard: u16,
    /// Whether the log was closed cleanly at `durable_upto`.
    pub clean: bool,
    /// The caller's data.
    pub data: Vec<u8>,
}

/// Why a slot does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotFault {
    /// Never written.
    Empty,
    /// Torn or damaged.
    Damaged,
    /// Intact, but of a format that this build does not know.
    UnknownVersion(u32),
}

impl Checkpoint {
    /// Fills an empty buffer with the slot's bytes, padded to whole pages.
    pub(crate) fn encode(&self, buffer: &mut AlignedBuffer) {
        let length = CHECKPOINT_HEADER_BYTES + self.data.len();
        let bytes = buffer.extend(page_ceiling(length));
        bytes.fill(0);
        bytes[..8].copy_from_slice(&CHECKPOINT_MAGIC);
        put_u32(bytes, 8, FORMAT_VERSION);
        put_u64(bytes, 16, self.sequence);
        bytes[24..40].copy_from_slice(&self.nonce);
        put_u64(bytes, 40, self.epoch);
        put_u64(bytes, 48, self.durable_upto);
        put_u64(bytes, 56, self.trim_upto);
        put_u64(bytes, 64, self.record_lsn);
        put_u16(bytes, 72, self.shard);
        put_u16(bytes, 74, if self.clean { CHECKPOINT_FLAG_CLEAN } else { 0 });
        put_u32(bytes, 76, self.data.len() as u32);
        bytes[CHECKPOINT_HEADER_BYTES..length].copy_from_slice(&self.data);
        let crc = crc(&bytes[..length]);
        put_u32(bytes, 12, crc);
    }

    /// Reads a slot.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Checkpoint, SlotFault> {
        let header = bytes.get(..CHECKPOINT_HEADER_BYTES).ok_or(SlotFault::Damaged)?;
        if header[..8] != CHECKPOINT_MAGIC {
            let zero = header.iter().all(|&byte| byte == 0);
            return Err(if zero { SlotFault::Empty } else { SlotFault::Damaged });
        }
        let length = CHECKPOINT_HEADER_BYTES + get_u32(header, 76) as usize;
        let slot = bytes.get(..length).ok_or(SlotFault::Damaged)?;
        if crc(slot) != get_u32(slot, 12) {
            return Err(SlotFault::Damaged);
        }
        let version = get_u32(slot, 8);
        if version != FORMAT_VERSION {
            return Err(SlotFault::UnknownVersion(version));
        }
        Ok(Checkpoint {
            sequence: get_u64(slot, 16),
            nonce: array(slot, 24),
            epoch: get_u64(slot, 40),
            durable_upto: get_u64(slot, 48),
            trim_upto: get_u64(slot, 56),
            record_lsn: get_u64(slot, 64),
            shard: get_u16(slot, 72),
            clean: get_u16(slot, 74) & CHECKPOINT_FLAG_CLEAN != 0,
            data: slot[CHECKPOINT_HEADER_BYTES..].to_vec(),
        })
    }
}

fn crc(slot: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&slot[..12]), &slot[16..])
}

#[cfg(test)]
mod tests {
    use prism_io::disk::BufferPool;

    use super::*;

    #[test]
    fn a_slot_survives_and_every_flipped_bit_is_noticed() {
        let checkpoint = Checkpoint {
            sequence: 5,
            nonce: [7; 16],
            epoch: 2,
            durable_upto: 90,
            trim_upto: 50,
            record_lsn: 88,
            shard: 1,
            clean: true,
            data: b"lane positions".to_vec(),
        };
        let pool = BufferPool::new(4096, 1);
        let mut buffer = pool.take(4096);
        checkpoint.encode(&mut buffer);
        assert_eq!(Checkpoint::decode(buffer.as_slice()), Ok(checkpoint));
        let bytes = buffer.as_mut_slice();
        for bit in 0..(CHECKPOINT_HEADER_BYTES + 14) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Checkpoint::decode(&[0; 4096]), Err(SlotFault::Empty));
    }
}
