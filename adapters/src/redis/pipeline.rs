//! Calls under way on one connection: what is to be sent, who waits, and which reply belongs to whom.
//!
//! Redis answers in the order in which it was asked. A call may consist of several commands; it gets all of their replies
//! in one piece, a slice of what was read. Nothing is allocated per call once there have been as many at a time as there are
//! now. A caller that goes away leaves its place to its replies, which are dropped when they come. What nobody waits for any more when it
//! is to be sent is not sent. It does no I/O and asks no clock. What the server says by itself is shown to whoever owns the connection; some of that is a reply (to SUBSCRIBE).

use std::collections::VecDeque;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};

use super::codec::{Framer, ProtocolError};
use super::errors::Outage;
use crate::call::NO_DEADLINE_NS;

/// A buffer of requests is kept for the next ones unless it has become larger than this.
const UNSENT_BYTES_KEPT_MAX: usize = 256 * 1024;

/// Names a call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

#[derive(Debug)]
enum Stage {
    Free,
    Waiting(Option<Waker>),
    Answered(Bytes),
    Lost(Outage),
    /// Its deadline passed before it was sent.
    NotSent,
    /// Nobody waits any more.
    Abandoned,
}

#[derive(Debug)]
struct Slot {
    stage: Stage,
    /// Replies that it gets.
    replies: u32,
    begun_ns: u64,
    /// After this it is not sent any more.
    deadline_ns: u64,
    /// What its commands take of what is to be sent.
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pipeline {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The slots of the calls that are not answered, the oldest first.
    order: VecDeque<u32>,
    unsent: Vec<u8>,
    /// So many of the youngest in `order` are to be sent.
    unsent_calls: usize,
    /// The earliest deadline among them.
    unsent_deadline_ns: u64,
    framer: Framer,
    /// Whole replies of the oldest call at the beginning of what was read: their number and their bytes.
    come: (u32, usize),
    calls_max: usize,
    unsent_bytes_max: usize,
}

impl Pipeline {
    pub(super) fn new(calls_max: usize, unsent_bytes_max: usize) -> Self {
        Pipeline {
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            unsent: Vec::new(),
            unsent_calls: 0,
            unsent_deadline_ns: NO_DEADLINE_NS,
            framer: Framer::default(),
            come: (0, 0),
            calls_max,
            unsent_bytes_max,
        }
    }

    /// Begins a call of so many replies, which is not sent after `deadline_ns`; `write` adds its commands to what is to be sent. `None`:
    /// there are too many.
    #[inline]
    pub(super) fn begin(
        &mut self,
        replies: u32,
        (now_ns, deadline_ns): (u64, u64),
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Ticket> {
        debug_assert!(replies > 0);
        if self.order.len() >= self.calls_max || self.unsent.len() > self.unsent_bytes_max {
            return None;
        }
        let before = self.unsent.len();
        write(&mut self.unsent);
        let bytes = self.unsent.len() - before;
        let stage = Stage::Waiting(None);
        let slot = Slot { stage, replies, begun_ns: now_ns, deadline_ns, bytes };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.order.push_back(number);
        self.unsent_calls += 1;
        self.unsent_deadline_ns = self.unsent_deadline_ns.min(deadline_ns);
        Some(Ticket(number))
    }

    /// The replies of a call, once they have come. After that the ticket is void.
    #[inline]
    pub(super) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Result<Bytes, Outage>> {
        let slot = &mut self.slots[ticket.0 as usize];
        match &mut slot.stage {
            Stage::Waiting(known) => {
                if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    *known = Some(waker.clone());
                }
                return Poll::Pending;
            }
            Stage::Answered(_) | Stage::Lost(_) | Stage::NotSent => {}
            Stage::Free | Stage::Abandoned => unreachable!("the ticket of a call that has ended"),
        }
        self.free.push(ticket.0);
        match std::mem::replace(&mut slot.stage, Stage::Free) {
            Stage::Answered(replies) => Poll::Ready(Ok(replies)),
            Stage::Lost(outage) => Poll::Ready(Err(outage)),
            Stage::NotSent => Poll::Ready(Err(Outage::not_sent())),
            _ => unreachable!("looked at above"),
        }
    }

