//! `platform.yaml`: what the platform team owns. Backends, who may use which, limits, approvals, the settings of patterns,
//! and where single namespaces have to lie.
//!
//! Never holds a secret: backends name the file that does. Reads nothing but the text, except what backends name, and that
//! only where it is to be served ([`Purpose::Serve`]).

use std::path::Path;

use serde_json::{Value as Json, json};

use super::access::{self, Anonymous, CallerIdentity, Grant, TokenIssuer};
use super::described::{
    ByteRate, Count, Day, Described, Field, Index, Name, Place, Rate, Reading, Size, Span, Switch,
    Text, Within, not_one_of, read_document,
};
use super::error::{ConfigErrors, Origin, Problem, nearest};
use super::read::read_file;
use super::tree::{self, Node, Report, Section, Setting, Value};
use super::{Backend, backends};
use crate::{choices, section};

section! {
    /// The platform: where data may lie, and who may ask for what.
    pub struct Platform {
        /// The team that owns this file.
        pub owner: Within<Owner>,
        /// Where data may lie besides the embedded store.
        pub backends: Backends,
        /// The backends that every team may be given, by type or by name. Without the key: all.
        pub allowed_backends: Vec<Setting<Text>>,
        /// The most that a namespace may ask for, unless its team's own limits say otherwise.
        pub limits: Within<TeamLimits>,
        /// The teams. Without the key any team may ask, as a guided one.
        pub teams: Vec<Team>,
        /// Tuning that was approved.
        pub approvals: Vec<Approval>,
        /// The settings of patterns, such as `- wal: {fsync: true}`.
        pub patterns: Patterns,
        /// The backend that is taken before others, where it serves what is asked for.
        pub backend: Option<Setting<BackendPin>>,
        /// Where single namespaces have to lie.
        pub placement: Vec<Placement>,
        /// What a namespace may use at a time, unless its placement says otherwise.
        pub quotas: Within<Quotas>,
        /// Whose tokens are taken.
        pub tokens: Vec<TokenIssuer>,
        /// Who is who. With this key, or another of these four, what is not granted is denied.
        pub identities: Vec<CallerIdentity>,
        /// What teams and services may do, beside what requests say under `access`.
        pub grants: Vec<Grant>,
        /// What callers may do who do not say who they are.
        pub anonymous: Option<Setting<Anonymous>>,
        /// Where what is applied is kept, for all servers of this platform. Without the key each has its own.
        pub registry: Option<Setting<SharedRegistry>>,
    }
}

section! {
    /// Where what is applied is kept.
    pub struct SharedRegistry {
        /// A PostgreSQL among `backends`.
        pub backend: Setting<Name>,
        /// What it is called there, where several platforms use one database; `platform` unless said otherwise.
        pub name: Option<Setting<Name>>,
    }
}

section! {
    /// The team that owns the platform.
    #[derive(Default)]
    pub struct Owner {
        /// Its name: the only team whose mode may be `expert`.
        pub team: Option<Setting<Name>>,
        /// How to reach it; refusals that it can lift say so.
        pub contact: Option<Setting<Text>>,
    }
}

choices! {
    /// What a backend is.
    pub enum BackendType {
        /// The embedded store.
        Memstore = "memstore",
        /// Transactional data.
        Postgres = "postgres",
        /// High-throughput event streaming.
        Kafka = "kafka",
        /// Fast key-value and pub/sub.
        Redis = "redis",
        /// Lightweight messaging.
        Nats = "nats",
        /// Key-value as a service.
        DynamoDb = "dynamodb",
        /// Queues as a service.
        Sqs = "sqs",
        /// A message broker.
        RabbitMq = "rabbitmq",
        /// Analytics over columns.
        ClickHouse = "clickhouse",
        /// Time series in PostgreSQL.
        TimescaleDb = "timescaledb",
        /// Time series.
        InfluxDb = "influxdb",
    }
}

/// A backend that the platform declares.
#[derive(Debug, Clone, PartialEq)]
pub struct PlatformBackend {
    /// What plans, metrics and errors call it.
    pub name: String,
    /// What it is.
    pub kind: BackendType,
}

/// The list `backends`. The keys of those that this build serves are read as in the configuration of `prism serve`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backends {
    /// All of them, in the order of the file, without the embedded store.
    pub declared: Vec<PlatformBackend>,
    /// Those that this build can serve, the embedded store first; not with everything in it where files were not read.
    pub configured: Vec<Backend>,
}

