//! Writes `prism_proto::view`: for each message of the viewed packages, and
//! each message that they use, a borrowed struct with a decoder and, where
//! nothing is repeated, an encoder.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor};

type Written = Result<(), Box<dyn Error>>;

/// The views as Rust: one module per package.
pub(crate) fn generate(pool: &DescriptorPool, packages: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut messages = BTreeMap::new();
    for message in pool.all_messages() {
        if packages.contains(&message.package_name()) && !message.is_map_entry() {
            reach(&message, &mut Vec::new(), &mut messages)?;
        }
    }
    let mut modules: BTreeMap<String, Vec<&MessageDescriptor>> = BTreeMap::new();
    for message in messages.values() {
        modules.entry(module_of(message.package_name())).or_default().push(message);
    }
    let mut out = String::new();
    for (module, messages) in modules {
        let package = messages[0].package_name();
        writeln!(out, "/// Views of package `{package}`.\npub mod {module} {{")?;
        writeln!(
            out,
            "#[allow(unused_imports)]\nuse crate::wire::{{self, DecodeError, Element, Reader, Repeated, WireType}};"
        )?;
        let shared: BTreeSet<String> = messages
            .iter()
            .flat_map(|message| message.fields())
            .filter_map(|field| match field.kind() {
                Kind::Message(inner) if inner.package_name() == "prism.type.v1" => {
                    Some(name(&inner))
                }
                _ => None,
            })
            .collect();
        if package != "prism.type.v1" && !shared.is_empty() {
            let names: Vec<String> = shared.into_iter().collect();
            writeln!(out, "pub use super::types::{{{}}};", names.join(", "))?;
        }
        for message in messages {
            Message::new(pool, message)?.write(&mut out)?;
        }
        writeln!(out, "}}")?;
    }
    Ok(out)
}

fn reach(
    message: &MessageDescriptor,
    path: &mut Vec<String>,
    found: &mut BTreeMap<String, MessageDescriptor>,
) -> Written {
    let full_name = message.full_name().to_owned();
    if path.contains(&full_name) {
        return Err(format!("{full_name} contains itself: it can have no view").into());
    }
    path.push(full_name.clone());
    for field in message.fields() {
        if let Kind::Message(inner) = field.kind() {
            reach(&inner, path, found)?;
        }
    }
    path.pop();
    found.insert(full_name, message.clone());
    Ok(())
}

fn module_of(package: &str) -> String {
    match package {
        "google.protobuf" => "protobuf".to_owned(),
        "prism.type.v1" => "types".to_owned(),
        _ => package
            .split('.')
            .filter(|part| !matches!(*part, "prism" | "google") && !part.starts_with('v'))
            .collect::<Vec<_>>()
            .join("_"),
    }
}

/// A nested message's name follows its parent's: `ItemEntry`.
fn name(message: &MessageDescriptor) -> String {
    match message.parent_message() {
        Some(parent) => name(&parent) + message.name(),
        None => message.name().to_owned(),
    }
}

fn camel(snake: &str) -> String {
    snake.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn ident(name: &str) -> String {
    match name {
        "type" | "match" | "move" | "ref" | "where" | "as" | "in" | "use" | "loop" | "final" => {
            format!("r#{name}")
        }
        _ => name.to_owned(),
    }
}

fn repeats(field: &FieldDescriptor) -> bool {
    field.is_list() || field.is_map()
}

/// The view holds references.
fn borrows(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| {
        repeats(&field)
            || match field.kind() {
                Kind::String | Kind::Bytes => true,
                Kind::Message(inner) => borrows(&inner),
                _ => false,
            }
    })
}

/// Nothing in it is repeated.
fn encodes(message: &MessageDescriptor) -> bool {
    message.fields().all(|field| {
        !repeats(&field)
            && match field.kind() {
                Kind::Message(inner) => encodes(&inner),
                _ => true,
            }
    })
}

fn lifetime(message: &MessageDescriptor) -> &'static str {
    if borrows(message) { "<'a>" } else { "" }
}

/// How a kind of value is held, read and written. Expressions of `value` are
/// of the held type, by copy.
struct Scalar {
    held: String,
    wire: &'static str,
    wire_number: u32,
    read: String,
    is_set: &'static str,
    put: &'static str,
    len: &'static str,
}

