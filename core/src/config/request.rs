//! A namespace request: what an application team asks for. One YAML document for each namespace; a file may hold many, and a
//! folder many files.
//!
//! Says *what* is needed, never *how* or *where*: that is the [planner](crate::plan)'s. Reads nothing but the text, except
//! in [`load_requests`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::NAMESPACES_MAX;
use super::described::{
    Count, Described, Latency, Name, Place, Rate, Scalar, Size, Span, Switch, Text, Within,
    read_document, show_place,
};
use super::error::{ConfigError, ConfigErrors, Origin, Problem};
use super::read::read_file;
use super::tree::{self, Report, Setting, Value};
use crate::{choices, section};

section! {
    /// A namespace request: what an application team needs. The platform decides where the data lies and how.
    pub struct Request {
        /// The namespace's name, unique over all teams: a lower-case letter, then up to 62 lower-case letters, digits and dashes.
        pub namespace: Setting<Name>,
        /// The team that owns it.
        pub team: Setting<Name>,
        /// What the application calls.
        pub client_api: Setting<Api>,
        /// What it needs of it.
        pub needs: Within<Needs>,
        /// Who else may call it.
        pub access: Within<Access>,
        /// Rules that its data is kept under.
        pub policies: Within<Policies>,
        /// Where the data has to lie. The name of a backend needs an approval; a backend of one's own is for the platform team.
        pub backend: Option<Setting<BackendAsked>>,
    }
}

choices! {
    /// What an application calls: one of the twelve services.
    pub enum Api {
        /// Store and retrieve by key.
        KeyValue = "keyvalue",
        /// Publish events, subscribe to topics.
        PubSub = "pubsub",
        /// Send and receive messages, each handled once.
        Queue = "queue",
        /// Read data streams, and write nothing.
        Reader = "reader",
        /// Several operations, all or nothing.
        Transact = "transact",
        /// Append to a log, read it from any point.
        Stream = "stream",
        /// Lists.
        List = "list",
        /// Sets.
        Set = "set",
        /// Sets in the order of a score.
        SortedSet = "sortedset",
        /// Values in the order of time, and what they come to.
        TimeSeries = "timeseries",
        /// Nodes and edges.
        Graph = "graph",
        /// JSON documents.
        Document = "document",
    }
}

section! {
    /// What an application needs.
    #[derive(Default)]
    pub struct Needs {
        /// When a caller may hear "done".
        pub durability: Option<Setting<DurabilityNeed>>,
        /// Whether a read has to see every write that was acknowledged before it.
        pub consistency: Option<Setting<Consistency>>,
        /// How long what was sent, published or appended is kept.
        pub retention: Option<Setting<Span>>,
        /// Entries are meant to expire after this time.
        pub ttl: Option<Setting<Span>>,
        /// Writes a second, at most.
        pub write_rps: Option<Setting<Rate>>,
        /// Reads a second, at most.
        pub read_rps: Option<Setting<Rate>>,
        /// The largest message or value.
        pub max_message_size: Option<Setting<Size>>,
        /// How much data there will be.
        pub data_size: Option<Setting<Size>>,
        /// Messages keep the order in which they were written, for each ordering key.
        pub ordered: Option<Setting<Switch>>,
        /// What was written can be read again from an earlier point.
        pub replay: Option<Setting<Switch>>,
        /// How quick a call has to be.
        pub latency: Option<Setting<Latency>>,
        /// How long a received message stays with its receiver before others get it.
        pub visibility_timeout: Option<Setting<Span>>,
        /// Messages that fail too often are set aside.
        pub dead_letters: Option<Setting<Switch>>,
        /// How often a message is delivered before it is set aside.
        pub max_deliveries: Option<Setting<Count>>,
        /// Interfaces that the application calls, such as `keyvalue_scan`; `prism interfaces` lists them.
        pub interfaces: Vec<Setting<Offered>>,
        /// Tuning: partitions of the Kafka topic. Needs an approval.
        pub kafka_partitions: Option<Setting<Count>>,
        /// Tuning: connections to PostgreSQL. Needs an approval.
        pub postgres_pool_size: Option<Setting<Count>>,
    }
}

choices! {
    /// When a caller may hear "done".
    pub enum DurabilityNeed {
        /// On stable storage here, and confirmed by the backend.
        Strong = "strong",
        /// On stable storage here; the backend follows.
        Eventual = "eventual",
        /// The backend answered; nothing is logged.
        BestEffort = "best-effort",
    }
}

choices! {
    /// What a read has to see.
    pub enum Consistency {
        /// Every write that was acknowledged before it.
        Strong = "strong",
        /// Some earlier state.
        Eventual = "eventual",
    }
}

section! {
    /// Who may call.
    #[derive(Default)]
    pub struct Access {
        /// Who may also change the namespace. The owning team always may.
        pub owners: Vec<Grantee>,
        /// Who may call it.
        pub consumers: Vec<Grantee>,
    }
}

