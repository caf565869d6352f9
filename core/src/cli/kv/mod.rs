//! `prism kv`: a small client for people and scripts. One call, its result on stdout, an exit code that says how it went.
//!
//! Every command is turned into a method and a request ([`request`]), and its answer into text or JSON ([`show`]); the one
//! function between them makes the call.

mod request;
mod show;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{Format, print};
use super::remote::{self, Call, ClientTls};
use super::{ENDPOINT_DEFAULT, Exit, NAMESPACE_DEFAULT, complain};
use crate::config::units;

const AFTER_HELP: &str = "\
Examples:
  prism kv set greeting hello                   store a value
  prism kv set report - < report.pdf            store what stdin holds
  prism kv set session abc --ttl 30min          let it expire
  prism kv set lock me --if absent              exit code 5 when the key is there already
  prism kv get greeting                         exit code 4 when it is not there
  prism kv scan --prefix user: -o json          one JSON object a line
  prism kv get greeting --tls --tls-ca ca.pem   over TLS, trusting one authority
  prism kv cas counter 2 --expect 1             swap only what is as expected
  prism kv set order paid --idempotency-key 7f  safe to repeat, also after a lost answer
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct KvArgs {
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
    /// The namespace.
    #[arg(short, long, global = true, default_value = NAMESPACE_DEFAULT)]
    namespace: String,
    /// The form of the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Ask for more durability than the namespace has.
    #[arg(long, global = true, value_enum)]
    durability: Option<Level>,
    /// Make a write safe to repeat: the same key gets the first outcome and has no second effect.
    #[arg(long, global = true, value_name = "KEY", value_parser = idempotency_key)]
    idempotency_key: Option<String>,
    /// How long to wait for the answer, such as 500ms or 10s.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = time)]
    timeout: Duration,
    #[command(subcommand)]
    command: KvCommand,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnlyIf {
    Absent,
    Exists,
}

#[derive(Debug, Subcommand)]
enum KvCommand {
    /// Print the value of a key, byte for byte.
    Get { key: String },
    /// Store a value under a key.
    Set {
        key: String,
        /// The value; `-` reads stdin.
        value: String,
        #[command(flatten)]
        expiry: Expiry,
        /// Store only if the key is absent, or only if it exists.
        #[arg(long = "if", value_enum, value_name = "CONDITION")]
        only_if: Option<OnlyIf>,
        /// Print the value that was there before.
        #[arg(long)]
        previous: bool,
    },
    /// Remove a key.
    Delete { key: String },
    /// Tell whether a key exists, also by the exit code.
    Exists { key: String },
    /// Print keys and values, in no particular order.
    Scan {
        #[command(flatten)]
        selection: Selection,
        /// Print the keys alone.
        #[arg(long)]
        keys_only: bool,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Count keys.
    Count {
        #[command(flatten)]
        selection: Selection,
        /// Stop counting at so many.
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        limit: u64,
    },
    /// Print how long a key has left to live.
    Ttl { key: String },
    /// Let a key expire after a time, such as 30s or 7days.
    Expire {
        key: String,
        #[arg(value_parser = time)]
        ttl: Duration,
    },
    /// Take the expiry from a key.
    Persist { key: String },
    /// Compare and swap: store a value only if the key is as expected.
    Cas {
        key: String,
        /// The new value; `-` reads stdin.
        value: String,
        #[command(flatten)]
        expected: Expected,
        #[command(flatten)]
        expiry: Expiry,
    },
    /// Print the values of several keys.
    BatchGet {
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Store several values; each has its own outcome.
    BatchSet {
        /// KEY=VALUE, split at the first `=`.
        #[arg(required = true, value_name = "KEY=VALUE")]
        entries: Vec<String>,
        #[command(flatten)]
        expiry: Expiry,
    },
    /// Remove several keys; each has its own outcome.
    BatchDelete {
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Expiry {
    /// Let it expire after a time, such as 30s or 7days; otherwise it stays.
    #[arg(long, value_name = "TIME", value_parser = time)]
    ttl: Option<Duration>,
    /// Keep the expiry that the key has now.
    #[arg(long, conflicts_with = "ttl")]
    keep_ttl: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Selection {
    /// Only keys that start with this.
    #[arg(long)]
    prefix: Option<String>,
    /// Only keys that match this pattern: `*`, `?`, `[a-z]`.
    #[arg(long, value_name = "PATTERN")]
    glob: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Expected {
    /// The key must hold this value.
    #[arg(long, value_name = "VALUE")]
    expect: Option<String>,
    /// The key must not exist.
    #[arg(long)]
    expect_absent: bool,
    /// The key must have this version, in base64 as `-o json` prints it.
    #[arg(long, value_name = "VERSION")]
    expect_version: Option<String>,
}

fn time(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| error.to_string())
}

/// The key of a retry: 1 to 128 printable ASCII characters.
fn idempotency_key(text: &str) -> Result<String, String> {
    match (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_string()),
        false => Err("write 1 to 128 ASCII characters without blanks".into()),
    }
}

pub(super) fn run(args: KvArgs) -> Exit {
    let call = match request::build(&args, &mut std::io::stdin().lock()) {
        Ok(prepared) => Call {
            endpoint: args.endpoint.clone(),
            method: prepared.method,
            request: prepared.request,
            metadata: metadata(&args),
            timeout: args.timeout,
            tls: client_tls(&args),
        },
        Err(message) => {
            complain(message);
            return Exit::Usage;
        }
    };
    let told = Rc::new(RefCell::new((show::Shown::default(), None)));
    let tell = told.clone();
    let answer = remote::call(call, move |message| {
        let (shown, fault) = &mut *tell.borrow_mut();
        *fault = match show::message(&args, message, shown) {
            Ok(text) => {
                print(&text).err().map(|error| format!("stdout cannot be written: {error}"))
            }
            Err(error) => Some(format!("the answer cannot be read: {error}")),
        };
        fault.is_none() && !shown.enough
    });
    let (shown, fault) = &*told.borrow();
    match (answer, fault) {
        (Err(refusal), _) => {
            complain(&refusal);
            refusal.exit()
        }
        (Ok(()), Some(fault)) => {
            complain(fault);
            Exit::Failure
        }
        (Ok(()), None) => shown.exit,
    }
}

fn client_tls(args: &KvArgs) -> Option<ClientTls> {
    let wanted = args.tls
        || args.tls_ca.is_some()
        || args.tls_name.is_some()
        || args.endpoint.starts_with("https://");
    let (authorities, name) = (args.tls_ca.clone(), args.tls_name.clone());
    wanted.then_some(ClientTls { authorities, name })
}

fn metadata(args: &KvArgs) -> Vec<(&'static str, String)> {
    let level = args.durability.map(|level| ("prism-durability", level.name().to_string()));
    let key = args.idempotency_key.clone().map(|key| ("prism-idempotency-key", key));
    level.into_iter().chain(key).collect()
}
