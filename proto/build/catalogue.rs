//! Derives the tables of `prism_proto::catalogue` from the method options, and
//! refuses an API that contradicts itself. Keeps no list of its own: models,
//! interfaces and their order come from the descriptors.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write;

use prost_reflect::{
    DescriptorPool, Kind, MessageDescriptor, MethodDescriptor, ServiceDescriptor, Value,
};

/// What the API promises: the build fails when the files say something else.
const SERVICES: usize = 12;
const MODELS: usize = 10;
const INTERFACES: usize = 45;

/// A package that is Prism's own but no data service.
const CONTROL_PACKAGE: &str = "prism.namespace.v1";

struct Method {
    id: u32,
    path: String,
    model: String,
    name: String,
    interface: Option<String>,
    needs_any: Vec<String>,
    write: bool,
    key_field: u32,
    idempotent: bool,
    reply_from_backend: bool,
    resend: bool,
    client_streaming: bool,
    server_streaming: bool,
    /// Interfaces that fields need, with the path of field numbers to each.
    field_needs: Vec<(Vec<u32>, String)>,
    /// Top-level fields that turn the answer to the backend.
    asks_backend: Vec<u32>,
}

/// The catalogue's tables as Rust.
pub(crate) fn generate(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut methods = Vec::new();
    let mut services = BTreeSet::new();
    for service in pool.services() {
        let package = service.parent_file().package_name().to_owned();
        if !package.starts_with("prism.") || package == CONTROL_PACKAGE {
            continue;
        }
        services.insert(service.full_name().to_owned());
        for method in service.methods() {
            let facts = read_method(&service, &method)
                .map_err(|error| format!("{}: {error}", method.full_name()))?;
            methods.push(facts);
        }
    }
    methods.sort_by_key(|method| method.id);
    check(&methods)?;

    let mut models: Vec<&str> = Vec::new();
    let mut interfaces: Vec<&str> = Vec::new();
    for method in &methods {
        if let Some(interface) = &method.interface {
            if !models.contains(&method.model.as_str()) {
                models.push(&method.model);
            }
            if !interfaces.contains(&interface.as_str()) {
                interfaces.push(interface);
            }
        }
    }
    for method in &methods {
        let fields = method.field_needs.iter().map(|(_, interface)| interface);
        for name in method.needs_any.iter().chain(fields) {
            if !interfaces.contains(&name.as_str()) {
                return Err(format!("{}: unknown interface {name:?}", method.path).into());
            }
        }
    }
    let totals = (services.len(), models.len(), interfaces.len());
    if totals != (SERVICES, MODELS, INTERFACES) {
        return Err(format!(
            "the API has {SERVICES} services, {MODELS} models and {INTERFACES} interfaces, \
             but the .proto files have {totals:?}: {interfaces:#?}"
        )
        .into());
    }
    if methods.len() > usize::from(u8::MAX) {
        return Err("more than 255 methods: Method's index must grow".into());
    }
    render(&methods, &models, &interfaces)
}

fn read_method(
    service: &ServiceDescriptor,
    method: &MethodDescriptor,
) -> Result<Method, Box<dyn Error>> {
    let pool = service.parent_pool();
    let options = method.options();
    let extension = |name: &str| {
        pool.get_extension_by_name(name).ok_or_else(|| format!("options.proto lacks {name}"))
    };
    let interface = extension("prism.interface")?;
    let interface = options
        .has_extension(&interface)
        .then(|| options.get_extension(&interface).as_str().unwrap_or_default().to_owned());
    let needs_any: Vec<String> = options
        .get_extension(&extension("prism.needs_any")?)
        .as_list()
        .unwrap_or_default()
        .iter()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect();
    let model = model_of(service)?;
    match &interface {
        Some(name) if !needs_any.is_empty() => {
            return Err(format!("has both (prism.interface) {name:?} and needs_any").into());
        }
        Some(name) if !name.starts_with(&format!("{model}_")) => {
            return Err(format!("unknown interface {name:?} in the service of {model:?}").into());
        }
        None if needs_any.is_empty() => {
            return Err("has neither (prism.interface) nor (prism.needs_any)".into());
        }
        _ => {}
    }

    let facts = options.get_extension(&extension("prism.method")?);
    let facts = facts.as_message().ok_or("(prism.method) is no message")?;
    let number = |name: &str| match facts.get_field_by_name(name).as_deref() {
        Some(&Value::U32(value)) => value,
        Some(&Value::EnumNumber(value)) => value as u32,
        Some(&Value::Bool(value)) => u32::from(value),
        _ => 0,
    };
    let input = method.input();
    let key_field = match facts.get_field_by_name("key_field").as_deref().and_then(Value::as_str) {
        None | Some("") => 0,
        Some(name) => {
            let field = input
                .get_field_by_name(name)
                .ok_or_else(|| format!("key field {name:?} does not exist"))?;
            if field.kind() != Kind::String || field.is_list() {
                return Err(format!("key field {name:?} is not a single string").into());
            }
            field.number()
        }
    };
    match input.get_field(1) {
        Some(field) if field.name() == "namespace" && field.kind() == Kind::String => {}
        _ => return Err("the request's field 1 is not `string namespace`".into()),
    }
    let (id, access, reply_from) = (number("id"), number("access"), number("reply_from"));
    if !(1..=u32::from(u16::MAX)).contains(&id) {
        return Err("(prism.method).id must be 1 to 65535".into());
    }
    match (access, reply_from) {
        (1, 0) | (2, 1 | 2) => {}
        (1, _) => return Err("a read has no reply_from".into()),
        (2, _) => return Err("a write must say reply_from".into()),
        _ => return Err("(prism.method).access is missing".into()),
    }

    let mut field_needs = Vec::new();
    collect_needs(&input, &extension("prism.needs")?, &mut Vec::new(), &mut field_needs);
    // Shared messages serve several models: what a field needs there holds for
    // its own model's methods, and where a service works with that model.
    let works_with = |model: &str| needs_any.iter().any(|name| model_part(name) == model);
    field_needs.retain(|(_, name)| match &interface {
        Some(_) => model_part(name) == model,
        None => works_with(model_part(name)),
    });
    let asks_backend = extension("prism.asks_backend")?;
    Ok(Method {
        id,
        path: format!("/{}/{}", service.full_name(), method.name()),
        model,
        name: method.name().to_owned(),
        interface,
        needs_any,
        write: access == 2,
        key_field,
        idempotent: number("idempotent") == 1,
        reply_from_backend: reply_from == 2,
        resend: number("resend") == 1,
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
        field_needs,
        asks_backend: input
            .fields()
            .filter(|field| field.options().get_extension(&asks_backend).as_bool() == Some(true))
            .map(|field| field.number())
            .collect(),
    })
}

