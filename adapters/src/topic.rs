//! Names of topics, queues, streams and groups, and the patterns that topics are subscribed to by; the same on every backend.

use crate::error::Error;

/// A name's length in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// A name is tokens `[A-Za-z0-9_-]+` joined by dots, 1 to 200 bytes.
pub fn check_name(field: &str, name: &str) -> Result<(), Error> {
    check_length(field, name)?;
    if name.split('.').all(is_token) {
        return Ok(());
    }
    let expected = "must be tokens of A-Z a-z 0-9 _ - joined by dots, without an empty token";
    Err(Error::field("NAME_INVALID", field, expected))
}

/// A pattern is a name in which a token may be `*` (any one token) and the last may be `>` (one token or more).
pub fn check_pattern(field: &str, pattern: &str) -> Result<(), Error> {
    check_length(field, pattern)?;
    let last = pattern.split('.').count() - 1;
    let sound = |(index, token): (usize, &str)| {
        token == "*" || (token == ">" && index == last) || is_token(token)
    };
    if pattern.split('.').enumerate().all(sound) {
        return Ok(());
    }
    let expected = "must be tokens of A-Z a-z 0-9 _ - joined by dots, with `*` for one token and `>` \
                    for the rest, at the end only";
    Err(Error::field("PATTERN_INVALID", field, expected))
}

/// Whether a topic matches a pattern.
pub fn matches(pattern: &str, topic: &str) -> bool {
    let (mut patterns, mut tokens) = (pattern.split('.'), topic.split('.'));
    loop {
        match (patterns.next(), tokens.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(pattern), Some(token)) if pattern == token => {}
            _ => return false,
        }
    }
}

fn check_length(field: &str, name: &str) -> Result<(), Error> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    let expected = format!("has {} bytes, 1 to {NAME_BYTES_MAX} are allowed", name.len());
    Err(Error::field("NAME_INVALID", field, expected))
}

fn is_token(token: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !token.is_empty() && token.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_their_limits() {
        for good in ["a", "orders.eu-west_1.new", "A.0", &"n".repeat(200)] {
            check_name("topic", good).unwrap();
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "é", "a/b", "*", "a.>", &"n".repeat(201)] {
            assert_eq!(check_name("topic", bad).unwrap_err().reason(), "NAME_INVALID", "{bad}");
        }
    }

    #[test]
    fn patterns_at_their_limits() {
        for good in ["*", ">", "a.*", "a.>", "*.b.*.>", "a.b"] {
            check_pattern("pattern", good).unwrap();
        }
        for bad in ["a.>.b", ">.a", "a*", "a.**", "a..b", "a.", "*>", "a >"] {
            assert_eq!(check_pattern("pattern", bad).unwrap_err().reason(), "PATTERN_INVALID");
        }
    }

    #[test]
    fn wildcards_stand_for_whole_tokens() {
        for (pattern, topic, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("*", "a", true),
            ("*", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b.d", false),
            (">", "a", true),
            (">", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.>", "a.b", true),
            ("*.>", "a", false),
            ("A", "a", false),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }
}
