//! A lane's records on a cluster: a transaction for each slot that a batch writes to, with a cell of the lane in that slot.
//!
//! A transaction is of one slot, so the data of a batch cannot move together with one cell. Each slot that a lane has written to has a
//! cell of its own, `_prism:cell:<namespace>:<partition>:{<tag>}`, moved with the slot's records; the lane's, without a tag, is moved when all
//! slots have theirs. So the lane's is never ahead of the data, and what is sent again behind it is passed over where the slot's cell says that
//! it is there. Its answer is lost then ([`ANSWER_LOST`]).
//!
//! When a replica takes over without the last that its master had confirmed, the cells of its slots go back and the lane's does not. What
//! was confirmed lately is remembered; who resumes compares, and goes back behind the first record that is missing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hasher;
use std::sync::LazyLock;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use super::slots::{SLOTS, slot_of_whole};
use super::{Cluster, Redirection, errors, redirection};
use crate::backend::Backend;
use crate::call::Context;
use crate::error::Error;
use crate::lane::{ANSWER_LOST, BatchedCall, Cell, LaneOwner, LaneRecord, Outcome};
use crate::redis::Redis;
use crate::redis::codec;
use crate::redis::keyvalue::Answer;
use crate::together::together;

/// Records that were confirmed lately and are remembered, at most.
const RECENT_MAX: usize = 256 * 1024;
/// Times that a transaction follows its slot to another node.
const MOVES_MAX: usize = 3;

/// What is known of a lane.
#[derive(Debug, Default)]
pub(in crate::redis) struct LaneCells {
    /// On which connections its cells were read.
    session: u64,
    /// By slot, up to which record those of the slot are there, as far as that was asked.
    slots: HashMap<u16, u64, ahash::RandomState>,
    /// The records that were confirmed last and their slots, in the order of the records.
    recent: VecDeque<(u64, u16)>,
}

impl LaneCells {
    fn confirm(&mut self, lane_seq: u64, slot: u16) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((lane_seq, slot));
    }

    /// The first record that was confirmed and is not there any more; those from it on are forgotten.
    fn lost(&mut self) -> Option<u64> {
        let slots = &self.slots;
        let is_lost = |(seq, slot): &&(u64, u16)| slots.get(slot).is_some_and(|cell| cell < seq);
        let first = self.recent.iter().filter(is_lost).map(|(seq, _)| *seq).min()?;
        self.recent.retain(|(seq, _)| *seq < first);
        Some(first)
    }
}

/// The records of a batch that are of one slot.
#[derive(Debug, Default)]
struct Piece {
    /// The calls of the group.
    members: Vec<usize>,
    last_seq: u64,
}

/// A tag for each slot.
fn tag(slot: u16) -> u32 {
    static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let (mut tags, mut left, mut number) = (vec![None; SLOTS], SLOTS, 0);
        while left > 0 {
            let place = &mut tags[usize::from(slot_of_whole(format!("{number}").as_bytes()))];
            left -= usize::from(place.is_none());
            place.get_or_insert(number);
            number += 1;
        }
        tags.into_iter().flatten().collect()
    });
    TAGS[usize::from(slot)]
}

/// The name of a lane's cell, or of its cell in a slot.
fn cell_key(context: &Context<'_>, slot: Option<u16>) -> String {
    let key = format!("_prism:cell:{}:{}", context.namespace_name, context.partition);
    match slot {
        None => key,
        Some(slot) => format!("{key}:{{{}}}", tag(slot)),
    }
}

/// The slot that a lane's cell is in, and what has no key of its own.
pub(in crate::redis) fn lane_slot(context: &Context<'_>) -> u16 {
    slot_of_whole(cell_key(context, None).as_bytes())
}

fn put_set(out: &mut Vec<u8>, key: &str, cell: &Cell) {
    codec::put_command(out, 3);
    codec::put(out, b"SET");
    codec::put(out, key.as_bytes());
    codec::put(out, cell.to_text().as_bytes());
}

#[cold]
fn answer_lost(context: &Context<'_>) -> Error {
    errors::answer_lost(context, ANSWER_LOST)
}

impl Cluster {
    /// Another number whenever a connection to a node was made anew, or there is another node.
    fn session(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        for node in &self.map.borrow().nodes {
            hasher.write(node.address.0.as_bytes());
            hasher.write_u16(node.address.1);
            hasher.write_u64(node.link.session());
        }
        hasher.finish()
    }

