//! What the API consists of: data models, thin interfaces, methods, and the
//! facts about each method, asked from tables that the build derives from the
//! options in the `.proto` files.
//!
//! Covers the twelve data services; `NamespaceService`, health and reflection
//! are no data calls and have no entry. Decides nothing.

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));
include!("../build/path_hash.rs");

/// Whether a call changes data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Changes nothing; never touches the log.
    Read,
    /// Changes data.
    Write,
}

/// Where the answer to a call comes from at level `wal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyFrom {
    /// As soon as the record is durable.
    Log,
    /// When the backend has answered. True of every read.
    Backend,
}

/// A field that needs an interface besides its method's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldNeed {
    /// Field numbers from the request down to the field; repeated fields on the way mean any element.
    pub path: &'static [u32],
    /// What the plan must offer when the field is set.
    pub interface: Interface,
}

struct Facts {
    id: u16,
    path: &'static str,
    service: &'static str,
    name: &'static str,
    interface: Option<Interface>,
    needs_any: Interfaces,
    access: Access,
    key_field: Option<u32>,
    idempotent: bool,
    reply_from: ReplyFrom,
    resend: bool,
    client_streaming: bool,
    server_streaming: bool,
    field_needs: &'static [FieldNeed],
    asks_backend: &'static [u32],
}

impl Model {
    /// All models, in the order of the catalogue.
    pub const fn all() -> &'static [Model] {
        &MODELS
    }

    /// The model's name: `keyvalue`.
    pub const fn name(self) -> &'static str {
        MODEL_NAMES[self as usize]
    }

    /// The model of that name.
    pub fn by_name(name: &str) -> Option<Model> {
        MODELS.into_iter().find(|model| model.name() == name)
    }

    /// The model's interfaces.
    pub const fn interfaces(self) -> Interfaces {
        let mut set = Interfaces::NONE;
        let mut index = 0;
        while index < INTERFACES.len() {
            if INTERFACE_MODELS[index] == self as u8 {
                set = set.with(INTERFACES[index]);
            }
            index += 1;
        }
        set
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Interface {
    /// All interfaces, in the order of the catalogue.
    pub const fn all() -> &'static [Interface] {
        &INTERFACES
    }

    /// The interface's name: `keyvalue_ttl`.
    pub const fn name(self) -> &'static str {
        INTERFACE_NAMES[self as usize]
    }

    /// The interface of that name.
    pub fn by_name(name: &str) -> Option<Interface> {
        INTERFACES.into_iter().find(|interface| interface.name() == name)
    }

    /// The model that the interface belongs to.
    pub const fn model(self) -> Model {
        MODELS[INTERFACE_MODELS[self as usize] as usize]
    }

    /// The interface's methods.
    pub fn methods(self) -> impl Iterator<Item = Method> {
        Method::all().filter(move |method| method.interface() == Some(self))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of interfaces.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Interfaces(u64);

impl Interfaces {
    /// The empty set.
    pub const NONE: Interfaces = Interfaces(0);

    /// All interfaces.
    pub const ALL: Interfaces = Interfaces((1 << INTERFACES.len()) - 1);

    /// The set of these interfaces.
    pub const fn of(interfaces: &[Interface]) -> Interfaces {
        let mut set = Interfaces::NONE;
        let mut index = 0;
        while index < interfaces.len() {
            set = set.with(interfaces[index]);
            index += 1;
        }
        set
    }

    /// The set and this interface.
    #[must_use]
    pub const fn with(self, interface: Interface) -> Interfaces {
        Interfaces(self.0 | 1 << interface as u8)
    }

    /// The set without this interface.
    #[must_use]
    pub const fn without(self, interface: Interface) -> Interfaces {
        Interfaces(self.0 & !(1 << interface as u8))
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Interfaces) -> Interfaces {
        Interfaces(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Interfaces) -> Interfaces {
        Interfaces(self.0 & other.0)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub const fn difference(self, other: Interfaces) -> Interfaces {
        Interfaces(self.0 & !other.0)
    }

    /// The interface is in the set.
    pub const fn contains(self, interface: Interface) -> bool {
        self.0 & 1 << interface as u8 != 0
    }

    /// All of the other set is in this one.
    pub const fn contains_all(self, other: Interfaces) -> bool {
        self.0 & other.0 == other.0
    }

    /// Some of the other set is in this one.
    pub const fn intersects(self, other: Interfaces) -> bool {
        self.0 & other.0 != 0
    }

    /// Nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many interfaces are in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The interfaces in the order of the catalogue.
    pub fn iter(self) -> impl Iterator<Item = Interface> {
        INTERFACES.into_iter().filter(move |&interface| self.contains(interface))
    }
}

impl FromIterator<Interface> for Interfaces {
    fn from_iter<I: IntoIterator<Item = Interface>>(interfaces: I) -> Self {
        interfaces.into_iter().fold(Interfaces::NONE, Interfaces::with)
    }
}

impl fmt::Debug for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Interface::name)).finish()
    }
}

