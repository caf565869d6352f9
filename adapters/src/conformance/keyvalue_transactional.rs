//! Cases of `keyvalue_transactional`: Transact.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::keyvalue::v1::{TransactRequest, TransactResponse};
use prism_proto::prism::r#type::v1::{
    Condition, Operation, Put, condition::Requirement, operation::Action,
};

use super::caller::{Caller, assert_field, assert_if_known, ms, payload};
use super::{Client, Failure, Versions, cases};

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_transactional: [
        without_conditions,
        each_condition,
        all_or_nothing,
        every_failure_is_told,
        conditions_see_the_state_before,
        a_version_as_condition,
        times_to_live,
        a_hundred_operations,
        invalid_transactions,
        large_failures,
    ]);
}

fn put(key: &str, value: &str) -> Operation {
    let put = Put { value: value.to_owned().into(), ..Put::default() };
    Operation { key: key.to_owned(), action: Some(Action::Put(put)) }
}

fn delete(key: &str) -> Operation {
    Operation { key: key.to_owned(), action: Some(Action::Delete(())) }
}

fn condition(key: &str, requirement: Requirement) -> Condition {
    Condition { key: key.to_owned(), requirement: Some(requirement) }
}

async fn try_transact<C: Client>(
    caller: &Caller<'_, C>,
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
) -> Result<TransactResponse, Failure> {
    let request = TransactRequest { namespace: caller.namespace(), conditions, operations };
    caller.call(Method::KEYVALUE_TRANSACT, &request).await
}

async fn transact<C: Client>(
    caller: &Caller<'_, C>,
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
) -> TransactResponse {
    let count = operations.len();
    let response = try_transact(caller, conditions, operations).await.unwrap();
    assert_eq!(response.results.len(), if response.committed { count } else { 0 });
    assert_eq!(response.failures.is_empty(), response.committed);
    response
}

async fn without_conditions<C: Client>(caller: &Caller<'_, C>) {
    let (a, b, c) = (caller.key("a"), caller.key("b"), caller.key("c"));
    caller.set(&b, "old").await;
    caller.set(&c, "old").await;
    let operations = vec![put(&a, "1"), put(&b, "2"), delete(&c), delete(&caller.key("missing"))];
    let response = transact(caller, vec![], operations).await;
    assert!(response.committed);
    assert_eq!(caller.value(&a).await.unwrap(), b"1");
    assert_eq!(caller.value(&b).await.unwrap(), b"2");
    assert_eq!(caller.get(&c).await, None);
    for (key, result) in [(&a, &response.results[0]), (&b, &response.results[1])] {
        let version = result.version.as_ref().map(|version| version.to_vec());
        assert_if_known(version, caller.version(key).await.unwrap_or_default());
    }
    assert_eq!(response.results[2].version, None, "a delete has no version");
}

async fn each_condition<C: Client>(caller: &Caller<'_, C>) {
    let (there, missing, target) = (caller.key("there"), caller.key("missing"), caller.key("t"));
    caller.set(&there, "value").await;
    let value = |value: &'static str| Requirement::Value(value.as_bytes().into());
    for (key, requirement, expected) in [
        (&there, Requirement::Exists(()), true),
        (&missing, Requirement::Exists(()), false),
        (&there, Requirement::Absent(()), false),
        (&missing, Requirement::Absent(()), true),
        (&there, value("value"), true),
        (&there, value("other"), false),
        (&there, value(""), false),
        (&missing, value(""), false),
        (&there, Requirement::Version(b"no such version".as_slice().into()), false),
        (&missing, Requirement::Version(b"no such version".as_slice().into()), false),
    ] {
        caller.set(&target, "before").await;
        let conditions = vec![condition(key, requirement.clone())];
        let response = transact(caller, conditions, vec![put(&target, "after")]).await;
        assert_eq!(response.committed, expected, "{requirement:?} of {key}");
        let after: &[u8] = if expected { b"after" } else { b"before" };
        assert_eq!(caller.value(&target).await.unwrap(), after, "{requirement:?} of {key}");
    }
}

async fn all_or_nothing<C: Client>(caller: &Caller<'_, C>) {
    let keys: Vec<String> = (0..10).map(|number| caller.key(&number.to_string())).collect();
    caller.set(&keys[9], "kept").await;
    let mut operations: Vec<Operation> = keys[..9].iter().map(|key| put(key, "no")).collect();
    operations.push(delete(&keys[9]));
    let conditions = vec![
        condition(&keys[9], Requirement::Exists(())),
        condition(&keys[0], Requirement::Exists(())),
    ];
    let response = transact(caller, conditions, operations.clone()).await;
    assert!(!response.committed);
    for key in &keys[..9] {
        assert_eq!(caller.get(key).await, None);
    }
    assert_eq!(caller.value(&keys[9]).await.unwrap(), b"kept");
    assert!(transact(caller, vec![], operations).await.committed);
    assert!(caller.exists(&keys[0]).await && !caller.exists(&keys[9]).await);
}

async fn every_failure_is_told<C: Client>(caller: &Caller<'_, C>) {
    let (there, missing) = (caller.key("there"), caller.key("missing"));
    caller.set(&there, "value").await;
    let conditions = vec![
        condition(&there, Requirement::Exists(())),
        condition(&there, Requirement::Absent(())),
        condition(&missing, Requirement::Absent(())),
        condition(&missing, Requirement::Exists(())),
    ];
    let response = transact(caller, conditions, vec![put(&missing, "no")]).await;
    let indexes: Vec<u32> = response.failures.iter().map(|failure| failure.index).collect();
    assert_eq!(indexes, [1, 3]);
    let current = response.failures[0].current.as_ref().expect("it exists");
    assert_eq!(&current.value[..], b"value");
    let version = current.version.as_ref().map(|version| version.to_vec());
    assert_eq!(version, caller.version(&there).await);
    assert_eq!(response.failures[1].current, None, "it does not exist");
}

