//! A transaction step by step: TransactService's Transaction.
//!
//! Optimistic: a read notes the version that it saw, a write is buffered, and the commit is one KeyValue Transact whose
//! conditions say that what was read is still so. No connection, lock or lane is held in between, so that a caller who goes away
//! leaves nothing behind. What one holds is bounded: keys, bytes (counted among the namespace's bytes in flight), and the time
//! without a request.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::outbox::{MESSAGES_MAX, too_many};
use prism_adapters::{Error, Kind};
use prism_io::grpc::{Message, Metadata, RequestHead};
use prism_io::server::StreamCall;
use prism_io::{clock, rt};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as keyvalue;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::transact::v1::transaction_response::Response;
use prism_proto::prism::r#type::v1::{
    Condition, Entry, Operation, OperationResult, condition::Requirement, operation::Action,
};
use prost::Message as _;

use super::transact::{BYTES_MAX, KEYS_MAX, too_large, too_many_keys};
use super::{Call, Origin, audited, outbox, own, permit, stream};
use crate::namespaces::Namespace;
use crate::remote::caller_gone;
use crate::shard::{Held, Shard, Stopping};
use crate::status;

/// How long a transaction waits for its next request, unless it says so.
const IDLE_DEFAULT: Duration = Duration::from_secs(30);
/// How long it may wait at most.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Conditions of a commit, those of what was read included.
const CONDITIONS_MAX: usize = 100;

/// Starts a transaction of one of this shard's callers.
pub(crate) fn start(shard: &Rc<Shard>, stream: StreamCall, head: RequestHead) {
    let Some(place) = shard.take_stream() else {
        return status::with_status(&stream::busy(), |status| stream.fail(status));
    };
    let shard = shard.clone();
    rt::spawn(async move {
        let begun_ns = clock::monotonic_ns();
        let seen = Cell::new(None);
        let ended = run(&shard, &stream, head.metadata, &seen).await;
        let code = ended.as_ref().map_or_else(|error| error.kind().grpc_code(), |()| 0);
        let elapsed_ns = clock::monotonic_ns().saturating_sub(begun_ns);
        shard.metrics.request(seen.get(), shard.api(seen.get()), code, elapsed_ns);
        match ended {
            Ok(()) => stream.finish(&[]),
            Err(error) => {
                shard.refusals.count(&shard.metrics, &error);
                status::with_status(&error, |status| stream.fail(status));
            }
        }
        drop(place);
    });
}

async fn run(
    shard: &Shard,
    stream: &StreamCall,
    metadata: Metadata,
    seen: &Cell<Option<usize>>,
) -> Result<(), Error> {
    if metadata.get("prism-idempotency-key").is_some() {
        let expected = "is not for a transaction step by step: leave it out, or use Execute";
        return Err(Error::field("IDEMPOTENCY_KEY_NOT_OFFERED", "prism-idempotency-key", expected));
    }
    // Who has not begun waits no longer than any other.
    let first = next(shard, stream, IDLE_DEFAULT).await?.ok_or_else(|| {
        Error::field("NAMESPACE_MISSING", "namespace", "send a first message that names it")
    })?;
    let call = Call {
        origin: Origin::Caller { connection: stream.connection().clone(), stream: stream.id() },
        method: Method::TRANSACT_TRANSACTION,
        metadata,
        deadline_ns: stream::NO_DEADLINE_NS,
        received_ns: clock::monotonic_ns(),
        message: Bytes::new(),
        audited: OnceCell::new(),
        is_relayed: false,
    };
    let ended = serve(shard, stream, &call, &first, seen).await;
    let code = ended.as_ref().map_or_else(|error| error.kind().grpc_code(), |()| 0);
    audited::end_stream(shard, &call, seen.get(), code).await;
    ended
}

/// Serves a transaction from its first message on.
async fn serve(
    shard: &Shard,
    stream: &StreamCall,
    call: &Call,
    first: &[u8],
    seen: &Cell<Option<usize>>,
) -> Result<(), Error> {
    let namespace = permit(shard, call, first, seen)?;
    audited::begin_stream(shard, call, seen).await?;
    let steps = steps(shard, stream, call, first, namespace);
    stream::while_granted(shard, call, (seen.get(), namespace), steps).await
}

