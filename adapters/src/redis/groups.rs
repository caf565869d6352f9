//! Consumer groups on Redis: a group is one of Redis's own, which shares a stream record by record among its consumers.
//!
//! What Redis keeps no place for lies beside it, in the hash `_prism:group:<namespace>:<stream>:<group>`: `ack-wait-ms`, `max-in-flight`, the
//! `generation`, and since when it stands (`since-us`): a group that is moved, or made again under its name, knows no receipt of before.
//! What is under way to whom, since when and for which time are Redis's pending entries. So a receipt outlives Prism.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{
    AcknowledgeRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, JoinConsumerGroupRequest, ReplayRangeRequest, SeekToOffsetRequest,
    SeekToTimestampRequest,
};
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;

use super::Redis;
use super::codec::{self, Value};
use super::errors;
use super::keyvalue::Answer;
use super::scripts::Script;
use super::stream::Id;
use super::walk::{check_partition, read_cursor, trimmed_to, unknown_position};
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::{item_status, moment_us, span_ms};
use crate::interfaces::stream::{StreamConsumerGroups, StreamReplay};
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::sharing::{Refused, Seal, group_active, group_mismatch, group_not_found, not_accepted};

/// The only partition of a stream.
const PARTITION: u32 = 0;

/// Of which namespace, stream and group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) stream: &'a str,
    pub(super) group: &'a str,
}

impl<'a> Name<'a> {
    /// What tells two groups of a name apart is since when they stand, which only Redis knows: it is in the receipt, and the script compares.
    fn seal(&self, namespace: u32) -> Seal<'a> {
        Seal { namespace, names: [self.stream, self.group], created: [0; 3] }
    }

    /// Adds the names of the stream's key and of what is kept of the group.
    pub(super) fn put_keys(&self, out: &mut Vec<u8>, context: &Context<'_>) {
        let stream = format!("{}:{}", context.namespace_name, self.stream);
        codec::put(out, stream.as_bytes());
        codec::put_pieces(
            out,
            [b"_prism:group:", stream.as_bytes(), format!(":{}", self.group).as_bytes()],
        );
    }
}

/// The receipt of a record that is handed out by a group which stands since a moment, µs since the epoch. It is good as long as the record
/// waits for its acknowledgement, whoever holds it then.
pub(super) fn receipt(namespace: u32, name: Name<'_>, since_us: u64, id: Id) -> String {
    name.seal(namespace).receipt(since_us, id.ms, id.seq)
}

/// Since when the group stands, and the record, whose receipt it is; nothing where it is none of this group's.
fn read_receipt(namespace: u32, name: Name<'_>, receipt: &str) -> Option<(u64, Id)> {
    let (since_us, ms, seq) = name.seal(namespace).read(receipt)?;
    Some((since_us, Id { ms, seq }))
}

/// Where a group begins, as the script is told.
pub(super) struct Beginning {
    /// An id that has to have been told, if there is one.
    pub(super) told: Option<Id>,
    /// The id behind which it begins; absent: behind all that is there.
    pub(super) behind: Option<Id>,
}

impl Beginning {
    /// Where a start says; and the field that it stands in, if it is a position.
    pub(super) fn of(
        context: &Context<'_>,
        stream: &str,
        start: &Start<'_>,
    ) -> Result<(Self, String), Error> {
        let from = |id| Beginning { told: None, behind: Some(id) };
        let begun = match start.start {
            None | Some(StartStart::Latest(_)) => Beginning { told: None, behind: None },
            Some(StartStart::Earliest(_)) => from(Id::default()),
            Some(StartStart::Since(time)) => {
                from(Id { ms: moment_us(&time) / 1000, seq: 0 }.before())
            }
            Some(StartStart::Cursor(text)) => {
                let place = read_cursor(context.namespace, stream, text).ok_or_else(|| {
                    let expected = "does not belong to this namespace and stream";
                    Error::field("CURSOR_INVALID", "start.cursor", expected)
                })?;
                from(place.after)
            }
            Some(StartStart::At(position)) => {
                return Beginning::told("start.at", &position, Id::before);
            }
            Some(StartStart::After(position)) => {
                return Beginning::told("start.after", &position, |id| id);
            }
        };
        Ok((begun, String::new()))
    }

