//! Those who share the records of a topic: the members of a consumer group, or the streams of a durable subscription.
//!
//! Without I/O and without a clock: told which partitions Kafka has given to this process, who comes and goes, and what was read, it says who
//! gets which record. What is read and not done lies in a window per partition, whose fetch stops when it is full. A generation ends when
//! the partitions are shared anew; when Kafka takes all of them and gives the same ones back, it does not.

use std::collections::BTreeMap;

use crate::memory::delivery::{Flow, Progress};
use crate::sharing::{Refused, share_out};

/// Records of a partition that are read and not done, at most.
const WINDOW_RECORDS_MAX: usize = 2048;

/// What a record in a window takes beside its content, about.
const RECORD_BYTES: usize = 256;

/// How records are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Each partition has one member at a time.
    Partitions,
    /// Any record may go to any member.
    Records,
    /// Who came first has them all, and what comes again comes in its order.
    OneAtATime,
}

/// What a member may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// After so long a record comes again.
    pub(super) ack_wait_us: u64,
    /// Records without acknowledgement at most.
    pub(super) in_flight_max: u32,
}

/// Somebody who takes part.
#[derive(Debug)]
struct Member {
    name: Box<str>,
    terms: Terms,
    /// Since when it may have records; absent before it is given its part.
    generation: Option<u64>,
    in_flight: u32,
    /// The partition that is looked at first.
    turn: u32,
}

/// How far a partition is done, as Kafka keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Everything before is done.
    pub(super) next: u64,
    /// Where it began.
    pub(super) start: u64,
    /// The generation in which this was so.
    pub(super) generation: u64,
}

/// A record that was read and is not done.
#[derive(Debug)]
struct Kept<R> {
    record: R,
    bytes: usize,
}

/// A partition that this process has.
#[derive(Debug)]
struct Lane<R> {
    /// Tells it from what it was before it was given away.
    birth: u64,
    progress: Progress,
    flow: Flow,
    window: BTreeMap<u64, Kept<R>>,
    window_bytes: usize,
    /// Where the reading stands.
    cursor: u64,
    /// What Kafka keeps.
    committed: Option<Place>,
    owner: Option<u64>,
    is_paused: bool,
}

/// What a record's acknowledgement waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    partition: u32,
    birth: u64,
    next: u64,
}

/// Whether it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Kept,
    NotYet,
    /// The partition was given away before.
    Lost,
}

/// A record on its way to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handed<R> {
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) attempt: u32,
    pub(super) until_us: u64,
    pub(super) record: R,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Crowd<R> {
    manner: Manner,
    generation: u64,
    lanes: BTreeMap<u32, Lane<R>>,
    /// In the order in which they came.
    members: BTreeMap<u64, Member>,
    joined: u64,
    births: u64,
    /// Kafka has said which partitions are here, and has not taken them back.
    is_given: bool,
    /// What was shared out may be handed out.
    is_settled: bool,
    /// Members have come or gone since.
    is_changed: bool,
    /// Somebody waits for what is done to be kept.
    pub(super) is_awaited: bool,
}

impl<R: Clone> Crowd<R> {
    pub(super) fn new(manner: Manner) -> Self {
        Crowd {
            manner,
            generation: 0,
            lanes: BTreeMap::new(),
            members: BTreeMap::new(),
            joined: 0,
            births: 0,
            is_given: false,
            is_settled: false,
            is_changed: false,
            is_awaited: false,
        }
    }

    /// 0 before Kafka has said which partitions are here.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes somebody in, under a name of its own if it gives none; one of the same name that took part before takes part no longer.
    pub(super) fn join(&mut self, name: &str, terms: Terms, now_us: u64) -> (u64, Box<str>) {
        self.joined += 1;
        let number = self.joined;
        let name: Box<str> = match name {
            "" => format!("m-{now_us:x}-{number:x}").into(),
            name => name.into(),
        };
        let same = self.members.iter().find(|(_, member)| member.name == name);
        if let Some(before) = same.map(|(number, _)| *number) {
            self.leave(before);
        }
        let generation =
            (self.manner != Manner::Partitions && self.is_settled).then_some(self.generation);
        let member = Member { name: name.clone(), terms, generation, in_flight: 0, turn: 0 };
        self.members.insert(number, member);
        self.is_changed = true;
        (number, name)
    }

    /// Lets somebody go.
    pub(super) fn leave(&mut self, number: u64) {
        if self.members.remove(&number).is_none() {
            return;
        }
        for lane in self.lanes.values_mut() {
            lane.flow.leave(number);
            lane.owner = lane.owner.filter(|owner| *owner != number);
        }
        self.is_changed = true;
    }