/// A team or a service, and what it may do.
#[derive(Debug, Clone, PartialEq)]
pub struct Grantee {
    /// Who.
    pub who: Setting<Who>,
    /// What.
    pub may: May,
}

/// A team, or a service of some team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Everybody of a team.
    Team(Name),
    /// A service.
    Service(Name),
}

choices! {
    /// What a consumer may do.
    pub enum May {
        /// Only read.
        Read = "read",
        /// Read and write.
        Write = "write",
    }
}

section! {
    /// A consumer in full.
    pub struct GranteeInFull {
        /// A team.
        pub team: Option<Setting<Name>>,
        /// A service.
        pub service: Option<Setting<Name>>,
        /// What it may do; `read` unless said otherwise.
        pub may: Option<Setting<May>>,
    }
}

impl Described for Grantee {
    const EXAMPLE: &'static str = "{team: analytics, may: read}";

    /// A team's name by itself, or a section.
    fn read(place: Place<'_>) -> Option<Self> {
        let (origin, report, path) = (place.node.origin, place.report, place.path.clone());
        if !matches!(place.node.value, Value::Map(_)) {
            let team = Name::read(place)?;
            return Some(Self { who: Setting { value: Who::Team(team), origin }, may: May::Read });
        }
        let full = GranteeInFull::read(place)?;
        let may = full.may.map_or(May::Read, |may| may.value);
        let who = match (full.team, full.service) {
            (Some(team), None) => Setting { value: Who::Team(team.value), origin: team.origin },
            (None, Some(service)) => {
                Setting { value: Who::Service(service.value), origin: service.origin }
            }
            (one, _) => {
                let what = if one.is_some() { "both a team and a service" } else { "nobody" };
                let remedy = format!("write one of them, such as `{}`", Self::EXAMPLE);
                report.error(origin, Problem::new(format!("{path} names {what}"), remedy));
                return None;
            }
        };
        Some(Self { who, may })
    }

    fn schema() -> Json {
        json!({"anyOf": [Name::schema(), GranteeInFull::schema()]})
    }
}

section! {
    /// Rules that the data is kept under.
    #[derive(Default)]
    pub struct Policies {
        /// Fields that are marked as personal are encrypted before they are stored, and masked in logs.
        pub pii_handling: Option<Setting<Switch>>,
        /// Every access is written down: who, what, when.
        pub audit_logging: Option<Setting<Switch>>,
    }
}

/// Where the data has to lie.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendAsked {
    /// One of the platform's, by its name or type.
    Named(Text),
    /// One of one's own.
    Own(OwnBackend),
}

section! {
    /// A backend that only this namespace uses.
    pub struct OwnBackend {
        /// What it is: a type of backend, or a name for it where the connection tells the type.
        pub r#type: Setting<Name>,
        /// How to reach it, as a URL without a password, such as `redis://host:6379`.
        pub connection: Setting<Connection>,
        /// How many copies of the data there are.
        pub replication_factor: Option<Setting<Count>>,
    }
}

impl Described for BackendAsked {
    const EXAMPLE: &'static str = "postgres";

    fn read(place: Place<'_>) -> Option<Self> {
        match place.node.value {
            Value::Map(_) => OwnBackend::read(place).map(Self::Own),
            _ => Text::read(place).map(Self::Named),
        }
    }

    fn schema() -> Json {
        json!({"anyOf": [Text::schema(), OwnBackend::schema()]})
    }
}

/// A URL of a backend: scheme, host, and perhaps user, port and path. Never a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// As it was written.
    pub text: String,
    /// What stands before `://`.
    pub scheme: String,
}

impl Scalar for Connection {
    const WRITTEN: &'static str = "redis://host:6379";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let remedy = || "write a URL such as redis://host:6379".to_owned();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(("it is not a URL".to_owned(), remedy()));
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        // Nothing of the text may stand in the message: it may hold a secret. A `?` may, too.
        if user.is_some_and(|user| user.contains(':')) || rest.contains('?') {
            let remedy =
                "name the secret's file in the platform's `backends` (`password_file`), never here";
            return Err(("a URL here holds no password and no parameters".into(), remedy.into()));
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '+');
        let is_url = text.chars().all(|c| c.is_ascii_graphic());
        if scheme.is_empty() || host.is_empty() || !is_word(scheme) || !is_url {
            return Err(("it is not a URL".to_owned(), remedy()));
        }
        Ok(Self { text: text.to_owned(), scheme: scheme.to_ascii_lowercase() })
    }

    fn form() -> Json {
        json!({"type": "string", "format": "uri", "examples": [Self::WRITTEN]})
    }
}

/// An interface of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered(pub prism_proto::catalogue::Interface);

impl Scalar for Offered {
    const WRITTEN: &'static str = "keyvalue_scan";