    /// At or behind a position that was told; and the field that it stands in.
    fn told(
        field: &str,
        position: &prism_proto::view::types::Position<'_>,
        behind: impl FnOnce(Id) -> Id,
    ) -> Result<(Self, String), Error> {
        check_partition(&format!("{field}.partition"), position.partition)?;
        let field = format!("{field}.offset");
        let id = Id::parse(position.offset).ok_or_else(|| unknown_position(&field))?;
        Ok((Beginning { told: Some(id), behind: Some(behind(id)) }, field))
    }
}

impl StreamConsumerGroups for Redis {
    async fn create_consumer_group(
        &self,
        context: &Context<'_>,
        request: CreateConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        if request.sharing() == Some(reply::Sharing::ByPartition) {
            return Err(sharing_not_offered());
        }
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let ack_wait_ms = request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms);
        let begun = Beginning::of(context, request.stream, &request.start.unwrap_or_default())?;
        let name = Name { stream: request.stream, group: request.group };
        self.place_group(context, name, "create", begun, [ack_wait_ms, in_flight.into()]).await?;
        let sharing = reply::Sharing::ByRecord.into();
        reply::CreateConsumerGroupResponse { sharing }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn delete_consumer_group(
        &self,
        context: &Context<'_>,
        request: DeleteConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let write = |out: &mut Vec<u8>| {
            name.put_keys(out, context);
            codec::put(out, name.group.as_bytes());
        };
        let read = self.script(context, Script::GroupDelete, 2, 1, write).await?;
        let existed = Some(Answer::new(context, &read).integer()? > 0);
        self.members.tell(context.namespace, name);
        reply::DeleteConsumerGroupResponse { existed }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let handed: Vec<Option<(u64, Id)>> = request
            .receipts
            .iter()
            .map(|receipt| read_receipt(context.namespace, name, receipt))
            .collect();
        let asked = handed.iter().flatten();
        let write = |out: &mut Vec<u8>| {
            name.put_keys(out, context);
            codec::put(out, name.group.as_bytes());
            for (since_us, id) in asked.clone() {
                codec::put_number(out, *since_us);
                codec::put(out, id.text().as_bytes());
            }
        };
        let arguments = 1 + 2 * asked.clone().count();
        let read = self.script(context, Script::GroupAcknowledge, 2, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        match answer.next()? {
            Value::Array(count) if count == asked.clone().count() as u64 => {}
            Value::Blob(b"missing") => return Err(group_not_found(name.group)),
            _ => return Err(errors::unexpected(context)),
        }
        let mut results = Vec::with_capacity(handed.len());
        for one in &handed {
            let is_done = one.is_some() && answer.integer()? == 1;
            let status = (!is_done).then(|| item_status(&not_accepted(Refused::Expired)));
            results.push(reply::AcknowledgeResult { status });
        }
        self.members.tell(context.namespace, name);
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_consumer_group_info(
        &self,
        context: &Context<'_>,
        request: GetConsumerGroupInfoRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let write = |out: &mut Vec<u8>| {
            name.put_keys(out, context);
            codec::put(out, name.group.as_bytes());
        };
        let read = self.script(context, Script::GroupLook, 2, 1, write).await?;
        let mut answer = Answer::new(context, &read);
        if answer.array()? != 3 {
            return Err(group_not_found(name.group));
        }
        let mut text = || -> Result<Option<String>, Error> {
            let text = answer.blob()?.filter(|text| !text.is_empty());
            Ok(text.map(|text| String::from_utf8_lossy(text).into_owned()))
        };
        let generation = text()?.and_then(|text| text.parse().ok()).unwrap_or_default();
        let (acknowledged, lag) = (text()?, text()?.and_then(|text| text.parse().ok()));
        let members = self.members.names(context.namespace, name).into_iter();
        let answer = reply::GetConsumerGroupInfoResponse {
            sharing: reply::Sharing::ByRecord.into(),
            generation,
            members: members
                .map(|member| reply::GroupMember { member, partitions: Vec::new() })
                .collect(),
            progress: vec![reply::GroupProgress { partition: PARTITION, acknowledged, lag }],
        };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn join_consumer_group<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: JoinConsumerGroupRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.take_part(context, request, sink).await
    }

    async fn rebalance(&self, _: &Context<'_>, _: &[u8], _: &mut Reply) -> Result<(), Error> {
        // Shared record by record, there is nothing to be shared anew.
        Ok(())
    }
}

impl StreamReplay for Redis {
    async fn seek_to_offset(
        &self,
        context: &Context<'_>,
        request: SeekToOffsetRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let mut begun = None;
        for (index, position) in request.positions.iter().enumerate() {
            begun = Some(Beginning::told(&format!("positions[{index}]"), &position, Id::before)?);
        }
        let Some(begun) = begun else { return Ok(()) };
        self.move_group(context, name, begun).await
    }

    async fn seek_to_timestamp(
        &self,
        context: &Context<'_>,
        request: SeekToTimestampRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let ms = request.timestamp.as_ref().map_or(0, moment_us) / 1000;
        let behind = Some(Id { ms, seq: 0 }.before());
        self.move_group(context, name, (Beginning { told: None, behind }, String::new())).await
    }

    async fn replay_range<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.replay_stream(context, request, sink).await
    }
}

impl Redis {
    async fn move_group(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
        begun: (Beginning, String),
    ) -> Result<(), Error> {
        if !self.members.names(context.namespace, name).is_empty() {
            return Err(group_active(name.group));
        }
        self.place_group(context, name, "move", begun, [0, 0]).await
    }

