//! Calls of KeyValue as tests write them, over `prism_io`'s client, with statuses unpacked.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use prism_io::client::{Client, Failure};
use prism_io::grpc::{Code, Limits, Metadata};
use prism_io::tls::Connector;
use prism_proto::catalogue::Method;
use prism_proto::google::rpc::{BadRequest, ErrorInfo, QuotaFailure, RetryInfo, Status};
use prism_proto::prism::keyvalue::v1 as kv;
use prism_proto::rpc::detail;
use prost::Message;

use super::{PATIENCE, Server};

/// Metadata of a request.
pub type Fields<'a> = &'a [(&'a str, &'a [u8])];

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub message: String,
    /// `ErrorInfo.metadata`.
    pub facts: Vec<(String, String)>,
    /// The fields of `BadRequest`.
    pub fields: Vec<String>,
    /// `RetryInfo`.
    pub retry: Option<Duration>,
    /// Subject and description of each violation of `QuotaFailure`.
    pub quotas: Vec<(String, String)>,
    pub trailers: Metadata,
}

impl Refusal {
    /// Whether the log has no room, be it for a moment: the next segment is still being made, or the disk is slow.
    pub fn is_for_want_of_log(&self) -> bool {
        self.code == Code::ResourceExhausted
            && ["WAL_FULL", "WAL_BUSY"].contains(&self.reason.as_str())
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = Status::decode(failure.details.as_slice()).expect("details are a Status");
        let info: ErrorInfo = detail(&status).unwrap_or_default();
        let retry: Option<RetryInfo> = detail(&status);
        let bad: BadRequest = detail(&status).unwrap_or_default();
        let quota: QuotaFailure = detail(&status).unwrap_or_default();
        let quotas = quota.violations.into_iter();
        if !failure.details.is_empty() {
            assert_eq!(info.domain, "prism", "{status:?}");
            assert_eq!(status.code, i32::from(failure.code.number()));
        }
        let mut facts: Vec<_> = info.metadata.into_iter().collect();
        facts.sort();
        Refusal {
            code: failure.code,
            reason: info.reason,
            message: failure.message,
            facts,
            fields: bad.field_violations.into_iter().map(|violation| violation.field).collect(),
            retry: retry
                .and_then(|retry| retry.retry_delay)
                .map(|delay| Duration::new(delay.seconds as u64, delay.nanos as u32)),
            quotas: quotas.map(|violation| (violation.subject, violation.description)).collect(),
            trailers: failure.trailers,
        }
    }
}

/// One connection to one namespace.
#[derive(Clone)]
pub struct Caller {
    pub client: Client,
    pub namespace: String,
}

/// A trailer as text.
pub fn trailer<'a>(trailers: &'a Metadata, name: &str) -> Option<&'a str> {
    trailers.get(name).map(|value| std::str::from_utf8(value).expect("ASCII"))
}

impl Caller {
    /// A new connection for the namespace `keyvalue`.
    pub async fn connect(server: &Server) -> Self {
        Self::to(server.listen, "keyvalue").await
    }

    /// A new connection for a namespace.
    pub async fn to(address: SocketAddr, namespace: &str) -> Self {
        let client = Client::connect(address).await.expect("the server listens");
        Self { client, namespace: namespace.to_owned() }
    }

    /// A new connection over TLS to a server that calls itself `localhost`.
    pub async fn secured(address: SocketAddr, connector: &Connector, namespace: &str) -> Self {
        let limits = Limits::default();
        let client = Client::connect_secured(address, connector, "localhost", &limits).await;
        Self { client: client.expect("the server is trusted"), namespace: namespace.to_owned() }
    }

    /// The same connection for another namespace.
    pub fn of(&self, namespace: &str) -> Self {
        Self { client: self.client.clone(), namespace: namespace.to_owned() }
    }

    /// A unary call with the message as it is.
    pub async fn raw(
        &self,
        path: &str,
        metadata: Fields<'_>,
        message: &[u8],
    ) -> Result<(Bytes, Metadata), Refusal> {
        match self.client.unary(path, metadata, message, PATIENCE).await {
            Ok(reply) => Ok((reply.message, reply.trailers)),
            Err(failure) => Err(failure.into()),
        }
    }

