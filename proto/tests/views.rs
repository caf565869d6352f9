//! Views agree with prost on every input: same verdict, same content.
//!
//! Inputs are made from the descriptors: fields in any order, twice, unknown,
//! with the wrong wire type, cut off, with a byte changed. proptest prints the
//! smallest failing input and keeps its seed.

use std::sync::OnceLock;

use prism_proto::prism::keyvalue::v1 as full;
use prism_proto::prism::r#type::v1 as full_types;
use prism_proto::view::{keyvalue as view, types as view_types};
use prism_proto::wire::{self, DecodeError, WireType};
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

/// What random choices are drawn from; zeros when it is used up.
struct Entropy<'a>(&'a [u8]);

impl Entropy<'_> {
    fn below(&mut self, bound: usize) -> usize {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(byte) % bound
    }

    fn varint(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(3) as u64,
            1 => self.below(256) as u64,
            2 => u64::from_le_bytes(std::array::from_fn(|_| self.below(256) as u8)),
            _ => u64::MAX << self.below(64),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        const WORDS: [&[u8]; 6] =
            [b"", b"k", b"orders", "gr\u{fc}n".as_bytes(), b"\xff\xfe", b"\0"];
        let word = WORDS[self.below(WORDS.len())];
        if self.below(8) == 7 { word.repeat(60) } else { word.to_vec() }
    }
}

/// A random message of this kind: mostly valid, often strange.
fn soup(message: &MessageDescriptor, entropy: &mut Entropy<'_>, depth: usize, out: &mut Vec<u8>) {
    let fields: Vec<_> = message.fields().collect();
    for _ in 0..entropy.below(7) {
        let choice = entropy.below(fields.len() + 1);
        let Some(field) = fields.get(choice).filter(|_| entropy.below(16) != 15) else {
            strange_field(entropy, out);
            continue;
        };
        match field.kind() {
            Kind::String | Kind::Bytes => wire::put_bytes(out, field.number(), &entropy.bytes()),
            Kind::Message(inner) => {
                let mut bytes = Vec::new();
                if depth < 6 {
                    soup(&inner, entropy, depth + 1, &mut bytes);
                }
                wire::put_bytes(out, field.number(), &bytes);
            }
            _ => {
                wire::put_tag(out, field.number(), WireType::Varint);
                wire::put_varint(out, entropy.varint());
            }
        }
    }
}

/// A field that the message may not have, or not with this wire type.
fn strange_field(entropy: &mut Entropy<'_>, out: &mut Vec<u8>) {
    let number = [20, 1, 2, 3, 5, 15, 1000, 536_870_911][entropy.below(8)];
    match entropy.below(5) {
        0 => {
            wire::put_tag(out, number, WireType::Varint);
            wire::put_varint(out, entropy.varint());
        }
        1 => {
            wire::put_tag(out, number, WireType::Fixed32);
            out.extend_from_slice(&[1; 4]);
        }
        2 => {
            wire::put_tag(out, number, WireType::Fixed64);
            out.extend_from_slice(&[1; 8]);
        }
        3 => wire::put_bytes(out, number, &entropy.bytes()),
        _ => {
            wire::put_tag(out, number, WireType::StartGroup);
            wire::put_bytes(out, 3, &entropy.bytes());
            wire::put_tag(out, number, WireType::EndGroup);
        }
    }
}

/// What both made of one input, for the comparison of content.
fn same_verdict<F, V>(
    full: Result<F, prost::DecodeError>,
    view: Result<V, DecodeError>,
) -> Option<(F, V)> {
    match (full, view) {
        (Ok(full), Ok(view)) => Some((full, view)),
        (Err(_), Err(_)) => None,
        // The one documented difference.
        (Ok(_), Err(DecodeError::Duplicate { .. })) => None,
        (Ok(_), Err(error)) => panic!("prost accepts, the view says: {error}"),
        (Err(error), Ok(_)) => panic!("the view accepts, prost says: {error}"),
    }
}

