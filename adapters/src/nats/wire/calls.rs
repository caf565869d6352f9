//! Calls under way on a shard's own connection: what is to be sent, who waits, and which answer belongs to whom.
//!
//! An answer comes to a subject with its call's number in it, so that one that comes late, or a second time, answers no other. What is only
//! told is answered by the PONG to a PING that follows it, one for all that leave together. Everything has a bound: calls, and the
//! bytes that they hold, sent or not. A caller that goes away leaves its place to its answer. What nobody waits for any more when it is to be
//! sent, or what the server turns out not to take, is not sent. It does no I/O and asks no clock.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::task::{Poll, Waker};

use async_nats::Message;
use bytes::{Buf, Bytes, BytesMut};

use super::super::errors::Outage;
use super::super::link::{Answer, Ask, Outgoing};
use super::codec::{self, Frame, Framer, Head, ProtocolError, put_decimal, put_message};
use crate::call::NO_DEADLINE_NS;

/// A buffer of messages is kept for the next ones unless it has become larger than this.
const UNSENT_BYTES_KEPT_MAX: usize = 256 * 1024;

/// What a message takes beside what it carries.
const MESSAGE_BYTES: usize = 64;

/// Calls that can be told apart: their places are the low bits of their numbers.
const PLACE_BITS: u32 = 16;
pub(super) const CALLS_MAX: usize = 1 << PLACE_BITS;

/// Places of calls that have ended which may wait to be left out.
const ENDED_MAX: usize = 64;

/// Names a call under way; it is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Ticket {
    fn place(self) -> usize {
        (self.0 & (CALLS_MAX as u64 - 1)) as usize
    }
}

/// Why a call has not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There are too many, or they are too long together.
    Full,
    /// It cannot be sent at all.
    Unfit(Outage),
}

/// What a server says that is for its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Info(Bytes),
    Error(String),
}

#[derive(Debug)]
enum Stage {
    Free,
    Waiting(Option<Waker>),
    Answered(Answer),
    Lost(Outage),
    /// Nobody waits any more.
    Abandoned,
}

/// What has come of an answer.
#[derive(Debug)]
enum Gathering {
    One,
    /// Of messages of which each is answered, and how many are not.
    Each(Vec<Option<Message>>, usize),
    /// By a PONG.
    Told,
}

#[derive(Debug)]
struct Slot {
    ticket: Ticket,
    stage: Stage,
    gathering: Gathering,
    /// What stands for the subject that the server would name if it refused the call.
    subject: u64,
    /// Since when an answer could come.
    since_ns: u64,
    bytes: usize,
    is_sent: bool,
}

/// A call that is to be sent.
#[derive(Debug)]
struct Unsent {
    ticket: Ticket,
    bytes: usize,
    /// After this it is not sent any more.
    deadline_ns: u64,
    /// Its longest message, as the server counts.
    longest: usize,
    is_told: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Calls {
    slots: Vec<Slot>,
    free: Vec<usize>,
    begun: u64,
    /// Those under way, the oldest first, and some that have ended.
    order: VecDeque<Ticket>,
    unsent: Vec<u8>,
    unsent_calls: Vec<Unsent>,
    /// The earliest deadline and the longest message among them.
    unsent_deadline_ns: u64,
    unsent_longest: usize,
    /// What was told, in its order, and how much of it each PING is behind.
    told: VecDeque<Ticket>,
    pings: VecDeque<usize>,
    wants_ping: bool,
    owes_pong: bool,
    framer: Framer,
    /// What the subjects of answers begin with.
    inbox: String,
    subjects: RandomState,
    under_way: usize,
    sent: usize,
    bytes: usize,
    calls_max: usize,
    bytes_max: usize,
}

impl Calls {
    /// None yet; answers come to subjects below `inbox`.
    pub(super) fn new(inbox: &str, calls_max: usize, bytes_max: usize) -> Self {
        Calls {
            slots: Vec::new(),
            free: Vec::new(),
            begun: 0,
            order: VecDeque::new(),
            unsent: Vec::new(),
            unsent_calls: Vec::new(),
            unsent_deadline_ns: NO_DEADLINE_NS,
            unsent_longest: 0,
            told: VecDeque::new(),
            pings: VecDeque::new(),
            wants_ping: false,
            owes_pong: false,
            framer: Framer::default(),
            inbox: format!("{inbox}."),
            subjects: RandomState::new(),
            under_way: 0,
            sent: 0,
            bytes: 0,
            calls_max: calls_max.min(CALLS_MAX),
            bytes_max,
        }
    }

