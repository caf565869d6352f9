//! Streams and the table that finds them (RFC 9113, section 5.1).
//!
//! Slots are reused, so a call costs no allocation; a handle carries the stream's number beside its slot, and a number never
//! comes back within a connection, so a late handle finds nothing rather than someone else's stream.

use super::fields::Fields;
use super::flow::{ReceiveWindow, SendWindow};
use super::queue::Queue;
use std::hash::{BuildHasher, Hasher};

/// A stream of one connection. Stays harmless after the stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId {
    number: u32,
    slot: u32,
}

impl StreamId {
    /// For connections that have no table of streams.
    pub(crate) fn new(number: u32, slot: u32) -> Self {
        Self { number, slot }
    }

    /// The stream identifier on the wire.
    pub fn number(self) -> u32 {
        self.number
    }

    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// How the sending side of a stream is to end once its queue is empty.
#[derive(Debug, Default)]
pub(crate) enum Ending {
    /// More may come.
    #[default]
    Open,
    /// END_STREAM on the last DATA frame.
    Flag,
    /// Trailers.
    Trailers(Box<Fields>),
}

/// What the layer above keeps per stream: slots are reused.
pub(crate) trait Recycle: Default {
    /// Becomes as good as new.
    fn recycle(&mut self);

    /// Whether the peer has begun something that it has to bring to an end, such as a message.
    fn awaits_more(&self) -> bool {
        false
    }
}

/// One stream; `T` is what the layer above keeps for it.
#[derive(Debug)]
pub(crate) struct Stream<T> {
    /// 0 while the slot is free.
    pub(crate) number: u32,
    /// We have sent a final HEADERS frame.
    pub(crate) headers_sent: bool,
    /// A final head has been received.
    pub(crate) headers_received: bool,
    /// We have sent END_STREAM.
    pub(crate) local_closed: bool,
    /// The peer has sent END_STREAM.
    pub(crate) remote_closed: bool,
    /// It is in the connection's list of streams with something to send.
    pub(crate) in_ready: bool,
    /// The layer above was told to stop and wants to hear when there is room.
    pub(crate) wants_room: bool,
    /// Bytes received, and of the queue sent, since the streams were looked at for slow peers; and what was waited for then.
    pub(crate) received_bytes: u32,
    pub(crate) sent_bytes: u32,
    pub(crate) awaited_more: bool,
    pub(crate) was_queued: bool,
    pub(crate) send_window: SendWindow,
    pub(crate) receive_window: ReceiveWindow,
    /// Bytes of DATA that `content-length` still promises.
    pub(crate) content_left: Option<u64>,
    pub(crate) queue: Queue,
    pub(crate) queue_bytes: usize,
    pub(crate) ending: Ending,
    pub(crate) app: T,
}

#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    /// 0 is empty.
    number: u32,
    slot: u32,
}

/// The live streams of a connection.
#[derive(Debug)]
pub(crate) struct StreamTable<T> {
    slots: Vec<Stream<T>>,
    free: Vec<u32>,
    /// Open addressing with linear probing, at most half full; a power of two.
    index: Vec<IndexEntry>,
    shift: u32,
    /// Odd and secret, so that a peer cannot choose numbers that collide.
    multiplier: u64,
    len: usize,
}

const INDEX_ENTRIES_MIN: usize = 16;

impl<T: Recycle> StreamTable<T> {
    pub(crate) fn new() -> Self {
        let seed = std::hash::RandomState::new().build_hasher().finish();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: Vec::new(),
            shift: 0,
            multiplier: seed | 1,
            len: 0,
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// An odd number that the peer cannot know.
    #[inline]
    pub(crate) fn secret(&self) -> u64 {
        self.multiplier
    }

    #[inline]
    fn home(&self, number: u32) -> usize {
        (u64::from(number).wrapping_mul(self.multiplier) >> self.shift) as usize
    }

    /// Finds a stream by its number on the wire.
    #[inline]
    pub(crate) fn find(&self, number: u32) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mask = self.index.len() - 1;
        let mut at = self.home(number);
        loop {
            let entry = self.index[at & mask];
            if entry.number == number {
                return Some(entry.slot as usize);
            }
            if entry.number == 0 {
                return None;
            }
            at += 1;
        }
    }

    /// The stream of a handle, unless it has ended.
    #[inline]
    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream<T>> {
        self.slots.get(id.slot()).filter(|stream| stream.number == id.number)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream<T>> {
        self.slots.get_mut(id.slot()).filter(|stream| stream.number == id.number)
    }

    #[inline]
    pub(crate) fn id(&self, slot: usize) -> StreamId {
        StreamId { number: self.slots[slot].number, slot: slot as u32 }
    }

    #[inline]
    pub(crate) fn at(&mut self, slot: usize) -> &mut Stream<T> {
        &mut self.slots[slot]
    }

    pub(crate) fn insert(
        &mut self,
        number: u32,
        send_window: SendWindow,
        receive_window: ReceiveWindow,
    ) -> usize {
        debug_assert!(number != 0 && self.find(number).is_none());
        if (self.len + 1) * 2 > self.index.len() {
            self.grow();
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                let stream = &mut self.slots[slot as usize];
                debug_assert!(stream.number == 0 && stream.queue.is_empty());
                stream.number = number;
                stream.send_window = send_window;
                stream.receive_window = receive_window;
                stream.headers_sent = false;
                stream.headers_received = false;
                stream.local_closed = false;
                stream.remote_closed = false;
                stream.wants_room = false;
                stream.received_bytes = 0;
                stream.sent_bytes = 0;
                stream.awaited_more = false;
                stream.was_queued = false;
                stream.content_left = None;
                slot
            }
            None => {
                self.slots.push(Stream {
                    number,
                    headers_sent: false,
                    headers_received: false,
                    local_closed: false,
                    remote_closed: false,
                    in_ready: false,
                    wants_room: false,
                    received_bytes: 0,
                    sent_bytes: 0,
                    awaited_more: false,
                    was_queued: false,
                    send_window,
                    receive_window,
                    content_left: None,
                    queue: Queue::default(),
                    queue_bytes: 0,
                    ending: Ending::Open,
                    app: T::default(),
                });
                (self.slots.len() - 1) as u32
            }
        };
        self.place(IndexEntry { number, slot });
        self.len += 1;
        slot as usize
    }

