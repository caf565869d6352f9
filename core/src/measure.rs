//! What happens to every call before anything is done for it, without a shard around it: for `cargo bench -p prism-benches --bench permit`.
//!
//! The same code as a shard's ([`route`], [`permit`]), on a table of namespaces, a table of who may what, and quotas of its own.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::io::{Error, Result};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use prism_adapters::Error as CallError;
use prism_io::grpc::{Limits, Metadata};
use prism_io::server::{Connection, Options};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::GetRequest;
use prost::Message as _;

use crate::access::keys::KeyStore;
use crate::access::{Access, Gate, InForce};
use crate::audit::{self, ShardAudit};
use crate::config::platform::{Purpose, read_platform};
use crate::config::{self, ClientApi, Flags, Quotas};
use crate::namespaces::{Namespace, Namespaces};
use crate::quota::Usage;
use crate::registry::Registry;
use crate::request::{Call, Door, Origin, permit};
use crate::shard::{charge, route};

/// Requests a second that each namespace may make: more than can be made.
const REQUESTS_PER_SECOND: f64 = 1e9;
/// What lies between two calls, in ns: as long as a whole call takes.
const BETWEEN_NS: u64 = 600;

/// One shard's door, and calls of all of its namespaces in turn.
pub struct Permits {
    door: OneDoor,
    calls: Vec<Call>,
    now_ns: u64,
    next: usize,
    /// The audit log, which ends with it.
    _audit: Box<dyn Any>,
}

struct OneDoor {
    namespaces: Arc<Namespaces>,
    gate: Option<Gate>,
    usage: Box<[Usage]>,
}

impl Door for OneDoor {
    fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    fn charge(
        &self,
        namespace: &Namespace,
        call: &Call,
        bytes: usize,
    ) -> std::result::Result<(), CallError> {
        charge(&self.usage, 0, namespace, call, bytes)
    }
}

impl Permits {
    /// With so many namespaces, identities known and quotas counted. Writes into `folder`.
    pub fn new(folder: &Path, namespaces: usize) -> Result<Self> {
        let mut config = config::load(None, &Flags::default())
            .map_err(|errors| Error::other(errors.to_string()))?;
        let is_it = |of: &&config::Namespace| of.client_api == ClientApi::KeyValue;
        let first = config.namespaces.iter().find(is_it).cloned();
        let first = first.ok_or_else(|| Error::other("no namespace of keys and values"))?;
        let quotas = Quotas {
            requests_per_second: Some(REQUESTS_PER_SECOND),
            bytes_per_second: Some(u64::MAX / 2),
            subscriptions: None,
        };
        let name = |number: usize| format!("namespace-{number}");
        config.namespaces = (0..namespaces)
            .map(|number| config::Namespace { name: name(number), quotas, ..first.clone() })
            .collect();
        let mut registry = Registry::load(folder, [7; 16])?;
        let table = Arc::new(Namespaces::new(&config, &mut registry, 1));
        let text = "anonymous: {from: loopback, namespace: 'namespace-*', may: write}\n";
        let (platform, _) = read_platform("platform.yaml", text, Purpose::Plan)
            .map_err(|errors| Error::other(errors.to_string()))?;
        let access = Access::compile(&platform, &[], &table, &KeyStore::default());
        let access =
            access.map_err(Error::other)?.ok_or_else(|| Error::other("nobody is known"))?;
        let (audit, writer) = audit::start(folder, 1 << 30, table.clone(), 1)?;
        let shard_audit = Rc::new(ShardAudit::new(audit.port(0)));
        let gate = Some(Gate::new(InForce::new(access), shard_audit));
        let options = Options::new(Limits::default(), route, 1);
        let (connection, stream) = Connection::to_nowhere(&options, ([127, 0, 0, 1], 1).into());
        let now_ns = prism_io::clock::monotonic_ns();
        let calls = (0..namespaces).map(|number| {
            let request =
                GetRequest { namespace: name(number), key: "0123456789abcdef".to_owned() };
            Call {
                origin: Origin::Caller { connection: connection.clone(), stream },
                method: Method::KEYVALUE_GET,
                metadata: Metadata::new(),
                deadline_ns: u64::MAX,
                received_ns: now_ns,
                message: Bytes::from(request.encode_to_vec()),
                audited: OnceCell::new(),
                is_relayed: false,
            }
        });
        let calls = calls.collect();
        let usage = (0..namespaces).map(|_| Usage::default()).collect();
        let door = OneDoor { namespaces: table, gate, usage };
        Ok(Self { door, calls, now_ns, next: 0, _audit: Box::new((audit, writer)) })
    }

    /// Lets the next call in. Returns whether it has come to its namespace, which it has.
    #[inline(never)]
    pub fn permit_one(&mut self) -> bool {
        let call = &mut self.calls[self.next];
        call.received_ns = self.now_ns;
        let message = call.message.clone();
        let seen = Cell::new(None);
        let is_known = route(Method::KEYVALUE_GET.path().as_bytes()).is_some();
        let permitted = permit(&self.door, call, &message, &seen);
        let is_home = permitted.is_ok_and(|namespace| namespace.home == 0);
        self.now_ns += BETWEEN_NS;
        self.next = (self.next + 1) % self.calls.len();
        is_known && is_home
    }
}
