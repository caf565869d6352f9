//! What consumer groups have in common on every backend whose members Prism serves itself: partitions shared out among members, receipts
//! that are bound to their group and generation, what members are told, and what is refused.

use std::hash::Hasher;

use bytes::Bytes;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prost::Message as _;
use siphasher::sip::SipHasher13;

use crate::error::{Error, Kind};

/// How often a member hears something when nothing happens, µs.
pub(crate) const HEARTBEAT_US: u64 = 15_000_000;

/// Gives each partition to a member: everybody gets as many as the others, and keeps what it had as far as that goes.
pub(crate) fn share_out(owners: &mut [Option<u64>], members: impl Iterator<Item = u64>) {
    let mut members: Vec<u64> = members.collect();
    let count = members.len().max(1);
    let (each, more) = (owners.len() / count, owners.len() % count);
    // Those that own most come first to where there is one more.
    let owned = |number: u64| owners.iter().filter(|owner| **owner == Some(number)).count();
    members.sort_by_key(|number| std::cmp::Reverse(owned(*number)));
    let mut room: Vec<(u64, usize)> = members
        .iter()
        .enumerate()
        .map(|(place, number)| (*number, each + usize::from(place < more)))
        .collect();
    for owner in owners.iter_mut() {
        let kept = room.iter_mut().find(|(number, left)| Some(*number) == *owner && *left > 0);
        match kept {
            Some((_, left)) => *left -= 1,
            None => *owner = None,
        }
    }
    for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
        if let Some((number, left)) = room.iter_mut().find(|(_, left)| *left > 0) {
            *owner = Some(*number);
            *left -= 1;
        }
    }
}

/// Why a receipt is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its generation is over.
    Stale,
    /// Its record is done, or it is of no delivery of this group.
    Expired,
}

/// What binds receipts to their group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal<'a> {
    /// The namespace's number.
    pub(crate) namespace: u32,
    /// Stream and group.
    pub(crate) names: [&'a str; 2],
    /// What tells the group from another one that had its name.
    pub(crate) created: [u64; 3],
}

impl Seal<'_> {
    /// The receipt of a record that is handed to a member.
    pub(crate) fn receipt(&self, generation: u64, partition: u64, offset: u64) -> String {
        let mut hasher = SipHasher13::new_with_keys(u64::from(self.namespace), 0x7265_6365_6970);
        for part in self.names {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
        for number in self.created.into_iter().chain([generation, partition, offset]) {
            hasher.write_u64(number);
        }
        format!("{generation:x}-{partition:x}-{offset:x}-{:016x}", hasher.finish())
    }

    /// Generation, partition and offset of a receipt; absent where it is none of this group's. It is no secret: it could have been made up.
    pub(crate) fn read(&self, receipt: &str) -> Option<(u64, u64, u64)> {
        let mut numbers = receipt.split('-').map(|digits| u64::from_str_radix(digits, 16).ok());
        let mut next = || numbers.next().flatten();
        let (generation, partition, offset) = (next()?, next()?, next()?);
        let is_ours = self.receipt(generation, partition, offset) == receipt;
        is_ours.then_some((generation, partition, offset))
    }
}

/// A message to a member.
pub(crate) fn encoded(event: Event) -> Bytes {
    reply::JoinConsumerGroupResponse { event: Some(event) }.encode_to_vec().into()
}

#[cold]
pub(crate) fn replaced(member: &str) -> Error {
    let message = format!(
        "the member {member} has joined again by another stream, which goes on in its place"
    );
    Error::new(Kind::Aborted, "MEMBER_REPLACED", message)
}

#[cold]
pub(crate) fn group_not_found(group: &str) -> Error {
    let message = format!("there is no group {group} of this stream: CreateConsumerGroup makes it");
    Error::new(Kind::NotFound, "GROUP_NOT_FOUND", message)
}

#[cold]
pub(crate) fn group_mismatch(group: &str) -> Error {
    let message = format!(
        "there is a group {group} with another sharing, ack_wait or max_in_flight: create it with the same, delete it \
         first, or use another name"
    );
    Error::new(Kind::AlreadyExists, "GROUP_MISMATCH", message)
}

#[cold]
pub(crate) fn group_active(group: &str) -> Error {
    let message = format!("the group {group} has members: end their streams, then move it");
    Error::new(Kind::FailedPrecondition, "GROUP_ACTIVE", message)
}

#[cold]
pub(crate) fn not_accepted(refused: Refused) -> Error {
    match refused {
        Refused::Stale => Error::new(
            Kind::FailedPrecondition,
            "STALE_GENERATION",
            "the receipt is of a generation that is over: the record comes again, to whoever has its partition now",
        ),
        Refused::Expired => Error::new(
            Kind::FailedPrecondition,
            "RECEIPT_EXPIRED",
            "the receipt is of no delivery of this group that waits for it: the record was acknowledged, or has gone",
        ),
    }
}
