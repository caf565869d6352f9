//! The namespaces as JSON: what NamespaceService tells of them. Nothing is changed here, where nobody is known.

use std::time::Duration;

use bytes::Bytes;
use prism_adapters::Kind;
use prism_io::http1::Response;
use prism_proto::prism::namespace::v1 as proto;
use prost::Message as _;
use serde_json::{Value, json};

use crate::control::{Ask, Asker, Method, Question};
use crate::web;

/// How long a page may take. Probes of health wait behind it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pages of the list that are taken together.
const PAGES_MAX: usize = 64;

/// The page of a namespace; without a name, of all.
pub(super) fn answer(ask: &Ask, name: &str) -> Response {
    let page = match name {
        "" => list(ask),
        name => explain(ask, name),
    };
    match page {
        Ok(page) => Response {
            status: 200,
            content_type: "application/json",
            body: format!("{page:#}\n").into_bytes(),
        },
        Err((status, message)) => Response::text(status, format!("{message}\n")),
    }
}

type Failure = (u16, String);

fn list(ask: &Ask) -> Result<Value, Failure> {
    let mut namespaces = Vec::new();
    let mut request = proto::ListRequest { page_size: u32::MAX, ..Default::default() };
    for _ in 0..PAGES_MAX {
        let page = told(ask, Method::List, &request)?;
        let answer = proto::ListResponse::decode(page.as_slice());
        request.page_token = answer.map(|answer| answer.next_page_token).unwrap_or_default();
        let mut page = shown(Method::List, &page)?;
        if let Some(of_page) = page["namespaces"].as_array_mut() {
            namespaces.append(of_page);
        }
        if request.page_token.is_empty() {
            break;
        }
    }
    Ok(json!({"namespaces": namespaces}))
}

fn explain(ask: &Ask, name: &str) -> Result<Value, Failure> {
    let request = proto::ExplainRequest { namespace: name.to_owned() };
    shown(Method::Explain, &told(ask, Method::Explain, &request)?)
}

fn told(ask: &Ask, method: Method, request: &impl prost::Message) -> Result<Vec<u8>, Failure> {
    let message = Bytes::from(request.encode_to_vec());
    let (question, answer) = Question::new(method, message, Asker::Anybody);
    ask.ask(question);
    let late = || (503, "the control thread is busy: try again".to_owned());
    answer.wait_blocking(PATIENCE).ok_or_else(late)?.map_err(|error| {
        let status = if error.kind() == Kind::NotFound { 404 } else { 503 };
        (status, error.message().to_owned())
    })
}

fn shown(method: Method, message: &[u8]) -> Result<Value, Failure> {
    let failed = |error: String| (500, error);
    let json = web::json_of(method.path(), message).map_err(failed)?;
    serde_json::from_str(&json).map_err(|error| failed(error.to_string()))
}
