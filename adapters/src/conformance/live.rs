//! Streams that stay open while other calls are made: a call on an adapter, polled by whoever waits for its next message.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prism_io::rt;

use super::{Failure, Opened};
use crate::error::Error;

/// How long a message may take that ought to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a stream has sent and nobody has taken: one message at most.
pub(super) type Sent = Rc<RefCell<VecDeque<Bytes>>>;

/// A stream of [`Direct`](super::Direct).
pub struct Live<'a> {
    call: Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>,
    sent: Sent,
    is_time_simulated: bool,
    ended: bool,
    failure: Option<Failure>,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        call: impl Future<Output = Result<(), Error>> + 'a,
        sent: Sent,
        is_time_simulated: bool,
    ) -> Self {
        Live { call: Box::pin(call), sent, is_time_simulated, ended: false, failure: None }
    }

    fn poll_next(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        loop {
            if let Some(message) = self.sent.borrow_mut().pop_front() {
                return Poll::Ready(Ok(Some(message)));
            }
            // What was sent before the end comes before it.
            if let Some(failure) = self.failure.take() {
                return Poll::Ready(Err(failure));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match self.call.as_mut().poll(context) {
                Poll::Ready(ended) => {
                    self.ended = true;
                    self.failure = ended.err().map(Failure::from);
                }
                Poll::Pending if self.sent.borrow().is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

/// Remembers that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Opened for Live<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if !self.is_time_simulated {
            let next = std::future::poll_fn(|context| self.poll_next(context));
            return rt::timeout(PATIENCE, next).await.expect("a message comes in time");
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            match self.poll_next(&mut TaskContext::from_waker(&waker)) {
                Poll::Ready(next) => return next,
                // It gives way to others, who are to have their turn.
                Poll::Pending => rt::yield_now().await,
            }
            // What comes from outside takes a time that is not simulated.
            if !woken.0.load(Ordering::Relaxed) {
                assert!(Instant::now() < until, "the stream waits, and nothing is to come");
                rt::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
