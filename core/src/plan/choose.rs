//! From a demand to a plan: which backend, and what speaks against the others.

use super::compose::{limits, notes, partitions, parts, patterns};
use super::needs::Demand;
use super::routes::{LOG_LATENCY, figures, route};
use super::{Draft, Plan, Rule, Target, authority};
use crate::config::platform::{BackendPin, BackendType, Mode};
use crate::config::request::{Api, BackendAsked, OwnBackend};
use crate::config::units::{round_bytes, show_bytes, show_duration, show_rate};
use crate::config::{Durability, Origin, Topics, pair_name};

/// Makes the plan; what stands in its way is refused. `None` where no backend would do.
pub(super) fn choose(draft: &mut Draft<'_>) -> Option<Plan> {
    let request = &draft.document.request;
    let api = request.client_api.value;
    let demand = Demand::of(request);
    check_api(draft, api);
    draft.decide(
        "durability",
        demand.durability.name(),
        demand.durability_because.as_str(),
        vec![],
    );
    if let Some(consistency) = needs_strong_reads(draft) {
        draft.decide("consistency", "strong", consistency, vec![]);
    }
    let chosen = match request.backend.as_ref().map(|asked| (&asked.value, asked.origin)) {
        Some((BackendAsked::Own(own), origin)) => own_backend(draft, own, origin, &demand)?,
        _ => choose_target(draft, api, &demand)?,
    };
    let patterns = patterns(draft, api, &demand, chosen.target);
    let partitions = partitions(draft, &demand, &chosen);
    let needs = demand.interfaces.iter().map(|(one, ..)| *one);
    let (topics, _) = draft.input.capabilities.topics(chosen.target, needs);
    if topics == Topics::Log {
        let passed = vec![("volatile".to_owned(), "channels store nothing".to_owned())];
        draft.decide("topics", topics.name(), because(&demand, api), passed);
    }
    let parts = parts(draft, &chosen, partitions, topics);
    draft.check_moves(&pair_name(parts.iter().map(|part| part.backend.as_str())));
    let homes = vec![draft.home()];
    let limits = limits(draft, chosen.target);
    notes(draft, api, &demand, chosen.target);
    Some(Plan {
        namespace: request.namespace.value.0.clone(),
        team: request.team.value.0.clone(),
        api,
        patterns,
        parts,
        durability: demand.durability,
        topics,
        partitions,
        retention: demand.retention.map(|retention| retention.value.0),
        limits,
        is_message_size_asked: request.needs.max_message_size.is_some(),
        homes,
        decisions: std::mem::take(&mut draft.decisions),
        notes: std::mem::take(&mut draft.notes),
    })
}

fn check_api(draft: &mut Draft<'_>, api: Api) {
    let served = &draft.input.capabilities.apis;
    if served.contains(&api) {
        return;
    }
    let names: Vec<_> = served.iter().map(|api| api.name()).collect();
    let remedy = format!("served now: {}", names.join(", "));
    let message = format!("this build of Prism does not serve `{api}` yet");
    let origin = draft.document.request.client_api.origin;
    draft.refuse(Rule::NotInThisBuild, origin, message, remedy);
}

fn needs_strong_reads(draft: &Draft<'_>) -> Option<&'static str> {
    use crate::config::request::Consistency;
    let asked = draft.document.request.needs.consistency?;
    (asked.value == Consistency::Strong).then_some(
        "consistency strong: a namespace has one home, and a read there sees what was acknowledged, also while it is on its way",
    )
}

/// The backend that was chosen.
pub(super) struct Chosen {
    pub(super) target: Target,
    /// The name of each of its backends.
    pub(super) names: Vec<String>,
    /// The build can run it.
    pub(super) is_served: bool,
    /// How the platform wants the data to lie there.
    pub(super) pin: Option<BackendPin>,
    /// Where the namespace's own backend is.
    pub(super) own: Option<OwnBackend>,
}

/// How far a target came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It does not fit the needs.
    Fit,
    /// The team may not be given it.
    Allowed,
    /// The platform declares none.
    Declared,
    /// The build cannot run it.
    Build,
}

struct PassedOver {
    target: Target,
    stage: Stage,
    why: String,
    origin: Origin,
    /// Why the build cannot run it, whatever else stands against it.
    unserved: Option<String>,
}

/// What was asked for by name, by the platform or the request.
struct Wanted {
    text: String,
    origin: Origin,
    because: String,
    pin: Option<BackendPin>,
}

