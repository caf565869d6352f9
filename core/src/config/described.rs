//! Sections that are described once, as a type: how they are read at their place, and what JSON Schema says of them, both
//! come from the same description.
//!
//! [`section!`](crate::section) makes a type from a list of keys, [`choices!`](crate::choices) one from a list of words. A
//! [`Scalar`] is a single value with its text form. The documentation comments are the schema's descriptions, so that an
//! editor shows them.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::error::{Origin, Problem, nearest};
use super::tree::{Node, Report, Section, Setting, Value};
use super::units::{self, show_bytes, show_duration};

/// Something that can stand in a file.
pub trait Described: Sized {
    /// As it may be written after `key: ` in a remedy.
    const EXAMPLE: &'static str;

    /// Reads it, or reports what is wrong and gives `None`. `path` is what this place is called in messages.
    #[doc(hidden)]
    fn read(place: Place<'_>) -> Option<Self>;

    /// Its JSON Schema (draft 2020-12).
    fn schema() -> Json;
}

/// A place in a file while it is read.
#[doc(hidden)]
pub struct Place<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) report: &'a Report,
}

/// A single value with a text form.
pub trait Scalar: Sized {
    /// As it may be written.
    const WRITTEN: &'static str;

    /// From its text; the error says what is wrong and what to write instead.
    fn parse(text: &str) -> Result<Self, (String, String)>;

    /// Its JSON Schema.
    fn form() -> Json;
}

impl<T: Scalar> Described for T {
    const EXAMPLE: &'static str = T::WRITTEN;

    fn read(place: Place<'_>) -> Option<Self> {
        let Place { node, path, report } = place;
        let text = match &node.value {
            Value::Text(text) | Value::Plain(text, _) => text,
            other => {
                let message = format!("{path} is a single value, not {}", other.what());
                let remedy = format!("write a value such as `{}`", T::WRITTEN);
                report.error(node.origin, Problem::new(message, remedy));
                return None;
            }
        };
        match T::parse(text) {
            Ok(value) => Some(value),
            Err((message, remedy)) => {
                report.error(node.origin, Problem::new(format!("{path}: {message}"), remedy));
                None
            }
        }
    }

    fn schema() -> Json {
        T::form()
    }
}

impl<T: Described> Described for Setting<T> {
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn read(place: Place<'_>) -> Option<Self> {
        let origin = place.node.origin;
        T::read(place).map(|value| Self { value, origin })
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// What a key of a section holds; how it behaves when the key is missing is the type's.
pub trait Field: Sized {
    /// The key has to be there.
    const REQUIRED: bool;

    /// Takes it out of its section; `None` where it is missing or wrong, which has been reported.
    #[doc(hidden)]
    fn take(section: &Reading<'_>, key: &'static str) -> Option<Self>;

    /// Its JSON Schema.
    fn schema() -> Json;
}

/// A section while it is read.
#[doc(hidden)]
pub struct Reading<'a>(pub(super) Section<'a>);

impl<'a> Reading<'a> {
    /// Takes the place for a section.
    pub fn begin(place: Place<'a>) -> Self {
        Self(Section::new(place.node, place.path, place.report))
    }

    /// Refuses every key that nobody asked for.
    pub fn end(self) {
        self.0.finish();
    }

    /// The place under `key`.
    fn place(&self, key: &'static str) -> Option<Place<'a>> {
        let (node, path) = self.0.node(key)?;
        let is_empty = matches!(node.value, Value::Nothing);
        (!is_empty).then(|| Place { node, path, report: self.0.report() })
    }
}

impl<T: Described> Field for Setting<T> {
    const REQUIRED: bool = true;

    fn take(section: &Reading<'_>, key: &'static str) -> Option<Self> {
        let Some(place) = section.place(key) else {
            if section.0.is_section() {
                let subject = match section.0.path() {
                    "" => "this document",
                    path => path,
                };
                let remedy = format!("add a line such as `{key}: {}`", T::EXAMPLE);
                let problem = Problem::new(format!("{subject} has no `{key}`"), remedy);
                section.0.report().error(section.0.origin, problem);
            }
            return None;
        };
        Self::read(place)
    }

