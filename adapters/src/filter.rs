//! The filter by attributes: `country = "CH" AND (amount > 100 OR has(urgent))`; written once, above the backends.
//!
//! ```text
//! or  := and {OR and}      and := not {AND not}      not := [NOT] (cmp | '(' or ')')
//! cmp := field (= != < <= > >=) literal | field IN (literal {, literal}) | field STARTS_WITH "…" | has(field)
//! ```
//! A missing field makes a comparison false, `!=` included. A text literal compares bytewise. A number literal compares
//! exactly with attributes that are decimal numbers; with any other the comparison is false. At most 1 KiB, 16
//! comparisons, parentheses and NOTs 4 deep.

use std::cmp::Ordering;

/// A filter's length in bytes.
pub const FILTER_BYTES_MAX: usize = 1024;
/// Comparisons of one filter.
pub const FILTER_COMPARISONS_MAX: usize = 16;
/// How deep parentheses and NOTs may nest.
pub const FILTER_DEPTH_MAX: usize = 4;

/// A filter that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Option<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Any(Vec<Node>),
    All(Vec<Node>),
    Not(Box<Node>),
    Has(String),
    Compare(String, Operator, Literal),
    In(String, Vec<Literal>),
    StartsWith(String, String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(String),
}

impl Filter {
    /// Understands a filter; the empty one matches everything.
    ///
    /// # Errors
    /// What is wrong, and at which byte.
    pub fn parse(text: &str) -> Result<Filter, String> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(format!(
                "has {} bytes, at most {FILTER_BYTES_MAX} are allowed",
                text.len()
            ));
        }
        if text.is_empty() {
            return Ok(Filter(None));
        }
        let mut parser = Parser { text, at: 0, comparisons: 0 };
        let node = parser.or(0)?;
        parser.skip_spaces();
        if parser.at < text.len() {
            return Err(parser.expected("AND, OR or the end"));
        }
        Ok(Filter(Some(node)))
    }

    /// Whether it matches attributes, which are looked up by name.
    pub fn matches<'a>(&self, attribute: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.as_ref().is_none_or(|node| node.matches(&attribute))
    }

    /// Whether it matches everything, because it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What a field must begin with for the filter to match; empty where that cannot be told.
    pub fn prefix_of(&self, field: &str) -> &str {
        self.0.as_ref().map_or("", |node| node.prefix_of(field))
    }
}

impl Node {
    fn matches<'a>(&self, attribute: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Node::Any(nodes) => nodes.iter().any(|node| node.matches(attribute)),
            Node::All(nodes) => nodes.iter().all(|node| node.matches(attribute)),
            Node::Not(node) => !node.matches(attribute),
            Node::Has(field) => attribute(field).is_some(),
            Node::Compare(field, operator, literal) => attribute(field)
                .and_then(|value| literal.compare(value))
                .is_some_and(|ordering| operator.holds(ordering)),
            Node::In(field, literals) => attribute(field).is_some_and(|value| {
                literals.iter().any(|literal| literal.compare(value) == Some(Ordering::Equal))
            }),
            Node::StartsWith(field, prefix) => {
                attribute(field).is_some_and(|value| value.starts_with(prefix.as_str()))
            }
        }
    }

    fn prefix_of(&self, asked: &str) -> &str {
        match self {
            Node::StartsWith(field, prefix) if field == asked => prefix,
            Node::Compare(field, Operator::Equal, literal) if field == asked => literal.prefix(),
            Node::In(field, literals) if field == asked => {
                common_prefix(literals.iter().map(Literal::prefix))
            }
            Node::Any(nodes) => common_prefix(nodes.iter().map(|node| node.prefix_of(asked))),
            Node::All(nodes) => {
                let prefixes = nodes.iter().map(|node| node.prefix_of(asked));
                prefixes.max_by_key(|prefix| prefix.len()).unwrap_or_default()
            }
            _ => "",
        }
    }
}

/// What all of them begin with.
fn common_prefix<'a>(mut texts: impl Iterator<Item = &'a str>) -> &'a str {
    let first = texts.next().unwrap_or_default();
    texts.fold(first, |common, text| {
        let alike = common.chars().zip(text.chars()).take_while(|(left, right)| left == right);
        &common[..alike.map(|(left, _)| left.len_utf8()).sum()]
    })
}

impl Operator {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Operator::Equal => ordering.is_eq(),
            Operator::NotEqual => ordering.is_ne(),
            Operator::Less => ordering.is_lt(),
            Operator::LessOrEqual => ordering.is_le(),
            Operator::Greater => ordering.is_gt(),
            Operator::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

impl Literal {
    /// What a value must begin with to be equal; a number is written in many ways.
    fn prefix(&self) -> &str {
        match self {
            Literal::Text(text) => text,
            Literal::Number(_) => "",
        }
    }