    /// Calls under way, with or without a caller.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Of these the ones that the server has.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// The subject that all answers come to.
    pub(super) fn answers(&self) -> String {
        format!("{}*", self.inbox)
    }

    /// Begins a call, which is not sent after `deadline_ns`, nor to a server that takes no such messages.
    ///
    /// # Errors
    /// It has not begun.
    pub(super) fn begin(
        &mut self,
        ask: &Ask,
        (now_ns, deadline_ns): (u64, u64),
        payload_bytes_max: usize,
    ) -> Result<Ticket, Refusal> {
        let messages = ask.messages();
        let (mut bytes, mut longest) = (0, 0);
        for message in messages {
            let length = codec::payload_len(message);
            if !codec::is_subject(&message.subject) {
                return Err(Refusal::Unfit(Outage::not_sent("its subject is none")));
            }
            bytes += MESSAGE_BYTES + message.subject.len() + length;
            longest = longest.max(length);
        }
        if longest > payload_bytes_max {
            return Err(Refusal::Unfit(too_long(payload_bytes_max)));
        }
        if self.under_way >= self.calls_max
            || (self.bytes > 0 && self.bytes + bytes > self.bytes_max)
        {
            return Err(Refusal::Full);
        }
        let is_told = matches!(ask, Ask::Tell(_));
        let gathering = match ask {
            Ask::Tell(_) => Gathering::Told,
            Ask::Each(messages) => {
                Gathering::Each(messages.iter().map(|_| None).collect(), messages.len())
            }
            _ => Gathering::One,
        };
        let subject = self.subjects.hash_one(messages.first().map(|first| first.subject.as_str()));
        let ticket = self.place(Slot {
            ticket: Ticket(0),
            stage: Stage::Waiting(None),
            gathering,
            subject,
            since_ns: now_ns,
            bytes,
            is_sent: false,
        });
        if messages.is_empty() {
            let answer = if is_told { Answer::Told } else { Answer::Several(Vec::new()) };
            self.settle(ticket, Stage::Answered(answer));
            return Ok(ticket);
        }
        let before = self.unsent.len();
        self.write(ask, ticket);
        let bytes = self.unsent.len() - before;
        self.unsent_deadline_ns = self.unsent_deadline_ns.min(deadline_ns);
        self.unsent_longest = self.unsent_longest.max(longest);
        self.unsent_calls.push(Unsent { ticket, bytes, deadline_ns, longest, is_told });
        Ok(ticket)
    }

    fn place(&mut self, slot: Slot) -> Ticket {
        self.begun += 1;
        let place = self.free.pop().unwrap_or(self.slots.len());
        let ticket = Ticket(self.begun << PLACE_BITS | place as u64);
        self.bytes += slot.bytes;
        self.under_way += 1;
        let slot = Slot { ticket, ..slot };
        match self.slots.get_mut(place) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        if self.order.len() > 2 * self.under_way + ENDED_MAX {
            let slots = &self.slots;
            self.order.retain(|ticket| is_under_way(slots, *ticket));
        }
        self.order.push_back(ticket);
        ticket
    }

