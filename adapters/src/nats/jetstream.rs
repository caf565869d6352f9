//! What is asked of JetStream and what it answers, and the streams that namespaces lie in.
//!
//! A namespace's values and its events have a stream each, which is made when it is first needed: values as NATS's key-value clients
//! make a bucket, and with what Prism needs beside (direct reads, expiry of single messages for the marks that deletes leave, and atomic
//! batches). Where a stream exists without these they are switched on; a bucket with a history is refused, because to cut it would destroy
//! what is there, and so are events that are thrown away when somebody has taken them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use async_nats::header::HeaderValue;
use async_nats::{Message, StatusCode};
use bytes::Bytes;
use prism_io::rt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Nats;
use super::errors;
pub(super) use super::holds::{DUPLICATE_WINDOW, Holds};
use super::link::{Answer, Ask, Outgoing};
use crate::call::Context;
use crate::error::Error;

/// Headers of JetStream. <https://docs.nats.io/nats-concepts/jetstream/headers>
pub(super) const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
pub(super) const TIME_STAMP: &str = "Nats-Time-Stamp";
pub(super) const KV_OPERATION: &str = "KV-Operation";
pub(super) const TTL: &str = "Nats-TTL";
pub(super) const BATCH_ID: &str = "Nats-Batch-Id";
pub(super) const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
pub(super) const BATCH_COMMIT: &str = "Nats-Batch-Commit";
pub(super) const SEQUENCE: &str = "Nats-Sequence";
pub(super) const SUBJECT: &str = "Nats-Subject";
const MARKER_REASON: &str = "Nats-Marker-Reason";
const NUM_PENDING: &str = "Nats-Num-Pending";
const LAST_SEQUENCE: &str = "Nats-Last-Sequence";

/// The end of several answers.
const END_OF_BATCH: u16 = 204;
pub(super) const NOT_FOUND: u16 = 404;

/// Errors of the API that decide what to do next.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
const STREAM_NAME_IN_USE: u64 = 10058;
pub(super) const STREAM_NOT_FOUND: u64 = 10059;

/// Streams of a namespace that are known to be there, at most; then they are looked for again.
const KNOWN_MAX: usize = 65_536;

/// How often a call is made to a stream that nobody answers for, and the time between.
const STREAM_ATTEMPTS_MAX: usize = 10;
const STREAM_DELAY: Duration = Duration::from_millis(100);

/// An error in an answer of JetStream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

/// The answer to a message that was to be stored.
#[derive(Debug, Deserialize)]
struct PublishAnswer {
    error: Option<ApiError>,
    #[serde(default)]
    seq: u64,
}

/// What became of a message that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// It is the one of this number in its stream.
    At(u64),
    /// Its subject was not as expected; it is not stored.
    Unexpected,
}

/// A message that is stored.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) subject: String,
    pub(super) sequence: u64,
    /// The value; nothing where the message says that it was deleted.
    pub(super) value: Option<Bytes>,
}

/// Some of the messages of a stream, in their order.
#[derive(Debug)]
pub(super) struct Walked<R> {
    pub(super) records: Vec<R>,
    /// How many more come after them.
    pub(super) behind: u64,
}

/// The streams that are known to be there.
pub(super) struct Streams {
    /// By namespace, under what tells them apart: how many copies there are.
    known: RefCell<HashMap<u32, HashMap<Box<str>, u64>>>,
    /// How many copies are made where nothing else is said, and by namespace where it is.
    replicas: u16,
    replicated: RefCell<HashMap<u32, u16>>,
    /// Whether somebody makes one, and who waits until that is done.
    is_busy: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Lets the next one make a stream.
struct Turn<'a>(&'a Streams);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.is_busy.set(false);
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

