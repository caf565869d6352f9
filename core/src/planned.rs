//! From plans to what is served: the namespaces and backends of `prism serve` where its configuration does not list them. They are
//! asked for in the files that it names (`requests:`), or they are applied and the data directory remembers them.
//!
//! All or nothing: one request of a file that is refused, and nothing is served. What was applied once goes on over a later day or
//! a lower limit ([`is_of_authority`]), and says so. Reads files at start, and again when [`crate::served`] asks for it.

use prism_adapters::kafka::TopicShape;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prism_adapters::postgres::PostgresConfig;

use crate::access::Access;
use crate::access::keys::KeyStore;
use crate::config::platform::{BackendType, Platform, Purpose, load_platform};
use crate::config::request::{Document, load_requests, read_requests};
use crate::config::units::{Date, show_bytes};
use crate::config::{
    BACKLOG_RECORDS, BackendKind, ClientApi, Config, IDEMPOTENCY_WINDOW, MESSAGE_BYTES_MIN,
    NAMESPACES_MAX, Namespace, PlannedFrom, pair_name,
};
use crate::namespaces::Namespaces;
use crate::plan::{
    Asked, Capabilities, Hindrance, Input, Obstacle, Outcome, Pattern, Placed, Plan,
    is_of_authority, plan_all,
};
use crate::registry::Registry;
use crate::shared::SharedConfig;

