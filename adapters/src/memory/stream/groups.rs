//! A consumer group: what it has acknowledged, and who takes part in it.
//!
//! Settings, generation and progress are state. Members, what they own and what is under way to them are not: they end with
//! the process, and whoever joins again gets what is not done. An acknowledgement is judged by state alone, so that replay gives
//! the same answers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use super::super::delivery::{Flow, Progress};
use super::state::{PARTITIONS, Stream};
use crate::call::Revision;
use crate::sharing::{Refused, Seal, share_out};

/// What a group was created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Any record may go to any member; else each partition has one member at a time.
    pub(super) by_record: bool,
    pub(super) ack_wait_ms: u64,
    /// Per member.
    pub(super) in_flight_max: u32,
}

/// One consumer group.
#[derive(Debug)]
pub(super) struct Group {
    /// The write that created it: another group of the same name has another.
    pub(super) created: Revision,
    pub(super) settings: Settings,
    /// Receipts of an earlier one are refused.
    pub(super) generation: u64,
    pub(super) progress: [Progress; PARTITIONS],
    flows: [Flow; PARTITIONS],
    /// In the order in which they joined.
    members: BTreeMap<u64, Member>,
    owners: [Option<u64>; PARTITIONS],
    rebalance: Rebalance,
}

/// A stream that takes part.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Box<str>,
    /// Since when it may have work; `None` before its first rebalance.
    pub(super) generation: Option<u64>,
    in_flight: u32,
    /// The partition that is looked at first.
    turn: usize,
}

/// Whether the partitions are where they ought to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rebalance {
    Settled,
    Wanted,
    /// This member has it written.
    UnderWay(u64),
}

/// A record on its way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handed {
    pub(super) partition: usize,
    pub(super) offset: u64,
    pub(super) attempt: u32,
}

impl Group {
    pub(super) fn new(created: Revision, settings: Settings, starts: [u64; PARTITIONS]) -> Self {
        Group {
            created,
            settings,
            generation: 1,
            progress: starts.map(Progress::begin),
            flows: Default::default(),
            members: BTreeMap::new(),
            owners: [None; PARTITIONS],
            rebalance: Rebalance::Settled,
        }
    }

    /// Ends the generation: who takes part by then shares the partitions anew, and all that is not done comes again.
    pub(super) fn rebalance(&mut self) {
        self.generation += 1;
        self.rebalance = Rebalance::Settled;
        self.flows.iter_mut().for_each(Flow::rewind);
        for member in self.members.values_mut() {
            (member.generation, member.in_flight) = (Some(self.generation), 0);
        }
        self.share();
    }

    /// Gives each partition to a member: everybody gets as many as the others, and keeps what it had as far as that goes.
    fn share(&mut self) {
        if self.settings.by_record {
            return;
        }
        share_out(&mut self.owners, self.members.keys().copied());
    }

    /// Moves to other places; what was under way is of the past.
    pub(super) fn seek(&mut self, places: [Option<u64>; PARTITIONS]) {
        for (partition, place) in places.into_iter().enumerate() {
            if let Some(place) = place {
                self.progress[partition] = Progress::begin(place);
                self.flows[partition] = Flow::default();
            }
        }
        self.rebalance();
    }

    /// Takes a stream in; one of the same name that took part before takes part no longer.
    pub(super) fn join(&mut self, number: u64, name: &str) {
        let same = self.members.iter().find(|(_, member)| &*member.name == name);
        if let Some(before) = same.map(|(number, _)| *number) {
            self.leave(before);
        }
        let generation = self.settings.by_record.then_some(self.generation);
        let member = Member { name: name.into(), generation, in_flight: 0, turn: 0 };
        self.members.insert(number, member);
        self.want_rebalance();
    }

    /// Lets a stream go; whether it took part.
    pub(super) fn leave(&mut self, number: u64) -> bool {
        if self.members.remove(&number).is_none() {
            return false;
        }
        self.flows.iter_mut().for_each(|flow| flow.leave(number));
        for owner in self.owners.iter_mut().filter(|owner| **owner == Some(number)) {
            *owner = None;
        }
        self.want_rebalance();
        true
    }

