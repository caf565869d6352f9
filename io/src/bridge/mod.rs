//! The bridge from a shard to threads that are not its own, for clients of backends that bring their own runtime or threads.
//!
//! A bounded queue each way, and one wake of a reader that has gone idle, however much is put in meanwhile. A call takes a slot;
//! its completion carries the slot and its generation, so that one that comes after its caller has gone away is dropped and
//! counted, and never answers another call. What would be too much is refused at once; nobody waits for room. A shard has a
//! bridge of its own for each such backend. Whatever happens to a request on the other side (its task panics, its thread ends),
//! its caller hears of it. Never a lock on the way, and never a poll of a call from another thread.

mod queue;
mod side;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use self::queue::Queue;
pub use self::side::{SideError, spawn_beside};

/// Completions that are handed out before the other tasks of the shard have their turn.
const COMPLETIONS_PER_TURN: usize = 256;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// As many are under way as may be; nothing was asked.
    Full,
    /// The other side has dropped the request, or is gone; what it has done of it is not known.
    Lost,
}

/// What a bridge has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeFacts {
    /// Calls that went over.
    pub calls: u64,
    /// Calls that were refused because too many were under way.
    pub refused: u64,
    /// Completions whose callers had gone away.
    pub late: u64,
    /// Calls that the other side has not completed, with or without a caller.
    pub under_way: usize,
}

struct Shared<Q, A> {
    requests: Queue<(Q, Ticket<Q, A>)>,
    completions: Queue<Completion<A>>,
    port_gone: AtomicBool,
    foreign_gone: AtomicBool,
}

impl<Q, A> Shared<Q, A> {
    /// Drops what nobody will take; its callers hear of it.
    fn drain(&self) {
        while let Some(request) = self.requests.pop() {
            drop(request);
        }
    }
}

struct Completion<A> {
    slot: u32,
    generation: u32,
    /// Nothing for a request that was dropped.
    answer: Option<A>,
}

/// The other side's duty to complete one request; dropped, it tells the caller that the request is lost.
pub struct Ticket<Q, A> {
    slot: u32,
    generation: u32,
    shared: Option<Arc<Shared<Q, A>>>,
}

impl<Q, A> Ticket<Q, A> {
    /// Answers the request. May be called from any thread.
    pub fn complete(mut self, answer: A) {
        self.put(Some(answer));
    }

    fn put(&mut self, answer: Option<A>) {
        if let Some(shared) = self.shared.take() {
            let completion = Completion { slot: self.slot, generation: self.generation, answer };
            // There is room for as many as may be under way.
            let put = shared.completions.push(completion);
            debug_assert!(put.is_ok(), "more completions than calls");
        }
    }
}

impl<Q, A> Drop for Ticket<Q, A> {
    fn drop(&mut self) {
        self.put(None);
    }
}

enum Stage<A> {
    Free,
    Waiting(Option<Waker>),
    Done(Option<A>),
}

struct Slot<A> {
    generation: u32,
    stage: Stage<A>,
}

/// The shard's end.
pub struct Port<Q, A> {
    shared: Arc<Shared<Q, A>>,
    slots: RefCell<Vec<Slot<A>>>,
    free: RefCell<Vec<u32>>,
    facts: Cell<BridgeFacts>,
    calls_max: usize,
}

/// The end of the other side, which may be moved to any thread.
pub struct Foreign<Q, A> {
    shared: Arc<Shared<Q, A>>,
}

/// Both ends of a bridge for at most `calls_max` calls under way. [`Port::receive`] has to run on the shard.
pub fn bridge<Q, A>(calls_max: usize) -> (Rc<Port<Q, A>>, Foreign<Q, A>) {
    let shared = Arc::new(Shared {
        requests: Queue::new(calls_max),
        completions: Queue::new(calls_max),
        port_gone: AtomicBool::new(false),
        foreign_gone: AtomicBool::new(false),
    });
    let port = Rc::new(Port {
        shared: shared.clone(),
        slots: RefCell::default(),
        free: RefCell::default(),
        facts: Cell::default(),
        calls_max,
    });
    (port, Foreign { shared })
}

/// Gives up a call whose caller goes away.
struct Guard<'a, Q, A> {
    port: &'a Port<Q, A>,
    slot: u32,
}

impl<Q, A> Drop for Guard<'_, Q, A> {
    fn drop(&mut self) {
        let mut slots = self.port.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.stage = Stage::Free;
        // What still comes for this call finds another generation.
        slot.generation = slot.generation.wrapping_add(1);
        self.port.free.borrow_mut().push(self.slot);
    }
}

