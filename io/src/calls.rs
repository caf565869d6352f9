//! Pooled call slots: a call's future is polled once where it arrives; one that has to wait keeps its slot.
//!
//! Promises: no allocation per call once the pool has grown to the number of calls in flight, no task, and no wake when the
//! answer is at hand. Calls that were woken are polled in the order of their wakes. A full pool refuses; it never queues.
//! Never polls a call from another thread: a foreign wake only leaves a note.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;

static NEXT_POOL: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The pools of this thread: (pool id, its queue of woken slots).
    static WOKEN: RefCell<Vec<(u64, Rc<Woken>)>> = const { RefCell::new(Vec::new()) };
}

/// Slots that were woken on their own thread.
struct Woken {
    slots: RefCell<VecDeque<u32>>,
}

/// What the wakers of a pool share, also with other threads.
struct Shared {
    pool: u64,
    /// Holds each slot at most once, so the pool's size bounds it.
    foreign: SegQueue<u32>,
    pump: AtomicWaker,
}

/// One slot's waker. `queued` keeps a slot from standing in the queue twice.
struct SlotWaker {
    slot: u32,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = WOKEN.with_borrow(|pools| {
            pools.iter().find(|(pool, _)| *pool == self.shared.pool).map(|(_, woken)| woken.clone())
        });
        match local {
            Some(woken) => woken.slots.borrow_mut().push_back(self.slot),
            None => self.shared.foreign.push(self.slot),
        }
        self.shared.pump.wake();
    }
}

struct Slot<F> {
    /// Out while the slot's future is being polled.
    future: Option<Pin<Box<Option<F>>>>,
    waker: Waker,
    state: Arc<SlotWaker>,
}

/// A pool of call futures of one type, made by `make` from a call's arguments.
pub struct CallPool<A, F, M> {
    make: M,
    slots: RefCell<Vec<Slot<F>>>,
    free: RefCell<Vec<u32>>,
    in_flight: Cell<usize>,
    calls_max: usize,
    woken: Rc<Woken>,
    shared: Arc<Shared>,
    arguments: std::marker::PhantomData<fn(A)>,
}

/// A pool behind its argument type, so that its holder need not name the future.
pub trait StartCall<A> {
    /// Starts a call and polls it once. Gives the arguments back when every slot is taken.
    fn start(&self, arguments: A) -> Result<(), A>;
    /// Polls the calls that are woken now. Those that are woken meanwhile, also by themselves, come with the next pass, so that
    /// none can hold the loop.
    fn poll_woken(&self);
    /// Whether calls are woken that were not polled since.
    fn has_woken(&self) -> bool;
    /// Wakes every call that waits, so that each looks again at what it waits for.
    fn wake_all(&self);
    /// Calls that wait in a slot.
    fn in_flight(&self) -> usize;
    /// Has `waker` woken whenever a call of this pool is.
    fn register_pump(&self, waker: &Waker);
}

impl<A, F: Future<Output = ()>, M: Fn(A) -> F> CallPool<A, F, M> {
    /// A pool of at most `calls_max` calls in flight. Lives on the thread that made it.
    pub fn new(calls_max: usize, make: M) -> Self {
        let pool = NEXT_POOL.fetch_add(1, Ordering::Relaxed);
        let woken = Rc::new(Woken { slots: RefCell::new(VecDeque::with_capacity(64)) });
        WOKEN.with_borrow_mut(|pools| pools.push((pool, woken.clone())));
        Self {
            make,
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            in_flight: Cell::new(0),
            calls_max,
            woken,
            shared: Arc::new(Shared { pool, foreign: SegQueue::new(), pump: AtomicWaker::new() }),
            arguments: std::marker::PhantomData,
        }
    }

    fn take_slot(&self) -> Option<u32> {
        if let Some(slot) = self.free.borrow_mut().pop() {
            return Some(slot);
        }
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= self.calls_max {
            return None;
        }
        let slot = slots.len() as u32;
        let state = Arc::new(SlotWaker {
            slot,
            queued: AtomicBool::new(false),
            shared: self.shared.clone(),
        });
        slots.push(Slot { future: Some(Box::pin(None)), waker: Waker::from(state.clone()), state });
        Some(slot)
    }

    fn poll_slot(&self, index: u32, arguments: Option<A>) {
        // The future leaves its slot while it runs: it may start calls in this same pool.
        let (mut future, waker) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index as usize];
            slot.state.queued.store(false, Ordering::Release);
            match slot.future.take() {
                Some(future) => (future, slot.waker.clone()),
                // It is being polled further up the stack and will be seen again there.
                None => return slot.waker.wake_by_ref(),
            }
        };
        if let Some(arguments) = arguments {
            future.as_mut().set(Some((self.make)(arguments)));
        }
        let done = match future.as_mut().as_pin_mut() {
            Some(call) => call.poll(&mut Context::from_waker(&waker)) == Poll::Ready(()),
            // A late wake of a call that has ended.
            None => {
                self.slots.borrow_mut()[index as usize].future = Some(future);
                return;
            }
        };
        if done {
            future.as_mut().set(None);
        }
        self.slots.borrow_mut()[index as usize].future = Some(future);
        if done {
            self.in_flight.set(self.in_flight.get() - 1);
            self.free.borrow_mut().push(index);
        }
    }
}

