//! A queue's entries: how messages, deliveries, dead letters and settings lie in the store, and how a queue is made from them.

use bytes::Bytes;
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;

use super::super::Memstore;
use super::super::rooms::{Numbers, Room, put_numbers, read_room_key, room_key};
use super::Queues;
use super::state::{Known, Lease, Queue};
use crate::call::{Context, Revision};

/// A message: four numbers and the message as it is delivered. Never changes.
const MESSAGE: u8 = b'm';
/// What became of a message's deliveries. Absent: it was never delivered.
const DELIVERIES: u8 = b's';
/// A dead letter: three numbers, the length of the reason, the reason, and the message.
const DEAD: u8 = b'd';
/// The queue's settings.
const SETTINGS: u8 = b'c';

/// A dead letter as it is kept.
pub(super) struct DeadLetter {
    pub(super) attempts: u32,
    pub(super) sent_us: u64,
    pub(super) dead_us: u64,
    pub(super) reason: String,
    pub(super) message: Message,
}

fn key_of(kind: u8, queue: &str, number: u64) -> Vec<u8> {
    room_key(kind, queue, &number.to_be_bytes())
}

impl Memstore {
    pub(super) fn keep_message(
        &self,
        context: &Context<'_>,
        queue: &str,
        number: u64,
        (known, message): (&Known, &Message),
    ) {
        let mut value = Vec::with_capacity(32 + message.encoded_len());
        let numbers = [known.sent_us, known.due_us, known.expires_us, u64::from(known.priority)];
        put_numbers(&mut value, &numbers);
        message.encode_raw(&mut value);
        self.keep(context, Room::Queues, &key_of(MESSAGE, queue, number), &value);
    }

    /// The message as it is delivered.
    pub(super) fn kept_message(&self, namespace: u32, queue: &str, number: u64) -> Option<Message> {
        let value: Bytes = self.kept(namespace, Room::Queues, &key_of(MESSAGE, queue, number))?;
        Message::decode(value.slice(32..)).ok()
    }

    pub(super) fn keep_deliveries(
        &self,
        context: &Context<'_>,
        queue: &str,
        number: u64,
        known: &Known,
    ) {
        let mut value = Vec::with_capacity(56);
        let lease =
            known.lease.unwrap_or(Lease { revision: Revision::default(), index: 0, until_us: 0 });
        let Revision { lsn, epoch, minor } = lease.revision;
        let epoch_and_index = u64::from(epoch) << 32 | u64::from(lease.index);
        let attempts = u64::from(known.attempts);
        let numbers = [attempts, known.due_us, lease.until_us, lsn, epoch_and_index, minor];
        put_numbers(&mut value, &numbers);
        self.keep(context, Room::Queues, &key_of(DELIVERIES, queue, number), &value);
    }

    pub(super) fn forget_message(&self, context: &Context<'_>, queue: &str, number: u64) {
        self.forget(context, Room::Queues, &key_of(MESSAGE, queue, number));
        self.forget(context, Room::Queues, &key_of(DELIVERIES, queue, number));
    }

    pub(super) fn keep_dead(
        &self,
        context: &Context<'_>,
        queue: &str,
        number: u64,
        dead: &DeadLetter,
    ) {
        let mut value = Vec::with_capacity(32 + dead.reason.len() + dead.message.encoded_len());
        let reason_bytes = dead.reason.len() as u64;
        let numbers = [u64::from(dead.attempts), dead.sent_us, dead.dead_us, reason_bytes];
        put_numbers(&mut value, &numbers);
        value.extend_from_slice(dead.reason.as_bytes());
        dead.message.encode_raw(&mut value);
        self.keep(context, Room::Queues, &key_of(DEAD, queue, number), &value);
    }

    pub(super) fn kept_dead(&self, namespace: u32, queue: &str, number: u64) -> Option<DeadLetter> {
        read_dead(self.kept(namespace, Room::Queues, &key_of(DEAD, queue, number))?)
    }

    pub(super) fn forget_dead(&self, context: &Context<'_>, queue: &str, number: u64) {
        self.forget(context, Room::Queues, &key_of(DEAD, queue, number));
    }

    pub(super) fn keep_settings(&self, context: &Context<'_>, queue: &str, settings: &Queue) {
        let mut value = Vec::new();
        put_numbers(&mut value, &[u64::from(settings.max_deliveries)]);
        self.keep(context, Room::Queues, &room_key(SETTINGS, queue, &[]), &value);
    }

    /// The queues that a restored store holds.
    pub(in super::super) fn restore_queues(&self) -> Queues {
        let mut queues = Queues::default();
        let mut delivered = Vec::new();
        self.each_kept(Room::Queues, |namespace, key, value| {
            let Some((kind, name, number)) = read_room_key(key) else { return };
            let number = number.try_into().map_or(0, u64::from_be_bytes);
            let queue = queues.entry((namespace, name.into())).or_default();
            match kind {
                MESSAGE => {
                    let mut numbers = Numbers(value);
                    let (sent_us, due_us) = (numbers.next(), numbers.next());
                    let (expires_us, priority) = (numbers.next(), numbers.next() as u8);
                    let message = Message::decode(numbers.0).unwrap_or_default();
                    let ordering_key = message.ordering_key;
                    let known = Known {
                        priority,
                        sent_us,
                        due_us,
                        expires_us,
                        attempts: 0,
                        lease: None,
                        ordering_key: (!ordering_key.is_empty()).then(|| ordering_key.into()),
                    };
                    queue.insert(number, known);
                }
                DELIVERIES => {
                    let mut numbers = Numbers(value);
                    let (attempts, due_us) = (numbers.next() as u32, numbers.next());
                    let (until_us, lsn) = (numbers.next(), numbers.next());
                    let (epoch_and_index, minor) = (numbers.next(), numbers.next());
                    let epoch = (epoch_and_index >> 32) as u32;
                    let revision = Revision { lsn, epoch, minor };
                    let lease = Lease { revision, index: epoch_and_index as u32, until_us };
                    let lease = (until_us > 0).then_some(lease);
                    delivered.push(((namespace, Box::from(name)), number, attempts, lease, due_us));
                }
                DEAD => {
                    let dead = read_dead(Bytes::copy_from_slice(value));
                    queue
                        .insert_dead(number, &dead.map(|dead| dead.message.id).unwrap_or_default());
                }
                SETTINGS => {
                    queue.max_deliveries = Numbers(value).next() as u32;
                    queue.keeps_dead = true;
                }
                _ => {}
            }
        });
        for (queue, number, attempts, lease, due_us) in delivered {
            if let Some(queue) = queues.get_mut(&queue) {
                queue.restore_deliveries(number, attempts, lease, due_us);
            }
        }
        queues
    }
}

fn read_dead(value: Bytes) -> Option<DeadLetter> {
    let mut numbers = Numbers(&value);
    let (attempts, sent_us) = (numbers.next() as u32, numbers.next());
    let (dead_us, reason_bytes) = (numbers.next(), numbers.next() as usize);
    let reason = String::from_utf8(numbers.0.get(..reason_bytes)?.to_vec()).ok()?;
    let message = Message::decode(value.slice(32 + reason_bytes..)).ok()?;
    Some(DeadLetter { attempts, sent_us, dead_us, reason, message })
}
