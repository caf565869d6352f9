//! A lane's records on Redis: a batch is one MULTI … EXEC that also moves the lane's cell.
//!
//! The cell is the key `_prism:cell:<namespace>:<partition>` (no namespace begins with `_`), whose value says data directory, start
//! and number. Redis carries out the whole transaction or nothing of it, and a record's failure within it (a key of another
//! type) is that record's own. Redis cannot compare the cell before it moves it without a script per record; instead, before a
//! lane goes on, every connection that an earlier one of this shard has left behind is closed, so that nothing of it can
//! arrive late. That takes one writer per lane: the log's directory is locked, and another data directory is noticed when a
//! lane begins.

use bytes::Bytes;

use super::Redis;
use super::codec::{self, Framer, ProtocolError, Replies, Value};
use super::connection::{GroupMember, Link};
use super::errors;
use super::keyvalue::Answer;
use crate::backend::Backend;
use crate::call::Context;
use crate::error::Error;
use crate::lane::{BatchedCall, Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};

/// Adds the name of a lane's cell.
fn put_cell_key(out: &mut Vec<u8>, context: &Context<'_>) {
    let partition = format!(":{}", context.partition);
    let name = context.namespace_name.as_bytes();
    codec::put_pieces(out, [b"_prism:cell:", name, partition.as_bytes()]);
}

/// Adds the command that moves a cell.
fn put_cell(out: &mut Vec<u8>, context: &Context<'_>, cell: &Cell) {
    codec::put_command(out, 3);
    codec::put(out, b"SET");
    put_cell_key(out, context);
    codec::put(out, cell.to_text().as_bytes());
}

impl LaneBackend for Redis {
    async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        if let Some(cluster) = self.cluster() {
            return Box::pin(self.resume_in(cluster, context, owner)).await;
        }
        self.close_left_behind(context, &self.link).await?;
        // Asked once a call was answered: before, there may have been no connection yet.
        let session = self.link.session();
        let get = |out: &mut Vec<u8>| {
            codec::put_command(out, 2);
            codec::put(out, b"GET");
            put_cell_key(out, context);
        };
        let read = self.link.call(context, 1, get).await?;
        let Some(value) = Answer::new(context, &read).blob()? else {
            self.resumed(context, session);
            return Ok(None);
        };
        let cell = Cell::parse(value).ok_or_else(|| errors::cell_unreadable(context))?;
        self.resumed(context, session);
        Ok(Some(cell))
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        if let Some(cluster) = self.cluster() {
            return Box::pin(self.set_cell_in(cluster, context, cell)).await;
        }
        let read = self.link.call(context, 1, |out| put_cell(out, context, cell)).await?;
        Answer::new(context, &read).next().map(drop)
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        self.apply_to(self, owner, records, outcomes).await
    }
}

impl Redis {
    /// As [`LaneBackend::apply`], of records that `backend` carries out over this Redis.
    pub(super) async fn apply_to<B: Backend>(
        &self,
        backend: &B,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(last) = records.last() else { return Ok(()) };
        if let Some(cluster) = self.cluster() {
            return Box::pin(self.apply_in(cluster, backend, owner, records, outcomes)).await;
        }
        let context = &last.context;
        if self.link.session() == 0 || !self.is_resumed(context) {
            return Err(self.link.refusal(context));
        }
        let (mut calls, group) = self.link.group(|| {
            records.iter().map(|record| BatchedCall::begin(backend, record)).collect::<Vec<_>>()
        });
        let cell = Cell { owner: *owner, lane_seq: last.lane_seq };
        let commands = group.commands;
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 1);
            codec::put(out, b"MULTI");
            out.extend_from_slice(&group.buffer);
            put_cell(out, context, &cell);
            codec::put_command(out, 1);
            codec::put(out, b"EXEC");
        };
        // MULTI, each command and the cell are answered when they are queued, then all of them by EXEC.
        let read = self.link.call(context, commands + 3, write).await?;
        self.distribute(context, group.members.iter(), &read)?;
        self.link.give_back(group);
        for call in &mut calls {
            outcomes.push(call.end().ok_or_else(|| errors::unexpected(context))?);
        }
        Ok(())
    }

    fn resumed(&self, context: &Context<'_>, session: u64) {
        self.lanes.borrow_mut().insert((context.namespace, context.partition), session);
    }

    /// Whether the lane's cell was read on the connection that stands.
    fn is_resumed(&self, context: &Context<'_>) -> bool {
        let lane = (context.namespace, context.partition);
        self.lanes.borrow().get(&lane) == Some(&self.link.session())
    }

    /// Closes the connections of this shard's name but this one: what they still hold must not arrive behind what is sent now.
    pub(super) async fn close_left_behind(
        &self,
        context: &Context<'_>,
        link: &Link,
    ) -> Result<(), Error> {
        let list = |out: &mut Vec<u8>| {
            for parts in [&[&b"CLIENT"[..], b"ID"][..], &[b"CLIENT", b"LIST", b"TYPE", b"NORMAL"]] {
                codec::put_command(out, parts.len());
                parts.iter().for_each(|part| codec::put(out, part));
            }
        };
        let read = link.call(context, 2, list).await?;
        let mut answer = Answer::new(context, &read);
        let own = answer.integer()?;
        let list = match answer.next()? {
            Value::Blob(list) => list,
            _ => return Err(errors::unexpected(context)),
        };
        let old = left_behind(list, link.client_name(), own);
        if old.is_empty() {
            return Ok(());
        }
        let kill = |out: &mut Vec<u8>| {
            for id in &old {
                codec::put_command(out, 4);
                [&b"CLIENT"[..], b"KILL", b"ID"].iter().for_each(|part| codec::put(out, part));
                codec::put_number(out, *id);
            }
        };
        let read = link.call(context, old.len(), kill).await?;
        let mut answer = Answer::new(context, &read);
        for _ in &old {
            // How many were closed; none if it has gone by itself.
            answer.integer()?;
        }
        Ok(())
    }
}