fn scalar(field: &FieldDescriptor) -> Result<Scalar, Box<dyn Error>> {
    let number = field.number();
    let varint = |held: &str, read: &str, put: &'static str, len: &'static str| Scalar {
        held: held.to_owned(),
        wire: "Varint",
        wire_number: 0,
        read: read.to_owned(),
        is_set: "value != 0",
        put,
        len,
    };
    const PUT: &str = "wire::put_varint(out, value as u64)";
    const LEN: &str = "wire::varint_len(value as u64)";
    const PUT_SIGNED: &str = "wire::put_varint(out, i64::from(value) as u64)";
    const LEN_SIGNED: &str = "wire::varint_len(i64::from(value) as u64)";
    Ok(match field.kind() {
        Kind::Bool => {
            Scalar { is_set: "value", ..varint("bool", "reader.varint()? != 0", PUT, "1") }
        }
        Kind::Uint32 => varint(
            "u32",
            "reader.varint()? as u32",
            "wire::put_varint(out, u64::from(value))",
            "wire::varint_len(u64::from(value))",
        ),
        Kind::Uint64 => varint(
            "u64",
            "reader.varint()?",
            "wire::put_varint(out, value)",
            "wire::varint_len(value)",
        ),
        Kind::Int32 | Kind::Enum(_) => {
            varint("i32", "reader.varint()? as i32", PUT_SIGNED, LEN_SIGNED)
        }
        Kind::Int64 => varint("i64", "reader.varint()? as i64", PUT, LEN),
        Kind::Double => Scalar {
            held: "f64".to_owned(),
            wire: "Fixed64",
            wire_number: 1,
            read: "f64::from_le_bytes(reader.fixed64()?)".to_owned(),
            is_set: "value.to_bits() != 0",
            put: "out.extend_from_slice(&value.to_le_bytes())",
            len: "8",
        },
        Kind::String => Scalar {
            held: "&'a str".to_owned(),
            wire: "LengthDelimited",
            wire_number: 2,
            read: format!("reader.string({number})?"),
            is_set: "!value.is_empty()",
            put: "wire::put_varint(out, value.len() as u64); out.extend_from_slice(value.as_bytes())",
            len: "wire::varint_len(value.len() as u64) + value.len()",
        },
        Kind::Bytes => Scalar {
            held: "&'a [u8]".to_owned(),
            wire: "LengthDelimited",
            wire_number: 2,
            read: "reader.bytes()?".to_owned(),
            is_set: "!value.is_empty()",
            put: "wire::put_varint(out, value.len() as u64); out.extend_from_slice(value)",
            len: "wire::varint_len(value.len() as u64) + value.len()",
        },
        Kind::Message(inner) => Scalar {
            held: format!(
                "super::{}::{}{}",
                module_of(inner.package_name()),
                name(&inner),
                lifetime(&inner)
            ),
            wire: "LengthDelimited",
            wire_number: 2,
            read: String::new(),
            is_set: "true",
            put: "wire::put_varint(out, value.encoded_len() as u64); value.encode(out)",
            len: "wire::varint_len(value.encoded_len() as u64) + value.encoded_len()",
        },
        other => return Err(format!("{}: no view for {other:?}", field.full_name()).into()),
    })
}

fn tag(field: &FieldDescriptor, wire_number: u32) -> u32 {
    field.number() << 3 | wire_number
}

fn tag_len(field: &FieldDescriptor) -> usize {
    match field.number() {
        0..16 => 1,
        16..2048 => 2,
        _ => 3,
    }
}

struct Message<'d> {
    message: &'d MessageDescriptor,
    name: String,
    lifetime: &'static str,
    fields: Vec<FieldDescriptor>,
    oneofs: Vec<OneofDescriptor>,
    /// The payload, or the message field that holds it: encoded last.
    tail: Option<FieldDescriptor>,
}

fn tail(pool: &DescriptorPool, message: &MessageDescriptor) -> Option<FieldDescriptor> {
    let payload = pool.get_extension_by_name("prism.payload")?;
    let mut tails = message.fields().filter(|field| !repeats(field) && real_oneof(field).is_none());
    tails.find(|field| match field.kind() {
        Kind::Bytes => field.options().get_extension(&payload).as_bool() == Some(true),
        Kind::Message(inner) => tail(pool, &inner).is_some(),
        _ => false,
    })
}

