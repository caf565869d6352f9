//! What a start says about the start before it: the body of the record that opens an epoch.

use crate::format::{Nonce, array, get_u32, get_u64, put_u32, put_u64};

/// Bytes of the body of an open record.
pub(crate) const OPEN_BYTES: usize = 16 + 16 + 4 * 8 + 8 + 8;

/// Where an epoch ended. What stands behind it is void for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochEnd {
    /// Nonce of that epoch.
    pub nonce: Nonce,
    /// That epoch; 0 = there was none.
    pub epoch: u64,
    /// Activation of the segment in which it ended.
    pub segment_seq: u64,
    /// Offset in that segment behind its last batch.
    pub offset: u64,
    /// The LSN that would have come next.
    pub next_lsn: u64,
    /// Header checksum of its last batch.
    pub chain_crc: u32,
}

/// The body of an open record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenRecord {
    /// Identity of the log, given at its first start.
    pub(crate) directory_id: [u8; 16],
    /// End of the epoch before.
    pub(crate) previous: EpochEnd,
    /// LSNs and lane numbers left out because a repair could not know whether they were used.
    pub(crate) skipped: u64,
}

impl OpenRecord {
    pub(crate) fn encode(&self) -> [u8; OPEN_BYTES] {
        let mut bytes = [0; OPEN_BYTES];
        bytes[..16].copy_from_slice(&self.directory_id);
        bytes[16..32].copy_from_slice(&self.previous.nonce);
        put_u64(&mut bytes, 32, self.previous.epoch);
        put_u64(&mut bytes, 40, self.previous.segment_seq);
        put_u64(&mut bytes, 48, self.previous.offset);
        put_u64(&mut bytes, 56, self.previous.next_lsn);
        put_u32(&mut bytes, 64, self.previous.chain_crc);
        put_u64(&mut bytes, 72, self.skipped);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<OpenRecord> {
        let bytes: &[u8; OPEN_BYTES] = bytes.try_into().ok()?;
        let previous = EpochEnd {
            nonce: array(bytes, 16),
            epoch: get_u64(bytes, 32),
            segment_seq: get_u64(bytes, 40),
            offset: get_u64(bytes, 48),
            next_lsn: get_u64(bytes, 56),
            chain_crc: get_u32(bytes, 64),
        };
        Some(OpenRecord { directory_id: array(bytes, 0), previous, skipped: get_u64(bytes, 72) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_record_survives() {
        let previous = EpochEnd {
            nonce: [3; 16],
            epoch: 4,
            segment_seq: 5,
            offset: 4096,
            next_lsn: 77,
            chain_crc: 0xabcd,
        };
        let open = OpenRecord { directory_id: [9; 16], previous, skipped: 12 };
        assert_eq!(OpenRecord::decode(&open.encode()), Some(open));
        assert_eq!(OpenRecord::decode(&[0; 7]), None);
    }
}
