//! The shortest way to an adapter: no proxy, no log, and a clock that is told the time.
//!
//! What a backend does with a call is put on the heap: a case makes many calls, and all of them in its future are more than a test's stack.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use prism_proto::catalogue::{Access, Interfaces, Method};

use prism_io::{clock, rt};

use super::live::{Live, Sent};
use super::{Client, Failure, Versions};
use crate::backend::Backend;
use crate::call::{Context, PageSink, Reply, Revision};
use crate::error::{Error, Kind};
use crate::interfaces::validate;
use crate::limits::Limits;
use crate::reader;

/// The time at which a direct client's clock begins, µs since the epoch: in November 2023.
const BEGIN_US: u64 = 1_700_000_000_123_456;

/// A client that calls an adapter the way the core does: validate, admit, carry out.
#[derive(Debug)]
pub struct Direct<B> {
    /// The adapter.
    pub backend: B,
    limits: Limits,
    versions: Versions,
    /// The time as it was told last; absent where the clock on the wall is the one that counts.
    now_us: Option<Cell<u64>>,
    lsn: Cell<u64>,
}

impl<B: Backend> Direct<B> {
    /// A client of an empty namespace on this backend.
    pub fn new(backend: B) -> Self {
        let (now_us, lsn) = (Some(Cell::new(BEGIN_US)), Cell::new(0));
        let versions = Versions::Revision;
        Direct { backend, limits: Limits::default(), versions, now_us, lsn }
    }

    /// A client of a backend that has a clock of its own, so that time has to pass in truth.
    pub fn in_real_time(backend: B, versions: Versions) -> Self {
        let limits = Limits::default();
        Direct { backend, limits, versions, now_us: None, lsn: Cell::new(0) }
    }

    /// The time now, µs since the epoch.
    pub fn now_us(&self) -> u64 {
        self.now_us.as_ref().map_or_else(clock::wall_us, Cell::get)
    }

    /// LSN of the last write.
    pub fn lsn(&self) -> u64 {
        self.lsn.get()
    }

    fn context(&self, method: Method) -> Context<'_> {
        if method.access() == Access::Write {
            self.lsn.set(self.lsn.get() + 1);
        }
        if let Some(now_us) = &self.now_us {
            now_us.set(now_us.get() + 1);
        }
        Context {
            namespace: 1,
            namespace_name: "conformance",
            partition: 0,
            now_us: self.now_us(),
            revision: Revision::logged(self.lsn.get()),
            limits: &self.limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        }
    }

    async fn stream_into<S: PageSink>(
        &self,
        context: &Context<'_>,
        (method, request): (Method, &[u8]),
        sink: &mut S,
    ) -> Result<(), Error> {
        if reader::serves(method) {
            let backend = (&self.backend, None);
            return reader::stream(backend, context, (method, request), B::SERVES, sink).await;
        }
        self.backend.stream(context, method, request, sink).await
    }

    fn check(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        validate(method, request, B::SERVES, &self.limits)?;
        self.backend.admit(method, request)
    }
}

impl<B: Backend> Client for Direct<B> {
    fn offers(&self) -> Interfaces {
        B::SERVES
    }

