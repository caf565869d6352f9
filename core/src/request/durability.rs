//! Durability levels on the way in, and what the trailers say on the way out.

use std::io::Write;

use prism_adapters::{Error, Kind, interfaces};
use prism_io::grpc::{Message, Metadata};
use prism_io::h2::StreamId;
use prism_io::server::Connection;
use prism_proto::catalogue::Method;

use super::{Answer, Facts};
use crate::config::Durability;
use crate::namespaces::Namespace;
use crate::shard::Shard;
use crate::status;

/// Request and reply metadata: the level asked for, and the level reached.
const DURABILITY: &str = "prism-durability";
/// Reply metadata: the record.
const LSN: &str = "prism-lsn";
/// Request metadata: a read that waits for a record.
const AFTER: &str = "prism-after";
/// Reply metadata: the first outcome of a retried call.
const REPLAYED: &str = "prism-replayed";

/// A record of one shard's log, as callers see it: opaque to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LsnToken {
    pub(crate) shard: u16,
    pub(crate) lsn: u64,
}

impl LsnToken {
    /// Longest form in bytes.
    const BYTES_MAX: usize = 4 + 1 + 16;

    fn write(self, into: &mut [u8; Self::BYTES_MAX]) -> usize {
        let mut rest = &mut into[..];
        // The buffer holds the longest form.
        let _ = write!(rest, "{:x}-{:x}", self.shard, self.lsn);
        Self::BYTES_MAX - rest.len()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (shard, lsn) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            shard: u16::from_str_radix(shard, 16).ok()?,
            lsn: u64::from_str_radix(lsn, 16).ok()?,
        })
    }
}

/// The level of a call: its namespace's, or more if it asks for more.
pub(super) fn level(namespace: &Namespace, metadata: &Metadata) -> Result<Durability, Error> {
    let Some(asked) = metadata.get(DURABILITY) else { return Ok(namespace.durability()) };
    let asked = match asked {
        b"memory" => Durability::Memory,
        b"wal" => Durability::Wal,
        b"strong" => Durability::Strong,
        _ => {
            return Err(Error::field(
                "DURABILITY_INVALID",
                DURABILITY,
                "write memory, wal or strong in lower case, or leave it out",
            ));
        }
    };
    if asked > namespace.durability_max {
        return Err(not_offered(
            namespace,
            format!("durability {} is not offered", asked.name()),
            "ask for less, or leave prism-durability out",
        ));
    }
    Ok(namespace.durability().max(asked))
}

/// Whether the outcome of a write can be remembered under an idempotency key. Of a write to an outside backend the log must
/// be able to give the answer: what the backend says is not kept over a restart.
pub(crate) fn offers_key(namespace: &Namespace, method: Method, message: &[u8]) -> bool {
    namespace.durability_max >= Durability::Wal
        && (namespace.backend == 0 || interfaces::answers_from_log(method, message))
}

/// The refusal of an idempotency key where its outcome could not be remembered.
#[cold]
pub(super) fn key_not_offered(namespace: &Namespace) -> Error {
    let what =
        "an idempotency key for this call, whose outcome only the backend knows, is not offered"
            .to_owned();
    not_offered(namespace, what, "leave prism-idempotency-key out")
}

#[cold]
fn not_offered(namespace: &Namespace, what: String, remedy: &str) -> Error {
    let text = format!("{what} by the backend of namespace {}; {remedy}", namespace.name);
    Error::new(Kind::FailedPrecondition, "DURABILITY_NOT_OFFERED", text)
        .with("namespace", namespace.name.to_string())
}

/// The level of a number in a record's flags or a remembered outcome.
pub(crate) fn level_from_number(number: u8) -> Durability {
    match number {
        0 => Durability::Memory,
        1 => Durability::Wal,
        _ => Durability::Strong,
    }
}

/// Waits until the record that `prism-after` names is visible here.
pub(crate) async fn after(shard: &Shard, metadata: &Metadata) -> Result<(), Error> {
    let Some(token) = metadata.get(AFTER) else { return Ok(()) };
    let token = LsnToken::parse(token).ok_or_else(|| {
        Error::field(
            "AFTER_INVALID",
            AFTER,
            "send the prism-lsn of an earlier reply as it was received",
        )
    })?;
    if usize::from(token.shard) != shard.index || token.lsn > shard.log.last_lsn() {
        return Err(Error::new(
            Kind::Unavailable,
            "READ_BEHIND",
            "this namespace's log does not hold the record that prism-after names; was the reply from another namespace or \
             another data directory?",
        ));
    }
    shard.log.applied(token.lsn).await
}

/// Sends the answer of a call that was carried out to its caller.
pub(super) fn respond(connection: &Connection, stream: StreamId, answer: &mut Answer) {
    let tail = std::mem::take(&mut answer.reply.tail);
    if answer.facts.level.is_none() && answer.code == 0 {
        return connection.respond(stream, Message { head: &answer.reply.head, tail }, &[]);
    }
    let mut buffer = [0; LsnToken::BYTES_MAX];
    let length = answer.facts.lsn.map_or(0, |token| token.write(&mut buffer));
    let trailers = [
        (DURABILITY, answer.facts.level.map_or("", Durability::name).as_bytes()),
        (LSN, &buffer[..length]),
        (REPLAYED, b"true"),
    ];
    let trailers = match &answer.facts {
        Facts { level: None, .. } => &trailers[..0],
        Facts { lsn: None, .. } => &trailers[..1],
        Facts { replayed: false, .. } => &trailers[..2],
        Facts { replayed: true, .. } => &trailers[..],
    };
    if answer.code == 0 {
        let message = Message { head: &answer.reply.head, tail };
        connection.respond(stream, message, trailers);
    } else {
        status::with_encoded(&tail, trailers, |status| connection.fail(stream, status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_nothing_else_does() {
        for (shard, lsn) in [(0, 0), (1, 255), (u16::MAX, u64::MAX)] {
            let (token, mut buffer) = (LsnToken { shard, lsn }, [0; LsnToken::BYTES_MAX]);
            let length = token.write(&mut buffer);
            assert_eq!(LsnToken::parse(&buffer[..length]), Some(token));
        }
        for bad in ["", "-", "1", "g-1", "1-", "10000-1", "1-10000000000000000"] {
            assert_eq!(LsnToken::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
