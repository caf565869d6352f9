//! Records on their way, and the word that comes back: where each one landed, or why it did not.

use std::sync::{Arc, Mutex, PoisonError};

use prism_io::bridge::Ticket;
use rdkafka::types::RDKafkaErrorCode as Code;

/// Partition and offset of a record, or why there is none.
pub(super) type Landed = Result<(u32, i64), Code>;

/// The duty to tell the shard; nothing is asked through the bridge's own queue.
pub(super) type Duty = Ticket<(), Vec<Landed>>;

/// What goes with a record through the client and comes back with its confirmation.
pub(super) enum Parcel {
    /// A record by itself.
    One(Duty),
    /// One of several that are told together.
    Part(Arc<Group>, usize),
    /// One that nobody asks for by itself: the transaction that it belongs to tells.
    Unasked,
}

/// Records that are told together, when the last of them has landed.
pub(super) struct Group {
    // Of the client's one polling thread nearly always: it is never waited for.
    state: Mutex<State>,
}

struct State {
    landed: Vec<Landed>,
    left: usize,
    duty: Option<Duty>,
}

impl Group {
    pub(super) fn new(count: usize, duty: Duty) -> Arc<Self> {
        let landed = vec![Err(Code::Unknown); count];
        let state = State { landed, left: count, duty: Some(duty) };
        Arc::new(Group { state: Mutex::new(state) })
    }

    fn land(&self, index: usize, landed: Landed) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.landed[index] = landed;
        state.left -= 1;
        if state.left == 0
            && let Some(duty) = state.duty.take()
        {
            let landed = std::mem::take(&mut state.landed);
            drop(state);
            duty.complete(landed);
        }
    }
}

impl Parcel {
    pub(super) fn land(self, landed: Landed) {
        match self {
            Parcel::One(duty) => duty.complete(vec![landed]),
            Parcel::Part(group, index) => group.land(index, landed),
            Parcel::Unasked => {}
        }
    }
}
