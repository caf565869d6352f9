//! Cases of `keyvalue_cas`: CompareAndSwap, CompareAndDelete.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::keyvalue::v1::{
    CompareAndDeleteRequest, CompareAndDeleteResponse, CompareAndSwapRequest,
    CompareAndSwapResponse, compare_and_delete_request, compare_and_swap_request,
};

use self::compare_and_delete_request::Expected as Deleted;
use self::compare_and_swap_request::Expected as Swapped;
use super::caller::{Caller, assert_field, assert_if_known, ms, payload};
use super::{Client, Failure, Versions, cases};

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_cas: [
        swap_on_a_value,
        swap_on_absence,
        swap_on_a_version,
        two_writers_of_one_key,
        a_large_current_value,
        delete_on_a_value,
        delete_on_a_version,
        a_version_does_not_come_back,
        times_to_live,
        invalid_requests,
    ]);
}

fn value(value: &str) -> Swapped {
    Swapped::ExpectedValue(value.to_owned().into())
}

async fn try_swap<C: Client>(
    caller: &Caller<'_, C>,
    key: &str,
    expected: Option<Swapped>,
    new: &str,
) -> Result<CompareAndSwapResponse, Failure> {
    let request = CompareAndSwapRequest {
        namespace: caller.namespace(),
        key: key.to_owned(),
        value: new.to_owned().into(),
        expected,
        ..CompareAndSwapRequest::default()
    };
    caller.call(Method::KEYVALUE_COMPARE_AND_SWAP, &request).await
}

async fn swap<C: Client>(
    caller: &Caller<'_, C>,
    key: &str,
    expected: Swapped,
    new: &str,
) -> CompareAndSwapResponse {
    let response = try_swap(caller, key, Some(expected), new).await.unwrap();
    assert!(!response.swapped || response.current.is_none(), "current only when not swapped");
    assert!(response.swapped || response.version.is_none(), "a version only when swapped");
    response
}

async fn delete<C: Client>(
    caller: &Caller<'_, C>,
    key: &str,
    expected: Option<Deleted>,
) -> Result<CompareAndDeleteResponse, Failure> {
    let (namespace, key) = (caller.namespace(), key.to_owned());
    let request = CompareAndDeleteRequest { namespace, key, expected };
    caller.call(Method::KEYVALUE_COMPARE_AND_DELETE, &request).await
}

async fn swap_on_a_value<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let missing = swap(caller, &key, value(""), "no").await;
    assert!(!missing.swapped && missing.current.is_none(), "nothing is not an empty value");
    caller.set(&key, "1").await;
    let refused = swap(caller, &key, value("2"), "no").await;
    assert!(!refused.swapped);
    let current = refused.current.expect("it exists");
    assert_eq!((&current.value[..], current.key), (&b"1"[..], None));
    let swapped = swap(caller, &key, value("1"), "2").await;
    assert!(swapped.swapped);
    let version = swapped.version.map(|version| version.to_vec());
    assert_if_known(version, caller.version(&key).await.unwrap_or_default());
    assert_eq!(caller.value(&key).await.unwrap(), b"2");
    caller.set(&key, "").await;
    assert!(swap(caller, &key, value(""), "3").await.swapped, "an empty value is a value");
}

async fn swap_on_absence<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    assert!(swap(caller, &key, Swapped::ExpectedAbsent(()), "1").await.swapped);
    let refused = swap(caller, &key, Swapped::ExpectedAbsent(()), "2").await;
    assert_eq!(&refused.current.expect("it exists").value[..], b"1");
    caller.delete(&key).await;
    assert!(swap(caller, &key, Swapped::ExpectedAbsent(()), "3").await.swapped);
    assert_eq!(caller.value(&key).await.unwrap(), b"3");
}

async fn swap_on_a_version<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "1").await;
    let Some(version) = caller.version(&key).await else { return };
    let expected = Swapped::ExpectedVersion(version.into());
    assert!(swap(caller, &key, expected.clone(), "2").await.swapped);
    let refused = swap(caller, &key, expected.clone(), "3").await;
    assert_eq!(&refused.current.expect("it exists").value[..], b"2");
    for other in [&b""[..], b"x", &[0; 20], &[0xff; 64]] {
        let expected = Swapped::ExpectedVersion(other.to_vec().into());
        assert!(!swap(caller, &key, expected, "no").await.swapped);
    }
    caller.delete(&key).await;
    assert!(!swap(caller, &key, expected, "4").await.swapped);
    assert!(!caller.exists(&key).await);
}

async fn two_writers_of_one_key<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("counter");
    caller.set(&key, "0").await;
    // Each writer swaps on what it saw last; what it has not seen makes it try again.
    let mut seen = ["0".to_owned(), "0".to_owned()];
    let (mut applied, mut refused) = (0, 0);
    while applied < 100 {
        for writer in &mut seen {
            let next = (writer.parse::<u32>().expect("a number") + 1).to_string();
            let response = swap(caller, &key, value(writer), &next).await;
            if response.swapped {
                applied += 1;
                *writer = next;
            } else {
                refused += 1;
                let current = response.current.expect("it exists").value;
                *writer = String::from_utf8(current.to_vec()).expect("a number");
            }
        }
    }
    let total = String::from_utf8(caller.value(&key).await.unwrap()).expect("a number");
    assert_eq!(total, applied.to_string(), "every swap counted once");
    assert!(refused > 0, "the writers got into each other's way");
}