/// The oneof that the user wrote, if any (`optional` makes hidden ones).
fn real_oneof(field: &FieldDescriptor) -> Option<OneofDescriptor> {
    field.containing_oneof().filter(|oneof| !oneof.is_synthetic())
}

impl<'d> Message<'d> {
    fn new(pool: &DescriptorPool, message: &'d MessageDescriptor) -> Result<Self, Box<dyn Error>> {
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        Ok(Message {
            message,
            name: name(message),
            lifetime: lifetime(message),
            fields,
            oneofs: message.oneofs().filter(|oneof| !oneof.is_synthetic()).collect(),
            tail: tail(pool, message),
        })
    }

    fn plain_fields(&self) -> impl Iterator<Item = &FieldDescriptor> {
        self.fields.iter().filter(|field| real_oneof(field).is_none())
    }

    fn oneof_type(&self, oneof: &OneofDescriptor) -> String {
        self.name.clone() + &camel(oneof.name())
    }

    fn write(&self, out: &mut String) -> Written {
        self.write_struct(out)?;
        for oneof in &self.oneofs {
            self.write_oneof(out, oneof)?;
        }
        writeln!(out, "impl<'a> Element<'a> for {}{} {{", self.name, self.lifetime)?;
        writeln!(out, "const WIRE: WireType = WireType::LengthDelimited;")?;
        writeln!(
            out,
            "fn read(reader: &mut Reader<'a>, _field: u32) -> Result<Self, DecodeError> {{ Self::decode(reader.bytes()?) }} }}"
        )?;
        let (of, on) = if self.lifetime.is_empty() { ("", "") } else { ("<'a>", "<'a>") };
        writeln!(out, "impl{of} {}{on} {{", self.name)?;
        for field in &self.fields {
            let name = field.name();
            writeln!(out, "/// Number of field `{name}`.")?;
            let number = field.number();
            writeln!(out, "pub const {}_FIELD: u32 = {number};", name.to_uppercase())?;
        }
        self.write_decode(out)?;
        self.write_enum_getters(out)?;
        if encodes(self.message) {
            self.write_encoded_len(out)?;
            self.write_encode(out)?;
        }
        writeln!(out, "}}")?;
        Ok(())
    }

    fn write_struct(&self, out: &mut String) -> Written {
        writeln!(out, "/// View of `{}`.", self.message.full_name())?;
        writeln!(out, "#[derive(Clone, Copy, Debug, Default, PartialEq)]")?;
        writeln!(out, "pub struct {}{} {{", self.name, self.lifetime)?;
        for field in self.plain_fields() {
            let held = scalar(field)?.held;
            let held = if repeats(field) {
                format!("Repeated<'a, {held}>")
            } else if field.supports_presence() {
                format!("Option<{held}>")
            } else {
                held
            };
            writeln!(out, "/// Field {}, `{}`.", field.number(), field.name())?;
            writeln!(out, "pub {}: {held},", ident(field.name()))?;
        }
        for oneof in &self.oneofs {
            let names: Vec<_> = oneof.fields().map(|field| format!("`{}`", field.name())).collect();
            let lifetime = self.oneof_lifetime(oneof);
            writeln!(out, "/// One of {}.", names.join(", "))?;
            writeln!(
                out,
                "pub {}: Option<{}{lifetime}>,",
                ident(oneof.name()),
                self.oneof_type(oneof)
            )?;
        }
        writeln!(out, "}}")?;
        Ok(())
    }

