//! Cases of `keyvalue_scan`: Scan, ScanKeys, Count.

use std::collections::{BTreeMap, BTreeSet};

use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    CountRequest, CountResponse, ScanKeysRequest, ScanKeysResponse, ScanRequest, ScanResponse,
    scan_request,
};

use super::caller::{Caller, Select, assert_field, payload};
use super::{Client, Failure, cases, together};
use crate::limits::{GLOB_BYTES_MAX, PREFIX_BYTES_MAX};

/// Keys of the large scans.
const MANY: usize = 10_000;

/// Writes under way.
const SIDE_BY_SIDE: usize = 100;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, keyvalue_scan: [
        nothing_matches,
        entries_are_whole,
        prefixes,
        globs,
        globs_at_their_limits,
        page_sizes,
        resumed_after_every_page,
        large_entries_are_shared_among_pages,
        many_keys_while_written,
        foreign_tokens,
        counts,
        the_whole_namespace,
    ]);
}

async fn nothing_matches<C: Client>(caller: &Caller<'_, C>) {
    let request = caller.scan_request(Select::Prefix(&caller.prefix()));
    let pages: Vec<ScanResponse> =
        caller.pages(Method::KEYVALUE_SCAN, &request, usize::MAX).await.unwrap();
    assert!(pages.iter().all(|page| page.entries.is_empty()));
    assert_eq!(pages.last().unwrap().next_page_token, "");
    assert!(caller.scan_keys(Select::Prefix(&caller.prefix())).await.is_empty());
    let count = caller.count(Select::Prefix(&caller.prefix()), 0).await;
    assert_eq!(count, CountResponse { count: 0, exact: true });
}

async fn entries_are_whole<C: Client>(caller: &Caller<'_, C>) {
    let key = caller.key("a");
    caller.set(&key, payload(5_000)).await;
    let got = caller.get(&key).await.unwrap();
    let [entry] = &caller.scan(Select::Prefix(&key)).await[..] else { panic!("one entry") };
    assert_eq!(entry.key.as_deref(), Some(&*key));
    assert_eq!(entry.value, got.value);
    assert_eq!(entry.version, got.version);
    caller.delete(&key).await;
    assert!(caller.scan(Select::Prefix(&key)).await.is_empty());
}

async fn prefixes<C: Client>(caller: &Caller<'_, C>) {
    let names = ["", "a", "ab", "abc", "b", "B", "ä", "*", "a*"];
    for name in names {
        caller.set(&caller.key(name), name).await;
    }
    for prefix in ["", "a", "ab", "abcd", "b", "*", "ä"] {
        let mut expected: Vec<String> = names
            .iter()
            .filter(|name| name.starts_with(prefix))
            .map(|name| caller.key(name))
            .collect();
        expected.sort();
        let select = caller.key(prefix);
        assert_eq!(caller.scan_keys(Select::Prefix(&select)).await, expected, "{prefix:?}");
        let count = caller.count(Select::Prefix(&select), 0).await;
        assert_eq!(count, CountResponse { count: expected.len() as u64, exact: true });
    }
    let long = "p".repeat(PREFIX_BYTES_MAX + 1);
    let refused = scan(caller, &caller.scan_request(Select::Prefix(&long))).await;
    assert_field(refused, "PREFIX_INVALID", "prefix");
}

async fn globs<C: Client>(caller: &Caller<'_, C>) {
    let names = ["a", "b", "c", "d", "ab", "abc", "a-c", "a*c", "é", "x1", "x2", "x10", "]", "["];
    for name in names {
        caller.set(&caller.key(name), name).await;
    }
    for (glob, expected) in [
        ("*", &names[..]),
        ("?", &["a", "b", "c", "d", "]", "["]),
        ("??", &["ab", "é", "x1", "x2"]),
        ("[a-c]", &["a", "b", "c"]),
        ("[a-bd]", &["a", "b", "d"]),
        ("a*c", &["abc", "a-c", "a*c"]),
        ("a[*]c", &["a*c"]),
        ("a[b-]c", &["abc", "a-c"]),
        ("x[0-9]", &["x1", "x2"]),
        ("x[0-9]*", &["x1", "x2", "x10"]),
        ("*0", &["x10"]),
        ("]", &["]"]),
        ("[[]", &["["]),
        ("nothing", &[]),
    ] {
        // The case's own prefix has no special characters but `{`, `}` and `:`, which are none.
        let glob = caller.key(glob);
        let mut expected: Vec<String> = expected.iter().map(|name| caller.key(name)).collect();
        expected.sort();
        assert_eq!(caller.scan_keys(Select::Glob(&glob)).await, expected, "{glob:?}");
        let count = caller.count(Select::Glob(&glob), 0).await;
        assert_eq!(count.count, expected.len() as u64, "{glob:?}");
    }
}

