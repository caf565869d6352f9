//! The answers of NamespaceService that change nothing, and what those that change something share with them.

use std::hash::Hasher;

use prism_adapters::{Error, Kind};
use prism_proto::prism::namespace::v1 as proto;
use prost::Message as _;
use siphasher::sip::SipHasher13;

use super::describe::{self, Change};
use super::{Asker, Method, Question};
use crate::access::permission_denied;
use crate::config::platform::{Platform, Purpose};
use crate::config::request::{Document, read_requests};
use crate::config::{Config, Namespace, PlannedFrom, nearest};
use crate::plan::{Asked, Hindrance, Obstacle, Outcome, differences, keeps_data, outcome_json};
use crate::planned;
use crate::served::Served;

/// What the document of a request is called in messages.
pub(super) const DOCUMENT: &str = "document";
/// The largest document, as the largest file of requests.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Namespaces of one page when the caller leaves the choice.
const PAGE_DEFAULT: usize = 100;
/// Namespaces of one page; more is taken as this.
const PAGE_MAX: usize = 1000;

impl Served {
    /// Answers a question.
    pub(crate) fn answer(&mut self, question: Question) {
        if question.method == Method::Delete {
            return match decoded(&question.message) {
                Ok(request) => self.delete(question, &request),
                Err(error) => question.answer(Err(error)),
            };
        }
        let told = self.told(&question);
        question.answer(told);
    }

    fn told(&mut self, question: &Question) -> Result<Vec<u8>, Error> {
        let Question { message, asker, .. } = question;
        let encoded = match question.method {
            Method::List => self.list(asker, &decoded(message)?)?.encode_to_vec(),
            Method::Get => {
                let request: proto::GetRequest = decoded(message)?;
                let (namespace, asked) = self.of(asker, &request.namespace)?;
                let namespace = Some(self.described(namespace, asked));
                proto::GetResponse { namespace }.encode_to_vec()
            }
            Method::Explain => self.explain(asker, &decoded(message)?)?.encode_to_vec(),
            Method::Plan => self.plan(asker, &decoded(message)?)?.encode_to_vec(),
            Method::Apply => self.apply(asker, &decoded(message)?)?.encode_to_vec(),
            Method::Approve => self.approve(asker, &decoded(message)?)?.encode_to_vec(),
            Method::Delete => unreachable!("it is answered when it is done"),
        };
        Ok(encoded)
    }

    fn list(
        &self,
        asker: &Asker,
        request: &proto::ListRequest,
    ) -> Result<proto::ListResponse, Error> {
        let page = match request.page_size as usize {
            0 => PAGE_DEFAULT,
            asked => asked.min(PAGE_MAX),
        };
        let mut found: Vec<_> = self
            .config
            .namespaces
            .iter()
            .filter(|namespace| namespace.name > request.page_token)
            .filter(|namespace| self.may_change(asker, &namespace.name))
            .map(|namespace| (namespace, self.asked(&namespace.name)))
            .filter(|(_, asked)| {
                request.team.is_empty() || asked.is_some_and(|of| of.plan.team == request.team)
            })
            .collect();
        found.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        let next_page_token = match found.len() > page {
            true => found[page - 1].0.name.clone(),
            false => String::new(),
        };
        let told = found.into_iter().take(page);
        let namespaces = told.map(|(namespace, asked)| self.described(namespace, asked)).collect();
        Ok(proto::ListResponse { namespaces, next_page_token })
    }

    fn explain(
        &self,
        asker: &Asker,
        request: &proto::ExplainRequest,
    ) -> Result<proto::ExplainResponse, Error> {
        let (namespace, asked) = self.of(asker, &request.namespace)?;
        let described = self.described(namespace, asked);
        if let Some(asked) = asked {
            return Ok(describe::explained(asked, described));
        }
        let file = match &self.config.file {
            Some(file) => file.display().to_string(),
            None => "it is there without a configuration".to_owned(),
        };
        let (name, api) = (&namespace.name, namespace.client_api.name());
        let text = format!(
            "{name}  {api}\n  backend     {}\n  durability  {}\n  why\n    nobody asked for it by a request: {file}\n",
            described.backend,
            namespace.durability.name()
        );
        Ok(proto::ExplainResponse { namespace: Some(described), text, ..Default::default() })
    }

    fn plan(
        &self,
        asker: &Asker,
        request: &proto::PlanRequest,
    ) -> Result<proto::PlanResponse, Error> {
        let documents = documents(&request.namespace, &request.document)?;
        self.check_asker(asker, &documents)?;
        let changes = self.changes(&documents)?;
        Ok(proto::PlanResponse {
            plan_token: self.token(&changes),
            outcomes: self.outcomes(&changes),
        })
    }