    async fn place_group(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
        what: &str,
        (begun, field): (Beginning, String),
        settings: [u64; 2],
    ) -> Result<(), Error> {
        let text = |id: Option<Id>, none: &str| id.map_or(none.to_owned(), Id::text);
        let write = |out: &mut Vec<u8>| {
            name.put_keys(out, context);
            let ids = [text(begun.told, ""), text(begun.behind, "$")];
            for part in [name.group, what, &ids[0], &ids[1]] {
                codec::put(out, part.as_bytes());
            }
            settings.iter().for_each(|number| codec::put_number(out, *number));
        };
        let read = self.script(context, Script::GroupPlace, 2, 6, write).await?;
        let mut answer = Answer::new(context, &read);
        match answer.next()? {
            Value::Blob(b"done") => {
                self.members.tell(context.namespace, name);
                Ok(())
            }
            Value::Blob(b"missing") => Err(group_not_found(name.group)),
            Value::Blob(b"mismatch") => Err(group_mismatch(name.group)),
            Value::Blob(b"unknown") => Err(unknown_position(&field)),
            Value::Array(2) => {
                answer.next()?;
                Err(trimmed_to(Id::read(context, answer.blob()?)?))
            }
            _ => Err(errors::unexpected(context)),
        }
    }
}

#[cold]
fn sharing_not_offered() -> Error {
    let message = "a group on Redis shares its stream record by record, not by partition, of which a stream there has one: ask for \
                   SHARING_BY_RECORD, or leave sharing out";
    Error::new(Kind::FailedPrecondition, "SHARING_NOT_OFFERED", message)
        .with("backend", errors::BACKEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_bound_to_their_group() {
        let (name, id) = (Name { stream: "s", group: "g" }, Id { ms: 9, seq: u64::MAX });
        let text = receipt(1, name, 7, id);
        assert_eq!(read_receipt(1, name, &text), Some((7, id)));
        assert_eq!(read_receipt(2, name, &text), None);
        assert_eq!(read_receipt(1, Name { group: "h", ..name }, &text), None);
        for wrong in ["", "1", "1-2-3", "x-y-z-0", "7-9-1-0000000000000000"] {
            assert_eq!(read_receipt(1, name, wrong), None, "{wrong}");
        }
    }
}
