//! Many calls as one batch: one transaction, one commit, as few statements as their order allows.
//!
//! Operations of one kind that follow each other share a statement; of several puts of one key in it the last wins, as it would
//! have without. It does no I/O.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use postgres_protocol::message::backend::Message;

use super::codec::{self, Parameters, ProtocolError, Row, Type, put_execute, put_parse, put_sync};
use super::errors::SqlError;
use super::migrations::Model;
use super::statements::{Namespace, Statement};

/// Operations that share a statement at most.
const SHARED_MAX: usize = 1024;

/// A part of a call.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// Reads an entry, its value if that is not longer.
    Get { key: Box<str>, value_max: i32 },
    /// Stores an entry, under a version that the batch gives it.
    Put { key: Box<str>, value: Box<[u8]>, expires_us: Option<u64> },
    /// Deletes an entry.
    Delete { key: Box<str> },
    /// A row of what a statement takes by columns ([`Statement::columns`]), null where there is no value.
    Row { statement: Statement, values: Vec<Option<Box<[u8]>>> },
    /// Anything else; so many versions are taken for it, and the first is its last parameter.
    Other { statement: Statement, parameters: Parameters, versions: u32 },
}

impl Operation {
    /// What it takes of a batch's room, about.
    pub(super) fn len(&self) -> usize {
        64 + match self {
            Operation::Get { key, .. } | Operation::Delete { key } => key.len(),
            Operation::Put { key, value, .. } => key.len() + value.len(),
            Operation::Row { values, .. } => {
                values.iter().flatten().map(|value| value.len() + 8).sum()
            }
            Operation::Other { parameters, .. } => parameters.len(),
        }
    }

    /// What it needs to be in the namespace's schema.
    pub(super) fn model(&self) -> Model {
        match self {
            Operation::Row { statement, .. } | Operation::Other { statement, .. } => {
                statement.model()
            }
            _ => Model::KeyValue,
        }
    }

    /// Versions that it uses up.
    pub(super) fn versions(&self) -> u32 {
        match self {
            Operation::Put { .. } => 1,
            Operation::Get { .. } | Operation::Delete { .. } | Operation::Row { .. } => 0,
            Operation::Other { versions, .. } => *versions,
        }
    }
}

/// What a call gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// By operation: the first version that it took.
    pub(super) versions: Vec<i64>,
    /// The rows, each with the number of its operation.
    pub(super) rows: Vec<(u32, Row)>,
}

impl Answer {
    /// The row of a call that has at most one.
    pub(super) fn row(&self) -> Option<&Row> {
        self.rows.first().map(|(_, row)| row)
    }
}

/// Which call's which operation.
type Target = (usize, u32);

/// Operations that share a statement.
enum Shared<'a> {
    Get {
        value_max: i32,
        keys: Vec<&'a str>,
    },
    Put {
        keys: Vec<&'a str>,
        values: Vec<(&'a [u8], i64, Option<u64>)>,
        places: HashMap<&'a str, usize>,
    },
    Delete {
        keys: Vec<&'a str>,
        seen: HashSet<&'a str>,
    },
    Rows {
        statement: Statement,
        rows: Vec<&'a [Option<Box<[u8]>>]>,
    },
}

/// A batch: what is sent, and whose the rows of its statements are.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Per statement sent, whose rows its are.
    targets: Vec<Vec<Target>>,
    /// Statements that are prepared on the way, in the order sent.
    prepares: Vec<(u32, Statement)>,
    answers: Vec<Answer>,
}

/// Builds a [`Batch`].
pub(super) struct Builder<'a, 'p> {
    batch: Batch,
    prepared: &'p HashSet<(u32, Statement)>,
    shared: Option<(&'a Namespace, Shared<'a>, Vec<Target>)>,
}

impl<'a, 'p> Builder<'a, 'p> {
    /// `prepared`: what the connection has prepared already, by namespace.
    pub(super) fn new(prepared: &'p HashSet<(u32, Statement)>) -> Self {
        Builder { batch: Batch::default(), prepared, shared: None }
    }

