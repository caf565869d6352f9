//! From plans to what is served: the namespaces and backends of `prism serve` where its configuration names a folder of
//! requests and a platform (`requests:`, `platform:`) instead of listing them.
//!
//! All or nothing: one request that is refused, and nothing is served. Reads files at start, and again when [`crate::reload`] asks for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::access::Access;
use crate::access::keys::KeyStore;
use crate::config::platform::{Platform, Purpose, load_platform};
use crate::config::request::{Document, load_requests};
use crate::config::units::{Date, show_bytes};
use crate::config::{
    BACKLOG_RECORDS, ClientApi, Config, IDEMPOTENCY_WINDOW, MESSAGE_BYTES_MIN, Namespace,
};
use crate::namespaces::Namespaces;
use crate::plan::{Capabilities, Input, Outcome, Pattern, Placed, Plan, plan_all};
use crate::registry::Registry;

/// Puts what is planned into the configuration, where it names requests; or tells everything that stands in the way.
pub(crate) fn resolve(config: &mut Config) -> Result<(), Vec<String>> {
    let Some(planned) = config.planned.clone() else { return Ok(()) };
    let wrong = |errors: Vec<crate::config::ConfigErrors>| {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let platform = match &planned.platform {
        None => Platform::default(),
        Some(path) => {
            let (platform, warnings) =
                load_platform(path, Purpose::Serve).map_err(|errors| wrong(vec![errors]))?;
            let warnings = warnings.iter().map(|warning| format!("{}: {warning}", path.display()));
            config.warnings.extend(warnings);
            platform
        }
    };
    let documents = load_requests(&planned.requests).map_err(wrong)?;
    // A registry that cannot be read is refused when the data directory is opened.
    let registry = Registry::load(&config.data_dir, [0; 16]).ok();
    let placed = registry.as_ref().map(placed).unwrap_or_default();
    let shards = config.shards().max(registry.map_or(0, |registry| registry.shards));
    let outcomes = plan_beside(&documents, &platform, &placed, shards);
    config.backends.clone_from(&platform.backends.configured);
    let mut refused = Vec::new();
    let mut namespaces = Vec::new();
    for (outcome, document) in outcomes.iter().zip(&documents) {
        refused.extend(outcome.refusals.iter().map(ToString::to_string));
        let Some(plan) = outcome.plan.as_ref().filter(|_| outcome.refusals.is_empty()) else {
            continue;
        };
        match namespace(plan, config) {
            Ok(namespace) => namespaces.push(namespace),
            Err(problem) => {
                let place = document.place(document.request.namespace.origin);
                refused.push(format!("{place}: {problem}"));
            }
        }
        let notes = plan.notes.iter().map(|note| format!("namespace `{}`: {note}", plan.namespace));
        config.warnings.extend(notes);
    }
    config.namespaces = namespaces;
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// Who may what, from the files that namespaces are planned from as they are now; `None` where they know no identities.
pub(crate) fn access(
    config: &Config,
    namespaces: &Namespaces,
    keys: &KeyStore,
) -> Result<Option<Access>, String> {
    let Some(planned) = &config.planned else { return Ok(None) };
    let Some(path) = &planned.platform else { return Ok(None) };
    let (platform, _) = load_platform(path, Purpose::Plan).map_err(|errors| errors.to_string())?;
    let requests = load_requests(&planned.requests)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    Access::compile(&platform, &requests, namespaces, keys)
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

fn today() -> Date {
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

/// A plan as an entry of the namespace table.
fn namespace(plan: &Plan, config: &Config) -> Result<Namespace, String> {
    let api = ClientApi::ALL.iter().copied().find(|api| api.name() == plan.api.name());
    let part = &plan.parts[0];
    let backend = config.backends.iter().position(|backend| backend.name == part.backend);
    let (Some(client_api), Some(backend)) = (api, backend) else {
        return Err(format!("{} on {} cannot be served", plan.api, part.backend));
    };
    let limits = &config.limits;
    let asked = plan.limits.message_bytes_max.max(MESSAGE_BYTES_MIN);
    if plan.is_message_size_asked && asked > limits.message_bytes_max {
        return Err(format!(
            "messages of {} are more than this server takes, {}; raise limits.message_bytes_max in its configuration",
            show_bytes(asked),
            show_bytes(limits.message_bytes_max)
        ));
    }
    let max_message_size = asked.min(limits.message_bytes_max);
    let in_flight = plan.limits.in_flight_bytes_max.unwrap_or(limits.namespace_bytes_in_flight_max);
    Ok(Namespace {
        name: plan.namespace.clone(),
        client_api,
        backend,
        durability: plan.durability,
        max_message_size,
        in_flight_bytes_max: in_flight.max(max_message_size),
        memory_bytes_max: config.memory.bytes_max,
        backlog_records_max: plan.limits.backlog_records_max.unwrap_or(BACKLOG_RECORDS),
        quotas: plan.limits.quotas,
        audit_logging: plan.patterns.contains(&Pattern::Audit),
        idempotency_window: IDEMPOTENCY_WINDOW,
        home: plan.homes.first().copied(),
        reads: Vec::new(),
    })
}