    fn oneof_lifetime(&self, oneof: &OneofDescriptor) -> &'static str {
        let borrowed = oneof.fields().any(|field| match field.kind() {
            Kind::String | Kind::Bytes => true,
            Kind::Message(inner) => borrows(&inner),
            _ => false,
        });
        if borrowed { "<'a>" } else { "" }
    }

    fn write_oneof(&self, out: &mut String, oneof: &OneofDescriptor) -> Written {
        let name = self.oneof_type(oneof);
        writeln!(out, "/// The choices of `{}`.", oneof.full_name())?;
        // A box would be an allocation.
        writeln!(out, "#[allow(clippy::large_enum_variant)]")?;
        writeln!(out, "#[derive(Clone, Copy, Debug, PartialEq)]")?;
        writeln!(out, "pub enum {name}{} {{", self.oneof_lifetime(oneof))?;
        for field in oneof.fields() {
            writeln!(out, "/// Field {}, `{}`.", field.number(), field.name())?;
            writeln!(out, "{}({}),", camel(field.name()), scalar(&field)?.held)?;
        }
        writeln!(out, "}}")?;
        Ok(())
    }

    fn write_decode(&self, out: &mut String) -> Written {
        let buf = if self.lifetime.is_empty() { "&[u8]" } else { "&'a [u8]" };
        writeln!(
            out,
            "/// Decodes a whole message.\n#[inline]\npub fn decode(buf: {buf}) -> Result<Self, DecodeError> {{"
        )?;
        writeln!(out, "let mut message = Self::default(); message.merge(buf)?; Ok(message) }}")?;
        writeln!(out, "pub(crate) fn merge(&mut self, buf: {buf}) -> Result<(), DecodeError> {{")?;
        writeln!(out, "let mut reader = Reader::new(buf);")?;
        if self.fields.is_empty() {
            writeln!(
                out,
                "while let Some(tag) = reader.tag()? {{ reader.skip(tag)?; }} Ok(()) }}"
            )?;
            return Ok(());
        }
        if self.fields.iter().any(repeats) {
            writeln!(
                out,
                "loop {{ let start = reader.position(); let Some(tag) = reader.tag()? else {{ return Ok(()) }}; match tag {{"
            )?;
        } else {
            writeln!(out, "while let Some(tag) = reader.tag()? {{ match tag {{")?;
        }
        for field in &self.fields {
            let scalar = scalar(field)?;
            let own = tag(field, scalar.wire_number);
            let place = ident(field.name());
            if repeats(field) {
                let packable = if scalar.wire_number == 2 {
                    String::new()
                } else {
                    format!(" | {}", tag(field, 2))
                };
                writeln!(out, "{own}{packable} => self.{place}.extend(&mut reader, tag, start)?,")?;
            } else if let Some(oneof) = real_oneof(field) {
                let variant = format!("{}::{}", self.oneof_type(&oneof), camel(field.name()));
                let place = ident(oneof.name());
                if let Kind::Message(_) = field.kind() {
                    writeln!(out, "{own} => {{ let bytes = reader.bytes()?;")?;
                    writeln!(
                        out,
                        "let mut inner = match self.{place} {{ Some({variant}(inner)) => inner, _ => Default::default() }};"
                    )?;
                    writeln!(
                        out,
                        "inner.merge(bytes)?; self.{place} = Some({variant}(inner)); }}"
                    )?;
                } else {
                    writeln!(out, "{own} => self.{place} = Some({variant}({})),", scalar.read)?;
                }
            } else if let Kind::Message(_) = field.kind() {
                writeln!(
                    out,
                    "{own} => self.{place}.get_or_insert_default().merge(reader.bytes()?)?,"
                )?;
            } else if field.supports_presence() {
                writeln!(out, "{own} => self.{place} = Some({}),", scalar.read)?;
            } else {
                writeln!(out, "{own} => self.{place} = {},", scalar.read)?;
            }
        }
        let numbers: Vec<u32> = self.fields.iter().map(FieldDescriptor::number).collect();
        writeln!(out, "_ => reader.skip_unknown(tag, &{numbers:?})?, }} }}")?;
        if !self.fields.iter().any(repeats) {
            writeln!(out, "Ok(())")?;
        }
        writeln!(out, "}}")?;
        Ok(())
    }

    fn write_enum_getters(&self, out: &mut String) -> Written {
        for field in self.plain_fields().filter(|field| !repeats(field)) {
            let Kind::Enum(kind) = field.kind() else { continue };
            if field.supports_presence() {
                continue;
            }
            let package: Vec<_> = kind.package_name().split('.').map(ident).collect();
            let path = format!("crate::{}::{}", package.join("::"), kind.name());
            let name = ident(field.name());
            writeln!(
                out,
                "/// The value of `{}`, or `None` when the number is not a known one.",
                field.name()
            )?;
            writeln!(
                out,
                "pub fn {name}(&self) -> Option<{path}> {{ {path}::try_from(self.{name}).ok() }}"
            )?;
        }
        Ok(())
    }

    /// The length of one present field whose value is `value`.
    fn present_len(field: &FieldDescriptor, scalar: &Scalar) -> String {
        format!("{} + {}", tag_len(field), scalar.len)
    }

    fn write_encoded_len(&self, out: &mut String) -> Written {
        writeln!(
            out,
            "/// Bytes that the encoded message takes.\n#[inline]\npub fn encoded_len(&self) -> usize {{"
        )?;
        if self.fields.is_empty() {
            writeln!(out, "0 }}")?;
            return Ok(());
        }
        writeln!(out, "let mut len = 0;")?;
        for field in self.plain_fields() {
            let scalar = scalar(field)?;
            let place = ident(field.name());
            let len = Self::present_len(field, &scalar);
            if field.supports_presence() && matches!(field.kind(), Kind::Bool) {
                writeln!(out, "if self.{place}.is_some() {{ len += {len}; }}")?;
            } else if field.supports_presence() {
                writeln!(out, "if let Some(value) = self.{place} {{ len += {len}; }}")?;
            } else {
                writeln!(
                    out,
                    "let value = self.{place}; if {} {{ len += {len}; }}",
                    scalar.is_set
                )?;
            }
        }
        for oneof in &self.oneofs {
            writeln!(out, "match self.{} {{ None => {{}}", ident(oneof.name()))?;
            for field in oneof.fields() {
                let len = Self::present_len(&field, &scalar(&field)?);
                writeln!(
                    out,
                    "Some({}::{}(value)) => len += {len},",
                    self.oneof_type(oneof),
                    camel(field.name())
                )?;
            }
            writeln!(out, "}}")?;
        }
        writeln!(out, "len }}")?;
        Ok(())
    }

    fn write_put(&self, out: &mut String, field: &FieldDescriptor) -> Written {
        let scalar = scalar(field)?;
        let place = ident(field.name());
        let put = format!(
            "wire::put_tag(out, {}, WireType::{}); {};",
            field.number(),
            scalar.wire,
            scalar.put
        );
        if field.supports_presence() {
            writeln!(out, "if let Some(value) = self.{place} {{ {put} }}")?;
        } else {
            writeln!(out, "let value = self.{place}; if {} {{ {put} }}", scalar.is_set)?;
        }
        Ok(())
    }

    fn write_encode(&self, out: &mut String) -> Written {
        writeln!(
            out,
            "/// Appends the encoded message{}.\n#[inline]",
            if self.tail.is_some() { ", its payload last" } else { "" }
        )?;
        let unused = if self.fields.is_empty() { "_out" } else { "out" };
        writeln!(out, "pub fn encode(&self, {unused}: &mut Vec<u8>) {{")?;
        if self.tail.is_some() {
            writeln!(
                out,
                "let payload = self.encode_head(out); out.extend_from_slice(payload); }}"
            )?;
            writeln!(
                out,
                "/// Appends the encoded message up to its payload, and returns the payload, which must follow.\n#[inline]"
            )?;
            writeln!(out, "pub fn encode_head(&self, out: &mut Vec<u8>) -> &'a [u8] {{")?;
        }
        for field in self.plain_fields() {
            if self.tail.as_ref() != Some(field) {
                self.write_put(out, field)?;
            }
        }
        for oneof in &self.oneofs {
            writeln!(out, "match self.{} {{ None => {{}}", ident(oneof.name()))?;
            for field in oneof.fields() {
                let scalar = scalar(&field)?;
                writeln!(
                    out,
                    "Some({}::{}(value)) => {{ wire::put_tag(out, {}, WireType::{}); {}; }}",
                    self.oneof_type(oneof),
                    camel(field.name()),
                    field.number(),
                    scalar.wire,
                    scalar.put
                )?;
            }
            writeln!(out, "}}")?;
        }
        if let Some(field) = &self.tail {
            let place = ident(field.name());
            let number = field.number();
            match (field.kind(), field.supports_presence()) {
                (Kind::Message(_), _) => writeln!(
                    out,
                    "match self.{place} {{ None => &[], Some(value) => {{ wire::put_length(out, {number}, value.encoded_len()); value.encode_head(out) }} }}"
                )?,
                (_, true) => writeln!(
                    out,
                    "match self.{place} {{ None => &[], Some(value) => {{ wire::put_length(out, {number}, value.len()); value }} }}"
                )?,
                (_, false) => writeln!(
                    out,
                    "if !self.{place}.is_empty() {{ wire::put_length(out, {number}, self.{place}.len()); }} self.{place}"
                )?,
            }
        }
        writeln!(out, "}}")?;
        Ok(())
    }
}