fn wanted(draft: &Draft<'_>) -> Option<Wanted> {
    let request = &draft.document.request;
    let namespace = &request.namespace.value.0;
    if let Some(asked) = &request.backend
        && let BackendAsked::Named(name) = &asked.value
    {
        let because = format!("the request names `{name}`");
        return Some(Wanted { text: name.0.clone(), origin: asked.origin, because, pin: None });
    }
    let pin = draft.input.platform.placement_of(namespace)?.backend.as_ref()?;
    Some(Wanted {
        text: pin.value.r#type.value.0.clone(),
        origin: request.client_api.origin,
        because: "the platform places it there".to_owned(),
        pin: Some(pin.value.clone()),
    })
}

/// Whether `text` is a type among those of the target, or the name of a backend of one.
fn names(draft: &Draft<'_>, target: Target, text: &str) -> bool {
    let declared = &draft.input.platform.backends.declared;
    let of_name = declared.iter().find(|backend| backend.name == text).map(|backend| backend.kind);
    target.kinds().into_iter().any(|kind| kind.name() == text || of_name == Some(kind))
}

/// The targets to look at, in their order, and why that order.
fn candidates(
    draft: &Draft<'_>,
    api: Api,
    demand: &Demand,
    wanted: Option<&Wanted>,
) -> Vec<Target> {
    let mut targets = route(api, demand.shape).targets.to_vec();
    if let Some(wanted) = wanted {
        targets.retain(|target| names(draft, *target, &wanted.text));
    } else if let Some(first) = &draft.input.platform.backend {
        let first = &first.value.r#type.value.0;
        targets.sort_by_key(|target| !names(draft, *target, first));
    }
    targets
}

fn choose_target(draft: &mut Draft<'_>, api: Api, demand: &Demand) -> Option<Chosen> {
    let wanted = wanted(draft);
    let mut passed: Vec<PassedOver> = Vec::new();
    for target in candidates(draft, api, demand, wanted.as_ref()) {
        match look_at(draft, api, demand, target, wanted.as_ref()) {
            Ok(names) => {
                let because = match &wanted {
                    Some(wanted) => wanted.because.clone(),
                    None => because(demand, api),
                };
                let passed = shown(&passed);
                draft.decide("backend", target.name(), because, passed);
                let pin = pin_of(draft, target, wanted);
                return Some(Chosen { target, names, is_served: true, pin, own: None });
            }
            Err(over) => passed.push(over),
        }
    }
    refuse_all(draft, api, &passed, wanted.as_ref());
    let target = best_of(&passed)?.target;
    let others: Vec<_> = passed.iter().filter(|over| over.target != target).collect();
    let others = others.iter().map(|over| (over.target.name(), over.why.clone())).collect();
    draft.decide("backend", target.name(), because(demand, api), others);
    let declared = |kind: BackendType| {
        declared_name(draft, kind, wanted.as_ref()).unwrap_or_else(|| kind.name().to_owned())
    };
    let names = target.kinds().into_iter().map(declared).collect();
    let pin = pin_of(draft, target, wanted);
    Some(Chosen { target, names, is_served: false, pin, own: None })
}

/// What would be: of those that fit the needs the first that the build could run, else the first.
fn best_of(passed: &[PassedOver]) -> Option<&PassedOver> {
    let fits = || passed.iter().filter(|over| over.stage > Stage::Fit);
    fits().find(|over| over.unserved.is_none()).or_else(|| fits().next())
}

