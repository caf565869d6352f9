//! `prism apply`, `prism approve` and `prism delete`: what changes namespaces of a running server.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use prism_proto::prism::namespace::v1 as proto;
use prost::Message as _;

use super::namespaces::{decoded, json, planned, shown, text};
use super::output::Format;
use super::reach::Server;
use super::requests::Requests;
use super::{Exit, complain};
use crate::control::Method;

const APPLY_HELP: &str = "\
All of them or none. What is applied is remembered in the server's data directory, and served from then on. The plan is shown
first; what comes in between ends it with 69, and nothing is changed. A server whose namespaces stand in files takes no apply.

Examples:
  prism apply orders.yaml
  prism apply namespaces/ --endpoint 10.0.0.7:7400 --token-file token
";

const APPROVE_HELP: &str = "\
For the platform team. The team has to have `mode: advanced`; what is approved may then be applied until that day.

Examples:
  prism approve orders --field backend --until 2027-01-31 --by ops
";

const DELETE_HELP: &str = "\
It asks for the name again. A namespace that holds data is deleted where --data names it: its data is gone then, also from what
the server remembers.

Examples:
  prism delete orders
  prism delete orders --yes orders --data orders
";

#[derive(Debug, Args)]
#[command(after_help = APPLY_HELP)]
pub(super) struct ApplyArgs {
    /// A file of namespace requests, or a folder of them.
    #[arg(value_name = "FILE")]
    requests: PathBuf,
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = APPROVE_HELP)]
pub(super) struct ApproveArgs {
    /// The namespace, which may be still to come.
    namespace: String,
    /// The tuning that is approved: backend, kafka_partitions or postgres_pool_size; may be given several times.
    #[arg(long = "field", value_name = "FIELD", required = true)]
    fields: Vec<String>,
    /// The last day on which it holds, such as 2027-01-31.
    #[arg(long, value_name = "DAY")]
    until: String,
    /// Who approves, where the server does not know its callers.
    #[arg(long, value_name = "NAME", default_value = "")]
    by: String,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_HELP)]
pub(super) struct DeleteArgs {
    /// The namespace.
    namespace: String,
    /// Its name once more, instead of being asked for it.
    #[arg(long, value_name = "NAME")]
    yes: Option<String>,
    /// Its name once more, where it holds data that is to go with it.
    #[arg(long, value_name = "NAME", default_value = "")]
    data: String,
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn apply(args: &ApplyArgs) -> Exit {
    try_apply(args).unwrap_or_else(|exit| exit)
}

fn try_apply(args: &ApplyArgs) -> Result<Exit, Exit> {
    let requests = Requests::load(&args.requests)?;
    let (_, plan) = planned(&args.server, &requests)?;
    let is_refused = |one: &proto::Outcome| one.change() == proto::Change::Refused;
    if plan.outcomes.iter().any(is_refused) {
        eprint!("{}", requests.placed(&text(&plan.outcomes)));
        complain("nothing was applied");
        return Err(Exit::Config);
    }
    let request = proto::ApplyRequest {
        namespace: String::new(),
        document: requests.document.clone(),
        plan_token: plan.plan_token,
    };
    let answer = args.server.ask(Method::Apply.path(), &request)?;
    let told = match args.output {
        Format::Json => json(Method::Apply, &answer)?,
        Format::Text => {
            let applied = decoded::<proto::ApplyResponse>(&answer)?.outcomes;
            let is_changed = |one: &&proto::Outcome| one.change() != proto::Change::None;
            let changed = applied.iter().filter(is_changed).count();
            let said = match changed {
                0 => "nothing to apply: it is so already".to_owned(),
                1 => "applied".to_owned(),
                changed => format!("applied: {changed} namespaces"),
            };
            format!("{}{said}\n", requests.placed(&text(&plan.outcomes)))
        }
    };
    Ok(shown(&told, Exit::Ok))
}

pub(super) fn approve(args: &ApproveArgs) -> Exit {
    try_approve(args).unwrap_or_else(|exit| exit)
}

fn try_approve(args: &ApproveArgs) -> Result<Exit, Exit> {
    let request = proto::ApproveRequest {
        namespace: args.namespace.clone(),
        fields: args.fields.clone(),
        until: args.until.clone(),
        by: args.by.clone(),
        reason: args.reason.clone(),
    };
    let answer = args.server.ask(Method::Approve.path(), &request)?;
    let told = match args.output {
        Format::Json => json(Method::Approve, &answer)?,
        Format::Text => {
            let approved = proto::ApproveResponse::decode(&*answer).unwrap_or_default();
            let (by, at, fields) = (&approved.by, &approved.at, args.fields.join(", "));
            format!(
                "{fields} of {} is approved by {by} from {at} until {}\n",
                args.namespace, args.until
            )
        }
    };
    Ok(shown(&told, Exit::Ok))
}

pub(super) fn delete(args: &DeleteArgs) -> Exit {
    try_delete(args).unwrap_or_else(|exit| exit)
}

fn try_delete(args: &DeleteArgs) -> Result<Exit, Exit> {
    let name = &args.namespace;
    let confirm = match &args.yes {
        Some(yes) => yes.clone(),
        None => asked_again(name)?,
    };
    if confirm != *name {
        complain(format_args!("{confirm:?} is not {name:?}, so nothing was deleted"));
        return Err(Exit::Usage);
    }
    let request = proto::DeleteRequest {
        namespace: name.clone(),
        confirm,
        delete_data_of: args.data.clone(),
    };
    let answer = args.server.ask(Method::Delete.path(), &request)?;
    let told = match args.output {
        Format::Json => json(Method::Delete, &answer)?,
        Format::Text => {
            let was = decoded::<proto::DeleteResponse>(&answer)?.namespace.unwrap_or_default();
            match was.state() {
                proto::State::Ending => format!(
                    "{name} is deleted; {} cannot take out what it held for now, and is asked again until it has\n",
                    was.backend
                ),
                _ => format!("{name} is deleted\n"),
            }
        }
    };
    Ok(shown(&told, Exit::Ok))
}

/// Asks a person for the name.
fn asked_again(name: &str) -> Result<String, Exit> {
    let mut stdin = std::io::stdin().lock();
    if !stdin.is_terminal() {
        complain(format_args!("write --yes {name} to delete it without being asked"));
        return Err(Exit::Usage);
    }
    eprint!("Write the name of the namespace again to delete it: ");
    let mut line = String::new();
    stdin.read_line(&mut line).map_err(|error| {
        complain(format_args!("stdin cannot be read: {error}"));
        Exit::Failure
    })?;
    Ok(line.trim().to_owned())
}