    /// Nobody waits for this call any more.
    pub(super) fn abandon(&mut self, ticket: Ticket) {
        let slot = &mut self.slots[ticket.0 as usize];
        slot.stage = match slot.stage {
            Stage::Waiting(_) => Stage::Abandoned,
            _ => {
                self.free.push(ticket.0);
                Stage::Free
            }
        };
    }

    /// Takes what was read: every call whose replies are whole gets them, and its caller is woken. Returns how many
    /// calls that were. `pushed` is shown what the server says by itself, and says whether it is a reply all the same.
    ///
    /// # Errors
    /// The peer talks nonsense; nothing that comes after it can be understood.
    pub(super) fn receive(
        &mut self,
        read: &mut BytesMut,
        mut pushed: impl FnMut(&[u8]) -> Result<bool, ProtocolError>,
    ) -> Result<usize, ProtocolError> {
        let mut answered = 0;
        loop {
            let (come, come_bytes) = self.come;
            let Some(frame) = self.framer.find(&read[come_bytes..])? else { return Ok(answered) };
            if frame.is_push && !pushed(&read[come_bytes..come_bytes + frame.length])? {
                match come_bytes {
                    0 => read.advance(frame.length),
                    _ => self.come.1 += frame.length,
                }
                continue;
            }
            let Some(&number) = self.order.front() else {
                return Err(ProtocolError("a reply to nothing"));
            };
            self.come = (come + 1, come_bytes + frame.length);
            if self.come.0 < self.slots[number as usize].replies {
                continue;
            }
            let replies = read.split_to(self.come.1).freeze();
            self.come = (0, 0);
            self.order.pop_front();
            self.settle(number, Stage::Answered(replies));
            answered += 1;
        }
    }

    /// How many more bytes have to be read until the oldest call can have its replies, as far as that is known.
    pub(super) fn wanted_bytes(&self, read: &BytesMut) -> usize {
        (self.come.1 + self.framer.wanted()).saturating_sub(read.len())
    }

    /// The connection is gone: every call ends, and what was not sent is forgotten.
    pub(super) fn lose(&mut self, outage: &Outage) {
        self.framer = Framer::default();
        self.come = (0, 0);
        self.unsent.clear();
        self.all_sent();
        while let Some(number) = self.order.pop_front() {
            self.settle(number, Stage::Lost(outage.clone()));
        }
    }

    #[inline]
    fn settle(&mut self, number: u32, stage: Stage) {
        let slot = &mut self.slots[number as usize];
        match std::mem::replace(&mut slot.stage, stage) {
            Stage::Waiting(Some(waker)) => waker.wake(),
            Stage::Waiting(None) => {}
            _ => {
                slot.stage = Stage::Free;
                self.free.push(number);
            }
        }
    }

    /// Exchanges what is to be sent for an empty buffer; the one that was sent before is used again. Calls whose deadline has passed end
    /// instead of being sent.
    pub(super) fn take_unsent(&mut self, sent: Vec<u8>, now_ns: u64) -> Vec<u8> {
        if self.unsent_deadline_ns <= now_ns {
            self.drop_late(now_ns);
        }
        self.all_sent();
        let mut empty = sent;
        empty.clear();
        empty.shrink_to(UNSENT_BYTES_KEPT_MAX);
        std::mem::replace(&mut self.unsent, empty)
    }

    fn all_sent(&mut self) {
        (self.unsent_calls, self.unsent_deadline_ns) = (0, NO_DEADLINE_NS);
    }

    /// Takes the calls whose deadline has passed out of what is to be sent.
    #[cold]
    fn drop_late(&mut self, now_ns: u64) {
        let first = self.order.len() - self.unsent_calls;
        let (mut kept, mut from, mut to) = (first, 0, 0);
        for place in first..self.order.len() {
            let number = self.order[place];
            let Slot { bytes, deadline_ns, .. } = self.slots[number as usize];
            if deadline_ns <= now_ns {
                self.settle(number, Stage::NotSent);
            } else {
                self.unsent.copy_within(from..from + bytes, to);
                to += bytes;
                self.order[kept] = number;
                kept += 1;
            }
            from += bytes;
        }
        self.order.truncate(kept);
        self.unsent.truncate(to);
    }

