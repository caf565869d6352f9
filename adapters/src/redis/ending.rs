//! The end of a namespace in Redis: its keys are found by SCAN and taken out by UNLINK, a bounded number at a time.
//!
//! Its keys are those under `<namespace>:` and what Prism keeps beside them, under `_prism:<kind>:<namespace>` (lanes' cells, what is set
//! for streams and groups, messages of transactions). SCAN tells every key that is there from its begin to its end, and nobody makes new ones any more.

use std::rc::Rc;

use bytes::Bytes;

use super::Redis;
use super::cluster::slot_of_whole;
use super::codec;
use super::connection::Link;
use super::errors;
use super::keyvalue::{Answer, At};
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;

/// Keys that one SCAN looks at, about, and one UNLINK takes out at most: well below a millisecond of Redis's time.
const PIECE_KEYS: u64 = 512;

/// Keys that are looked at at a time.
const LOOKED_AT_KEYS: usize = 16;
/// The fields of a queue's hash: its messages are keys of their own.
const OF_QUEUES: [&[u8]; 2] = [b"last-number", b"max-deliveries"];

/// Of what Prism keeps beside a namespace's keys.
const BESIDE: &[u8] = b"_prism:";
/// Of what it keeps of messages that transactions send.
const OUTBOX: &[u8] = b"_prism:outbox:";

/// Which keys are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Those that hold the namespace's data.
    Data,
    /// Those of queues in a cluster.
    Tagged,
    /// Those that Prism keeps beside them.
    Beside,
}

impl Of {
    fn put_pattern(self, out: &mut Vec<u8>, namespace: &[u8]) {
        match self {
            // No name of a namespace has a character that means something in a pattern.
            Of::Data => codec::put_pieces(out, [namespace, b":*", b""]),
            Of::Tagged => codec::put_pieces(out, [b"{", namespace, b":*"]),
            Of::Beside => codec::put_pieces(out, [b"_prism:*:", namespace, b"*"]),
        }
    }

    /// Whether it is one: a pattern takes more than it should where a stream is called as the namespace is.
    fn is_of(self, key: &[u8], namespace: &[u8]) -> bool {
        let rest = match self {
            Of::Data => Some(key),
            Of::Tagged => key.strip_prefix(b"{"),
            Of::Beside => key.strip_prefix(BESIDE).and_then(|rest| {
                let kind = rest.iter().position(|byte| *byte == b':')?;
                rest.get(kind + 1..)
            }),
        };
        let rest = rest.and_then(|rest| rest.strip_prefix(namespace));
        rest.is_some_and(|rest| match rest.first() {
            Some(next) => *next == b':',
            None => self == Of::Beside,
        })
    }
}