/// Carries out a transaction, step by step.
async fn steps(
    shard: &Shard,
    stream: &StreamCall,
    call: &Call,
    first: &[u8],
    namespace: &Namespace,
) -> Result<(), Error> {
    let first = decode(first)?;
    let Some(Request::Begin(begin)) = first.request else {
        return Err(Error::field(
            "BEGIN_MISSING",
            "request",
            "must be begin, first of all and once",
        ));
    };
    let isolation = match begin.isolation() {
        transact::Isolation::ReadCommitted => transact::Isolation::ReadCommitted,
        _ => transact::Isolation::Serializable,
    };
    let idle = idle_timeout(begin.idle_timeout)?;
    let mut transaction = Transaction {
        shard,
        namespace,
        call,
        isolation,
        reads: HashMap::new(),
        conditions: Vec::new(),
        operations: Vec::new(),
        results: Vec::new(),
        messages: Vec::new(),
        bytes: 0,
        held: Vec::new(),
    };
    let transaction_id = new_id();
    let begun = transact::Begun {
        transaction_id: transaction_id.clone(),
        isolation: isolation.into(),
        expires_at: Some(timestamp_in(idle)),
    };
    respond(stream, first.id, Response::Begun(begun)).await?;
    loop {
        // The end of the requests without a commit is a rollback.
        let Some(message) = next(shard, stream, idle).await? else { return Ok(()) };
        let request = decode(&message)?;
        if !request.namespace.is_empty() && request.namespace != *namespace.name {
            let expected = "must be that of begin, or left out";
            return Err(Error::field("NAMESPACE_CHANGED", "namespace", expected));
        }
        let (response, is_end) = match request.request {
            Some(Request::Commit(())) => (transaction.commit(&transaction_id).await?, true),
            Some(Request::Rollback(())) => {
                (Response::RolledBack(transact::RolledBack::default()), true)
            }
            Some(step) => (transaction.step(step, message.len()).await?, false),
            None => {
                return Err(Error::field("REQUEST_MISSING", "request", "must say what to do"));
            }
        };
        respond(stream, request.id, response).await?;
        if is_end {
            return Ok(());
        }
    }
}

/// What a transaction holds.
struct Transaction<'a> {
    shard: &'a Shard,
    namespace: &'a Namespace,
    call: &'a Call,
    isolation: transact::Isolation,
    /// What was seen first of each key.
    reads: HashMap<String, Requirement>,
    conditions: Vec<Condition>,
    /// One for each key.
    operations: Vec<Operation>,
    /// For each put and delete in their order: its operation, unless another has taken its place.
    results: Vec<Option<usize>>,
    messages: Vec<transact::OutboxMessage>,
    bytes: usize,
    held: Vec<Held<'a>>,
}