/// Puts what is planned into the configuration, where it plans; or tells everything that stands in the way.
pub(crate) fn resolve(config: &mut Config) -> Result<(), Vec<String>> {
    let Some(planned) = config.planned.clone() else { return Ok(()) };
    let (platform, warnings) = platform(&planned, Purpose::Serve).map_err(|error| vec![error])?;
    config.warnings.extend(warnings);
    // A registry that cannot be read is refused when the data directory is opened.
    let registry = Registry::load(&config.data_dir, [0; 16]).ok();
    let documents = documents(&planned, registry.as_ref())?;
    let placed = registry.as_ref().map(placed).unwrap_or_default();
    let shards = config.shards().max(registry.as_ref().map_or(0, |registry| registry.shards));
    let outcomes = plan_beside(&documents, &platform, &placed, shards);
    let before = std::mem::take(&mut config.asked);
    if planned.platform.is_some() || planned.requests.is_some() {
        config.backends.clone_from(&platform.backends.configured);
        config.namespaces.clear();
    } else {
        // What is there without a configuration stands beside what is applied.
        let is_planned = |name: &str| before.iter().any(|asked| asked.plan.namespace == name);
        config.namespaces.retain(|namespace| !is_planned(&namespace.name));
    }
    let mut refused = Vec::new();
    for (outcome, document) in outcomes.into_iter().zip(documents) {
        let was_let_in = planned.requests.is_none()
            && outcome.refusals.iter().all(|refusal| is_of_authority(refusal.rule));
        for refusal in &outcome.refusals {
            match was_let_in {
                true => config.warnings.push(format!("it goes on as it was applied: {refusal}")),
                false => refused.push(refusal.to_string()),
            }
        }
        let Some(plan) = outcome.plan.filter(|_| was_let_in || outcome.refusals.is_empty()) else {
            continue;
        };
        let is_listed = config.namespaces.iter().any(|listed| listed.name == plan.namespace);
        let served = match is_listed {
            true => Err(configured(&document)),
            false => namespace(&plan, &document, config),
        };
        match served {
            Ok(namespace) => config.namespaces.push(namespace),
            Err(hindrance) => refused.push(hindrance.shown(&document.file)),
        }
        let notes = plan.notes.iter().map(|note| format!("namespace `{}`: {note}", plan.namespace));
        config.warnings.extend(notes);
        config.asked.push(Arc::new(Asked { document, plan }));
    }
    if config.namespaces.len() > NAMESPACES_MAX {
        refused.push(format!(
            "{} namespaces are asked for, at most {NAMESPACES_MAX} may be: serve some of them with another Prism",
            config.namespaces.len()
        ));
    }
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// The platform that namespaces are planned for, and what should be told of its file.
pub(crate) fn platform(
    planned: &PlannedFrom,
    purpose: Purpose,
) -> Result<(Platform, Vec<String>), String> {
    let Some(path) = &planned.platform else { return Ok(Default::default()) };
    let (platform, warnings) = load_platform(path, purpose).map_err(|errors| errors.to_string())?;
    let warnings = warnings.iter().map(|warning| format!("{}: {warning}", path.display()));
    Ok((platform, warnings.collect()))
}

/// Where what is applied is shared with other servers; `None`: nowhere, or a file decides.
pub(crate) fn shared(config: &Config) -> Result<Option<SharedConfig>, String> {
    let Some(from) = config.planned.as_ref().filter(|from| from.requests.is_none()) else {
        return Ok(None);
    };
    let (platform, _) = platform(from, Purpose::Serve)?;
    let Some(registry) = platform.registry else { return Ok(None) };
    let backend = registry.value.backend.value.0;
    let mut configured = platform.backends.configured.into_iter();
    let found = configured.find(|configured| configured.name == backend);
    let Some(BackendKind::Postgres(postgres)) = found.map(|found| found.kind) else {
        return Err(format!("the registry's backend `{backend}` is no PostgreSQL"));
    };
    let name = registry.value.name.map_or_else(|| "platform".to_owned(), |name| name.value.0);
    let application_name = "prism-registry".to_owned();
    let postgres = PostgresConfig { application_name, ..*postgres };
    Ok(Some(SharedConfig { postgres, backend, name }))
}

/// What is asked for: in the files, or of the data directory.
fn documents(
    planned: &PlannedFrom,
    registry: Option<&Registry>,
) -> Result<Vec<Document>, Vec<String>> {
    let documents = match (&planned.requests, registry) {
        (Some(path), _) => load_requests(path),
        (None, Some(registry)) => read_requests(&registry.applied.texts()),
        (None, None) => Ok(Vec::new()),
    };
    documents.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// Who may what, from what namespaces are planned from as it is now; `None` where that knows no identities.
pub(crate) fn access(
    config: &Config,
    namespaces: &Namespaces,
    registry: &Registry,
    keys: &KeyStore,
) -> Result<Option<Access>, String> {
    let Some(planned) = &config.planned else { return Ok(None) };
    if planned.platform.is_none() {
        return Ok(None);
    }
    let (platform, _) = platform(planned, Purpose::Plan)?;
    let documents = documents(planned, Some(registry)).map_err(|errors| errors.join("\n"))?;
    Access::compile(&platform, &documents, namespaces, keys)
}

/// Plans requests for this build and today, beside the namespaces that a data directory holds.
pub(crate) fn plan_beside(
    documents: &[Document],
    platform: &Platform,
    placed: &BTreeMap<String, Placed>,
    shards: usize,
) -> Vec<Outcome> {
    let capabilities = Capabilities::of_this_build();
    let input = Input { platform, capabilities: &capabilities, shards, today: today(), placed };
    plan_all(documents, &input)
}

/// The namespaces that a data directory holds.
pub(crate) fn placed(registry: &Registry) -> BTreeMap<String, Placed> {
    let place = |(name, backend, home): (&str, Option<&str>, usize)| {
        (name.to_owned(), Placed { backend: backend.map(str::to_owned), home })
    };
    registry.placed().map(place).collect()
}

pub(crate) fn today() -> Date {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Date::of_unix_seconds(since.as_secs())
}

/// `platform.yaml` in the folder of the requests, or in the one above.
pub(crate) fn platform_beside(requests: &Path) -> Option<std::path::PathBuf> {
    let folder = match requests.is_dir() {
        true => requests.to_owned(),
        false => requests.parent()?.to_owned(),
    };
    let beside = [folder.join("platform.yaml"), folder.join("../platform.yaml")];
    beside.into_iter().find(|path| path.is_file())
}

/// Refuses a request for a namespace that the configuration lists.
pub(crate) fn configured(document: &Document) -> Hindrance {
    let name = &document.request.namespace;
    Hindrance {
        obstacle: Obstacle::Configured,
        origin: name.origin,
        message: format!("`{}` is in the server's configuration, and was not applied", name.value),
        remedy: "take another name, or change it there".to_owned(),
    }
}

/// How a plan has topics be made; nothing where it has none.
fn topic_shape(plan: &Plan) -> TopicShape {
    let has_topics = |kind| matches!(kind, BackendType::Kafka | BackendType::Nats);
    let Some(part) = plan.parts.iter().find(|part| has_topics(part.kind)) else {
        return TopicShape::default();
    };
    TopicShape {
        partitions: part.settings.get("partitions").copied(),
        replication: part.settings.get("replication").map(|copies| *copies as u16),
        retention: plan.retention,
    }
}

/// A plan as an entry of the namespace table.
pub(crate) fn namespace(
    plan: &Plan,
    document: &Document,
    config: &Config,
) -> Result<Namespace, Hindrance> {
    let request = &document.request;
    let api = ClientApi::ALL.iter().copied().find(|api| api.name() == plan.api.name());
    let named = pair_name(plan.parts.iter().map(|part| part.backend.as_str()));
    let backend = config.backends.iter().position(|backend| backend.name == named);
    let (Some(client_api), Some(backend)) = (api, backend) else {
        return Err(Hindrance {
            obstacle: Obstacle::BackendUnknown,
            origin: request.client_api.origin,
            message: format!("{} on {named} cannot be served here", plan.api),
            remedy: "restart the server, so that it reads the platform's backends again".to_owned(),
        });
    };
    let of = &config.backends[backend];
    let offered = of.offers(client_api, plan.topics);
    if plan.durability > of.durability_max() || !offered.contains_all(client_api.needs()) {
        return Err(Hindrance {
            obstacle: Obstacle::BackendUnknown,
            origin: request.client_api.origin,
            message: format!(
                "the backend {named} of the platform does not offer {} at level {}: its strongest is {}",
                plan.api,
                plan.durability.name(),
                of.durability_max().name()
            ),
            remedy: "name another backend with `backend: NAME`, or ask for less".to_owned(),
        });
    }
    let limits = &config.limits;
    let asked = plan.limits.message_bytes_max.max(MESSAGE_BYTES_MIN);
    if plan.is_message_size_asked && asked > limits.message_bytes_max {
        return Err(Hindrance {
            obstacle: Obstacle::ServerLimit,
            origin: request.namespace.origin,
            message: format!(
                "messages of {} are more than this server takes, {}",
                show_bytes(asked),
                show_bytes(limits.message_bytes_max)
            ),
            remedy: "raise limits.message_bytes_max in its configuration".to_owned(),
        });
    }
    let max_message_size = asked.min(limits.message_bytes_max);
    let in_flight = plan.limits.in_flight_bytes_max.unwrap_or(limits.namespace_bytes_in_flight_max);
    Ok(Namespace {
        name: plan.namespace.clone(),
        client_api,
        backend,
        durability: plan.durability,
        topics: plan.topics,
        max_message_size,
        in_flight_bytes_max: in_flight.max(max_message_size),
        memory_bytes_max: config.memory.bytes_max,
        backlog_records_max: plan.limits.backlog_records_max.unwrap_or(BACKLOG_RECORDS),
        quotas: plan.limits.quotas,
        audit_logging: plan.patterns.contains(&Pattern::Audit),
        idempotency_window: IDEMPOTENCY_WINDOW,
        home: plan.homes.first().copied(),
        topic_shape: topic_shape(plan),
        reads: Vec::new(),
    })
}
