//! The command line of `prism`: what can be asked of it, and how that is told.
//!
//! Results go to stdout, diagnostics to stderr, and the process ends with a code of [`Exit`]. Commands parse their
//! arguments and print; what they do is elsewhere.

mod apply;
mod audit;
mod exit;
mod first_screen;
mod interfaces;
mod kv;
mod messages;
mod namespaces;
pub(crate) mod output;
mod plan;
mod pubsub;
mod queue;
mod reach;
mod reader;
mod remote;
mod requests;
mod schema;
mod serve;
mod stream;
mod transact;
mod wal;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use exit::Exit;
pub use first_screen::{Serving, first_screen};

use crate::config::Config;
use crate::doctor;
use output::Format;

/// Where clients look for the server unless they are told.
const ENDPOINT_DEFAULT: &str = "127.0.0.1:7400";
/// The namespace that clients use unless they are told.
const NAMESPACE_DEFAULT: &str = "keyvalue";

const AFTER_HELP: &str = "\
Examples:
  prism serve                            serve on this machine, data under ./prism-data
  prism serve --config prism.yaml        serve what the file says
  prism kv set greeting hello            store a value
  prism kv get greeting                  read it
  prism doctor                           is this machine fit for it?
";

/// One data-access layer for every backend: call it over gRPC, and Prism does the rest.
#[derive(Debug, Parser)]
#[command(name = "prism", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve gRPC until SIGTERM or Ctrl-C.
    Serve(serve::ServeArgs),
    /// Read and write keys and values: a small client for people.
    Kv(kv::KvArgs),
    /// Send, receive and settle messages of a queue.
    Queue(queue::QueueArgs),
    /// Append and read records of a stream, and work in consumer groups.
    Stream(stream::StreamArgs),
    /// Publish events to a topic, and hear them.
    #[command(name = "pubsub")]
    PubSub(pubsub::PubSubArgs),
    /// Look at what lies in streams, queues and keys, without moving anything.
    Reader(reader::ReaderArgs),
    /// Write several keys, all or nothing.
    Transact(transact::TransactArgs),
    /// List the data models, their interfaces and calls, and which backend offers them.
    Interfaces(OutputArgs),
    /// List the namespaces of a running server.
    Namespaces(namespaces::NamespacesArgs),
    /// Tell what namespace requests become, and why; changes nothing.
    Plan(plan::PlanArgs),
    /// Tell why a namespace is planned as it is.
    Explain(plan::ExplainArgs),
    /// Make namespaces of a running server what requests say.
    Apply(apply::ApplyArgs),
    /// Let a team tune a namespace, until a day.
    Approve(apply::ApproveArgs),
    /// End a namespace of a running server, and with --data what it holds.
    Delete(apply::DeleteArgs),
    /// Print the JSON Schema of a namespace request or of platform.yaml, for editors.
    Schema(schema::SchemaArgs),
    /// Look into the write-ahead log of a data directory: inspect, verify, repair.
    Wal(wal::WalArgs),
    /// Look into the audit log: is every line as it was written?
    Audit(audit::AuditArgs),
    /// Examine this machine: kernel, io_uring, limits, disk, memory, ports; with a remedy for each finding.
    Doctor(doctor::DoctorArgs),
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Parses the command line, does what it says, and returns how that ended. `serve` runs the shards; it is called for
/// `prism serve` only, with a checked configuration and logging under way.
pub fn run(serve: impl FnOnce(Config) -> Exit) -> ExitCode {
    let command = Cli::command().after_long_help(format!("{AFTER_HELP}\n{}", Exit::help()));
    let command = command.after_help(AFTER_HELP);
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors of exit code 0, printed to stdout; the others go to stderr.
            let _ = error.print();
            let is_usage = error.exit_code() != 0;
            return if is_usage { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let exit = match cli.command {
        Command::Serve(args) => serve::run(&args, serve),
        Command::Kv(args) => kv::run(args),
        Command::Queue(args) => queue::run(args),
        Command::Stream(args) => stream::run(args),
        Command::PubSub(args) => pubsub::run(args),
        Command::Reader(args) => reader::run(args),
        Command::Transact(args) => transact::run(args),
        Command::Interfaces(args) => interfaces::run(args.output),
        Command::Namespaces(args) => namespaces::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Explain(args) => plan::explain(&args),
        Command::Apply(args) => apply::apply(&args),
        Command::Approve(args) => apply::approve(&args),
        Command::Delete(args) => apply::delete(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Wal(args) => wal::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    exit.into()
}

/// Tells on stderr what went wrong.
fn complain(message: impl std::fmt::Display) {
    eprintln!("prism: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
