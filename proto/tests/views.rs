//! Views agree with prost, byte for byte and error for error.

use prism_proto::prism::keyvalue::v1 as full;
use prism_proto::view::keyvalue as view;
use prost::Message;

#[test]
fn a_set_reads_the_same_both_ways() {
    let request = full::SetRequest {
        namespace: "orders".into(),
        key: "k".into(),
        ttl: Some(prost_types::Duration { seconds: 3, nanos: 4 }),
        keep_ttl: true,
        only_if: 2,
        return_previous: true,
        value: bytes::Bytes::from_static(b"value"),
    };
    let encoded = request.encode_to_vec();
    let read = view::SetRequest::decode(&encoded).expect("valid");
    assert_eq!(read.namespace, "orders");
    assert_eq!(read.value, b"value");
    assert_eq!(read.only_if(), Some(full::SetCondition::Exists));
    let mut out = Vec::new();
    read.encode(&mut out);
    assert_eq!(out, encoded);
}