    /// A unary call: the answer and its trailers.
    pub async fn call<Response: Message + Default>(
        &self,
        method: Method,
        metadata: Fields<'_>,
        request: &impl Message,
    ) -> Result<(Response, Metadata), Refusal> {
        let (message, trailers) =
            self.raw(method.path(), metadata, &request.encode_to_vec()).await?;
        Ok((Response::decode(message).expect("a valid answer"), trailers))
    }

    pub fn set_request(&self, key: &str, value: &[u8]) -> kv::SetRequest {
        kv::SetRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned(),
            value: Bytes::copy_from_slice(value),
            ..Default::default()
        }
    }

    pub async fn try_set(
        &self,
        metadata: Fields<'_>,
        request: &kv::SetRequest,
    ) -> Result<(kv::SetResponse, Metadata), Refusal> {
        self.call(Method::KEYVALUE_SET, metadata, request).await
    }

    /// Stores a value; the trailers.
    pub async fn set(&self, key: &str, value: &[u8]) -> Metadata {
        let stored = self.try_set(&[], &self.set_request(key, value)).await;
        let (answer, trailers) = stored.unwrap_or_else(|refusal| panic!("set {key}: {refusal:?}"));
        assert!(answer.applied);
        trailers
    }

    /// Stores a value that may come faster than the log makes new segments: repeats the call as its refusals ask for.
    pub async fn set_when_there_is_room(&self, key: &str, value: &[u8]) {
        let request = self.set_request(key, value);
        let stored = async {
            while let Err(refusal) = self.try_set(&[], &request).await {
                assert!(refusal.is_for_want_of_log(), "set {key}: {refusal:?}");
                prism_io::rt::yield_now().await;
            }
        };
        let in_time = prism_io::rt::timeout(PATIENCE, stored).await;
        in_time.expect("the log has room in time");
    }

    pub async fn try_get(
        &self,
        metadata: Fields<'_>,
        key: &str,
    ) -> Result<(kv::GetResponse, Metadata), Refusal> {
        let request = kv::GetRequest { namespace: self.namespace.clone(), key: key.to_owned() };
        self.call(Method::KEYVALUE_GET, metadata, &request).await
    }

    /// The value of a key.
    pub async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.try_get(&[], key).await;
        let (answer, _) = found.unwrap_or_else(|refusal| panic!("get {key}: {refusal:?}"));
        assert_eq!(answer.found, answer.entry.is_some());
        answer.entry.map(|entry| entry.value.to_vec())
    }

    /// The version of a key's value.
    pub async fn version(&self, key: &str) -> Option<Vec<u8>> {
        let (answer, _) = self.try_get(&[], key).await.expect("readable");
        answer.entry.and_then(|entry| entry.version).map(|version| version.to_vec())
    }

    pub async fn delete(&self, key: &str) {
        let request = kv::DeleteRequest { namespace: self.namespace.clone(), key: key.to_owned() };
        let answer = self.call::<kv::DeleteResponse>(Method::KEYVALUE_DELETE, &[], &request).await;
        answer.expect("deleted");
    }

    /// How long a key has left to live.
    pub async fn ttl(&self, key: &str) -> Option<Duration> {
        let request = kv::GetTtlRequest { namespace: self.namespace.clone(), key: key.to_owned() };
        let answer = self.call::<kv::GetTtlResponse>(Method::KEYVALUE_GET_TTL, &[], &request).await;
        let left = answer.expect("readable").0.ttl?;
        Some(Duration::new(left.seconds as u64, left.nanos as u32))
    }

    /// A compare-and-swap from `expected` (absent: the key must not exist).
    pub fn swap_request(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> kv::CompareAndSwapRequest {
        use kv::compare_and_swap_request::Expected;
        kv::CompareAndSwapRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned(),
            expected: Some(match expected {
                None => Expected::ExpectedAbsent(()),
                Some(value) => Expected::ExpectedValue(Bytes::copy_from_slice(value)),
            }),
            value: Bytes::copy_from_slice(value),
            ..Default::default()
        }
    }

    pub async fn try_swap(
        &self,
        metadata: Fields<'_>,
        request: &kv::CompareAndSwapRequest,
    ) -> Result<(kv::CompareAndSwapResponse, Metadata), Refusal> {
        self.call(Method::KEYVALUE_COMPARE_AND_SWAP, metadata, request).await
    }
}
