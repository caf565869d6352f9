//! What a backend is to those above it, and the declaration that makes one.

use prism_proto::catalogue::{Interfaces, Method};

use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};

/// A backend: what it serves and how a call reaches it. Written by [`backend!`](macro@crate::backend).
///
/// Calls are decoded but not checked again: whoever calls has asked
/// [`validate`](crate::interfaces::validate) and [`Admission::admit`] before there was a record.
#[allow(async_fn_in_trait)] // Futures stay on their shard: they need no `Send`.
pub trait Backend: Admission {
    /// The backend's name in configuration, metrics and errors.
    const NAME: &'static str;

    /// What it serves; every other interface is refused before the backend sees the call.
    const SERVES: Interfaces;

    /// Answers a unary call: the encoded response is in `reply`, which was empty.
    async fn unary(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error>;

    /// Checks and answers a unary call in one go, for calls that get no record: what
    /// [`validate`](crate::interfaces::validate) and [`Backend::unary`] do one after the other, with
    /// the request decoded only once. `offered` is what the namespace's plan offers.
    async fn unary_checked(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        offered: Interfaces,
        reply: &mut Reply,
    ) -> Result<(), Error>;

    /// Waits until a call that may wait ([`QueueBasic::receive`](crate::interfaces::queue::QueueBasic::receive)) may find
    /// something; at once where it may now, or where the method never waits. May be early.
    async fn ready(&self, context: &Context<'_>, method: Method, request: &[u8]);

    /// Answers a server-streaming call with one message after the other.
    async fn stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        sink: &mut S,
    ) -> Result<(), Error>;
}

/// Whether a backend has room for a call.
pub trait Admission {
    /// Refuses a valid call that the backend could not take in, before it has a record: a write that
    /// has one is carried out.
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error>;
}

/// The refusal of a call that is not offered, naming what would offer it.
#[cold]
pub fn not_offered(backend: &'static str, method: Method) -> Error {
    let wanted = match method.interface() {
        Some(interface) => interface.name().to_owned(),
        None => {
            let any: Vec<_> = method.needs_any().iter().map(|one| one.name()).collect();
            any.join(" or ")
        }
    };
    let message = format!(
        "{} needs the interface {wanted}, which this namespace does not offer: \
         ask for a plan on a backend that serves it (`prism interfaces` lists them)",
        method.path()
    );
    Error::new(Kind::Unimplemented, "INTERFACE_NOT_OFFERED", message)
        .with("interface", wanted)
        .with("backend", backend)
}

/// The failure of a caller inside Prism that mixes up unary and streaming calls.
#[cold]
pub(crate) fn wrong_shape(method: Method) -> Error {
    let message = format!("{} was called the wrong way (unary or streaming)", method.path());
    Error::new(Kind::Internal, "CALL_SHAPE", message)
}

/// Declares a backend: its type, its name, and the interfaces that it serves.
///
/// Dispatch and capability set come from the list; behind it, `; outbox NAME` names the method that carries out a Write with messages. Listing an interface whose trait the type does not
/// implement does not compile; one that is not listed is refused before the backend sees the call.
///
/// ```
/// use prism_adapters::interfaces::keyvalue::KeyValueCas;
/// use prism_adapters::{Admission, Backend, Context, Error, Reply, backend};
/// use prism_proto::catalogue::{Interface, Interfaces, Method};
/// use prism_proto::view::keyvalue::{CompareAndDeleteRequest, CompareAndSwapRequest};
///
/// struct Never;
///
/// impl KeyValueCas for Never {
///     async fn compare_and_swap(
///         &self,
///         _: &Context<'_>,
///         _: CompareAndSwapRequest<'_>,
///         _: &mut Reply,
///     ) -> Result<(), Error> {
///         Ok(())
///     }
///
///     async fn compare_and_delete(
///         &self,
///         _: &Context<'_>,
///         _: CompareAndDeleteRequest<'_>,
///         _: &mut Reply,
///     ) -> Result<(), Error> {
///         Ok(())
///     }
/// }
///
/// impl Admission for Never {
///     fn admit(&self, _: Method, _: &[u8]) -> Result<(), Error> {
///         Ok(())
///     }
/// }
///
/// backend! { Never: "never" => keyvalue_cas }
///
/// assert_eq!(Never::SERVES, Interfaces::of(&[Interface::KeyValueCas]));
/// ```
///
/// What is listed must be there:
///
/// ```compile_fail,E0277
/// use prism_adapters::{Admission, Error, backend};
/// use prism_proto::catalogue::Method;
///
/// struct Liar;
///
/// impl Admission for Liar {
///     fn admit(&self, _: Method, _: &[u8]) -> Result<(), Error> {
///         Ok(())
///     }
/// }
///
/// backend! { Liar: "liar" => keyvalue_basic }
/// ```
#[macro_export]
macro_rules! backend {
    ($backend:ty: $name:literal => $($interface:ident),+ $(,)? $(; outbox $outbox:ident)?) => {
        impl $crate::Backend for $backend {
            const NAME: &'static str = $name;

            const SERVES: $crate::catalogue::Interfaces = $crate::catalogue::Interfaces::of(&[
                $($crate::interfaces::$interface::INTERFACE),+
            ]);

            async fn unary(
                &self,
                context: &$crate::Context<'_>,
                method: $crate::catalogue::Method,
                request: &[u8],
                reply: &mut $crate::Reply,
            ) -> Result<(), $crate::Error> {
                match method.interface() {
                    $(Some($crate::interfaces::$interface::INTERFACE) => {
                        use $crate::interfaces::$interface::unary;
                        unary(self, context, method, request, false, reply).await
                    })+
                    $(None if method == $crate::catalogue::Method::TRANSACT_WRITE => {
                        self.$outbox(context, request, reply).await
                    })?
                    _ => Err($crate::backend::not_offered($name, method)),
                }
            }

            async fn unary_checked(
                &self,
                context: &$crate::Context<'_>,
                method: $crate::catalogue::Method,
                request: &[u8],
                offered: $crate::catalogue::Interfaces,
                reply: &mut $crate::Reply,
            ) -> Result<(), $crate::Error> {
                $crate::interfaces::check_offered(method, request, offered)?;
                match method.interface() {
                    $(Some($crate::interfaces::$interface::INTERFACE) => {
                        use $crate::interfaces::$interface::unary;
                        unary(self, context, method, request, true, reply).await
                    })+
                    $(None if method == $crate::catalogue::Method::TRANSACT_WRITE => {
                        $crate::outbox::validate(method, request, context.limits)?;
                        self.$outbox(context, request, reply).await
                    })?
                    _ => Err($crate::backend::not_offered($name, method)),
                }
            }

            async fn ready(
                &self,
                context: &$crate::Context<'_>,
                method: $crate::catalogue::Method,
                request: &[u8],
            ) {
                match method.interface() {
                    $(Some($crate::interfaces::$interface::INTERFACE) => {
                        $crate::interfaces::$interface::ready(self, context, method, request).await
                    })+
                    _ => {}
                }
            }

            async fn stream<S: $crate::PageSink>(
                &self,
                context: &$crate::Context<'_>,
                method: $crate::catalogue::Method,
                request: &[u8],
                sink: &mut S,
            ) -> Result<(), $crate::Error> {
                match method.interface() {
                    $(Some($crate::interfaces::$interface::INTERFACE) => {
                        $crate::interfaces::$interface::stream(self, context, method, request, sink)
                            .await
                    })+
                    _ => Err($crate::backend::not_offered($name, method)),
                }
            }
        }
    };
}
