//! One call to a server, on a loop of its own.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use prism_io::client::{Client, Failure};
use prism_io::grpc::{Code, Limits};
use prism_io::rt;
use prism_io::tls::{self, Connector, Roots};
use prism_proto::google::rpc;
use prost::Message;

use super::Exit;
use crate::config::units::show_duration;

/// As long as connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// What to call, and how.
#[derive(Debug)]
pub(super) struct Call {
    /// `host:port`.
    pub(super) endpoint: String,
    /// The method's path.
    pub(super) path: &'static str,
    /// Its answer is a stream.
    pub(super) is_stream: bool,
    /// The encoded request.
    pub(super) request: Vec<u8>,
    pub(super) metadata: Vec<(&'static str, String)>,
    /// For the call, and for connecting as far as that may take.
    pub(super) timeout: Duration,
    /// Speak TLS.
    pub(super) tls: Option<ClientTls>,
}

/// Whom to trust, and whom to expect.
#[derive(Debug, Clone, Default)]
pub(super) struct ClientTls {
    /// A PEM file of authorities; without it those of the system.
    pub(super) authorities: Option<PathBuf>,
    /// The name in the server's certificate; without it the host of the endpoint.
    pub(super) name: Option<String>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// What was said about TLS makes no sense.
    Tls(String),
    /// The server was reached, and TLS was not agreed on.
    Handshake { endpoint: String, failure: tls::Failure },
    /// The server was not reached.
    Unreachable { endpoint: String, reason: String },
    /// The server, or the way to it, refused.
    Failed(Failure),
}

impl Refusal {
    /// How the process ends for it.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Tls(_) => Exit::Usage,
            Self::Unreachable { .. } | Self::Handshake { .. } => Exit::Unavailable,
            Self::Failed(failure) => match failure.code {
                Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => {
                    Exit::Unavailable
                }
                _ => Exit::Failure,
            },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = match self {
            Self::Tls(reason) => return write!(f, "{reason}"),
            Self::Handshake { endpoint, failure } => {
                let remedy = match failure {
                    tls::Failure::Untrusted(_) => {
                        "name the authority that signed its certificate with --tls-ca, and the name in it with --tls-name"
                    }
                    tls::Failure::Malformed(_) | tls::Failure::Disconnected(_) => {
                        "does it serve TLS? leave --tls out for one that does not"
                    }
                    _ => "its log may say more",
                };
                return write!(f, "no TLS with {endpoint}: {failure}\n    {remedy}");
            }
            Self::Unreachable { endpoint, reason } => {
                return write!(
                    f,
                    "no server at {endpoint}: {reason}\n    start one with `prism serve`, or name another with --endpoint"
                );
            }
            Self::Failed(failure) => failure,
        };
        let details = Details::decode(&failure.details);
        write!(f, "{}", failure.code.name())?;
        if !details.reason.is_empty() {
            write!(f, " ({})", details.reason)?;
        }
        write!(f, ": {}", failure.message)?;
        for (field, description) in &details.fields {
            write!(f, "\n    {field}: {description}")?;
        }
        if let Some(after) = details.retry_after {
            write!(f, "\n    try again in {}", show_duration(after))?;
        }
        Ok(())
    }
}

