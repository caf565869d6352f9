//! `prism namespaces`, and what other commands ask a running server about namespaces.

use clap::Args;
use prism_proto::prism::namespace::v1 as proto;
use prost::Message as _;

use super::output::{Format, columns, print};
use super::reach::Server;
use super::requests::Requests;
use super::{Exit, complain};
use crate::control::Method;
use crate::web;

const AFTER_HELP: &str = "\
Where the server knows its callers, these are the namespaces that the caller may change.

Examples:
  prism namespaces
  prism namespaces --team payments -o json
";

/// Namespaces of one page.
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct NamespacesArgs {
    /// Only those of this team.
    #[arg(long, value_name = "TEAM", default_value = "")]
    team: String,
    #[command(flatten)]
    server: Server,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(args: &NamespacesArgs) -> Exit {
    match list(args) {
        Ok(text) => shown(&text, Exit::Ok),
        Err(exit) => exit,
    }
}

fn list(args: &NamespacesArgs) -> Result<String, Exit> {
    let mut request =
        proto::ListRequest { team: args.team.clone(), page_size: PAGE, ..Default::default() };
    let mut all = proto::ListResponse::default();
    loop {
        let page = args.server.ask(Method::List.path(), &request)?;
        let page: proto::ListResponse = decoded(&page)?;
        all.namespaces.extend(page.namespaces);
        // Each page begins behind the one before.
        if page.next_page_token <= request.page_token {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if args.output == Format::Json {
        return json(Method::List, &all.encode_to_vec());
    }
    let header = ["namespace", "team", "API", "backend", "durability", "from"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for namespace in &all.namespaces {
        let durability = word(namespace.durability().as_str_name(), "DURABILITY_");
        let source = word(namespace.source().as_str_name(), "SOURCE_");
        let team = if namespace.team.is_empty() { "-" } else { &namespace.team };
        let (name, api, backend) = (&namespace.name, &namespace.client_api, &namespace.backend);
        rows.push([name, team, api, backend, &durability, &source].map(str::to_owned).to_vec());
    }
    Ok(columns(&rows, 0))
}

/// An enum's value as people write it.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// Why a namespace of a running server is what it is.
pub(super) fn explain(server: &Server, name: &str, format: Format) -> Exit {
    let told = || {
        let request = proto::ExplainRequest { namespace: name.to_owned() };
        let answer = server.ask(Method::Explain.path(), &request)?;
        match format {
            Format::Json => json(Method::Explain, &answer),
            Format::Text => Ok(decoded::<proto::ExplainResponse>(&answer)?.text),
        }
    };
    match told() {
        Ok(text) => shown(&text, Exit::Ok),
        Err(exit) => exit,
    }
}

/// What requests would come to on a running server.
pub(super) fn plan(server: &Server, requests: &Requests, format: Format) -> Exit {
    match planned(server, requests) {
        Err(exit) => exit,
        Ok((answer, plan)) => {
            let exit = exit_of(&plan.outcomes);
            match format {
                Format::Text => shown(&requests.placed(&text(&plan.outcomes)), exit),
                Format::Json => match json(Method::Plan, &answer) {
                    Ok(text) => shown(&text, exit),
                    Err(exit) => exit,
                },
            }
        }
    }
}

pub(super) fn planned(
    server: &Server,
    requests: &Requests,
) -> Result<(Vec<u8>, proto::PlanResponse), Exit> {
    let document = requests.document.clone();
    let request = proto::PlanRequest { namespace: String::new(), document };
    let answer = server.ask(Method::Plan.path(), &request)?;
    let plan = decoded(&answer)?;
    Ok((answer, plan))
}

fn exit_of(outcomes: &[proto::Outcome]) -> Exit {
    let has = |change: proto::Change| outcomes.iter().any(|one| one.change() == change);
    match (has(proto::Change::Refused), has(proto::Change::Create) || has(proto::Change::Update)) {
        (true, _) => Exit::Config,
        (false, true) => Exit::CHANGES,
        (false, false) => Exit::Ok,
    }
}

/// Outcomes for people: each with its reasons, then what changes, then how many.
pub(super) fn text(outcomes: &[proto::Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|outcome| !outcome.text.is_empty()) {
        text.push_str(&format!("{}\n", outcome.text));
    }
    let mut counts = [0; 4];
    for outcome in outcomes {
        let (kind, sign) = match outcome.change() {
            proto::Change::Create => (0, "+ create"),
            proto::Change::Update => (1, "~ change"),
            proto::Change::None => (2, "= there"),
            proto::Change::Refused | proto::Change::Unspecified => (3, "! refused"),
        };
        counts[kind] += 1;
        text.push_str(&format!("{sign:<10} {}\n", outcome.name));
        for action in &outcome.actions {
            text.push_str(&format!("             {}: {}\n", action.target, action.description));
        }
        if outcome.text.is_empty() {
            for refusal in &outcome.refusals {
                let proto::Refusal { rule, place, message, remedy } = refusal;
                text.push_str(&format!("  {place}: {rule}: {message}\n    {remedy}\n"));
            }
        }
    }
    let [create, change, there, refused] = counts;
    text.push_str(&format!(
        "{create} to create, {change} to change, {there} there, {refused} refused\n"
    ));
    text
}

pub(super) fn decoded<Answer: prost::Message + Default>(answer: &[u8]) -> Result<Answer, Exit> {
    Answer::decode(answer).map_err(|error| {
        complain(format_args!("the answer cannot be read: {error}"));
        Exit::Failure
    })
}

pub(super) fn json(method: Method, answer: &[u8]) -> Result<String, Exit> {
    let json = web::json_of(method.path(), answer).map_err(|error| {
        complain(error);
        Exit::Failure
    })?;
    Ok(format!("{json}\n"))
}

/// Prints a result; how the command ends.
pub(super) fn shown(text: &str, exit: Exit) -> Exit {
    match print(text.as_bytes()) {
        Ok(()) => exit,
        Err(error) => {
            complain(format_args!("stdout cannot be written: {error}"));
            Exit::Failure
        }
    }
}
