//! `prism transact`: several writes, all or nothing, if what is asked for holds.

use clap::Args;
use prism_proto::catalogue::Method;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::r#type::v1::{
    Condition, Operation, Put, condition::Requirement, operation::Action,
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
    let request = transact::ExecuteRequest { namespace, conditions, operations };
    Ok(Prepared::new(Method::TRANSACT_EXECUTE, &request))
}

fn show(args: &TransactArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    let answer = transact::ExecuteResponse::decode(bytes)?;
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
        return Ok(line(json!({ "committed": answer.committed, "failures": failures })));
    }
    if answer.committed {
        return Ok(text("committed"));
    }
    let failures = failed.map(|(key, current)| {
        let is = current.map_or("absent".into(), |current| shown_value(&current.value));
        text(&format!("not committed: {} is {is}", printable(key)))
    });
    Ok(failures.flatten().collect())
}
