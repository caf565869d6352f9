//! Calls as the cases write them: typed, in one namespace, with keys of their own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prism_proto::catalogue::Method;
use prism_proto::google::rpc::{ErrorInfo, Status};
use prism_proto::prism::keyvalue::v1::{
    CountRequest, CountResponse, DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse,
    ExpireRequest, ExpireResponse, GetRequest, GetResponse, GetTtlRequest, GetTtlResponse,
    ScanKeysRequest, ScanKeysResponse, ScanRequest, ScanResponse, SetRequest, SetResponse,
    count_request, expire_request, scan_keys_request, scan_request,
};
use prism_proto::prism::r#type::v1::Entry;
use prism_proto::rpc::detail;
use prost::Message;
use prost_types::Duration;

use super::{Client, Failure};
use crate::error::Kind;

/// Which keys a scan or count is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Select<'a> {
    Prefix(&'a str),
    Glob(&'a str),
}

/// A client, and the case that calls through it.
pub(super) struct Caller<'c, C> {
    pub(super) client: &'c C,
    prefix: String,
    number: String,
}

/// Counts the callers; two of them never use the same keys, also not in another process.
static CALLERS: AtomicU64 = AtomicU64::new(0);

impl<'c, C: Client> Caller<'c, C> {
    pub(super) fn new(client: &'c C, case: &'static str) -> Self {
        let since = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
        let count = CALLERS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{{{case} {since:x} {count}}}:");
        Caller { client, prefix, number: format!("{since:x}-{count}") }
    }

    pub(super) fn namespace(&self) -> String {
        self.client.namespace().to_owned()
    }

    /// A key that no other case uses. All keys of a case are of one partition.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name of a queue, topic, stream or group that no other case uses.
    pub(super) fn name(&self, name: &str) -> String {
        format!("c{}.{name}", self.number)
    }

    /// What the keys of this case, and no other, begin with.
    pub(super) fn prefix(&self) -> String {
        self.prefix.clone()
    }

