//! `prism interfaces`: the catalogue as the descriptors have it, and which backend of this build offers what.

use std::collections::BTreeMap;

use prism_adapters::Backend;
use prism_adapters::kafka::Kafka;
use prism_adapters::kafka_postgres::KafkaPostgres;
use prism_adapters::memory::Memstore;
use prism_adapters::nats::Nats;
use prism_adapters::postgres::Postgres;
use prism_adapters::redis::{Redis, RedisCluster, TopicLog};
use prism_proto::catalogue::{Access, Interface, Interfaces, Method, Model};
use serde_json::{Value, json};

use super::output::{Format, columns, print};
use super::{Exit, complain};

/// The backends of this build, with what they serve.
fn backends() -> [(&'static str, Interfaces); 8] {
    fn of<B: Backend>() -> (&'static str, Interfaces) {
        (B::NAME, B::SERVES)
    }
    // What a namespace with `topics: log` offers instead.
    let topic_log = ("redis (log)", TopicLog::SERVES);
    let cluster = ("redis (cluster)", RedisCluster::SERVES);
    [
        of::<Memstore>(),
        of::<Redis>(),
        topic_log,
        cluster,
        of::<Postgres>(),
        of::<Kafka>(),
        of::<Nats>(),
        of::<KafkaPostgres>(),
    ]
}

pub(super) fn run(output: Format) -> Exit {
    let text = match output {
        Format::Text => as_text(),
        Format::Json => format!("{:#}\n", as_json()),
    };
    match print(text.as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(format_args!("stdout cannot be written: {error}"));
            Exit::Failure
        }
    }
}

fn offered_by(offers: impl Fn(Interfaces) -> bool) -> Vec<&'static str> {
    backends().into_iter().filter(|(_, serves)| offers(*serves)).map(|(name, _)| name).collect()
}

/// The services without interfaces of their own (Reader, Transact), with their methods.
fn services_over_any() -> BTreeMap<&'static str, Vec<Method>> {
    let mut services: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for method in Method::all().filter(|method| method.interface().is_none()) {
        services.entry(method.service()).or_default().push(method);
    }
    services
}

/// `Get·r` or `Set·w`; `→` marks an answer that is a stream.
fn call_text(method: Method) -> String {
    let access = match method.access() {
        Access::Read => "r",
        Access::Write => "w",
    };
    let stream = if method.server_streaming() { "→" } else { "" };
    format!("{}{stream}·{access}", method.name())
}

fn calls_text(methods: impl Iterator<Item = Method>) -> String {
    methods.map(call_text).collect::<Vec<_>>().join(" ")
}

fn as_text() -> String {
    let mut rows: Vec<Vec<String>> =
        vec![vec!["INTERFACE".into(), "OFFERED BY".into(), "CALLS".into()]];
    for model in Model::all() {
        for interface in model.interfaces().iter() {
            let by = offered_by(|serves| serves.contains(interface)).join(",");
            let by = if by.is_empty() { "-".to_string() } else { by };
            rows.push(vec![interface.name().into(), by, calls_text(interface.methods())]);
        }
    }
    for (service, methods) in services_over_any() {
        let calls = calls_text(methods.iter().copied());
        rows.push(vec![short_name(service).to_string(), "over others".into(), calls]);
    }
    let mut text = columns(&rows, 0);
    text.push_str(&format!(
        "\n{} models, {} interfaces, {} calls; ·r reads, ·w writes, → answers with a stream.\n\
         Services \"over others\" work in every namespace with an interface that they can use (-o json: needs_any).\n",
        Model::all().len(),
        Interface::all().len(),
        Method::COUNT
    ));
    text
}

/// `reader` of `prism.reader.v1.ReaderService`.
fn short_name(service: &str) -> &str {
    service.split('.').nth(1).unwrap_or(service)
}

fn call_json(method: Method) -> Value {
    let access = match method.access() {
        Access::Read => "read",
        Access::Write => "write",
    };
    json!({
        "id": method.id(),
        "name": method.name(),
        "path": method.path(),
        "access": access,
        "idempotent": method.idempotent(),
        "client_streaming": method.client_streaming(),
        "server_streaming": method.server_streaming(),
    })
}

fn as_json() -> Value {
    let interface = |interface: Interface| {
        json!({
            "name": interface.name(),
            "offered_by": offered_by(|serves| serves.contains(interface)),
            "calls": interface.methods().map(call_json).collect::<Vec<_>>(),
        })
    };
    let model = |model: &Model| {
        json!({
            "name": model.name(),
            "interfaces": model.interfaces().iter().map(interface).collect::<Vec<_>>(),
        })
    };
    let service = |(service, methods): (&str, Vec<Method>)| {
        let call = |method: &Method| {
            let mut call = call_json(*method);
            let needs: Vec<_> = method.needs_any().iter().map(Interface::name).collect();
            call["needs_any"] = needs.into();
            call
        };
        json!({ "service": service, "calls": methods.iter().map(call).collect::<Vec<_>>() })
    };
    json!({
        "models": Model::all().iter().map(model).collect::<Vec<_>>(),
        "services": services_over_any().into_iter().map(service).collect::<Vec<_>>(),
        "backends": backends().map(|(name, serves)| {
            json!({ "name": name, "serves": serves.iter().map(Interface::name).collect::<Vec<_>>() })
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_and_call_is_listed_once() {
        let text = as_text();
        for interface in Interface::all() {
            let starts = |line: &&str| line.split(' ').next() == Some(interface.name());
            assert_eq!(text.lines().filter(starts).count(), 1, "{interface}");
        }
        let json = as_json();
        let calls = json.to_string().matches("\"path\":").count();
        assert_eq!(calls, Method::COUNT);
        assert!(text.contains(" Get·r Set·w Delete·w Exists·r\n"), "{text}");
    }
}