impl Streams {
    /// None is known; they are made with so many copies.
    pub(super) fn new(replicas: u16) -> Self {
        Streams {
            known: RefCell::default(),
            replicas,
            replicated: RefCell::default(),
            is_busy: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    /// Says how many copies are made of a namespace's streams.
    pub(super) fn replicate(&self, namespace: u32, replicas: Option<u16>) {
        let mut replicated = self.replicated.borrow_mut();
        match replicas {
            Some(replicas) => replicated.insert(namespace, replicas),
            None => replicated.remove(&namespace),
        };
    }

    fn replicas(&self, context: &Context<'_>) -> u16 {
        self.replicated.borrow().get(&context.namespace).copied().unwrap_or(self.replicas)
    }

    fn copies(&self, context: &Context<'_>, holds: Holds<'_>) -> Option<u64> {
        self.known.borrow().get(&context.namespace)?.get(&*holds.key()).copied()
    }

    fn is_known(&self, context: &Context<'_>, holds: Holds<'_>) -> bool {
        self.copies(context, holds).is_some()
    }

    /// Whether there are copies of a stream, so that it is read by its leader.
    pub(super) fn is_replicated(&self, context: &Context<'_>, holds: Holds<'_>) -> bool {
        self.copies(context, holds).is_some_and(|copies| copies > 1)
    }

    fn note(&self, context: &Context<'_>, holds: Holds<'_>, copies: u64) {
        let mut known = self.known.borrow_mut();
        let known = known.entry(context.namespace).or_default();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(holds.key().into_owned().into(), copies);
    }

    /// Has the stream looked for again before it is next used.
    pub(super) fn forget(&self, context: &Context<'_>, holds: Holds<'_>) {
        if let Some(known) = self.known.borrow_mut().get_mut(&context.namespace) {
            known.remove(&*holds.key());
        }
    }

    /// The same for all streams of the namespace.
    pub(super) fn forget_all(&self, context: &Context<'_>) {
        self.known.borrow_mut().remove(&context.namespace);
    }

    async fn turn(&self) -> Turn<'_> {
        poll_fn(|task| {
            if self.is_busy.replace(true) {
                self.waiting.borrow_mut().push(task.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Turn(self))
        })
        .await
    }
}

pub(super) fn status(message: &Message) -> u16 {
    message.status.map_or(0, StatusCode::into)
}

/// The last header of this name: those of the server come after the message's own.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    message.headers.as_ref()?.get_last(name).map(HeaderValue::as_str)
}

pub(super) fn number(message: &Message, name: &'static str) -> Option<u64> {
    header(message, name)?.parse().ok()
}

fn is_unheard(answer: &Answer) -> bool {
    let is_unheard = |message: &Message| message.status == Some(StatusCode::NO_RESPONDERS);
    match answer {
        Answer::One(message) => is_unheard(message),
        Answer::Several(messages) => messages.iter().any(is_unheard),
        Answer::Told | Answer::Failed(_) => false,
    }
}

/// What a direct read has found.
fn record(context: &Context<'_>, message: Message) -> Result<Record, Error> {
    let is_deleted = matches!(header(&message, KV_OPERATION), Some("DEL" | "PURGE"))
        || header(&message, MARKER_REASON).is_some();
    let found = header(&message, SUBJECT).map(str::to_owned).zip(number(&message, SEQUENCE));
    let (subject, sequence) = found.ok_or_else(|| errors::unexpected(context))?;
    Ok(Record { subject, sequence, value: (!is_deleted).then_some(message.payload) })
}

/// What the answer to a message that was to be stored says.
pub(super) fn stored(context: &Context<'_>, message: &Message) -> Result<Stored, Error> {
    let answer: PublishAnswer =
        serde_json::from_slice(&message.payload).map_err(|_| errors::unexpected(context))?;
    match answer.error {
        None if answer.seq > 0 => Ok(Stored::At(answer.seq)),
        None => Err(errors::unexpected(context)),
        Some(error) if WRONG_LAST_SEQUENCE.contains(&error.err_code) => Ok(Stored::Unexpected),
        Some(error) => Err(errors::of_api(context, &error)),
    }
}

impl Nats {
    /// Makes a call to a stream of the namespace, which is made if it is not there.
    pub(super) async fn ask_stream(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        ask: &Ask,
    ) -> Result<Answer, Error> {
        self.ensure_stream(context, holds).await?;
        for attempt in 0..STREAM_ATTEMPTS_MAX {
            let answer = self.link.call(context, ask).await?;
            if !is_unheard(&answer) {
                return Ok(answer);
            }
            // Nobody has got it: the stream was deleted, or has no leader.
            self.streams.forget(context, holds);
            self.ensure_stream(context, holds).await?;
            if attempt > 0 {
                rt::sleep(STREAM_DELAY).await;
            }
        }
        Err(errors::no_jetstream(context))
    }

