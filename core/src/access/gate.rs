//! A shard's gate: who calls, and whether the table lets them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prism_adapters::{Error, Kind};
use prism_io::clock;
use prism_io::grpc::Metadata;
use prism_io::server::{Connection, Standing};
use prism_proto::catalogue::{Access as Effect, Method};
use serde_json::Value;

use super::failures::Failures;
use super::watch::Watch;
use super::{ANONYMOUS, Access, Caller, InForce, READ, STRANGER, WRITE, tokens};
use crate::audit::{Fields, ShardAudit, Who, event, show};
use crate::config::access::AnonymousFrom;
use crate::namespaces::Namespace;
use crate::request::{Call, LineBudget, Origin, trace_id};

/// Verified tokens that a shard remembers.
const TOKENS_MAX: usize = 4096;
/// Metadata: the caller's token.
pub(super) const AUTHORIZATION: &str = "authorization";
const SECOND_NS: u64 = 1_000_000_000;

/// What each shard asks who may.
pub(crate) struct Gate {
    in_force: Arc<InForce>,
    epoch: Cell<u32>,
    table: RefCell<Arc<Access>>,
    tokens: RefCell<HashMap<Box<[u8]>, Token, ahash::RandomState>>,
    failures: Failures,
    watch: Watch,
    lines: LineBudget,
    audit: Rc<ShardAudit>,
}

/// Who is asked about: what they showed, when, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) metadata: &'a Metadata,
    /// Monotonic time at which the call was complete, in ns.
    pub(crate) received_ns: u64,
    pub(crate) called: Called,
}

/// What they call.
#[derive(Clone, Copy)]
pub(crate) enum Called {
    Method(Method),
    /// A method of NamespaceService, by its path.
    Control(&'static str),
}

impl Called {
    fn path(self) -> &'static str {
        match self {
            Self::Method(method) => method.path(),
            Self::Control(path) => path,
        }
    }
}

struct Token {
    row: u32,
    until_ns: u64,
    who: Arc<Who>,
}

impl Gate {
    pub(crate) fn new(in_force: Arc<InForce>, audit: Rc<ShardAudit>) -> Self {
        let (epoch, table) = in_force.table();
        Self {
            in_force,
            epoch: Cell::new(epoch),
            table: RefCell::new(table),
            tokens: RefCell::default(),
            failures: Failures::default(),
            watch: Watch::default(),
            lines: LineBudget::default(),
            audit,
        }
    }

    /// Who makes a call that was let in.
    pub(crate) fn who(&self, connection: &Connection, metadata: &Metadata) -> Arc<Who> {
        let token = metadata.get(AUTHORIZATION).and_then(bearer);
        let tokens = self.tokens.borrow();
        match token.and_then(|token| tokens.get(token)) {
            Some(known) => known.who.clone(),
            None => who_connects(connection),
        }
    }

    /// Lets a call pass, or refuses it in the same words whether there is such a namespace or not. A call from another shard, or
    /// of this one's own, has been let in where it arrived.
    #[inline]
    pub(crate) fn admit(
        &self,
        call: &Call,
        name: &str,
        namespace: Option<&Namespace>,
    ) -> Result<(), Error> {
        let Origin::Caller { connection, .. } = &call.origin else { return Ok(()) };
        if self.in_force.epoch() != self.epoch.get() {
            self.renew();
        }
        let asking = Asking {
            connection,
            metadata: &call.metadata,
            received_ns: call.received_ns,
            called: Called::Method(call.method),
        };
        let row = self.row(asking)?;
        let wanted = wanted(call.method);
        match namespace {
            Some(of) if self.table.borrow().rights(row, of.id) & wanted != 0 => Ok(()),
            _ => Err(self.denied(asking, name, row)),
        }
    }

    /// Who asks about namespaces themselves; what they may is asked of the answer.
    pub(crate) fn caller(&self, asking: Asking<'_>) -> Result<Caller, Error> {
        if self.in_force.epoch() != self.epoch.get() {
            self.renew();
        }
        let row = self.row(asking)?;
        let who = self.who(asking.connection, asking.metadata);
        Ok(Caller { table: self.table.borrow().clone(), row, who })
    }