impl Transaction<'_> {
    async fn step(&mut self, step: Request, bytes: usize) -> Result<Response, Error> {
        // A get is a call of its own, which is counted at its home.
        if !matches!(step, Request::Get(_)) {
            self.shard.charge_step(self.namespace, bytes)?;
        }
        match step {
            Request::Get(get) => self.get(get.key).await.map(Response::Record),
            Request::Put(put) => {
                self.operate(put.key, Action::Put(put.put.unwrap_or_default()), bytes)
            }
            Request::Delete(delete) => self.operate(delete.key, Action::Delete(()), bytes),
            Request::Condition(condition) => {
                if condition.requirement.is_none() {
                    let field = "condition.requirement";
                    return Err(Error::field("CONDITION_MISSING", field, "must be given"));
                }
                self.hold(&condition.key, bytes)?;
                if self.conditions.len() == CONDITIONS_MAX {
                    let expected = format!("at most {CONDITIONS_MAX} are allowed");
                    return Err(Error::field("TOO_MANY_ITEMS", "condition", expected));
                }
                self.conditions.push(condition);
                Ok(Response::Accepted(()))
            }
            Request::Message(message) => {
                outbox::admit_in(self.namespace)?;
                let target = outbox::check(self.shard, self.call, "message", &message)?;
                if self.messages.len() == MESSAGES_MAX {
                    return Err(too_many());
                }
                self.hold_bytes(bytes)?;
                audited::send_to(self.shard, self.call, target).await?;
                self.messages.push(message);
                Ok(Response::Accepted(()))
            }
            Request::Begin(_) => {
                Err(Error::field("BEGIN_REPEATED", "begin", "was already: open another stream"))
            }
            Request::Commit(()) | Request::Rollback(()) => unreachable!("ends are handled before"),
        }
    }

    /// Takes note of a key and so many bytes more.
    fn hold(&mut self, key: &str, bytes: usize) -> Result<(), Error> {
        prism_adapters::limits::check_key("key", key)?;
        let is_new = !self.reads.contains_key(key)
            && self.conditions.iter().all(|condition| condition.key != key)
            && self.operations.iter().all(|operation| operation.key != key);
        if is_new && self.keys() >= KEYS_MAX {
            return Err(too_many_keys());
        }
        self.hold_bytes(bytes)
    }

    fn hold_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        if self.bytes + bytes > BYTES_MAX {
            return Err(too_large());
        }
        self.held.push(self.shard.hold(self.namespace, self.call, bytes)?);
        self.bytes += bytes;
        Ok(())
    }

    /// How many distinct keys it has.
    fn keys(&self) -> usize {
        let reads = self.reads.keys().map(String::as_str);
        let conditions = self.conditions.iter().map(|condition| condition.key.as_str());
        let operations = self.operations.iter().map(|operation| operation.key.as_str());
        reads.chain(conditions).chain(operations).collect::<std::collections::HashSet<_>>().len()
    }

    async fn get(&mut self, key: String) -> Result<transact::TransactionRecord, Error> {
        if let Some(own) = self.operations.iter().find(|operation| operation.key == key) {
            let entry = match &own.action {
                Some(Action::Put(put)) => {
                    Some(Entry { value: put.value.clone(), ..Entry::default() })
                }
                _ => None,
            };
            return Ok(transact::TransactionRecord { entry });
        }
        prism_adapters::limits::check_key("key", &key)?;
        // Of one key only a batch always comes from the backend, with its version.
        let request = keyvalue::BatchGetRequest {
            namespace: self.namespace.name.to_string(),
            keys: vec![key.clone()],
        };
        let answer = self.own(Method::KEYVALUE_BATCH_GET, Metadata::new(), &request).await?;
        let answer = keyvalue::BatchGetResponse::decode(answer).map_err(|_| shape())?;
        let result = answer.results.into_iter().next().ok_or_else(shape)?;
        if let Some(status) = result.status {
            let message = format!("the key cannot be read: {}", status.message);
            return Err(Error::new(Kind::Unavailable, "READ_FAILED", message));
        }
        let entry = result.entry;
        if self.isolation == transact::Isolation::Serializable && !self.reads.contains_key(&key) {
            let seen = match &entry {
                None => Requirement::Absent(()),
                Some(Entry { version: Some(version), .. }) => Requirement::Version(version.clone()),
                Some(entry) => Requirement::Value(entry.value.clone()),
            };
            let seen_bytes = match &seen {
                Requirement::Value(bytes) | Requirement::Version(bytes) => bytes.len(),
                _ => 0,
            };
            self.hold(&key, key.len() + seen_bytes)?;
            self.reads.insert(key, seen);
        }
        Ok(transact::TransactionRecord { entry })
    }

    /// Buffers a put or a delete, which takes the place of an earlier one of its key.
    fn operate(&mut self, key: String, action: Action, bytes: usize) -> Result<Response, Error> {
        self.hold(&key, bytes)?;
        let at = match self.operations.iter().position(|operation| operation.key == key) {
            Some(at) => {
                self.results.iter_mut().filter(|of| **of == Some(at)).for_each(|of| *of = None);
                self.operations[at].action = Some(action);
                at
            }
            None => {
                self.operations.push(Operation { key, action: Some(action) });
                self.operations.len() - 1
            }
        };
        self.results.push(Some(at));
        Ok(Response::Accepted(()))
    }

    async fn commit(&mut self, transaction_id: &str) -> Result<Response, Error> {
        let asked = self.conditions.len();
        let mut conditions = std::mem::take(&mut self.conditions);
        let reads = std::mem::take(&mut self.reads);
        conditions.extend(
            reads.into_iter().map(|(key, seen)| Condition { key, requirement: Some(seen) }),
        );
        if conditions.len() > CONDITIONS_MAX {
            let expected = format!(
                "with what was read there are {} conditions, at most {CONDITIONS_MAX} are allowed",
                conditions.len()
            );
            return Err(Error::field("TOO_MANY_ITEMS", "condition", expected));
        }
        let mut operations = std::mem::take(&mut self.operations);
        let messages = std::mem::take(&mut self.messages);
        if operations.is_empty() {
            if conditions.is_empty() && messages.is_empty() {
                return Ok(Response::Committed(transact::Committed::default()));
            }
            // What only reads, or sends, is checked by a write that changes nothing: nobody has a key of this name.
            let key = format!("transaction-{transaction_id}");
            operations.push(Operation { key, action: Some(Action::Delete(())) });
        }
        let namespace = self.namespace.name.to_string();
        let request = transact::WriteRequest { namespace, conditions, operations, messages };
        let method = Method::TRANSACT_WRITE;
        let answer = self.own(method, self.call.metadata.clone(), &request).await?;
        let answer = transact::WriteResponse::decode(answer).map_err(|_| shape())?;
        if answer.committed {
            let of = |at: &Option<usize>| -> OperationResult {
                at.and_then(|at| answer.results.get(at).cloned()).unwrap_or_default()
            };
            let results = self.results.iter().map(of).collect();
            let message_ids = answer.message_ids;
            return Ok(Response::Committed(transact::Committed { results, message_ids }));
        }
        let failures: Vec<_> =
            answer.failures.into_iter().filter(|one| (one.index as usize) < asked).collect();
        if failures.is_empty() {
            let message = "another write has changed what this transaction has read: try again";
            return Err(Error::new(Kind::Aborted, "CONFLICT", message)
                .with("namespace", self.namespace.name.to_string()));
        }
        Ok(Response::RolledBack(transact::RolledBack { failures }))
    }

    async fn own(
        &self,
        method: Method,
        metadata: Metadata,
        request: &impl prost::Message,
    ) -> Result<Bytes, Error> {
        own::call(self.shard, method, metadata, request.encode_to_vec()).await
    }
}

