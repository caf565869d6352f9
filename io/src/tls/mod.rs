//! TLS 1.3 and 1.2 as a state machine: records in, plaintext out, and the other way round. rustls does the cryptography.
//!
//! Promises: nothing here touches a socket, a clock or a file but [`Identity::load`], [`ClientAuthorities::load`] and [`Connector::new`], which read PEM files.
//! What a peer may make us hold is one record, or the flight of handshake messages that rustls allows. A connection that fails
//! leaves its alert to be sent. Neither early data (which can be replayed) nor renegotiation is ever accepted. A client is
//! asked for a certificate where an [`Acceptor`] has [`ClientAuthorities`].
//!
//! *Record size*: everything that is written in one turn is cut into records of 16 KiB, the largest that TLS has, and one shorter;
//! parts below [`GATHER_BYTES_MAX`] are put together first. A record costs its maker and its reader as much as a
//! kilobyte of payload does, and a call is not begun before its message is whole, so smaller records would win nobody time.

mod cleartext;
mod client;
mod clients;
mod failure;
mod identity;
mod revocation;
mod server;
mod session;

pub use cleartext::{ALERT_FOR_TLS, Cleartext, HANDSHAKE};
pub use client::{Connector, ConnectorError, Roots};
pub use clients::{ClientAuthorities, PeerIdentity, is_spiffe_id};
pub use failure::Failure;
pub use identity::{Identity, IdentityError, Validity};
pub(crate) use revocation::Revoked;
pub use server::Acceptor;
pub use session::{GATHER_BYTES_MAX, Phase, Sealed, Session};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The protocols that are offered and accepted (RFC 7301), the best first.
pub const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The cryptography, once per process.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}