async fn globs_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let name = "n".repeat(GLOB_BYTES_MAX - caller.prefix().len());
    let key = caller.key(&name);
    caller.set(&key, "value").await;
    assert_eq!(caller.scan_keys(Select::Glob(&key)).await, std::slice::from_ref(&key));
    let long = format!("{key}*");
    for glob in [&long, "[", "[]", "[b-a]", "[^a]", "a[b"] {
        let refused = scan(caller, &caller.scan_request(Select::Glob(glob))).await;
        assert_field(refused, "GLOB_INVALID", "glob");
    }
}

async fn page_sizes<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..50 {
        caller.set(&caller.key(&number.to_string()), "value").await;
    }
    for page_size in [1, 7, 50, 51, u32::MAX] {
        let select = Select::Prefix(&caller.prefix());
        let request = ScanRequest { page_size, ..caller.scan_request(select) };
        let pages = scan(caller, &request).await.unwrap();
        assert!(pages.iter().all(|page| page.entries.len() <= page_size as usize));
        let found: usize = pages.iter().map(|page| page.entries.len()).sum();
        assert_eq!(found, 50, "a page size of {page_size}");
    }
}

async fn resumed_after_every_page<C: Client>(caller: &Caller<'_, C>) {
    let mut expected = BTreeSet::new();
    for number in 0..100 {
        let key = caller.key(&number.to_string());
        caller.set(&key, "value").await;
        expected.insert(key);
    }
    let mut request =
        ScanRequest { page_size: 9, ..caller.scan_request(Select::Prefix(&caller.prefix())) };
    let mut found = BTreeSet::new();
    loop {
        let mut pages: Vec<ScanResponse> =
            caller.pages(Method::KEYVALUE_SCAN, &request, 1).await.unwrap();
        let page = pages.pop().expect("one page");
        found.extend(page.entries.into_iter().map(|entry| entry.key.unwrap()));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, expected);
}

async fn large_entries_are_shared_among_pages<C: Client>(caller: &Caller<'_, C>) {
    let value = payload(900_000);
    for number in 0..12 {
        caller.set(&caller.key(&number.to_string()), value.clone()).await;
    }
    let longest = caller.key("longest");
    caller.set(&longest, payload(caller.client.limits().value_bytes_max())).await;
    let entries = caller.scan(Select::Prefix(&caller.prefix())).await;
    assert_eq!(entries.len(), 13);
    assert_eq!(entries.iter().filter(|entry| entry.value[..] == value[..]).count(), 12);
    for number in 0..12 {
        caller.delete(&caller.key(&number.to_string())).await;
    }
    caller.delete(&longest).await;
}