    fn schema() -> Json {
        T::schema()
    }
}

impl<T: Described> Field for Option<Setting<T>> {
    const REQUIRED: bool = false;

    fn take(section: &Reading<'_>, key: &'static str) -> Option<Self> {
        match section.place(key) {
            None => Some(None),
            Some(place) => Setting::read(place).map(Some),
        }
    }

    fn schema() -> Json {
        T::schema()
    }
}

impl<T: Described> Field for Vec<T> {
    const REQUIRED: bool = false;

    fn take(section: &Reading<'_>, key: &'static str) -> Option<Self> {
        let Some(Place { node, path, report }) = section.place(key) else {
            return Some(Vec::new());
        };
        let Value::List(items) = &node.value else {
            let message = format!("{path} is a list, not {}", node.value.what());
            let remedy = "start each item with `- ` on a line of its own";
            report.error(node.origin, Problem::new(message, remedy));
            return None;
        };
        let item =
            |(index, node)| T::read(Place { node, path: format!("{path}[{index}]"), report });
        // What is wrong with one item does not hide what is wrong with the next.
        let read: Vec<Option<T>> = items.iter().enumerate().map(item).collect();
        read.into_iter().collect()
    }

    fn schema() -> Json {
        json!({"type": "array", "items": T::schema()})
    }
}

/// A section that may be left out; its type's default then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Within<T>(pub T);

impl<T> Deref for Within<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Described + Default> Field for Within<T> {
    const REQUIRED: bool = false;

