//! Cases of `keyvalue_basic`: Get, Set, Delete, Exists.

use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse, GetResponse, SetCondition,
    SetRequest,
};

use super::caller::{Caller, assert_field, assert_if_known, payload};
use super::{Client, Versions, cases};
use crate::error::Kind;
use crate::limits::KEY_BYTES_MAX;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_basic: [
        a_missing_key,
        set_then_get_then_delete,
        a_set_replaces,
        values_of_every_size,
        the_longest_value,
        keys_at_their_limits,
        invalid_keys,
        keys_that_look_alike,
        only_if_absent,
        only_if_exists,
        an_unknown_condition,
        return_previous,
        versions_change_and_never_come_back,
        a_malformed_request,
        an_unknown_field_is_ignored,
    ]);
}

async fn a_missing_key<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("missing");
    assert_eq!(caller.get(&key).await, None);
    assert!(!caller.exists(&key).await);
    assert_if_known(caller.delete(&key).await, false);
}

async fn set_then_get_then_delete<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    let entry = caller.get(&key).await.expect("it was set");
    assert_eq!(&entry.value[..], b"value");
    assert_eq!(entry.key, None, "the request named the key");
    assert_eq!(entry.expires_at, None);
    assert!(caller.exists(&key).await);
    assert_if_known(caller.delete(&key).await, true);
    assert_eq!(caller.get(&key).await, None);
    assert!(!caller.exists(&key).await);
    assert_if_known(caller.delete(&key).await, false);
}

async fn a_set_replaces<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    for value in ["first", "later", "shorter", "", "a longer value than any before"] {
        caller.set(&key, value).await;
        assert_eq!(caller.value(&key).await.unwrap(), value.as_bytes());
    }
}

async fn values_of_every_size<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    for bytes in [0, 1, 127, 128, 4_095, 4_096, 4_097, 65_536, 1 << 20, 70_000, 4_096, 16, 0] {
        let value = payload(bytes);
        caller.set(&key, value.clone()).await;
        assert_eq!(caller.value(&key).await.unwrap(), value, "{bytes} bytes");
        let other = caller.key(&format!("of {bytes} bytes"));
        caller.set(&other, value.clone()).await;
        assert_eq!(caller.value(&other).await.unwrap(), value, "{bytes} bytes");
    }
}

async fn the_longest_value<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let longest = payload(caller.client.limits().value_bytes_max());
    caller.set(&key, longest.clone()).await;
    assert_eq!(caller.value(&key).await.unwrap(), longest);
    let longer = caller.set_request(&key, payload(longest.len() + 1));
    assert_field(caller.try_set(&longer).await, "VALUE_TOO_LARGE", "value");
    assert_eq!(caller.value(&key).await.unwrap(), longest, "a refused Set has no effect");
}

async fn keys_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let longest = caller.key("") + &"k".repeat(KEY_BYTES_MAX);
    let keys = [
        "~".to_owned(),
        longest[..KEY_BYTES_MAX].to_owned(),
        caller.key("ключ/鍵/🔑"),
        caller.key("{tag}"),
        caller.key("}{"),
        caller.key(" spaces  and \"quotes\" and \\ and % and ' "),
        caller.key("*?[a-z]"),
        caller.key("\u{a0}\u{2028}\u{feff}"),
    ];
    for (number, key) in keys.iter().enumerate() {
        caller.set(key, format!("{number}")).await;
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(caller.value(key).await.unwrap(), format!("{number}").as_bytes(), "{key:?}");
        assert_if_known(caller.delete(key).await, true);
        assert!(!caller.exists(key).await);
    }
}

async fn invalid_keys<C: Client>(caller: &Caller<'_, C>) {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for key in ["", "a\nb", "a\0", "\u{7f}", "\u{9f}", &long] {
        let namespace = caller.namespace();
        assert_field(caller.try_get(key).await, "KEY_INVALID", "key");
        assert_field(caller.try_set(&caller.set_request(key, "v")).await, "KEY_INVALID", "key");
        let request = DeleteRequest { namespace: namespace.clone(), key: key.to_owned() };
        let deleted = caller.call::<DeleteResponse>(Method::KEYVALUE_DELETE, &request).await;
        assert_field(deleted, "KEY_INVALID", "key");
        let request = ExistsRequest { namespace, key: key.to_owned() };
        let exists = caller.call::<ExistsResponse>(Method::KEYVALUE_EXISTS, &request).await;
        assert_field(exists, "KEY_INVALID", "key");
    }
}