    /// Adds a call; `take` gives out so many versions and returns the first.
    pub(super) fn add(
        &mut self,
        namespace: &'a Rc<Namespace>,
        operations: &'a [Operation],
        mut take: impl FnMut(u32) -> i64,
    ) {
        let call = self.batch.answers.len();
        let mut answer =
            Answer { versions: Vec::with_capacity(operations.len()), rows: Vec::new() };
        for (number, operation) in operations.iter().enumerate() {
            let version = take(operation.versions());
            answer.versions.push(version);
            self.add_operation(namespace, operation, version, (call, number as u32));
        }
        self.batch.answers.push(answer);
    }

    fn add_operation(
        &mut self,
        namespace: &'a Namespace,
        operation: &'a Operation,
        version: i64,
        target: Target,
    ) {
        if let Operation::Other { statement, parameters, versions } = operation {
            self.end_shared();
            match versions {
                0 => self.execute(namespace, *statement, parameters, vec![target]),
                _ => {
                    let parameters = parameters.clone().int8(version);
                    self.execute(namespace, *statement, &parameters, vec![target]);
                }
            }
            return;
        }
        let fits = self.shared.as_ref().is_some_and(|(whose, shared, targets)| {
            *whose == namespace
                && targets.len() < SHARED_MAX
                && match (shared, operation) {
                    (Shared::Get { value_max, .. }, Operation::Get { value_max: wanted, .. }) => {
                        value_max == wanted
                    }
                    (Shared::Put { .. }, Operation::Put { .. }) => true,
                    (Shared::Delete { seen, .. }, Operation::Delete { key }) => {
                        !seen.contains(&**key)
                    }
                    (Shared::Rows { statement, .. }, Operation::Row { statement: wanted, .. }) => {
                        statement == wanted
                    }
                    _ => false,
                }
        });
        if !fits {
            self.end_shared();
        }
        let (_, shared, targets) = self.shared.get_or_insert_with(|| {
            let shared = match operation {
                Operation::Get { value_max, .. } => {
                    Shared::Get { value_max: *value_max, keys: Vec::new() }
                }
                Operation::Put { .. } => {
                    Shared::Put { keys: Vec::new(), values: Vec::new(), places: HashMap::new() }
                }
                Operation::Row { statement, .. } => {
                    Shared::Rows { statement: *statement, rows: Vec::new() }
                }
                _ => Shared::Delete { keys: Vec::new(), seen: HashSet::new() },
            };
            (namespace, shared, Vec::new())
        });
        targets.push(target);
        match (shared, operation) {
            (Shared::Get { keys, .. }, Operation::Get { key, .. }) => keys.push(key),
            (Shared::Put { keys, values, places }, Operation::Put { key, value, expires_us }) => {
                let stored = (&**value, version, *expires_us);
                match places.get(&**key) {
                    Some(&place) => values[place] = stored,
                    None => {
                        places.insert(key, keys.len());
                        keys.push(key);
                        values.push(stored);
                    }
                }
            }
            (Shared::Delete { keys, seen }, Operation::Delete { key }) => {
                keys.push(key);
                seen.insert(key);
            }
            (Shared::Rows { rows, .. }, Operation::Row { values, .. }) => rows.push(values),
            _ => unreachable!("what does not fit has a statement of its own"),
        }
    }

    fn end_shared(&mut self) {
        let Some((namespace, shared, targets)) = self.shared.take() else { return };
        let parameters = Parameters::default();
        let (statement, parameters) = match shared {
            Shared::Get { value_max, keys } => {
                let keys = keys.iter().copied().map(Some);
                (Statement::Get, parameters.array(Type::Text, keys).int4(value_max))
            }
            Shared::Put { keys, values, .. } => {
                let parameters = parameters
                    .array(Type::Text, keys.iter().copied().map(Some))
                    .array(Type::Bytea, values.iter().map(|(value, ..)| Some(value)))
                    .array(
                        Type::Int8,
                        values.iter().map(|(_, version, _)| Some(version.to_be_bytes())),
                    )
                    .array(
                        Type::Timestamptz,
                        values.iter().map(|(.., expires_us)| expires_us.map(moment)),
                    );
                (Statement::Put, parameters)
            }
            Shared::Delete { keys, .. } => {
                (Statement::Delete, parameters.array(Type::Text, keys.iter().copied().map(Some)))
            }
            Shared::Rows { statement, rows } => {
                let columns = statement.columns().iter().enumerate();
                let parameters = columns.fold(parameters, |parameters, (column, element)| {
                    let value =
                        |row: &&'a [Option<Box<[u8]>>]| row.get(column).and_then(Option::as_deref);
                    parameters.array(*element, rows.iter().map(value))
                });
                (statement, parameters)
            }
        };
        self.execute(namespace, statement, &parameters, targets);
    }

