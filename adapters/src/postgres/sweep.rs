//! Deletes what has expired, a bounded number at a time, so that it takes no room for long.

use std::rc::{Rc, Weak};
use std::time::Duration;

use prism_io::{clock, rt};

use super::Pool;
use super::batch::Operation;
use super::codec::Parameters;
use super::pubsub::PubSubStatement;
use super::queue::QueueStatement;
use super::statements::{SWEEP_ENTRIES_MAX, Statement};
use crate::call::NO_DEADLINE_NS;

/// An entry is left alone for so long after it has expired: a record that is applied late, by its own time, still finds it.
const GRACE: Duration = Duration::from_secs(60);

/// What sweeps, each a model.
const SWEEPS: [Statement; 3] = [
    Statement::Sweep,
    Statement::Queue(QueueStatement::Sweep),
    Statement::PubSub(PubSubStatement::Sweep),
];

/// Begins to sweep the namespaces that are called, as long as the pool lives.
pub(super) fn start(pool: &Rc<Pool>, every: Duration) {
    rt::spawn(run(Rc::downgrade(pool), every));
}

async fn run(pool: Weak<Pool>, every: Duration) {
    loop {
        rt::sleep(every).await;
        let Some(pool) = pool.upgrade() else { return };
        let before_us = clock::wall_us().saturating_sub(GRACE.as_micros() as u64);
        let namespaces: Vec<_> = pool.namespaces.borrow().values().cloned().collect();
        for namespace in namespaces {
            let link = pool.of_writes(namespace.number, 0);
            for statement in SWEEPS {
                if !namespace.uses(statement.model()) {
                    continue;
                }
                loop {
                    let parameters = Parameters::default().moment(before_us);
                    let sweep = Operation::Other { statement, parameters, versions: 0 };
                    // What cannot be swept now is swept later; that calls fail too, they say themselves.
                    let swept = link.call(namespace.clone(), vec![sweep], NO_DEADLINE_NS).await;
                    if swept.map_or(0, |answer| answer.rows.len()) < SWEEP_ENTRIES_MAX {
                        break;
                    }
                }
            }
        }
    }
}
