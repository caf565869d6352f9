//! Why a handshake has come to nothing, by kind.

use std::fmt;
use std::io;

use rustls::Error;

/// How a handshake has failed. A failed one costs nobody else anything; it is counted by kind.
#[derive(Debug)]
pub enum Failure {
    /// The peer did not speak TLS.
    Cleartext,
    /// No version, cipher suite or key exchange that both sides take.
    Incompatible(Error),
    /// No protocol above TLS that both sides take.
    Protocol(Error),
    /// We do not trust the peer's certificate.
    Untrusted(Error),
    /// The peer has ended it with an alert; most often it does not trust our certificate.
    Alert(Error),
    /// The peer broke TLS's rules.
    Malformed(Error),
    /// The peer went away.
    Disconnected(io::Error),
    /// It took too long.
    TimedOut,
}

impl Failure {
    /// Every kind, in the order of [`Failure::kind`].
    pub const KINDS: [&'static str; 8] = [
        "cleartext",
        "incompatible",
        "protocol",
        "untrusted",
        "alert",
        "malformed",
        "disconnected",
        "timeout",
    ];

    /// Its place in [`Failure::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Cleartext => 0,
            Self::Incompatible(_) => 1,
            Self::Protocol(_) => 2,
            Self::Untrusted(_) => 3,
            Self::Alert(_) => 4,
            Self::Malformed(_) => 5,
            Self::Disconnected(_) => 6,
            Self::TimedOut => 7,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::PeerIncompatible(_) => Self::Incompatible(error),
            Error::NoApplicationProtocol => Self::Protocol(error),
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Self::Untrusted(error),
            Error::AlertReceived(_) => Self::Alert(error),
            _ => Self::Malformed(error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Disconnected(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cleartext => write!(f, "the peer does not speak TLS"),
            Self::Incompatible(error) => write!(f, "nothing that both sides take: {error}"),
            Self::Protocol(_) => write!(f, "no protocol above TLS that both sides take"),
            Self::Untrusted(error) => write!(f, "the peer's certificate is not trusted: {error}"),
            Self::Alert(error) => write!(f, "the peer refused: {error}"),
            Self::Malformed(error) => write!(f, "the peer breaks TLS's rules: {error}"),
            Self::Disconnected(error) => {
                write!(f, "the peer went away amid the handshake: {error}")
            }
            Self::TimedOut => write!(f, "the handshake took too long"),
        }
    }
}

impl std::error::Error for Failure {}
