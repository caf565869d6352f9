//! The end of a namespace: what a backend outside the process keeps for it is taken out.
//!
//! Whoever ends a namespace sees to it that nobody calls it any more, then has it erased, and again after any failure: what is gone
//! already is no error, so it does not matter how far an earlier attempt had come. Only what belongs to the namespace by its name is
//! touched, and of that everything, also what other clients of the backend have put there.

use crate::backend::Backend;
use crate::call::Context;
use crate::error::Error;

/// A backend outside the process that can end namespaces.
#[allow(async_fn_in_trait)] // Futures stay on their shard: they need no `Send`.
pub trait Endings: Backend {
    /// Whether anything of the namespace is there that somebody would miss. What Prism keeps there for itself is nothing.
    ///
    /// # Errors
    /// The backend is away or refuses to work.
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error>;

    /// Takes out everything of the namespace, its lane's cell included, in pieces that hold nobody else up.
    ///
    /// # Errors
    /// The backend is away or refuses to work; some of it may be gone. To be called again until it answers.
    async fn erase(&self, context: &Context<'_>) -> Result<(), Error>;
}
