//! Keys as subjects of NATS, and back.
//!
//! A key's bytes that a subject of a bucket may have stay as they are: letters, digits, `-`, `_`, `/` and the dots between
//! tokens. Every other byte is `=XX` in upper-case hexadecimal, and a token without bytes is a lone `=`. So every key has one
//! subject, what begins with `a.b.` lies under `a.b.>`, and a subject that is written otherwise names no key of ours.

use std::fmt::Write;

/// Adds a key in its form within a subject.
pub(super) fn put_key(out: &mut String, key: &str) {
    for (index, token) in key.split('.').enumerate() {
        if index > 0 {
            out.push('.');
        }
        if token.is_empty() {
            out.push('=');
        }
        for byte in token.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'/' => {
                    out.push(char::from(byte));
                }
                _ => {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "={byte:02X}");
                }
            }
        }
    }
}

/// The subject of a key.
pub(super) fn of_key(namespace: &str, key: &str) -> String {
    let mut subject = String::with_capacity(5 + namespace.len() + 2 * key.len());
    put_bucket(&mut subject, namespace);
    put_key(&mut subject, key);
    subject
}

/// The subject of the lane's cell: no key has such a one.
pub(super) fn of_cell(namespace: &str, partition: u16) -> String {
    format!("$KV.{namespace}.=cell.{partition}")
}

/// Whether a subject of a bucket is one that no key has, under which Prism keeps the place of something: the cells of lanes, the leases
/// of queues' messages, groups on their way.
pub(super) fn is_beside(namespace: &str, subject: &str) -> bool {
    let key = subject.strip_prefix("$KV.").and_then(|rest| rest.strip_prefix(namespace));
    let is_one =
        |key: &str| [".=cell.", ".=lease.", ".=group."].iter().any(|begin| key.starts_with(begin));
    key.is_some_and(is_one)
}

/// Adds what all subjects of a namespace begin with.
pub(super) fn put_bucket(out: &mut String, namespace: &str) {
    out.push_str("$KV.");
    out.push_str(namespace);
    out.push('.');
}

/// The subjects of all keys that begin so, and as few others as can be said.
pub(super) fn under(namespace: &str, prefix: &[u8]) -> String {
    let mut filter = String::new();
    put_bucket(&mut filter, namespace);
    if let Some(end) = prefix.iter().rposition(|byte| *byte == b'.')
        && let Ok(whole) = std::str::from_utf8(&prefix[..end])
    {
        put_key(&mut filter, whole);
        filter.push('.');
    }
    filter.push('>');
    filter
}

/// The key that a subject names; nothing where it is none of ours.
pub(super) fn to_key(namespace: &str, subject: &str) -> Option<String> {
    let encoded = subject.strip_prefix("$KV.")?.strip_prefix(namespace)?.strip_prefix('.')?;
    let mut key = Vec::with_capacity(encoded.len());
    for (index, token) in encoded.split('.').enumerate() {
        if index > 0 {
            key.push(b'.');
        }
        if token != "=" {
            put_decoded(&mut key, token)?;
        }
    }
    let key = String::from_utf8(key).ok()?;
    let mut again = String::with_capacity(encoded.len());
    put_key(&mut again, &key);
    (again == encoded).then_some(key)
}

fn put_decoded(key: &mut Vec<u8>, token: &str) -> Option<()> {
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            key.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        key.push(u8::from_str_radix(digits, 16).ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_that_people_use_stay_readable() {
        for (key, subject) in [
            ("greeting", "$KV.orders.greeting"),
            ("user.42.name", "$KV.orders.user.42.name"),
            ("a/b-c_D", "$KV.orders.a/b-c_D"),
            ("{7}:status", "$KV.orders.=7B7=7D=3Astatus"),
            ("é", "$KV.orders.=C3=A9"),
            ("a=b", "$KV.orders.a=3Db"),
            (".", "$KV.orders.=.="),
            ("a..b.", "$KV.orders.a.=.b.="),
            ("*.>", "$KV.orders.=2A.=3E"),
        ] {
            assert_eq!(of_key("orders", key), subject);
            assert_eq!(to_key("orders", subject).as_deref(), Some(key));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_no_key_of_ours() {
        for subject in [
            "$KV.orders.=41",
            "$KV.orders.=4",
            "$KV.orders.==",
            "$KV.orders.=c3=a9",
            "$KV.orders.=C3",
            "$KV.orders.=+1",
            "$KV.other.a",
            "$KV.orders",
            "orders.a",
            &of_cell("orders", 0),
        ] {
            assert_eq!(to_key("orders", subject), None, "{subject}");
        }
    }

    #[test]
    fn a_prefix_is_pushed_down_as_far_as_its_last_dot() {
        for (prefix, filter) in [
            ("", "$KV.orders.>"),
            ("us", "$KV.orders.>"),
            ("user.", "$KV.orders.user.>"),
            ("user.4", "$KV.orders.user.>"),
            ("a b..c", "$KV.orders.a=20b.=.>"),
            (".", "$KV.orders.=.>"),
        ] {
            assert_eq!(under("orders", prefix.as_bytes()), filter);
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_back_from_its_subject(key in "\\PC{1,40}|[.=a]{1,9}") {
            let subject = of_key("orders", &key);
            prop_assert!(subject.split('.').all(|token| !token.is_empty()));
            prop_assert!(!subject.contains([' ', '*', '>', '\t']));
            prop_assert_eq!(to_key("orders", &subject), Some(key));
        }
    }
}
