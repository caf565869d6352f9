//! What the needs of a request ask for: interfaces, a shape, an amount of data; and which needs mean nothing for its API.

use std::time::Duration;

use prism_proto::catalogue::{Interface, Model};

use super::routes::{MESSAGE_TYPICAL, Shape};
use super::{Draft, Rule};
use crate::config::described::{Rate, Size};
use crate::config::request::{Api, DurabilityNeed, Needs, Request};
use crate::config::units::{show_bytes, show_duration};
use crate::config::{Durability, Origin, Setting};

const MESSAGES: &[Api] = &[Api::PubSub, Api::Queue, Api::Stream, Api::Reader];
const KEPT: &[Api] = &[Api::PubSub, Api::Queue, Api::Stream, Api::Reader, Api::TimeSeries];
const QUEUE: &[Api] = &[Api::Queue];
const EXPIRES: &[Api] = &[Api::KeyValue, Api::Transact];
const REPLAYED: &[Api] =
    &[Api::PubSub, Api::Queue, Api::Stream, Api::Reader, Api::KeyValue, Api::Document];

/// Refuses needs that mean nothing for the API.
pub(super) fn check(draft: &mut Draft<'_>) {
    let request = &draft.document.request;
    let (api, needs) = (request.client_api.value, &request.needs);
    let retention_remedy = match api {
        Api::KeyValue | Api::Transact => {
            "its entries stay until they are deleted; write `ttl` where they are to expire"
        }
        _ => "what is stored there stays until it is deleted; leave it out",
    };
    let leave = "leave it out";
    let asked = [
        ("retention", needs.retention.map(|of| of.origin), KEPT, retention_remedy),
        (
            "ttl",
            needs.ttl.map(|of| of.origin),
            EXPIRES,
            "write `retention` for what is kept a while",
        ),
        ("ordered", on(needs.ordered), MESSAGES, leave),
        ("replay", on(needs.replay), REPLAYED, leave),
        ("visibility_timeout", needs.visibility_timeout.map(|of| of.origin), QUEUE, leave),
        ("dead_letters", on(needs.dead_letters), QUEUE, leave),
        ("max_deliveries", needs.max_deliveries.map(|of| of.origin), QUEUE, leave),
    ];
    let mut wrong = Vec::new();
    for (need, origin, apis, remedy) in asked {
        if let Some(origin) = origin.filter(|_| !apis.contains(&api)) {
            wrong.push((origin, format!("`{need}` means nothing for {api}"), remedy.to_owned()));
        }
    }
    if let Some(writes) = needs.write_rps.filter(|_| api == Api::Reader) {
        let message = "a reader writes nothing".to_owned();
        wrong.push((writes.origin, message, "leave `write_rps` out".to_owned()));
    }
    for interface in &needs.interfaces {
        let model = interface.value.0.model();
        if model_of(api).is_some_and(|of| of != model) {
            let message = format!("`{}` belongs to {model}, not to {api}", interface.value.0);
            let remedy = format!(
                "leave it out, or ask for a namespace of its own with `client_api: {model}`"
            );
            wrong.push((interface.origin, message, remedy));
        }
    }
    for (origin, message, remedy) in wrong {
        draft.refuse(Rule::NeedOfAnotherApi, origin, message, remedy);
    }
}

/// Where a switch stands that is on.
fn on(switch: Option<Setting<crate::config::described::Switch>>) -> Option<Origin> {
    switch.filter(|switch| switch.value.0).map(|switch| switch.origin)
}

/// The model of an API; Reader and Transact work over several.
fn model_of(api: Api) -> Option<Model> {
    Model::by_name(api.name())
}

/// A request as the choice of a backend sees it.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) shape: Shape,
    pub(super) durability: Durability,
    /// Why that durability.
    pub(super) durability_because: String,
    /// The interfaces, each with the need that asks for it and that need's place.
    pub(super) interfaces: Vec<(Interface, String, Origin)>,
    /// Acknowledged messages can be had again.
    pub(super) replay: Option<Origin>,
    pub(super) writes: Option<Setting<Rate>>,
    pub(super) message: Option<Setting<Size>>,
    /// Bytes of data, and how that is known.
    pub(super) data: Option<(u64, String, Origin)>,
    pub(super) latency: Option<(Duration, String, Origin)>,
    pub(super) retention: Option<Setting<crate::config::described::Span>>,
}

impl Demand {
    /// The demand of a request. Needs of another API are left out; they have been refused.
    pub(super) fn of(request: &Request) -> Self {
        let (api, needs) = (request.client_api.value, &request.needs);
        let shape = shape(api, needs);
        let (durability, durability_because) = durability(api, shape, needs);
        let retention = needs.retention.filter(|_| KEPT.contains(&api));
        Self {
            shape,
            durability,
            durability_because,
            interfaces: interfaces(request, shape),
            replay: on(needs.replay).filter(|_| REPLAYED.contains(&api)),
            writes: needs.write_rps,
            message: needs.max_message_size,
            data: data(needs),
            latency: needs.latency.map(|latency| {
                let objective = latency.value.0;
                (objective.below, format!("latency {objective}"), latency.origin)
            }),
            retention,
        }
    }
}