async fn keys_that_look_alike<C: Client>(caller: &Caller<'_, C>) {
    // Composed and decomposed, upper and lower case, with and without a blank at the end.
    let keys = ["\u{e9}", "e\u{301}", "a", "A", "a ", "а"].map(|name| caller.key(name));
    for key in &keys {
        caller.set(key, key.as_str()).await;
    }
    for key in &keys {
        assert_eq!(caller.value(key).await.unwrap(), key.as_bytes());
    }
}

async fn only_if_absent<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let absent = SetCondition::Absent as i32;
    let set = |value: &str| SetRequest { only_if: absent, ..caller.set_request(&key, value) };
    assert!(caller.try_set(&set("first")).await.unwrap().applied);
    let second = caller.try_set(&set("second")).await.unwrap();
    assert!(!second.applied);
    assert_eq!(second.version, None, "nothing was stored");
    assert_eq!(caller.value(&key).await.unwrap(), b"first");
    caller.delete(&key).await;
    assert!(caller.try_set(&set("third")).await.unwrap().applied);
    assert_eq!(caller.value(&key).await.unwrap(), b"third");
}

async fn only_if_exists<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let exists = SetCondition::Exists as i32;
    let set = |value: &str| SetRequest { only_if: exists, ..caller.set_request(&key, value) };
    assert!(!caller.try_set(&set("first")).await.unwrap().applied);
    assert_eq!(caller.get(&key).await, None);
    caller.set(&key, "second").await;
    assert!(caller.try_set(&set("third")).await.unwrap().applied);
    assert_eq!(caller.value(&key).await.unwrap(), b"third");
}

async fn an_unknown_condition<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let request = SetRequest { only_if: 99, ..caller.set_request(&key, "value") };
    assert_field(caller.try_set(&request).await, "CONDITION_UNKNOWN", "only_if");
    assert_eq!(caller.get(&key).await, None);
}

async fn return_previous<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let set = |value: Vec<u8>, only_if: SetCondition| SetRequest {
        return_previous: true,
        only_if: only_if as i32,
        ..caller.set_request(&key, value)
    };
    let any = SetCondition::Unspecified;
    let first = caller.try_set(&set(b"first".to_vec(), any)).await.unwrap();
    assert!(first.applied && first.previous.is_none());
    let large = payload(100_000);
    let second = caller.try_set(&set(large.clone(), any)).await.unwrap();
    assert_eq!(&second.previous.unwrap().value[..], b"first");
    let version = caller.version(&key).await;
    let third = caller.try_set(&set(payload(100_000), any)).await.unwrap().previous.unwrap();
    assert_eq!(third.value[..], large);
    assert_eq!(third.version.map(|version| version.to_vec()), version);
    let refused = caller.try_set(&set(b"no".to_vec(), SetCondition::Absent)).await.unwrap();
    assert!(!refused.applied);
    assert_eq!(refused.previous.unwrap().value[..], large, "also when nothing was stored");
}

async fn versions_change_and_never_come_back<C: Client>(caller: &Caller<'_, C>) {
    if caller.client.versions() != Versions::Revision {
        return;
    }
    let key = caller.key("a");
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        let response = caller.try_set(&caller.set_request(&key, "same")).await.unwrap();
        let version = caller.version(&key).await.expect("revisions are known");
        assert!(!version.is_empty());
        assert_eq!(caller.version(&key).await.as_ref(), Some(&version), "reading changes nothing");
        assert_if_known(response.version.map(|version| version.to_vec()), version.clone());
        assert!(seen.insert(version), "round {round}: a version came back");
        if round % 3 == 0 {
            caller.delete(&key).await;
        }
    }
}

async fn a_malformed_request<C: Client>(caller: &Caller<'_, C>) {
    let mut request = Vec::new();
    prism_proto::wire::put_bytes(&mut request, 1, caller.client.namespace().as_bytes());
    for broken in [&[0x12, 0x05, b'a'][..], &[0x12, 0x01, 0xff], &[0x10, 0x01], &[0x07]] {
        let bytes = [&request, broken].concat();
        let failure = caller.client.unary(Method::KEYVALUE_GET, bytes).await.expect_err("refused");
        assert_eq!(failure.code, Kind::InvalidArgument.grpc_code(), "{failure:?}");
    }
}

async fn an_unknown_field_is_ignored<C: Client>(caller: &Caller<'_, C>) {
    use prost::Message;
    let key = caller.key("a");
    let mut request = caller.set_request(&key, "value").encode_to_vec();
    prism_proto::wire::put_bytes(&mut request, 999, b"from the future");
    caller.client.unary(Method::KEYVALUE_SET, request).await.unwrap();
    let response: GetResponse = caller.try_get(&key).await.unwrap();
    assert_eq!(&response.entry.unwrap().value[..], b"value");
}