/// A method of one of the data services: an index into the catalogue, valid
/// within this build. Across builds and in the log use [`Method::id`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(u8);

impl Method {
    /// How many methods there are; [`Method::index`] is below it.
    pub const COUNT: usize = METHODS.len();

    /// All methods, by ascending id.
    pub fn all() -> impl ExactSizeIterator<Item = Method> {
        (0..METHODS.len() as u8).map(Method)
    }

    /// The method with this stable number.
    #[inline]
    pub fn by_id(id: u16) -> Option<Method> {
        match BY_ID.get(usize::from(id)) {
            None | Some(&u8::MAX) => None,
            Some(&index) => Some(Method(index)),
        }
    }

    /// The method with this `:path`: one hash, one comparison.
    #[inline]
    pub fn by_path(path: &[u8]) -> Option<Method> {
        let index = BY_PATH[path_slot(path, PATH_HASH_SEED)?];
        (METHODS.get(usize::from(index))?.path.as_bytes() == path).then_some(Method(index))
    }

    #[inline]
    fn facts(self) -> &'static Facts {
        &METHODS[usize::from(self.0)]
    }

    /// Dense index below [`Method::COUNT`], for tables; differs between builds.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The stable number that stands in the log.
    #[inline]
    pub fn id(self) -> u16 {
        self.facts().id
    }

    /// The HTTP/2 `:path`: `/prism.keyvalue.v1.KeyValueService/Get`.
    pub fn path(self) -> &'static str {
        self.facts().path
    }

    /// The service's full name: `prism.keyvalue.v1.KeyValueService`.
    pub fn service(self) -> &'static str {
        self.facts().service
    }

    /// The method's name: `Get`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The interface that the method belongs to; none for Reader and Transact.
    #[inline]
    pub fn interface(self) -> Option<Interface> {
        self.facts().interface
    }

    /// Where there is no interface: the plan must offer one of these.
    #[inline]
    pub fn needs_any(self) -> Interfaces {
        self.facts().needs_any
    }

    /// A plan with these interfaces offers the method.
    #[inline]
    pub fn offered_by(self, offered: Interfaces) -> bool {
        match self.interface() {
            Some(interface) => offered.contains(interface),
            None => offered.intersects(self.needs_any()),
        }
    }

    /// Read or write.
    #[inline]
    pub fn access(self) -> Access {
        self.facts().access
    }

    /// Number of the request's string field that picks the partition; none
    /// for batches, scans and whatever has no single key.
    #[inline]
    pub fn key_field(self) -> Option<u32> {
        self.facts().key_field
    }

    /// Applying the same request twice in a row leaves what applying it once leaves.
    #[inline]
    pub fn idempotent(self) -> bool {
        self.facts().idempotent
    }

    /// Where the answer comes from at level `wal`, unless a field of
    /// [`Method::asks_backend`] is set.
    #[inline]
    pub fn reply_from(self) -> ReplyFrom {
        self.facts().reply_from
    }

    /// Numbers of the top-level fields that, when set, make the backend answer.
    #[inline]
    pub fn asks_backend(self) -> &'static [u32] {
        self.facts().asks_backend
    }

    /// May be sent to an outside backend again when its arrival is unknown.
    #[inline]
    pub fn resend(self) -> bool {
        self.facts().resend
    }

    /// The caller sends a stream.
    #[inline]
    pub fn client_streaming(self) -> bool {
        self.facts().client_streaming
    }

    /// The answer is a stream.
    #[inline]
    pub fn server_streaming(self) -> bool {
        self.facts().server_streaming
    }

    /// The fields that need an interface of their own.
    pub fn field_needs(self) -> &'static [FieldNeed] {
        self.facts().field_needs
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}
