//! How a connection begins: a server says what it is, TLS where it is spoken, and we say who we are.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BytesMut};
use prism_io::net::{Closer, ReadHalf, Stream, WriteHalf, resolve};
use prism_io::tls::{Connector, Failure, Roots};
use serde::{Deserialize, Serialize};

use super::super::config::NatsConfig;
use super::super::errors::Outage;
use super::super::login::{check_version, prove};
use super::codec::{Frame, Framer, json, words};
use super::connection::READ_BYTES;

/// What a server says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    version: String,
    pub(super) max_payload: usize,
    tls_required: bool,
    nonce: String,
    headers: bool,
    /// It is about to shut down.
    #[serde(rename = "ldm")]
    pub(super) is_leaving: bool,
}

/// A connection on which calls can be made.
pub(super) struct Connected {
    pub(super) read: ReadHalf,
    pub(super) write: WriteHalf,
    pub(super) closer: Closer,
    /// What was read beyond the greeting.
    pub(super) buffer: BytesMut,
    pub(super) info: Info,
}

/// <https://docs.nats.io/reference/reference-protocols/nats-protocol#connect>
#[derive(Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'a str,
    version: &'a str,
    protocol: u8,
    echo: bool,
    headers: bool,
    no_responders: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

impl Info {
    /// # Errors
    /// It is no JSON.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Outage> {
        serde_json::from_slice(text).map_err(|_| Outage::protocol("an INFO that is no JSON"))
    }
}

/// Makes a connection to one of the servers, which has what comes to the subject `answers` sent to us under the number 1.
pub(super) async fn connect(
    config: &NatsConfig,
    (host, port): (&str, u16),
    answers: &str,
) -> Result<Connected, Outage> {
    let mut stream = dial(host, port).await.map_err(|error| unreachable(&error))?;
    let (mut buffer, mut info) = (BytesMut::with_capacity(READ_BYTES), None);
    if !config.tls.as_ref().is_some_and(|tls| tls.handshake_first) {
        let said;
        (stream, buffer, said) = hear_in_clear(stream, buffer).await?;
        info = Some(said);
    }
    let is_secured = config.tls.is_some() || info.as_ref().is_some_and(|info| info.tls_required);
    if is_secured {
        if !buffer.is_empty() {
            return Err(Outage::tls("it says more in clear than its greeting"));
        }
        let connector = connector(config, host)?;
        stream = stream.secure_to(&connector).await.map_err(|failure| match failure {
            Failure::Disconnected(error) => unreachable(&error),
            failure => Outage::tls(&failure.to_string()),
        })?;
    }
    let closer = stream.closer().map_err(|error| unreachable(&error))?;
    let (read, write) = stream.split();
    let mut peer = Peer { read, write, buffer, framer: Framer::default(), is_secured };
    let info = match info {
        Some(info) => info,
        None => match peer.next().await? {
            Heard::Info(info) => info,
            _ => return Err(Outage::unreachable("it does not greet as a NATS does")),
        },
    };
    check_version(&info.version)?;
    if !info.headers {
        return Err(Outage::unreachable("headers are switched off there (`no_header_support`)"));
    }
    let hello = hello(config, &info, is_secured, answers)?;
    let info = peer.log_in(hello, info).await?;
    let Peer { read, write, buffer, .. } = peer;
    Ok(Connected { read, write, closer, buffer, info })
}

fn unreachable(error: &io::Error) -> Outage {
    Outage::unreachable(&error.to_string())
}

async fn dial(host: &str, port: u16) -> io::Result<Stream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in resolve(host, port).await? {
        match Stream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What a server says of itself, before TLS begins.
async fn hear_in_clear(
    mut stream: Stream,
    mut buffer: BytesMut,
) -> Result<(Stream, BytesMut, Info), Outage> {
    let mut framer = Framer::default();
    loop {
        let found = framer.find(&buffer).map_err(|error| Outage::unreachable(error.0))?;
        if let Some((frame, length)) = found {
            let info = match frame {
                Frame::Info(range) => Info::parse(&json(&buffer, &range))?,
                Frame::Error(range) => return Err(Outage::of_greeting(&words(&buffer, &range))),
                _ => return Err(Outage::unreachable("it does not greet as a NATS does")),
            };
            buffer.advance(length);
            return Ok((stream, buffer, info));
        }
        let result;
        (result, buffer) = stream.read_in_clear(buffer).await;
        if result.map_err(|error| unreachable(&error))? == 0 {
            return Err(Outage::unreachable("it has closed the connection before it greeted"));
        }
    }
}

/// Whom we trust and expect at this host. Where a server insists on TLS and nothing is said of it, these are the system's authorities.
fn connector(config: &NatsConfig, host: &str) -> Result<Connector, Outage> {
    let connector = match &config.tls {
        Some(tls) if host == config.host => Ok(tls.connector.clone()),
        Some(tls) => tls.connector.for_host(host),
        None => Connector::for_backend(&Roots::System, host, None),
    };
    connector.map_err(|error| Outage::tls(&error.to_string()))
}

/// CONNECT, the subscription to what answers, and a PING, whose PONG says that all of it holds.
fn hello(
    config: &NatsConfig,
    info: &Info,
    is_secured: bool,
    answers: &str,
) -> Result<Vec<u8>, Outage> {
    let proof = prove(config.login.as_ref(), info.nonce.as_bytes());
    let proof = proof.map_err(|text| Outage::credentials_refused(&text))?;
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: is_secured,
        name: &config.client_name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        echo: true,
        headers: true,
        no_responders: true,
        user: proof.user,
        pass: proof.password,
        auth_token: proof.token,
        jwt: proof.jwt,
        nkey: proof.nkey,
        sig: proof.signature.map(|signature| URL_SAFE_NO_PAD.encode(signature)),
    };
    let json = serde_json::to_string(&connect)
        .map_err(|error| Outage::credentials_refused(&error.to_string()))?;
    Ok(format!("CONNECT {json}\r\nSUB {answers} 1\r\nPING\r\n").into_bytes())
}

