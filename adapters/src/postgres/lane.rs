//! A lane's records on PostgreSQL: a batch is one transaction that first moves the lane's cell, so that each record has one effect.
//!
//! The cell is a row of the namespace's table `cell`, locked for as long as the transaction lasts. Whoever asks for it writes a new
//! number into it; a batch names the number that it was asked with. So what a connection that was left behind still holds fails when
//! it arrives, and a batch that has arrived already finds the cell elsewhere.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::Postgres;
use super::batch::{Answer, Operation};
use super::codec::Parameters;
use super::errors::{self, Fault};
use super::statements::Statement;
use crate::call::{Context, NO_DEADLINE_NS};
use crate::error::Error;
use crate::lane::{BatchedCall, Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};

/// The operations of several calls, put together.
#[derive(Default)]
pub(super) struct Group {
    operations: Vec<Operation>,
    members: Vec<Member>,
}

struct Member {
    /// How many of the operations are its own.
    operations: usize,
    answer: Rc<RefCell<Option<Answer>>>,
}

fn other(statement: Statement, parameters: Parameters, versions: u32) -> Operation {
    Operation::Other { statement, parameters, versions }
}

/// PostgreSQL has signed numbers only; a log does not get that far.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl LaneBackend for Postgres {
    async fn resume(&self, context: &Context<'_>, _: &LaneOwner) -> Result<Option<Cell>, Error> {
        let lane = (context.namespace, context.partition);
        self.lanes.borrow_mut().remove(&lane);
        let parameters = Parameters::default().int4(context.partition.into());
        let answer = self.write(context, vec![other(Statement::CellResume, parameters, 1)]).await?;
        let session = answer.versions.first().copied();
        let (Some(session), Some(row)) = (session, answer.row()) else {
            return Err(errors::cell_unreadable(context));
        };
        self.lanes.borrow_mut().insert(lane, session);
        let Some(directory_id) = &row.value else { return Ok(None) };
        let directory_id = directory_id[..].try_into().ok();
        let (epoch, lane_seq) = (u32::try_from(row.number).ok(), u64::try_from(row.version).ok());
        let (Some(directory_id), Some(epoch), Some(lane_seq)) = (directory_id, epoch, lane_seq)
        else {
            return Err(errors::cell_unreadable(context));
        };
        Ok(Some(Cell { owner: LaneOwner { directory_id, epoch }, lane_seq }))
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        let parameters = Parameters::default()
            .int4(context.partition.into())
            .int8(self.session_of(context)?)
            .bytes(&cell.owner.directory_id)
            .int8(cell.owner.epoch.into())
            .int8(signed(cell.lane_seq));
        let answer = self.write(context, vec![other(Statement::CellSet, parameters, 0)]).await?;
        answer.row().map(drop).ok_or_else(|| errors::lane_moved(context))
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        match self.apply_together(owner, records, outcomes).await? {
            None => Ok(()),
            // One of them is refused, and nothing took effect: each by itself shows which.
            Some(_) if records.len() > 1 => {
                outcomes.clear();
                for record in records {
                    let alone = std::slice::from_ref(record);
                    if let Some(refusal) = self.apply_together(owner, alone, outcomes).await? {
                        self.pass(owner, record).await?;
                        outcomes.push(Err(refusal));
                    }
                }
                Ok(())
            }
            Some(refusal) => {
                for record in records {
                    self.pass(owner, record).await?;
                }
                outcomes.push(Err(refusal));
                Ok(())
            }
        }
    }
}

impl Postgres {
    fn session_of(&self, context: &Context<'_>) -> Result<i64, Error> {
        let lane = (context.namespace, context.partition);
        self.lanes.borrow().get(&lane).copied().ok_or_else(|| errors::lane_moved(context))
    }

    fn move_cell(
        &self,
        owner: &LaneOwner,
        first: &LaneRecord<'_>,
        last: &LaneRecord<'_>,
    ) -> Result<Operation, Error> {
        let parameters = Parameters::default()
            .int4(last.context.partition.into())
            .int8(self.session_of(&last.context)?)
            .bytes(&owner.directory_id)
            .int8(owner.epoch.into())
            .int8(signed(first.lane_seq.saturating_sub(1)))
            .int8(signed(last.lane_seq));
        Ok(other(Statement::CellMove, parameters, 0))
    }

    /// Moves the cell past a record that is refused.
    async fn pass(&self, owner: &LaneOwner, record: &LaneRecord<'_>) -> Result<(), Error> {
        let operation = self.move_cell(owner, record, record)?;
        self.write(&record.context, vec![operation]).await.map(drop)
    }

    /// Applies records in one transaction. `Some`: one of them is refused for its own sake, and nothing took effect.
    async fn apply_together(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Option<Error>, Error> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(None) };
        let context = &last.context;
        let cell = self.move_cell(owner, first, last)?;
        self.group.replace(Some(Group { operations: vec![cell], members: Vec::new() }));
        let mut calls: Vec<_> =
            records.iter().map(|record| BatchedCall::begin(self, record)).collect();
        let Group { operations, members } = self.group.take().unwrap_or_default();
        let link = self.pool.of_writes(context.namespace, context.partition);
        let namespace = self.pool.namespace(context.namespace, context.namespace_name);
        match link.call(namespace, operations, NO_DEADLINE_NS).await {
            Ok(answer) => distribute(answer, &members),
            Err(fault) => {
                let error = fault.error(context, link.retry_delay());
                return match fault {
                    Fault::Sql(sql) if sql.is_refusal() => Ok(Some(error)),
                    _ => Err(error),
                };
            }
        }
        for call in &mut calls {
            // A call that has not ended asks a second time, which none of a write does.
            outcomes.push(call.end().unwrap_or_else(|| Err(errors::lane_moved(context))));
        }
        Ok(None)
    }

    /// Leaves a call's operations to whoever puts the group together, and waits for what they bring.
    pub(super) async fn join_group(
        &self,
        context: &Context<'_>,
        operations: Vec<Operation>,
    ) -> Result<Answer, Error> {
        let answer = Rc::new(RefCell::new(None));
        match &mut *self.group.borrow_mut() {
            Some(group) => {
                group.members.push(Member { operations: operations.len(), answer: answer.clone() });
                group.operations.extend(operations);
            }
            None => return Err(errors::lane_moved(context)),
        }
        // Nobody is woken: whoever has gathered the calls polls them when their answers are there.
        Ok(poll_fn(|_| answer.take().map_or(Poll::Pending, Poll::Ready)).await)
    }
}

/// Gives every call of a group what is its own of the answer; the first operation is the cell's.
fn distribute(answer: Answer, members: &[Member]) {
    let Answer { versions, rows } = answer;
    let mut parts: Vec<Answer> = Vec::with_capacity(members.len());
    let mut owners = vec![None];
    let mut begin = 1;
    for (number, member) in members.iter().enumerate() {
        let end = begin + member.operations;
        let versions = versions.get(begin..end).map(<[i64]>::to_vec).unwrap_or_default();
        parts.push(Answer { versions, rows: Vec::new() });
        owners.extend(std::iter::repeat_n(Some((number, begin)), member.operations));
        begin = end;
    }
    for (operation, row) in rows {
        if let Some(Some((member, begin))) = owners.get(operation as usize) {
            parts[*member].rows.push((operation - *begin as u32, row));
        }
    }
    for (member, part) in members.iter().zip(parts) {
        member.answer.replace(Some(part));
    }
}
