//! From an answer to text or JSON, and to an exit code.
//!
//! JSON holds a value as `value` where it is UTF-8, else as `value_base64`; versions are base64. Where there are many
//! results each is one object on a line of its own.

use std::io::IsTerminal;
use std::time::Duration;

use prism_proto::google::rpc;
use prism_proto::prism::keyvalue::v1 as kv;
use prism_proto::prism::r#type::v1::Entry;
use prost::{DecodeError, Message};
use serde_json::{Map, Value, json};

use super::super::Exit;
use super::super::output::{base64, line, printable, shown_value, text};
use super::super::reach::Standing;
use super::{KvArgs, KvCommand};
use crate::config::units::show_duration;

/// What has been shown so far.
#[derive(Debug)]
pub(super) struct Shown {
    /// How the command ends when nothing else happens.
    exit: Exit,
    /// The limit of the command is reached; no more messages are wanted.
    enough: bool,
    entries: u64,
    /// Whether a value for people ends its line.
    to_terminal: bool,
}

impl Default for Shown {
    fn default() -> Self {
        let to_terminal = std::io::stdout().is_terminal();
        Self { exit: Exit::Ok, enough: false, entries: 0, to_terminal }
    }
}

impl Standing for Shown {
    fn exit(&self) -> Exit {
        self.exit
    }

    fn is_enough(&self) -> bool {
        self.enough
    }
}

/// Renders one message of the answer.
pub(super) fn message(
    args: &KvArgs,
    bytes: &[u8],
    shown: &mut Shown,
) -> Result<Vec<u8>, DecodeError> {
    let json = args.reach.json();
    Ok(match &args.command {
        KvCommand::Get { .. } => {
            let answer = kv::GetResponse::decode(bytes)?;
            if !answer.found {
                shown.exit = Exit::NotFound;
            }
            one_entry(answer.entry.as_ref(), "found", answer.found, json, shown)
        }
        KvCommand::Set { previous, .. } => {
            let answer = kv::SetResponse::decode(bytes)?;
            if !answer.applied {
                shown.exit = Exit::NotApplied;
            }
            if json {
                let mut object = Map::from_iter([("applied".into(), answer.applied.into())]);
                add_version(&mut object, answer.version.as_deref());
                if *previous {
                    object.insert("previous".into(), entry_json(answer.previous.as_ref()));
                }
                line(Value::Object(object))
            } else if let Some(entry) = answer.previous.as_ref() {
                raw(&entry.value, shown)
            } else if answer.applied {
                text(if *previous { "" } else { "stored" })
            } else {
                text("not stored: the condition did not hold")
            }
        }
        KvCommand::Delete { .. } => {
            existed(kv::DeleteResponse::decode(bytes)?.existed, "deleted", json)
        }
        KvCommand::Exists { .. } => {
            let exists = kv::ExistsResponse::decode(bytes)?.exists;
            if !exists {
                shown.exit = Exit::NotFound;
            }
            match json {
                true => line(json!({ "exists": exists })),
                false => text(if exists { "yes" } else { "no" }),
            }
        }
        KvCommand::Scan { keys_only: false, limit, .. } => {
            let page = kv::ScanResponse::decode(bytes)?;
            let entries = take(&page.entries, *limit, shown);
            entries.iter().flat_map(|entry| scanned(entry, json)).collect()
        }
        KvCommand::Scan { keys_only: true, limit, .. } => {
            let page = kv::ScanKeysResponse::decode(bytes)?;
            let show = |key: &String| match json {
                true => line(json!({ "key": key })),
                false => text(&key.escape_debug().to_string()),
            };
            take(&page.keys, *limit, shown).iter().flat_map(show).collect()
        }
        KvCommand::Count { .. } => {
            let kv::CountResponse { count, exact } = kv::CountResponse::decode(bytes)?;
            match (json, exact) {
                (true, _) => line(json!({ "count": count, "exact": exact })),
                (false, true) => text(&count.to_string()),
                (false, false) => text(&format!("{count} or more")),
            }
        }
        KvCommand::Ttl { .. } => {
            let answer = kv::GetTtlResponse::decode(bytes)?;
            if !answer.found {
                shown.exit = Exit::NotFound;
            }
            let ttl = answer.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
            match (json, answer.found, ttl) {
                (true, found, ttl) => {
                    let ttl_ms = ttl.map(|ttl| ttl.as_millis() as u64);
                    let expires_at = answer.expires_at.map(|time| time.to_string());
                    line(json!({ "found": found, "ttl_ms": ttl_ms, "expires_at": expires_at }))
                }
                (false, false, _) => Vec::new(),
                (false, true, Some(ttl)) => text(&show_duration(ttl)),
                (false, true, None) => text("does not expire"),
            }
        }
        KvCommand::Expire { .. } => {
            existed(kv::ExpireResponse::decode(bytes)?.existed, "expires", json)
        }
        KvCommand::Persist { .. } => {
            existed(kv::PersistResponse::decode(bytes)?.existed, "persists", json)
        }
        KvCommand::Cas { .. } => {
            let answer = kv::CompareAndSwapResponse::decode(bytes)?;
            if !answer.swapped {
                shown.exit = Exit::NotApplied;
            }
            if json {
                let mut object = Map::from_iter([("swapped".into(), answer.swapped.into())]);
                add_version(&mut object, answer.version.as_deref());
                if !answer.swapped {
                    object.insert("current".into(), entry_json(answer.current.as_ref()));
                }
                line(Value::Object(object))
            } else if answer.swapped {
                text("swapped")
            } else {
                text("not swapped: the key is not as expected")
            }
        }
        KvCommand::BatchGet { keys } => {
            let results = kv::BatchGetResponse::decode(bytes)?.results;
            let show = |(key, result): (&String, &kv::BatchGetResult)| match &result.status {
                Some(status) => failed(key, status, json, shown),
                None if json => {
                    let mut object = entry_map(result.entry.as_ref());
                    object.insert("key".into(), key.as_str().into());
                    object.insert("found".into(), result.found.into());
                    line(Value::Object(object))
                }
                None => match &result.entry {
                    Some(entry) => {
                        text(&format!("{}\t{}", printable(key), shown_value(&entry.value)))
                    }
                    None => text(&format!("{}\t(not found)", printable(key))),
                },
            };
            keys.iter().zip(&results).flat_map(show).collect()
        }
        KvCommand::BatchSet { entries, .. } => {
            let results = kv::BatchSetResponse::decode(bytes)?.results;
            let keys = entries.iter().map(|entry| entry.split('=').next().unwrap_or_default());
            let show = |(key, result): (&str, &kv::BatchSetResult)| match &result.status {
                Some(status) => failed(key, status, json, shown),
                None if json => {
                    let mut object = Map::from_iter([("key".into(), key.into())]);
                    add_version(&mut object, result.version.as_deref());
                    line(Value::Object(object))
                }
                None => text(&format!("{}\tstored", printable(key))),
            };
            keys.zip(&results).flat_map(show).collect()
        }
        KvCommand::BatchDelete { keys } => {
            let results = kv::BatchDeleteResponse::decode(bytes)?.results;
            let show = |(key, result): (&String, &kv::BatchDeleteResult)| match &result.status {
                Some(status) => failed(key, status, json, shown),
                None if json => line(json!({ "key": key, "existed": result.existed })),
                None => text(&format!("{}\tdeleted", printable(key))),
            };
            keys.iter().zip(&results).flat_map(show).collect()
        }
    })
}