/// The caller's next message, which is to come within `idle`; `None` after its last one.
async fn next(shard: &Shard, stream: &StreamCall, idle: Duration) -> Result<Option<Bytes>, Error> {
    let (mut next, mut stopped) = (pin!(stream.next()), pin!(shard.stopping.wait()));
    let first = std::future::poll_fn(|context| {
        if let Poll::Ready(message) = next.as_mut().poll(context) {
            return Poll::Ready(message.map_err(|_| caller_gone()));
        }
        stopped.as_mut().poll(context).map(|()| Err(Stopping::error()))
    });
    rt::timeout(idle, first).await.unwrap_or_else(|| {
        let message = "nothing was asked within idle_timeout: the transaction is rolled back";
        Err(Error::new(Kind::Aborted, "TRANSACTION_EXPIRED", message))
    })
}

async fn respond(stream: &StreamCall, id: u64, response: Response) -> Result<(), Error> {
    let response = transact::TransactionResponse { id, response: Some(response) };
    let message = Message { head: &[], tail: response.encode_to_vec().into() };
    stream.send(message).await.map_err(|_| caller_gone())
}

fn decode(message: &[u8]) -> Result<transact::TransactionRequest, Error> {
    transact::TransactionRequest::decode(message).map_err(|error| {
        let message = format!("the request is not a valid message: {error}");
        Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", message)
    })
}

fn idle_timeout(asked: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let Some(asked) = asked else { return Ok(IDLE_DEFAULT) };
    match Duration::try_from(asked) {
        Ok(idle) if (Duration::from_millis(1)..=IDLE_MAX).contains(&idle) => Ok(idle),
        _ => {
            let expected = format!("must be from 1 ms to {} s", IDLE_MAX.as_secs());
            Err(Error::field("IDLE_TIMEOUT_INVALID", "begin.idle_timeout", expected))
        }
    }
}

fn timestamp_in(span: Duration) -> prost_types::Timestamp {
    let at_ms = clock::wall_us() / 1000 + span.as_millis() as u64;
    let (seconds, nanos) = ((at_ms / 1000) as i64, (at_ms % 1000) as i32 * 1_000_000);
    prost_types::Timestamp { seconds, nanos }
}

/// A name that no other transaction has.
fn new_id() -> String {
    // Each state has random keys of its own.
    let random = RandomState::new().build_hasher().finish();
    format!("{:012x}-{random:016x}", clock::wall_us())
}

#[cold]
fn shape() -> Error {
    Error::new(Kind::Internal, "CALL_SHAPE", "an answer of the store cannot be read")
}