    fn want_rebalance(&mut self) {
        if !self.settings.by_record && self.rebalance == Rebalance::Settled {
            self.rebalance = Rebalance::Wanted;
        }
    }

    /// Whether this member is to have a rebalance written; it then tells when it has, or has not.
    pub(super) fn takes_rebalance(&mut self, number: u64) -> bool {
        let takes = self.rebalance == Rebalance::Wanted && self.members.contains_key(&number);
        if takes {
            self.rebalance = Rebalance::UnderWay(number);
        }
        takes
    }

    /// A rebalance that this member was to have written is given up, if there was none; whether somebody else has to.
    pub(super) fn gives_rebalance_up(&mut self, number: u64) -> bool {
        let gives = self.rebalance == Rebalance::UnderWay(number);
        if gives {
            self.rebalance = Rebalance::Wanted;
        }
        gives
    }

    pub(super) fn member(&self, number: u64) -> Option<&Member> {
        self.members.get(&number)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.members.iter().map(|(number, member)| (*number, member))
    }

    /// The partitions of a member.
    pub(super) fn partitions_of(&self, number: u64) -> Vec<u32> {
        let owned = self.owners.iter().enumerate();
        owned.filter(|(_, owner)| **owner == Some(number)).map(|(index, _)| index as u32).collect()
    }

    /// The next record for a member, if there is one and it may have it; partitions take turns.
    pub(super) fn hand(&mut self, number: u64, stream: &Stream, now_us: u64) -> Option<Handed> {
        let (by_record, members) = (self.settings.by_record, &mut self.members);
        for flow in &mut self.flows {
            flow.expire(now_us, !by_record, |to| {
                if let Some(member) = members.get_mut(&to) {
                    member.in_flight = member.in_flight.saturating_sub(1);
                }
            });
        }
        let member = members.get_mut(&number)?;
        if member.in_flight >= self.settings.in_flight_max {
            return None;
        }
        let until_us = now_us.saturating_add(self.settings.ack_wait_ms * 1000);
        for step in 0..PARTITIONS {
            let partition = (member.turn + step) % PARTITIONS;
            if !by_record && self.owners[partition] != Some(number) {
                continue;
            }
            let records = &stream.partitions[partition].records;
            let first_from = |from| records.range(from..).next().map(|(offset, _)| *offset);
            let (flow, progress) = (&mut self.flows[partition], &self.progress[partition]);
            if let Some(offset) = flow.head(progress, first_from) {
                let attempt = flow.deliver(offset, number, until_us);
                member.in_flight += 1;
                member.turn = (partition + 1) % PARTITIONS;
                return Some(Handed { partition, offset, attempt });
            }
        }
        None
    }

    /// When the next delivery's time is over.
    pub(super) fn next_end_us(&self) -> Option<u64> {
        self.flows.iter().filter_map(Flow::next_end_us).min()
    }

    /// Marks a record as done.
    pub(super) fn acknowledge(
        &mut self,
        partition: usize,
        offset: u64,
        stream: &Stream,
    ) -> Result<(), Refused> {
        let there = offset < stream.partitions[partition].next;
        if !there || !self.progress[partition].mark(offset) {
            return Err(Refused::Expired);
        }
        if let Some(to) = self.flows[partition].end(offset)
            && let Some(member) = self.members.get_mut(&to)
        {
            member.in_flight = member.in_flight.saturating_sub(1);
        }
        Ok(())
    }

    /// A receipt of the present generation; `name` is what it is bound to.
    pub(super) fn receipt(&self, name: &Name<'_>, partition: usize, offset: u64) -> String {
        self.seal(name).receipt(self.generation, partition as u64, offset)
    }

    fn seal<'a>(&self, name: &Name<'a>) -> Seal<'a> {
        let Revision { lsn, epoch, minor } = self.created;
        let created = [lsn, u64::from(epoch), minor];
        Seal { namespace: name.0, names: [name.1, name.2], created }
    }

    /// The record whose receipt it is.
    pub(super) fn read_receipt(
        &self,
        name: &Name<'_>,
        receipt: &str,
    ) -> Result<(usize, u64), Refused> {
        let read = self.seal(name).read(receipt);
        let (generation, partition, offset) = read.ok_or(Refused::Expired)?;
        let partition = usize::try_from(partition).ok().filter(|one| *one < PARTITIONS);
        match partition.ok_or(Refused::Expired)? {
            _ if generation != self.generation => Err(Refused::Stale),
            partition => Ok((partition, offset)),
        }
    }
}

