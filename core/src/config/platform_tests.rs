//! What the two teams see who write a wrong request or a wrong platform, to the letter; and that the examples are right.

use serde_json::Value as Json;

use super::platform::{Purpose, platform_schema, read_platform};
use super::request::{read_requests, request_schema};
use super::tests::check_transcript;
use super::tree;

fn requests_shown(text: &str) -> String {
    match read_requests(&[("request.yaml".to_owned(), text.to_owned())]) {
        Ok(documents) => format!("accepted: {}", documents.len()),
        Err(wrong) => wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

fn platform_shown(text: &str) -> String {
    match read_platform("platform.yaml", text, Purpose::Plan) {
        Ok(_) => "accepted".to_owned(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn every_wrong_request_is_answered_with_place_and_remedy() {
    check_transcript(
        "request_errors.txt",
        include_str!("../../tests/golden/request_errors.txt"),
        19,
        requests_shown,
    );
}

#[test]
fn every_wrong_platform_is_answered_with_place_and_remedy() {
    check_transcript(
        "platform_errors.txt",
        include_str!("../../tests/golden/platform_errors.txt"),
        21,
        platform_shown,
    );
}

#[test]
fn a_name_in_two_files_is_refused_with_both_places() {
    let file = |name: &str| {
        (name.to_owned(), "namespace: orders\nteam: a\nclient_api: queue\n".to_owned())
    };
    let wrong = read_requests(&[file("a.yaml"), file("b.yaml")]).unwrap_err();
    let expected = "b.yaml:1:12: the namespace `orders` is there twice: first at a.yaml:1:12\n    give each namespace its own name";
    assert_eq!(wrong[0].to_string(), expected);
}

#[test]
fn a_secret_is_read_only_to_serve() {
    let text = "backends: [{name: c, type: redis, address: \"127.0.0.1:6379\", password_file: /no/such/file}]";
    assert_eq!(platform_shown(text), "accepted");
    let wrong = read_platform("platform.yaml", text, Purpose::Serve).unwrap_err().to_string();
    assert!(
        wrong.contains(
            "platform.yaml:1:77: backends[0].password_file: /no/such/file cannot be read"
        ),
        "{wrong}"
    );
}

#[test]
fn files_are_read_as_a_whole_and_folders_in_order() {
    use super::request::load_requests;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, namespace: &str| {
        let text = format!("namespace: {namespace}\nteam: a\nclient_api: queue\n");
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    let none = load_requests(folder.path()).unwrap_err()[0].to_string();
    assert!(none.contains("the folder holds no *.yaml"), "{none}");
    write("b.yaml", "b");
    write("a.yml", "a");
    write("notes.txt", "NOT A NAME");
    write("platform.yaml", "NOT A NAME");
    let documents = load_requests(folder.path()).unwrap();
    let names: Vec<_> =
        documents.iter().map(|document| document.request.namespace.value.0.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let missing = load_requests(&folder.path().join("none.yaml")).unwrap_err()[0].to_string();
    assert!(missing.contains("none.yaml: the file cannot be read: "), "{missing}");
}

/// The part of JSON Schema that the schemas use, as far as it can be told without patterns.
fn misfit(schema: &Json, node: &tree::Node) -> Option<String> {
    if let Some(any) = schema.get("anyOf").and_then(Json::as_array) {
        let misfits: Vec<_> = any.iter().map_while(|one| misfit(one, node)).collect();
        return (misfits.len() == any.len()).then(|| misfits.join(" and "));
    }
    match &node.value {
        tree::Value::Map(entries) => {
            let Some(properties) = schema.get("properties").and_then(Json::as_object) else {
                return (schema.get("type").is_some())
                    .then(|| format!("a section at {:?}", node.origin));
            };
            let key = |node: &tree::Node| match &node.value {
                tree::Value::Text(text) => text.clone(),
                other => panic!("a key is {other:?}"),
            };
            let required = schema.get("required").and_then(Json::as_array).into_iter().flatten();
            for wanted in required {
                if !entries.iter().any(|(name, _)| wanted == key(name).as_str()) {
                    return Some(format!("{wanted} is missing at {:?}", node.origin));
                }
            }
            entries.iter().find_map(|(name, value)| match properties.get(&key(name)) {
                Some(schema) => misfit(schema, value),
                None => Some(format!("unknown key {}", key(name))),
            })
        }
        tree::Value::List(items) => match schema.get("items") {
            Some(schema) => items.iter().find_map(|item| misfit(schema, item)),
            None => schema.get("type").map(|_| format!("a list at {:?}", node.origin)),
        },
        tree::Value::Nothing => None,
        tree::Value::Text(text) | tree::Value::Plain(text, _) => {
            if let Some(choices) = schema.get("oneOf").and_then(Json::as_array) {
                let fits = choices.iter().any(|choice| choice["const"] == **text);
                return (!fits).then(|| format!("`{text}` is no choice"));
            }
            let is_container = matches!(schema["type"].as_str(), Some("object" | "array"));
            is_container.then(|| format!("`{text}` is a single value"))
        }
    }
}

#[test]
fn the_schemas_fit_what_is_accepted_and_refuse_unknown_keys() {
    let cases = |transcript: &'static str| {
        transcript
            .split("=== ")
            .skip(1)
            .filter(|case| case.contains("everything in it"))
            .map(|case| case.split_once('\n').unwrap().1.split_once("---\n").unwrap().0)
    };
    for text in cases(include_str!("../../tests/golden/request_errors.txt")) {
        assert_eq!(misfit(&request_schema(), &tree::parse(text).unwrap()), None);
    }
    for text in cases(include_str!("../../tests/golden/platform_errors.txt")) {
        assert_eq!(misfit(&platform_schema(), &tree::parse(text).unwrap()), None);
    }
    for text in ["taem: payments", "namespace: a\nteam: b\nclient_api: c", "namespace: a"] {
        assert!(misfit(&request_schema(), &tree::parse(text).unwrap()).is_some(), "{text}");
    }
    let schema = request_schema();
    assert_eq!(schema["required"], serde_json::json!(["namespace", "team", "client_api"]));
    assert_eq!(schema["properties"]["needs"]["properties"]["retention"]["type"], "string");
    let described =
        schema["properties"]["needs"]["properties"]["write_rps"]["description"].as_str();
    assert_eq!(described, Some("Writes a second, at most."));
    let backend = &platform_schema()["properties"]["backends"]["items"]["properties"];
    for key in ["address", "password_file", "tls", "pool", "loss_window"] {
        assert!(backend.get(key).is_some(), "{key}");
    }
}

#[test]
fn the_examples_are_accepted_and_fit_their_schemas() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let text = std::fs::read_to_string(format!("{examples}/platform.yaml")).unwrap();
    read_platform("platform.yaml", &text, Purpose::Plan).unwrap();
    assert_eq!(misfit(&platform_schema(), &tree::parse(&text).unwrap()), None);
    let folder = std::path::PathBuf::from(format!("{examples}/namespaces"));
    let documents = super::request::load_requests(&folder).unwrap();
    assert_eq!(documents.len(), 9);
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for node in tree::parse_all(&text).unwrap() {
            assert_eq!(misfit(&request_schema(), &node), None, "{text}");
        }
    }
}
