//! Namespaces and plans as NamespaceService tells them.

use std::sync::Arc;

use prism_adapters::{filter, limits, topic};
use prism_proto::prism::namespace::v1 as proto;
use prism_proto::prism::r#type::v1::VersionKind;

use crate::config::described::show_place;
use crate::config::{BackendKind, Config, Durability, Namespace};
use crate::plan::{
    Asked, Decision, Difference, Hindrance, Outcome, Plan, is_lifted_by_approval, outcome_text,
};
use crate::registry::Registry;

/// More requests than this are planned without telling why.
const EXPLAINED_MAX: usize = 100;

/// A namespace that is served, or would be.
pub(super) fn namespace(
    config: &Config,
    registry: &Registry,
    namespace: &Namespace,
    plan: Option<&Plan>,
) -> proto::Namespace {
    let backend = &config.backends[namespace.backend];
    let offers = backend.offers(namespace.client_api, namespace.topics);
    let durability = match namespace.durability {
        Durability::Memory => proto::Durability::Memory,
        Durability::Wal => proto::Durability::Wal,
        Durability::Strong => proto::Durability::Strong,
    };
    let version_kind = match backend.kind {
        BackendKind::Memory => VersionKind::Revision,
        BackendKind::Redis(_) => VersionKind::Digest,
        _ => VersionKind::Unspecified,
    };
    let source = match (plan, &config.planned) {
        (Some(_), Some(from)) if from.requests.is_some() => proto::Source::Files,
        (Some(_), Some(_)) => proto::Source::Applied,
        _ => proto::Source::Configuration,
    };
    let applied = registry.applied.request(&namespace.name);
    proto::Namespace {
        name: namespace.name.clone(),
        team: plan.map(|plan| plan.team.clone()).unwrap_or_default(),
        client_api: namespace.client_api.name().to_owned(),
        state: proto::State::Ready.into(),
        generation: applied.map_or(0, |applied| applied.generation),
        durability: durability.into(),
        interfaces: offers.iter().map(|interface| interface.name().to_owned()).collect(),
        version_kind: version_kind.into(),
        backend: backend.name.clone(),
        partitions: plan.map_or(1, |plan| plan.partitions),
        limits: Some(proto::Limits {
            max_message_size: namespace.max_message_size,
            max_key_bytes: limits::KEY_BYTES_MAX as u32,
            max_name_bytes: topic::NAME_BYTES_MAX as u32,
            max_attributes: limits::ATTRIBUTES_MAX as u32,
            max_attribute_bytes: limits::ATTRIBUTE_BYTES_MAX as u32,
            max_filter_bytes: filter::FILTER_BYTES_MAX as u32,
            max_glob_bytes: limits::GLOB_BYTES_MAX as u32,
            max_page_size: limits::PAGE_ENTRIES_MAX as u32,
            max_batch_items: limits::BATCH_ITEMS_MAX as u32,
            max_transaction_keys: limits::TRANSACT_OPERATIONS_MAX as u32,
            max_transaction_bytes: namespace.max_message_size,
            idempotency_window: prost_types::Duration::try_from(namespace.idempotency_window).ok(),
        }),
        source: source.into(),
    }
}

pub(super) fn decision(decision: &Decision) -> proto::Decision {
    let over =
        |(what, why): &(String, String)| proto::PassedOver { what: what.clone(), why: why.clone() };
    proto::Decision {
        subject: decision.subject.to_owned(),
        choice: decision.choice.clone(),
        reason: decision.because.clone(),
        passed_over: decision.passed_over.iter().map(over).collect(),
    }
}

/// Why a namespace that was asked for is what it is.
pub(super) fn explained(asked: &Asked, namespace: proto::Namespace) -> proto::ExplainResponse {
    let place = asked.document.place(asked.document.request.namespace.origin);
    proto::ExplainResponse {
        namespace: Some(namespace),
        decisions: asked.plan.decisions.iter().map(decision).collect(),
        notes: asked.plan.notes.clone(),
        text: format!("{}  asked for at {place}\n", outcome_text(&asked.outcome())),
    }
}

/// What a request comes to where this runs.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) outcome: Outcome,
    pub(super) kind: proto::Change,
    pub(super) differences: Vec<Difference>,
    /// Refusals of this server rather than of the planner.
    pub(super) hindrances: Vec<Hindrance>,
    /// What the request's document is called.
    pub(super) file: Arc<str>,
    /// What would be served, where that can be told.
    pub(super) asked: Option<Namespace>,
}

impl Change {
    pub(super) fn is_refused(&self) -> bool {
        self.kind == proto::Change::Refused
    }

    /// Every refusal as lines for people.
    pub(super) fn refused(&self) -> impl Iterator<Item = String> {
        let planned = self.outcome.refusals.iter().map(ToString::to_string);
        planned.chain(self.hindrances.iter().map(|hindrance| hindrance.shown(&self.file)))
    }

    /// As it is told; with the reasons where there are not too many of them.
    pub(super) fn told(&self, namespace: Option<proto::Namespace>, of: usize) -> proto::Outcome {
        let Outcome { namespace: name, plan, refusals } = &self.outcome;
        let is_explained = of <= EXPLAINED_MAX;
        let decisions = plan.iter().filter(|_| is_explained).flat_map(|plan| &plan.decisions);
        let needs_approval =
            !refusals.is_empty() && refusals.iter().all(|one| is_lifted_by_approval(one.rule));
        let planned = refusals.iter().map(|refusal| proto::Refusal {
            rule: refusal.rule.name().to_owned(),
            place: show_place(&refusal.file, refusal.origin),
            message: refusal.message.clone(),
            remedy: refusal.remedy.clone(),
        });
        let here = self.hindrances.iter().map(|hindrance| proto::Refusal {
            rule: hindrance.obstacle.name().to_owned(),
            place: show_place(&self.file, hindrance.origin),
            message: hindrance.message.clone(),
            remedy: hindrance.remedy.clone(),
        });
        let action = |difference: &Difference| proto::Action {
            target: difference.what.clone(),
            description: format!(
                "{} -> {}",
                or_nothing(&difference.from),
                or_nothing(&difference.to)
            ),
        };
        let mut text = String::new();
        if is_explained {
            text = outcome_text(&self.outcome);
            for hindrance in &self.hindrances {
                let shown = hindrance.shown(&self.file).replace('\n', "\n  ");
                text.push_str(&format!("  refused: {shown}\n"));
            }
        }
        proto::Outcome {
            name: name.clone(),
            change: self.kind.into(),
            namespace,
            decisions: decisions.map(decision).collect(),
            actions: self.differences.iter().map(action).collect(),
            refusals: planned.chain(here).collect(),
            notes: plan.as_ref().map(|plan| plan.notes.clone()).unwrap_or_default(),
            needs_approval: needs_approval && self.hindrances.is_empty(),
            text,
        }
    }
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}
