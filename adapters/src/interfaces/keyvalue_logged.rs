//! What a KeyValue write's record says by itself: the answer to its caller, and to reads of its key until the backend has it.
//!
//! Only a write that takes effect whatever the backend holds says anything; all others wait for the backend.

use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::SetCondition;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchSetRequest, DeleteResponse, ExistsResponse, ExpireResponse,
    GetResponse, PersistResponse, SetRequest, SetResponse,
};
use prism_proto::view::types::Entry;

use super::keyvalue_replies::{put_done, timestamp};
use crate::call::Reply;
use crate::interfaces::keyvalue_replies::expires_us;
use crate::limits::ttl_ms;

fn is_unconditional(request: &SetRequest<'_>) -> bool {
    matches!(request.only_if(), None | Some(SetCondition::Unspecified)) && !request.return_previous
}

/// As [`reply_from_log`](super::reply_from_log), of a KeyValue write.
pub(super) fn reply_from_log(method: Method, request: &[u8], reply: &mut Reply) -> bool {
    let head = &mut reply.head;
    match method {
        Method::KEYVALUE_SET => match SetRequest::decode(request) {
            Ok(request) if is_unconditional(&request) => {
                SetResponse { applied: true, ..SetResponse::default() }.encode(head);
            }
            _ => return false,
        },
        Method::KEYVALUE_DELETE => DeleteResponse { existed: None }.encode(head),
        Method::KEYVALUE_EXPIRE => ExpireResponse { existed: None }.encode(head),
        Method::KEYVALUE_PERSIST => PersistResponse { existed: None }.encode(head),
        Method::KEYVALUE_BATCH_SET => match BatchSetRequest::decode(request) {
            Ok(request) => (0..request.items.len()).for_each(|_| put_done(reply)),
            Err(_) => return false,
        },
        Method::KEYVALUE_BATCH_DELETE => match BatchDeleteRequest::decode(request) {
            Ok(request) => (0..request.keys.len()).for_each(|_| put_done(reply)),
            Err(_) => return false,
        },
        _ => return false,
    }
    true
}

/// Answers a Get or Exists from the last write of its key, which was logged at `logged_us`, without the version. `false`:
/// what the write leaves behind depends on what was there, or the read is another one.
pub fn read_from_log(
    (write, request, logged_us): (Method, &[u8], u64),
    read: Method,
    now_us: u64,
    reply: &mut Reply,
) -> bool {
    let entry = match write {
        Method::KEYVALUE_SET => match SetRequest::decode(request) {
            Ok(request) if is_unconditional(&request) && !request.keep_ttl => {
                let expires_us = match request.ttl.map(|ttl| ttl_ms("ttl", &ttl)) {
                    None => None,
                    Some(Ok(ttl_ms)) => Some(expires_us(ttl_ms, logged_us)),
                    Some(Err(_)) => return false,
                };
                let expires_at = expires_us.map(timestamp);
                let entry = Entry { key: None, version: None, expires_at, value: request.value };
                Some(entry).filter(|_| expires_us.is_none_or(|expires_us| expires_us > now_us))
            }
            _ => return false,
        },
        Method::KEYVALUE_DELETE => None,
        _ => return false,
    };
    match read {
        Method::KEYVALUE_GET => {
            GetResponse { found: entry.is_some(), entry }.encode(&mut reply.head);
        }
        Method::KEYVALUE_EXISTS => {
            ExistsResponse { exists: entry.is_some() }.encode(&mut reply.head);
        }
        _ => return false,
    }
    true
}