    /// Nobody takes part.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether somebody still takes part, and since when it may have records.
    pub(super) fn generation_of(&self, number: u64) -> Option<Option<u64>> {
        self.members.get(&number).map(|member| member.generation)
    }

    /// Who takes part, with the partitions that it has.
    pub(super) fn members(&self) -> Vec<(String, Vec<u32>)> {
        let of = |(number, member): (&u64, &Member)| {
            (member.name.to_string(), self.partitions_of(*number))
        };
        self.members.iter().map(of).collect()
    }

    /// The partitions of a member.
    pub(super) fn partitions_of(&self, number: u64) -> Vec<u32> {
        let owned = self.lanes.iter().filter(|(_, lane)| lane.owner == Some(number));
        owned.map(|(partition, _)| *partition).collect()
    }

    /// Kafka takes the partitions back, for the time being at least: nothing is handed out.
    pub(super) fn suspend(&mut self) {
        (self.is_given, self.is_settled) = (false, false);
    }

    /// Kafka has given these partitions to this process, and keeps these places of them; those that it does not know begin where told. Whether a new
    /// generation begins with it, which is to be settled.
    pub(super) fn take_up(&mut self, given: &BTreeMap<u32, (Option<Place>, u64)>) -> bool {
        self.is_given = true;
        let stands = |lane: &Lane<R>, place: &Option<Place>| lane.committed == *place;
        let is_same = self.generation > 0
            && self.lanes.len() == given.len()
            && given.iter().all(|(partition, (place, _))| {
                self.lanes.get(partition).is_some_and(|lane| stands(lane, place))
            });
        if is_same {
            for lane in self.lanes.values_mut() {
                lane.is_paused = false;
            }
            if !self.is_to_be_shared() {
                self.settle();
            }
            return false;
        }
        let mut before = std::mem::take(&mut self.lanes);
        for (partition, (place, start)) in given {
            let known = before.remove(partition).filter(|lane| stands(lane, place));
            let lane = match known {
                Some(known) => Lane::new(known.birth, known.progress, *place),
                None => {
                    self.births += 1;
                    let at = place.unwrap_or(Place { next: *start, start: *start, generation: 0 });
                    self.generation = self.generation.max(at.generation);
                    Lane::new(self.births, Progress::resumed(at.start, at.next), *place)
                }
            };
            self.lanes.insert(*partition, lane);
        }
        self.begin_generation();
        true
    }

    /// Whether members have come or gone since the partitions were shared out, and there is anybody to have them.
    pub(super) fn is_to_be_shared(&self) -> bool {
        self.manner == Manner::Partitions
            && self.is_given
            && self.is_changed
            && !self.members.is_empty()
    }

    /// Ends the generation: who takes part by now shares the partitions anew, and all that is not done comes again. To be settled.
    pub(super) fn begin_generation(&mut self) {
        self.generation += 1;
        (self.is_settled, self.is_changed) = (false, false);
        self.lanes.values_mut().for_each(|lane| lane.flow.rewind());
        for member in self.members.values_mut() {
            (member.generation, member.in_flight) = (Some(self.generation), 0);
        }
        if self.manner == Manner::Partitions {
            let mut owners: Vec<_> = self.lanes.values().map(|lane| lane.owner).collect();
            share_out(&mut owners, self.members.keys().copied());
            for (lane, owner) in self.lanes.values_mut().zip(owners) {
                lane.owner = owner;
            }
        }
    }

    /// What was shared out may be handed out.
    pub(super) fn settle(&mut self) {
        self.is_settled = self.is_given;
        if self.manner != Manner::Partitions && self.is_settled {
            self.members.values_mut().for_each(|one| one.generation = Some(self.generation));
        }
    }

    /// Where each partition is to be read on.
    pub(super) fn cursors(&self) -> Vec<(u32, i64)> {
        self.lanes.iter().map(|(partition, lane)| (*partition, lane.cursor as i64)).collect()
    }

    /// Takes in what was read: a record, or nothing where it is for nobody.
    pub(super) fn put(&mut self, partition: u32, offset: u64, bytes: usize, record: Option<R>) {
        let Some(lane) = self.lanes.get_mut(&partition).filter(|lane| offset >= lane.cursor) else {
            return;
        };
        // Between two records there are none.
        lane.progress.pass(lane.cursor, offset);
        lane.cursor = offset + 1;
        match record {
            None => drop(lane.progress.mark(offset)),
            Some(_) if lane.progress.is_done(offset) => {}
            Some(record) => {
                let bytes = bytes + RECORD_BYTES;
                lane.window_bytes += bytes;
                lane.window.insert(offset, Kept { record, bytes });
            }
        }
        lane.progress.settle(|from| from);
    }