/// How the platform wants the data to lie: its pin of the namespace, or its general preference.
fn pin_of(draft: &Draft<'_>, target: Target, wanted: Option<Wanted>) -> Option<BackendPin> {
    if let Some(wanted) = wanted {
        return wanted.pin;
    }
    let first = draft.input.platform.backend.as_ref()?;
    names(draft, target, &first.value.r#type.value.0).then(|| first.value.clone())
}

/// The needs that a backend was chosen for, in words.
fn because(demand: &Demand, api: Api) -> String {
    let mut reasons = vec![route(api, demand.shape).when.to_owned()];
    if reasons[0].is_empty() {
        reasons[0] = format!("client_api {api}");
    }
    reasons.extend(demand.writes.map(|writes| format!("write_rps {}", writes.value)));
    reasons.extend(demand.data.as_ref().map(|(bytes, because, _)| {
        let about = round_bytes(*bytes);
        if because.starts_with("data_size") {
            because.clone()
        } else {
            format!("about {about} ({because})")
        }
    }));
    reasons.extend(demand.replay.map(|_| "replay".to_owned()));
    reasons.extend(demand.latency.as_ref().map(|(_, latency, _)| latency.clone()));
    for (interface, because, _) in &demand.interfaces {
        reasons.push(format!("{interface} for {because}"));
    }
    reasons.join("; ")
}

fn shown(passed: &[PassedOver]) -> Vec<(String, String)> {
    passed.iter().map(|over| (over.target.name(), over.why.clone())).collect()
}

/// The names of the target's backends, or why it is passed over.
fn look_at(
    draft: &Draft<'_>,
    api: Api,
    demand: &Demand,
    target: Target,
    wanted: Option<&Wanted>,
) -> Result<Vec<String>, PassedOver> {
    let api_origin = draft.document.request.client_api.origin;
    let unserved = unserved(draft, demand, target);
    let over = |stage, why, origin| {
        let unserved = unserved.as_ref().map(|(why, _)| why.clone());
        PassedOver { target, stage, why, origin, unserved }
    };
    let is_composed = target.kinds().len() > 1;
    if let Some((why, origin)) = misfit(draft, api, demand, target) {
        return Err(over(Stage::Fit, why, origin));
    }
    if wanted.is_none() {
        for kind in target.kinds() {
            if !is_allowed(draft, kind) {
                let it = if is_composed { kind.name() } else { "it" };
                let why = format!("{it} is not among the allowed backends");
                return Err(over(Stage::Allowed, why, api_origin));
            }
        }
    }
    let mut names = Vec::new();
    for kind in target.kinds() {
        match declared_name(draft, kind, wanted) {
            Some(name) => names.push(name),
            None => {
                let why = match is_composed {
                    true => format!("the platform declares no {kind}"),
                    false => "the platform declares none".to_owned(),
                };
                return Err(over(Stage::Declared, why, api_origin));
            }
        }
    }
    match &unserved {
        Some((why, origin)) => Err(over(Stage::Build, why.clone(), origin.unwrap_or(api_origin))),
        None => Ok(names),
    }
}

/// Why the build cannot run a target, and the need that this is about.
fn unserved(
    draft: &Draft<'_>,
    demand: &Demand,
    target: Target,
) -> Option<(String, Option<Origin>)> {
    let build = draft.input.capabilities;
    let Some(offer) = build.offer(target) else {
        let missing = target.kinds().into_iter().filter(|kind| !build.has(*kind));
        let missing: Vec<_> = missing.map(|kind| kind.name()).collect();
        let why = match missing.is_empty() {
            true => format!("this build cannot run {} together yet", target.name()),
            false => format!("this build has no adapter for {}", missing.join(" and ")),
        };
        return Some((why, None));
    };
    let (_, served) = build.topics(target, demand.interfaces.iter().map(|(one, ..)| *one));
    let lacks = demand.interfaces.iter().find(|(one, ..)| !served.contains(*one));
    if let Some((interface, because, origin)) = lacks {
        let why = format!("in this build it does not serve {interface} ({because})");
        return Some((why, Some(*origin)));
    }
    (demand.durability > offer.durability).then(|| {
        (format!("in this build its strongest level is {}", offer.durability.name()), None)
    })
}

/// Why a target does not fit the needs, whatever the build and the platform.
fn misfit(
    draft: &Draft<'_>,
    api: Api,
    demand: &Demand,
    target: Target,
) -> Option<(String, Origin)> {
    let figures = figures(target, api);
    let has_log = target.kinds().contains(&BackendType::Kafka);
    if let Some(origin) = demand.replay.filter(|_| api == Api::Queue && !has_log) {
        return Some((
            "what was acknowledged is gone there, and cannot be replayed".into(),
            origin,
        ));
    }
    if let Some(writes) = demand.writes.filter(|writes| writes.value.0 > figures.writes) {
        let most = show_rate(figures.writes);
        return Some((
            format!("planned for {most} writes at most, not {}", writes.value),
            writes.origin,
        ));
    }
    if let (Some((bytes, because, origin)), Some(most)) = (&demand.data, figures.data)
        && *bytes > most
    {
        let (about, most) = (round_bytes(*bytes), show_bytes(most));
        return Some((format!("planned for {most} at most, not {about} ({because})"), *origin));
    }
    if let (Some(asked), Some(most)) = (demand.retention, figures.retention)
        && asked.value.0 > most
    {
        return Some((format!("keeps messages for {} at most", show_duration(most)), asked.origin));
    }
    let threshold = draft.input.platform.patterns.0.claim_check.threshold;
    if let Some(message) = demand.message.filter(|size| size.value.0 > figures.message)
        && threshold.is_none()
    {
        let most = show_bytes(figures.message);
        let why = format!("takes messages of {most} at most, and the platform sets no claim_check");
        return Some((why, message.origin));
    }
    let (asked, _, origin) = demand.latency.as_ref()?;
    let floor = match demand.durability {
        Durability::Memory => figures.latency,
        Durability::Wal => figures.latency.max(LOG_LATENCY),
        Durability::Strong => figures.latency + LOG_LATENCY,
    };
    (*asked < floor).then(|| {
        let level = demand.durability.name();
        (format!("planned for {} at level {level}, not less", show_duration(floor)), *origin)
    })
}

/// The list that holds for the request's team; empty: every backend is allowed.
fn is_allowed(draft: &Draft<'_>, kind: BackendType) -> bool {
    let (platform, team) = (draft.input.platform, &draft.document.request.team.value.0);
    if authority::mode(platform, team) == Mode::Expert {
        return true;
    }
    let own = platform.team(team).map(|team| &team.allowed_backends);
    let list = own.filter(|list| !list.is_empty()).unwrap_or(&platform.allowed_backends);
    let declared = platform.backends.declared.iter().filter(|backend| backend.kind == kind);
    let of_kind: Vec<&str> = declared.map(|backend| backend.name.as_str()).collect();
    let is_kind = |text: &str| text == kind.name() || of_kind.contains(&text);
    list.is_empty() || list.iter().any(|allowed| is_kind(&allowed.value.0))
}

/// The backend of a type that a plan takes: the one that is asked for by name, else the first that is allowed.
fn declared_name(draft: &Draft<'_>, kind: BackendType, wanted: Option<&Wanted>) -> Option<String> {
    if kind == BackendType::Memstore {
        return Some(kind.name().to_owned());
    }
    let platform = draft.input.platform;
    let of_kind = platform.backends.declared.iter().filter(|backend| backend.kind == kind);
    let mut names: Vec<&str> = of_kind.map(|backend| backend.name.as_str()).collect();
    if let Some(wanted) = wanted.filter(|wanted| names.contains(&wanted.text.as_str())) {
        return Some(wanted.text.clone());
    }
    let team = platform.team(&draft.document.request.team.value.0);
    let own = team.map(|team| &team.allowed_backends).filter(|list| !list.is_empty());
    let allowed = own.unwrap_or(&platform.allowed_backends);
    let by_type = allowed.is_empty() || allowed.iter().any(|one| one.value.0 == kind.name());
    if !by_type && wanted.is_none() {
        names.retain(|name| allowed.iter().any(|one| one.value.0 == *name));
    }
    names.first().map(|name| (*name).to_owned())
}

/// Refuses a request that no target is left for, with what would meet it.
fn refuse_all(draft: &mut Draft<'_>, api: Api, passed: &[PassedOver], wanted: Option<&Wanted>) {
    let list = |passed: &[&PassedOver]| {
        let line = |over: &&PassedOver| format!("{}: {}", over.target.name(), over.why);
        passed.iter().map(line).collect::<Vec<_>>().join("; ")
    };
    let all: Vec<_> = passed.iter().collect();
    if let Some(wanted) = wanted.filter(|_| passed.is_empty()) {
        let message = format!("`{}` does not serve {api}", wanted.text);
        let remedy = match wanted.pin {
            Some(_) => draft.ask_platform("to place it elsewhere"),
            None => "leave `backend` out, or name another".to_owned(),
        };
        return draft.refuse(Rule::NeedNotMet, wanted.origin, message, remedy);
    }
    let Some(best) = best_of(passed) else {
        let origin = passed.first().map_or(Origin::File, |over| over.origin);
        let message = format!("no backend for {api} meets these needs together");
        let remedy = format!("ask for less of what stands against them: {}", list(&all));
        return draft.refuse(Rule::NeedNotMet, origin, message, remedy);
    };
    let others: Vec<_> = passed.iter().filter(|over| over.target != best.target).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(". Passed over: {}", list(&others)) };
    let name = best.target.name();
    let stage = if best.unserved.is_some() { Stage::Build } else { best.stage };
    let (rule, message, remedy) = match stage {
        Stage::Fit => return,
        // That has been said of the API as a whole.
        Stage::Build if !draft.input.capabilities.apis.contains(&api) => return,
        Stage::Allowed => (
            Rule::BackendNotAllowed,
            format!("{name} would meet these needs, but {}", best.why),
            draft.ask_platform("to add it to `allowed_backends`"),
        ),
        Stage::Declared => (
            Rule::BackendNotDeclared,
            format!("{name} would meet these needs, but {}", best.why),
            draft.ask_platform("to add it under `backends`"),
        ),
        Stage::Build => {
            let build = draft.input.capabilities;
            let serves = |target: &Target| {
                let base = Demand::of(&draft.document.request).interfaces[0].0;
                build.offer(*target).is_some_and(|offer| offer.interfaces.contains(base))
            };
            let offered: Vec<_> =
                build.targets.iter().map(|(target, _)| *target).filter(serves).collect();
            let offered: Vec<_> = offered.iter().map(|target| target.name()).collect();
            let offered = match offered.is_empty() {
                true => format!("this build offers {api} on no backend"),
                false => format!("this build offers {api} on {}", offered.join(", ")),
            };
            (
                Rule::NotInThisBuild,
                format!("it needs {name}, and {}", best.unserved.as_ref().unwrap_or(&best.why)),
                format!("{offered}; take a build that can run it, or ask for less"),
            )
        }
    };
    draft.refuse(rule, best.origin, message, format!("{remedy}{others}"));
}