impl<A, F: Future<Output = ()>, M: Fn(A) -> F> StartCall<A> for CallPool<A, F, M> {
    fn start(&self, arguments: A) -> Result<(), A> {
        let Some(slot) = self.take_slot() else { return Err(arguments) };
        self.in_flight.set(self.in_flight.get() + 1);
        self.poll_slot(slot, Some(arguments));
        Ok(())
    }

    fn poll_woken(&self) {
        let count = self.woken.slots.borrow().len() + self.shared.foreign.len();
        for _ in 0..count {
            let next =
                self.woken.slots.borrow_mut().pop_front().or_else(|| self.shared.foreign.pop());
            match next {
                Some(slot) => self.poll_slot(slot, None),
                None => return,
            }
        }
    }

    fn has_woken(&self) -> bool {
        !self.woken.slots.borrow().is_empty() || !self.shared.foreign.is_empty()
    }

    fn wake_all(&self) {
        for slot in self.slots.borrow().iter() {
            if slot.future.as_ref().is_some_and(|future| future.is_some()) {
                slot.waker.wake_by_ref();
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    fn register_pump(&self, waker: &Waker) {
        self.shared.pump.register(waker);
    }
}

impl<A, F, M> Drop for CallPool<A, F, M> {
    fn drop(&mut self) {
        // The thread may be ending; then its list of pools is gone already.
        let _ = WOKEN.try_with(|pools| {
            if let Ok(mut pools) = pools.try_borrow_mut() {
                pools.retain(|(pool, _)| *pool != self.shared.pool);
            }
        });
    }
}

/// Polls the woken calls of `pool` whenever there are some, for ever. Between two passes everything else has its turn.
pub async fn pump<A>(pool: Rc<dyn StartCall<A>>) {
    loop {
        std::future::poll_fn(|context| {
            // Registered first: a wake between the look and the return is not lost.
            pool.register_pump(context.waker());
            if pool.has_woken() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        pool.poll_woken();
        crate::rt::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gate that calls wait at, opened by hand.
    #[derive(Default)]
    struct Gate {
        open: Cell<bool>,
        waiting: RefCell<Vec<Waker>>,
    }

    impl Gate {
        async fn pass(&self) {
            std::future::poll_fn(|context| {
                if self.open.get() {
                    return Poll::Ready(());
                }
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            })
            .await;
        }

        fn open(&self) {
            self.open.set(true);
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    #[test]
    fn a_call_with_its_answer_at_hand_ends_in_place() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        let pool = CallPool::new(1, move |value: u32| {
            let log = log.clone();
            async move { log.borrow_mut().push(value) }
        });
        for value in 0..3 {
            pool.start(value).unwrap();
        }
        assert_eq!((seen.take(), pool.in_flight()), (vec![0, 1, 2], 0));
    }

    #[test]
    fn waiting_calls_end_in_wake_order_and_a_full_pool_refuses() {
        let (gate, seen) = (Rc::new(Gate::default()), Rc::new(RefCell::new(Vec::new())));
        let (inner_gate, log) = (gate.clone(), seen.clone());
        let pool = CallPool::new(2, move |value: u32| {
            let (gate, log) = (inner_gate.clone(), log.clone());
            async move {
                gate.pass().await;
                log.borrow_mut().push(value);
            }
        });
        pool.start(1).unwrap();
        pool.start(2).unwrap();
        assert_eq!((pool.start(3), pool.in_flight()), (Err(3), 2));
        gate.open();
        pool.poll_woken();
        assert_eq!((seen.take(), pool.in_flight()), (vec![1, 2], 0));
        pool.start(4).unwrap();
        assert_eq!(seen.take(), vec![4]);
    }

    #[test]
    fn a_wake_from_another_thread_is_noticed() {
        let sender: Rc<RefCell<Option<Waker>>> = Rc::default();
        let done = Rc::new(Cell::new(false));
        let (slot, flag) = (sender.clone(), done.clone());
        let pool = CallPool::new(1, move |(): ()| {
            let (slot, flag) = (slot.clone(), flag.clone());
            async move {
                let mut first = true;
                std::future::poll_fn(|context| {
                    if std::mem::take(&mut first) {
                        *slot.borrow_mut() = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                })
                .await;
                flag.set(true);
            }
        });
        pool.start(()).unwrap();
        let waker = sender.take().unwrap();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        pool.poll_woken();
        assert!(done.get());
    }
}
