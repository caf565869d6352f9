//! `prism transact`: several writes, all or nothing, if what is asked for holds, and the messages that go with them.

use clap::Args;
use prism_proto::catalogue::Method;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::r#type::v1::{
    Condition, Message, Operation, Put, condition::Requirement, operation::Action,
};
use prost::{DecodeError, Message as _};
use serde_json::json;

use super::Exit;
use super::messages::{Told, put_bytes};
use super::output::{line, printable, shown_value, text};
use super::reach::{Prepared, Reach};

const AFTER_HELP: &str = "\
Examples:
  prism transact --put stock:7=41 --put order:1=placed --if stock:7=42    all or nothing
  prism transact --put leader=me --if-absent leader                       exit code 5 when it is taken
  prism transact --delete cart:9 --put order:9=paid --if-exists cart:9
  prism transact --put order:9=paid --send queue/mail=paid                the message goes if the write does
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct TransactArgs {
    #[command(flatten)]
    reach: Reach,
    /// The namespace.
    #[arg(short, long, global = true, default_value = "transact")]
    namespace: String,
    /// Store a value: KEY=VALUE, split at the first `=`; may be given several times.
    #[arg(long = "put", value_name = "KEY=VALUE")]
    puts: Vec<String>,
    /// Remove a key; may be given several times.
    #[arg(long = "delete", value_name = "KEY")]
    deletes: Vec<String>,
    /// Only if a key holds this value: KEY=VALUE; may be given several times.
    #[arg(long = "if", value_name = "KEY=VALUE")]
    values: Vec<String>,
    /// Only if a key exists; may be given several times.
    #[arg(long = "if-exists", value_name = "KEY")]
    exists: Vec<String>,
    /// Only if a key does not exist; may be given several times.
    #[arg(long = "if-absent", value_name = "KEY")]
    absent: Vec<String>,
    /// Send a message when it is committed, to a queue, topic or stream: NAMESPACE/NAME=PAYLOAD; may be given several times.
    #[arg(long = "send", value_name = "NAMESPACE/NAME=PAYLOAD")]
    sends: Vec<String>,
    /// The ordering key of the messages.
    #[arg(long, value_name = "KEY", requires = "sends")]
    ordering_key: Option<String>,
}

pub(super) fn run(args: TransactArgs) -> Exit {
    let prepared = prepare(&args);
    let reach = args.reach.clone();
    reach.call(prepared, Told::default(), move |message, told| show(&args, message, told))
}

fn pair(text: &str) -> Result<(String, Vec<u8>), String> {
    let (key, value) = text.split_once('=').ok_or(format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.as_bytes().to_vec()))
}

/// The conditions in the order in which failures count them.
fn conditions(args: &TransactArgs) -> Result<Vec<Condition>, String> {
    let values = args.values.iter().map(|text| {
        let (key, value) = pair(text)?;
        Ok(Condition { key, requirement: Some(Requirement::Value(value.into())) })
    });
    let of = |key: &String, requirement: Requirement| {
        Ok(Condition { key: key.clone(), requirement: Some(requirement) })
    };
    let exists = args.exists.iter().map(|key| of(key, Requirement::Exists(())));
    let absent = args.absent.iter().map(|key| of(key, Requirement::Absent(())));
    values.chain(exists).chain(absent).collect()
}

fn messages(args: &TransactArgs) -> Result<Vec<transact::OutboxMessage>, String> {
    let message = |text: &String| {
        let wrong = || format!("`{text}` is not NAMESPACE/NAME=PAYLOAD");
        let (to, payload) = text.split_once('=').ok_or_else(wrong)?;
        let (namespace, name) = to.split_once('/').ok_or_else(wrong)?;
        let message = Message {
            ordering_key: args.ordering_key.clone().unwrap_or_default(),
            payload: payload.as_bytes().to_vec().into(),
            ..Message::default()
        };
        Ok(transact::OutboxMessage {
            target_namespace: namespace.to_owned(),
            target: name.to_owned(),
            message: Some(message),
        })
    };
    args.sends.iter().map(message).collect()
}

fn prepare(args: &TransactArgs) -> Result<Prepared, String> {
    let puts = args.puts.iter().map(|text| {
        let (key, value) = pair(text)?;
        let put = Put { value: value.into(), ..Put::default() };
        Ok(Operation { key, action: Some(Action::Put(put)) })
    });
    let deletes = args
        .deletes
        .iter()
        .map(|key| Ok(Operation { key: key.clone(), action: Some(Action::Delete(())) }));
    let operations = puts.chain(deletes).collect::<Result<Vec<_>, String>>()?;
    if operations.is_empty() {
        return Err("nothing to do: give --put or --delete".into());
    }
    let (namespace, conditions) = (args.namespace.clone(), conditions(args)?);
    let messages = messages(args)?;
    if messages.is_empty() {
        let request = transact::ExecuteRequest { namespace, conditions, operations };
        return Ok(Prepared::new(Method::TRANSACT_EXECUTE, &request));
    }
    let request = transact::WriteRequest { namespace, conditions, operations, messages };
    Ok(Prepared::new(Method::TRANSACT_WRITE, &request))
}

fn show(args: &TransactArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    // The answer of Execute has the same fields, but for the ids of messages.
    let answer = transact::WriteResponse::decode(bytes)?;
    told.is_refused = !answer.committed;
    let asked = conditions(args).unwrap_or_default();
    let failed = answer.failures.iter().map(|failure| {
        let key = asked.get(failure.index as usize).map_or("", |condition| &condition.key);
        (key, failure.current.as_ref())
    });
    if args.reach.json() {
        let failures = failed.map(|(key, current)| {
            let mut object = serde_json::Map::from_iter([("key".into(), key.into())]);
            if let Some(current) = current {
                put_bytes(&mut object, "current", &current.value);
            }
            object
        });
        let failures: Vec<_> = failures.collect();
        let mut shown = json!({ "committed": answer.committed, "failures": failures });
        if !args.sends.is_empty() {
            shown["message_ids"] = answer.message_ids.into();
        }
        return Ok(line(shown));
    }
    if answer.committed {
        let ids = answer.message_ids.iter().map(|id| text(&format!("message {id}")));
        return Ok(std::iter::once(text("committed")).chain(ids).flatten().collect());
    }
    let failures = failed.map(|(key, current)| {
        let is = current.map_or("absent".into(), |current| shown_value(&current.value));
        text(&format!("not committed: {} is {is}", printable(key)))
    });
    Ok(failures.flatten().collect())
}
