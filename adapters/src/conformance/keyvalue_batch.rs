//! Cases of `keyvalue_batch`: BatchGet, BatchSet, BatchDelete.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::keyvalue::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchSetItem,
    BatchSetRequest, BatchSetResponse,
};

use super::caller::{Caller, assert_field, assert_if_known, ms, payload};
use super::{Client, Failure, cases};
use crate::error::Kind;
use crate::limits::BATCH_ITEMS_MAX;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_batch: [
        results_keep_their_order,
        batches_replace_and_remove,
        as_many_as_allowed,
        duplicate_keys,
        invalid_batches,
        times_to_live,
        a_reply_that_does_not_fit,
    ]);
}

fn item(key: &str, value: &str) -> BatchSetItem {
    BatchSetItem { key: key.to_owned(), value: value.to_owned().into(), ..BatchSetItem::default() }
}

async fn try_set<C: Client>(
    caller: &Caller<'_, C>,
    items: Vec<BatchSetItem>,
) -> Result<BatchSetResponse, Failure> {
    let request = BatchSetRequest { namespace: caller.namespace(), items };
    caller.call(Method::KEYVALUE_BATCH_SET, &request).await
}

async fn try_get<C: Client>(
    caller: &Caller<'_, C>,
    keys: Vec<String>,
) -> Result<BatchGetResponse, Failure> {
    let request = BatchGetRequest { namespace: caller.namespace(), keys };
    caller.call(Method::KEYVALUE_BATCH_GET, &request).await
}

async fn try_delete<C: Client>(
    caller: &Caller<'_, C>,
    keys: Vec<String>,
) -> Result<BatchDeleteResponse, Failure> {
    let request = BatchDeleteRequest { namespace: caller.namespace(), keys };
    caller.call(Method::KEYVALUE_BATCH_DELETE, &request).await
}

async fn results_keep_their_order<C: Client>(caller: &Caller<'_, C>) {
    let keys = ["z", "missing", "a", "empty"].map(|name| caller.key(name));
    let items = vec![item(&keys[0], "Z"), item(&keys[2], "A"), item(&keys[3], "")];
    let response = try_set(caller, items).await.unwrap();
    assert_eq!(response.results.len(), 3);
    assert!(response.results.iter().all(|result| result.status.is_none()));
    let version = response.results[1].version.as_ref().map(|version| version.to_vec());
    assert_if_known(version, caller.version(&keys[2]).await.unwrap_or_default());
    let response = try_get(caller, keys.to_vec()).await.unwrap();
    let values: Vec<Option<&[u8]>> = response
        .results
        .iter()
        .map(|result| {
            assert!(result.status.is_none());
            assert_eq!(result.found, result.entry.is_some());
            result.entry.as_ref().map(|entry| &entry.value[..])
        })
        .collect();
    assert_eq!(values, [Some(&b"Z"[..]), None, Some(b"A"), Some(b"")]);
    let single = caller.get(&keys[0]).await.unwrap();
    assert_eq!(response.results[0].entry.as_ref().unwrap().version, single.version);
}

async fn batches_replace_and_remove<C: Client>(caller: &Caller<'_, C>) {
    let keys = ["a", "b", "c"].map(|name| caller.key(name));
    caller.set(&keys[0], "old").await;
    try_set(caller, keys.iter().map(|key| item(key, "new")).collect()).await.unwrap();
    for key in &keys {
        assert_eq!(caller.value(key).await.unwrap(), b"new");
    }
    let mut deleted = keys.to_vec();
    deleted.insert(1, caller.key("missing"));
    let response = try_delete(caller, deleted).await.unwrap();
    for (result, existed) in response.results.iter().zip([true, false, true, true]) {
        assert!(result.status.is_none());
        assert_if_known(result.existed, existed);
    }
    assert_eq!(response.results.len(), 4);
    for key in &keys {
        assert!(!caller.exists(key).await);
    }
}

