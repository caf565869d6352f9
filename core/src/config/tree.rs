//! A YAML document as a tree in which every key and value knows its line and column, and the reader that takes
//! settings out of it.
//!
//! A [`Section`] learns its known keys from what is asked of it, so that the list of valid keys cannot differ from
//! what is read. Whatever nobody asked for is an unknown key. Errors are collected in a [`Report`]; reading goes on
//! with the default, so that one run shows all that is wrong.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Spanned};

use super::error::{ConfigError, Origin, Problem, nearest};

/// Largest configuration file that is read.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Nothing,
    /// A scalar that YAML takes for a truth value or a number.
    Plain(String, &'static str),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Value {
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Plain(_, what) => what,
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a section of keys",
        }
    }
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Parses one YAML document. An empty one is an empty section.
pub(super) fn parse(text: &str) -> Result<Node, ConfigError> {
    match serde_saphyr::from_str_with_options::<Option<Node>>(text, options()) {
        Ok(Some(node)) => Ok(node),
        Ok(None) => Ok(Node { origin: Origin::File, value: Value::Nothing }),
        Err(error) => Err(refusal(error.without_snippet())),
    }
}

/// Parses every YAML document of a file; empty ones count for nothing.
pub(super) fn parse_all(text: &str) -> Result<Vec<Node>, ConfigError> {
    serde_saphyr::from_multiple_with_options::<Node>(text, options())
        .map_err(|error| refusal(error.without_snippet()))
}

/// A parser's error in the words of this file's reader rather than of the parser's caller.
fn refusal(error: &Error) -> ConfigError {
    let (message, remedy) = match error {
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(|key| format!(" `{key}`")).unwrap_or_default();
            (format!("the key{key} is there twice"), "leave one of them out")
        }
        Error::MultipleDocuments { .. } => {
            ("a second document starts here".to_string(), "keep everything in one document")
        }
        other => {
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text);
            let remedy = "check the indentation, colons and quotes around this place";
            (format!("not valid YAML: {text}"), remedy)
        }
    };
    let origin = error.location().map_or(Origin::File, place);
    ConfigError { origin, message, remedy: remedy.into() }
}

fn place(location: serde_saphyr::Location) -> Origin {
    Origin::Place { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { origin: place(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a truth value"))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a number"))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a number"))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a number"))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a number"))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Plain(value.to_string(), "a number"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// The errors and warnings found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<String>>,
    /// The keys that each section was asked for.
    asked: RefCell<Vec<(String, Vec<&'static str>)>>,
    /// Files that settings name (secrets, certificates) are left unread: who plans need not be who serves.
    files_unread: bool,
}

impl Report {
    /// A report of a reading that opens no file which settings name.
    pub(super) fn without_files() -> Self {
        Self { files_unread: true, ..Self::default() }
    }

    /// Whether files that settings name are to be read.
    pub(super) fn reads_files(&self) -> bool {
        !self.files_unread
    }

    pub(super) fn error(&self, origin: Origin, problem: Problem) {
        let Problem { message, remedy } = problem;
        self.errors.borrow_mut().push(ConfigError { origin, message, remedy });
    }

    /// The keys that the section called `path` was asked for; empty until its end.
    pub(super) fn asked(&self, path: &str) -> Vec<&'static str> {
        let asked = self.asked.borrow();
        let of_path = asked.iter().filter(|(of, _)| of == path);
        of_path.flat_map(|(_, keys)| keys.iter().copied()).collect()
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The errors in the order of the file, and the warnings.
    pub(super) fn finish(self) -> (Vec<ConfigError>, Vec<String>) {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.origin);
        (errors, self.warnings.into_inner())
    }
}

/// A setting that was read, with its origin for checks that need several of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub origin: Origin,
}