/// What a server says while it is greeted.
enum Heard {
    Info(Info),
    Ping,
    Pong,
    Error(String),
    Other,
}

/// A server that is being greeted.
struct Peer {
    read: ReadHalf,
    write: WriteHalf,
    buffer: BytesMut,
    framer: Framer,
    is_secured: bool,
}

impl Peer {
    /// Says who we are, and waits until that is taken. What the server is may have changed by then.
    async fn log_in(&mut self, hello: Vec<u8>, mut info: Info) -> Result<Info, Outage> {
        let (sent, _) = self.write.write_all(hello).await;
        sent.map_err(|error| self.refused(&error))?;
        loop {
            match self.next().await? {
                Heard::Pong => return Ok(info),
                Heard::Error(text) => return Err(Outage::of_greeting(&text)),
                Heard::Info(changed) => info = changed,
                Heard::Ping => {
                    let (sent, _) = self.write.write_all(b"PONG\r\n".to_vec()).await;
                    sent.map_err(|error| self.refused(&error))?;
                }
                Heard::Other => {}
            }
        }
    }

    async fn next(&mut self) -> Result<Heard, Outage> {
        loop {
            let found = self.framer.find(&self.buffer);
            if let Some((frame, length)) = found.map_err(|error| Outage::unreachable(error.0))? {
                let heard = match frame {
                    Frame::Info(range) => Heard::Info(Info::parse(&json(&self.buffer, &range))?),
                    Frame::Error(range) => Heard::Error(words(&self.buffer, &range)),
                    Frame::Ping => Heard::Ping,
                    Frame::Pong => Heard::Pong,
                    Frame::Ok | Frame::Message(_) => Heard::Other,
                };
                self.buffer.advance(length);
                return Ok(heard);
            }
            self.buffer.reserve(1024);
            let (result, buffer) = self.read.read(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            match result {
                Ok(0) => {
                    let closed = io::Error::other("it has closed the connection during the login");
                    return Err(self.refused(&closed));
                }
                Ok(_) => {}
                Err(error) => return Err(self.refused(&error)),
            }
        }
    }

    /// The connection has ended. With TLS 1.3 a server tells only now that it does not take our certificate.
    fn refused(&self, error: &io::Error) -> Outage {
        match self.is_secured {
            true => Outage::tls(&error.to_string()),
            false => unreachable(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::Login;
    use super::*;

    #[test]
    fn a_server_is_told_who_we_are_and_no_more() {
        let config = NatsConfig::at("127.0.0.1", 4222);
        let text = |config: &NatsConfig| {
            let hello = hello(config, &Info::default(), false, "_I.*").unwrap();
            String::from_utf8(hello).unwrap()
        };
        let plain = text(&config);
        assert!(plain.starts_with("CONNECT {\"verbose\":false,") && !plain.contains("pass"));
        assert!(plain.ends_with("}\r\nSUB _I.* 1\r\nPING\r\n"), "{plain}");
        let login = Login::Password { user: "a\r\nb".to_owned(), password: "\"p\"".to_owned() };
        let shown = text(&NatsConfig { login: Some(login), ..config });
        assert!(shown.contains(r#""user":"a\r\nb","pass":"\"p\"""#), "{shown}");
        assert_eq!(shown.lines().count(), 3, "a name cannot add lines");
    }

    #[test]
    fn an_info_says_what_it_says_and_nonsense_is_told() {
        let info = Info::parse(br#" {"version":"2.12.1","max_payload":9,"ldm":true,"new":[1]}"#);
        let info = info.unwrap();
        assert_eq!((info.version.as_str(), info.max_payload, info.is_leaving), ("2.12.1", 9, true));
        for nonsense in [&b""[..], b"{", b"[]x", b"{\"max_payload\":-1}", b"\xff"] {
            assert!(Info::parse(nonsense).is_err());
        }
    }
}