/// `prism.keyvalue.v1.KeyValueService` is the service of `keyvalue`.
fn model_of(service: &ServiceDescriptor) -> Result<String, Box<dyn Error>> {
    let file = service.parent_file();
    let model = file
        .package_name()
        .strip_prefix("prism.")
        .and_then(|rest| rest.strip_suffix(".v1"))
        .ok_or_else(|| format!("{} is in no package prism.<model>.v1", service.full_name()))?;
    if service.name().to_lowercase() != format!("{model}service") {
        return Err(format!("{} is not the service of {model:?}", service.full_name()).into());
    }
    Ok(model.to_owned())
}

/// `keyvalue_ttl` is an interface of `keyvalue`.
fn model_part(interface: &str) -> &str {
    interface.split('_').next().unwrap_or_default()
}

fn collect_needs(
    message: &MessageDescriptor,
    needs: &prost_reflect::ExtensionDescriptor,
    path: &mut Vec<u32>,
    found: &mut Vec<(Vec<u32>, String)>,
) {
    for field in message.fields() {
        // The option stands on a field; below a path of four nothing carries one.
        path.push(field.number());
        let options = field.options();
        if options.has_extension(needs) {
            let interface = options.get_extension(needs).as_str().unwrap_or_default().to_owned();
            found.push((path.clone(), interface));
        } else if let Kind::Message(inner) = field.kind()
            && path.len() < 4
            && inner.parent_file().package_name().starts_with("prism.")
        {
            collect_needs(&inner, needs, path, found);
        }
        path.pop();
    }
}

fn check(methods: &[Method]) -> Result<(), Box<dyn Error>> {
    for pair in methods.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(format!(
                "{} and {} have the same id {}",
                pair[0].path, pair[1].path, pair[0].id
            )
            .into());
        }
    }
    Ok(())
}

