//! A call that streams, as its handler has it: messages to take, room to wait for, an answer to give.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::{Connection, buffers};
use crate::grpc::compress::inflate;
use crate::grpc::message::unshare;
use crate::grpc::{Code, Compressing, Message, SendError, Status};
use crate::h2::StreamId;
use crate::rt;

#[derive(Default)]
pub(super) struct StreamState {
    /// As they came, and whether they are compressed; what is held of them counts against the client's window.
    pub(super) messages: RefCell<VecDeque<(Bytes, bool)>>,
    /// How many of them, from the front, no longer share the buffer that they were read into.
    pub(super) by_themselves: Cell<usize>,
    /// It is in the list of those that have got messages in the pass that was last.
    pub(super) is_fresh: Cell<bool>,
    pub(super) half_closed: Cell<bool>,
    pub(super) closed: Cell<bool>,
    pub(super) waiters: RefCell<Vec<Waker>>,
}

impl StreamState {
    fn register(&self, waker: &Waker) {
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.iter().any(|waiter| waiter.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }

    pub(super) fn wake(&self) {
        self.waiters.take().into_iter().for_each(Waker::wake);
    }

    /// Nobody has taken these messages at once: they must not keep the buffers that they were read into.
    pub(super) fn unshare(&self) {
        let mut messages = self.messages.borrow_mut();
        let already = self.by_themselves.replace(messages.len());
        messages.iter_mut().skip(already).for_each(|(message, _)| unshare(message));
        self.is_fresh.set(false);
    }

    fn pop(&self) -> Option<(Bytes, bool)> {
        let taken = self.messages.borrow_mut().pop_front();
        self.by_themselves.set(self.by_themselves.get().saturating_sub(1));
        taken
    }

    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    async fn closed(&self) {
        std::future::poll_fn(|context| {
            if self.closed.get() {
                return Poll::Ready(());
            }
            self.register(context.waker());
            Poll::Pending
        })
        .await;
    }
}

/// The caller has gone or the call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamClosed;

/// A call that streams: the handler's end of it. Dropping it without an answer resets the stream.
pub struct StreamCall {
    pub(super) connection: Rc<Connection>,
    pub(super) stream: StreamId,
    pub(super) state: Rc<StreamState>,
}

impl StreamCall {
    /// Its number on the connection.
    pub fn id(&self) -> StreamId {
        self.stream
    }

    /// The connection that it came by.
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// The next message of the caller, `None` after its last one. Its bytes are given back to the caller's window.
    pub async fn next(&self) -> Result<Option<Bytes>, StreamClosed> {
        Ok(self.next_as_it_came().await?.map(|(message, _)| message))
    }

    /// Like [`StreamCall::next`], with whether the message came compressed; it is no more.
    pub async fn next_as_it_came(&self) -> Result<Option<(Bytes, bool)>, StreamClosed> {
        let Some((message, compressed)) = self.take().await? else { return Ok(None) };
        if !compressed {
            return Ok(Some((message, false)));
        }
        // A message may cost much more than it weighed on the wire: the others have their turn between two.
        rt::yield_now().await;
        let max = self.connection.message_bytes_max;
        match inflate(&message, max) {
            Ok(message) => Ok(Some((message, true))),
            Err(error) => {
                self.connection.grpc.borrow_mut().fail_inflate(self.stream, error);
                self.connection.has_work();
                self.state.closed.set(true);
                Err(StreamClosed)
            }
        }
    }

    async fn take(&self) -> Result<Option<(Bytes, bool)>, StreamClosed> {
        std::future::poll_fn(|context| {
            if let Some((message, compressed)) = self.state.pop() {
                self.connection.forget_waiting([&message]);
                self.connection.grpc.borrow_mut().release(self.stream, message.len());
                self.connection.has_work();
                return Poll::Ready(Ok(Some((message, compressed))));
            }
            if self.state.closed.get() {
                return Poll::Ready(Err(StreamClosed));
            }
            if self.state.half_closed.get() {
                return Poll::Ready(Ok(None));
            }
            self.state.register(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Sends one message, and waits while the caller's window and the bound on queued output are full.
    pub async fn send(&self, message: Message<'_>) -> Result<(), StreamClosed> {
        loop {
            match self.try_send(&message) {
                Ok(true) => return Ok(()),
                Ok(false) => return self.writable().await,
                Err(SendError::QueueFull) => self.woken().await,
                Err(SendError::Closed) => return Err(StreamClosed),
            }
        }
    }

    #[inline]
    fn try_send(&self, message: &Message<'_>) -> Result<bool, SendError> {
        if self.state.closed.get() {
            return Err(SendError::Closed);
        }
        let mut grpc = self.connection.grpc.borrow_mut();
        grpc.lend(buffers::take);
        let sent = grpc.try_send(self.stream, message);
        drop(grpc);
        if sent != Err(SendError::QueueFull) {
            self.connection.has_work();
        }
        sent
    }

    /// Waits until something has happened to the stream.
    async fn woken(&self) {
        let mut waited = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut waited, true) || self.state.closed.get() {
                return Poll::Ready(());
            }
            self.state.register(context.waker());
            Poll::Pending
        })
        .await;
    }

    async fn writable(&self) -> Result<(), StreamClosed> {
        std::future::poll_fn(|context| {
            if self.state.closed.get() {
                return Poll::Ready(Err(StreamClosed));
            }
            if self.connection.grpc.borrow().is_writable(self.stream) {
                return Poll::Ready(Ok(()));
            }
            self.state.register(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Waits until the caller has gone; for calls that only wait for something to happen.
    pub async fn closed(&self) {
        self.state.closed().await;
    }

    /// Ends the call with DEADLINE_EXCEEDED after `timeout`, unless it has ended by then: whoever works on it finds it closed. Calls
    /// whose client streams have it from the start.
    pub fn end_in(&self, timeout: Option<Duration>) {
        let Some(timeout) = timeout else { return };
        let (connection, stream, state) =
            (self.connection.clone(), self.stream, self.state.clone());
        rt::spawn(async move {
            if rt::timeout(timeout, state.closed()).await.is_none() {
                connection.fail(stream, &Status::new(Code::DeadlineExceeded, "deadline exceeded"));
                state.close();
            }
        });
    }

    /// Says when the messages that follow are compressed, if the caller takes gzip. For the first time before the first of them.
    pub fn set_compressing(&self, compressing: Compressing) {
        self.connection.set_compressing(self.stream, compressing);
    }

    /// Sends the head of the answer with custom metadata; without it the first message sends a plain one. False when it is too
    /// late.
    pub fn send_headers(&self, metadata: &[(&str, &[u8])]) -> bool {
        self.connection.send_headers(self.stream, metadata)
    }

    /// Ends the call with OK.
    pub fn finish(self, trailers: &[(&str, &[u8])]) {
        self.connection.grpc.borrow_mut().finish(self.stream, trailers);
        self.connection.has_work();
    }

    /// Ends the call with a status other than OK.
    pub fn fail(self, status: &Status<'_>) {
        self.connection.fail(self.stream, status);
    }
}

impl Drop for StreamCall {
    fn drop(&mut self) {
        let left = self.state.messages.take();
        self.connection.forget_waiting(left.iter().map(|(message, _)| message));
        self.connection.streams.borrow_mut().retain(|(stream, _)| *stream != self.stream);
        self.connection.grpc.borrow_mut().abandon(self.stream);
        self.connection.has_work();
        // Lets go of what waits for its end.
        self.state.close();
    }
}
