//! Cases of `keyvalue_ttl`: Expire, GetTtl, Persist, and `ttl` and `keep_ttl` of Set.

use std::time::Duration;

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::keyvalue::v1::{
    BatchGetRequest, BatchGetResponse, ExpireRequest, ExpireResponse, PersistRequest,
    PersistResponse, SetCondition, SetRequest, expire_request,
};
use prost_types::Timestamp;

use super::caller::{Caller, Select, assert_field, assert_if_known, ms};
use super::{Client, cases};

/// Soon, in milliseconds: a time to live that a case waits for.
const SOON: u64 = 40;

/// Long after that.
const LATER: Duration = Duration::from_millis(120);

/// A time to live that no run waits for, in milliseconds.
const HOUR: u64 = 3_600_000;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_ttl: [
        an_expired_key_is_nowhere,
        conditions_after_expiry,
        the_time_left,
        a_set_clears_the_expiry,
        keep_ttl,
        keep_ttl_of_an_expired_key,
        expire_and_persist,
        expire_at_a_moment,
        expire_in_the_past,
        expire_of_a_missing_key,
        versions_stay,
        many_expire_together,
        invalid_times_to_live,
    ]);
}

async fn persist<C: Client>(caller: &Caller<'_, C>, key: &str) -> Option<bool> {
    let request = PersistRequest { namespace: caller.namespace(), key: key.to_owned() };
    caller.call::<PersistResponse>(Method::KEYVALUE_PERSIST, &request).await.unwrap().existed
}

async fn an_expired_key_is_nowhere<C: Client>(caller: &Caller<'_, C>) {
    let (key, stays) = (caller.key("expires"), caller.key("stays"));
    caller.set(&stays, "value").await;
    caller.set_ttl(&key, "value", SOON).await;
    caller.client.advance(LATER).await;
    assert_eq!(caller.get(&key).await, None);
    assert!(!caller.exists(&key).await);
    assert!(!caller.get_ttl(&key).await.found);
    let offers = caller.client.offers();
    if offers.contains(Interface::KeyValueScan) {
        let all = Select::Prefix(&caller.prefix());
        assert_eq!(caller.scan_keys(all).await, std::slice::from_ref(&stays));
        assert_eq!(caller.scan(all).await.len(), 1);
        assert_eq!(caller.count(all, 0).await.count, 1);
    }
    if offers.contains(Interface::KeyValueBatch) {
        let request =
            BatchGetRequest { namespace: caller.namespace(), keys: vec![key.clone(), stays] };
        let response: BatchGetResponse =
            caller.call(Method::KEYVALUE_BATCH_GET, &request).await.unwrap();
        assert_eq!(response.results.iter().map(|one| one.found).collect::<Vec<_>>(), [false, true]);
    }
    assert_if_known(caller.delete(&key).await, false);
}

async fn conditions_after_expiry<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let set = |only_if: SetCondition, value: &str| SetRequest {
        only_if: only_if as i32,
        return_previous: true,
        ..caller.set_request(&key, value)
    };
    caller.set_ttl(&key, "old", SOON).await;
    caller.client.advance(LATER).await;
    let refused = caller.try_set(&set(SetCondition::Exists, "no")).await.unwrap();
    assert!(!refused.applied && refused.previous.is_none());
    let applied = caller.try_set(&set(SetCondition::Absent, "new")).await.unwrap();
    assert!(applied.applied && applied.previous.is_none());
    let entry = caller.get(&key).await.unwrap();
    assert_eq!((&entry.value[..], entry.expires_at), (&b"new"[..], None));
}

async fn the_time_left<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    let answer = caller.get_ttl(&key).await;
    assert!(answer.found && answer.ttl.is_none() && answer.expires_at.is_none());
    caller.set_ttl(&key, "value", HOUR).await;
    let answer = caller.get_ttl(&key).await;
    let left = answer.ttl.expect("it expires");
    assert!((3_500..=3_600).contains(&left.seconds), "{left:?}");
    assert_eq!(left.nanos % 1_000_000, 0, "milliseconds");
    let at = answer.expires_at.expect("it expires");
    assert_eq!(at.nanos % 1_000_000, 0, "milliseconds");
    assert_eq!(caller.get(&key).await.unwrap().expires_at, Some(at), "the same everywhere");
    let missing = caller.get_ttl(&caller.key("missing")).await;
    assert!(!missing.found && missing.ttl.is_none());
}

async fn a_set_clears_the_expiry<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set_ttl(&key, "value", SOON).await;
    caller.set(&key, "value").await;
    caller.client.advance(LATER).await;
    assert!(caller.exists(&key).await);
    assert_eq!(caller.get_ttl(&key).await.ttl, None);
}