    fn namespace(&self) -> &str {
        "conformance"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn versions(&self) -> Versions {
        self.versions
    }

    fn is_time_simulated(&self) -> bool {
        self.now_us.is_some()
    }

    async fn unary(&self, method: Method, request: Vec<u8>) -> Result<Bytes, Failure> {
        let mut reply = Reply::default();
        if method.access() == Access::Read {
            let context = self.context(method);
            if reader::serves(method) {
                let call = (method, &request[..]);
                let backend = (&self.backend, None);
                Box::pin(reader::unary(backend, &context, call, B::SERVES, &mut reply)).await?;
            } else {
                let checked =
                    self.backend.unary_checked(&context, method, &request, B::SERVES, &mut reply);
                Box::pin(checked).await?;
            }
        } else {
            self.check(method, &request)?;
            let context = self.context(method);
            Box::pin(self.backend.unary(&context, method, &request, &mut reply)).await?;
        }
        assert!(
            reply.len() <= self.limits.max_message_size,
            "a reply longer than a message may be"
        );
        Ok(reply.to_bytes())
    }

    async fn stream(
        &self,
        method: Method,
        request: Vec<u8>,
        messages_max: usize,
    ) -> Result<Vec<Bytes>, Failure> {
        self.check(method, &request)?;
        let context = self.context(method);
        let mut sink = Collect { messages: Vec::new(), messages_max, now_us: context.now_us };
        let ended = Box::pin(self.stream_into(&context, (method, &request), &mut sink)).await;
        if sink.messages.len() < messages_max {
            ended?;
        }
        let message_max = self.limits.max_message_size;
        assert!(sink.messages.iter().all(|message| message.len() <= message_max));
        Ok(sink.messages)
    }

    type Opened<'a>
        = Live<'a>
    where
        Self: 'a;

    async fn open(&self, method: Method, request: Vec<u8>) -> Result<Live<'_>, Failure> {
        self.check(method, &request)?;
        let sent = Sent::default();
        let mut sink = LiveSink { direct: self, sent: sent.clone() };
        let call = async move {
            let context = self.context(method);
            self.stream_into(&context, (method, &request), &mut sink).await
        };
        Ok(Live::new(call, sent, self.now_us.is_some()))
    }

    async fn advance(&self, by: Duration) {
        match &self.now_us {
            Some(now_us) => now_us.set(now_us.get() + by.as_micros() as u64),
            None => rt::sleep(by).await,
        }
    }
}

/// The sink of a stream that stays open: takes the next message when the one before was taken.
struct LiveSink<'a, B> {
    direct: &'a Direct<B>,
    sent: Sent,
}

impl<B: Backend> PageSink for LiveSink<'_, B> {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        assert!(message.len() <= self.direct.limits.max_message_size);
        // Whoever takes a message polls the stream again.
        std::future::poll_fn(|_| match self.sent.borrow().is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        self.sent.borrow_mut().push_back(message);
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.direct.now_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        let mut event = pin!(event);
        let either = std::future::poll_fn(|context| {
            if self.direct.now_us() >= until_us {
                return Poll::Ready(());
            }
            event.as_mut().poll(context)
        });
        match &self.direct.now_us {
            Some(_) => either.await,
            None => {
                let left_us = until_us.saturating_sub(clock::wall_us());
                let left = Duration::from_micros(left_us.min(3_600_000_000));
                rt::timeout(left, either).await;
            }
        }
        Ok(())
    }

    async fn write(&mut self, method: Method, request: Vec<u8>) -> Result<Bytes, Error> {
        let lsn = self.direct.lsn.get() + 1;
        self.direct.lsn.set(lsn);
        let context = Context { revision: Revision::logged(lsn), ..self.direct.context(method) };
        let mut reply = Reply::default();
        self.direct.backend.unary(&context, method, &request, &mut reply).await?;
        Ok(reply.to_bytes())
    }
}

/// A sink that keeps the messages, and stops listening after some of them.
#[derive(Debug)]
pub struct Collect {
    /// What was sent.
    pub messages: Vec<Bytes>,
    /// After so many messages it stops listening.
    pub messages_max: usize,
    /// The time that it tells, µs since the epoch.
    pub now_us: u64,
}

impl PageSink for Collect {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        self.messages.push(message);
        if self.messages.len() < self.messages_max {
            return Ok(());
        }
        Err(Error::new(Kind::Cancelled, "CANCELLED", "the caller has heard enough"))
    }

    fn now_us(&self) -> u64 {
        self.now_us
    }

    async fn wait(&mut self, _: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        Err(Error::new(Kind::Cancelled, "CANCELLED", "the caller waits for nothing"))
    }

    async fn write(&mut self, method: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        Err(crate::backend::wrong_shape(method))
    }
}

/// Polls a future until it is ready; for futures that wait for nothing but their turn. What gives
/// way to others (scans, Count on a large lane) needs a runtime around it, [`prism_io::rt::run`].
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = TaskContext::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