    fn write(&mut self, ask: &Ask, ticket: Ticket) {
        let (out, inbox) = (&mut self.unsent, &self.inbox);
        let number = |out: &mut Vec<u8>| {
            out.extend_from_slice(inbox.as_bytes());
            put_decimal(out, ticket.0);
        };
        let answer = |out: &mut Vec<u8>| {
            number(out);
            out.push(b' ');
        };
        let own = |out: &mut Vec<u8>, message: &Outgoing| {
            if let Some(reply) = message.reply.as_ref().filter(|reply| codec::is_subject(reply)) {
                out.extend_from_slice(reply.as_bytes());
                out.push(b' ');
            }
        };
        let messages = ask.messages();
        for (index, message) in messages.iter().enumerate() {
            match ask {
                Ask::Tell(_) => put_message(out, message, |out| own(out, message)),
                Ask::Last(_) if index + 1 < messages.len() => {
                    put_message(out, message, |out| own(out, message));
                }
                Ask::Each(_) if index > 0 => put_message(out, message, |out| {
                    number(out);
                    out.push(b'-');
                    put_decimal(out, index as u64);
                    out.push(b' ');
                }),
                _ => put_message(out, message, answer),
            }
        }
    }

    /// The answer to a call, once it has come. After that the ticket is void.
    pub(super) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Result<Answer, Outage>> {
        let slot = &mut self.slots[ticket.place()];
        debug_assert_eq!(slot.ticket, ticket, "the ticket of a call that has ended");
        if let Stage::Waiting(known) = &mut slot.stage {
            if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *known = Some(waker.clone());
            }
            return Poll::Pending;
        }
        self.free.push(ticket.place());
        match std::mem::replace(&mut slot.stage, Stage::Free) {
            Stage::Answered(answer) => Poll::Ready(Ok(answer)),
            Stage::Lost(outage) => Poll::Ready(Err(outage)),
            Stage::Free | Stage::Waiting(_) | Stage::Abandoned => {
                unreachable!("the ticket of a call that has ended")
            }
        }
    }

    /// Nobody waits for this call any more.
    pub(super) fn abandon(&mut self, ticket: Ticket) {
        let slot = &mut self.slots[ticket.place()];
        match slot.stage {
            Stage::Waiting(_) => slot.stage = Stage::Abandoned,
            _ => {
                slot.stage = Stage::Free;
                self.free.push(ticket.place());
            }
        }
    }

    /// Has the server be asked whether it is there.
    pub(super) fn ping(&mut self) {
        self.wants_ping = true;
    }