    fn execute(
        &mut self,
        namespace: &Namespace,
        statement: Statement,
        parameters: &Parameters,
        targets: Vec<Target>,
    ) {
        let (batch, known) = (&mut self.batch, (namespace.number, statement));
        let name = statement.name(namespace);
        if !self.prepared.contains(&known) && !batch.prepares.contains(&known) {
            put_parse(&mut batch.bytes, &name, &statement.text(namespace));
            batch.prepares.push(known);
        }
        put_execute(&mut batch.bytes, &name, parameters);
        batch.targets.push(targets);
    }

    /// The whole batch.
    pub(super) fn end(mut self) -> Batch {
        self.end_shared();
        put_sync(&mut self.batch.bytes);
        self.batch
    }
}

/// A moment as an element of an array.
pub(super) fn moment(us: u64) -> [u8; 8] {
    codec::from_unix_us(us).to_be_bytes()
}

/// What comes back for a batch, message by message.
#[derive(Default)]
pub(super) struct Receiver {
    targets: Vec<Vec<Target>>,
    prepares: Vec<(u32, Statement)>,
    answers: Vec<Answer>,
    /// Statements that are done, statements that are prepared.
    done: usize,
    prepared: usize,
    error: Option<SqlError>,
    is_ended: bool,
}

/// A batch that has ended.
pub(super) struct Ended {
    /// By call; or why nothing of it took effect.
    pub(super) answers: Result<Vec<Answer>, SqlError>,
    /// What is prepared from now on.
    pub(super) prepared: Vec<(u32, Statement)>,
}

impl Receiver {
    /// Takes the bytes to send out of a batch, and waits for its answer.
    pub(super) fn of(batch: Batch) -> (Vec<u8>, Self) {
        let Batch { bytes, targets, prepares, answers } = batch;
        (bytes, Receiver { targets, prepares, answers, ..Receiver::default() })
    }

    /// Takes a message; whether it was the last.
    ///
    /// # Errors
    /// It does not belong there.
    pub(super) fn take(&mut self, message: Message) -> Result<bool, ProtocolError> {
        match message {
            Message::ParseComplete => self.prepared += 1,
            Message::DataRow(body) => {
                let row = Row::read(&body)?;
                let targets =
                    self.targets.get(self.done).ok_or(ProtocolError("an answer to nothing"))?;
                let place = usize::try_from(row.number.max(1) - 1).unwrap_or(usize::MAX);
                let target = if targets.len() == 1 { targets.first() } else { targets.get(place) };
                let Some(&(call, operation)) = target else {
                    return Err(ProtocolError("a row about nothing that was asked for"));
                };
                self.answers[call].rows.push((operation, row));
            }
            Message::CommandComplete(_) | Message::EmptyQueryResponse => {
                self.done += 1;
                if self.done > self.targets.len() {
                    return Err(ProtocolError("an answer to nothing"));
                }
            }
            Message::ErrorResponse(body) => {
                self.error.get_or_insert_with(|| SqlError::read(&body));
            }
            Message::ReadyForQuery(_) => {
                if self.error.is_none() && self.done != self.targets.len() {
                    return Err(ProtocolError("answers are missing"));
                }
                self.is_ended = true;
            }
            Message::BindComplete
            | Message::NoData
            | Message::NoticeResponse(_)
            | Message::NotificationResponse(_)
            | Message::ParameterStatus(_) => {}
            _ => return Err(ProtocolError("an answer of another kind")),
        }
        Ok(self.is_ended)
    }