fn shape(api: Api, needs: &Needs) -> Shape {
    let durability = needs.durability.map(|durability| durability.value);
    let is_logged = matches!(durability, Some(DurabilityNeed::Strong | DurabilityNeed::Eventual));
    let is_cache = needs.ttl.is_some() && !matches!(durability, Some(DurabilityNeed::Strong));
    match api {
        Api::KeyValue if is_cache || durability == Some(DurabilityNeed::BestEffort) => Shape::Cache,
        Api::PubSub if is_logged || needs.retention.is_some() || on(needs.replay).is_some() => {
            Shape::Lasting
        }
        _ => Shape::Any,
    }
}

fn durability(api: Api, shape: Shape, needs: &Needs) -> (Durability, String) {
    if let Some(asked) = needs.durability {
        let level = match asked.value {
            DurabilityNeed::Strong => Durability::Strong,
            DurabilityNeed::Eventual => Durability::Wal,
            DurabilityNeed::BestEffort => Durability::Memory,
        };
        return (level, format!("durability {}", asked.value));
    }
    match (api, shape) {
        (Api::KeyValue, Shape::Cache) => {
            (Durability::Memory, "a cache: `ttl`, and no durability is asked for".to_owned())
        }
        (Api::PubSub, Shape::Any) => (
            Durability::Memory,
            "events for whoever is there, and no durability is asked for".to_owned(),
        ),
        (Api::Reader, _) => (Durability::Memory, "a reader writes nothing".to_owned()),
        _ => (Durability::Wal, "the default".to_owned()),
    }
}

fn interfaces(request: &Request, shape: Shape) -> Vec<(Interface, String, Origin)> {
    let (api, needs) = (request.client_api.value, &request.needs);
    let api_origin = request.client_api.origin;
    let mut all: Vec<(Interface, String, Origin)> = Vec::new();
    let mut ask = |interface: Interface, because: String, origin: Origin| {
        if !all.iter().any(|(of, ..)| *of == interface) {
            all.push((interface, because, origin));
        }
    };
    let base = match api {
        Api::Reader => Some(Interface::StreamBasic),
        Api::Transact => Some(Interface::KeyValueTransactional),
        _ => Interface::by_name(&format!("{api}_basic")),
    };
    if let Some(base) = base {
        ask(base, format!("client_api {api}"), api_origin);
    }
    if let (Some(ttl), true) = (needs.ttl, EXPIRES.contains(&api)) {
        ask(Interface::KeyValueTtl, format!("ttl {}", ttl.value), ttl.origin);
    }
    if shape == Shape::Lasting {
        let reason = [
            needs.retention.map(|of| (format!("retention {}", of.value), of.origin)),
            on(needs.replay).map(|origin| ("replay".to_owned(), origin)),
            needs.durability.map(|of| (format!("durability {}", of.value), of.origin)),
        ];
        if let Some((because, origin)) = reason.into_iter().flatten().next() {
            ask(Interface::PubSubPersistent, because, origin);
        }
    }
    if let (Some(origin), Api::PubSub) = (on(needs.ordered), api) {
        ask(Interface::PubSubOrdering, "ordered".to_owned(), origin);
    }
    if let (Some(origin), Api::Stream | Api::Reader) = (on(needs.replay), api) {
        ask(Interface::StreamReplay, "replay".to_owned(), origin);
    }
    if let Some(retention) = needs.retention {
        let because = format!("retention {}", retention.value);
        match api {
            Api::Stream => ask(Interface::StreamRetention, because, retention.origin),
            Api::TimeSeries => ask(Interface::TimeSeriesRetention, because, retention.origin),
            _ => {}
        }
    }
    if api == Api::Queue {
        if let Some(timeout) = needs.visibility_timeout {
            let because = format!("visibility_timeout {}", timeout.value);
            ask(Interface::QueueVisibility, because, timeout.origin);
        }
        let dead_letters = on(needs.dead_letters).map(|origin| ("dead_letters".to_owned(), origin));
        let deliveries =
            needs.max_deliveries.map(|of| (format!("max_deliveries {}", of.value), of.origin));
        if let Some((because, origin)) = dead_letters.or(deliveries) {
            ask(Interface::QueueDeadLetter, because, origin);
        }
    }
    for interface in &needs.interfaces {
        let of = interface.value.0;
        if model_of(api).is_none_or(|model| model == of.model()) {
            ask(of, format!("interfaces {of}"), interface.origin);
        }
    }
    all
}

/// How much data there will be: as it is told, or as much as is written while it is kept.
fn data(needs: &Needs) -> Option<(u64, String, Origin)> {
    if let Some(size) = needs.data_size {
        return Some((size.value.0, format!("data_size {}", size.value), size.origin));
    }
    let writes = needs.write_rps?;
    let (kept, word) = match (needs.retention, needs.ttl) {
        (Some(retention), _) => (retention, "retention"),
        (None, Some(ttl)) => (ttl, "ttl"),
        (None, None) => return None,
    };
    let message =
        needs.max_message_size.map_or(MESSAGE_TYPICAL, |size| size.value.0.min(MESSAGE_TYPICAL));
    let bytes = (writes.value.0 * kept.value.0.as_secs_f64() * message as f64).min(1e18) as u64;
    let because = format!(
        "write_rps {} × {word} {} × {} a message",
        writes.value,
        show_duration(kept.value.0),
        show_bytes(message)
    );
    Some((bytes, because, kept.origin))
}