/// A view that can be encoded must say in its encoding what prost has read.
macro_rules! encoded_alike {
    ($full:expr, $view:expr) => {{
        let (full, view) = ($full, $view);
        let mut out = b"before".to_vec();
        view.encode(&mut out);
        let encoded = &out[6..];
        assert_eq!(encoded.len(), view.encoded_len());
        assert_eq!(encoded.len(), full.encoded_len());
        decode_like(full, encoded)
    }};
}

fn decode_like<F: Message + Default + PartialEq + std::fmt::Debug>(full: &F, encoded: &[u8]) {
    assert_eq!(&F::decode(encoded).expect("a view encodes what can be decoded"), full);
}

macro_rules! check_encodable {
    ($bytes:expr, $($name:ident)*) => {$({
        if let Some((full, view)) =
            same_verdict(full::$name::decode($bytes), view::$name::decode($bytes))
        {
            encoded_alike!(&full, &view);
        }
    })*};
}

fn check(bytes: &[u8]) {
    check_encodable!(bytes,
        GetRequest SetRequest DeleteRequest ExistsRequest ScanRequest ScanKeysRequest
        CountRequest ExpireRequest GetTtlRequest PersistRequest BatchSetItem
        CompareAndSwapRequest CompareAndDeleteRequest
        GetResponse SetResponse DeleteResponse ExistsResponse CountResponse ExpireResponse
        GetTtlResponse PersistResponse CompareAndSwapResponse CompareAndDeleteResponse);

    if let Some((full, view)) =
        same_verdict(full::TransactRequest::decode(bytes), view::TransactRequest::decode(bytes))
    {
        assert_eq!(view.namespace, full.namespace);
        assert_eq!(view.conditions.len(), full.conditions.len());
        assert_eq!(view.operations.iter().count(), full.operations.len());
        for (full, view) in full.conditions.iter().zip(view.conditions) {
            encoded_alike!(full, view);
        }
        for (full, view) in full.operations.iter().zip(view.operations) {
            encoded_alike!(full, view);
        }
    }
    if let Some((full, view)) =
        same_verdict(full::BatchSetRequest::decode(bytes), view::BatchSetRequest::decode(bytes))
    {
        assert_eq!(view.items.iter().count(), full.items.len());
        for (full, view) in full.items.iter().zip(view.items) {
            encoded_alike!(full, view);
        }
    }
    if let Some((full, view)) =
        same_verdict(full::BatchGetRequest::decode(bytes), view::BatchGetRequest::decode(bytes))
    {
        assert!(view.keys.iter().eq(full.keys.iter().map(String::as_str)));
    }
    if let Some((full, view)) = same_verdict(
        full::BatchDeleteRequest::decode(bytes),
        view::BatchDeleteRequest::decode(bytes),
    ) {
        assert!(view.keys.iter().eq(full.keys.iter().map(String::as_str)));
    }
    if let Some((full, view)) =
        same_verdict(full::ScanResponse::decode(bytes), view::ScanResponse::decode(bytes))
    {
        assert_eq!(view.next_page_token, full.next_page_token);
        for (full, view) in full.entries.iter().zip(view.entries) {
            encoded_alike!(full, view);
        }
    }
    if let Some((full, view)) =
        same_verdict(full::TransactResponse::decode(bytes), view::TransactResponse::decode(bytes))
    {
        assert_eq!(view.committed, full.committed);
        for (full, view) in full.failures.iter().zip(view.failures) {
            encoded_alike!(full, view);
        }
    }
    if let Some((full, view)) =
        same_verdict(full::BatchGetResponse::decode(bytes), view::BatchGetResponse::decode(bytes))
    {
        for (full, view) in full.results.iter().zip(view.results) {
            assert_eq!(view.found, full.found);
            assert_eq!(view.status.map(|status| status.code), full.status.as_ref().map(|s| s.code));
            assert_eq!(
                view.entry.map(|entry| entry.value),
                full.entry.as_ref().map(|e| &e.value[..])
            );
        }
    }

    // The router sees what the decoder sees, or refuses.
    if let (Ok(route), Ok(view)) = (wire::route(bytes, Some(2)), view::GetRequest::decode(bytes)) {
        let seen = (view.namespace.as_bytes(), view.key.as_bytes());
        assert_eq!((route.namespace, route.key), seen);
        assert_eq!(wire::namespace_of(bytes), Ok(view.namespace));
    }
}