impl Redis {
    /// Gives every call of a group its replies, from the answers to the whole transaction.
    pub(super) fn distribute<'m>(
        &self,
        context: &Context<'_>,
        members: impl Iterator<Item = &'m GroupMember> + Clone,
        read: &Bytes,
    ) -> Result<(), Error> {
        let nonsense = |_: ProtocolError| errors::unexpected(context);
        let commands = members.clone().map(|member| member.replies).sum::<usize>();
        let (mut framer, mut at) = (Framer::default(), 0);
        let mut next = |at: &mut usize| -> Result<Bytes, Error> {
            loop {
                let frame = framer.find(&read[*at..]).map_err(nonsense)?;
                let frame = frame.ok_or_else(|| errors::unexpected(context))?;
                let bytes = read.slice(*at..*at + frame.length);
                *at += frame.length;
                if !frame.is_push {
                    return Ok(bytes);
                }
            }
        };
        let mut refused = None;
        for _ in 0..commands + 2 {
            let answer = next(&mut at)?;
            if let Value::Error(text) = Replies::new(&answer).next().map_err(nonsense)? {
                refused.get_or_insert_with(|| errors::of_reply(context, text));
            }
        }
        let executed = next(&mut at)?;
        // A command that was not even queued says why nothing was carried out.
        if let Some(error) = refused {
            return Err(error);
        }
        match Replies::new(&executed).next().map_err(nonsense)? {
            Value::Array(count) if count == commands as u64 + 1 => {}
            Value::Error(text) => return Err(errors::of_reply(context, text)),
            _ => return Err(errors::unexpected(context)),
        }
        let header = executed.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (mut framer, mut at) = (Framer::default(), header);
        for member in members {
            let start = at;
            for _ in 0..member.replies {
                let frame = framer.find(&executed[at..]).map_err(nonsense)?;
                at += frame.ok_or_else(|| errors::unexpected(context))?.length;
            }
            self.link.answer(member, executed.slice(start..at));
        }
        Ok(())
    }
}

/// The connections of this name in what CLIENT LIST says, without `own`.
fn left_behind(list: &[u8], name: &str, own: i64) -> Vec<u64> {
    let list = String::from_utf8_lossy(list);
    let mut found = Vec::new();
    for line in list.lines() {
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        if value("name=") == Some(name)
            && let Some(id) = value("id=").and_then(|id| id.parse::<u64>().ok())
            && i64::try_from(id) != Ok(own)
        {
            found.push(id);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_of_the_same_name_are_left_behind() {
        let list = b"id=3 addr=127.0.0.1:1 name=prism-a-0 db=0\nid=4 addr=127.0.0.1:2 name=prism-a-0 db=0\n\
                     id=5 addr=127.0.0.1:3 name=prism-a-01 db=0\nid=6 name= db=0\n";
        assert_eq!(left_behind(list, "prism-a-0", 4), [3]);
        assert_eq!(left_behind(b"", "prism-a-0", 4), Vec::<u64>::new());
    }
}
