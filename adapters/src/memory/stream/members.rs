//! A member's stream: what it is told of its group, and the records that it is handed.
//!
//! Members come and go without a record; that partitions are shared anew has one, written by whichever member comes to it first.
//! A stream holds one record, and waits for news of its stream and of its group.

use bytes::Bytes;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::view::stream::JoinConsumerGroupRequest;
use prost::Message as _;

use super::super::Memstore;
use super::group_calls::source_name;
use super::groups::{Handed, Name};
use crate::call::{Context, NO_END, PageSink, Revision};
use crate::error::Error;
use crate::sharing::{HEARTBEAT_US, encoded, group_not_found, replaced};

/// What a member has been told of its group.
#[derive(Clone, Debug, Default)]
struct Told {
    generation: u64,
    partitions: Vec<u32>,
}

/// What is next for a member.
enum Next {
    /// An encoded message.
    Say(Bytes),
    /// Until then, if nothing is told before.
    Wait(u64),
}

impl Memstore {
    pub(super) async fn take_part<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: JoinConsumerGroupRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let name = (context.namespace, request.stream, request.group);
        let mut records = self.stream_sources.attend(context.namespace, request.stream);
        let mut changes = self.group_sources.attend(context.namespace, &source_name(&name));
        let part = self.join(context, &name, request.member)?;
        let (mut told, mut said_us) = (None, sink.now_us());
        loop {
            part.rebalance(context, sink).await?;
            match part.next(&mut told, sink.now_us())? {
                Next::Say(message) => {
                    sink.send(message).await?;
                    said_us = sink.now_us();
                }
                Next::Wait(until_us) => {
                    let heartbeat_us = said_us.saturating_add(HEARTBEAT_US);
                    sink.wait(records.told().or(changes.told()), until_us.min(heartbeat_us))
                        .await?;
                    if sink.now_us() >= heartbeat_us {
                        said_us = sink.now_us();
                        let generation = told.as_ref().map_or(0, |told: &Told| told.generation);
                        sink.send(encoded(Event::Heartbeat(reply::Heartbeat { generation })))
                            .await?;
                    }
                }
            }
        }
    }

    fn join<'a>(
        &'a self,
        context: &Context<'_>,
        name: &Name<'a>,
        member: &str,
    ) -> Result<Part<'a>, Error> {
        let number = self.groups.joined.get() + 1;
        self.groups.joined.set(number);
        let minted = format!("m-{:x}-{number:x}", context.now_us);
        let member = if member.is_empty() { &minted } else { member };
        let joined = self.groups.with(*name, |group| {
            group.join(number, member);
            group.created
        });
        let created = joined.ok_or_else(|| group_not_found(name.2))?;
        let names = [context.namespace_name, name.1, name.2].map(Box::from);
        *self.groups.taken_part.borrow_mut().entry(names.clone()).or_default() += 1;
        self.tell_group(name);
        Ok(Part { store: self, name: *name, names, created, number, member: member.into() })
    }
}

/// A stream's part in a group; given up when it is dropped.
struct Part<'a> {
    store: &'a Memstore,
    name: Name<'a>,
    /// As in [`Groups::taken_part`](super::groups::Groups::taken_part).
    names: [Box<str>; 3],
    /// Which group of this name it is.
    created: Revision,
    number: u64,
    member: Box<str>,
}

impl Part<'_> {
    /// Has the partitions shared anew, if that is to be done and nobody else does it.
    async fn rebalance(
        &self,
        context: &Context<'_>,
        sink: &mut impl PageSink,
    ) -> Result<(), Error> {
        let takes = self.store.groups.with(self.name, |group| group.takes_rebalance(self.number));
        if takes != Some(true) {
            return Ok(());
        }
        let _attempt = Attempt(self);
        let request = reply::JoinConsumerGroupRequest {
            namespace: context.namespace_name.to_owned(),
            stream: self.name.1.to_owned(),
            group: self.name.2.to_owned(),
            member: self.member.to_string(),
        };
        let method = Method::STREAM_JOIN_CONSUMER_GROUP;
        sink.write(method, request.encode_to_vec()).await.map(drop)
    }

    fn next(&self, told: &mut Option<Told>, now_us: u64) -> Result<Next, Error> {
        let handed = self.store.with_group(&self.name, |group, stream| {
            if group.created != self.created {
                return Err(group_not_found(self.name.2));
            }
            let Some(member) = group.member(self.number) else {
                return Err(replaced(&self.member));
            };
            let generation = member.generation;
            if told.as_ref().map(|told| told.generation) == generation {
                return Ok(match group.hand(self.number, stream, now_us) {
                    Some(handed) => {
                        Ok((handed, group.receipt(&self.name, handed.partition, handed.offset)))
                    }
                    None => Err(Next::Wait(group.next_end_us().unwrap_or(NO_END))),
                });
            }
            if let Some(Told { generation, partitions }) = told.take() {
                let revoked = reply::Revoked { generation, partitions };
                return Ok(Err(Next::Say(encoded(Event::Revoked(revoked)))));
            }
            let Some(generation) = generation else { return Ok(Err(Next::Wait(NO_END))) };
            let partitions = group.partitions_of(self.number);
            *told = Some(Told { generation, partitions: partitions.clone() });
            let member = self.member.to_string();
            let assigned = reply::Assigned { generation, partitions, member };
            Ok(Err(Next::Say(encoded(Event::Assigned(assigned)))))
        })??;
        let (Handed { partition, offset, attempt }, receipt) = match handed {
            Ok(handed) => handed,
            Err(next) => return Ok(next),
        };
        let record = self.store.kept_record(self.name.0, (self.name.1, partition), offset);
        Ok(Next::Say(encoded(Event::Record(reply::RecordDelivery { receipt, attempt, record }))))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let mut taken_part = self.store.groups.taken_part.borrow_mut();
        if let Some(count) = taken_part.get_mut(&self.names) {
            *count -= 1;
            if *count == 0 {
                taken_part.remove(&self.names);
            }
        }
        if self.store.groups.with(self.name, |group| group.leave(self.number)) == Some(true) {
            self.store.tell_group(&self.name);
        }
    }
}

/// A rebalance that is being written; if it is given up, somebody else has to.
struct Attempt<'a>(&'a Part<'a>);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Part { store, name, number, .. } = self.0;
        if store.groups.with(*name, |group| group.gives_rebalance_up(*number)) == Some(true) {
            store.tell_group(name);
        }
    }
}
