//! The first look at a log directory: which files there are, and what their first pages say.

use std::io;

use prism_io::disk::{PAGE_BYTES, Storage};

use crate::checkpoint::{Checkpoint, SlotFault};
use crate::config::LogConfig;
use crate::error::RecoverError;
use crate::format::{BatchHeader, CHECKPOINT_NAME, HeaderFault, Nonce, segment_number};

/// A segment file and the batch header at its beginning.
#[derive(Clone, Debug)]
pub(crate) struct SegmentFile {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Whether the beginning was never written.
    pub(crate) zero_page: bool,
    header: Option<BatchHeader>,
}

impl SegmentFile {
    /// The header at the beginning; `None` where it is zero or damaged.
    pub(crate) fn header(&self) -> Option<BatchHeader> {
        self.header
    }
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    pub(crate) files: Vec<SegmentFile>,
    /// Leftovers of interrupted creations.
    pub(crate) leftovers: Vec<String>,
    pub(crate) checkpoint_file: bool,
    pub(crate) slots: [Option<Checkpoint>; 2],
    pub(crate) epoch_max: u64,
    pub(crate) segment_seq_max: u64,
}

impl Survey {
    /// The files that begin with a batch of this epoch, and that batch.
    pub(crate) fn of_epoch(
        &self,
        nonce: &Nonce,
    ) -> impl Iterator<Item = (&SegmentFile, BatchHeader)> {
        let with_header =
            self.files.iter().filter_map(|file| file.header.map(|header| (file, header)));
        with_header.filter(|(_, header)| header.nonce == *nonce)
    }

    /// Counts the beginning of the file as damaged.
    pub(crate) fn forget_header(&mut self, number: u32) {
        self.files
            .iter_mut()
            .filter(|file| file.number == number)
            .for_each(|file| file.header = None);
    }

    /// The slot that was written last.
    pub(crate) fn newest_slot(&self) -> Option<&Checkpoint> {
        self.slots.iter().flatten().max_by_key(|slot| slot.sequence)
    }
}

/// Reads the checkpoint slots and the first page of every segment file. Refuses what another version or another shard
/// wrote.
pub(crate) fn survey(
    storage: &mut dyn Storage,
    config: &LogConfig,
) -> Result<Survey, RecoverError> {
    let read_fault = |file: &str| {
        let file = file.to_string();
        move |error: io::Error| RecoverError::Read { file, error }
    };
    let mut survey = Survey::default();
    for entry in storage.list().map_err(read_fault("the log's directory"))? {
        if entry.name == CHECKPOINT_NAME {
            survey.slots = read_slots(storage, config, entry.bytes)?;
            survey.checkpoint_file = entry.bytes == 2 * config.slot_bytes() as u64;
            if !survey.checkpoint_file {
                survey.leftovers.push(entry.name);
            }
        } else if let Some(number) = segment_number(&entry.name) {
            let mut page = vec![0; PAGE_BYTES];
            let length =
                storage.read(&entry.name, 0, &mut page).map_err(read_fault(&entry.name))?;
            page[length..].fill(0);
            let zero_page = page.iter().all(|&byte| byte == 0);
            let header = match BatchHeader::decode(&page) {
                Ok((header, _)) => Some(header),
                Err(HeaderFault::UnknownVersion(version)) => {
                    return Err(RecoverError::UnknownVersion { file: entry.name, version });
                }
                Err(_) => None,
            };
            if let Some(header) = header {
                check_shard(&entry.name, header.shard, config)?;
                survey.epoch_max = survey.epoch_max.max(header.epoch);
                survey.segment_seq_max = survey.segment_seq_max.max(header.segment_seq);
            }
            survey.files.push(SegmentFile {
                number,
                name: entry.name,
                bytes: entry.bytes,
                zero_page,
                header,
            });
        } else if entry.name.ends_with(".wal.new") {
            survey.leftovers.push(entry.name);
        }
    }
    Ok(survey)
}

/// Both slots, also where the configured size of a slot has changed since.
fn read_slots(
    storage: &mut dyn Storage,
    config: &LogConfig,
    file_bytes: u64,
) -> Result<[Option<Checkpoint>; 2], RecoverError> {
    let slot_bytes = (file_bytes / 2) as usize / PAGE_BYTES * PAGE_BYTES;
    let mut slots = [None, None];
    for (index, slot) in slots.iter_mut().enumerate() {
        let mut bytes = vec![0; slot_bytes];
        let length = storage
            .read(CHECKPOINT_NAME, (index * slot_bytes) as u64, &mut bytes)
            .map_err(|error| RecoverError::Read { file: CHECKPOINT_NAME.into(), error })?;
        match Checkpoint::decode(&bytes[..length]) {
            Ok(checkpoint) => {
                check_shard(CHECKPOINT_NAME, checkpoint.shard, config)?;
                *slot = Some(checkpoint);
            }
            Err(SlotFault::UnknownVersion(version)) => {
                return Err(RecoverError::UnknownVersion { file: CHECKPOINT_NAME.into(), version });
            }
            Err(SlotFault::Empty | SlotFault::Damaged) => {}
        }
    }
    Ok(slots)
}

fn check_shard(file: &str, found: u16, config: &LogConfig) -> Result<(), RecoverError> {
    let expected = config.shard;
    if found == expected {
        Ok(())
    } else {
        Err(RecoverError::OtherShard { file: file.into(), found, expected })
    }
}
