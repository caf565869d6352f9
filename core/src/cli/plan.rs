//! `prism plan` and `prism explain`: what namespace requests become, and why. Nothing is changed. They read files, or with
//! `--server` ask a server that runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::output::{Format, print};
use super::reach::Server;
use super::requests::Requests;
use super::{Exit, complain, namespaces};
use crate::config::Machine;
use crate::config::platform::{Platform, Purpose, load_platform};
use crate::config::request::{Document, load_requests};
use crate::plan::{Outcome, Placed, outcome_json, outcome_text};
use crate::planned::{placed, plan_beside, platform_beside};
use crate::registry::Registry;

const PLAN_HELP: &str = "\
Without --platform the file platform.yaml beside FILE, or in the folder above, is taken; without one, the embedded store.
Ends with 0 where nothing would change, with 2 where something would, and with 78 where a request is refused. What there is
is what the data directory remembers: names, backends and homes. With --server it is what a running server serves, and what
would change is told field by field; the platform is the server's.

Examples:
  prism plan orders.yaml
  prism plan namespaces/ --platform platform.yaml
  prism plan namespaces/ -o json
  prism plan orders.yaml --server
";

const EXPLAIN_HELP: &str = "\
Examples:
  prism explain orders
  prism explain orders --requests examples/namespaces --platform examples/platform.yaml
  prism explain orders --server
";

#[derive(Debug, Args)]
#[command(after_help = PLAN_HELP)]
pub(super) struct PlanArgs {
    /// A file of namespace requests, or a folder of them.
    #[arg(value_name = "FILE")]
    requests: PathBuf,
    #[command(flatten)]
    beside: Beside,
}

#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_HELP)]
pub(super) struct ExplainArgs {
    /// The namespace.
    namespace: String,
    /// The file or folder of namespace requests.
    #[arg(long, value_name = "FILE", default_value = "namespaces")]
    requests: PathBuf,
    #[command(flatten)]
    beside: Beside,
}

/// What stands beside the requests.
#[derive(Debug, Args)]
struct Beside {
    /// The platform team's file [default: platform.yaml beside the requests, or in the folder above].
    #[arg(long, value_name = "FILE")]
    platform: Option<PathBuf>,
    /// The data directory of the Prism that serves them: which namespaces there are, and where they live.
    #[arg(long, value_name = "DIRECTORY", default_value = "./prism-data")]
    data_dir: PathBuf,
    /// Ask the server at --endpoint instead of reading its files.
    #[arg(long = "server", conflicts_with_all = ["platform", "data_dir"])]
    is_asked: bool,
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was planned, beside what there is.
struct Planned {
    documents: Vec<Document>,
    outcomes: Vec<Outcome>,
    placed: BTreeMap<String, Placed>,
    /// The platform file that was taken.
    platform: String,
}

pub(super) fn run(args: &PlanArgs) -> Exit {
    if args.beside.is_asked {
        return match Requests::load(&args.requests) {
            Ok(requests) => namespaces::plan(&args.beside.server, &requests, args.beside.output),
            Err(exit) => exit,
        };
    }
    let planned = match plan_files(&args.requests, &args.beside) {
        Ok(planned) => planned,
        Err(exit) => return exit,
    };
    let Planned { outcomes, placed, platform, .. } = &planned;
    let text = match args.beside.output {
        Format::Text => format!("{}platform: {platform}\n", plan_text(outcomes, placed)),
        Format::Json => {
            let one = |outcome: &Outcome| {
                let mut value = outcome_json(outcome);
                value["change"] = change(outcome, placed).into();
                value
            };
            let plans: Vec<_> = outcomes.iter().map(one).collect();
            format!("{:#}\n", json!({ "namespaces": plans, "platform": platform }))
        }
    };
    if let Err(error) = print(text.as_bytes()) {
        complain(format_args!("stdout cannot be written: {error}"));
        return Exit::Failure;
    }
    let is_refused = outcomes.iter().any(|outcome| !outcome.refusals.is_empty());
    let changes = outcomes.iter().any(|outcome| change(outcome, placed) == CREATE);
    match (is_refused, changes) {
        (true, _) => Exit::Config,
        (false, true) => Exit::CHANGES,
        (false, false) => Exit::Ok,
    }
}

const CREATE: &str = "create";
const NONE: &str = "none";
const REFUSED: &str = "refused";

/// What would change for a namespace.
fn change(outcome: &Outcome, placed: &BTreeMap<String, Placed>) -> &'static str {
    match placed.contains_key(&outcome.namespace) {
        _ if !outcome.refusals.is_empty() => REFUSED,
        true => NONE,
        false => CREATE,
    }
}

