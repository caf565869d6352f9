//! What a namespace does not offer is refused, before any backend sees it.

use prism_proto::catalogue::Method;
use prism_proto::wire;

use super::caller::Caller;
use super::{Client, cases};
use crate::error::Kind;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, offered: [what_is_not_offered_is_refused]);
}

async fn what_is_not_offered_is_refused<C: Client>(caller: &Caller<'_, C>) {
    let offers = caller.client.offers();
    for method in Method::all().filter(|method| !method.offered_by(offers)) {
        let mut request = Vec::new();
        wire::put_bytes(&mut request, 1, caller.client.namespace().as_bytes());
        let failure = if method.server_streaming() || method.client_streaming() {
            caller.client.stream(method, request, 1).await.map(drop)
        } else {
            caller.client.unary(method, request).await.map(drop)
        };
        let failure = failure.expect_err(method.path());
        assert_eq!(failure.code, Kind::Unimplemented.grpc_code(), "{method:?}: {failure:?}");
        assert_eq!(failure.reason, "INTERFACE_NOT_OFFERED", "{method:?}: {failure:?}");
    }
}