impl Field for Backends {
    const REQUIRED: bool = false;

    fn take(reading: &Reading<'_>, key: &'static str) -> Option<Self> {
        let report = reading.0.report();
        let (origin, sections) = reading.0.sections(key).unwrap_or((Origin::Default, Vec::new()));
        let mut declared = Vec::new();
        let mut served = Vec::new();
        for section in sections {
            let written = section.peek("type").unwrap_or_default();
            let known = BackendType::ALL.iter().copied().find(|kind| kind.name() == written);
            match known {
                Some(kind)
                    if kind != BackendType::Memstore && !backends::is_served(kind.name()) =>
                {
                    declared.extend(read_unserved(&section, kind, report));
                }
                None if !section.lacks("type") => {
                    let (message, remedy) = not_one_of(written, &backend_words());
                    let message = format!("{}.type: {message}", section.path());
                    report.error(section.origin, Problem::new(message, remedy));
                }
                known => {
                    if let (Some(kind), Some(name)) = (known, section.peek("name")) {
                        declared.push(PlatformBackend { name: name.to_owned(), kind });
                    }
                    served.push(section);
                }
            }
        }
        let configured = backends::read(Some((origin, served)), report);
        for (index, backend) in declared.iter().enumerate() {
            // Two that are both served have been refused with their place.
            let is_twice = declared[..index].iter().any(|other| other.name == backend.name);
            if is_twice && !backends::is_served(backend.kind.name()) {
                let message = format!("the backend `{}` is there twice", backend.name);
                report.error(origin, Problem::new(message, "give each backend its own name"));
            }
        }
        Some(Self { declared, configured })
    }

    fn schema() -> Json {
        let mut keys = serde_json::Map::new();
        for kind in BackendType::ALL.iter().filter(|kind| backends::is_served(kind.name())) {
            for key in backend_keys(kind.name()) {
                keys.entry(key).or_insert_with(|| json!({}));
            }
        }
        let listed = BackendType::ALL.iter().filter(|kind| **kind != BackendType::Memstore);
        let listed: Vec<_> = listed.map(|kind| kind.name()).collect();
        keys.insert("name".into(), Name::schema());
        keys.insert("type".into(), json!({"enum": listed}));
        json!({"type": "array", "items": {
            "type": "object", "properties": keys, "required": ["name", "type"],
        }})
    }
}

/// A backend of a type that this build has no adapter for: its name and type are all that can be checked.
fn read_unserved(
    section: &Section<'_>,
    kind: BackendType,
    report: &Report,
) -> Option<PlatformBackend> {
    report.warn(format!(
        "{}: this build has no adapter for {kind}; of this backend only its name and type are looked at",
        section.path()
    ));
    let name = section.peek("name").filter(|name| super::namespace_name_valid(name));
    if name.is_none() {
        let message = format!("{} has no name, or not a valid one", section.path());
        let remedy = "add a line such as `name: events`";
        report.error(section.origin, Problem::new(message, remedy));
    }
    Some(PlatformBackend { name: name?.to_owned(), kind })
}

/// The keys that are read of a backend of a type, found by reading one that has no other.
fn backend_keys(kind: &str) -> Vec<&'static str> {
    let place = |text: &str| Node { origin: Origin::File, value: Value::Text(text.to_owned()) };
    let entries = [("name", "a"), ("type", kind)].map(|(key, value)| (place(key), place(value)));
    let node = Node { origin: Origin::File, value: Value::Map(entries.into()) };
    let report = Report::without_files();
    backends::keys(Section::new(&node, "", &report), &report)
}

/// Whether this build can serve backends of a type that a platform declares.
pub fn is_served(kind: BackendType) -> bool {
    backends::is_served(kind.name())
}

fn backend_words() -> Vec<&'static str> {
    BackendType::ALL.iter().map(|kind| kind.name()).collect()
}

section! {
    /// The most that one namespace may ask for.
    #[derive(Default)]
    pub struct TeamLimits {
        /// Writes a second.
        pub write_rps: Option<Setting<Rate>>,
        /// Reads a second.
        pub read_rps: Option<Setting<Rate>>,
        /// How long data is kept.
        pub retention: Option<Setting<Span>>,
        /// How much data there is.
        pub data_size: Option<Setting<Size>>,
        /// The largest message.
        pub max_message_size: Option<Setting<Size>>,
        /// How many namespaces a team has.
        pub namespaces: Option<Setting<Count>>,
    }
}