impl Endings for Redis {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        for (of, link) in self.scanned(context).await? {
            let mut cursor = 0;
            loop {
                let (next, keys) = scan_of(&link, context, of, cursor).await?;
                let is_missed = match of {
                    Of::Data | Of::Tagged => self.is_any_missed(context, &keys).await?,
                    // Of what is kept beside the data, messages on their way would be missed.
                    Of::Beside => keys.iter().any(|key| key.starts_with(OUTBOX)),
                };
                if is_missed {
                    return Ok(true);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(false)
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        let before = self.nodes_now(context).await?;
        self.lane_cells.borrow_mut().retain(|(namespace, _), _| *namespace != context.namespace);
        // What is kept beside the data goes after it.
        for (of, link) in self.scanned(context).await? {
            let mut cursor = 0;
            loop {
                let (next, keys) = scan_of(&link, context, of, cursor).await?;
                for piece in keys.chunks(PIECE_KEYS as usize) {
                    self.unlink(context, piece).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        match self.nodes_now(context).await? == before {
            true => Ok(()),
            // What has moved meanwhile may have been missed.
            false => Err(errors::slots_move(context)),
        }
    }
}

impl Redis {
    /// Whether any of these keys holds something that somebody would miss: the hash of a queue in which there is nothing does not.
    async fn is_any_missed(&self, context: &Context<'_>, keys: &[Bytes]) -> Result<bool, Error> {
        let together = if self.cluster().is_some() { 1 } else { LOOKED_AT_KEYS };
        for piece in keys.chunks(together) {
            let write = |out: &mut Vec<u8>| {
                for key in piece {
                    codec::put_command(out, 2);
                    codec::put(out, b"HLEN");
                    codec::put(out, key);
                    for field in OF_QUEUES {
                        codec::put_command(out, 3);
                        [b"HEXISTS", &key[..], field].iter().for_each(|part| codec::put(out, part));
                    }
                }
            };
            let replies = piece.len() * (1 + OF_QUEUES.len());
            let read = match self.cluster() {
                None => self.link.call(context, replies, write).await?,
                // Each key may be elsewhere by now.
                Some(_) => {
                    let Some(key) = piece.first() else { return Ok(false) };
                    let at = At::Slot(slot_of_whole(key));
                    self.call_at(context, at, replies, write).await?
                }
            };
            let mut answer = Answer::new(context, &read);
            for _ in piece {
                let fields = answer.integer();
                let known: Vec<_> = OF_QUEUES.iter().map(|_| answer.integer()).collect();
                let fields = match fields {
                    // No hash.
                    Err(error) if error.reason() == "BACKEND_WRONG_TYPE" => return Ok(true),
                    fields => fields?,
                };
                let known = known.into_iter().sum::<Result<i64, Error>>()?;
                if fields > known {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// What is looked through, and where: what is kept beside the data comes last.
    async fn scanned(&self, context: &Context<'_>) -> Result<Vec<(Of, Rc<Link>)>, Error> {
        let (links, kinds) = match self.cluster() {
            None => (vec![self.link.clone()], &[Of::Data, Of::Beside][..]),
            Some(cluster) => {
                (cluster.masters(context).await?, &[Of::Data, Of::Tagged, Of::Beside][..])
            }
        };
        let each = |of: &Of| links.iter().map(|link| (*of, link.clone())).collect::<Vec<_>>();
        Ok(kinds.iter().flat_map(each).collect())
    }

    /// Which node of a cluster has which slots; nothing else has anything to tell.
    async fn nodes_now(&self, context: &Context<'_>) -> Result<u64, Error> {
        let Some(cluster) = self.cluster() else { return Ok(0) };
        let now = cluster.fingerprint(context).await?;
        now.ok_or_else(|| errors::slots_move(context))
    }

    async fn unlink(&self, context: &Context<'_>, keys: &[Bytes]) -> Result<(), Error> {
        if self.cluster().is_some() {
            let slots = keys.iter().map(|key| slot_of_whole(key));
            let write = |number: usize, out: &mut Vec<u8>| {
                codec::put_command(out, 2);
                codec::put(out, b"UNLINK");
                codec::put(out, &keys[number]);
            };
            let read = self.call_each(context, slots, write).await?;
            let mut answer = Answer::new(context, &read);
            return keys.iter().try_for_each(|_| answer.integer().map(drop));
        }
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 1 + keys.len());
            codec::put(out, b"UNLINK");
            keys.iter().for_each(|key| codec::put(out, key));
        };
        let read = self.link.call(context, 1, write).await?;
        // How many were there still.
        Answer::new(context, &read).integer().map(drop)
    }
}

/// The keys of one SCAN, and where the next one goes on; 0 when there is none.
async fn scan_of(
    link: &Link,
    context: &Context<'_>,
    of: Of,
    cursor: u64,
) -> Result<(u64, Vec<Bytes>), Error> {
    let namespace = context.namespace_name.as_bytes();
    let write = |out: &mut Vec<u8>| {
        codec::put_command(out, 6);
        codec::put(out, b"SCAN");
        codec::put_number(out, cursor);
        codec::put(out, b"MATCH");
        of.put_pattern(out, namespace);
        codec::put(out, b"COUNT");
        codec::put_number(out, PIECE_KEYS);
    };
    let read = link.call(context, 1, write).await?;
    let mut answer = Answer::new(context, &read);
    answer.array()?;
    let next = answer.blob()?.and_then(|digits| std::str::from_utf8(digits).ok());
    let next: Option<u64> = next.and_then(|digits| digits.parse().ok());
    let next = next.ok_or_else(|| errors::unexpected(context))?;
    let mut keys = Vec::new();
    for _ in 0..answer.array()? {
        if let Some(key) = answer.blob()?.filter(|key| of.is_of(key, namespace)) {
            keys.push(read.slice_ref(key));
        }
    }
    Ok((next, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespace_s_own_keys_are_its_own() {
        let of = |of: Of, key: &str| of.is_of(key.as_bytes(), b"orders");
        assert!(of(Of::Data, "orders:") && of(Of::Data, "orders:a:b"));
        assert!(
            !of(Of::Data, "orders-eu:a") && !of(Of::Data, "orders") && !of(Of::Data, "xorders:a")
        );
        assert!(
            of(Of::Beside, "_prism:cell:orders:0")
                && of(Of::Beside, "_prism:group:orders:s:g")
                && of(Of::Beside, "_prism:outbox:orders")
        );
        for other in [
            "_prism:cell:orders-eu:0",
            "_prism:outbox:orders-eu",
            "_prism:outbox:mail",
            "_prism:group:mail:orders:g",
            "_prism:cell",
            "orders:a",
        ] {
            assert!(!of(Of::Beside, other), "{other}");
        }
    }
}