/// What stands behind a failure.
#[derive(Debug, Default)]
struct Details {
    reason: String,
    fields: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

impl Details {
    fn decode(bytes: &[u8]) -> Self {
        let mut details = Self::default();
        for any in rpc::Status::decode(bytes).unwrap_or_default().details {
            let Some((_, name)) = any.type_url.rsplit_once('/') else {
                continue;
            };
            match name {
                "google.rpc.ErrorInfo" => {
                    let info = rpc::ErrorInfo::decode(&*any.value).unwrap_or_default();
                    details.reason = info.reason;
                }
                "google.rpc.RetryInfo" => {
                    let info = rpc::RetryInfo::decode(&*any.value).unwrap_or_default();
                    details.retry_after =
                        info.retry_delay.and_then(|delay| Duration::try_from(delay).ok());
                }
                "google.rpc.BadRequest" => {
                    let bad = rpc::BadRequest::decode(&*any.value).unwrap_or_default();
                    let violations = bad.field_violations.into_iter();
                    details.fields =
                        violations.map(|field| (field.field, field.description)).collect();
                }
                _ => {}
            }
        }
        details
    }
}

/// Makes the call and hands out every message of the answer until `on_message` wants no more.
pub(super) fn call(
    call: Call,
    on_message: impl FnMut(&[u8]) -> bool + 'static,
) -> Result<(), Refusal> {
    let endpoint = call.endpoint.clone();
    let addresses = resolve(&endpoint)?;
    let connector = call.tls.as_ref().map(|tls| connector(&endpoint, tls)).transpose()?;
    let unreachable = move |reason: String| Refusal::Unreachable { endpoint, reason };
    match rt::run(converse(call, addresses, connector, on_message)) {
        Ok(result) => result,
        Err(error) => Err(unreachable(format!("no event loop here: {error}"))),
    }
}

/// `host:port` of an endpoint that may be written as a URL.
fn bare(endpoint: &str) -> &str {
    let bare = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    bare.unwrap_or(endpoint).trim_end_matches('/')
}

fn connector(endpoint: &str, tls: &ClientTls) -> Result<Connector, Refusal> {
    let host = bare(endpoint).rsplit_once(':').map_or(bare(endpoint), |(host, _)| host);
    let name = tls.name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
    let roots = tls.authorities.clone().map_or(Roots::System, Roots::File);
    Connector::new(&roots, name).map_err(|error| Refusal::Tls(error.to_string()))
}

fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, Refusal> {
    let bare = bare(endpoint);
    let unreachable =
        |reason: String| Refusal::Unreachable { endpoint: endpoint.to_string(), reason };
    match bare.to_socket_addrs() {
        Ok(addresses) => {
            let addresses: Vec<SocketAddr> = addresses.collect();
            match addresses.is_empty() {
                true => Err(unreachable("the name has no address".into())),
                false => Ok(addresses),
            }
        }
        Err(error) => Err(unreachable(error.to_string())),
    }
}

async fn converse(
    call: Call,
    addresses: Vec<SocketAddr>,
    connector: Option<Connector>,
    mut on_message: impl FnMut(&[u8]) -> bool,
) -> Result<(), Refusal> {
    let Call { endpoint, path, is_stream, request, metadata, timeout, tls: _ } = call;
    let patience = timeout.min(CONNECT_MAX);
    let client = connect(endpoint, &addresses, connector.as_ref(), patience).await?;
    let metadata: Vec<(&str, &[u8])> =
        metadata.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    if !is_stream {
        let reply = client.unary(path, &metadata, &request, timeout).await;
        on_message(&reply.map_err(Refusal::Failed)?.message);
        return Ok(());
    }
    let reply = client.stream(path, &metadata, &request, timeout).await;
    let mut reply = reply.map_err(Refusal::Failed)?;
    while let Some(message) = reply.next().await.map_err(Refusal::Failed)? {
        if !on_message(&message) {
            break;
        }
    }
    Ok(())
}

/// Connects to the first address that takes it; otherwise the last reason why not.
async fn connect(
    endpoint: String,
    addresses: &[SocketAddr],
    connector: Option<&Connector>,
    timeout: Duration,
) -> Result<Client, Refusal> {
    let authority = bare(&endpoint).to_owned();
    let one = async |address| match connector {
        None => Client::connect(address).await.map_err(tls::Failure::from),
        Some(connector) => {
            let limits = Limits::default();
            Client::connect_secured(address, connector, &authority, &limits).await
        }
    };
    let mut reason = String::new();
    for address in addresses {
        match rt::timeout(timeout, one(*address)).await {
            Some(Ok(client)) => return Ok(client),
            Some(Err(tls::Failure::Disconnected(error))) => match connector {
                Some(_) if error.kind() == ErrorKind::UnexpectedEof => {
                    let failure = tls::Failure::Disconnected(error);
                    return Err(Refusal::Handshake { endpoint, failure });
                }
                _ => reason = error.to_string(),
            },
            Some(Err(failure)) => return Err(Refusal::Handshake { endpoint, failure }),
            None => reason = format!("no answer within {}", show_duration(timeout)),
        }
    }
    Err(Refusal::Unreachable { endpoint, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prism_proto::rpc::StatusDetails;

    #[test]
    fn a_refusal_tells_its_reason_and_remedy() {
        let details = StatusDetails::new(8, "the log is full", "WAL_FULL")
            .retry_after(Duration::from_millis(250))
            .encode();
        let failure = Failure {
            code: Code::ResourceExhausted,
            message: "the log is full".into(),
            details: details.to_vec(),
            trailers: Default::default(),
            unprocessed: false,
        };
        let refusal = Refusal::Failed(failure);
        assert_eq!(
            refusal.to_string(),
            "RESOURCE_EXHAUSTED (WAL_FULL): the log is full\n    try again in 250ms"
        );
        assert_eq!(refusal.exit(), Exit::Unavailable);
    }

    #[test]
    fn an_endpoint_that_is_none_is_named() {
        for endpoint in ["nowhere", "127.0.0.1:none", ""] {
            let refusal = resolve(endpoint).unwrap_err();
            assert!(refusal.to_string().starts_with(&format!("no server at {endpoint}: ")));
            assert_eq!(refusal.exit(), Exit::Unavailable);
        }
        assert_eq!(resolve("http://127.0.0.1:7400/").unwrap().len(), 1);
    }
}