fn plan_text(outcomes: &[Outcome], placed: &BTreeMap<String, Placed>) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        text.push_str(&outcome_text(outcome));
        text.push('\n');
    }
    let count = |wanted: &str| outcomes.iter().filter(|one| change(one, placed) == wanted).count();
    for outcome in outcomes {
        let sign = match change(outcome, placed) {
            CREATE => "+ create ",
            NONE => "= there   ",
            _ => "! refused",
        };
        text.push_str(&format!("{sign:<10} {}\n", outcome.namespace));
    }
    let asked = |name: &String| outcomes.iter().any(|outcome| outcome.namespace == *name);
    let others: Vec<&str> = placed.keys().filter(|name| !asked(name)).map(String::as_str).collect();
    if !others.is_empty() {
        text.push_str(&format!("left alone: {}\n", others.join(", ")));
    }
    let (create, there, refused) = (count(CREATE), count(NONE), count(REFUSED));
    text.push_str(&format!("{create} to create, {there} there, {refused} refused\n"));
    text
}

pub(super) fn explain(args: &ExplainArgs) -> Exit {
    if args.beside.is_asked {
        let beside = &args.beside;
        return namespaces::explain(&beside.server, &args.namespace, beside.output);
    }
    let planned = match plan_files(&args.requests, &args.beside) {
        Ok(planned) => planned,
        Err(exit) => return exit,
    };
    let found = planned.outcomes.iter().position(|outcome| outcome.namespace == args.namespace);
    let Some(index) = found else {
        let names = planned.outcomes.iter().map(|outcome| outcome.namespace.as_str());
        let remedy = match crate::config::nearest(&args.namespace, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "name its file with --requests".to_owned(),
        };
        let requests = args.requests.display();
        complain(format_args!(
            "{requests} does not ask for a namespace `{}`; {remedy}",
            args.namespace
        ));
        return Exit::NotFound;
    };
    let (outcome, document) = (&planned.outcomes[index], &planned.documents[index]);
    let text = match args.beside.output {
        Format::Json => format!("{:#}\n", outcome_json(outcome)),
        Format::Text => {
            let place = document.place(document.request.namespace.origin);
            format!("{}  asked for at {place}\n", outcome_text(outcome))
        }
    };
    match print(text.as_bytes()) {
        Err(error) => {
            complain(format_args!("stdout cannot be written: {error}"));
            Exit::Failure
        }
        Ok(()) if outcome.refusals.is_empty() => Exit::Ok,
        Ok(()) => Exit::Config,
    }
}

fn plan_files(requests: &Path, beside: &Beside) -> Result<Planned, Exit> {
    let documents = load_requests(requests).map_err(|wrong| {
        wrong.iter().for_each(|errors| eprintln!("{errors}"));
        Exit::Config
    })?;
    let (platform, platform_name) = platform(requests, beside)?;
    let registry = Registry::load(&beside.data_dir, [0; 16]).map_err(|error| {
        complain(&error);
        Exit::DataDirectory
    })?;
    let shards = match registry.shards {
        0 => Machine::read().cores.len().max(1),
        shards => shards,
    };
    let placed = placed(&registry);
    let outcomes = plan_beside(&documents, &platform, &placed, shards);
    Ok(Planned { documents, outcomes, placed, platform: platform_name })
}

/// The platform file: as it is named, else the one beside the requests.
fn platform(requests: &Path, beside: &Beside) -> Result<(Platform, String), Exit> {
    let path = match &beside.platform {
        Some(path) => Some(path.clone()),
        None => platform_beside(requests),
    };
    let Some(path) = path else {
        return Ok((Platform::default(), "none: the embedded store".to_owned()));
    };
    let (platform, warnings) = load_platform(&path, Purpose::Plan).map_err(|errors| {
        eprintln!("{errors}");
        Exit::Config
    })?;
    for warning in warnings {
        complain(format_args!("{}: {warning}", path.display()));
    }
    Ok((platform, path.display().to_string()))
}
