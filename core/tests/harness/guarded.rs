//! A server that knows who calls: its requests and platform, and what becomes of calls.

use std::path::Path;

use super::tokens::{ISSUER, Signer};
use super::{Caller, Refusal, Setup, serve};

/// Two namespaces of keys and values, and one of streams.
pub const REQUESTS: &str = "namespace: orders
team: payments
client_api: keyvalue
access: {consumers: [{team: analytics, may: read}]}
---
namespace: sessions
team: web
client_api: keyvalue
---
namespace: facts
team: payments
client_api: stream
access: {consumers: [{team: analytics, may: read}]}
";

/// The status of a call whose caller nobody knows.
pub const UNAUTHENTICATED: u8 = 16;
/// The status of a call whose caller may not.
pub const PERMISSION_DENIED: u8 = 7;

/// Whose tokens are taken, who is who, and who may what.
pub fn platform(folder: &Path) -> String {
    format!(
        "tokens: [{{issuer: '{ISSUER}', audience: [prism], keys: {}, clock_skew: 5s}}]
identities:
  - {{id: 'spiffe://example.org/payments/*', team: payments}}
  - {{id: checkout, issuer: '{ISSUER}', team: payments, service: checkout}}
  - {{id: report, issuer: '{ISSUER}', team: analytics}}
grants: [{{service: checkout, namespace: 'sess*', may: read}}]
",
        folder.join("keys.json").display()
    )
}

/// A server that knows identities, with its files in a folder.
pub fn setup(folder: &Path, more: &str) -> Setup {
    let requests = folder.join("namespaces");
    std::fs::create_dir_all(&requests).unwrap();
    std::fs::write(requests.join("all.yaml"), REQUESTS).unwrap();
    std::fs::write(folder.join("keys.json"), Signer::new(1).keys()).unwrap();
    std::fs::write(folder.join("platform.yaml"), platform(folder)).unwrap();
    serve(folder).shards(2).config(&format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {}\nrequests: {}\n{more}",
        folder.join("platform.yaml").display(),
        requests.display()
    ))
}

/// The status with which a read and a write end.
pub async fn codes(caller: &Caller, token: &str) -> (u8, u8) {
    let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
    let metadata = if token.is_empty() { &[] } else { metadata };
    let read = caller.try_get(metadata, "key").await.err();
    let write = caller.try_set(metadata, &caller.set_request("key", b"value")).await.err();
    let code = |refusal: Option<Refusal>| refusal.map_or(0, |refusal| refusal.code as u8);
    (code(read), code(write))
}

/// A read and a write that are denied.
pub const DENIED: (u8, u8) = (PERMISSION_DENIED, PERMISSION_DENIED);
/// A read and a write of nobody.
pub const UNKNOWN: (u8, u8) = (UNAUTHENTICATED, UNAUTHENTICATED);
