//! How commands that call a server reach it: the options that they share, and one call from its request to its exit code.

use std::cell::RefCell;
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use prism_proto::catalogue::Method;
use prost::DecodeError;

use super::output::{Format, print};
use super::remote::{self, Call, ClientTls};
use super::{ENDPOINT_DEFAULT, Exit, complain};
use crate::config::units;

/// Most bytes of a value that is read from stdin.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// How long to wait for an answer, unless the command line says so.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// As long as a stream without an end may last.
const ENDLESS: Duration = Duration::from_secs(30 * 86_400);

#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct Reach {
    /// Where the server listens.
    #[arg(long, global = true, value_name = "HOST:PORT", default_value = ENDPOINT_DEFAULT)]
    endpoint: String,
    /// Speak TLS; https:// in the endpoint means the same.
    #[arg(long, global = true)]
    tls: bool,
    /// Trust the authorities of this PEM file and no others; without it those of this system. Means --tls.
    #[arg(long, global = true, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host of the endpoint. Means --tls.
    #[arg(long, global = true, value_name = "NAME")]
    tls_name: Option<String>,
    /// The form of the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(super) output: Format,
    /// Ask for more durability than the namespace has.
    #[arg(long, global = true, value_enum)]
    durability: Option<Level>,
    /// Make a write safe to repeat: the same key gets the first outcome and has no second effect.
    #[arg(long, global = true, value_name = "KEY", value_parser = idempotency_key)]
    idempotency_key: Option<String>,
    /// How long to wait for the answer, such as 500ms or 10s; 30s where an end is to come.
    #[arg(long, global = true, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Memory,
    Wal,
    Strong,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Wal => "wal",
            Self::Strong => "strong",
        }
    }
}

/// A call that is ready to be made.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) method: Method,
    pub(super) request: Vec<u8>,
    /// Its answer is a stream that ends when the caller has enough.
    pub(super) is_endless: bool,
}

impl Prepared {
    pub(super) fn new(method: Method, request: &impl prost::Message) -> Self {
        Prepared { method, request: request.encode_to_vec(), is_endless: false }
    }

    pub(super) fn endless(method: Method, request: &impl prost::Message) -> Self {
        Prepared { is_endless: true, ..Prepared::new(method, request) }
    }
}

/// How a command stands while its answer comes in.
pub(super) trait Standing {
    /// How it ends when nothing else happens.
    fn exit(&self) -> Exit;
    /// No more messages are wanted.
    fn is_enough(&self) -> bool;
}

impl Reach {
    /// Makes a call; `show` turns each message of its answer into what is printed.
    pub(super) fn call<S: Standing + 'static>(
        &self,
        prepared: Result<Prepared, String>,
        begin: S,
        mut show: impl FnMut(&[u8], &mut S) -> Result<Vec<u8>, DecodeError> + 'static,
    ) -> Exit {
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(message) => {
                complain(message);
                return Exit::Usage;
            }
        };
        let span = if prepared.is_endless { ENDLESS } else { TIMEOUT_DEFAULT };
        let call = Call {
            endpoint: self.endpoint.clone(),
            method: prepared.method,
            request: prepared.request,
            metadata: self.metadata(),
            timeout: self.timeout.unwrap_or(span),
            tls: self.client_tls(),
        };
        let told = Rc::new(RefCell::new((begin, None)));
        let tell = told.clone();
        let answer = remote::call(call, move |message| {
            let (standing, fault) = &mut *tell.borrow_mut();
            *fault = match show(message, standing) {
                Ok(text) => {
                    print(&text).err().map(|error| format!("stdout cannot be written: {error}"))
                }
                Err(error) => Some(format!("the answer cannot be read: {error}")),
            };
            fault.is_none() && !standing.is_enough()
        });
        let (standing, fault) = &*told.borrow();
        match (answer, fault) {
            (Err(refusal), _) => {
                complain(&refusal);
                refusal.exit()
            }
            (Ok(()), Some(fault)) => {
                complain(fault);
                Exit::Failure
            }
            (Ok(()), None) => standing.exit(),
        }
    }

    /// Results are JSON.
    pub(super) fn json(&self) -> bool {
        self.output == Format::Json
    }

    fn client_tls(&self) -> Option<ClientTls> {
        let wanted = self.tls
            || self.tls_ca.is_some()
            || self.tls_name.is_some()
            || self.endpoint.starts_with("https://");
        let (authorities, name) = (self.tls_ca.clone(), self.tls_name.clone());
        wanted.then_some(ClientTls { authorities, name })
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let level = self.durability.map(|level| ("prism-durability", level.name().to_string()));
        let key = self.idempotency_key.clone().map(|key| ("prism-idempotency-key", key));
        level.into_iter().chain(key).collect()
    }
}

/// A time on the command line.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| error.to_string())
}

/// A time in a request.
pub(super) fn span(time: Duration) -> Result<prost_types::Duration, String> {
    let out_of_range = |_| "that time is too long".to_string();
    prost_types::Duration::try_from(time).map_err(out_of_range)
}

/// A value on the command line; `-` reads `stdin`.
pub(super) fn read_value(value: &str, stdin: &mut dyn Read) -> Result<Bytes, String> {
    if value != "-" {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    let mut bytes = Vec::new();
    let read = stdin.take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("stdin cannot be read: {error}"))?;
    if bytes.len() as u64 > VALUE_BYTES_MAX {
        return Err("stdin holds more than 64MiB, the largest message there is".into());
    }
    Ok(bytes.into())
}

/// The key of a retry: 1 to 128 printable ASCII characters.
fn idempotency_key(text: &str) -> Result<String, String> {
    match (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_string()),
        false => Err("write 1 to 128 ASCII characters without blanks".into()),
    }
}
