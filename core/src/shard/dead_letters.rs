//! Logged writes that their backend refuses for their own sake, after their callers were told that they are done.
//!
//! They are kept in `dead-letters/<namespace>.jsonl` of the shard's directory, a JSON object a line: what was asked for, when, and
//! why the backend refuses it. A line is on stable storage before the lane goes past its record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prism_adapters::Error;
use prism_adapters::lane::LaneRecord;
use prism_io::disk;
use prism_io::rt::Flag;

use crate::namespaces::Namespace;

/// The folder in a shard's directory.
const FOLDER: &str = "dead-letters";

/// The dead letters of one shard.
pub(crate) struct DeadLetters {
    folder: PathBuf,
}

impl DeadLetters {
    /// Below the directory of a shard.
    pub(super) fn new(directory: &Path) -> Self {
        Self { folder: directory.join(FOLDER) }
    }

    /// Keeps one. When this returns, it is on stable storage.
    pub(crate) async fn keep(
        &self,
        namespace: &Namespace,
        record: &LaneRecord<'_>,
        error: &Error,
    ) -> io::Result<()> {
        let line = serde_json::json!({
            "namespace": &*namespace.name,
            "lane_seq": record.lane_seq,
            "lsn": record.context.revision.lsn,
            "logged_us": record.context.now_us,
            "method": record.method.path(),
            "reason": error.reason(),
            "message": error.message(),
            "request": STANDARD.encode(record.request),
        });
        let (folder, name) = (self.folder.clone(), format!("{}.jsonl", namespace.name));
        // Rare, and a disk may take its time: not on the thread of the shard.
        let (result, done) = (Arc::new(Mutex::new(None)), Arc::new(Flag::default()));
        let (of_thread, told) = (result.clone(), done.clone());
        std::thread::Builder::new().name("dead-letter".into()).spawn(move || {
            let kept = disk::append_durable(&folder, &name, format!("{line}\n").as_bytes());
            if let Ok(mut result) = of_thread.lock() {
                *result = Some(kept);
            }
            told.set();
        })?;
        done.wait().await;
        let kept = result.lock().map(|mut result| result.take()).unwrap_or_default();
        kept.unwrap_or_else(|| Err(io::Error::other("the thread that writes it has ended")))
    }
}