    /// Partitions whose window is full and whose fetch is to stop, and those whose fetch is to go on.
    pub(super) fn steer(&mut self, bytes_max: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut stop, mut go_on) = (Vec::new(), Vec::new());
        for (partition, lane) in &mut self.lanes {
            let (records, bytes) = (lane.window.len(), lane.window_bytes);
            if !lane.is_paused && (records >= WINDOW_RECORDS_MAX || bytes >= bytes_max) {
                lane.is_paused = true;
                stop.push(*partition);
            } else if lane.is_paused && records <= WINDOW_RECORDS_MAX / 2 && bytes <= bytes_max / 2
            {
                lane.is_paused = false;
                go_on.push(*partition);
            }
        }
        (stop, go_on)
    }

    /// The next record for a member, if there is one and it may have it; partitions take turns.
    pub(super) fn hand(&mut self, number: u64, now_us: u64) -> Option<Handed<R>> {
        let (manner, members) = (self.manner, &mut self.members);
        for lane in self.lanes.values_mut() {
            lane.flow.expire(now_us, manner != Manner::Records, |to| {
                if let Some(member) = members.get_mut(&to) {
                    member.in_flight = member.in_flight.saturating_sub(1);
                }
            });
        }
        let is_first = members.first_key_value().is_some_and(|(first, _)| *first == number);
        let member = members.get_mut(&number)?;
        if !self.is_settled
            || member.generation != Some(self.generation)
            || member.in_flight >= member.terms.in_flight_max
            || manner == Manner::OneAtATime && !is_first
        {
            return None;
        }
        let until_us = now_us.saturating_add(member.terms.ack_wait_us);
        let turn = member.turn;
        let behind = self.lanes.range(turn..).map(|(partition, _)| *partition);
        let before = self.lanes.range(..turn).map(|(partition, _)| *partition);
        for partition in behind.chain(before).collect::<Vec<_>>() {
            let Some(lane) = self.lanes.get_mut(&partition) else { continue };
            if manner == Manner::Partitions && lane.owner != Some(number) {
                continue;
            }
            let window = &lane.window;
            let first_from = |from| window.range(from..).next().map(|(offset, _)| *offset);
            let Some(offset) = lane.flow.head(&lane.progress, first_from) else { continue };
            let Some(kept) = lane.window.get(&offset) else { continue };
            let record = kept.record.clone();
            let attempt = lane.flow.deliver(offset, number, until_us);
            member.in_flight += 1;
            member.turn = partition + 1;
            return Some(Handed { partition, offset, attempt, until_us, record });
        }
        None
    }

    /// When the next delivery's time is over.
    pub(super) fn next_end_us(&self) -> Option<u64> {
        self.lanes.values().filter_map(|lane| lane.flow.next_end_us()).min()
    }

    /// Marks a record as done; what is to be kept before that may be told. Until it is, whoever says so again is right again.
    pub(super) fn acknowledge(&mut self, partition: u32, offset: u64) -> Result<Awaited, Refused> {
        let lane = self.lanes.get_mut(&partition).ok_or(Refused::Stale)?;
        if !lane.progress.mark(offset) && offset < lane.kept_next() {
            return Err(Refused::Expired);
        }
        lane.progress.settle(|from| from);
        if let Some(kept) = lane.window.remove(&offset) {
            lane.window_bytes -= kept.bytes;
        }
        if let Some(to) = lane.flow.end(offset)
            && let Some(member) = self.members.get_mut(&to)
        {
            member.in_flight = member.in_flight.saturating_sub(1);
        }
        Ok(Awaited { partition, birth: lane.birth, next: lane.progress.next() })
    }

    /// How it stands with what an acknowledgement waits for.
    pub(super) fn standing(&self, awaited: &Awaited) -> Standing {
        match self.lanes.get(&awaited.partition).filter(|lane| lane.birth == awaited.birth) {
            None => Standing::Lost,
            Some(lane) if lane.kept_next() >= awaited.next => Standing::Kept,
            Some(_) => Standing::NotYet,
        }
    }

    /// What is done and Kafka does not keep yet.
    pub(super) fn to_keep(&self) -> Vec<(u32, Place)> {
        let places = self.lanes.iter().map(|(partition, lane)| (*partition, self.place(lane)));
        places
            .filter(|(partition, place)| self.lanes[partition].committed != Some(*place))
            .collect()
    }

    /// Kafka keeps it now.
    pub(super) fn note_kept(&mut self, places: &[(u32, Place)]) {
        for (partition, place) in places {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.committed = Some(*place);
            }
        }
    }

    /// How far each partition is done, and how many records beyond are, too.
    pub(super) fn places(&self) -> BTreeMap<u32, Place> {
        self.lanes.iter().map(|(partition, lane)| (*partition, self.place(lane))).collect()
    }

    /// Of the offsets up to an end those that are not done.
    pub(super) fn left(&self, partition: u32, end: u64) -> Option<u64> {
        self.lanes.get(&partition).map(|lane| lane.progress.left(0, end))
    }

    fn place(&self, lane: &Lane<R>) -> Place {
        let (next, start) = (lane.progress.next(), lane.progress.start());
        Place { next, start, generation: self.generation }
    }
}