    fn take(section: &Reading<'_>, key: &'static str) -> Option<Self> {
        match section.place(key) {
            None => Some(Self::default()),
            Some(place) => T::read(place).map(Self),
        }
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// Declares a section: a type with a field for each key. The field's type says whether the key has to be there
/// (`Setting`), may be missing (`Option<Setting>`, `Within`) or is a list (`Vec`).
#[macro_export]
#[doc(hidden)]
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $(#[derive($($derive:ident),*)])?
        pub struct $Section:ident {
            $($(#[doc = $doc:literal])* pub $key:ident: $Type:ty,)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq $($(, $derive)*)?)]
        pub struct $Section {
            $($(#[doc = $doc])* pub $key: $Type,)*
        }

        impl $crate::config::described::Described for $Section {
            const EXAMPLE: &'static str = "{…}";

            fn read(place: $crate::config::described::Place<'_>) -> Option<Self> {
                use $crate::config::described::{Field, Reading, key};
                let section = Reading::begin(place);
                $(let $key = <$Type as Field>::take(&section, key(stringify!($key)));)*
                section.end();
                Some(Self { $($key: $key?,)* })
            }

            fn schema() -> serde_json::Value {
                use $crate::config::described::{Field, key, object};
                object(concat!($($about),*), vec![
                    $((
                        key(stringify!($key)),
                        concat!($($doc),*),
                        <$Type as Field>::schema(),
                        <$Type as Field>::REQUIRED,
                    ),)*
                ])
            }
        }
    };
}

/// Declares a choice between words.
#[macro_export]
#[doc(hidden)]
macro_rules! choices {
    (
        $(#[$about:meta])*
        pub enum $Choice:ident {
            $($(#[doc = $doc:literal])* $Variant:ident = $word:literal,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Choice {
            $($(#[doc = $doc])* $Variant,)*
        }

        impl $Choice {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$Variant,)*];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $word,)*
                }
            }
        }

        impl std::fmt::Display for $Choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl $crate::config::described::Scalar for $Choice {
            const WRITTEN: &'static str = [$($word),*][0];

            fn parse(text: &str) -> Result<Self, (String, String)> {
                let found = Self::ALL.iter().copied().find(|choice| choice.name() == text);
                found.ok_or_else(|| {
                    $crate::config::described::not_one_of(text, &[$($word),*])
                })
            }

            fn form() -> serde_json::Value {
                serde_json::json!({"oneOf": [
                    $({"const": $word, "description": concat!($($doc),*).trim()},)*
                ]})
            }
        }
    };
}

/// The refusal of a word that is not among `words`.
#[doc(hidden)]
pub fn not_one_of(text: &str, words: &[&str]) -> (String, String) {
    let remedy = match nearest(text, words.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write one of {}", words.join(", ")),
    };
    (format!("`{text}` is not one of {}", words.join(", ")), remedy)
}

/// A field's name as a key: a word of Rust's own (`r#type`) stands there as itself.
#[doc(hidden)]
pub fn key(field: &'static str) -> &'static str {
    field.strip_prefix("r#").unwrap_or(field)
}

/// The schema of a section.
#[doc(hidden)]
pub fn object(about: &str, keys: Vec<(&str, &str, Json, bool)>) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, doc, mut schema, is_required) in keys {
        if let (Some(schema), false) = (schema.as_object_mut(), doc.is_empty()) {
            schema.insert("description".into(), doc.trim().into());
        }
        properties.insert(key.into(), schema);
        if is_required {
            required.push(key);
        }
    }
    let mut object = json!({
        "type": "object",
        "description": about.trim(),
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

/// A size, such as `50KB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A span of time, such as `30days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Events a second, such as `5k`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

/// Bytes a second, such as `10MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRate(pub u64);

/// A whole number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u32);

/// A whole number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Index(pub u32);

/// Yes or no; also written `enabled` and `disabled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

/// A name: a lower-case letter, then up to 62 lower-case letters, digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub String);

/// One line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(pub String);

/// A day, such as `2027-01-31`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub units::Date);

/// How quick calls have to be, such as `p99 < 10ms`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency(pub units::Objective);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&show_bytes(self.0))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&show_duration(self.0))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&units::show_rate(self.0))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", show_bytes(self.0))
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn refused(error: units::UnitError) -> (String, String) {
    (error.message, error.remedy)
}

/// Zero of something that is asked for is a slip of the pen.
fn not_zero<T>(text: &str, value: T, is_zero: bool) -> Result<T, (String, String)> {
    if is_zero {
        let remedy = "write more than nothing, or leave the key out".to_owned();
        return Err((format!("`{text}` is nothing at all"), remedy));
    }
    Ok(value)
}

impl Scalar for Size {
    const WRITTEN: &'static str = "50KB";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let bytes = units::bytes(text).map_err(refused)?;
        not_zero(text, Self(bytes), bytes == 0)
    }

    fn form() -> Json {
        json!({
            "type": ["integer", "string"], "minimum": 1,
            "pattern": r"^[0-9][0-9_]*(\.[0-9_]+)? *([KkMmGgTt][Ii]?[Bb]|[Bb]|bytes?)?$",
            "examples": ["50KB", "64MiB", "1.5GiB"],
        })
    }
}

impl Scalar for Span {
    const WRITTEN: &'static str = "30days";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let span = units::duration(text).map_err(refused)?;
        not_zero(text, Self(span), span.is_zero())
    }

    fn form() -> Json {
        json!({
            "type": "string",
            "pattern": r"^([0-9][0-9_]*(\.[0-9_]+)? *[a-zµμ]+ *)+$",
            "examples": ["30days", "1h30m", "500ms"],
        })
    }
}

impl Scalar for Rate {
    const WRITTEN: &'static str = "5k";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let rate = units::rate(text).map_err(refused)?;
        not_zero(text, Self(rate), rate == 0.0)
    }

    fn form() -> Json {
        json!({
            "type": ["number", "string"], "exclusiveMinimum": 0,
            "pattern": r"^[0-9][0-9_]*(\.[0-9_]+)? *[kKMG]?( */ *(s|sec|second|m|min|minute|h|hour|d|day))?$",
            "examples": [1000, "5k", "300/min"],
        })
    }
}

impl Scalar for ByteRate {
    const WRITTEN: &'static str = "10MB/s";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let rate = units::byte_rate(text).map_err(refused)?;
        not_zero(text, Self(rate), rate == 0)
    }

    fn form() -> Json {
        json!({
            "type": "string",
            "pattern": r"^[0-9][0-9_]*(\.[0-9_]+)? *([KkMmGgTt][Ii]?[Bb]|[Bb]|bytes?) */ *s$",
            "examples": ["10MB/s"],
        })
    }
}

impl Scalar for Count {
    const WRITTEN: &'static str = "50";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        match text.replace('_', "").parse() {
            Ok(count) if count > 0 => Ok(Self(count)),
            _ => Err((
                format!("`{text}` is not a whole number from 1 to {}", u32::MAX),
                "write a whole number, such as 50".to_owned(),
            )),
        }
    }

    fn form() -> Json {
        json!({"type": "integer", "minimum": 1, "maximum": u32::MAX})
    }
}

impl Scalar for Index {
    const WRITTEN: &'static str = "0";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let problem = |_| {
            let remedy = "write a whole number, such as 0".to_owned();
            (format!("`{text}` is not a whole number from 0 to {}", u32::MAX), remedy)
        };
        text.replace('_', "").parse().map(Self).map_err(problem)
    }