/// A section of keys while it is read.
pub(super) struct Section<'a> {
    report: &'a Report,
    /// What it is called in messages: empty for the top level, else like `limits` or `namespaces[0]`.
    path: String,
    pub(super) origin: Origin,
    /// False where something else than a section stands here, which has been reported.
    valid: bool,
    entries: &'a [(Node, Node)],
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// Takes `node` for a section. Nothing at all is an empty one; anything else is an error and an empty one.
    pub(super) fn new(node: &'a Node, path: impl Into<String>, report: &'a Report) -> Self {
        let path = path.into();
        let (valid, entries): (_, &[(Node, Node)]) = match &node.value {
            Value::Map(entries) => (true, entries),
            Value::Nothing => (true, &[]),
            other => {
                let subject = if path.is_empty() { "the file" } else { path.as_str() };
                let message = format!("{subject} is a section of keys, not {}", other.what());
                report.error(node.origin, Problem::new(message, "write `key: value` lines here"));
                (false, &[])
            }
        };
        Self { report, path, origin: node.origin, valid, entries, known: RefCell::default() }
    }

    /// The name of `key` in messages.
    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// The section's own name in messages.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the file may be told that it lacks `key` here: it is a section and has no such key.
    pub(super) fn lacks(&self, key: &str) -> bool {
        self.valid
            && !self
                .entries
                .iter()
                .any(|(name, _)| matches!(&name.value, Value::Text(text) if text == key))
    }

    /// Whether a section stands here; anything else has been reported.
    pub(super) fn is_section(&self) -> bool {
        self.valid
    }

    /// The report that its errors go to.
    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// The text under `key`, without asking for the key.
    pub(super) fn peek(&self, key: &str) -> Option<&'a str> {
        let is_key = |node: &Node| matches!(&node.value, Value::Text(text) if text == key);
        match &self.entries.iter().find(|(name, _)| is_key(name))?.1.value {
            Value::Text(text) | Value::Plain(text, _) => Some(text),
            _ => None,
        }
    }

    /// What stands under `key`, and the name of that place in messages.
    pub(super) fn node(&self, key: &'static str) -> Option<(&'a Node, String)> {
        self.find(key).map(|node| (node, self.name(key)))
    }

    fn find(&self, key: &'static str) -> Option<&'a Node> {
        self.known.borrow_mut().push(key);
        let is_key = |node: &Node| matches!(&node.value, Value::Text(text) if text == key);
        self.entries.iter().find(|(name, _)| is_key(name)).map(|(_, value)| value)
    }

    /// A section below this one; `None` where the file does not have it.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        self.find(key).map(|node| Section::new(node, self.name(key), self.report))
    }

    /// The items of a list of sections; `None` where the file does not have it.
    pub(super) fn sections(&self, key: &'static str) -> Option<(Origin, Vec<Section<'a>>)> {
        let node = self.find(key)?;
        match &node.value {
            Value::List(items) => {
                let section = |(index, item)| {
                    Section::new(item, format!("{}[{index}]", self.name(key)), self.report)
                };
                Some((node.origin, items.iter().enumerate().map(section).collect()))
            }
            other => {
                let message = format!("{} is a list, not {}", self.name(key), other.what());
                let remedy = "start each item with `- ` on a line of its own";
                self.report.error(node.origin, Problem::new(message, remedy));
                None
            }
        }
    }

    /// A single value, or a list of them where `read` takes text separated by commas.
    pub(super) fn value<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Setting<T> {
        self.optional(key, read).unwrap_or(Setting { value: default, origin: Origin::Default })
    }

    /// Like [`Section::value`], without a default.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Setting<T>> {
        let node = self.find(key)?;
        let text = match &node.value {
            Value::Text(text) | Value::Plain(text, _) => text.as_str(),
            other => {
                let message = format!("{} is a single value, not {}", self.name(key), other.what());
                let remedy = format!("write `{key}: VALUE`, or leave the key out for the default");
                self.report.error(node.origin, Problem::new(message, remedy));
                return None;
            }
        };
        self.read(key, node.origin, text, read)
    }

    /// A list of single values as text separated by commas: `[0, 2-3]` and `0, 2-3` are the same.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Setting<T>> {
        let node = self.find(key)?;
        let mut parts = Vec::new();
        let nodes = match &node.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        for item in nodes {
            match &item.value {
                Value::Text(text) | Value::Plain(text, _) => parts.push(text.as_str()),
                other => {
                    let message =
                        format!("{} lists single values, not {}", self.name(key), other.what());
                    let remedy = format!("write them as `{key}: [0, 2-3]`");
                    self.report.error(item.origin, Problem::new(message, remedy));
                    return None;
                }
            }
        }
        self.read(key, node.origin, &parts.join(","), read)
    }

    fn read<T>(
        &self,
        key: &str,
        origin: Origin,
        text: &str,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Setting<T>> {
        match read(text) {
            Ok(value) => Some(Setting { value, origin }),
            Err(problem) => {
                let message = format!("{}: {}", self.name(key), problem.message);
                self.report.error(origin, Problem::new(message, problem.remedy));
                None
            }
        }
    }

    /// Refuses every key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.into_inner();
        for (key, _) in self.entries {
            let (Value::Text(name) | Value::Plain(name, _)) = &key.value else {
                let message = format!("a key is text, not {}", key.value.what());
                self.report.error(key.origin, Problem::new(message, "write `key: value`"));
                continue;
            };
            if known.contains(&name.as_str()) {
                continue;
            }
            let within =
                if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) };
            let remedy = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys here are: {}", known.join(", ")),
            };
            let message = format!("unknown key `{name}`{within}");
            self.report.error(key.origin, Problem::new(message, remedy));
        }
        self.report.asked.borrow_mut().push((self.path, known));
    }
}