async fn keep_ttl<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let keep = |value: &str| SetRequest { keep_ttl: true, ..caller.set_request(&key, value) };
    assert!(caller.try_set(&keep("new")).await.unwrap().applied);
    assert_eq!(caller.get_ttl(&key).await.ttl, None, "nothing was there to be kept");
    caller.set_ttl(&key, "value", HOUR).await;
    let at = caller.get_ttl(&key).await.expires_at;
    assert!(caller.try_set(&keep("kept")).await.unwrap().applied);
    assert_eq!(caller.value(&key).await.unwrap(), b"kept");
    assert_eq!(caller.get_ttl(&key).await.expires_at, at);
    let both = SetRequest { ttl: Some(ms(HOUR)), ..keep("both") };
    assert_field(caller.try_set(&both).await, "TTL_INVALID", "keep_ttl");
}

async fn keep_ttl_of_an_expired_key<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set_ttl(&key, "value", SOON).await;
    caller.client.advance(LATER).await;
    let keep = SetRequest { keep_ttl: true, ..caller.set_request(&key, "new") };
    assert!(caller.try_set(&keep).await.unwrap().applied);
    assert_eq!(caller.value(&key).await.unwrap(), b"new");
    assert_eq!(caller.get_ttl(&key).await.ttl, None);
}

async fn expire_and_persist<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    assert_if_known(caller.expire(&key, expire_request::Expiry::Ttl(ms(HOUR))).await, true);
    assert!(caller.get_ttl(&key).await.ttl.is_some());
    assert_if_known(persist(caller, &key).await, true);
    assert_eq!(caller.get_ttl(&key).await.ttl, None);
    assert_if_known(persist(caller, &key).await, true);
    assert_if_known(caller.expire(&key, expire_request::Expiry::Ttl(ms(SOON))).await, true);
    caller.client.advance(LATER).await;
    assert!(!caller.exists(&key).await);
    assert_if_known(persist(caller, &key).await, false);
    assert!(!caller.exists(&key).await, "what has expired stays so");
}

async fn expire_at_a_moment<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    let moment = Timestamp { seconds: 4_102_444_800, nanos: 5_000_000 };
    assert_if_known(caller.expire(&key, expire_request::Expiry::ExpiresAt(moment)).await, true);
    assert_eq!(caller.get_ttl(&key).await.expires_at, Some(moment));
    assert_eq!(caller.value(&key).await.unwrap(), b"value");
}

async fn expire_in_the_past<C: Client>(caller: &Caller<'_, C>) {
    for seconds in [0, -1, 1_000_000_000] {
        let key = caller.key("a");
        caller.set(&key, "value").await;
        let past = expire_request::Expiry::ExpiresAt(Timestamp { seconds, nanos: 0 });
        assert_if_known(caller.expire(&key, past).await, true);
        assert_eq!(caller.get(&key).await, None);
        assert_if_known(caller.expire(&key, past).await, false);
    }
}

async fn expire_of_a_missing_key<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("missing");
    assert_if_known(caller.expire(&key, expire_request::Expiry::Ttl(ms(HOUR))).await, false);
    assert_if_known(persist(caller, &key).await, false);
    assert_eq!(caller.get(&key).await, None);
}

async fn versions_stay<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    let version = caller.version(&key).await;
    caller.expire(&key, expire_request::Expiry::Ttl(ms(HOUR))).await;
    assert_eq!(caller.version(&key).await, version, "an expiry changes no value");
    persist(caller, &key).await;
    assert_eq!(caller.version(&key).await, version);
}

async fn many_expire_together<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..500 {
        let ttl_ms = if number % 2 == 0 { 1 + number % SOON } else { HOUR };
        caller.set_ttl(&caller.key(&number.to_string()), "value", ttl_ms).await;
    }
    caller.client.advance(LATER).await;
    for number in 0..500 {
        let exists = caller.exists(&caller.key(&number.to_string())).await;
        assert_eq!(exists, number % 2 != 0, "key {number}");
    }
}

async fn invalid_times_to_live<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    for (seconds, nanos) in [(0, 0), (0, 999_999), (-1, 0), (1, 2_000_000_000), (i64::MAX, 0)] {
        let ttl = prost_types::Duration { seconds, nanos };
        let set = SetRequest { ttl: Some(ttl), ..caller.set_request(&key, "no") };
        assert_field(caller.try_set(&set).await, "TTL_INVALID", "ttl");
        let expiry = Some(expire_request::Expiry::Ttl(ttl));
        let request = ExpireRequest { namespace: caller.namespace(), key: key.clone(), expiry };
        let expired = caller.call::<ExpireResponse>(Method::KEYVALUE_EXPIRE, &request).await;
        assert_field(expired, "TTL_INVALID", "ttl");
    }
    let request = ExpireRequest { namespace: caller.namespace(), key: key.clone(), expiry: None };
    let expired = caller.call::<ExpireResponse>(Method::KEYVALUE_EXPIRE, &request).await;
    assert_field(expired, "EXPIRY_MISSING", "expiry");
    let never = Timestamp { seconds: i64::MAX, nanos: 0 };
    let expiry = Some(expire_request::Expiry::ExpiresAt(never));
    let request = ExpireRequest { namespace: caller.namespace(), key: key.clone(), expiry };
    let expired = caller.call::<ExpireResponse>(Method::KEYVALUE_EXPIRE, &request).await;
    assert_field(expired, "TIME_INVALID", "expires_at");
    assert_eq!(caller.value(&key).await.unwrap(), b"value");
}