    /// Changes as they are told.
    pub(super) fn outcomes(&self, changes: &[Change]) -> Vec<proto::Outcome> {
        let told = |change: &Change| {
            let (plan, asked) = (change.outcome.plan.as_ref(), &change.asked);
            let becomes = plan.zip(asked.as_ref()).map(|(plan, namespace)| {
                describe::namespace(&self.config, &self.registry, namespace, Some(plan))
            });
            change.told(becomes, changes.len())
        };
        changes.iter().map(told).collect()
    }

    /// What documents come to beside everything else that is asked for here.
    pub(super) fn changes(&self, documents: &[Document]) -> Result<Vec<Change>, Error> {
        let from = self.config.planned.clone();
        let from = from.unwrap_or(PlannedFrom { requests: None, platform: None });
        let platform = self.platform(&from)?;
        let name = |document: &Document| document.request.namespace.value.0.clone();
        let is_asked_again =
            |asked: &&Document| documents.iter().any(|document| name(document) == name(asked));
        // Those that stay come first: a team's limit is reached by what is new.
        let stay = self.config.asked.iter().map(|asked| &asked.document);
        let mut all: Vec<Document> = stay.filter(|asked| !is_asked_again(asked)).cloned().collect();
        let before = all.len();
        all.extend_from_slice(documents);
        let placed = planned::placed(&self.registry);
        let mut outcomes = planned::plan_beside(&all, &platform, &placed, self.shards);
        let outcomes = outcomes.drain(before..).zip(documents);
        Ok(outcomes.map(|(outcome, document)| self.change(outcome, document)).collect())
    }

    /// The platform as it is now, with what was approved here.
    pub(super) fn platform(&self, from: &PlannedFrom) -> Result<Platform, Error> {
        let (mut platform, _) = planned::platform(from, Purpose::Plan).map_err(|error| {
            tracing::error!("the platform cannot be read: {error}");
            let message = "the platform's file is wrong; who runs this server finds the reason in its log, or with `prism plan`";
            Error::new(Kind::FailedPrecondition, "PLATFORM_INVALID", message)
        })?;
        platform.approvals.extend(self.registry.applied.approvals());
        Ok(platform)
    }

    fn change(&self, outcome: Outcome, document: &Document) -> Change {
        let served = self.config.namespaces.iter().find(|of| of.name == outcome.namespace);
        let before = self.asked(&outcome.namespace);
        let mut hindrances: Vec<Hindrance> = Vec::new();
        if served.is_some() && before.is_none() {
            hindrances.push(planned::configured(document));
        }
        if let Some(before) = before
            && let Err(hindrance) = keeps_data(before, &document.request, outcome.plan.as_ref())
        {
            hindrances.push(hindrance);
        }
        if served.is_none() && self.is_pending(&outcome.namespace) {
            let name = &document.request.namespace;
            hindrances.push(Hindrance {
                obstacle: Obstacle::WritesPending,
                origin: name.origin,
                message: format!(
                    "the log holds writes of `{}` for its backend, from a time when it was served, which only a start takes up",
                    name.value
                ),
                remedy: "serve it once by `requests:` or `namespaces:` in the configuration until they have arrived, or take \
                         another name"
                    .to_owned(),
            });
        }
        if self.is_erasing(&outcome.namespace) {
            let name = &document.request.namespace;
            hindrances.push(Hindrance {
                obstacle: Obstacle::StillEnding,
                origin: name.origin,
                message: format!(
                    "a namespace `{}` was deleted, and its backend has still to take out what it held",
                    name.value
                ),
                remedy: "try again later, or take another name; the server's log says what it waits for".to_owned(),
            });
        }
        let mut asked = None;
        let mut found = Vec::new();
        if let Some(plan) = &outcome.plan {
            match planned::namespace(plan, document, &self.config) {
                Ok(namespace) => asked = Some(namespace),
                Err(_) if !outcome.refusals.is_empty() => {}
                Err(hindrance) => hindrances.push(hindrance),
            }
            if let Some(before) = before {
                let after = Asked { document: document.clone(), plan: plan.clone() };
                found = differences(before, &after);
            }
        }
        let kind = match served {
            _ if !outcome.refusals.is_empty() || !hindrances.is_empty() => proto::Change::Refused,
            None => proto::Change::Create,
            Some(_) if found.is_empty() => proto::Change::None,
            Some(_) => proto::Change::Update,
        };
        Change { outcome, kind, differences: found, hindrances, asked, file: document.file.clone() }
    }

    /// Names exactly these changes of exactly what is served now.
    pub(super) fn token(&self, changes: &[Change]) -> String {
        let mut hasher = SipHasher13::new_with_keys(
            self.registry.applied.version(),
            self.config.namespaces.len() as u64,
        );
        for change in changes {
            hasher.write(outcome_json(&change.outcome).to_string().as_bytes());
            hasher.write_i32(change.kind.into());
        }
        format!("{:016x}", hasher.finish())
    }