impl<R> Lane<R> {
    fn new(birth: u64, progress: Progress, committed: Option<Place>) -> Self {
        Lane {
            birth,
            cursor: progress.next(),
            progress,
            flow: Flow::default(),
            window: BTreeMap::new(),
            window_bytes: 0,
            committed,
            owner: None,
            is_paused: false,
        }
    }

    fn kept_next(&self) -> u64 {
        self.committed.map_or(self.progress.start(), |place| place.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { ack_wait_us: 1000, in_flight_max: 3 };

    fn given(partitions: std::ops::Range<u32>) -> BTreeMap<u32, (Option<Place>, u64)> {
        partitions.map(|partition| (partition, (None, 0))).collect()
    }

    /// Kafka takes everything back and gives what it keeps.
    fn again(crowd: &mut Crowd<&'static str>) -> bool {
        let kept = crowd.lanes.iter().map(|(partition, lane)| (*partition, (lane.committed, 0)));
        let kept = kept.collect();
        crowd.suspend();
        crowd.take_up(&kept)
    }

    fn keep(crowd: &mut Crowd<&'static str>) {
        let places = crowd.to_keep();
        crowd.note_kept(&places);
        assert!(crowd.to_keep().is_empty());
    }

    fn begun(manner: Manner) -> Crowd<&'static str> {
        let mut crowd = Crowd::new(manner);
        assert!(crowd.take_up(&given(0..4)));
        keep(&mut crowd);
        crowd.settle();
        crowd
    }

    #[test]
    fn the_same_partitions_given_again_end_no_generation() {
        let mut crowd = begun(Manner::Partitions);
        let (a, _) = crowd.join("a", TERMS, 0);
        assert!(crowd.is_to_be_shared() && crowd.hand(a, 0).is_none());
        crowd.begin_generation();
        keep(&mut crowd);
        crowd.settle();
        for (offset, text) in [(0, "x"), (1, "y")] {
            crowd.put(2, offset, 1, Some(text));
        }
        let handed = crowd.hand(a, 0).unwrap();
        assert_eq!((handed.partition, handed.offset, handed.record), (2, 0, "x"));
        let generation = crowd.generation();
        assert!(!again(&mut crowd), "it stands where it stood");
        assert_eq!(crowd.generation(), generation);
        let awaited = crowd.acknowledge(2, 0).unwrap();
        assert_eq!(crowd.standing(&awaited), Standing::NotYet);
        keep(&mut crowd);
        assert_eq!(crowd.standing(&awaited), Standing::Kept);
        assert_eq!(crowd.hand(a, 0).unwrap().record, "y", "and goes on");
        // Somebody else has moved on with one of them meanwhile.
        crowd.suspend();
        let mut moved = given(0..4);
        for (partition, (place, _)) in &mut moved {
            *place = crowd.lanes[partition].committed;
        }
        let (place, _) = moved.get_mut(&3).unwrap();
        *place = place.map(|place| Place { next: 9, generation: 40, ..place });
        assert!(crowd.take_up(&moved));
        assert_eq!((crowd.generation(), crowd.lanes[&3].cursor), (41, 9));
        assert!(crowd.hand(a, 0).is_none(), "not before it is kept");
        keep(&mut crowd);
        crowd.settle();
        crowd.put(2, 1, 1, Some("y"));
        assert_eq!(crowd.hand(a, 0).unwrap().record, "y", "it was not done");
        // With fewer of them what was to be kept of the others is lost.
        let awaited = crowd.acknowledge(2, 1).unwrap();
        crowd.suspend();
        assert!(crowd.take_up(&given(0..2)));
        assert_eq!(crowd.standing(&awaited), Standing::Lost);
        assert_eq!(crowd.acknowledge(2, 2), Err(Refused::Stale));
    }

    #[test]
    fn partitions_are_shared_anew_when_members_come_and_go() {
        let mut crowd = begun(Manner::Partitions);
        let (a, _) = crowd.join("a", TERMS, 0);
        let (b, name) = crowd.join("", TERMS, 0);
        assert!(!name.is_empty());
        crowd.begin_generation();
        crowd.settle();
        assert_eq!((crowd.partitions_of(a).len(), crowd.partitions_of(b).len()), (2, 2));
        let (again, _) = crowd.join("a", TERMS, 0);
        assert_eq!(crowd.generation_of(a), None, "its place was taken");
        assert_eq!(crowd.generation_of(again), Some(None), "it has no part yet");
        crowd.begin_generation();
        crowd.leave(b);
        assert!(crowd.is_to_be_shared());
        crowd.begin_generation();
        assert_eq!(crowd.partitions_of(again), [0, 1, 2, 3]);
    }

    #[test]
    fn records_go_to_whoever_has_room_and_come_again_one_by_one() {
        let mut crowd = begun(Manner::Records);
        let ((a, _), (b, _)) = (crowd.join("", TERMS, 0), crowd.join("", TERMS, 0));
        for (offset, text) in ["0", "1", "2", "3", "4"].into_iter().enumerate() {
            // Where a number is missing there is no record.
            crowd.put(0, 2 * offset as u64, 1, Some(text));
        }
        let take = |crowd: &mut Crowd<_>, who, now_us| {
            std::iter::from_fn(|| crowd.hand(who, now_us)).map(|one| one.record).collect::<Vec<_>>()
        };
        assert_eq!(take(&mut crowd, a, 0), ["0", "1", "2"]);
        assert_eq!(take(&mut crowd, b, 10), ["3", "4"]);
        crowd.acknowledge(0, 0).unwrap();
        crowd.acknowledge(0, 4).unwrap();
        assert!(crowd.acknowledge(0, 0).is_ok(), "nobody was told yet");
        keep(&mut crowd);
        assert_eq!(crowd.acknowledge(0, 0), Err(Refused::Expired));
        assert_eq!(crowd.places()[&0].next, 2);
        assert_eq!(crowd.left(0, 9), Some(3));
        assert_eq!(crowd.next_end_us(), Some(1000));
        let again = crowd.hand(b, 1000).unwrap();
        assert_eq!((again.record, again.attempt), ("1", 2));
        crowd.leave(a);
        crowd.leave(b);
        let (c, _) = crowd.join("", TERMS, 0);
        assert_eq!(take(&mut crowd, c, 1000), ["1", "3", "4"]);
    }

    #[test]
    fn one_at_a_time_keeps_the_order_when_something_comes_again() {
        let mut crowd = begun(Manner::OneAtATime);
        let ((a, _), (b, _)) = (crowd.join("", TERMS, 0), crowd.join("", TERMS, 0));
        for offset in 0..4 {
            crowd.put(1, offset, 1, Some("x"));
        }
        assert!(crowd.hand(b, 0).is_none());
        let offsets = |crowd: &mut Crowd<_>, who, now_us| {
            std::iter::from_fn(|| crowd.hand(who, now_us)).map(|one| one.offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(&mut crowd, a, 0), [0, 1, 2]);
        crowd.acknowledge(1, 1).unwrap();
        assert_eq!(offsets(&mut crowd, a, 1000), [0, 2, 3]);
        crowd.leave(a);
        assert_eq!(offsets(&mut crowd, b, 1001), [0, 2, 3]);
    }

    #[test]
    fn a_full_window_stops_the_fetch_of_its_partition_alone() {
        let mut crowd = begun(Manner::Records);
        let (a, _) = crowd.join("", TERMS, 0);
        crowd.put(0, 0, 4000, Some("large"));
        crowd.put(1, 0, 40, None);
        assert_eq!(crowd.places()[&1].next, 1, "what is for nobody is done");
        assert_eq!(crowd.steer(4000), (vec![0], vec![]));
        assert_eq!(crowd.steer(4000), (vec![], vec![]));
        crowd.hand(a, 0).unwrap();
        crowd.acknowledge(0, 0).unwrap();
        assert_eq!(crowd.steer(4000), (vec![], vec![0]));
    }
}