    /// Calls that are not answered.
    pub(super) fn calls(&self) -> usize {
        self.order.len()
    }

    /// When the oldest call began, in monotonic ns.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.order.front().map(|&number| self.slots[number as usize].begun_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begun at 0, and never late.
    const NEVER: (u64, u64) = (0, NO_DEADLINE_NS);

    fn begin(pipeline: &mut Pipeline, replies: u32) -> Ticket {
        pipeline.begin(replies, NEVER, |out| out.extend_from_slice(b"x")).expect("there is room")
    }

    fn receive(pipeline: &mut Pipeline, read: &mut BytesMut) -> Result<usize, ProtocolError> {
        pipeline.receive(read, |_| Ok(false))
    }

    fn poll(pipeline: &mut Pipeline, ticket: Ticket) -> Option<Bytes> {
        match pipeline.poll(ticket, Waker::noop()) {
            Poll::Ready(replies) => Some(replies.expect("the connection stands")),
            Poll::Pending => None,
        }
    }

    #[test]
    fn replies_go_to_their_calls_in_order() {
        let mut pipeline = Pipeline::new(8, 1000);
        let (a, b, c) = (begin(&mut pipeline, 1), begin(&mut pipeline, 2), begin(&mut pipeline, 1));
        assert_eq!(pipeline.take_unsent(Vec::new(), 0), b"xxx");
        let mut read =
            BytesMut::from(&b"+A\r\n>1\r\n+push\r\n+B1\r\n>1\r\n+push\r\n:2\r\n$3\r\nC"[..]);
        assert_eq!(receive(&mut pipeline, &mut read), Ok(2));
        assert_eq!(poll(&mut pipeline, a).unwrap(), "+A\r\n");
        assert_eq!(poll(&mut pipeline, b).unwrap(), "+B1\r\n>1\r\n+push\r\n:2\r\n");
        assert_eq!(poll(&mut pipeline, c), None);
        assert_eq!(pipeline.wanted_bytes(&read), 4);
        read.extend_from_slice(b"CC\r\n");
        assert_eq!(receive(&mut pipeline, &mut read), Ok(1));
        assert_eq!(poll(&mut pipeline, c).unwrap(), "$3\r\nCCC\r\n");
        assert_eq!((pipeline.calls(), pipeline.slots.len(), pipeline.free.len()), (0, 3, 3));
        assert!(
            receive(&mut pipeline, &mut BytesMut::from(&b"+D\r\n"[..])).is_err(),
            "nobody asked"
        );
    }

    #[test]
    fn a_push_may_be_a_reply() {
        let mut pipeline = Pipeline::new(8, 1000);
        let (a, b) = (begin(&mut pipeline, 1), begin(&mut pipeline, 2));
        let text = b">1\r\n+event\r\n>1\r\n+done\r\n+B1\r\n>1\r\n+event\r\n>1\r\n+done\r\n";
        let mut events = 0;
        let pushed = |frame: &[u8]| {
            events += usize::from(frame.ends_with(b"+event\r\n"));
            Ok(frame.ends_with(b"+done\r\n"))
        };
        assert_eq!(pipeline.receive(&mut BytesMut::from(&text[..]), pushed), Ok(2));
        assert_eq!(events, 2);
        assert_eq!(poll(&mut pipeline, a).unwrap(), ">1\r\n+done\r\n");
        assert!(poll(&mut pipeline, b).unwrap().starts_with(b"+B1\r\n"));
        let mad = |_: &[u8]| Err(ProtocolError("mad"));
        assert!(pipeline.receive(&mut BytesMut::from(&text[..]), mad).is_err());
    }