    /// Writes down that somebody may not do what they asked of a namespace.
    #[cold]
    pub(crate) fn tell_denied(&self, asking: Asking<'_>, name: &str) {
        if let Ok(row) = self.row(asking) {
            self.denied(asking, name, row);
        }
    }

    /// Does the work of a stream that was let in, on the namespace that it names and the one that holds its data, for as long as
    /// what it was let in with holds.
    pub(crate) async fn over<T>(
        &self,
        call: &Call,
        namespaces: [&Namespace; 2],
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Origin::Caller { connection, .. } = &call.origin else { return work.await };
        let known = call.metadata.get(AUTHORIZATION).and_then(bearer).and_then(|token| {
            let tokens = self.tokens.borrow();
            tokens.get(token).map(|known| known.until_ns)
        });
        let until_ns = known.unwrap_or_else(|| connection.standing().get().until_ns);
        self.watch.over((connection, call), namespaces, until_ns, work).await
    }

    /// Ends the streams whose callers may not have them any more.
    pub(crate) fn look_after_streams(&self, now_ns: u64) {
        if self.in_force.epoch() != self.epoch.get() {
            self.renew();
        }
        self.watch.look(&self.table.borrow(), self.epoch.get(), now_ns);
    }

    #[cold]
    fn renew(&self) {
        let (epoch, table) = self.in_force.table();
        self.epoch.set(epoch);
        self.table.replace(table);
        self.tokens.borrow_mut().clear();
    }

    /// The caller's row: of its token if it brings one, else of its connection.
    #[inline]
    fn row(&self, asking: Asking<'_>) -> Result<u32, Error> {
        if !asking.metadata.is_empty()
            && let Some(value) = asking.metadata.get(AUTHORIZATION)
        {
            return self.row_of_token(asking, value);
        }
        let standing = asking.connection.standing().get();
        if standing.epoch == self.epoch.get() && asking.received_ns < standing.until_ns {
            return Ok(standing.row);
        }
        self.row_of_connection(asking)
    }

    #[cold]
    fn row_of_connection(&self, asking: Asking<'_>) -> Result<u32, Error> {
        let connection = asking.connection;
        let table = self.table.borrow();
        let (row, until_ns) = match (connection.identity(), table.anonymous_from) {
            (Some(identity), _) => {
                let until_ns = until_ns(identity.validity.until_s);
                if until_ns <= asking.received_ns {
                    return Err(self.unknown(asking, "its certificate has expired"));
                }
                (table.row_of(&identity.name, None), until_ns)
            }
            (None, Some(AnonymousFrom::Anywhere)) => (ANONYMOUS, u64::MAX),
            (None, Some(AnonymousFrom::Loopback)) if is_loopback(connection) => {
                (ANONYMOUS, u64::MAX)
            }
            (None, _) => {
                let why = "it brings neither a certificate nor a token";
                return Err(self.unknown(asking, why));
            }
        };
        connection.standing().set(Standing { epoch: self.epoch.get(), row, until_ns });
        Ok(row)
    }

    fn row_of_token(&self, asking: Asking<'_>, value: &[u8]) -> Result<u32, Error> {
        let received_ns = asking.received_ns;
        let refuse = |why: &str| self.unknown(asking, why);
        let token = bearer(value).ok_or_else(|| refuse("`authorization` is no bearer token"))?;
        if let Some(known) = self.tokens.borrow().get(token)
            && received_ns < known.until_ns
        {
            return Ok(known.row);
        }
        let (from, now_ns) = (asking.connection.peer().ip(), received_ns);
        self.failures.look(from, now_ns).map_err(too_many_failures)?;
        let table = self.table.borrow();
        let verified = tokens::verify(&table.issuers, token).map_err(|why| {
            self.failures.count(from, now_ns);
            refuse(&why)
        })?;
        let row = table.row_of(&verified.subject, Some(verified.issuer));
        if row == STRANGER && self.lines.take(received_ns) {
            tracing::warn!(issuer = %verified.issuer, subject = %verified.subject, "a token of somebody who is not among `identities`");
        }
        let mut known = self.tokens.borrow_mut();
        if known.len() >= TOKENS_MAX {
            known.retain(|_, token| token.until_ns > received_ns);
        }
        if known.len() >= TOKENS_MAX {
            known.clear();
        }
        let who = Who { id: verified.subject.into(), issuer: Some(verified.issuer.into()) };
        let until_ns = until_ns(verified.until_s);
        known.insert(token.into(), Token { row, until_ns, who: Arc::new(who) });
        Ok(row)
    }