choices! {
    /// What a team may write into its requests.
    pub enum Mode {
        /// Needs only; Prism and the platform choose the rest.
        Guided = "guided",
        /// Also tuning, where the platform team has approved it.
        Advanced = "advanced",
        /// Everything. The platform team only.
        Expert = "expert",
    }
}

section! {
    /// A team.
    pub struct Team {
        /// Its name.
        pub name: Setting<Name>,
        /// What it may write into its requests; `guided` unless said otherwise.
        pub mode: Option<Setting<Mode>>,
        /// The most that each of its namespaces may ask for; what is left out is as for every team.
        pub limits: Within<TeamLimits>,
        /// The backends that it may be given, instead of those that every team may be.
        pub allowed_backends: Vec<Setting<Text>>,
    }
}

choices! {
    /// Fields of a request that need an approval.
    pub enum Tuning {
        /// The backend, by name.
        Backend = "backend",
        /// Partitions of the Kafka topic.
        KafkaPartitions = "kafka_partitions",
        /// Connections to PostgreSQL.
        PostgresPoolSize = "postgres_pool_size",
    }
}

section! {
    /// An approval: which tuning of which namespace, by whom, when, and until when.
    pub struct Approval {
        /// The namespace.
        pub namespace: Setting<Name>,
        /// The fields that may be set.
        pub fields: Vec<Setting<Tuning>>,
        /// Who approved.
        pub by: Setting<Text>,
        /// When.
        pub at: Setting<Day>,
        /// The last day on which it holds.
        pub until: Setting<Day>,
        /// Why.
        pub reason: Option<Setting<Text>>,
    }
}

section! {
    /// The settings of the log.
    #[derive(Default)]
    pub struct WalSettings {
        /// A record is on stable storage before its caller hears "done"; it cannot be otherwise.
        pub fsync: Option<Setting<Switch>>,
    }
}

section! {
    /// The settings of claim checks.
    #[derive(Default)]
    pub struct ClaimCheckSettings {
        /// Payloads above this size are kept apart, and the message carries a reference.
        pub threshold: Option<Setting<Size>>,
    }
}

section! {
    /// The settings of tiered storage.
    #[derive(Default)]
    pub struct TieredStorageSettings {
        /// Data older than this is moved to where it costs less.
        pub after: Option<Setting<Span>>,
    }
}

section! {
    /// The settings of patterns.
    #[derive(Default)]
    pub struct PatternSettings {
        /// The write-ahead log.
        pub wal: Within<WalSettings>,
        /// Large messages.
        pub claim_check: Within<ClaimCheckSettings>,
        /// Hot and cold data.
        pub tiered_storage: Within<TieredStorageSettings>,
    }
}

/// The list `patterns`, taken together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patterns(pub PatternSettings);

impl Field for Patterns {
    const REQUIRED: bool = false;

    /// A list with a pattern in each item, or one section with all of them.
    fn take(reading: &Reading<'_>, key: &'static str) -> Option<Self> {
        let Some((node, path)) = reading.0.node(key) else { return Some(Self::default()) };
        let report = reading.0.report();
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Nothing => &[],
            _ => std::slice::from_ref(node),
        };
        let mut all = PatternSettings::default();
        let mut seen: Vec<&str> = Vec::new();
        let mut is_right = true;
        for (index, item) in items.iter().enumerate() {
            let path = if items.len() > 1 { format!("{path}[{index}]") } else { path.clone() };
            if let Value::Map(entries) = &item.value
                && let Some((Node { value: Value::Text(first), .. }, _)) = entries.first()
            {
                if seen.contains(&first.as_str()) {
                    let problem = Problem::new(
                        format!("the pattern `{first}` is there twice"),
                        "leave one of them out",
                    );
                    report.error(item.origin, problem);
                }
                seen.push(first);
            }
            let Some(one) = PatternSettings::read(Place { node: item, path, report }) else {
                is_right = false;
                continue;
            };
            all.wal.0.fsync = one.wal.0.fsync.or(all.wal.0.fsync);
            let (claim, tier) = (&mut all.claim_check.0, &mut all.tiered_storage.0);
            claim.threshold = one.claim_check.0.threshold.or(claim.threshold);
            tier.after = one.tiered_storage.0.after.or(tier.after);
        }
        is_right.then_some(Self(all))
    }

    fn schema() -> Json {
        let one = PatternSettings::schema();
        json!({"anyOf": [{"type": "array", "items": one}, one]})
    }
}