    #[test]
    fn a_place_is_free_again_only_when_its_replies_have_come() {
        let mut pipeline = Pipeline::new(2, 1000);
        let (a, b) = (begin(&mut pipeline, 1), begin(&mut pipeline, 1));
        assert!(pipeline.begin(1, NEVER, |_| panic!("it is full")).is_none());
        pipeline.abandon(a);
        assert!(pipeline.begin(1, NEVER, |_| panic!("it is still full")).is_none());
        receive(&mut pipeline, &mut BytesMut::from(&b"+A\r\n+B\r\n"[..])).unwrap();
        assert_eq!(poll(&mut pipeline, b).unwrap(), "+B\r\n");
        assert_eq!(pipeline.free.len(), 2);
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded() {
        let mut pipeline = Pipeline::new(100, 10);
        let long = |out: &mut Vec<u8>| out.extend_from_slice(&[b'x'; 1_000]);
        pipeline.begin(1, NEVER, long).expect("one alone may be as long as it is");
        assert!(pipeline.begin(1, NEVER, long).is_none());
        assert_eq!(pipeline.take_unsent(Vec::new(), 0).len(), 1_000);
        pipeline.begin(1, NEVER, long).expect("the first has been taken to be sent");
        assert_eq!(pipeline.calls(), 2);
    }

    #[test]
    fn when_the_connection_goes_every_call_ends() {
        let mut pipeline = Pipeline::new(8, 1000);
        let (a, b) = (begin(&mut pipeline, 1), begin(&mut pipeline, 1));
        receive(&mut pipeline, &mut BytesMut::from(&b"$3\r\nA"[..])).unwrap();
        pipeline.abandon(b);
        pipeline.lose(&Outage::lost());
        assert!(matches!(pipeline.poll(a, Waker::noop()), Poll::Ready(Err(_))));
        assert_eq!((pipeline.calls(), pipeline.free.len()), (0, 2));
        assert_eq!(pipeline.take_unsent(Vec::new(), 0), b"");
        let c = begin(&mut pipeline, 1);
        receive(&mut pipeline, &mut BytesMut::from(&b"+C\r\n"[..])).unwrap();
        assert_eq!(
            poll(&mut pipeline, c).unwrap(),
            "+C\r\n",
            "nothing is left of the reply before"
        );
    }

    #[test]
    fn what_is_late_is_not_sent_and_the_others_keep_their_order() {
        let mut pipeline = Pipeline::new(8, 1000);
        let put = |pipeline: &mut Pipeline, deadline_ns: u64, text: &'static [u8]| {
            let write = |out: &mut Vec<u8>| out.extend_from_slice(text);
            pipeline.begin(1, (0, deadline_ns), write).expect("there is room")
        };
        let sent = put(&mut pipeline, 5, b"sent ");
        assert_eq!(pipeline.take_unsent(Vec::new(), 4), b"sent ");
        let first = put(&mut pipeline, 9, b"first ");
        let late = put(&mut pipeline, 6, b"late ");
        let gone = put(&mut pipeline, 6, b"gone ");
        let endless = put(&mut pipeline, NO_DEADLINE_NS, b"endless ");
        pipeline.abandon(gone);
        assert_eq!(pipeline.take_unsent(Vec::new(), 6), b"first endless ");
        let refused = pipeline.poll(late, Waker::noop());
        assert!(matches!(refused, Poll::Ready(Err(outage)) if outage == Outage::not_sent()));
        receive(&mut pipeline, &mut BytesMut::from(&b"+S\r\n+F\r\n+E\r\n"[..])).unwrap();
        assert_eq!(poll(&mut pipeline, sent).unwrap(), "+S\r\n", "what was sent is answered");
        assert_eq!(poll(&mut pipeline, first).unwrap(), "+F\r\n");
        assert_eq!(poll(&mut pipeline, endless).unwrap(), "+E\r\n");
        assert_eq!((pipeline.calls(), pipeline.free.len()), (0, pipeline.slots.len()));
        put(&mut pipeline, 1, b"x");
        assert_eq!(pipeline.take_unsent(Vec::new(), 7), b"", "all of it is late");
        assert_eq!(pipeline.calls(), 0);
    }
}