    /// Whether there is something to send.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent_calls.is_empty() || self.wants_ping || self.owes_pong
    }

    /// Exchanges what is to be sent for an empty buffer; the one that was sent before is used again. Where `is_open` is not, no calls are sent.
    pub(super) fn take_unsent(
        &mut self,
        mut sent: Vec<u8>,
        now_ns: u64,
        payload_bytes_max: usize,
        is_open: bool,
    ) -> Vec<u8> {
        sent.clear();
        if sent.capacity() > UNSENT_BYTES_KEPT_MAX {
            sent = Vec::new();
        }
        if is_open {
            self.drop_unfit(now_ns, payload_bytes_max);
            std::mem::swap(&mut sent, &mut self.unsent);
            let mut told = 0;
            for unsent in self.unsent_calls.drain(..) {
                let Some(slot) = under_way(&mut self.slots, unsent.ticket) else { continue };
                (slot.is_sent, slot.since_ns) = (true, now_ns);
                self.sent += 1;
                if unsent.is_told {
                    self.told.push_back(unsent.ticket);
                    told += 1;
                }
            }
            self.unsent_deadline_ns = NO_DEADLINE_NS;
            self.unsent_longest = 0;
            if told > 0 || self.wants_ping {
                sent.extend_from_slice(b"PING\r\n");
                self.pings.push_back(told);
                self.wants_ping = false;
            }
        }
        if std::mem::take(&mut self.owes_pong) {
            sent.extend_from_slice(b"PONG\r\n");
        }
        sent
    }

    /// Leaves out what is too late or too long to be sent.
    fn drop_unfit(&mut self, now_ns: u64, payload_bytes_max: usize) {
        if self.unsent_deadline_ns > now_ns && self.unsent_longest <= payload_bytes_max {
            return;
        }
        let all = std::mem::take(&mut self.unsent);
        let (mut kept, mut at) = (Vec::with_capacity(all.len()), 0);
        for unsent in std::mem::take(&mut self.unsent_calls) {
            let bytes = &all[at..at + unsent.bytes];
            at += unsent.bytes;
            if unsent.deadline_ns <= now_ns {
                self.settle(unsent.ticket, Stage::Lost(Outage::late()));
            } else if unsent.longest > payload_bytes_max {
                self.settle(unsent.ticket, Stage::Lost(too_long(payload_bytes_max)));
            } else {
                kept.extend_from_slice(bytes);
                self.unsent_calls.push(unsent);
            }
        }
        self.unsent = kept;
    }

    /// Takes what was read, hands out the answers in it, and returns the first thing that is for the connection to deal with; nothing when
    /// all is taken that is whole.
    ///
    /// # Errors
    /// The peer talks nonsense; nothing that comes after it can be understood.
    pub(super) fn receive(&mut self, read: &mut BytesMut) -> Result<Option<Said>, ProtocolError> {
        while let Some((frame, length)) = self.framer.find(read)? {
            match frame {
                Frame::Message(head) => {
                    self.deliver(read, &head, length)?;
                    continue;
                }
                Frame::Ping => self.owes_pong = true,
                Frame::Pong => self.taken()?,
                Frame::Ok => {}
                Frame::Info(range) => {
                    let info = codec::json(read, &range);
                    read.advance(length);
                    return Ok(Some(Said::Info(info)));
                }
                Frame::Error(range) => {
                    let text = codec::words(read, &range);
                    read.advance(length);
                    if !self.refuse(&text) {
                        return Ok(Some(Said::Error(text)));
                    }
                    continue;
                }
            }
            read.advance(length);
        }
        Ok(None)
    }

    /// How many more bytes have to be read until there is something to take, as far as that is known.
    pub(super) fn wanted_bytes(&self, read: &BytesMut) -> usize {
        self.framer.wanted().saturating_sub(read.len())
    }

    fn deliver(
        &mut self,
        read: &mut BytesMut,
        head: &Head,
        length: usize,
    ) -> Result<(), ProtocolError> {
        let number = read[head.subject.clone()].strip_prefix(self.inbox.as_bytes());
        let number = number.unwrap_or_default();
        let dash = number.iter().position(|byte| *byte == b'-');
        let (number, index) = match dash {
            Some(dash) => (&number[..dash], codec::decimal(&number[dash + 1..])),
            None => (number, Some(0)),
        };
        let place = codec::decimal(number).map(Ticket).zip(index);
        let message = codec::take(read, head, length)?;
        if let Some((ticket, index)) = place {
            self.answer(ticket, usize::try_from(index).unwrap_or(usize::MAX), message);
        }
        Ok(())
    }

    /// Adds what has come to what a call waits for. What is for none is dropped.
    fn answer(&mut self, ticket: Ticket, index: usize, message: Message) {
        let Some(slot) = under_way(&mut self.slots, ticket) else { return };
        let answer = match &mut slot.gathering {
            Gathering::Told => return,
            Gathering::One => Answer::One(message),
            Gathering::Each(messages, missing) => {
                if let Some(place) = messages.get_mut(index)
                    && place.replace(message).is_none()
                {
                    *missing -= 1;
                }
                if *missing > 0 {
                    return;
                }
                Answer::Several(std::mem::take(messages).into_iter().flatten().collect())
            }
        };
        self.settle(ticket, Stage::Answered(answer));
    }

    /// The server has taken all that came before the oldest PING.
    fn taken(&mut self) -> Result<(), ProtocolError> {
        let told = self.pings.pop_front().ok_or(ProtocolError("a PONG to nothing"))?;
        for _ in 0..told {
            if let Some(ticket) = self.told.pop_front() {
                self.settle(ticket, Stage::Answered(Answer::Told));
            }
        }
        Ok(())
    }

    /// Fails the calls that the server says this user may not make; whether it is that what it says.
    fn refuse(&mut self, text: &str) -> bool {
        let is_refusal = text.to_ascii_lowercase().starts_with("permissions violation for publish");
        if !is_refusal {
            return false;
        }
        let subject = text.split('"').nth(1);
        let meant = self.subjects.hash_one(subject);
        let outage = Outage::credentials_refused(text);
        let meant = |slot: &&Slot| slot.subject == meant && slot.is_sent;
        let refused: Vec<Ticket> =
            self.slots.iter().filter(meant).map(|slot| slot.ticket).collect();
        refused.into_iter().for_each(|ticket| self.settle(ticket, Stage::Lost(outage.clone())));
        true
    }

    /// Ends the calls whose time is up; how long it is until the next one's is, if there is one. Nothing was heard since `heard_ns`.
    ///
    /// # Errors
    /// Nothing has come since one of them was sent: the server does not answer at all.
    pub(super) fn expire(
        &mut self,
        now_ns: u64,
        heard_ns: u64,
        patience_ns: u64,
        outage: &Outage,
    ) -> Result<Option<u64>, Outage> {
        while let Some(&ticket) = self.order.front() {
            let Some(slot) = under_way(&mut self.slots, ticket) else {
                self.order.pop_front();
                continue;
            };
            let due_ns = slot.since_ns.saturating_add(patience_ns);
            if due_ns > now_ns {
                return Ok(Some(due_ns - now_ns));
            }
            if slot.is_sent && heard_ns < slot.since_ns {
                return Err(outage.clone());
            }
            self.settle(ticket, Stage::Lost(outage.clone()));
        }
        Ok(None)
    }

    /// The connection is gone: every call that was sent ends, and what was not is kept for the next one.
    pub(super) fn lose_sent(&mut self, outage: &Outage) {
        self.framer = Framer::default();
        self.pings.clear();
        self.told.clear();
        (self.wants_ping, self.owes_pong) = (false, false);
        let sent = |slot: &&Slot| slot.is_sent;
        let lost: Vec<Ticket> = self.slots.iter().filter(sent).map(|slot| slot.ticket).collect();
        lost.into_iter().for_each(|ticket| self.settle(ticket, Stage::Lost(outage.clone())));
    }

    /// No other is expected soon: every call ends.
    pub(super) fn lose_all(&mut self, outage: &Outage) {
        self.lose_sent(outage);
        self.unsent.clear();
        for unsent in std::mem::take(&mut self.unsent_calls) {
            self.settle(unsent.ticket, Stage::Lost(outage.clone()));
        }
        self.unsent_deadline_ns = NO_DEADLINE_NS;
        self.unsent_longest = 0;
    }

    /// Ends a call, if it is under way.
    fn settle(&mut self, ticket: Ticket, stage: Stage) {
        let Some(slot) = under_way(&mut self.slots, ticket) else { return };
        self.bytes -= slot.bytes;
        self.under_way -= 1;
        self.sent -= usize::from(std::mem::take(&mut slot.is_sent));
        match std::mem::replace(&mut slot.stage, stage) {
            Stage::Waiting(Some(waker)) => waker.wake(),
            Stage::Waiting(None) => {}
            _ => {
                slot.stage = Stage::Free;
                self.free.push(ticket.place());
            }
        }
    }
}