section! {
    /// A backend and how the data lies there.
    pub struct BackendPin {
        /// The backend, by name or by type.
        pub r#type: Setting<Text>,
        /// Partitions of the topic, where it is Kafka.
        pub partitions: Option<Setting<Count>>,
        /// Copies of the data, where the backend lets its clients choose.
        pub replication: Option<Setting<Count>>,
    }
}

section! {
    /// Where a namespace has to lie.
    pub struct Placement {
        /// The namespace.
        pub namespace: Setting<Name>,
        /// The shard that owns it.
        pub shard: Option<Setting<Index>>,
        /// The backend that holds its data.
        pub backend: Option<Setting<BackendPin>>,
        /// What it may use at a time.
        pub quotas: Within<Quotas>,
    }
}

section! {
    /// What a namespace may use at a time.
    #[derive(Default)]
    pub struct Quotas {
        /// Requests a second.
        pub requests: Option<Setting<Rate>>,
        /// Bytes of requests a second.
        pub bytes: Option<Setting<ByteRate>>,
        /// Bytes of requests in flight.
        pub bytes_in_flight: Option<Setting<Size>>,
        /// Subscriptions.
        pub subscriptions: Option<Setting<Count>>,
        /// Logged writes that wait for their backend.
        pub backlog: Option<Setting<Count>>,
    }
}

impl Platform {
    /// A team of the platform.
    pub fn team(&self, name: &str) -> Option<&Team> {
        self.teams.iter().find(|team| team.name.value.0 == name)
    }

    /// The placement of a namespace.
    pub fn placement_of(&self, namespace: &str) -> Option<&Placement> {
        self.placement.iter().find(|placement| placement.namespace.value.0 == namespace)
    }
}

/// What a platform file is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To plan: secrets and certificates are left unread.
    Plan,
    /// To serve: everything that a backend needs is read.
    Serve,
}

/// Turns a platform file's text into a platform and warnings, or into everything that is wrong with it.
pub fn read_platform(
    file: &str,
    text: &str,
    purpose: Purpose,
) -> Result<(Platform, Vec<String>), ConfigErrors> {
    let wrong = |errors| ConfigErrors { file: file.to_owned(), errors };
    let tree = tree::parse(text).map_err(|error| wrong(vec![error]))?;
    let report = match purpose {
        Purpose::Plan => Report::without_files(),
        Purpose::Serve => Report::default(),
    };
    let platform = read_document::<Platform>(&tree, &report);
    if let Some(platform) = &platform {
        check(platform, &report);
    }
    let (errors, warnings) = report.finish();
    match platform {
        Some(platform) if errors.is_empty() => Ok((platform, warnings)),
        _ => Err(wrong(errors)),
    }
}

/// Reads a platform file.
pub fn load_platform(
    path: &Path,
    purpose: Purpose,
) -> Result<(Platform, Vec<String>), ConfigErrors> {
    let text =
        read_file(path, "check the path given to --platform, and that this user may read it")?;
    read_platform(&path.display().to_string(), &text, purpose)
}

impl Default for Platform {
    /// What holds without a file: the embedded store, and any team as a guided one.
    fn default() -> Self {
        let nothing = Node { origin: Origin::Default, value: Value::Nothing };
        let report = Report::without_files();
        read_document(&nothing, &report).unwrap_or_else(|| unreachable!("no key is required"))
    }
}

