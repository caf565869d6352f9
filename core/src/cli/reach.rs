//! How commands that call a server reach it: the options that they share, and one call from its request to its exit code.

use std::cell::RefCell;
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use prism_io::grpc::Code;
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

/// Where the server is, and how it is spoken to.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct Server {
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
    /// Show the bearer token that this file holds.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for the answer, such as 500ms or 10s; 30s where an end is to come.
    #[arg(long, global = true, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
}

/// How calls to data are made.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct Reach {
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(super) output: Format,
    /// Ask for more durability than the namespace has.
    #[arg(long, global = true, value_enum)]
    durability: Option<Level>,
    /// Make a write safe to repeat: the same key gets the first outcome and has no second effect.
    #[arg(long, global = true, value_name = "KEY", value_parser = idempotency_key)]
    idempotency_key: Option<String>,
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
        let metadata = self.metadata();
        let method = (prepared.method.path(), prepared.method.server_streaming());
        let call = match self.server.prepare(method, prepared.request, metadata, span) {
            Ok(call) => call,
            Err(exit) => return exit,
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

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let level = self.durability.map(|level| ("prism-durability", level.name().to_string()));
        let key = self.idempotency_key.clone().map(|key| ("prism-idempotency-key", key));
        level.into_iter().chain(key).collect()
    }
}

impl Server {
    /// A call of a method, by its path and whether its answer is a stream.
    fn prepare(
        &self,
        (path, is_stream): (&'static str, bool),
        request: Vec<u8>,
        mut metadata: Vec<(&'static str, String)>,
        span: Duration,
    ) -> Result<Call, Exit> {
        if let Some(file) = &self.token_file {
            let token = std::fs::read_to_string(file).map_err(|error| {
                complain(format_args!("{}: the token cannot be read: {error}", file.display()));
                Exit::Usage
            })?;
            metadata.push(("authorization", format!("Bearer {}", token.trim())));
        }
        Ok(Call {
            endpoint: self.endpoint.clone(),
            path,
            is_stream,
            request,
            metadata,
            timeout: self.timeout.unwrap_or(span),
            tls: self.client_tls(),
        })
    }

    /// Makes a call that has one answer; where there is none, it has been told why.
    pub(super) fn ask(
        &self,
        path: &'static str,
        request: &impl prost::Message,
    ) -> Result<Vec<u8>, Exit> {
        let request = request.encode_to_vec();
        let call = self.prepare((path, false), request, Vec::new(), TIMEOUT_DEFAULT)?;
        let told = Rc::new(RefCell::new(Vec::new()));
        let tell = told.clone();
        let answer = remote::call(call, move |message| {
            tell.replace(message.to_vec());
            true
        });
        match answer {
            Ok(()) => Ok(told.take()),
            Err(refusal) => {
                complain(&refusal);
                Err(match &refusal {
                    remote::Refusal::Failed(failure) => match failure.code {
                        Code::NotFound => Exit::NotFound,
                        Code::FailedPrecondition | Code::InvalidArgument => Exit::Config,
                        Code::Aborted => Exit::Unavailable,
                        _ => refusal.exit(),
                    },
                    _ => refusal.exit(),
                })
            }
        }
    }

    fn client_tls(&self) -> Option<ClientTls> {
        let wanted = self.tls
            || self.tls_ca.is_some()
            || self.tls_name.is_some()
            || self.endpoint.starts_with("https://");
        let (authorities, name) = (self.tls_ca.clone(), self.tls_name.clone());
        wanted.then_some(ClientTls { authorities, name })
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
