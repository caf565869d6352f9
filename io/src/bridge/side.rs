//! The one thread beside the shards that clients bound to tokio run on, started when the first of them is.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};

/// Taken only where a task is begun, never by a call.
static SIDE: Mutex<Option<Handle>> = Mutex::new(None);

/// Why there is no such thread.
#[derive(Debug)]
pub struct SideError(io::Error);

impl fmt::Display for SideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the thread for clients of outside backends cannot be started: {}", self.0)
    }
}

impl std::error::Error for SideError {}

/// Runs a task on that thread. The thread is the process's, and ends with it; a task ends when it does.
pub fn spawn_beside(task: impl Future<Output = ()> + Send + 'static) -> Result<(), SideError> {
    let mut side = SIDE.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = match side.take() {
        Some(handle) => handle,
        None => start().map_err(SideError)?,
    };
    handle.spawn(task);
    *side = Some(handle);
    Ok(())
}

fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new().name("prism-side".to_owned());
    thread.spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
}