/// A backend of the namespace's own.
fn own_backend(
    draft: &mut Draft<'_>,
    own: &OwnBackend,
    origin: Origin,
    demand: &Demand,
) -> Option<Chosen> {
    let by_scheme = match own.connection.value.scheme.as_str() {
        "redis" => Some(BackendType::Redis),
        "postgres" | "postgresql" => Some(BackendType::Postgres),
        "kafka" => Some(BackendType::Kafka),
        "nats" => Some(BackendType::Nats),
        "amqp" => Some(BackendType::RabbitMq),
        _ => None,
    };
    let name = &own.r#type.value.0;
    let by_type = BackendType::ALL.iter().copied().find(|kind| kind.name() == name);
    let Some(kind) = by_scheme else {
        let message = format!("`{}://` is no scheme of a backend", own.connection.value.scheme);
        let remedy = "write redis://, postgres://, kafka://, nats:// or amqp://".to_owned();
        draft.refuse(Rule::NeedNotMet, own.connection.origin, message, remedy);
        return None;
    };
    if by_type.is_some_and(|of| of != kind) {
        let message = format!("the type is {name}, and the connection is one of {kind}");
        draft.refuse(Rule::NeedNotMet, origin, message, "write the scheme that goes with the type");
        return None;
    }
    let shown = if by_type.is_some() { name.clone() } else { format!("{name} ({kind})") };
    let target = Target::of(kind);
    let build = draft.input.capabilities;
    let unserved = unserved(draft, demand, target).map(|(why, _)| why).or_else(|| {
        let is_served = build.own_backends.contains(&kind);
        (!is_served).then(|| format!("this build cannot give a namespace a {kind} of its own yet"))
    });
    let is_served = unserved.is_none();
    if let Some(why) = unserved {
        let message = format!("it needs {shown}, and {why}");
        let remedy = "declare the backend in platform.yaml under `backends`, and name it with `backend: NAME`";
        draft.refuse(Rule::NotInThisBuild, origin, message, remedy);
    }
    draft.decide(
        "backend",
        format!("{name} ({kind})"),
        "the platform team names it: expert mode",
        vec![],
    );
    if let Some(factor) = own.replication_factor.filter(|_| !makes_copies(kind)) {
        draft.notes.push(format!(
            "replication_factor {} is what {name} is expected to have; Prism makes no copies there itself",
            factor.value
        ));
    }
    Some(Chosen { target, names: vec![name.clone()], is_served, pin: None, own: Some(own.clone()) })
}

/// Whether Prism says to such a backend how many copies of a namespace's data it keeps.
fn makes_copies(kind: BackendType) -> bool {
    matches!(kind, BackendType::Kafka | BackendType::Nats)
}
