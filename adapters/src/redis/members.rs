//! A member's stream: what it is told of its group, and the records that it is handed.
//!
//! Who takes part is known to the shard alone: a namespace's members are all on its home. The member's name is that of Redis's consumer, so
//! that whoever joins again under it gets what it held, at once; what other members leave behind comes when their time is over.

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::view::stream::JoinConsumerGroupRequest;
use prost::Message as _;

use super::Redis;
use super::codec;
use super::errors;
use super::groups::{Name, receipt};
use super::keyvalue::Answer;
use super::scripts::Script;
use super::stream::{Id, read_entry};
use crate::call::{Context, PageSink};
use crate::error::Error;
use crate::limits::{IN_FLIGHT_DEFAULT, LEASE_DEFAULT_MS};
use crate::members::Part;
use crate::sharing::{HEARTBEAT_US, encoded, group_not_found, replaced};
use crate::sources::Sources;

/// Records that a member takes at once.
const RECORDS_MAX: usize = 64;
/// Bytes of records that a member takes at once, as far as the namespace's limits tell.
const RECORDS_BYTES_MAX: usize = 16 << 20;
/// How often a member looks for what is late, while something waits for its acknowledgement.
const LATE_LOOK_US: u64 = 200_000;

/// Who takes part in the groups of a shard's streams.
#[derive(Debug, Default)]
pub(super) struct Members {
    taking_part: crate::members::Members,
    sources: Sources,
}

/// Names have no such character.
fn source_name(name: Name<'_>) -> String {
    format!("{}/{}", name.stream, name.group)
}

impl Members {
    /// Tells the members of a group that something has changed.
    pub(super) fn tell(&self, namespace: u32, name: Name<'_>) {
        self.sources.tell(namespace, &source_name(name));
    }

    /// Who takes part.
    pub(super) fn names(&self, namespace: u32, name: Name<'_>) -> Vec<String> {
        self.taking_part.names(namespace, &source_name(name))
    }

    fn join(&self, namespace: u32, name: Name<'_>, member: &str, now_us: u64) -> Part<'_> {
        let part = self.taking_part.join(namespace, &source_name(name), member, now_us);
        self.tell(namespace, name);
        part
    }
}

/// What a member gets at once.
struct Found {
    since_us: u64,
    generation: u64,
    /// Something waits for its acknowledgement.
    is_anything_pending: bool,
    /// Behind this the member goes on to claim what it holds.
    own_after: Option<Id>,
    records: Vec<(u64, Id, reply::StreamRecord)>,
}

impl Redis {
    pub(super) async fn take_part<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: JoinConsumerGroupRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let namespace = context.namespace;
        let mut records = self.tail.attend(context.namespace_name, name.stream);
        let mut changes = self.members.sources.attend(namespace, &source_name(name));
        let part = self.members.join(namespace, name, request.member, sink.now_us());
        let mut own_after = Some(Id::default());
        let (mut assigned, mut said_us) = (None, sink.now_us());
        loop {
            if !part.stands() {
                return Err(replaced(&part.member));
            }
            let found = self.next_of_group(context, name, &part.member, own_after).await?;
            let found = found.ok_or_else(|| group_not_found(name.group))?;
            own_after = found.own_after;
            match assigned {
                Some(since_us) if since_us != found.since_us => {
                    return Err(group_not_found(name.group));
                }
                Some(_) => {}
                None => {
                    assigned = Some(found.since_us);
                    let member = part.member.to_string();
                    let generation = found.generation;
                    let event = reply::Assigned { generation, partitions: Vec::new(), member };
                    sink.send(encoded(Event::Assigned(event))).await?;
                }
            }
            let has_records = !found.records.is_empty();
            for (attempt, id, record) in found.records {
                if !part.stands() {
                    return Err(replaced(&part.member));
                }
                let event = reply::RecordDelivery {
                    receipt: receipt(namespace, name, found.since_us, id),
                    attempt: attempt.min(u32::MAX.into()) as u32,
                    record: Some(record),
                };
                sink.send(encoded(Event::Record(event))).await?;
                said_us = sink.now_us();
            }
            if has_records || own_after.is_some() {
                rt::yield_now().await;
                continue;
            }
            let heartbeat_us = said_us.saturating_add(HEARTBEAT_US);
            let until_us = match found.is_anything_pending {
                true => sink.now_us().saturating_add(LATE_LOOK_US).min(heartbeat_us),
                false => heartbeat_us,
            };
            sink.wait(records.told().or(changes.told()), until_us).await?;
            if sink.now_us() >= heartbeat_us {
                said_us = sink.now_us();
                let generation = found.generation;
                sink.send(encoded(Event::Heartbeat(reply::Heartbeat { generation }))).await?;
            }
        }
    }

    /// The next records of a member; nothing where there is no such group.
    async fn next_of_group(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
        member: &str,
        own_after: Option<Id>,
    ) -> Result<Option<Found>, Error> {
        let count = (RECORDS_BYTES_MAX / context.limits.max_message_size).clamp(1, RECORDS_MAX);
        let write = |out: &mut Vec<u8>| {
            name.put_keys(out, context);
            codec::put(out, name.group.as_bytes());
            codec::put(out, member.as_bytes());
            codec::put_number(out, count as u64);
            codec::put(out, own_after.map_or(String::new(), Id::text).as_bytes());
            codec::put_number(out, LEASE_DEFAULT_MS);
            codec::put_number(out, IN_FLIGHT_DEFAULT.into());
        };
        let read = self.script(context, Script::GroupNext, 2, 6, write).await?;
        let mut answer = Answer::new(context, &read);
        let parts = answer.array()?;
        if parts < 4 {
            return Ok(None);
        }
        let number = |text: Option<&[u8]>| {
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            text.and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        let (since_us, generation) = (number(answer.blob()?), number(answer.blob()?));
        let is_anything_pending = answer.integer()? > 0;
        let own_after = answer.blob()?.filter(|id| !id.is_empty());
        let own_after = own_after.map(|id| Id::read(context, Some(id))).transpose()?;
        let mut records = Vec::new();
        for _ in 0..(parts - 4) / 2 {
            let attempt = answer.integer()?.unsigned_abs();
            let (id, record) = read_entry(context, &mut answer)?;
            if record.encoded_len() > context.limits.max_message_size {
                return Err(errors::too_large(context));
            }
            records.push((attempt, id, record));
        }
        Ok(Some(Found { since_us, generation, is_anything_pending, own_after, records }))
    }
}
