//! `prism kv`: a small client for people and scripts. One call, its result on stdout, an exit code that says how it went.
//!
//! Every command is turned into a method and a request ([`request`]), and its answer into text or JSON ([`show`]).

mod request;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::reach::{Reach, time};
use super::{Exit, NAMESPACE_DEFAULT};

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
    #[command(flatten)]
    reach: Reach,
    /// The namespace.
    #[arg(short, long, global = true, default_value = NAMESPACE_DEFAULT)]
    namespace: String,
    #[command(subcommand)]
    command: KvCommand,
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

pub(super) fn run(args: KvArgs) -> Exit {
    let prepared = request::build(&args, &mut std::io::stdin().lock());
    let reach = args.reach.clone();
    reach.call(prepared, show::Shown::default(), move |message, shown| {
        show::message(&args, message, shown)
    })
}