    /// A transaction on keys of one slot, at whichever node has it: all of it is carried out there, or nothing.
    async fn transact(
        &self,
        context: &Context<'_>,
        slot: u16,
        replies: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        for _ in 0..MOVES_MAX {
            let link = self.link_of(context, Some(slot)).await?;
            let answer = link.call(context, replies, &write).await;
            let answer = answer.inspect_err(|_| self.stale.set())?;
            match redirection(&answer, replies, &link.address()) {
                None => return Ok(answer),
                Some(Redirection::Moved(slot, address)) => {
                    self.moved.set(self.moved.get() + 1);
                    self.moved(slot, &address);
                }
                // Some of its keys may be here and some there, until the slot has moved.
                Some(Redirection::Ask(_) | Redirection::TryAgain) => break,
            }
        }
        Err(errors::slots_move(context))
    }
}

impl Redis {
    async fn cell(&self, context: &Context<'_>, slot: Option<u16>) -> Result<Option<Cell>, Error> {
        let Some(cluster) = self.cluster() else { return Ok(None) };
        let key = cell_key(context, slot);
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 2);
            codec::put(out, b"GET");
            codec::put(out, key.as_bytes());
        };
        let at = slot.unwrap_or_else(|| lane_slot(context));
        let read = cluster.call(context, Some(at), 1, write).await?;
        let Some(value) = Answer::new(context, &read).blob()? else { return Ok(None) };
        Cell::parse(value).map(Some).ok_or_else(|| errors::cell_unreadable(context))
    }

    /// Up to which record those of each of these slots are there.
    async fn cells(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
        slots: &[u16],
    ) -> Result<Vec<(u16, u64)>, Error> {
        let found = together(slots.iter().map(|slot| self.cell(context, Some(*slot)))).await;
        let of_owner = |cell: &Cell| cell.owner.directory_id == owner.directory_id;
        let each = slots.iter().zip(found).map(|(slot, cell)| {
            // That the lane is another log's is said by the lane's own cell; what it has left here counts for nothing.
            Ok((*slot, cell?.filter(of_owner).map_or(0, |cell| cell.lane_seq)))
        });
        each.collect()
    }

    /// As [`LaneBackend::resume`](crate::lane::LaneBackend::resume).
    pub(in crate::redis) async fn resume_in(
        &self,
        cluster: &Cluster,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        let lane = (context.namespace, context.partition);
        let links = cluster.masters(context).await?;
        for closed in together(links.iter().map(|link| self.close_left_behind(context, link))).await
        {
            closed.inspect_err(|_| cluster.stale.set())?;
        }
        let session = cluster.session();
        let cell = self.cell(context, None).await?;
        let mut known = self.lane_cells.borrow_mut().remove(&lane).unwrap_or_default();
        known.slots.clear();
        let mut slots: Vec<_> = known.recent.iter().map(|(_, slot)| *slot).collect();
        slots.sort_unstable();
        slots.dedup();
        let found = self.cells(context, owner, &slots).await;
        let lost = match &found {
            Ok(found) => {
                known.slots.extend(found.iter().copied());
                known.session = session;
                known.lost()
            }
            Err(_) => None,
        };
        self.lane_cells.borrow_mut().insert(lane, known);
        found?;
        Ok(cell.map(|cell| {
            let there = lost.map_or(u64::MAX, |first| first - 1);
            Cell { lane_seq: cell.lane_seq.min(there), ..cell }
        }))
    }

    /// As [`LaneBackend::set_cell`](crate::lane::LaneBackend::set_cell).
    pub(in crate::redis) async fn set_cell_in(
        &self,
        cluster: &Cluster,
        context: &Context<'_>,
        cell: &Cell,
    ) -> Result<(), Error> {
        let key = cell_key(context, None);
        let write = |out: &mut Vec<u8>| put_set(out, &key, cell);
        let read = cluster.call(context, Some(lane_slot(context)), 1, write).await?;
        Answer::new(context, &read).next().map(drop)
    }

    /// As [`LaneBackend::apply`](crate::lane::LaneBackend::apply), of records that `backend` carries out over this cluster.
    pub(in crate::redis) async fn apply_in<B: Backend>(
        &self,
        cluster: &Cluster,
        backend: &B,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(last) = records.last() else { return Ok(()) };
        let (context, lane) = (&last.context, (last.context.namespace, last.context.partition));
        let session = self.lane_cells.borrow().get(&lane).map(|known| known.session);
        if session != Some(cluster.session()) {
            return Err(errors::nodes_unknown(context));
        }
        let mut ends = Vec::with_capacity(records.len());
        let (mut calls, group) = self.link.group(|| {
            let begin = |record| {
                let call = BatchedCall::begin(backend, record);
                ends.push(self.link.group_members());
                call
            };
            records.iter().map(begin).collect::<Vec<_>>()
        });
        let begins = || std::iter::once(0).chain(ends.iter().copied());

        // What is there already is passed over.
        let mut slots: Vec<_> = group.members.iter().map(|member| member.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        let is_unknown = |slot: &u16| match self.lane_cells.borrow().get(&lane) {
            Some(known) => !known.slots.contains_key(slot),
            None => true,
        };
        slots.retain(is_unknown);
        let found = self.cells(context, owner, &slots).await?;
        let mut pieces: BTreeMap<u16, Piece> = BTreeMap::new();
        let mut passed_over = vec![false; records.len()];
        {
            let mut all_known = self.lane_cells.borrow_mut();
            let known = all_known.entry(lane).or_default();
            known.slots.extend(found);
            for (number, (begin, end)) in begins().zip(&ends).enumerate() {
                let lane_seq = records[number].lane_seq;
                for member in begin..*end {
                    let slot = group.members[member].slot;
                    if known.slots.get(&slot).is_some_and(|cell| *cell >= lane_seq) {
                        passed_over[number] = true;
                        continue;
                    }
                    let piece = pieces.entry(slot).or_default();
                    piece.members.push(member);
                    piece.last_seq = lane_seq;
                }
            }
        }

        let group = &group;
        let sent = pieces.iter().map(|(slot, piece)| {
            let key = cell_key(context, Some(*slot));
            let cell = Cell { owner: *owner, lane_seq: piece.last_seq };
            let members = || piece.members.iter().map(|member| &group.members[*member]);
            let commands = members().map(|member| member.replies).sum::<usize>();
            let write = move |out: &mut Vec<u8>| {
                codec::put_command(out, 1);
                codec::put(out, b"MULTI");
                for member in members() {
                    out.extend_from_slice(&group.buffer[member.bytes.clone()]);
                }
                put_set(out, &key, &cell);
                codec::put_command(out, 1);
                codec::put(out, b"EXEC");
            };
            cluster.transact(context, *slot, commands + 3, write)
        });
        let mut failure = None;
        for ((slot, piece), answer) in pieces.iter().zip(together(sent).await) {
            let members = piece.members.iter().map(|member| &group.members[*member]);
            match answer.and_then(|read| self.distribute(context, members, &read)) {
                Ok(()) => {
                    let mut all_known = self.lane_cells.borrow_mut();
                    all_known.entry(lane).or_default().slots.insert(*slot, piece.last_seq);
                }
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        self.set_cell_in(cluster, context, &Cell { owner: *owner, lane_seq: last.lane_seq })
            .await?;
        {
            let mut all_known = self.lane_cells.borrow_mut();
            let known = all_known.entry(lane).or_default();
            for (number, (begin, end)) in begins().zip(&ends).enumerate() {
                for member in &group.members[begin..*end] {
                    known.confirm(records[number].lane_seq, member.slot);
                }
            }
        }
        for (call, passed_over) in calls.iter_mut().zip(passed_over) {
            let outcome = match passed_over {
                true => Some(Err(answer_lost(context))),
                false => call.end(),
            };
            outcomes.push(outcome.ok_or_else(|| errors::unexpected(context))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_tag_of_its_own() {
        for slot in [0, 1, 5_460, 16_383] {
            assert_eq!(slot_of_whole(format!("a:{{{}}}", tag(slot)).as_bytes()), slot);
        }
    }

    #[test]
    fn the_first_record_that_is_missing_is_found() {
        let mut cells = LaneCells::default();
        for (lane_seq, slot) in [(1, 7), (2, 8), (3, 7), (4, 9), (5, 8)] {
            cells.confirm(lane_seq, slot);
        }
        cells.slots.extend([(7, 3), (8, 5), (9, 4)]);
        assert_eq!(cells.lost(), None);
        cells.slots.insert(8, 2);
        assert_eq!(cells.lost(), Some(5));
        assert_eq!(cells.recent.len(), 4, "it will be confirmed again");
        cells.slots.insert(7, 1);
        assert_eq!(cells.lost(), Some(3));
        assert_eq!(cells.recent, [(1, 7), (2, 8)]);
    }
}