    /// The last value of a subject.
    pub(super) async fn last(
        &self,
        context: &Context<'_>,
        subject: &str,
    ) -> Result<Option<Record>, Error> {
        let last = self.last_message(context, Holds::Values, subject).await?;
        last.map(|message| record(context, message)).transpose()
    }

    /// The last message of a subject, as a direct read hands it over, or the leader where there are copies.
    pub(super) async fn last_message(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        subject: &str,
    ) -> Result<Option<Message>, Error> {
        self.ensure_stream(context, holds).await?;
        if self.streams.is_replicated(context, holds) {
            let request = json!({ "last_by_subj": subject });
            return self.ask_leader_for(context, holds, request).await;
        }
        let api = format!("$JS.API.DIRECT.GET.{}.{subject}", holds.stream(context));
        let ask = Ask::One(Outgoing::plain(api, Bytes::new()));
        match self.ask_stream(context, holds, &ask).await? {
            Answer::One(message) if status(&message) == NOT_FOUND => Ok(None),
            Answer::One(message) if status(&message) == 0 => Ok(Some(message)),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Keeps something in the namespace's bucket under a subject that no key has, in place of what was there.
    pub(super) async fn keep_beside(
        &self,
        context: &Context<'_>,
        message: Outgoing,
    ) -> Result<(), Error> {
        let ask = Ask::One(message);
        let Answer::One(answer) = self.ask_stream(context, Holds::Values, &ask).await? else {
            return Err(errors::unexpected(context));
        };
        match stored(context, &answer)? {
            Stored::At(_) => Ok(()),
            Stored::Unexpected => Err(errors::unexpected(context)),
        }
    }

    /// Messages of the stream from a number on: so many, or so many bytes.
    pub(super) async fn walk(
        &self,
        context: &Context<'_>,
        filter: &str,
        from: u64,
        count: usize,
        bytes: usize,
    ) -> Result<Walked<Record>, Error> {
        let request = json!({
            "seq": from.max(1),
            "next_by_subj": filter,
            "batch": count,
            "max_bytes": bytes,
        });
        self.read_values(context, request).await
    }

    /// The last messages of these subjects, in the order of the stream; those from a number on, as far as so many bytes.
    pub(super) async fn last_of(
        &self,
        context: &Context<'_>,
        subjects: &[String],
        from: u64,
        bytes: usize,
    ) -> Result<Walked<Record>, Error> {
        let request = json!({ "multi_last": subjects, "seq": from, "max_bytes": bytes });
        self.read_values(context, request).await
    }

    async fn read_values(
        &self,
        context: &Context<'_>,
        request: Value,
    ) -> Result<Walked<Record>, Error> {
        let Walked { records, behind } = self.read_batch(context, Holds::Values, request).await?;
        let records = records.into_iter().map(|(_, message)| record(context, message));
        Ok(Walked { records: records.collect::<Result<_, _>>()?, behind })
    }

    /// Reads messages, each with its number: directly, or by the leader where there are copies.
    pub(super) async fn read_batch(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        request: Value,
    ) -> Result<Walked<(u64, Message)>, Error> {
        self.ensure_stream(context, holds).await?;
        if self.streams.is_replicated(context, holds) {
            return self.read_by_leader(context, holds, &request).await;
        }
        let api = format!("$JS.API.DIRECT.GET.{}", holds.stream(context));
        let payload = Bytes::from(request.to_string());
        let ask = Ask::many(Outgoing::plain(api, payload));
        let Answer::Several(mut messages) = self.ask_stream(context, holds, &ask).await? else {
            return Err(errors::unexpected(context));
        };
        let end = messages.pop().ok_or_else(|| errors::unexpected(context))?;
        let behind = match status(&end) {
            END_OF_BATCH => number(&end, NUM_PENDING).unwrap_or(0),
            NOT_FOUND if messages.is_empty() => 0,
            _ => return Err(errors::unexpected(context)),
        };
        let mut last = 0;
        let mut records = Vec::with_capacity(messages.len());
        for message in messages {
            // Each names the one before it: none was lost on the way.
            if number(&message, LAST_SEQUENCE) != Some(last) {
                return Err(errors::unexpected(context));
            }
            last = number(&message, SEQUENCE).ok_or_else(|| errors::unexpected(context))?;
            records.push((last, message));
        }
        Ok(Walked { records, behind })
    }

    /// Makes a stream of the namespace, if it is not known to be there.
    pub(super) async fn ensure_stream(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
    ) -> Result<(), Error> {
        if self.streams.is_known(context, holds) {
            return Ok(());
        }
        let _turn = self.streams.turn().await;
        if self.streams.is_known(context, holds) {
            return Ok(());
        }
        let copies = match self.adopt_stream(context, holds).await {
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => {
                self.make_stream(context, holds).await?
            }
            adopted => adopted.map_err(|failure| failure.error(context))?,
        };
        self.streams.note(context, holds, copies);
        Ok(())
    }

    /// Whether a stream of the namespace is there, for calls that are not to make one.
    pub(super) async fn has_stream(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
    ) -> Result<bool, Error> {
        if self.streams.is_known(context, holds) {
            return Ok(true);
        }
        match self.stream_api(context, "INFO", holds, &json!({})).await {
            Ok(_) => Ok(true),
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => Ok(false),
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// Makes a stream; how many copies there are of it.
    async fn make_stream(&self, context: &Context<'_>, holds: Holds<'_>) -> Result<u64, Error> {
        let replicas = self.streams.replicas(context);
        let config = holds.config(context, replicas);
        let made = match self.stream_api(context, "CREATE", holds, &config).await {
            // Another shard or host was quicker.
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NAME_IN_USE => {
                self.adopt_stream(context, holds).await
            }
            made => made.map(|_| replicas.into()),
        };
        made.map_err(|failure| failure.error(context))
    }

    /// Takes a stream that is there, if it can hold the namespace; how many copies there are of it.
    async fn adopt_stream(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
    ) -> Result<u64, ApiFailure> {
        let mut config =
            self.stream_api(context, "INFO", holds, &json!({})).await?["config"].take();
        if let Some(unfit) = holds.unfit(context, &config) {
            let unfit = errors::stream_unfit(context, &holds.stream(context), unfit);
            return Err(ApiFailure::Call(unfit));
        }
        let copies = config["num_replicas"].as_u64().unwrap_or(1);
        if holds.needed().iter().all(|name| config[*name] == true) {
            return Ok(copies);
        }
        for name in holds.needed() {
            config[*name] = true.into();
        }
        self.stream_api(context, "UPDATE", holds, &config).await.map(|_| copies)
    }

    /// Asks the API for something about a stream of the namespace.
    pub(super) async fn stream_api(
        &self,
        context: &Context<'_>,
        verb: &str,
        holds: Holds<'_>,
        request: &Value,
    ) -> Result<Value, ApiFailure> {
        let subject = format!("$JS.API.STREAM.{verb}.{}", holds.stream(context));
        self.api(context, subject, request).await
    }

    /// Asks the API for something.
    pub(super) async fn api(
        &self,
        context: &Context<'_>,
        subject: String,
        request: &Value,
    ) -> Result<Value, ApiFailure> {
        let message = Outgoing::plain(subject, request.to_string().into());
        let answer = self.link.one(context, message).await.map_err(ApiFailure::Call)?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(ApiFailure::NoJetStream);
        }
        let answer: Result<Value, _> = serde_json::from_slice(&answer.payload);
        let mut answer = answer.map_err(|_| ApiFailure::Call(errors::unexpected(context)))?;
        match answer["error"].take() {
            Value::Null => Ok(answer),
            error => Err(ApiFailure::Api(serde_json::from_value(error).unwrap_or_default())),
        }
    }
}

/// Why the API has not done what it was asked for.
pub(super) enum ApiFailure {
    Api(ApiError),
    Call(Error),
    /// Nobody answers for JetStream.
    NoJetStream,
}

impl ApiFailure {
    pub(super) fn error(self, context: &Context<'_>) -> Error {
        match self {
            ApiFailure::Api(error) => errors::of_api(context, &error),
            ApiFailure::Call(error) => error,
            ApiFailure::NoJetStream => errors::no_jetstream(context),
        }
    }
}