fn messages() -> &'static [MessageDescriptor] {
    static MESSAGES: OnceLock<Vec<MessageDescriptor>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let pool = DescriptorPool::decode(prism_proto::descriptors()).expect("descriptors");
        pool.all_messages()
            .filter(|message| message.package_name() == "prism.keyvalue.v1")
            .collect()
    })
}

/// Of inputs made for a Set, some are refused, but not most: both verdicts are tested.
#[test]
fn inputs_are_mostly_valid() {
    let set = messages().iter().find(|message| message.name() == "SetRequest").expect("there");
    let mut state = 1u64;
    let valid = (0..1_000).filter(|_| {
        let entropy: Vec<u8> = (0..160)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let mut bytes = Vec::new();
        soup(set, &mut Entropy(&entropy), 0, &mut bytes);
        view::SetRequest::decode(&bytes).is_ok()
    });
    let valid = valid.count();
    assert!((300..900).contains(&valid), "{valid} of 1000");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn views_agree_with_prost(
        which in any::<prop::sample::Index>(),
        entropy in prop::collection::vec(any::<u8>(), 0..160),
        change in any::<(prop::sample::Index, u8)>(),
    ) {
        let messages = messages();
        let mut bytes = Vec::new();
        soup(which.get(messages), &mut Entropy(&entropy), 0, &mut bytes);
        check(&bytes);
        for end in 0..bytes.len() {
            check(&bytes[..end]);
        }
        if !bytes.is_empty() {
            let index = change.0.index(bytes.len());
            bytes[index] = change.1;
            check(&bytes);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        check(&bytes);
    }
}

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
    assert_eq!((read.namespace, read.key, read.value), ("orders", "k", b"value".as_slice()));
    assert_eq!(read.ttl.map(|ttl| (ttl.seconds, ttl.nanos)), Some((3, 4)));
    assert_eq!(read.only_if(), Some(full::SetCondition::Exists));
    assert_eq!(view::SetRequest { only_if: 77, ..read }.only_if(), None);
    let mut out = Vec::new();
    read.encode(&mut out);
    assert_eq!(out, encoded);
}

#[test]
fn a_head_is_everything_but_the_payload() {
    let value = vec![7; 100_000];
    let entry = view_types::Entry { version: Some(b"v1"), value: &value, ..Default::default() };
    let reply = view::GetResponse { found: true, entry: Some(entry) };
    let mut head = Vec::new();
    let payload = reply.encode_head(&mut head);
    assert_eq!(payload.as_ptr(), value.as_ptr());
    assert_eq!(head.len() + payload.len(), reply.encoded_len());
    let whole = full::GetResponse::decode([head.as_slice(), payload].concat().as_slice());
    let expected = full_types::Entry {
        version: Some(bytes::Bytes::from_static(b"v1")),
        value: value.clone().into(),
        ..Default::default()
    };
    assert_eq!(whole.expect("valid").entry, Some(expected));

    let mut head = Vec::new();
    let missing = view::GetResponse { found: false, entry: None };
    assert!(missing.encode_head(&mut head).is_empty() && head.is_empty());
}

#[test]
fn a_message_given_twice_is_merged() {
    let mut bytes = Vec::new();
    wire::put_bytes(&mut bytes, 3, &[0x08, 5]);
    wire::put_bytes(&mut bytes, 3, &[0x10, 6]);
    let read = view::SetRequest::decode(&bytes).expect("valid");
    assert_eq!(read.ttl.map(|ttl| (ttl.seconds, ttl.nanos)), Some((5, 6)));
}