async fn a_large_current_value<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let large = payload(1 << 20);
    caller.set(&key, large.clone()).await;
    let refused = swap(caller, &key, value("no"), "no").await;
    assert_eq!(refused.current.expect("it exists").value[..], large);
    let same = Swapped::ExpectedValue(large.into());
    assert!(swap(caller, &key, same, "small").await.swapped);
    assert_eq!(caller.value(&key).await.unwrap(), b"small");
}

async fn delete_on_a_value<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    let expected = |value: &str| Some(Deleted::ExpectedValue(value.to_owned().into()));
    let missing = delete(caller, &key, expected("1")).await.unwrap();
    assert!(!missing.deleted && missing.current.is_none());
    caller.set(&key, "1").await;
    let refused = delete(caller, &key, expected("2")).await.unwrap();
    assert!(!refused.deleted);
    assert_eq!(&refused.current.expect("it exists").value[..], b"1");
    let deleted = delete(caller, &key, expected("1")).await.unwrap();
    assert!(deleted.deleted && deleted.current.is_none());
    assert!(!caller.exists(&key).await);
}

async fn delete_on_a_version<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "1").await;
    let Some(version) = caller.version(&key).await else { return };
    caller.set(&key, "2").await;
    let old = Some(Deleted::ExpectedVersion(version.into()));
    assert!(!delete(caller, &key, old).await.unwrap().deleted);
    let version = caller.version(&key).await.expect("versions are known");
    let new = Some(Deleted::ExpectedVersion(version.into()));
    assert!(delete(caller, &key, new.clone()).await.unwrap().deleted);
    assert!(!delete(caller, &key, new).await.unwrap().deleted);
}

async fn a_version_does_not_come_back<C: Client>(caller: &Caller<'_, C>) {
    if caller.client.versions() != Versions::Revision {
        return;
    }
    let key = caller.key("a");
    caller.set(&key, "A").await;
    let version = caller.version(&key).await.expect("revisions are known");
    caller.delete(&key).await;
    caller.set(&key, "B").await;
    caller.set(&key, "A").await;
    let expected = Swapped::ExpectedVersion(version.clone().into());
    assert!(!swap(caller, &key, expected, "no").await.swapped);
    let expected = Some(Deleted::ExpectedVersion(version.into()));
    assert!(!delete(caller, &key, expected).await.unwrap().deleted);
}

async fn times_to_live<C: Client>(caller: &Caller<'_, C>) {
    if !caller.client.offers().contains(Interface::KeyValueTtl) {
        return;
    }
    let key = caller.key("a");
    let request = |new: &str, ttl_ms: Option<u64>, keep_ttl: bool| CompareAndSwapRequest {
        namespace: caller.namespace(),
        key: key.clone(),
        value: new.to_owned().into(),
        ttl: ttl_ms.map(ms),
        keep_ttl,
        expected: Some(value("value")),
    };
    caller.set(&key, "value").await;
    let swap = async |request: CompareAndSwapRequest| {
        let method = Method::KEYVALUE_COMPARE_AND_SWAP;
        caller.call::<CompareAndSwapResponse>(method, &request).await
    };
    assert!(swap(request("value", Some(3_600_000), false)).await.unwrap().swapped);
    let at = caller.get_ttl(&key).await.expires_at;
    assert!(at.is_some());
    assert!(swap(request("value", None, true)).await.unwrap().swapped);
    assert_eq!(caller.get_ttl(&key).await.expires_at, at);
    assert!(swap(request("value", None, false)).await.unwrap().swapped);
    assert_eq!(caller.get_ttl(&key).await.ttl, None);
    assert_field(swap(request("no", Some(0), false)).await, "TTL_INVALID", "ttl");
    caller.set_ttl(&key, "value", 20).await;
    caller.client.advance(std::time::Duration::from_millis(80)).await;
    let expired = swap(request("no", None, false)).await.unwrap();
    assert!(!expired.swapped && expired.current.is_none(), "an expired value is no value");
}

async fn invalid_requests<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    assert_field(try_swap(caller, &key, None, "no").await, "EXPECTATION_MISSING", "expected");
    assert_field(delete(caller, &key, None).await, "EXPECTATION_MISSING", "expected");
    let absent = Some(Swapped::ExpectedAbsent(()));
    assert_field(try_swap(caller, "", absent, "no").await, "KEY_INVALID", "key");
    let expected = Some(Deleted::ExpectedValue("1".into()));
    assert_field(delete(caller, "\t", expected).await, "KEY_INVALID", "key");
    assert!(!caller.exists(&key).await);
}
