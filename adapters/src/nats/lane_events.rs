//! Logged events on NATS: JetStream stores them, whatever method has published them, and then the lane's cell is moved behind them.
//!
//! Between the two there is a gap, in which a batch may be sent a second time. An event keeps its identity then (`Nats-Msg-Id`), so that
//! JetStream stores it once, as long as it remembers the first (`duplicate_window`, two minutes); who is only passing hears it twice.

use futures_util::future::join_all;
use prism_io::clock::wall_us;
use prism_proto::catalogue::{Method, Model};
use prism_proto::view::queue::{SendBatchRequest, SendDelayedRequest, SendRequest};
use prism_proto::view::stream::{AppendBatchRequest, AppendRequest};

use super::Nats;
use super::jetstream::Holds;
use super::lane::{MESSAGE_TOO_LARGE, lane};
use crate::backend::Backend;
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};

/// Records and bytes that are sent before the cell is moved.
const RECORDS_MAX: usize = 256;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is the record's own fault: it names another topic, expects another last record or other settings, comes too late, asks for what
/// there is not.
const REFUSALS: [&str; 9] = [
    MESSAGE_TOO_LARGE,
    "SUBSCRIPTION_MISMATCH",
    "EXPECTED_LAST_MISMATCH",
    "GROUP_ACTIVE",
    "GROUP_MISMATCH",
    "RECEIPT_EXPIRED",
    "REPLY_TOO_LARGE",
    "RETENTION_NOT_OFFERED",
    "SHARING_NOT_OFFERED",
];

/// Where a lane has begun again: what it was about to say of the records behind that may have been lost, though they were carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resumed {
    /// The number of the last record before them.
    lane_seq: u64,
    /// When that was, µs since the epoch: what has a later log time had not been sent by then.
    at_us: u64,
    /// The LSN of the last of them, as far as they have come.
    lsn: u64,
}

/// Whether a record is of this kind.
pub(super) fn is_event(record: &LaneRecord<'_>) -> bool {
    record.method.interface().is_some_and(|interface| interface.model() != Model::KeyValue)
}

/// Whether a failure is the record's own, so that the lane goes on behind it.
fn is_refusal(error: &Error) -> bool {
    REFUSALS.contains(&error.reason())
        || matches!(error.kind(), Kind::InvalidArgument | Kind::NotFound | Kind::OutOfRange)
}

impl Nats {
    /// Notes that a lane begins again behind this record. No more records than one batch has were under way by then.
    pub(super) fn note_resumed(&self, context: &Context<'_>, lane_seq: u64) {
        let resumed = Resumed { lane_seq, at_us: wall_us(), lsn: 0 };
        self.resumed.borrow_mut().insert(lane(context), resumed);
    }

    /// Notes which of the records may have been carried out before.
    fn note_second(&self, records: &[LaneRecord<'_>]) {
        let mut resumed = self.resumed.borrow_mut();
        for LaneRecord { lane_seq, context, .. } in records {
            if let Some(resumed) = resumed.get_mut(&lane(context))
                && *lane_seq <= resumed.lane_seq + RECORDS_MAX as u64
                && context.now_us <= resumed.at_us
            {
                resumed.lsn = resumed.lsn.max(context.revision.lsn);
            }
        }
    }

    /// Whether a call has a record that may have been carried out before.
    pub(super) fn may_be_second(&self, context: &Context<'_>) -> bool {
        let resumed = self.resumed.borrow().get(&lane(context)).copied().unwrap_or_default();
        context.revision.is_logged() && context.revision.lsn <= resumed.lsn
    }

    pub(super) async fn apply_events(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        self.note_second(records);
        // So that they begin in their order.
        for record in records {
            if let Some(holds) = stored_in(record) {
                self.ensure_stream(&record.context, holds).await?;
            }
            self.prepare_record(&record.context, record.method, record.request).await?;
        }
        let mut rest = records;
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(batch_len(rest));
            for outcome in self.carry_out_events(batch).await {
                match outcome {
                    Err(error) if !is_refusal(&error) => return Err(error),
                    outcome => outcomes.push(outcome),
                }
            }
            if let Some(last) = batch.last() {
                let cell = Cell { owner: *owner, lane_seq: last.lane_seq };
                self.set_cell(&last.context, &cell).await?;
            }
            rest = behind;
        }
        Ok(())
    }
}

impl Nats {
    /// Carries records out in their order. A server by itself stores what one connection sends in that order, so that they go side by side; a
    /// cluster may lose some on the way to a stream's leader and take what follows, so that there each waits for the one before it.
    async fn carry_out_events(&self, batch: &[LaneRecord<'_>]) -> Vec<Outcome> {
        let is_replicated = |record: &LaneRecord<'_>| {
            let holds = stored_in(record).or_else(|| queue_of(record));
            holds.is_some_and(|holds| self.streams.is_replicated(&record.context, holds))
        };
        if !batch.iter().any(is_replicated) {
            // They begin, and are sent, in their order.
            return join_all(batch.iter().map(|record| self.carry_out_event(record))).await;
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            let outcome = self.carry_out_event(record).await;
            let stops = outcome.as_ref().is_err_and(|error| !is_refusal(error));
            outcomes.push(outcome);
            if stops {
                break;
            }
        }
        outcomes
    }

    async fn carry_out_event(&self, record: &LaneRecord<'_>) -> Outcome {
        let mut reply = Reply::default();
        self.unary(&record.context, record.method, record.request, &mut reply).await?;
        Ok(reply)
    }
}

/// The stream of the queue that a record sends to.
fn queue_of<'a>(record: &LaneRecord<'a>) -> Option<Holds<'a>> {
    let queue = match record.method {
        Method::QUEUE_SEND => SendRequest::decode(record.request).ok()?.queue,
        Method::QUEUE_SEND_DELAYED => SendDelayedRequest::decode(record.request).ok()?.queue,
        Method::QUEUE_SEND_BATCH => SendBatchRequest::decode(record.request).ok()?.queue,
        _ => return None,
    };
    Some(Holds::Messages(queue))
}

/// The stream that a record adds to.
fn stored_in<'a>(record: &LaneRecord<'a>) -> Option<Holds<'a>> {
    match record.method {
        Method::STREAM_APPEND => {
            AppendRequest::decode(record.request).ok().map(|request| Holds::Records(request.stream))
        }
        Method::STREAM_APPEND_BATCH => AppendBatchRequest::decode(record.request)
            .ok()
            .map(|request| Holds::Records(request.stream)),
        method => {
            let model = method.interface().map(|interface| interface.model());
            (model == Some(Model::PubSub)).then_some(Holds::Events)
        }
    }
}

/// How many of the records are sent at once; at least one.
fn batch_len(records: &[LaneRecord<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |record: &&LaneRecord<'_>| {
        bytes += record.request.len();
        bytes <= BYTES_MAX
    };
    records.iter().take(RECORDS_MAX).take_while(fits).count().max(1)
}