async fn conditions_see_the_state_before<C: Client>(caller: &Caller<'_, C>) {
    let (from, to) = (caller.key("from"), caller.key("to"));
    caller.set(&from, "value").await;
    let conditions =
        vec![condition(&from, Requirement::Exists(())), condition(&to, Requirement::Absent(()))];
    let operations = vec![delete(&from), put(&to, "value")];
    assert!(transact(caller, conditions.clone(), operations.clone()).await.committed);
    assert!(!transact(caller, conditions, operations).await.committed, "not a second time");
    assert_eq!(caller.value(&to).await.unwrap(), b"value");
}

async fn a_version_as_condition<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, "value").await;
    let Some(version) = caller.version(&key).await else { return };
    let conditions = vec![condition(&key, Requirement::Version(version.into()))];
    assert!(transact(caller, conditions.clone(), vec![put(&key, "new")]).await.committed);
    assert!(!transact(caller, conditions.clone(), vec![put(&key, "newer")]).await.committed);
    if caller.client.versions() == Versions::Revision {
        caller.delete(&key).await;
        caller.set(&key, "value").await;
        assert!(!transact(caller, conditions, vec![put(&key, "newer")]).await.committed);
    }
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
    let [ttl, keep, clear] = [
        Put { ttl: Some(ms(3_600_000)), ..Put::default() },
        Put { keep_ttl: true, ..Put::default() },
        Put::default(),
    ];
    let operations = keys
        .iter()
        .zip([ttl, keep, clear])
        .map(|(key, put)| Operation { key: key.clone(), action: Some(Action::Put(put)) });
    assert!(transact(caller, vec![], operations.collect()).await.committed);
    assert!(caller.get_ttl(&keys[0]).await.ttl.unwrap().seconds > 1_800);
    assert_eq!(caller.get_ttl(&keys[1]).await.expires_at, kept);
    assert_eq!(caller.get_ttl(&keys[2]).await.ttl, None);
}

async fn a_hundred_operations<C: Client>(caller: &Caller<'_, C>) {
    let operations = |count: usize| -> Vec<Operation> {
        (0..count).map(|number| put(&caller.key(&number.to_string()), "value")).collect()
    };
    let refused = try_transact(caller, vec![], operations(101)).await;
    assert_field(refused, "TOO_MANY_ITEMS", "operations");
    assert!(!caller.exists(&caller.key("0")).await);
    assert!(transact(caller, vec![], operations(100)).await.committed);
    for number in 0..100 {
        assert!(caller.exists(&caller.key(&number.to_string())).await);
    }
    let absent = |number: usize| {
        condition(&caller.key(&format!("absent {number}")), Requirement::Absent(()))
    };
    let conditions: Vec<Condition> = (0..101).map(absent).collect();
    let refused = try_transact(caller, conditions.clone(), operations(1)).await;
    assert_field(refused, "TOO_MANY_ITEMS", "conditions");
    assert!(transact(caller, conditions[..100].to_vec(), operations(1)).await.committed);
}

async fn invalid_transactions<C: Client>(caller: &Caller<'_, C>) {
    let (a, b) = (caller.key("a"), caller.key("b"));
    let refused = try_transact(caller, vec![], vec![]).await;
    assert_field(refused, "OPERATIONS_MISSING", "operations");
    let refused = try_transact(caller, vec![], vec![put(&a, "1"), put(&b, "2"), delete(&a)]).await;
    assert_field(refused, "DUPLICATE_KEY", "operations[2].key");
    let refused = try_transact(caller, vec![], vec![put(&a, "1"), put("", "2")]).await;
    assert_field(refused, "KEY_INVALID", "operations[1].key");
    let conditions = vec![condition("a\u{1}", Requirement::Exists(()))];
    let refused = try_transact(caller, conditions, vec![put(&a, "1")]).await;
    assert_field(refused, "KEY_INVALID", "conditions[0].key");
    let conditions = vec![Condition { key: a.clone(), requirement: None }];
    let refused = try_transact(caller, conditions, vec![put(&a, "1")]).await;
    assert_field(refused, "CONDITION_MISSING", "conditions[0].requirement");
    let nothing = Operation { key: a.clone(), action: None };
    let refused = try_transact(caller, vec![], vec![nothing]).await;
    assert_field(refused, "OPERATION_MISSING", "operations[0].action");
    assert!(!caller.exists(&a).await && !caller.exists(&b).await);
}

async fn large_failures<C: Client>(caller: &Caller<'_, C>) {
    let keys: Vec<String> = (0..8).map(|number| caller.key(&number.to_string())).collect();
    for key in &keys {
        caller.set(key, payload(1 << 20)).await;
    }
    let conditions = keys.iter().map(|key| condition(key, Requirement::Absent(()))).collect();
    let response = transact(caller, conditions, vec![put(&keys[0], "no")]).await;
    assert!(!response.committed);
    assert_eq!(response.failures[0].index, 0, "as many as fit into a message");
    for key in &keys {
        caller.delete(key).await;
    }
}