    /// Frees a slot and returns how many bytes were still queued.
    pub(crate) fn remove(&mut self, slot: usize) -> usize {
        let number = self.slots[slot].number;
        debug_assert!(number != 0);
        let mask = self.index.len() - 1;
        let mut at = self.home(number) & mask;
        while self.index[at].number != number {
            at = (at + 1) & mask;
        }
        // Backward-shift deletion keeps the probes short without tombstones.
        let mut next = (at + 1) & mask;
        while self.index[next].number != 0 {
            let home = self.home(self.index[next].number) & mask;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(at) & mask {
                self.index[at] = self.index[next];
                at = next;
            }
            next = (next + 1) & mask;
        }
        self.index[at].number = 0;
        self.len -= 1;

        let stream = &mut self.slots[slot];
        stream.number = 0;
        let queued = std::mem::take(&mut stream.queue_bytes);
        if queued > 0 {
            stream.queue.clear();
        }
        if !matches!(stream.ending, Ending::Open) {
            stream.ending = Ending::Open;
        }
        stream.app.recycle();
        self.free.push(slot as u32);
        queued
    }

    /// Gives back the memory of an empty table. Old handles still find nothing.
    pub(crate) fn shrink(&mut self) {
        if self.len == 0 {
            self.slots = Vec::new();
            self.free = Vec::new();
            self.index = Vec::new();
        }
    }

    /// Slots of the live streams.
    pub(crate) fn live(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().enumerate().filter(|(_, stream)| stream.number != 0).map(|(slot, _)| slot)
    }

    fn place(&mut self, entry: IndexEntry) {
        let mask = self.index.len() - 1;
        let mut at = self.home(entry.number) & mask;
        while self.index[at].number != 0 {
            at = (at + 1) & mask;
        }
        self.index[at] = entry;
    }

    fn grow(&mut self) {
        let entries = (self.index.len() * 2).max(INDEX_ENTRIES_MIN);
        let empty = IndexEntry { number: 0, slot: 0 };
        let old = std::mem::replace(&mut self.index, vec![empty; entries]);
        self.shift = 64 - entries.trailing_zeros();
        for entry in old.into_iter().filter(|entry| entry.number != 0) {
            self.place(entry);
        }
    }
}

/// Numbers of the streams that ended last, to tell late frames from wrong ones. Allocates as it fills.
#[derive(Debug)]
pub(crate) struct RecentlyClosed {
    numbers: Vec<u32>,
    next: usize,
    len_max: usize,
}

impl RecentlyClosed {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { numbers: Vec::new(), next: 0, len_max }
    }

    #[inline]
    pub(crate) fn push(&mut self, number: u32) {
        if self.numbers.len() < self.len_max {
            self.numbers.push(number);
            return;
        }
        self.numbers[self.next] = number;
        self.next = if self.next + 1 == self.len_max { 0 } else { self.next + 1 };
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.numbers.contains(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    impl Recycle for u32 {
        fn recycle(&mut self) {}
    }

    fn insert(table: &mut StreamTable<u32>, number: u32) -> usize {
        let slot = table.insert(number, SendWindow::new(1), ReceiveWindow::new(1, 1));
        table.at(slot).app = number;
        slot
    }

    #[test]
    fn agrees_with_a_map_under_churn() {
        let mut table = StreamTable::new();
        let mut model = BTreeMap::new();
        let mut state = 1u64;
        for round in 0..20_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if model.len() < 100 && state >> 60 < 9 {
                let number = round * 2 + 1;
                model.insert(number, insert(&mut table, number));
            } else if !model.is_empty() {
                let nth = (state >> 33) as usize % model.len();
                let (&number, &slot) = model.iter().nth(nth).unwrap();
                model.remove(&number);
                assert_eq!((table.at(slot).app, table.remove(slot)), (number, 0));
                assert_eq!(table.find(number), None);
            }
            assert_eq!(table.len(), model.len());
            for (&number, &slot) in model.iter().take(5) {
                assert_eq!(table.find(number), Some(slot));
            }
        }
        assert_eq!(table.live().count(), model.len());
        assert!(table.slots.len() <= 100);
    }

    #[test]
    fn a_late_handle_finds_nothing() {
        let mut table = StreamTable::new();
        let slot = insert(&mut table, 1);
        let id = table.id(slot);
        table.remove(slot);
        assert!(table.get(id).is_none());
        assert_eq!(insert(&mut table, 3), slot);
        assert!(table.get(id).is_none() && table.get(table.id(slot)).is_some());
        table.shrink();
        assert_eq!(table.find(3), Some(slot));
        table.remove(slot);
        table.shrink();
        assert!(table.get(id).is_none() && table.find(3).is_none() && table.slots.is_empty());
        assert_eq!(insert(&mut table, 5), 0);
    }
}
