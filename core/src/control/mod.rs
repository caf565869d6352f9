//! Questions to the control thread: the calls of NamespaceService, and what the admin port shows of namespaces.
//!
//! Whoever is asked (a shard, the admin port) knows who asks and waits; the control thread answers one after the other, because it
//! alone changes which namespaces there are. Whoever asks bounds how many questions are open at a time. A question that is
//! dropped is answered: the server is stopping.

mod answers;
mod apply;
mod approve;
pub(crate) mod delete;
mod describe;
pub(crate) mod shared;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::rt::Flag;

use crate::access::Caller;

/// A method of NamespaceService.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Apply,
    Plan,
    Explain,
    Get,
    List,
    Delete,
    Approve,
}

/// The service's name.
pub(crate) const SERVICE: &str = "prism.namespace.v1.NamespaceService";

impl Method {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Apply,
        Self::Plan,
        Self::Explain,
        Self::Get,
        Self::List,
        Self::Delete,
        Self::Approve,
    ];

    /// Its path.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Apply => "/prism.namespace.v1.NamespaceService/Apply",
            Self::Plan => "/prism.namespace.v1.NamespaceService/Plan",
            Self::Explain => "/prism.namespace.v1.NamespaceService/Explain",
            Self::Get => "/prism.namespace.v1.NamespaceService/Get",
            Self::List => "/prism.namespace.v1.NamespaceService/List",
            Self::Delete => "/prism.namespace.v1.NamespaceService/Delete",
            Self::Approve => "/prism.namespace.v1.NamespaceService/Approve",
        }
    }

    /// Whether it changes nothing.
    pub(crate) const fn is_read(self) -> bool {
        matches!(self, Self::Plan | Self::Explain | Self::Get | Self::List)
    }
}

/// Who asks.
#[derive(Debug)]
pub(crate) enum Asker {
    /// Whoever reaches the port, where nobody is known; or the admin port.
    Anybody,
    /// Somebody who showed who they are, or may not have to.
    Known(Caller),
}

impl Asker {
    /// Whether they may see all of a namespace and change it.
    pub(crate) fn may_change(&self, id: u32) -> bool {
        match self {
            Self::Anybody => true,
            Self::Known(caller) => caller.may_change(id),
        }
    }

    /// What they are called where it is written down what they did; empty where nobody is known.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Anybody => String::new(),
            Self::Known(caller) => caller.name(),
        }
    }
}

/// A call of NamespaceService on its way to the control thread.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) method: Method,
    /// The encoded request.
    pub(crate) message: Bytes,
    pub(crate) asker: Asker,
    answer: Arc<Answer>,
}

/// The encoded answer, or why there is none.
type Told = Result<Vec<u8>, Error>;

/// Where the answer to a question will be.
#[derive(Default)]
pub(crate) struct Answer {
    told: Mutex<Option<Told>>,
    /// For those who wait on a shard's loop.
    is_there: Flag,
    /// For those who wait on a thread of their own.
    arrived: Condvar,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl Question {
    /// A question, and where its answer will be.
    pub(crate) fn new(method: Method, message: Bytes, asker: Asker) -> (Self, Arc<Answer>) {
        let answer = Arc::new(Answer::default());
        (Self { method, message, asker, answer: answer.clone() }, answer)
    }

    /// Gives the answer.
    pub(crate) fn answer(self, told: Told) {
        self.answer.put(told);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let stopping = "this server is stopping; ask another, or try again";
        self.answer.put(Err(Error::new(Kind::Unavailable, "SHUTTING_DOWN", stopping)));
    }
}

impl Answer {
    /// The first that is told stays.
    fn put(&self, told: Told) {
        let mut place = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_there.is_set() {
            *place = Some(told);
            self.is_there.set();
            self.arrived.notify_all();
        }
    }

    fn take(&self) -> Told {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        told.unwrap_or_else(|| {
            Err(Error::new(Kind::Internal, "ANSWER_TAKEN", "it was told before"))
        })
    }

    /// Waits for it on a shard's loop.
    pub(crate) async fn wait(&self) -> Told {
        self.is_there.wait().await;
        self.take()
    }

    /// Waits for it on a thread of its own, for so long at most.
    pub(crate) fn wait_blocking(&self, patience: Duration) -> Option<Told> {
        let place = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut place, _) = self
            .arrived
            .wait_timeout_while(place, patience, |told| told.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        place.take()
    }
}

/// The way to the control thread. `Clone` leads there too.
#[derive(Clone)]
pub(crate) struct Ask(Arc<dyn Fn(Question) + Send + Sync>);

impl Ask {
    pub(crate) fn new(ask: impl Fn(Question) + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Nobody answers.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self::new(drop)
    }

    /// Asks; the answer will be where the question says.
    pub(crate) fn ask(&self, question: Question) {
        (self.0)(question);
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_methods_are_those_of_the_descriptors() {
        let pool = prost_reflect::DescriptorPool::decode(prism_proto::descriptors()).unwrap();
        let service = pool.get_service_by_name(SERVICE).expect("it is there");
        let of_service: Vec<_> =
            service.methods().map(|method| format!("/{SERVICE}/{}", method.name())).collect();
        assert_eq!(of_service, Method::ALL.map(Method::path));
    }

    #[test]
    fn a_question_that_is_dropped_is_answered() {
        let (question, answer) = Question::new(Method::List, Bytes::new(), Asker::Anybody);
        assert!(answer.wait_blocking(Duration::ZERO).is_none());
        drop(question);
        let told = answer.wait_blocking(Duration::ZERO).expect("told");
        assert_eq!(told.unwrap_err().kind(), Kind::Unavailable);
        let (question, answer) = Question::new(Method::List, Bytes::new(), Asker::Anybody);
        question.answer(Ok(vec![1]));
        assert_eq!(answer.wait_blocking(Duration::ZERO), Some(Ok(vec![1])));
    }
}