    fn parse(text: &str) -> Result<Self, (String, String)> {
        use prism_proto::catalogue::Interface;
        let refuse = || {
            let names = Interface::all().iter().map(|interface| interface.name());
            let remedy = match super::nearest(text, names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`prism interfaces` lists them".to_owned(),
            };
            (format!("`{text}` is not an interface"), remedy)
        };
        Interface::by_name(text).map(Self).ok_or_else(refuse)
    }

    fn form() -> Json {
        let all = prism_proto::catalogue::Interface::all().iter();
        json!({"enum": all.map(|interface| interface.name()).collect::<Vec<_>>()})
    }
}

/// A request with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Where in it the document begins.
    pub origin: Origin,
    /// What it asks for.
    pub request: Request,
}

impl Document {
    /// Where a setting of it stands: `file:line:column`.
    pub fn place(&self, origin: Origin) -> String {
        show_place(&self.file, origin)
    }
}

/// The requests of files, each its name and its text, in their order; or everything that is wrong with them, by file.
pub fn read_requests(files: &[(String, String)]) -> Result<Vec<Document>, Vec<ConfigErrors>> {
    let mut documents: Vec<Document> = Vec::new();
    let mut wrong = Vec::new();
    for (name, text) in files {
        let file: Arc<str> = name.as_str().into();
        let report = Report::default();
        match tree::parse_all(text) {
            Ok(nodes) => {
                for node in &nodes {
                    let request = read_document::<Request>(node, &report);
                    let Some(request) = request else { continue };
                    let document = Document { file: file.clone(), origin: node.origin, request };
                    refuse_second(&documents, &document, &report);
                    documents.push(document);
                }
                if nodes.is_empty() {
                    let remedy = "write a document that begins with `namespace: NAME`";
                    report.error(Origin::File, Problem::new("no namespace is asked for", remedy));
                }
            }
            Err(error) => {
                wrong.push(ConfigErrors { file: name.clone(), errors: vec![error] });
                continue;
            }
        }
        let (errors, _) = report.finish();
        if !errors.is_empty() {
            wrong.push(ConfigErrors { file: name.clone(), errors });
        }
    }
    if documents.len() > NAMESPACES_MAX {
        let message = format!(
            "{} namespaces are asked for, at most {NAMESPACES_MAX} may be",
            documents.len()
        );
        let remedy = "serve some of them with another Prism".to_owned();
        let file = files.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let errors = vec![ConfigError { origin: Origin::File, message, remedy }];
        wrong.push(ConfigErrors { file, errors });
    }
    if wrong.is_empty() { Ok(documents) } else { Err(wrong) }
}

/// A name belongs to one document, whichever file it is in.
fn refuse_second(documents: &[Document], document: &Document, report: &Report) {
    let name = &document.request.namespace;
    let first = documents.iter().find(|first| first.request.namespace.value == name.value);
    if let Some(first) = first {
        let message = format!(
            "the namespace `{}` is there twice: first at {}",
            name.value,
            first.place(first.request.namespace.origin)
        );
        report.error(name.origin, Problem::new(message, "give each namespace its own name"));
    }
}

/// Reads the requests of a file, or of every `*.yaml` and `*.yml` of a folder in the order of their names; `platform.yaml` is
/// left out.
pub fn load_requests(path: &Path) -> Result<Vec<Document>, Vec<ConfigErrors>> {
    read_requests(&request_texts(path)?)
}

/// The files that [`load_requests`] reads, each its name and its text.
pub fn request_texts(path: &Path) -> Result<Vec<(String, String)>, Vec<ConfigErrors>> {
    let refuse = |message: String| {
        let remedy = "name a YAML file, or a folder of them".to_owned();
        let errors = vec![ConfigError { origin: Origin::File, message, remedy }];
        vec![ConfigErrors { file: path.display().to_string(), errors }]
    };
    let mut files = Vec::new();
    if path.is_dir() {
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries =
            entries.map_err(|error| refuse(format!("the folder cannot be read: {error}")))?;
        let is_request = |path: &PathBuf| {
            let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
            let is_platform = path.file_stem().is_some_and(|name| name == "platform");
            is_yaml && !is_platform && path.is_file()
        };
        files.extend(entries.into_iter().map(|entry| entry.path()).filter(is_request));
        files.sort();
        if files.is_empty() {
            return Err(refuse("the folder holds no *.yaml".to_owned()));
        }
    } else {
        files.push(path.to_owned());
    }
    let mut texts = Vec::new();
    let mut wrong = Vec::new();
    for file in files {
        match read_file(&file, "check the path, and that this user may read it") {
            Ok(text) => texts.push((file.display().to_string(), text)),
            Err(errors) => wrong.push(errors),
        }
    }
    if wrong.is_empty() { Ok(texts) } else { Err(wrong) }
}

/// The JSON Schema of a namespace request.
pub fn request_schema() -> Json {
    super::platform::schema_of::<Request>("Prism namespace request")
}