    /// What became of it, once it has ended.
    pub(super) fn end(self) -> Option<Ended> {
        let mut prepared = self.prepares;
        prepared.truncate(self.prepared);
        let answers = match self.error {
            Some(error) => Err(error),
            None => Ok(self.answers),
        };
        self.is_ended.then_some(Ended { answers, prepared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(key: &str) -> Operation {
        Operation::Get { key: key.into(), value_max: 10 }
    }

    fn put(key: &str, value: &[u8]) -> Operation {
        Operation::Put { key: key.into(), value: value.into(), expires_us: None }
    }

    fn delete(key: &str) -> Operation {
        Operation::Delete { key: key.into() }
    }

    fn build(calls: &[Vec<Operation>]) -> (Batch, Vec<i64>) {
        let namespace = Rc::new(Namespace::new(7, "orders"));
        let (prepared, mut next) = (HashSet::new(), 100);
        let mut builder = Builder::new(&prepared);
        for operations in calls {
            builder.add(&namespace, operations, |count| {
                next += i64::from(count);
                next - i64::from(count)
            });
        }
        let batch = builder.end();
        let versions = batch.answers.iter().flat_map(|answer| answer.versions.clone()).collect();
        (batch, versions)
    }

    fn count(bytes: &[u8], wanted: &[u8]) -> usize {
        bytes.windows(wanted.len()).filter(|window| *window == wanted).count()
    }

    #[test]
    fn neighbours_of_a_kind_share_a_statement_and_keep_their_order() {
        let (batch, versions) = build(&[
            vec![put("a", b"first"), put("b", b"b")],
            vec![put("a", b"last")],
            vec![get("a")],
            vec![get("a"), get("b")],
            vec![delete("a")],
            vec![delete("b"), delete("a")],
            vec![put("a", b"again")],
        ]);
        let targets = [
            vec![(0, 0), (0, 1), (1, 0)],
            vec![(2, 0), (3, 0), (3, 1)],
            vec![(4, 0), (5, 0)],
            vec![(5, 1)],
            vec![(6, 0)],
        ];
        assert_eq!(batch.targets, targets);
        assert_eq!((count(&batch.bytes, b"first"), count(&batch.bytes, b"last")), (0, 1));
        assert_eq!(batch.prepares.len(), 3);
        assert_eq!(versions[..3], [100, 101, 102], "each put has a version of its own");
        assert_eq!(count(&batch.bytes, b"S\0\0\0\x04"), 1, "it is one transaction");
    }

    #[test]
    fn an_error_takes_every_answer_and_what_was_prepared_stays() {
        let (batch, _) = build(&[vec![put("a", b"1")], vec![get("a")]]);
        let (_, mut receiver) = Receiver::of(batch);
        assert_eq!(receiver.take(Message::ParseComplete), Ok(false));
        let mut bytes = bytes::BytesMut::from(&b"E\0\0\0\x14C40P01\0Mdead\0\0\0\0"[..]);
        let error = codec::next_message(&mut bytes).unwrap().unwrap();
        assert_eq!(receiver.take(error), Ok(false));
        let mut bytes = bytes::BytesMut::from(&b"Z\0\0\0\x05I"[..]);
        let ready = codec::next_message(&mut bytes).unwrap().unwrap();
        assert_eq!(receiver.take(ready), Ok(true));
        let ended = receiver.end().unwrap();
        assert!(ended.answers.unwrap_err().is_of_one_call());
        assert_eq!(ended.prepared, [(7, Statement::Put)]);
    }

    #[test]
    fn answers_that_are_missing_are_noticed() {
        let (batch, _) = build(&[vec![put("a", b"1")]]);
        let (_, mut receiver) = Receiver::of(batch);
        let mut bytes = bytes::BytesMut::from(&b"Z\0\0\0\x05I"[..]);
        let ready = codec::next_message(&mut bytes).unwrap().unwrap();
        assert!(receiver.take(ready).is_err());
    }
}
