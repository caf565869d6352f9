//! Logged events on NATS: JetStream stores them, whatever method has published them, and then the lane's cell is moved behind them.
//!
//! Between the two there is a gap, in which a batch may be sent a second time. An event keeps its identity then (`Nats-Msg-Id`), so that
//! JetStream stores it once, as long as it remembers the first (`duplicate_window`, two minutes); who is only passing hears it twice.

use futures_util::future::join_all;
use prism_proto::catalogue::{Method, Model};
use prism_proto::view::stream::{AppendBatchRequest, AppendRequest};

use super::Nats;
use super::jetstream::Holds;
use super::lane::MESSAGE_TOO_LARGE;
use crate::backend::Backend;
use crate::call::Reply;
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
    pub(super) async fn apply_events(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
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
            // They begin, and are sent, in their order.
            let calls = join_all(batch.iter().map(|record| async move {
                let mut reply = Reply::default();
                self.unary(&record.context, record.method, record.request, &mut reply).await?;
                Ok(reply)
            }));
            for outcome in calls.await {
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