/// Relations between settings, once all are known.
fn check(platform: &Platform, report: &Report) {
    access::check(platform, report);
    check_teams(platform, report);
    check_approvals(platform, report);
    let allowed = platform.allowed_backends.iter();
    let allowed = allowed.chain(platform.teams.iter().flat_map(|team| &team.allowed_backends));
    for backend in allowed {
        check_backend(platform, backend, report);
    }
    let pins = platform.placement.iter().filter_map(|placement| placement.backend.as_ref());
    for pin in pins.chain(&platform.backend) {
        check_backend(platform, &pin.value.r#type, report);
    }
    for (index, placement) in platform.placement.iter().enumerate() {
        let name = &placement.namespace;
        if platform.placement[..index].iter().any(|other| other.namespace.value == name.value) {
            let message = format!("the namespace `{}` is placed twice", name.value);
            report.error(name.origin, Problem::new(message, "leave one of them out"));
        }
    }
    if let Some(registry) = &platform.registry {
        let backend = &registry.value.backend;
        let is_it = |of: &&PlatformBackend| of.name == backend.value.0;
        let declared = platform.backends.declared.iter().find(is_it);
        if declared.is_none_or(|of| of.kind != BackendType::Postgres) {
            let message = format!("`{}` is no PostgreSQL among `backends`", backend.value);
            let remedy = "declare one there, and write its name";
            report.error(backend.origin, Problem::new(message, remedy));
        }
    }
    if let Some(fsync) = platform.patterns.0.wal.fsync.filter(|fsync| !fsync.value.0) {
        let message = "patterns.wal.fsync: the log is always synced before a caller hears \"done\"";
        let remedy = "write `fsync: true`; `durability: best-effort` is what does without a log";
        report.error(fsync.origin, Problem::new(message, remedy));
    }
}

fn check_teams(platform: &Platform, report: &Report) {
    let owner = platform.owner.team.as_ref().map(|owner| &owner.value);
    for (index, team) in platform.teams.iter().enumerate() {
        let name = &team.name;
        if platform.teams[..index].iter().any(|other| other.name.value == name.value) {
            let message = format!("the team `{}` is there twice", name.value);
            report.error(name.origin, Problem::new(message, "leave one of them out"));
        }
        let expert = team.mode.filter(|mode| mode.value == Mode::Expert);
        if let Some(mode) = expert.filter(|_| owner != Some(&name.value)) {
            let message =
                format!("mode `expert` is for the platform team, not for `{}`", name.value);
            let remedy = match owner {
                Some(_) => {
                    "write `mode: advanced`, and approve what it needs under `approvals`".to_owned()
                }
                None => {
                    format!("write `owner: {{team: {}}}` if it is the platform team", name.value)
                }
            };
            report.error(mode.origin, Problem::new(message, remedy));
        }
    }
    if let Some(owner) = platform.owner.team.as_ref().filter(|_| !platform.teams.is_empty())
        && platform.team(&owner.value.0).is_none()
    {
        let message = format!("the owner `{}` is not among the teams", owner.value);
        let names = platform.teams.iter().map(|team| team.name.value.0.as_str());
        let remedy = match nearest(&owner.value.0, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("add `- name: {}` to `teams`", owner.value),
        };
        report.error(owner.origin, Problem::new(message, remedy));
    }
}

fn check_approvals(platform: &Platform, report: &Report) {
    for approval in &platform.approvals {
        let (at, until) = (approval.at.value.0, approval.until.value.0);
        if until < at {
            let message = format!("the approval ends on {until}, before it begins on {at}");
            report.error(approval.until.origin, Problem::new(message, "write a later day"));
        }
        if approval.fields.is_empty() {
            let fields: Vec<_> = Tuning::ALL.iter().map(|field| field.name()).collect();
            let remedy = format!("add `fields: [{}]`, or some of them", fields.join(", "));
            let problem = Problem::new("the approval is for no field", remedy);
            report.error(approval.namespace.origin, problem);
        }
    }
}

/// A backend that is spoken of is a type, or the name of one that is declared.
fn check_backend(platform: &Platform, backend: &Setting<Text>, report: &Report) {
    let text = backend.value.0.as_str();
    let declared = || platform.backends.declared.iter().map(|backend| backend.name.as_str());
    let words = backend_words();
    if words.contains(&text) || declared().any(|name| name == text) {
        return;
    }
    let remedy = match nearest(text, words.iter().copied().chain(declared())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add it to `backends`, or write a type: {}", words.join(", ")),
    };
    let message = format!("`{text}` is neither a backend nor a type of one");
    report.error(backend.origin, Problem::new(message, remedy));
}

/// The JSON Schema of a platform file.
pub fn platform_schema() -> Json {
    schema_of::<Platform>("Prism platform")
}

pub(super) fn schema_of<T: Described>(title: &str) -> Json {
    let mut schema = T::schema();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        schema.insert("title".into(), title.into());
    }
    schema
}
