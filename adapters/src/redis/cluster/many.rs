//! Calls over several keys, which may be on several nodes, and over all nodes.
//!
//! Each key is a call of its own; all of them are made at once, so that those of one node go out in one write. They are not one to
//! others: somebody else's write may come in between.

use std::hash::Hasher;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use super::{Cluster, look, slot_of};
use crate::call::Context;
use crate::error::Error;
use crate::redis::codec::{self, Framer, Value};
use crate::redis::keyvalue::{Answer, At, put_key};
use crate::redis::{Redis, errors};
use crate::together::together;

/// What an answer takes beside each value, as `read.lua` counts it.
const BESIDE_VALUE_BYTES: usize = 96;

impl Cluster {
    /// Values and expiries of many keys, no more of them than fit, told as `read.lua` tells them.
    pub(in crate::redis) async fn read_each(
        &self,
        context: &Context<'_>,
        keys: &[&str],
        (room, first, ends): (usize, usize, bool),
    ) -> Result<Bytes, Error> {
        // How long they are comes before what they are, so that no more is on its way than is wanted.
        let lengths = keys.iter().map(|key| {
            self.call(context, Some(slot_of(context.namespace_name, key.as_bytes())), 1, |out| {
                codec::put_command(out, 2);
                codec::put(out, b"STRLEN");
                put_key(out, context, key);
            })
        });
        let lengths = together(lengths).await;
        let (mut left, mut wanted) = (room as i64, Vec::new());
        for (number, (key, length)) in keys.iter().zip(lengths).enumerate() {
            let allowed = if number == 0 { left.max(first as i64) } else { left };
            let read = length?;
            // What has another type is asked for all the same: the answer says so.
            let length = match Answer::new(context, &read).integer() {
                Ok(length) => length,
                Err(error) if error.reason() == "BACKEND_WRONG_TYPE" => 0,
                Err(error) => return Err(error),
            };
            let fits = length <= allowed;
            if !fits && ends && number > 0 {
                break;
            }
            if fits {
                left -= length + BESIDE_VALUE_BYTES as i64;
            }
            wanted.push((*key, fits.then_some(length)));
        }
        let reads = wanted.iter().map(|(key, length)| {
            let slot = slot_of(context.namespace_name, key.as_bytes());
            self.call(context, Some(slot), 2, move |out: &mut Vec<u8>| {
                codec::put_command(out, 4);
                codec::put(out, b"GETRANGE");
                put_key(out, context, key);
                codec::put(out, b"0");
                // One byte more tells that it is longer by now.
                codec::put_number(out, length.unwrap_or(0).unsigned_abs());
                codec::put_command(out, 2);
                codec::put(out, b"PEXPIRETIME");
                put_key(out, context, key);
            })
        });
        let (mut parts, mut count) = (Vec::new(), 0);
        for (read, (_, length)) in together(reads).await.into_iter().zip(&wanted) {
            let read = read?;
            let mut answer = Answer::new(context, &read);
            let (value, expiry) = (answer.next(), answer.integer());
            let fits = match value {
                Err(error) if error.reason() != "BACKEND_WRONG_TYPE" => return Err(error),
                Err(_) => true,
                Ok(Value::Blob(value)) => {
                    length.is_some_and(|length| value.len() as u64 <= length.unsigned_abs())
                }
                Ok(_) => return Err(errors::unexpected(context)),
            };
            expiry?;
            let replies = two_replies(context, &read)?;
            match fits {
                true => parts.extend_from_slice(&replies[0]),
                false if ends && count > 0 => break,
                false => parts.extend_from_slice(b":1\r\n"),
            }
            parts.extend_from_slice(&replies[1]);
            count += 1;
        }
        let mut told = format!("*{}\r\n", 2 * count).into_bytes();
        told.extend_from_slice(&parts);
        Ok(told.into())
    }

    /// A number that is the same as long as no slot is given to another node, and none is on its way; the upper half is
    /// [`Cluster::order`].
    ///
    /// # Errors
    /// A node is away.
    pub(in crate::redis) async fn fingerprint(
        &self,
        context: &Context<'_>,
    ) -> Result<Option<u64>, Error> {
        let links = self.masters(context).await?;
        let (order, mut sum) = (self.order(), links.len() as u64);
        for looked in together(links.iter().map(|link| look(link))).await {
            let nodes = looked.map_err(|_| errors::nodes_unknown(context))?;
            if nodes.is_open {
                return Ok(None);
            }
            sum = sum.wrapping_add(nodes.own);
        }
        let sum = (sum ^ sum >> 32) as u32;
        Ok(Some(u64::from(order) << 32 | u64::from(sum)))
    }

    /// A number that is the same as long as [`Cluster::masters`] are the same in the same order; never 0.
    pub(in crate::redis) fn order(&self) -> u32 {
        let mut hasher = SipHasher13::new();
        for node in &self.map.borrow().nodes {
            hasher.write(node.address.0.as_bytes());
            hasher.write_u16(node.address.1);
        }
        (hasher.finish() as u32).max(1)
    }
}

/// Adds the reply of one of many calls; a failure as the error of Redis that means it.
fn put_reply(out: &mut Vec<u8>, answer: Result<Bytes, Error>) {
    match answer {
        Ok(reply) => out.extend_from_slice(&reply),
        Err(error) => {
            let text = error.message().replace(['\r', '\n'], " ");
            out.extend_from_slice(format!("-CLUSTERDOWN {text}\r\n").as_bytes());
        }
    }
}

fn two_replies(context: &Context<'_>, read: &Bytes) -> Result<[Bytes; 2], Error> {
    let nonsense = |_| errors::unexpected(context);
    let frame = Framer::default().find(read).map_err(nonsense)?;
    let length = frame.map_or(read.len(), |frame| frame.length);
    Ok([read.slice(..length), read.slice(length..)])
}

impl Redis {
    /// Whether this is a cluster.
    pub(in crate::redis) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// Commands of one reply each, each on its key, as many as there are; their replies one behind the other, as one node would answer.
    pub(in crate::redis) async fn call_each(
        &self,
        context: &Context<'_>,
        slots: impl Iterator<Item = u16>,
        write: impl Fn(usize, &mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        let write = &write;
        let calls = slots.enumerate().map(|(number, slot)| {
            self.call_at(context, At::Slot(slot), 1, move |out: &mut Vec<u8>| write(number, out))
        });
        let mut replies = Vec::new();
        for answer in together(calls).await {
            put_reply(&mut replies, answer);
        }
        Ok(replies.into())
    }
}
