//! What reader namespaces read: other namespaces of the same file, at most one of each model, so that the source that a call
//! names says which of them it is about.

use super::error::Problem;
use super::read::namespace_name;
use super::tree::{Report, Setting};
use super::{ClientApi, Namespace};

/// What the namespace of an API reads that is there without a configuration: those of [`ClientApi::ALL`] beside it that can be
/// read.
pub(super) fn default(api: ClientApi) -> Vec<usize> {
    let is_read = |of: &ClientApi| {
        api == ClientApi::Reader
            && matches!(of, ClientApi::KeyValue | ClientApi::Queue | ClientApi::Stream)
    };
    ClientApi::ALL.iter().enumerate().filter(|(_, of)| is_read(of)).map(|(at, _)| at).collect()
}

/// The list `reads`: names of namespaces.
pub(super) fn names(text: &str) -> Result<Vec<String>, Problem> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(namespace_name).collect::<Result<_, _>>()?;
    if names.is_empty() {
        let remedy = "name the namespaces, or leave `reads` out for what the backend holds";
        return Err(Problem::new("it names nothing to read".to_owned(), remedy));
    }
    Ok(names)
}

/// Gives each reader the places of the namespaces that it names.
pub(super) fn resolve(
    namespaces: &mut [Namespace],
    named: &[Option<Setting<Vec<String>>>],
    report: &Report,
) {
    for (index, names) in named.iter().enumerate() {
        let Some(names) = names else { continue };
        let refuse = |message: String, remedy: &str| {
            report.error(names.origin, Problem::new(message, remedy));
        };
        let mut reads: Vec<usize> = Vec::new();
        for name in &names.value {
            let Some(at) = namespaces.iter().position(|other| other.name == *name) else {
                refuse(format!("there is no namespace `{name}` to read"), "add it to `namespaces`");
                continue;
            };
            let api = namespaces[at].client_api;
            let same = |other: &usize| namespaces[*other].client_api.model() == api.model();
            if api == ClientApi::Reader {
                refuse(format!("`{name}` is a reader itself"), "name what that one reads");
            } else if reads.iter().any(same) {
                let model = api.model();
                let message =
                    format!("`{name}` is the second of those to read that holds {model} data");
                refuse(message, "a reader reads one of each model; write another for it");
            } else {
                reads.push(at);
            }
        }
        namespaces[index].reads = reads;
    }
}