/// A value byte for byte; at a terminal with the end of the line that a person expects.
fn raw(value: &[u8], shown: &Shown) -> Vec<u8> {
    let mut bytes = value.to_vec();
    if shown.to_terminal && !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes
}

fn one_entry(entry: Option<&Entry>, name: &str, found: bool, json: bool, shown: &Shown) -> Vec<u8> {
    if json {
        let mut object = entry_map(entry);
        object.insert(name.into(), found.into());
        return line(Value::Object(object));
    }
    entry.map(|entry| raw(&entry.value, shown)).unwrap_or_default()
}

fn existed(existed: Option<bool>, done: &str, json: bool) -> Vec<u8> {
    match (json, existed) {
        (true, existed) => line(json!({ "existed": existed })),
        (false, Some(false)) => text("the key did not exist"),
        (false, _) => text(done),
    }
}

fn scanned(entry: &Entry, json: bool) -> Vec<u8> {
    let key = entry.key.as_deref().unwrap_or_default();
    if json {
        let mut object = entry_map(Some(entry));
        object.insert("key".into(), key.into());
        return line(Value::Object(object));
    }
    text(&format!("{}\t{}", printable(key), shown_value(&entry.value)))
}

/// The rest of the limit, counted.
fn take<'a, T>(items: &'a [T], limit: Option<u64>, shown: &mut Shown) -> &'a [T] {
    let left = limit.map_or(u64::MAX, |limit| limit - shown.entries.min(limit));
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(items.len());
    shown.entries += count as u64;
    shown.enough = limit.is_some_and(|limit| shown.entries >= limit);
    &items[..count]
}

fn failed(key: &str, status: &rpc::Status, json: bool, shown: &mut Shown) -> Vec<u8> {
    shown.exit = Exit::Failure;
    match json {
        true => line(json!({ "key": key, "code": status.code, "error": status.message })),
        false => text(&format!("{}\tfailed: {}", printable(key), printable(&status.message))),
    }
}

fn entry_json(entry: Option<&Entry>) -> Value {
    match entry {
        Some(_) => Value::Object(entry_map(entry)),
        None => Value::Null,
    }
}

fn entry_map(entry: Option<&Entry>) -> Map<String, Value> {
    let mut object = Map::new();
    let Some(entry) = entry else {
        return object;
    };
    match std::str::from_utf8(&entry.value) {
        Ok(value) => object.insert("value".into(), value.into()),
        Err(_) => object.insert("value_base64".into(), base64(&entry.value).into()),
    };
    add_version(&mut object, entry.version.as_deref());
    if let Some(time) = &entry.expires_at {
        object.insert("expires_at".into(), time.to_string().into());
    }
    object
}

fn add_version(object: &mut Map<String, Value>, version: Option<&[u8]>) {
    if let Some(version) = version {
        object.insert("version".into(), base64(version).into());
    }
}