fn render(
    methods: &[Method],
    models: &[&str],
    interfaces: &[&str],
) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let service_of = |model: &str| {
        methods
            .iter()
            .find(|method| method.model == model)
            .and_then(|method| method.path[1..].split('/').next())
            .and_then(|service| service.rsplit('.').next())
            .unwrap_or_default()
            .to_owned()
    };
    let interface_variant = |name: &str| {
        let (model, rest) = name.split_once('_').unwrap_or((name, ""));
        let service = service_of(model);
        format!("{}{}", service.strip_suffix("Service").unwrap_or(&service), camel(rest))
    };
    let set = |names: &[String]| {
        let bits = names.iter().fold(0u64, |bits, name| {
            bits | interfaces.iter().position(|known| known == name).map_or(0, |at| 1 << at)
        });
        format!("Interfaces({bits:#x})")
    };

    writeln!(out, "/// A data model.")?;
    writeln!(out, "#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]")?;
    writeln!(out, "#[repr(u8)]\npub enum Model {{")?;
    for model in models {
        let service = service_of(model);
        let variant = service.strip_suffix("Service").unwrap_or(&service);
        writeln!(out, "/// `{model}`: [`{service}`](crate::prism::{model}::v1).\n{variant},")?;
    }
    writeln!(out, "}}")?;
    writeln!(out, "const MODELS: [Model; {}] = [", models.len())?;
    for model in models {
        let service = service_of(model);
        writeln!(out, "Model::{},", service.strip_suffix("Service").unwrap_or(&service))?;
    }
    writeln!(out, "];\nconst MODEL_NAMES: [&str; {}] = {models:?};", models.len())?;

    writeln!(out, "/// One of the thin interfaces: what a plan offers or does not offer.")?;
    writeln!(out, "#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]")?;
    writeln!(out, "#[repr(u8)]\npub enum Interface {{")?;
    for interface in interfaces {
        let calls: Vec<&str> = methods
            .iter()
            .filter(|method| method.interface.as_deref() == Some(*interface))
            .map(|method| method.name.as_str())
            .collect();
        let variant = interface_variant(interface);
        writeln!(out, "/// `{interface}`: {}.\n{variant},", calls.join(", "))?;
    }
    writeln!(out, "}}")?;
    writeln!(out, "const INTERFACES: [Interface; {}] = [", interfaces.len())?;
    for interface in interfaces {
        writeln!(out, "Interface::{},", interface_variant(interface))?;
    }
    writeln!(out, "];\nconst INTERFACE_NAMES: [&str; {}] = {interfaces:?};", interfaces.len())?;
    let model_indices: Vec<usize> = interfaces
        .iter()
        .map(|name| {
            let model = name.split('_').next().unwrap_or_default();
            models.iter().position(|known| *known == model).unwrap_or_default()
        })
        .collect();
    writeln!(out, "const INTERFACE_MODELS: [u8; {}] = {model_indices:?};", interfaces.len())?;

    writeln!(out, "impl Method {{")?;
    for (index, method) in methods.iter().enumerate() {
        writeln!(out, "/// `{}`", method.path)?;
        writeln!(
            out,
            "pub const {}_{}: Method = Method({index});",
            method.model.to_uppercase(),
            screaming(&method.name)
        )?;
    }
    writeln!(out, "}}\nstatic METHODS: [Facts; {}] = [", methods.len())?;
    for method in methods {
        let interface = match &method.interface {
            Some(name) => format!("Some(Interface::{})", interface_variant(name)),
            None => "None".to_owned(),
        };
        let service = method.path[1..].split('/').next().unwrap_or_default();
        let access = if method.write { "Write" } else { "Read" };
        let reply_from = if method.reply_from_backend || !method.write { "Backend" } else { "Log" };
        let needs: String = method
            .field_needs
            .iter()
            .map(|(path, name)| {
                format!(
                    "FieldNeed {{ path: &{path:?}, interface: Interface::{} }},",
                    interface_variant(name)
                )
            })
            .collect();
        writeln!(
            out,
            "Facts {{ id: {}, path: {:?}, service: {service:?}, name: {:?}, \
             interface: {interface}, needs_any: {}, access: Access::{access}, \
             key_field: {}, idempotent: {}, reply_from: ReplyFrom::{reply_from}, resend: {}, \
             client_streaming: {}, server_streaming: {}, field_needs: &[{needs}], \
             asks_backend: &{:?} }},",
            method.id,
            method.path,
            method.name,
            set(&method.needs_any),
            if method.key_field == 0 {
                "None".into()
            } else {
                format!("Some({})", method.key_field)
            },
            method.idempotent,
            method.resend,
            method.client_streaming,
            method.server_streaming,
            method.asks_backend,
        )?;
    }
    writeln!(out, "];")?;

    let last = methods.last().map_or(0, |method| method.id as usize);
    let mut by_id = vec![u8::MAX; last + 1];
    for (index, method) in methods.iter().enumerate() {
        by_id[method.id as usize] = index as u8;
    }
    writeln!(out, "static BY_ID: [u8; {}] = {by_id:?};", by_id.len())?;
    let (seed, table) = perfect_hash(methods)?;
    writeln!(out, "const PATH_HASH_SEED: u64 = {seed:#x};")?;
    writeln!(out, "static BY_PATH: [u8; {}] = {table:?};", table.len())?;
    Ok(out)
}

include!("path_hash.rs");

/// A multiplier under which no two paths share a slot, and the slots.
fn perfect_hash(methods: &[Method]) -> Result<(u64, Vec<u8>), Box<dyn Error>> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    'seeds: for _ in 0..1_000_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
            | 1;
        let mut table = vec![u8::MAX; PATH_SLOTS];
        for (index, method) in methods.iter().enumerate() {
            let slot = path_slot(method.path.as_bytes(), seed).ok_or("a path is too short")?;
            if table[slot] != u8::MAX {
                continue 'seeds;
            }
            table[slot] = index as u8;
        }
        return Ok((seed, table));
    }
    Err("no perfect hash for the paths: widen PATH_SLOTS or hash more bytes".into())
}

fn camel(snake: &str) -> String {
    snake.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn screaming(camel: &str) -> String {
    let mut out = String::new();
    for (index, letter) in camel.chars().enumerate() {
        if index > 0 && letter.is_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}