async fn as_many_as_allowed<C: Client>(caller: &Caller<'_, C>) {
    let keys: Vec<String> =
        (0..=BATCH_ITEMS_MAX).map(|number| caller.key(&number.to_string())).collect();
    let items: Vec<BatchSetItem> = keys.iter().map(|key| item(key, key)).collect();
    assert_field(try_set(caller, items.clone()).await, "TOO_MANY_ITEMS", "items");
    assert_field(try_get(caller, keys.clone()).await, "TOO_MANY_ITEMS", "keys");
    assert_field(try_delete(caller, keys.clone()).await, "TOO_MANY_ITEMS", "keys");
    assert!(!caller.exists(&keys[0]).await);
    try_set(caller, items[..BATCH_ITEMS_MAX].to_vec()).await.unwrap();
    let response = try_get(caller, keys[..BATCH_ITEMS_MAX].to_vec()).await.unwrap();
    for (result, key) in response.results.iter().zip(&keys) {
        assert_eq!(result.entry.as_ref().unwrap().value[..], *key.as_bytes());
    }
    try_delete(caller, keys[..BATCH_ITEMS_MAX].to_vec()).await.unwrap();
    assert!(!caller.exists(&keys[BATCH_ITEMS_MAX - 1]).await);
}

async fn duplicate_keys<C: Client>(caller: &Caller<'_, C>) {
    let (a, b) = (caller.key("a"), caller.key("b"));
    let items = vec![item(&a, "1"), item(&b, "2"), item(&a, "3")];
    assert_field(try_set(caller, items).await, "DUPLICATE_KEY", "items[2].key");
    let keys = vec![b.clone(), a.clone(), a.clone()];
    assert_field(try_get(caller, keys.clone()).await, "DUPLICATE_KEY", "keys[2]");
    assert_field(try_delete(caller, keys).await, "DUPLICATE_KEY", "keys[2]");
    assert!(!caller.exists(&a).await && !caller.exists(&b).await);
}

async fn invalid_batches<C: Client>(caller: &Caller<'_, C>) {
    let a = caller.key("a");
    assert_field(try_set(caller, vec![]).await, "BATCH_EMPTY", "items");
    assert_field(try_get(caller, vec![]).await, "BATCH_EMPTY", "keys");
    assert_field(try_delete(caller, vec![]).await, "BATCH_EMPTY", "keys");
    let items = vec![item(&a, "1"), item("", "2")];
    assert_field(try_set(caller, items).await, "KEY_INVALID", "items[1].key");
    let keys = vec![a.clone(), "\u{1b}".to_owned()];
    assert_field(try_get(caller, keys.clone()).await, "KEY_INVALID", "keys[1]");
    assert_field(try_delete(caller, keys).await, "KEY_INVALID", "keys[1]");
    assert!(!caller.exists(&a).await);
}

async fn times_to_live<C: Client>(caller: &Caller<'_, C>) {
    if !caller.client.offers().contains(Interface::KeyValueTtl) {
        return;
    }
    let keys = ["ttl", "keep", "clear"].map(|name| caller.key(name));
    for key in &keys {
        caller.set_ttl(key, "old", 1_800_000).await;
    }
    let kept = caller.get_ttl(&keys[1]).await.expires_at;
    let mut items: Vec<BatchSetItem> = keys.iter().map(|key| item(key, "new")).collect();
    items[0].ttl = Some(ms(3_600_000));
    items[1].keep_ttl = true;
    try_set(caller, items.clone()).await.unwrap();
    assert!(caller.get_ttl(&keys[0]).await.ttl.unwrap().seconds > 1_800);
    assert_eq!(caller.get_ttl(&keys[1]).await.expires_at, kept);
    assert_eq!(caller.get_ttl(&keys[2]).await.ttl, None);
    items[2].ttl = Some(ms(0));
    assert_field(try_set(caller, items).await, "TTL_INVALID", "items[2].ttl");
}

async fn a_reply_that_does_not_fit<C: Client>(caller: &Caller<'_, C>) {
    let keys: Vec<String> = (0..8).map(|number| caller.key(&number.to_string())).collect();
    for key in &keys {
        caller.set(key, payload(1 << 20)).await;
    }
    let response = try_get(caller, keys.clone()).await.unwrap();
    assert_eq!(response.results.len(), keys.len());
    let mut refused = 0;
    for result in &response.results {
        match &result.status {
            None => assert_eq!(result.entry.as_ref().unwrap().value[..], payload(1 << 20)),
            Some(status) => {
                assert_eq!(status.code, i32::from(Kind::ResourceExhausted.grpc_code()));
                assert!(!result.found && result.entry.is_none());
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && refused < keys.len(), "{refused} of {} refused", keys.len());
    try_delete(caller, keys).await.unwrap();
}
