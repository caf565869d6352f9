//! What the record of a write says by itself, so that its caller need not wait for the backend: the answer, but for what only the
//! backend knows.

use prism_proto::catalogue::{Method, Model};
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::view::pubsub::PublishBatchRequest;
use prism_proto::view::queue::SendBatchRequest;
use prism_proto::view::stream::{AppendBatchRequest, AppendRequest};

use super::keyvalue_logged;
use super::message::message_id_of;
use crate::call::{Reply, Revision};

/// Where a write stands in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPlace {
    /// The namespace's number.
    pub namespace: u32,
    /// The record's log time, µs since the epoch.
    pub log_time_us: u64,
    /// The record's number.
    pub lsn: u64,
}

/// Whether the log can answer a write.
pub fn answers_from_log(method: Method, request: &[u8]) -> bool {
    reply_from_log(LogPlace::default(), method, request, &mut Reply::default())
}

/// Writes the answer of a write that is in the log, without the fields that only the backend knows. `false`: only the backend
/// can answer it.
pub fn reply_from_log(place: LogPlace, method: Method, request: &[u8], reply: &mut Reply) -> bool {
    match method.interface().map(|interface| interface.model()) {
        Some(Model::KeyValue) => keyvalue_logged::reply_from_log(method, request, reply),
        Some(Model::Queue | Model::PubSub) => message_reply(place, method, request, reply),
        Some(Model::Stream) => append_reply(method, request, reply),
        _ => false,
    }
}

/// Where a record stands only the backend knows, and so whether a partition of the caller's choice is there.
fn append_reply(method: Method, request: &[u8], reply: &mut Reply) -> bool {
    match method {
        Method::STREAM_APPEND => {
            let Ok(request) = AppendRequest::decode(request) else { return false };
            if request.expected_last.is_some() {
                return false;
            }
            prost::Message::encode_raw(&stream::AppendResponse::default(), &mut reply.head);
        }
        Method::STREAM_APPEND_BATCH => {
            let Ok(request) = AppendBatchRequest::decode(request) else { return false };
            let results = vec![stream::AppendBatchResult::default(); request.records.len()];
            prost::Message::encode_raw(&stream::AppendBatchResponse { results }, &mut reply.head);
        }
        _ => return false,
    }
    true
}

/// A message's identity derives from its record: that is all there is to say.
fn message_reply(place: LogPlace, method: Method, request: &[u8], reply: &mut Reply) -> bool {
    let revision = Revision::logged(place.lsn);
    let id = |index| message_id_of(place.namespace, place.log_time_us, revision, index);
    let message_id = || id(0);
    macro_rules! encode {
        ($answer:expr) => {
            prost::Message::encode_raw(&$answer, &mut reply.head)
        };
    }
    match method {
        Method::QUEUE_SEND => encode!(queue::SendResponse { message_id: message_id() }),
        Method::QUEUE_SEND_WITH_PRIORITY => {
            encode!(queue::SendWithPriorityResponse { message_id: message_id() });
        }
        Method::QUEUE_SEND_DELAYED => {
            encode!(queue::SendDelayedResponse { message_id: message_id() });
        }
        Method::QUEUE_SEND_BATCH => {
            let Ok(request) = SendBatchRequest::decode(request) else { return false };
            let result = |index| queue::SendBatchResult { status: None, message_id: id(index) };
            let results = (0..request.messages.len()).map(result).collect();
            encode!(queue::SendBatchResponse { results });
        }
        Method::PUBSUB_PUBLISH => {
            encode!(pubsub::PublishResponse { message_id: message_id(), position: None });
        }
        Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES => {
            let message_id = message_id();
            encode!(pubsub::PublishWithAttributesResponse { message_id, position: None });
        }
        Method::PUBSUB_PUBLISH_ORDERED => {
            encode!(pubsub::PublishOrderedResponse { message_id: message_id(), position: None });
        }
        Method::PUBSUB_PUBLISH_PERSISTENT => {
            encode!(pubsub::PublishPersistentResponse { message_id: message_id(), position: None });
        }
        Method::PUBSUB_PUBLISH_BATCH => {
            let Ok(request) = PublishBatchRequest::decode(request) else { return false };
            let result = |index| pubsub::PublishBatchResult {
                message_id: id(index),
                ..pubsub::PublishBatchResult::default()
            };
            let results = (0..request.messages.len()).map(result).collect();
            encode!(pubsub::PublishBatchResponse { results });
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::message::message_id;
    use crate::{Context, Limits};
    use prost::Message as _;

    #[test]
    fn the_identity_that_is_told_is_the_one_that_the_backend_is_given() {
        let limits = Limits::default();
        let context = Context {
            namespace: 7,
            namespace_name: "jobs",
            partition: 0,
            now_us: 1_700_000_000_123_456,
            revision: Revision::logged(9),
            limits: &limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        };
        let place = LogPlace { namespace: 7, log_time_us: context.now_us, lsn: 9 };
        let mut reply = Reply::default();
        assert!(reply_from_log(place, Method::QUEUE_SEND, b"", &mut reply));
        let told = queue::SendResponse::decode(&reply.head[..]).unwrap();
        assert_eq!(told.message_id, message_id(&context, 0));
        let messages = vec![Default::default(); 2];
        let request = queue::SendBatchRequest { messages, ..Default::default() }.encode_to_vec();
        let mut reply = Reply::default();
        assert!(reply_from_log(place, Method::QUEUE_SEND_BATCH, &request, &mut reply));
        let told = queue::SendBatchResponse::decode(&reply.head[..]).unwrap();
        assert_eq!(told.results[1].message_id, message_id(&context, 1));
        assert!(!answers_from_log(Method::QUEUE_RECEIVE, b""));
        assert!(!answers_from_log(Method::QUEUE_ACKNOWLEDGE, b""));
    }

    #[test]
    fn where_an_appended_record_stands_is_left_to_the_backend() {
        let expected_last = Some(Default::default());
        let conditional = stream::AppendRequest { expected_last, ..Default::default() };
        assert!(!answers_from_log(Method::STREAM_APPEND, &conditional.encode_to_vec()));
        assert!(!answers_from_log(Method::STREAM_APPEND_TO_PARTITION, b""));
        assert!(!answers_from_log(Method::STREAM_SET_RETENTION, b""));
        let mut reply = Reply::default();
        assert!(reply_from_log(LogPlace::default(), Method::STREAM_APPEND, b"", &mut reply));
        assert_eq!(stream::AppendResponse::decode(&reply.head[..]).unwrap().position, None);
        let records = vec![Default::default(); 3];
        let request = stream::AppendBatchRequest { records, ..Default::default() }.encode_to_vec();
        let mut reply = Reply::default();
        let method = Method::STREAM_APPEND_BATCH;
        assert!(reply_from_log(LogPlace::default(), method, &request, &mut reply));
        let told = stream::AppendBatchResponse::decode(&reply.head[..]).unwrap();
        assert_eq!(told.results, vec![stream::AppendBatchResult::default(); 3]);
    }
}
