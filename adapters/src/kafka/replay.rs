//! The past again: a group that is moved, and a range that is read once more.

use std::rc::Rc;

use prism_proto::view::stream::{
    ReplayRangeRequest, ReplayRangeRequestEnd, SeekToOffsetRequest, SeekToTimestampRequest,
};
use prism_proto::view::types::Position;

use super::Kafka;
use super::cluster::Bounds;
use super::groups::Name;
use super::names::topic_of;
use super::notes::Note;
use super::stream::check_partition;
use super::walk::{Range, check_not_trimmed, moment_ms, since_ms};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::stream::StreamReplay;
use crate::sharing::{group_active, group_not_found};

/// The offset of a record of a known partition, or of its next one.
fn known_offset(field: &str, bounds: &Bounds, position: &Position<'_>) -> Result<i64, Error> {
    let partition = position.partition;
    check_partition(&format!("{field}.partition"), partition, bounds.end.len() as u32)?;
    let offset = position.offset.parse::<i64>().ok();
    let end = bounds.end[partition as usize];
    offset.filter(|offset| (0..=end).contains(offset)).ok_or_else(|| {
        let expected = "is no offset of this partition that was told";
        Error::field("POSITION_INVALID", format!("{field}.offset"), expected)
    })
}

impl StreamReplay for Kafka {
    async fn seek_to_offset(
        &self,
        context: &Context<'_>,
        request: SeekToOffsetRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let note = self.resting_group(context, name).await?;
        let bounds = self.bounds(context, &note.topic, None, true).await?.unwrap_or_default();
        let (mut places, mut chosen) = (bounds.first.clone(), vec![false; bounds.first.len()]);
        for (index, position) in request.positions.iter().enumerate() {
            let offset = known_offset(&format!("positions[{index}]"), &bounds, &position)?;
            places[position.partition as usize] = offset;
            chosen[position.partition as usize] = true;
        }
        check_not_trimmed(&chosen, &places, &bounds)?;
        let chosen = |(partition, _): &(u32, u64)| chosen[*partition as usize];
        let places = numbered(&places).filter(chosen).collect();
        self.move_group(context, name, &note, places).await
    }

    async fn seek_to_timestamp(
        &self,
        context: &Context<'_>,
        request: SeekToTimestampRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let note = self.resting_group(context, name).await?;
        let since_ms = request.timestamp.as_ref().map_or(0, moment_ms);
        let bounds = self.bounds(context, &note.topic, Some(since_ms), true).await?;
        let places = numbered(&bounds.unwrap_or_default().since).collect();
        self.move_group(context, name, &note, places).await
    }

    async fn replay_range<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let topic = topic_of(context.namespace_name, request.stream);
        let start = request.start.unwrap_or_default();
        let bounds = self.bounds_or_none(context, &topic, since_ms(&start), false).await?;
        let (mut ends, mut only) = (bounds.end.clone(), None);
        match &request.end {
            None => {}
            Some(ReplayRangeRequestEnd::Until(time)) => {
                let until = self.bounds_or_none(context, &topic, Some(moment_ms(time)), false);
                for (end, since) in ends.iter_mut().zip(until.await?.since) {
                    *end = since.min(*end);
                }
            }
            Some(ReplayRangeRequestEnd::Before(position)) => {
                let before = known_offset("before", &bounds, position)?;
                ends[position.partition as usize] = before;
                only = Some(position.partition);
            }
        }
        let range = Range {
            stream: request.stream,
            start,
            partitions: request.partitions.iter().collect(),
            only,
            limit: request.limit,
            follow: false,
        };
        // A page that has not caught up is the same in both answers.
        self.read_range(context, &topic, range, (bounds, ends), sink).await
    }
}

fn numbered(places: &[i64]) -> impl Iterator<Item = (u32, u64)> {
    (0..).zip(places.iter().map(|place| (*place).max(0) as u64))
}

impl Kafka {
    /// What is noted of a group that nobody takes part in here, and whose session has ended.
    async fn resting_group(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
    ) -> Result<Rc<Note>, Error> {
        let group = name.in_kafka(context);
        let note = self.note(context, &group).await?;
        let note = note.ok_or_else(|| group_not_found(name.group))?;
        if let Some(session) = self.sessions.of(&group)
            && session.is_open()
            && !session.crowd.borrow().is_empty()
        {
            return Err(group_active(name.group));
        }
        self.sessions.end(context, &group).await?;
        Ok(note)
    }

    async fn move_group(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
        note: &Note,
        places: Vec<(u32, u64)>,
    ) -> Result<(), Error> {
        let group = name.in_kafka(context);
        let placed = self.place_group(context, &group, note, Some(places)).await?;
        placed.map_err(|_| group_active(name.group))
    }
}