    /// Refuses to tell or do anything about namespaces that are not the asker's.
    pub(super) fn check_asker(&self, asker: &Asker, documents: &[Document]) -> Result<(), Error> {
        let Asker::Known(caller) = asker else { return Ok(()) };
        for document in documents {
            let request = &document.request;
            let (name, team) = (&request.namespace.value.0, &request.team.value.0);
            let api = request.client_api.value;
            let is_theirs = match self.namespaces.get(name) {
                // To change it is one right, to give it to another team another.
                Some(there) => {
                    let stays = self.asked(name).is_some_and(|asked| asked.plan.team == *team);
                    caller.may_change(there.id) && (stays || caller.may_have(name, api, team))
                }
                None => caller.may_have(name, api, team),
            };
            if !is_theirs {
                return Err(permission_denied());
            }
        }
        Ok(())
    }

    fn may_change(&self, asker: &Asker, name: &str) -> bool {
        self.namespaces.get(name).is_some_and(|there| asker.may_change(there.id))
    }

    /// A namespace that is served and that the asker may see.
    pub(super) fn of(
        &self,
        asker: &Asker,
        name: &str,
    ) -> Result<(&Namespace, Option<&Asked>), Error> {
        let found = self.config.namespaces.iter().find(|namespace| namespace.name == name);
        match (found, asker) {
            (Some(found), _) if self.may_change(asker, name) => Ok((found, self.asked(name))),
            (_, Asker::Known(_)) => Err(permission_denied()),
            _ => Err(unknown(&self.config, name)),
        }
    }

    pub(super) fn asked(&self, name: &str) -> Option<&Asked> {
        let asked = self.config.asked.iter().find(|asked| asked.plan.namespace == name);
        asked.map(AsRef::as_ref)
    }

    pub(super) fn described(
        &self,
        namespace: &Namespace,
        asked: Option<&Asked>,
    ) -> proto::Namespace {
        let plan = asked.map(|asked| &asked.plan);
        describe::namespace(&self.config, &self.registry, namespace, plan)
    }
}

/// The requests of a document; where a name is given it is one, for that.
pub(super) fn documents(name: &str, document: &str) -> Result<Vec<Document>, Error> {
    if document.len() > DOCUMENT_BYTES_MAX {
        let expected =
            format!("has {} bytes, at most {DOCUMENT_BYTES_MAX} are taken", document.len());
        return Err(Error::field("DOCUMENT_TOO_LARGE", "document", expected));
    }
    let files = [(DOCUMENT.to_owned(), document.to_owned())];
    let documents = read_requests(&files).map_err(|errors| {
        let errors = errors.iter().map(ToString::to_string).collect();
        Error::new(Kind::InvalidArgument, "REQUEST_INVALID", shortened(errors))
    })?;
    let is_right = match documents.as_slice() {
        _ if name.is_empty() => true,
        [one] => one.request.namespace.value.0 == name,
        _ => false,
    };
    if !is_right {
        let expected = "is one request, for the namespace that `namespace` names";
        return Err(Error::field("REQUEST_INVALID", "document", expected));
    }
    Ok(documents)
}

/// What is wrong, as far as a status has room for it.
pub(super) fn shortened(wrong: Vec<String>) -> String {
    /// As many are told.
    const TOLD_MAX: usize = 10;
    /// A status travels in trailers, which clients bound.
    const BYTES_MAX: usize = 3000;
    let more = wrong.len().saturating_sub(TOLD_MAX);
    let told: Vec<_> = wrong.into_iter().take(TOLD_MAX).collect();
    let mut text = told.join("\n");
    if text.len() > BYTES_MAX {
        text.truncate((0..=BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push('…');
    }
    if more > 0 {
        text.push_str(&format!("\nand {more} more; Plan tells them all"));
    }
    text
}

fn decoded<Request: prost::Message + Default>(message: &bytes::Bytes) -> Result<Request, Error> {
    Request::decode(message.clone()).map_err(|error| {
        let message = format!(
            "the request is not a valid message: {error}; regenerate the client from Prism's .proto files"
        );
        Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", message)
    })
}

fn unknown(config: &Config, name: &str) -> Error {
    let names = config.namespaces.iter().map(|namespace| namespace.name.as_str());
    let remedy = match nearest(name, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "List tells which are".to_owned(),
    };
    let shown: String = name.chars().filter(|character| !character.is_control()).take(63).collect();
    let message = format!("namespace {shown:?} is not served here; {remedy}");
    Error::new(Kind::NotFound, "NAMESPACE_UNKNOWN", message).with("namespace", shown)
}