    /// Refuses somebody who does not show who they are.
    #[cold]
    fn unknown(&self, asking: Asking<'_>, why: &str) -> Error {
        if self.lines.take(asking.received_ns) {
            tracing::warn!(peer = %asking.connection.peer(), method = asking.called.path(), "a call was refused, for nobody knows who calls: {why}");
        }
        self.audit.deny(asking.received_ns, || denied_event("unauthenticated", asking, why));
        let message = "who calls is not known here; show a client certificate or a bearer token that this server takes";
        Error::new(Kind::Unauthenticated, "UNAUTHENTICATED", message)
    }

    /// Refuses somebody who may not.
    #[cold]
    fn denied(&self, asking: Asking<'_>, name: &str, row: u32) -> Error {
        let why = match row {
            STRANGER => "not among `identities`",
            _ => "nothing grants it",
        };
        let known = row.checked_sub(super::FIRST);
        let table = self.table.borrow();
        let known = known.and_then(|index| table.identities.get(index as usize));
        let identity = known.map_or("", |known| &known.pattern.begin);
        let namespace = name.escape_debug().take(63).collect::<String>();
        let who = self.who(asking.connection, asking.metadata);
        if self.lines.take(asking.received_ns) {
            tracing::warn!(peer = %asking.connection.peer(), who = %who.id, identity, namespace, method = asking.called.path(), "a call was denied: {why}");
        }
        self.audit.deny(asking.received_ns, || {
            let mut fields = denied_event("permission_denied", asking, why);
            fields.push(("namespace", namespace.into()));
            fields.push(("who", Value::from(&*who.id)));
            fields.extend(who.issuer.as_ref().map(|issuer| ("issuer", Value::from(&**issuer))));
            fields
        });
        permission_denied()
    }
}

/// The right that a method takes.
pub(super) fn wanted(method: Method) -> u8 {
    match method.access() {
        Effect::Read => READ,
        _ => WRITE,
    }
}

/// What somebody hears who may not, whether there is such a namespace or not.
#[cold]
pub(crate) fn permission_denied() -> Error {
    let message = "the caller may not do this, or there is no such namespace; who runs this server finds the reason in its log";
    Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message)
}

#[cold]
fn too_many_failures(left_ns: u64) -> Error {
    let message = "too many tokens from this address did not hold: those that are not known already are not looked at for a while; retry later";
    Error::new(Kind::ResourceExhausted, "TOKEN_FAILURES", message)
        .retry_after(Duration::from_nanos(left_ns))
}

/// The token of `Bearer TOKEN`; the scheme in any case.
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Who is at the other end of a connection, as far as that says.
pub(crate) fn who_connects(connection: &Connection) -> Arc<Who> {
    Arc::new(match connection.identity() {
        Some(identity) => Who { id: identity.name.clone(), issuer: None },
        None => Who::anonymous(),
    })
}

/// What the audit log says of every call that was not let in.
fn denied_event(outcome: &str, asking: Asking<'_>, why: &str) -> Fields {
    let trace_id = trace_id(asking.metadata);
    let mut fields = event(
        "denied",
        [
            ("outcome", Value::from(outcome)),
            ("method", asking.called.path().into()),
            ("from", asking.connection.peer().to_string().into()),
            ("why", why.into()),
        ],
    );
    if trace_id != [0; 16] {
        fields.push(("trace_id", show(&trace_id).into()));
    }
    fields
}

pub(super) fn is_loopback(connection: &Connection) -> bool {
    connection.peer().ip().to_canonical().is_loopback()
}

/// A second of Unix time as monotonic time.
pub(super) fn until_ns(unix_s: u64) -> u64 {
    let left_s = unix_s.saturating_sub(clock::wall_us() / 1_000_000);
    clock::monotonic_ns().saturating_add(left_s.saturating_mul(SECOND_NS))
}