impl<Q, A> Port<Q, A> {
    /// Sends a request over and waits for its answer. A caller that goes away leaves the request to the other side.
    pub async fn call(&self, request: Q) -> Result<A, Failure> {
        if self.facts.get().under_way >= self.calls_max {
            self.count(|facts| facts.refused += 1);
            return Err(Failure::Full);
        }
        let (slot, generation) = self.take_slot();
        let guard = Guard { port: self, slot };
        self.count(|facts| (facts.calls, facts.under_way) = (facts.calls + 1, facts.under_way + 1));
        let ticket = Ticket { slot, generation, shared: Some(self.shared.clone()) };
        // There is room for as many as may be under way; a request that did not find it is lost by being dropped.
        let _ = self.shared.requests.push((request, ticket));
        if self.shared.foreign_gone.load(Ordering::SeqCst) {
            self.shared.drain();
        }
        self.answer(slot, guard).await
    }

    /// A call whose request goes over by a queue of the other side's own: `begin` puts it there, together with the ticket.
    pub async fn hand_over(&self, begin: impl FnOnce(Ticket<Q, A>)) -> Result<A, Failure> {
        if self.facts.get().under_way >= self.calls_max {
            self.count(|facts| facts.refused += 1);
            return Err(Failure::Full);
        }
        let (slot, generation) = self.take_slot();
        let guard = Guard { port: self, slot };
        self.count(|facts| (facts.calls, facts.under_way) = (facts.calls + 1, facts.under_way + 1));
        begin(Ticket { slot, generation, shared: Some(self.shared.clone()) });
        self.answer(slot, guard).await
    }

    async fn answer(&self, slot: u32, guard: Guard<'_, Q, A>) -> Result<A, Failure> {
        let answer = poll_fn(|context| {
            let stage = &mut self.slots.borrow_mut()[slot as usize].stage;
            match stage {
                Stage::Done(answer) => Poll::Ready(answer.take()),
                Stage::Waiting(known) => {
                    if !known.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                        *known = Some(context.waker().clone());
                    }
                    Poll::Pending
                }
                Stage::Free => unreachable!("the slot is the call's until its guard is dropped"),
            }
        })
        .await;
        drop(guard);
        answer.ok_or(Failure::Lost)
    }

    /// Hands out completions, until the last other holder of this port has dropped it.
    pub async fn receive(self: Rc<Self>) {
        let (shared, port) = (self.shared.clone(), Rc::downgrade(&self));
        drop(self);
        loop {
            shared.completions.wait(|| shared.port_gone.load(Ordering::SeqCst)).await;
            let Some(port) = port.upgrade() else { return };
            for _ in 0..COMPLETIONS_PER_TURN {
                let Some(completion) = shared.completions.pop() else { break };
                port.settle(completion);
            }
            drop(port);
            crate::rt::note_activity();
            crate::rt::yield_now().await;
        }
    }

    /// What it has done so far.
    pub fn facts(&self) -> BridgeFacts {
        self.facts.get()
    }

    fn take_slot(&self) -> (u32, u32) {
        let mut slots = self.slots.borrow_mut();
        let stage = Stage::Waiting(None);
        if let Some(number) = self.free.borrow_mut().pop() {
            let slot = &mut slots[number as usize];
            slot.stage = stage;
            return (number, slot.generation);
        }
        slots.push(Slot { generation: 0, stage });
        (slots.len() as u32 - 1, 0)
    }

    fn settle(&self, completion: Completion<A>) {
        self.count(|facts| facts.under_way -= 1);
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[completion.slot as usize];
        if slot.generation != completion.generation {
            drop(slots);
            return self.count(|facts| facts.late += 1);
        }
        let stage = std::mem::replace(&mut slot.stage, Stage::Done(completion.answer));
        drop(slots);
        if let Stage::Waiting(Some(waker)) = stage {
            waker.wake();
        }
    }

    fn count(&self, count: impl FnOnce(&mut BridgeFacts)) {
        let mut facts = self.facts.get();
        count(&mut facts);
        self.facts.set(facts);
    }
}

impl<Q, A> Drop for Port<Q, A> {
    fn drop(&mut self) {
        self.shared.port_gone.store(true, Ordering::SeqCst);
        self.shared.drain();
        self.shared.requests.wake();
        self.shared.completions.wake();
    }
}

impl<Q, A> Foreign<Q, A> {
    /// The next request; `None` when the shard has left.
    pub async fn next(&self) -> Option<(Q, Ticket<Q, A>)> {
        let shared = &self.shared;
        loop {
            if let Some(request) = shared.requests.pop() {
                return Some(request);
            }
            if shared.port_gone.load(Ordering::SeqCst) {
                return None;
            }
            shared.requests.wait(|| shared.port_gone.load(Ordering::SeqCst)).await;
        }
    }
}

impl<Q, A> Drop for Foreign<Q, A> {
    fn drop(&mut self) {
        self.shared.foreign_gone.store(true, Ordering::SeqCst);
        self.shared.drain();
    }
}

#[cfg(test)]
mod tests;
