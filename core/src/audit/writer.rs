//! The thread that writes the audit log: takes what is there, writes it in one piece, syncs it, and tells the shards.
//!
//! After an error it writes nothing any more, because nobody knows what is on the disk then: calls that have to be written down
//! are refused until the next start, all others go on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

use super::files::Files;
use super::{
    Access, Audit, ENTRIES_MAX, Entry, Fields, Head, Outcome, Shared, What, Written, event,
    show_time,
};
use crate::metrics::code_name;
use crate::namespaces::Namespaces;

/// Lines that are written at once.
const BATCH_ENTRIES_MAX: usize = 1024;
/// Places in the queue for the control thread.
const CONTROL_ENTRIES: usize = 64;

/// Ends the writer when it is dropped, after what it was given.
#[derive(Debug)]
pub(crate) struct Writer {
    audit: Audit,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let end = Entry { at_us: 0, shard: None, what: What::End };
        if let (Ok(()), Some(thread)) = (self.audit.queue.send(end), self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Goes on with the log in a folder.
pub(crate) fn start(
    folder: &Path,
    file_bytes_max: u64,
    namespaces: Arc<Namespaces>,
    shards: usize,
) -> std::io::Result<(Audit, Writer)> {
    let opened = Files::open(folder, file_bytes_max);
    let head = opened.as_ref().map_or(Head::NONE, |(files, _)| files.head());
    let shared = Arc::new(Shared {
        failed: AtomicBool::new(false),
        lines: AtomicU64::new(0),
        head: Mutex::new(head),
        suppressed: AtomicU64::new(0),
        shards: (0..shards).map(|_| Written::default()).collect(),
    });
    // Shards count what they put in, so that it always has room.
    let (queue, waiting) = sync_channel(shards * ENTRIES_MAX + CONTROL_ENTRIES);
    let audit = Audit { queue, shared: shared.clone() };
    let mut files = match opened {
        Ok((files, cut_bytes)) => {
            if cut_bytes > 0 {
                let cut = ("cut_bytes", Value::from(cut_bytes));
                audit.event(event("recovered", [cut]));
            }
            Some(files)
        }
        Err(error) => {
            fail(&shared, &error);
            None
        }
    };
    let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
        write_all(&waiting, &mut files, &shared, &namespaces);
    })?;
    Ok((audit.clone(), Writer { audit, thread: Some(thread) }))
}

fn fail(shared: &Shared, error: &str) {
    shared.failed.store(true, Ordering::Release);
    tracing::error!(
        "{error}. Nothing is written into the audit log any more, and namespaces with audit_logging refuse their calls, until \
         this server starts again"
    );
}

fn write_all(
    waiting: &Receiver<Entry>,
    files: &mut Option<Files>,
    shared: &Shared,
    namespaces: &Namespaces,
) {
    let mut entries = Vec::new();
    while let Ok(first) = waiting.recv() {
        entries.push(first);
        entries.extend(waiting.try_iter().take(BATCH_ENTRIES_MAX - 1));
        let is_end = entries.iter().any(|entry| matches!(entry.what, What::End));
        let lines: Vec<_> = entries.iter().filter_map(|entry| line(entry, namespaces)).collect();
        if let Some(open) = files.as_mut().filter(|_| !lines.is_empty()) {
            match open.write(&lines) {
                Ok(()) => {
                    *shared.head.lock().unwrap_or_else(PoisonError::into_inner) = open.head();
                    shared.lines.fetch_add(lines.len() as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    fail(shared, &format!("the audit log cannot be written: {error}"));
                    *files = None;
                }
            }
        }
        for shard in entries.drain(..).filter_map(|entry| entry.shard) {
            shared.shards[shard].count.fetch_add(1, Ordering::Release);
        }
        // A bell that rings for nothing costs less than to know which.
        shared.shards.iter().for_each(|written| written.bell.ring());
        if is_end {
            return;
        }
    }
}

/// The time of an entry and what its line says; nothing of the end.
fn line(entry: &Entry, namespaces: &Namespaces) -> Option<(String, Fields)> {
    let fields = match &entry.what {
        What::Event(fields) => fields.clone(),
        What::Access(access) => of_access(access, namespaces),
        What::End => return None,
    };
    Some((show_time(entry.at_us), fields))
}

fn of_access(access: &Access, namespaces: &Namespaces) -> Fields {
    let outcome = match access.outcome {
        Outcome::Begun => "begun",
        Outcome::Ended(code) => code_name(code),
    };
    let mut fields = event(
        "access",
        [
            ("namespace", Value::from(&*namespaces.at(access.namespace).name)),
            ("method", access.method.path().into()),
            ("who", Value::from(&*access.who.id)),
        ],
    );
    fields.extend(access.who.issuer.as_ref().map(|issuer| ("issuer", Value::from(&**issuer))));
    fields.push(("from", access.from.to_string().into()));
    fields.push(("outcome", outcome.into()));
    if access.trace_id != [0; 16] {
        fields.push(("trace_id", super::show(&access.trace_id).into()));
    }
    fields
}