    fn form() -> Json {
        json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
    }
}

impl Scalar for Switch {
    const WRITTEN: &'static str = "true";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        match text {
            "true" | "enabled" => Ok(Self(true)),
            "false" | "disabled" => Ok(Self(false)),
            _ => Err(not_one_of(text, &["true", "false", "enabled", "disabled"])),
        }
    }

    fn form() -> Json {
        json!({"enum": [true, false, "enabled", "disabled"]})
    }
}

impl Scalar for Name {
    const WRITTEN: &'static str = "checkout";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        if super::namespace_name_valid(text) {
            return Ok(Self(text.to_owned()));
        }
        let remedy =
            "write a lower-case letter, then up to 62 lower-case letters, digits and dashes";
        Err((format!("`{}` is not a name", text.escape_debug()), remedy.to_owned()))
    }

    fn form() -> Json {
        json!({"type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}$"})
    }
}

/// Longest line of text that a key may hold, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;

impl Scalar for Text {
    const WRITTEN: &'static str = "\"…\"";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let is_line = !text.is_empty() && !text.chars().any(char::is_control);
        if is_line && text.len() <= TEXT_BYTES_MAX {
            return Ok(Self(text.to_owned()));
        }
        let remedy = format!("write one line of up to {TEXT_BYTES_MAX} bytes");
        Err(("it is not one line of text".to_owned(), remedy))
    }

    fn form() -> Json {
        json!({"type": "string", "minLength": 1, "maxLength": TEXT_BYTES_MAX})
    }
}

impl Scalar for Day {
    const WRITTEN: &'static str = "2027-01-31";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        units::date(text).map(Self).map_err(refused)
    }

    fn form() -> Json {
        json!({"type": "string", "format": "date"})
    }
}

impl Scalar for Latency {
    const WRITTEN: &'static str = "p99 < 10ms";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        units::objective(text).map(Self).map_err(refused)
    }

    fn form() -> Json {
        json!({
            "type": "string",
            "pattern": r"^p[0-9]+(\.[0-9]+)? *<=? *([0-9][0-9_]*(\.[0-9_]+)? *[a-zµμ]+ *)+$",
            "examples": ["p99 < 10ms"],
        })
    }
}

/// Reads a whole document as a section.
pub(super) fn read_document<T: Described>(node: &Node, report: &Report) -> Option<T> {
    T::read(Place { node, path: String::new(), report })
}

/// A place of a message for people: `file:3:5`.
pub(crate) fn show_place(file: &str, origin: Origin) -> String {
    match origin {
        Origin::Place { line, column } => format!("{file}:{line}:{column}"),
        _ => file.to_owned(),
    }
}