fn too_long(payload_bytes_max: usize) -> Outage {
    Outage::not_sent(&format!("the server takes {payload_bytes_max} bytes in one (`max_payload`)"))
}

fn is_under_way(slots: &[Slot], ticket: Ticket) -> bool {
    let is_meant = |slot: &Slot| {
        slot.ticket == ticket && matches!(slot.stage, Stage::Waiting(_) | Stage::Abandoned)
    };
    slots.get(ticket.place()).is_some_and(is_meant)
}

fn under_way(slots: &mut [Slot], ticket: Ticket) -> Option<&mut Slot> {
    match is_under_way(slots, ticket) {
        true => slots.get_mut(ticket.place()),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1000;
    const MAX: usize = 500;

    fn calls() -> Calls {
        Calls::new("_I", 8, ROOM)
    }

    fn to(subject: &'static str) -> Outgoing {
        Outgoing::plain(subject, Bytes::from_static(b"x"))
    }

    fn begin(calls: &mut Calls, ask: Ask) -> Ticket {
        calls.begin(&ask, (0, NO_DEADLINE_NS), MAX).expect("there is room")
    }

    fn sent(calls: &mut Calls, now_ns: u64) -> String {
        String::from_utf8(calls.take_unsent(Vec::new(), now_ns, MAX, true)).unwrap()
    }

    fn hear(calls: &mut Calls, text: &str) -> Result<Option<Said>, ProtocolError> {
        calls.receive(&mut BytesMut::from(text))
    }

    fn poll(calls: &mut Calls, ticket: Ticket) -> Option<Result<Answer, Outage>> {
        match calls.poll(ticket, Waker::noop()) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    /// The payloads of an answer.
    fn payloads(answer: Option<Result<Answer, Outage>>) -> Vec<Bytes> {
        match answer {
            Some(Ok(Answer::One(message))) => vec![message.payload],
            Some(Ok(Answer::Several(messages))) => {
                messages.into_iter().map(|message| message.payload).collect()
            }
            Some(Ok(Answer::Told)) => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let mut calls = calls();
        let one = begin(&mut calls, Ask::One(to("a")));
        let each = begin(&mut calls, Ask::Each(vec![to("b"), to("c")]));
        let last = begin(&mut calls, Ask::Last(vec![to("d"), to("e")]));
        let text = format!(
            "PUB a _I.{0} 1\r\nx\r\nPUB b _I.{1} 1\r\nx\r\nPUB c _I.{1}-1 1\r\nx\r\nPUB d 1\r\nx\r\nPUB e _I.{2} 1\r\nx\r\n",
            one.0, each.0, last.0
        );
        assert_eq!(sent(&mut calls, 0), text);
        assert_eq!((calls.under_way(), calls.sent()), (3, 3));
        let said = format!("MSG _I.{}-1 1 1\r\nC\r\nMSG _I.{} 1 1\r\nE\r\n", each.0, last.0);
        assert_eq!(hear(&mut calls, &said), Ok(None));
        assert!(poll(&mut calls, one).is_none() && poll(&mut calls, each).is_none());
        assert_eq!(payloads(poll(&mut calls, last)), ["E"]);
        // A second time, of another place, and for nobody: none of it answers anything.
        let said = format!(
            "MSG _I.{0}-1 1 1\r\nC\r\nMSG _I.{0}-9 1 1\r\nC\r\nMSG _I.{1} 1 1\r\nE\r\nMSG _I.x 1 1\r\nE\r\nMSG other 1 1\r\nE\r\n",
            each.0, last.0
        );
        assert_eq!(hear(&mut calls, &said), Ok(None));
        assert!(poll(&mut calls, each).is_none());
        let said = format!("MSG _I.{} 1 1\r\nB\r\nMSG _I.{} 1 1\r\nA\r\n", each.0, one.0);
        assert_eq!(hear(&mut calls, &said), Ok(None));
        assert_eq!(payloads(poll(&mut calls, each)), ["B", "C"]);
        assert_eq!(payloads(poll(&mut calls, one)), ["A"]);
        assert_eq!((calls.under_way(), calls.sent(), calls.bytes), (0, 0, 0));
        assert_eq!(calls.free.len(), calls.slots.len());
    }

    #[test]
    fn what_is_told_is_answered_when_the_server_has_taken_it() {
        let mut calls = calls();
        let first = begin(&mut calls, Ask::Tell(vec![to("a"), to("b")]));
        let second = begin(&mut calls, Ask::Tell(vec![to("c")]));
        assert_eq!(sent(&mut calls, 0), "PUB a 1\r\nx\r\nPUB b 1\r\nx\r\nPUB c 1\r\nx\r\nPING\r\n");
        let third = begin(&mut calls, Ask::Tell(vec![to("d")]));
        calls.ping();
        assert_eq!(sent(&mut calls, 0), "PUB d 1\r\nx\r\nPING\r\n", "one PING serves for both");
        assert_eq!(hear(&mut calls, "PONG\r\n"), Ok(None));
        assert!(matches!(poll(&mut calls, first), Some(Ok(Answer::Told))));
        assert!(matches!(poll(&mut calls, second), Some(Ok(Answer::Told))));
        assert!(poll(&mut calls, third).is_none());
        assert_eq!(hear(&mut calls, "PING\r\nPONG\r\n"), Ok(None));
        assert!(matches!(poll(&mut calls, third), Some(Ok(Answer::Told))));
        assert_eq!(sent(&mut calls, 0), "PONG\r\n");
        assert!(!calls.has_unsent());
        assert!(hear(&mut calls, "PONG\r\n").is_err(), "nobody has asked");
        let nothing = begin(&mut calls, Ask::Tell(Vec::new()));
        assert!(matches!(poll(&mut calls, nothing), Some(Ok(Answer::Told))));
    }

    #[test]
    fn what_a_user_may_not_do_is_told_to_those_who_did_it() {
        let mut calls = calls();
        let (may, may_not) =
            (begin(&mut calls, Ask::One(to("a"))), begin(&mut calls, Ask::One(to("b"))));
        sent(&mut calls, 0);
        assert_eq!(
            hear(&mut calls, "-ERR 'Permissions Violation for Publish to \"b\"'\r\n"),
            Ok(None)
        );
        let Some(Err(outage)) = poll(&mut calls, may_not) else { panic!("it is refused") };
        assert_eq!(
            outage,
            Outage::credentials_refused("Permissions Violation for Publish to \"b\"")
        );
        assert!(poll(&mut calls, may).is_none());
        let said = hear(&mut calls, "-ERR 'Stale Connection'\r\nPING\r\n");
        assert_eq!(said, Ok(Some(Said::Error("Stale Connection".to_owned()))));
        assert_eq!(
            hear(&mut calls, "INFO {}\r\n"),
            Ok(Some(Said::Info(Bytes::from_static(b" {}"))))
        );
    }

    #[test]
    fn what_is_under_way_has_a_bound_and_callers_may_go() {
        let mut calls = calls();
        let long = || Ask::One(Outgoing::plain("a", Bytes::from(vec![b'x'; MAX])));
        let first = begin(&mut calls, long());
        assert_eq!(calls.begin(&long(), (0, NO_DEADLINE_NS), MAX), Err(Refusal::Full));
        calls.abandon(first);
        sent(&mut calls, 0);
        assert_eq!(
            calls.begin(&long(), (0, NO_DEADLINE_NS), MAX),
            Err(Refusal::Full),
            "it is there yet"
        );
        assert_eq!(hear(&mut calls, &format!("MSG _I.{} 1 0\r\n\r\n", first.0)), Ok(None));
        let all: Vec<Ticket> = (0..8).map(|_| begin(&mut calls, Ask::One(to("a")))).collect();
        assert_ne!(all[0], first, "a number is never used again");
        assert_eq!(calls.begin(&Ask::One(to("a")), (0, NO_DEADLINE_NS), MAX), Err(Refusal::Full));
        calls.lose_all(&Outage::lost());
        for ticket in all {
            assert!(matches!(poll(&mut calls, ticket), Some(Err(_))));
        }
        assert_eq!((calls.bytes, calls.under_way, calls.free.len()), (0, 0, calls.slots.len()));
        // One alone may be as long as the server takes.
        let mut narrow = Calls::new("_I", 8, 10);
        assert!(narrow.begin(&long(), (0, NO_DEADLINE_NS), MAX).is_ok());
        for ended in 0..10_000 {
            let ticket = begin(&mut calls, Ask::One(to("a")));
            sent(&mut calls, ended);
            hear(&mut calls, &format!("MSG _I.{} 1 0\r\n\r\n", ticket.0)).unwrap();
            assert!(poll(&mut calls, ticket).is_some());
        }
        assert!(calls.order.len() <= ENDED_MAX + 3 && calls.slots.len() <= 8);
    }

    #[test]
    fn what_is_late_or_not_taken_is_not_sent() {
        let mut calls = calls();
        let mut put = |deadline_ns, text: &'static str| {
            let ask = Ask::One(Outgoing::plain("a", Bytes::from_static(text.as_bytes())));
            calls.begin(&ask, (0, deadline_ns), MAX).unwrap()
        };
        let (kept, late, long) = (put(9, "ok"), put(5, "ok"), put(9, "a long one"));
        let out = calls.take_unsent(Vec::new(), 5, 4, true);
        assert_eq!(String::from_utf8(out).unwrap(), format!("PUB a _I.{} 2\r\nok\r\n", kept.0));
        assert!(matches!(poll(&mut calls, late), Some(Err(outage)) if outage == Outage::late()));
        assert!(matches!(poll(&mut calls, long), Some(Err(outage)) if outage == too_long(4)));
        let refused = calls.begin(&Ask::One(to("a b")), (0, NO_DEADLINE_NS), MAX);
        assert!(matches!(refused, Err(Refusal::Unfit(_))), "{refused:?}");
        let refused = calls.begin(&Ask::One(to("a")), (0, NO_DEADLINE_NS), 0);
        assert!(matches!(refused, Err(Refusal::Unfit(_))), "{refused:?}");
    }

    #[test]
    fn what_was_not_sent_outlives_the_connection() {
        let mut calls = calls();
        let told = begin(&mut calls, Ask::Tell(vec![to("a")]));
        let sent_one = begin(&mut calls, Ask::One(to("a")));
        sent(&mut calls, 0);
        let waits = begin(&mut calls, Ask::One(to("b")));
        assert_eq!(calls.take_unsent(Vec::new(), 0, MAX, false), b"", "the server is leaving");
        assert_eq!(hear(&mut calls, "MSG _I.1 1 9\r\n"), Ok(None), "the beginning of something");
        calls.lose_sent(&Outage::lost());
        assert!(matches!(poll(&mut calls, told), Some(Err(outage)) if outage == Outage::lost()));
        assert!(matches!(poll(&mut calls, sent_one), Some(Err(_))));
        assert!(poll(&mut calls, waits).is_none());
        assert_eq!(sent(&mut calls, 0), format!("PUB b _I.{} 1\r\nx\r\n", waits.0));
        // An answer to what the connection before it had been asked comes to nothing.
        assert_eq!(hear(&mut calls, &format!("MSG _I.{} 1 0\r\n\r\n", sent_one.0)), Ok(None));
        assert!(poll(&mut calls, waits).is_none());
        assert_eq!(calls.sent(), 1);
    }

    #[test]
    fn a_call_ends_when_its_time_is_up_and_a_silent_connection_with_it() {
        let mut calls = calls();
        let outage = Outage::unresponsive(std::time::Duration::from_millis(1));
        let first = begin(&mut calls, Ask::One(to("a")));
        sent(&mut calls, 10);
        let second = begin(&mut calls, Ask::One(to("b")));
        sent(&mut calls, 20);
        assert_eq!(calls.expire(100, 15, 100, &outage), Ok(Some(10)));
        assert_eq!(calls.expire(110, 15, 100, &outage), Ok(Some(10)), "only the first is over");
        assert!(matches!(poll(&mut calls, first), Some(Err(_))));
        assert_eq!(calls.expire(120, 15, 100, &outage), Err(outage.clone()), "nothing came since");
        assert_eq!(calls.expire(120, 25, 100, &outage), Ok(None));
        assert!(matches!(poll(&mut calls, second), Some(Err(_))));
    }
}
