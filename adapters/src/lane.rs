//! What a backend outside the process does for a lane: logged records in their order, each with one effect.
//!
//! A *cell* is a lane's watermark, kept in the backend and moved together with the data: up to which record the lane's records
//! are there. A record that arrives a second time is recognised by it. Whoever drives a lane first asks for the cell
//! ([`LaneBackend::resume`]), then sends what comes after it, a batch at a time ([`LaneBackend::apply`]); after any failure it
//! asks again. So it never matters whether a batch whose answer was lost has arrived.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll, Waker};

use prism_proto::catalogue::Method;

use crate::backend::Backend;
use crate::call::{Context, Reply};
use crate::error::Error;

/// Whose log a lane's records come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneOwner {
    /// Identity of the log: two data directories never write one lane.
    pub directory_id: [u8; 16],
    /// Number of the process's start on it: what an earlier process has left under way comes from a smaller one.
    pub epoch: u32,
}

/// A lane's watermark in its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Who moved it last.
    pub owner: LaneOwner,
    /// The records up to this number of the lane are in the backend; 0: none.
    pub lane_seq: u64,
}

impl Cell {
    /// As it stands in backends that keep it as text: data directory, start and number.
    pub(crate) fn to_text(self) -> String {
        let id = u128::from_be_bytes(self.owner.directory_id);
        format!("{id:032x} {} {}", self.owner.epoch, self.lane_seq)
    }

    /// What [`Cell::to_text`] has written; absent where it is anything else.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let directory_id = u128::from_str_radix(words.next()?, 16).ok()?.to_be_bytes();
        let epoch = words.next()?.parse().ok()?;
        let lane_seq = words.next()?.parse().ok()?;
        let cell = Cell { owner: LaneOwner { directory_id, epoch }, lane_seq };
        words.next().is_none().then_some(cell)
    }
}

/// A record of a lane.
#[derive(Clone, Copy, Debug)]
pub struct LaneRecord<'a> {
    /// Its number in the lane, contiguous from 1.
    pub lane_seq: u64,
    /// Its namespace and partition, its log time as the time, its LSN as the revision.
    pub context: Context<'a>,
    /// A write.
    pub method: Method,
    /// The request, which was checked before it got a record.
    pub request: &'a [u8],
}

/// The reason of an outcome that is not known: the record is in the backend since an earlier attempt, whose answer was lost.
pub const ANSWER_LOST: &str = "ANSWER_LOST";

/// What became of a record that was applied: the reply to its caller, or why the backend refuses it for its own sake, or
/// [`ANSWER_LOST`]. The cell has passed it in either case.
pub type Outcome = Result<Reply, Error>;

/// A backend outside the process that takes logged writes.
#[allow(async_fn_in_trait)] // Futures stay on their shard: they need no `Send`.
pub trait LaneBackend: Backend {
    /// The lane's cell, `None` where the lane has none yet. When it answers, nothing that was sent for this lane before can
    /// arrive any more.
    ///
    /// # Errors
    /// The backend is away or refuses to work; worth trying again.
    async fn resume(&self, context: &Context<'_>, owner: &LaneOwner)
    -> Result<Option<Cell>, Error>;

    /// Puts the cell somewhere without applying anything: at the beginning of a lane, or past records that are skipped.
    ///
    /// # Errors
    /// As for [`LaneBackend::resume`].
    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error>;

    /// Applies records that follow on the cell, in their order, and moves the cell to the last of them: all at once or not at
    /// all. `outcomes` was empty and gets one entry per record.
    ///
    /// # Errors
    /// Nothing is known about any of the records: ask for the cell again.
    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error>;
}

/// A record's call as a part of a batch: it says what it wants when it begins, and is asked again when the batch was answered.
pub(crate) struct BatchedCall<'a> {
    future: Pin<Box<dyn Future<Output = Outcome> + 'a>>,
    outcome: Option<Outcome>,
}

impl<'a> BatchedCall<'a> {
    /// Polls the call once, so that the backend gathers what it asks for.
    pub(crate) fn begin<B: Backend>(backend: &'a B, record: &'a LaneRecord<'a>) -> Self {
        let future = Box::pin(async move {
            let mut reply = Reply::default();
            backend.unary(&record.context, record.method, record.request, &mut reply).await?;
            Ok(reply)
        });
        let mut call = BatchedCall { future, outcome: None };
        call.outcome = call.poll();
        call
    }

    /// What became of it, now that the answers are there; `None` if it still waits for something.
    pub(crate) fn end(&mut self) -> Option<Outcome> {
        self.outcome.take().or_else(|| self.poll())
    }

    fn poll(&mut self) -> Option<Outcome> {
        match self.future.as_mut().poll(&mut Task::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_reads_back_and_nothing_else_is_one() {
        let owner = LaneOwner { directory_id: [0xab; 16], epoch: 7 };
        let cell = Cell { owner, lane_seq: u64::MAX };
        let text = format!("{} 7 {}", "ab".repeat(16), u64::MAX);
        assert_eq!((Cell::parse(text.as_bytes()), cell.to_text()), (Some(cell), text));
        for bad in ["", "ab", "ab 7", "ab 7 x", "ab 7 1 2", "xy 7 1", "\u{fffd}"] {
            assert_eq!(Cell::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