/// Of which namespace, stream and group.
pub(super) type Name<'a> = (u32, &'a str, &'a str);

type ByName = HashMap<(u32, Box<str>, Box<str>), Group, ahash::RandomState>;

/// The groups of a shard.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(super) by_name: RefCell<ByName>,
    /// By the namespace's name, stream and group: streams that take part, for as long as they do.
    pub(super) taken_part: RefCell<HashMap<[Box<str>; 3], usize, ahash::RandomState>>,
    /// The number of the member that joined last.
    pub(super) joined: Cell<u64>,
}

impl Groups {
    /// Forgets the groups of a namespace.
    pub(crate) fn forget(&self, namespace: u32) {
        self.by_name.borrow_mut().retain(|(of, ..), _| *of != namespace);
    }

    /// Looks at a group, if there is one.
    pub(super) fn with<R>(
        &self,
        (namespace, stream, group): Name<'_>,
        look: impl FnOnce(&mut Group) -> R,
    ) -> Option<R> {
        let key = (namespace, stream.into(), group.into());
        self.by_name.borrow_mut().get_mut(&key).map(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(by_record: bool) -> Group {
        let settings = Settings { by_record, ack_wait_ms: 1, in_flight_max: 100 };
        Group::new(Revision::logged(1), settings, [0; PARTITIONS])
    }

    #[test]
    fn partitions_are_shared_evenly_and_move_no_more_than_they_must() {
        let mut group = group(false);
        let mut numbers = Vec::new();
        for number in 0..6 {
            group.join(number, &number.to_string());
            numbers.push(number);
            let before = group.owners;
            group.rebalance();
            let counts = numbers.iter().map(|number| group.partitions_of(*number).len());
            let (least, most) = (counts.clone().min().unwrap(), counts.clone().max().unwrap());
            assert!(most - least <= 1 && counts.sum::<usize>() == PARTITIONS);
            let moved = (0..PARTITIONS).filter(|&one| before[one] != group.owners[one]).count();
            assert!(number == 0 || moved <= PARTITIONS / numbers.len().min(PARTITIONS), "{moved}");
        }
        for number in 0..5 {
            group.leave(number);
            group.rebalance();
        }
        assert_eq!(group.partitions_of(5).len(), PARTITIONS);
        assert_eq!(group.generation, 12);
    }

    #[test]
    fn one_member_at_a_time_writes_a_rebalance() {
        let mut group = group(false);
        group.join(1, "a");
        group.join(2, "b");
        assert!(group.takes_rebalance(2) && !group.takes_rebalance(1));
        group.leave(2);
        assert!(group.gives_rebalance_up(2) && group.takes_rebalance(1));
        group.rebalance();
        assert!(!group.gives_rebalance_up(1) && !group.takes_rebalance(1));
    }

    #[test]
    fn receipts_are_bound_to_their_group_and_generation() {
        let mut group = group(true);
        let (name, other) = ((1, "s", "g"), (1, "s", "h"));
        let receipt = group.receipt(&name, 2, 77);
        assert_eq!(group.read_receipt(&name, &receipt), Ok((2, 77)));
        assert_eq!(group.read_receipt(&other, &receipt), Err(Refused::Expired));
        for wrong in ["", "1", "1-2-3", "x-y-z-0", "1-2-4e-0000000000000000"] {
            assert_eq!(group.read_receipt(&name, wrong), Err(Refused::Expired));
        }
        let made_up = group.receipt(&name, PARTITIONS, 77);
        assert_eq!(group.read_receipt(&name, &made_up), Err(Refused::Expired));
        group.rebalance();
        assert_eq!(group.read_receipt(&name, &receipt), Err(Refused::Stale));
        let namesake = Group::new(Revision::logged(2), group.settings, [0; PARTITIONS]);
        assert_eq!(namesake.read_receipt(&name, &receipt), Err(Refused::Expired));
    }
}