    /// How an attribute's value compares with it; `None` where the two cannot be compared.
    fn compare(&self, value: &str) -> Option<Ordering> {
        match self {
            Literal::Text(text) => Some(value.cmp(text)),
            Literal::Number(number) => compare_decimals(value, number),
        }
    }
}

/// Compares two decimal numbers exactly, `None` if one of them is none.
fn compare_decimals(left: &str, right: &str) -> Option<Ordering> {
    let (left, right) = (Decimal::parse(left)?, Decimal::parse(right)?);
    let magnitude = || {
        let by_length = left.whole.len().cmp(&right.whole.len());
        by_length.then_with(|| left.whole.cmp(right.whole)).then_with(|| left.part.cmp(right.part))
    };
    Some(match (left.negative, right.negative) {
        (false, false) => magnitude(),
        (true, true) => magnitude().reverse(),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    })
}

struct Decimal<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    /// Without trailing zeros.
    part: &'a str,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, part) = digits.split_once('.').map_or((digits, None), |(w, p)| (w, Some(p)));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !part.is_none_or(digits) {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        let part = part.unwrap_or_default().trim_end_matches('0');
        // There is one zero.
        Some(Decimal { negative: negative && !(whole.is_empty() && part.is_empty()), whole, part })
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    comparisons: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self, depth: usize) -> Result<Node, String> {
        let mut nodes = vec![self.and(depth)?];
        while self.word("OR") {
            nodes.push(self.and(depth)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) })
    }

    fn and(&mut self, depth: usize) -> Result<Node, String> {
        let mut nodes = vec![self.not(depth)?];
        while self.word("AND") {
            nodes.push(self.not(depth)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) })
    }

    fn not(&mut self, depth: usize) -> Result<Node, String> {
        if self.word("NOT") {
            let deeper = self.deeper(depth)?;
            return Ok(Node::Not(Box::new(self.not(deeper)?)));
        }
        if self.symbol("(") {
            let deeper = self.deeper(depth)?;
            let node = self.or(deeper)?;
            self.expect(")")?;
            return Ok(node);
        }
        self.comparison()
    }

    fn deeper(&self, depth: usize) -> Result<usize, String> {
        if depth == FILTER_DEPTH_MAX {
            return Err(format!("nests more than {FILTER_DEPTH_MAX} deep at byte {}", self.at));
        }
        Ok(depth + 1)
    }

    fn comparison(&mut self) -> Result<Node, String> {
        self.comparisons += 1;
        if self.comparisons > FILTER_COMPARISONS_MAX {
            return Err(format!("has more than {FILTER_COMPARISONS_MAX} comparisons"));
        }
        let field = self.field()?;
        if field == "has" && self.symbol("(") {
            let field = self.field()?;
            self.expect(")")?;
            return Ok(Node::Has(field.to_owned()));
        }
        let field = field.to_owned();
        if self.word("IN") {
            self.expect("(")?;
            let mut literals = vec![self.literal()?];
            while self.symbol(",") {
                literals.push(self.literal()?);
            }
            self.expect(")")?;
            return Ok(Node::In(field, literals));
        }
        if self.word("STARTS_WITH") {
            return match self.literal()? {
                Literal::Text(prefix) => Ok(Node::StartsWith(field, prefix)),
                Literal::Number(_) => Err(self.expected("a text in double quotes")),
            };
        }
        for (symbol, operator) in [
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("=", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ] {
            if self.symbol(symbol) {
                return Ok(Node::Compare(field, operator, self.literal()?));
            }
        }
        Err(self.expected("=, !=, <, <=, >, >=, IN or STARTS_WITH"))
    }

    fn field(&mut self) -> Result<&'a str, String> {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        let is_part = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        };
        let length = rest.bytes().take_while(|byte| is_part(*byte)).count();
        if !rest.starts_with(|first: char| first.is_ascii_lowercase()) || length > 64 {
            return Err(self.expected("the name of an attribute, NOT or ("));
        }
        self.at += length;
        Ok(&rest[..length])
    }

    fn literal(&mut self) -> Result<Literal, String> {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut characters = quoted.char_indices();
            while let Some((index, character)) = characters.next() {
                match character {
                    '"' => {
                        self.at += index + 2;
                        return Ok(Literal::Text(text));
                    }
                    '\\' => match characters.next() {
                        Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                        _ => return Err(self.expected("\\\" or \\\\ after a backslash in a text")),
                    },
                    other => text.push(other),
                }
            }
            return Err(self.expected("a closing double quote for the text"));
        }
        let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let length = rest.bytes().take_while(|byte| is_part(*byte)).count();
        if Decimal::parse(&rest[..length]).is_none() {
            return Err(self.expected("a text in double quotes or a decimal number"));
        }
        self.at += length;
        Ok(Literal::Number(rest[..length].to_owned()))
    }

    /// Passes over a keyword, if it is the next word.
    fn word(&mut self, word: &str) -> bool {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        let is_next = rest.strip_prefix(word).is_some_and(|after| {
            !after
                .starts_with(|next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '-'))
        });
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        self.skip_spaces();
        let is_next = self.text[self.at..].starts_with(symbol);
        self.at += if is_next { symbol.len() } else { 0 };
        is_next
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.expected(symbol)) }
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn expected(&self, what: &str) -> String {
        format!("expects {what} at byte {}", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(filter: &str) -> bool {
        let attribute = |name: &str| match name {
            "country" => Some("CH"),
            "amount" => Some("100.50"),
            "low" => Some("-3"),
            "note" => Some("say \"hi\" \\ é"),
            "empty" => Some(""),
            "or" => Some("x"),
            _ => None,
        };
        Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}")).matches(attribute)
    }

    #[test]
    fn comparisons_mean_what_they_say() {
        for filter in [
            "",
            r#"country = "CH""#,
            r#"country != "DE""#,
            r#"country < "CI" AND country > "CG" AND country >= "CH" AND country <= "CH""#,
            "amount = 100.5",
            "amount = 0100.500",
            "amount > 100 AND amount < 101 AND amount >= 100.50 AND amount <= 100.5",
            "amount > 99",
            "low < 0 AND low > -3.1 AND low = -3.0",
            r#"country IN ("DE", "CH") AND amount IN (1, 100.5)"#,
            r#"country STARTS_WITH "C" AND country STARTS_WITH """#,
            r#"note = "say \"hi\" \\ é""#,
            "has(country) AND has(empty) AND NOT has(nothing)",
            r#"NOT (country = "DE" OR nothing = "x")"#,
            r#"country = "DE" AND country = "FR" OR country = "CH""#,
            r#"or = "x" OR or = "y""#,
        ] {
            assert!(holds(filter), "{filter}");
        }
        for filter in [
            r#"nothing = "x""#,
            r#"nothing != "x""#,
            "country > 1",
            "country != 1",
            "empty = 0",
            r#"amount = "100.5""#,
            r#"country = "DE" OR country = "FR" AND country = "CH""#,
            r#"country = "ch""#,
        ] {
            assert!(!holds(filter), "{filter}");
        }
    }

    #[test]
    fn bounds_and_mistakes_are_refused_with_their_place() {
        let many = |count| vec!["a = 1"; count].join(" AND ");
        let deep = |depth| format!("{}a = 1{}", "(".repeat(depth), ")".repeat(depth));
        let long = |bytes: usize| format!("a = \"{}\"", "x".repeat(bytes - 6));
        for good in [many(16), deep(4), long(1024), "NOT NOT NOT NOT a = 1".to_owned()] {
            Filter::parse(&good).unwrap();
        }
        for bad in [many(17), deep(5), long(1025), "NOT NOT NOT NOT NOT a = 1".to_owned()] {
            Filter::parse(&bad).unwrap_err();
        }
        for (bad, place) in [
            (" ", "byte 1"),
            ("a", "byte 1"),
            ("a =", "byte 3"),
            ("a = b", "byte 4"),
            ("a = 1 b = 2", "byte 6"),
            ("a = 1.", "byte 4"),
            ("a = 1 AND", "byte 9"),
            ("(a = 1", "byte 6"),
            ("A = 1", "byte 0"),
            ("a = \"x", "byte 4"),
            ("a IN ()", "byte 6"),
            ("a STARTS_WITH 1", "byte 15"),
            ("has()", "byte 4"),
            ("é = 1", "byte 0"),
        ] {
            let error = Filter::parse(bad).expect_err(bad);
            assert!(error.ends_with(place), "{bad}: {error}");
        }
    }

    #[test]
    fn what_a_field_must_begin_with_is_told() {
        for (filter, prefix) in [
            ("", ""),
            (r#"key STARTS_WITH "ab""#, "ab"),
            (r#"key = "ab""#, "ab"),
            ("key = 12", ""),
            (r#"key != "ab""#, ""),
            (r#"key >= "ab""#, ""),
            (r#"NOT key STARTS_WITH "ab""#, ""),
            (r#"other STARTS_WITH "ab""#, ""),
            (r#"key STARTS_WITH "a" AND key STARTS_WITH "abc" AND has(x)"#, "abc"),
            (r#"key STARTS_WITH "abc" OR key = "abd""#, "ab"),
            (r#"key STARTS_WITH "abc" OR has(x)"#, ""),
            (r#"key IN ("aé1", "aè2")"#, "a"),
            (r#"key IN ("a", 1)"#, ""),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().prefix_of("key"), prefix, "{filter}");
        }
    }
}
