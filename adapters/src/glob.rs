//! Globs: `*` any bytes, `?` one byte, `[a-z]` one byte of a set; everything else is itself.
//!
//! Matching is bytewise and takes at most pattern length × key length steps, whatever the pattern.
//! There is no escape: a literal `*`, `?` or `[` is written as a set, `[*]`. Sets cannot be negated.

/// A well-formed pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glob<'a> {
    pattern: &'a [u8],
}

impl<'a> Glob<'a> {
    /// Takes a pattern apart far enough to know that it is well-formed; else says what is wrong.
    pub fn parse(pattern: &'a [u8]) -> Result<Self, &'static str> {
        let mut rest = pattern;
        while let Some((&first, after)) = rest.split_first() {
            rest = if first == b'[' { check_set(after)? } else { after };
        }
        Ok(Glob { pattern })
    }

    /// What every match begins with.
    pub fn literal_prefix(&self) -> &'a [u8] {
        let end = self.pattern.iter().position(|byte| matches!(byte, b'*' | b'?' | b'['));
        &self.pattern[..end.unwrap_or(self.pattern.len())]
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        let pattern = self.pattern;
        let (mut at_pattern, mut at_text) = (0, 0);
        // Where to go on after the latest star has taken in one more byte.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            if at_pattern < pattern.len() && pattern[at_pattern] == b'*' {
                at_pattern += 1;
                retry = Some((at_pattern, at_text));
                continue;
            }
            if at_pattern == pattern.len() && at_text == text.len() {
                return true;
            }
            if at_pattern < pattern.len()
                && at_text < text.len()
                && let Some(after) = match_one(pattern, at_pattern, text[at_text])
            {
                (at_pattern, at_text) = (after, at_text + 1);
                continue;
            }
            match retry {
                Some((after_star, taken)) if taken < text.len() => {
                    retry = Some((after_star, taken + 1));
                    (at_pattern, at_text) = (after_star, taken + 1);
                }
                _ => return false,
            }
        }
    }
}

fn check_set(after_bracket: &[u8]) -> Result<&[u8], &'static str> {
    const OPEN: &str = "a `[` is not closed; write a literal one as `[[]`";
    let mut rest = after_bracket;
    if let Some(b'^' | b'!') = rest.first() {
        return Err("sets cannot be negated");
    }
    let mut first = true;
    loop {
        let (&low, after) = rest.split_first().ok_or(OPEN)?;
        if low == b']' {
            return if first { Err("a set must not be empty") } else { Ok(after) };
        }
        first = false;
        rest = after;
        if let [b'-', high, after @ ..] = rest
            && *high != b']'
        {
            if *high < low {
                return Err("a range of a set ends before it begins");
            }
            rest = after;
        }
    }
}

/// Where the pattern goes on if its next element, which is no star, accepts `byte`.
fn match_one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match pattern[at] {
        b'?' => Some(at + 1),
        b'[' => {
            let mut at = at + 1;
            let mut found = false;
            while pattern[at] != b']' {
                let low = pattern[at];
                let is_range = pattern[at + 1] == b'-' && pattern[at + 2] != b']';
                let high = if is_range { pattern[at + 2] } else { low };
                found |= (low..=high).contains(&byte);
                at += if is_range { 3 } else { 1 };
            }
            found.then_some(at + 1)
        }
        literal => (literal == byte).then_some(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches_and_what_does_not() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "a", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("user:?", "user:1", true),
            ("user:?", "user:", false),
            ("user:?", "user:12", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[a-cx-z]", "y", true),
            ("[abc-]", "-", true),
            ("[-a]", "-", true),
            ("[*]", "*", true),
            ("[*]", "x", false),
            ("[[]", "[", true),
            ("a]", "a]", true),
            ("?", "é", false),
            ("??", "é", true),
            ("\\*", "\\anything", true),
            ("***a", "bba", true),
        ] {
            let glob = Glob::parse(pattern.as_bytes()).unwrap();
            assert_eq!(glob.matches(text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["[", "a[b", "[]", "[]a", "[b-a]", "[^a]", "[!a]", "[a-"] {
            assert!(Glob::parse(pattern.as_bytes()).is_err(), "{pattern}");
        }
    }

    #[test]
    fn the_literal_prefix() {
        for (pattern, prefix) in [("abc", "abc"), ("ab*c", "ab"), ("[a]b", ""), ("x?", "x")] {
            assert_eq!(
                Glob::parse(pattern.as_bytes()).unwrap().literal_prefix(),
                prefix.as_bytes()
            );
        }
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = "*a".repeat(100) + "b";
        let text = "a".repeat(1024);
        assert!(!Glob::parse(pattern.as_bytes()).unwrap().matches(text.as_bytes()));
    }
}