    pub(super) async fn call<Response: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
    ) -> Result<Response, Failure> {
        let bytes = self.client.unary(method, request.encode_to_vec()).await?;
        Ok(Response::decode(bytes).expect("the reply is a valid message"))
    }

    pub(super) async fn pages<Response: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
        pages_max: usize,
    ) -> Result<Vec<Response>, Failure> {
        let pages = self.client.stream(method, request.encode_to_vec(), pages_max).await?;
        Ok(pages.into_iter().map(|page| Response::decode(page).expect("a valid message")).collect())
    }

    pub(super) fn set_request(&self, key: &str, value: impl Into<Vec<u8>>) -> SetRequest {
        SetRequest {
            namespace: self.namespace(),
            key: key.to_owned(),
            value: value.into().into(),
            ..SetRequest::default()
        }
    }

    pub(super) async fn try_set(&self, request: &SetRequest) -> Result<SetResponse, Failure> {
        self.call(Method::KEYVALUE_SET, request).await
    }

    pub(super) async fn set(&self, key: &str, value: impl Into<Vec<u8>>) {
        let response = self.try_set(&self.set_request(key, value)).await.unwrap();
        assert!(response.applied);
    }

    pub(super) async fn set_ttl(&self, key: &str, value: &str, ttl_ms: u64) {
        let request = SetRequest { ttl: Some(ms(ttl_ms)), ..self.set_request(key, value) };
        assert!(self.try_set(&request).await.unwrap().applied);
    }

    pub(super) async fn try_get(&self, key: &str) -> Result<GetResponse, Failure> {
        let request = GetRequest { namespace: self.namespace(), key: key.to_owned() };
        self.call(Method::KEYVALUE_GET, &request).await
    }

    pub(super) async fn get(&self, key: &str) -> Option<Entry> {
        let response = self.try_get(key).await.unwrap();
        assert_eq!(response.found, response.entry.is_some());
        response.entry
    }

    pub(super) async fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.get(key).await.map(|entry| entry.value.to_vec())
    }

    pub(super) async fn version(&self, key: &str) -> Option<Vec<u8>> {
        self.get(key).await.expect("the key exists").version.map(|version| version.to_vec())
    }

    pub(super) async fn delete(&self, key: &str) -> Option<bool> {
        let request = DeleteRequest { namespace: self.namespace(), key: key.to_owned() };
        let response: DeleteResponse = self.call(Method::KEYVALUE_DELETE, &request).await.unwrap();
        response.existed
    }

    pub(super) async fn exists(&self, key: &str) -> bool {
        let request = ExistsRequest { namespace: self.namespace(), key: key.to_owned() };
        let response: ExistsResponse = self.call(Method::KEYVALUE_EXISTS, &request).await.unwrap();
        response.exists
    }

    pub(super) async fn expire(&self, key: &str, expiry: expire_request::Expiry) -> Option<bool> {
        let (namespace, key) = (self.namespace(), key.to_owned());
        let request = ExpireRequest { namespace, key, expiry: Some(expiry) };
        let response: ExpireResponse = self.call(Method::KEYVALUE_EXPIRE, &request).await.unwrap();
        response.existed
    }

    pub(super) async fn get_ttl(&self, key: &str) -> GetTtlResponse {
        let request = GetTtlRequest { namespace: self.namespace(), key: key.to_owned() };
        self.call(Method::KEYVALUE_GET_TTL, &request).await.unwrap()
    }

    pub(super) fn scan_request(&self, select: Select<'_>) -> ScanRequest {
        ScanRequest {
            namespace: self.namespace(),
            selection: Some(match select {
                Select::Prefix(prefix) => scan_request::Selection::Prefix(prefix.to_owned()),
                Select::Glob(glob) => scan_request::Selection::Glob(glob.to_owned()),
            }),
            ..ScanRequest::default()
        }
    }

    /// All entries that match, from one stream.
    pub(super) async fn scan(&self, select: Select<'_>) -> Vec<Entry> {
        let request = self.scan_request(select);
        let pages: Vec<ScanResponse> =
            self.pages(Method::KEYVALUE_SCAN, &request, usize::MAX).await.unwrap();
        let last = pages.last().expect("a scan has at least one page");
        assert!(last.next_page_token.is_empty(), "the last page has no token");
        pages.into_iter().flat_map(|page| page.entries).collect()
    }

    /// All keys that match, in order.
    pub(super) async fn scan_keys(&self, select: Select<'_>) -> Vec<String> {
        let selection = match select {
            Select::Prefix(prefix) => scan_keys_request::Selection::Prefix(prefix.to_owned()),
            Select::Glob(glob) => scan_keys_request::Selection::Glob(glob.to_owned()),
        };
        let request = ScanKeysRequest {
            namespace: self.namespace(),
            selection: Some(selection),
            ..ScanKeysRequest::default()
        };
        let pages: Vec<ScanKeysResponse> =
            self.pages(Method::KEYVALUE_SCAN_KEYS, &request, usize::MAX).await.unwrap();
        let mut keys: Vec<String> = pages.into_iter().flat_map(|page| page.keys).collect();
        keys.sort();
        keys
    }

    pub(super) async fn count(&self, select: Select<'_>, limit: u64) -> CountResponse {
        let selection = Some(match select {
            Select::Prefix(prefix) => count_request::Selection::Prefix(prefix.to_owned()),
            Select::Glob(glob) => count_request::Selection::Glob(glob.to_owned()),
        });
        let request = CountRequest { namespace: self.namespace(), selection, limit };
        self.call(Method::KEYVALUE_COUNT, &request).await.unwrap()
    }
}

/// Why one item of a batch was refused; empty where it was not.
pub(super) fn reason(status: Option<Status>) -> String {
    let Some(status) = status else { return String::new() };
    let info: ErrorInfo = detail(&status).expect("a status says its reason");
    info.reason
}

/// A moment in milliseconds since the epoch.
pub(super) fn at_ms(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.expect("a moment");
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

/// So many milliseconds as a `google.protobuf.Duration`.
pub(super) fn ms(ms: u64) -> Duration {
    Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// So many bytes that differ from each other.
pub(super) fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8).collect()
}

/// What only a backend knows may be absent; what is there is right.
pub(super) fn assert_if_known<T: PartialEq + std::fmt::Debug>(known: Option<T>, expected: T) {
    if let Some(known) = known {
        assert_eq!(known, expected);
    }
}

/// It was refused as invalid, because of this field.
pub(super) fn assert_field<T: std::fmt::Debug>(
    result: Result<T, Failure>,
    reason: &str,
    field: &str,
) {
    let failure = result.expect_err("it is refused");
    assert_eq!(failure.code, Kind::InvalidArgument.grpc_code(), "{failure:?}");
    assert_eq!(failure.reason, reason, "{failure:?}");
    assert_eq!(failure.fields, [field], "{failure:?}");
}