async fn many_keys_while_written<C: Client>(caller: &Caller<'_, C>) {
    let stays = |number: usize| caller.key(&format!("stays {number}"));
    let keys: Vec<String> = (0..MANY).map(stays).collect();
    // Where every write waits for the disk, one after the other takes minutes.
    for some in keys.chunks(SIDE_BY_SIDE) {
        together(some.iter().map(|key| caller.set(key, "value"))).await;
    }
    let mut request =
        ScanRequest { page_size: 500, ..caller.scan_request(Select::Prefix(&caller.prefix())) };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0.. {
        let mut pages: Vec<ScanResponse> =
            caller.pages(Method::KEYVALUE_SCAN, &request, 1).await.unwrap();
        let page = pages.pop().expect("one page");
        for entry in page.entries {
            *seen.entry(entry.key.unwrap()).or_default() += 1;
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // Between the pages keys come and go, and those that stay are overwritten, also longer.
        let comes = |round: usize, number: usize| caller.key(&format!("comes {round} {number}"));
        together((0..50).map(async |number| {
            caller.set(&comes(round, number), "value").await;
        }))
        .await;
        together((0..50).map(async |number| {
            caller.delete(&comes(round / 2, number)).await;
        }))
        .await;
        together((0..50).map(async |number| {
            let overwritten = stays((round * 997 + number * 31) % MANY);
            caller.set(&overwritten, payload(number * 40)).await;
        }))
        .await;
        assert!(round < 10 * MANY, "the scan does not end");
    }
    for number in 0..MANY {
        assert!(seen.contains_key(&stays(number)), "key {number} was there throughout");
    }
}

async fn foreign_tokens<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..20 {
        caller.set(&caller.key(&number.to_string()), "value").await;
    }
    let prefix = caller.prefix();
    let request = ScanRequest { page_size: 5, ..caller.scan_request(Select::Prefix(&prefix)) };
    let pages: Vec<ScanResponse> = caller.pages(Method::KEYVALUE_SCAN, &request, 1).await.unwrap();
    let token = &pages[0].next_page_token;
    assert!(!token.is_empty());
    for index in 0..token.len() {
        let mut altered = token.clone().into_bytes();
        altered[index] = if altered[index] == b'1' { b'2' } else { b'1' };
        let page_token = String::from_utf8(altered).expect("tokens are ASCII");
        let request = ScanRequest { page_token, ..request.clone() };
        assert_field(scan(caller, &request).await, "PAGE_TOKEN_INVALID", "page_token");
    }
    for foreign in [&token[1..], "nonsense", "é", &"1".repeat(1000)] {
        let request = ScanRequest { page_token: foreign.to_owned(), ..request.clone() };
        assert_field(scan(caller, &request).await, "PAGE_TOKEN_INVALID", "page_token");
    }
    let other = scan_request::Selection::Glob(prefix + "*");
    let request =
        ScanRequest { selection: Some(other), page_token: token.clone(), ..request.clone() };
    assert_field(scan(caller, &request).await, "PAGE_TOKEN_INVALID", "page_token");
}

async fn counts<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..30 {
        caller.set(&caller.key(&number.to_string()), "value").await;
    }
    let select = Select::Prefix(&caller.prefix());
    for (limit, expected) in [(0, 30), (1, 1), (29, 29), (30, 30), (31, 30)] {
        let count = caller.count(select, limit).await;
        assert_eq!(count.count, expected, "a limit of {limit}");
        assert!(count.exact || limit <= 30 && limit != 0, "a limit of {limit}");
        assert!(!count.exact || expected == 30, "a limit of {limit}");
    }
}

async fn the_whole_namespace<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..10 {
        caller.set(&caller.key(&number.to_string()), "value").await;
    }
    let namespace = caller.namespace();
    let request = ScanKeysRequest { namespace: namespace.clone(), ..ScanKeysRequest::default() };
    let pages: Vec<ScanKeysResponse> =
        caller.pages(Method::KEYVALUE_SCAN_KEYS, &request, usize::MAX).await.unwrap();
    let keys: BTreeSet<String> = pages.into_iter().flat_map(|page| page.keys).collect();
    assert!((0..10).all(|number| keys.contains(&caller.key(&number.to_string()))));
    let request = CountRequest { namespace, selection: None, limit: u64::MAX };
    let count: CountResponse = caller.call(Method::KEYVALUE_COUNT, &request).await.unwrap();
    assert_eq!(count, CountResponse { count: keys.len() as u64, exact: true });
}

async fn scan<C: Client>(
    caller: &Caller<'_, C>,
    request: &ScanRequest,
) -> Result<Vec<ScanResponse>, Failure> {
    caller.pages(Method::KEYVALUE_SCAN, request, usize::MAX).await
}
