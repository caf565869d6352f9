//! Which segment file is in which use.
//!
//! Promises: a file is spare only when nothing needed stands in it; segments are activated one after the other and
//! recycled oldest first.

/// A segment in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedSegment {
    /// Number in the file name.
    pub file: u32,
    /// Activation number.
    pub segment_seq: u64,
    /// LSN of its first record.
    pub first_lsn: u64,
    /// LSN of its last record; of the active segment, the last one placed when it was last asked.
    pub last_lsn: u64,
}

/// The segment files of one log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    /// In order of activation; the last one is active.
    used: Vec<UsedSegment>,
    /// Ready to be activated, the next one first.
    spare: Vec<u32>,
    next_file: u32,
    next_seq: u64,
}

impl Segments {
    /// As recovery found them. `next_seq` is above every activation number ever seen.
    pub(crate) fn new(used: Vec<UsedSegment>, spare: Vec<u32>, next_seq: u64) -> Segments {
        let files = used.iter().map(|segment| segment.file).chain(spare.iter().copied());
        let next_file = files.max().map_or(0, |file| file + 1);
        Segments { used, spare, next_file, next_seq }
    }

    pub(crate) fn used(&self) -> &[UsedSegment] {
        &self.used
    }

    pub(crate) fn spares(&self) -> usize {
        self.spare.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.used.len() + self.spare.len()
    }

    /// The file that will be activated next.
    pub(crate) fn next_spare(&self) -> Option<u32> {
        self.spare.first().copied()
    }

    /// A file number that no file has.
    pub(crate) fn new_file(&mut self) -> u32 {
        self.next_file += 1;
        self.next_file - 1
    }

    /// A file is there, zero-filled and durable.
    pub(crate) fn add_spare(&mut self, file: u32) {
        self.spare.push(file);
    }

    /// Takes the next spare file; its first record will be `first_lsn`.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn activate(&mut self, first_lsn: u64) -> UsedSegment {
        let file = self.spare.remove(0);
        if let Some(last) = self.used.last_mut() {
            last.last_lsn = first_lsn - 1;
        }
        let segment =
            UsedSegment { file, segment_seq: self.next_seq, first_lsn, last_lsn: first_lsn };
        self.next_seq += 1;
        self.used.push(segment);
        segment
    }

    /// Makes every segment spare that holds nothing above `trim_upto`, but never the active one.
    pub(crate) fn recycle(&mut self, trim_upto: u64) -> usize {
        let inactive = self.used.len().saturating_sub(1);
        let freed = self.used[..inactive]
            .iter()
            .take_while(|segment| segment.last_lsn <= trim_upto)
            .count();
        self.spare.extend(self.used.drain(..freed).map(|segment| segment.file));
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_go_round() {
        let mut segments = Segments::new(Vec::new(), vec![0, 1], 1);
        assert_eq!(segments.activate(1).segment_seq, 1);
        assert_eq!(segments.recycle(100), 0, "the active segment stays");
        assert_eq!(segments.activate(50).file, 1);
        assert_eq!(segments.recycle(48), 0);
        assert_eq!(segments.recycle(49), 1);
        assert_eq!((segments.spares(), segments.total()), (1, 2));
        assert_eq!(segments.new_file(), 2);
        let again = segments.activate(90);
        assert_eq!((again.file, again.segment_seq), (0, 3), "the same file, another activation");
    }
}
