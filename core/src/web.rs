//! What the data port has to know for callers that speak HTTP and JSON: messages as JSON, and words for people who GET.
//!
//! JSON is protobuf's canonical mapping (<https://protobuf.dev/programming-guides/json/>), made from the descriptors that
//! the build compiled in: bytes are base64, 64-bit integers are strings, Timestamp and Duration are texts. A field that the
//! message does not have is refused by name, so that no misspelt option is passed over in silence. Fields without presence
//! are always there in an answer. Decides nothing about a call.

use std::collections::HashMap;
use std::io::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prism_io::web::{Schema, Seen};
use prism_proto::catalogue::Method;
use prism_proto::google;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};

use crate::config::nearest;
use crate::shard::{is_read, route};

/// For every connection.
pub(crate) const SCHEMA: Schema =
    Schema { request_from_json, reply_to_json, details_to_json, is_read, page };

/// The messages of every route, and whatever a detail may be. Made at the first call that needs it.
struct Messages {
    pool: DescriptorPool,
    /// By route: request and reply.
    of_routes: HashMap<u32, (MessageDescriptor, MessageDescriptor)>,
}

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    // The build read the same bytes.
    let pool = DescriptorPool::decode(prism_proto::descriptors()).unwrap_or_default();
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let of_routes = methods.filter_map(|method| {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        Some((route(path.as_bytes())?.id, (method.input(), method.output())))
    });
    Messages { of_routes: of_routes.collect(), pool: pool.clone() }
});

fn request_from_json(route: u32, json: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
    let Some((request, _)) = MESSAGES.of_routes.get(&route) else {
        return Err("this method has no JSON form".into());
    };
    if json.trim_ascii().is_empty() {
        return Err(format!("the body is empty; send {} as a JSON object", request.full_name()));
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(request.clone(), &mut reader, &options)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|error| format!("the body is not a {} in JSON: {error}", request.full_name()))?;
    message.encode(into).map_err(|error| error.to_string())
}

fn reply_to_json(route: u32, message: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
    let Some((_, reply)) = MESSAGES.of_routes.get(&route) else {
        return Err("this method has no JSON form".into());
    };
    put_json(reply, message, into)
        .map_err(|error| format!("carried out, but the reply cannot be written as JSON: {error}"))
}

fn put_json(message: &MessageDescriptor, bytes: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
    let message =
        DynamicMessage::decode(message.clone(), bytes).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new().skip_default_fields(false);
    let mut writer = serde_json::Serializer::new(into);
    message.serialize_with_options(&mut writer, &options).map_err(|error| error.to_string())
}

/// Connect, "Error End-Stream": type, value, and the message itself for people.
fn details_to_json(status: &[u8], into: &mut Vec<u8>) {
    let status = google::rpc::Status::decode(status).unwrap_or_default();
    if status.details.is_empty() {
        return;
    }
    let name = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    for (nth, detail) in status.details.iter().enumerate() {
        let (name, value) = (name(&detail.type_url), STANDARD_NO_PAD.encode(&detail.value));
        let mut debug = Vec::new();
        if let Some(message) = MESSAGES.pool.get_message_by_name(&name)
            && put_json(&message, &detail.value, &mut debug).is_err()
        {
            debug.clear();
        }
        // Names of messages and base64 have nothing that JSON would escape.
        let start = if nth == 0 { "[" } else { "," };
        let _ = write!(into, "{start}{{\"type\":\"{name}\",\"value\":\"{value}\"");
        if !debug.is_empty() {
            into.extend_from_slice(b",\"debug\":");
            into.extend_from_slice(&debug);
        }
        into.push(b'}');
    }
    into.push(b']');
}

/// A reply as a JSON text, for the path that was called.
pub(crate) fn json_of(path: &str, message: &[u8]) -> Result<String, String> {
    let route = route(path.as_bytes()).ok_or_else(|| format!("{path} is no method"))?;
    let mut json = Vec::new();
    reply_to_json(route.id, message, &mut json)?;
    String::from_utf8(json).map_err(|error| error.to_string())
}

fn page(path: &str, seen: Seen<'_>) -> (u16, String) {
    let host = if seen.host.is_empty() { "127.0.0.1:7400" } else { seen.host };
    let scheme = if seen.is_secured { "https" } else { "http" };
    if path == "/" {
        return (200, index(host, scheme));
    }
    let near = path.rsplit_once('/').and_then(|(service, name)| {
        let services = Method::all().map(|method| method.service());
        let service = nearest(service.trim_start_matches('/'), services)?;
        let methods = Method::all().filter(|method| method.service() == service);
        let name = nearest(name, methods.map(|method| method.name()))?;
        Some(format!("did you mean /{service}/{name}?"))
    });
    let shown: String = path.chars().filter(|c| !c.is_control()).take(120).collect();
    let advice = near.unwrap_or_else(|| {
        format!(
            "methods are /package.Service/Method, and `curl {scheme}://{host}/` tells how to call them"
        )
    });
    (404, format!("there is no {shown} here; {advice}\n"))
}

fn index(host: &str, scheme: &str) -> String {
    let plaintext = if scheme == "http" { "-plaintext " } else { "" };
    format!(
        "Prism. This port speaks gRPC (HTTP/2 with prior knowledge), gRPC-Web, and Connect with JSON or protobuf (HTTP/1.1 and\n\
         HTTP/2). Calls are POSTs to /package.Service/Method. Bytes are base64 in JSON:\n\
         \n\
         \x20 curl -H 'content-type: application/json' -d '{{\"namespace\":\"keyvalue\",\"key\":\"greeting\",\"value\":\"aGVsbG8=\"}}' \\\n\
         \x20   {scheme}://{host}/prism.keyvalue.v1.KeyValueService/Set\n\
         \x20 curl -H 'content-type: application/json' -d '{{\"namespace\":\"keyvalue\",\"key\":\"greeting\"}}' \\\n\
         \x20   {scheme}://{host}/prism.keyvalue.v1.KeyValueService/Get\n\
         \n\
         Everything that can be called, with its fields:\n\
         \n\
         \x20 grpcurl {plaintext}{host} describe prism.keyvalue.v1.KeyValueService\n\
         \n\
         Metrics, health and configuration are on the admin port (127.0.0.1:7401 unless configured otherwise).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use prism_proto::prism::keyvalue::v1 as kv;
    use prism_proto::prism::r#type::v1::Entry;

    fn id(method: Method) -> u32 {
        u32::from(method.id())
    }

    fn request<M: prost::Message + Default>(method: Method, json: &str) -> Result<M, String> {
        let mut message = Vec::new();
        request_from_json(id(method), json.as_bytes(), &mut message)?;
        Ok(M::decode(message.as_slice()).unwrap())
    }

    fn reply(method: Method, message: &impl prost::Message) -> String {
        let mut json = Vec::new();
        reply_to_json(id(method), &message.encode_to_vec(), &mut json).unwrap();
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn every_method_has_its_messages() {
        for method in Method::all() {
            let (request, reply) = &MESSAGES.of_routes[&id(method)];
            assert!(request.name().starts_with(method.name()), "{method:?}: {request:?}");
            assert!(!reply.name().is_empty());
        }
        for path in ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"] {
            assert!(MESSAGES.of_routes.contains_key(&route(path.as_bytes()).unwrap().id));
        }
    }

    #[test]
    fn requests_are_read_as_protobuf_maps_them() {
        let text = r#"{"namespace":"n","key":"k","ttl":"1.5s","keepTtl":false,"onlyIf":"SET_CONDITION_ABSENT","value":"AAH/"}"#;
        let set: kv::SetRequest = request(Method::KEYVALUE_SET, text).unwrap();
        assert_eq!((set.namespace.as_str(), set.key.as_str()), ("n", "k"));
        assert_eq!(&set.value[..], [0, 1, 255]);
        let ttl = set.ttl.unwrap();
        assert_eq!((ttl.seconds, ttl.nanos), (1, 500_000_000));
        assert_eq!(set.only_if, kv::SetCondition::Absent as i32);
        // Field names as in the .proto files, base64 for URLs, enums by number, null for absent.
        let text = r#"{"namespace":"n","key":"k","only_if":2,"value":"_-8","ttl":null}"#;
        let set: kv::SetRequest = request(Method::KEYVALUE_SET, text).unwrap();
        assert_eq!((set.only_if, &set.value[..], set.ttl), (2, &[255, 239][..], None));
    }

    #[test]
    fn what_is_no_request_is_refused_by_name() {
        let refused =
            |text: &str| request::<kv::GetRequest>(Method::KEYVALUE_GET, text).unwrap_err();
        for (text, named) in [
            (r#"{"namespace":"n","kee":"k"}"#, "kee"),
            (r#"{"namespace":"n","key":1}"#, "line 1"),
            (r#"{"namespace":"n","key":"k"} x"#, "trailing"),
            (r#"{"namespace":"n""#, "EOF"),
            (r#"["n"]"#, "GetRequest"),
            ("\"n\"", "GetRequest"),
            ("", "empty"),
            (" \n", "empty"),
            ("\u{feff}{}", "line 1"),
        ] {
            let message = refused(text);
            assert!(message.contains(named), "{text}: {message}");
            assert!(message.contains("prism.keyvalue.v1.GetRequest"), "{message}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(refused(&deep).len() < 1000);
        let deep = format!(r#"{{"x":{deep}}}"#);
        assert!(refused(&deep).len() < 1000);
        let text = r#"{"namespace":"n","key":"k","value":"not base64!"}"#;
        assert!(request::<kv::SetRequest>(Method::KEYVALUE_SET, text).is_err());
    }

    #[test]
    fn replies_show_what_has_no_presence() {
        let get = kv::GetResponse::default();
        assert_eq!(reply(Method::KEYVALUE_GET, &get), r#"{"found":false}"#);
        let entry = Entry { value: b"hello"[..].into(), ..Default::default() };
        let get = kv::GetResponse { found: true, entry: Some(entry) };
        let text = reply(Method::KEYVALUE_GET, &get);
        assert!(text.starts_with(r#"{"found":true,"entry":{"#), "{text}");
        assert!(text.contains(r#""value":"aGVsbG8=""#) && !text.contains("null"), "{text}");
        let count = kv::CountResponse { count: 1 << 60, ..Default::default() };
        let text = reply(Method::KEYVALUE_COUNT, &count);
        assert!(text.contains(r#""count":"1152921504606846976""#), "{text}");
    }

    #[test]
    fn details_are_told_in_both_forms() {
        use prism_proto::rpc::StatusDetails;
        let status = StatusDetails::new(5, "no", "NAMESPACE_UNKNOWN")
            .metadata("namespace", "a\"b")
            .retry_after(std::time::Duration::from_millis(100))
            .encode();
        let mut json = Vec::new();
        details_to_json(&status, &mut json);
        let details: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let details = details.as_array().unwrap();
        let info = &details[0];
        assert_eq!(info["type"], "google.rpc.ErrorInfo");
        assert_eq!(info["debug"]["reason"], "NAMESPACE_UNKNOWN");
        assert_eq!(info["debug"]["metadata"]["namespace"], "a\"b");
        let bytes = STANDARD_NO_PAD.decode(info["value"].as_str().unwrap()).unwrap();
        let info = google::rpc::ErrorInfo::decode(bytes.as_slice()).unwrap();
        assert_eq!(info.reason, "NAMESPACE_UNKNOWN");
        assert_eq!(details[1]["debug"]["retryDelay"], "0.100s");
        for nothing in [&b""[..], b"\xff"] {
            let mut json = Vec::new();
            details_to_json(nothing, &mut json);
            assert!(json.is_empty());
        }
    }

    #[test]
    fn pages_advise() {
        let seen = |host| Seen { host, is_secured: false };
        assert_eq!(page("/", seen("prism:1")).0, 200);
        assert!(page("/", seen("prism:1")).1.contains("http://prism:1/prism.keyvalue.v1"));
        let secured = page("/", Seen { is_secured: true, ..seen("prism:1") }).1;
        assert!(secured.contains("https://prism:1/prism.keyvalue.v1"), "{secured}");
        assert!(!secured.contains("http://") && !secured.contains("-plaintext"), "{secured}");
        let (status, text) = page("/prism.keyvalue.v1.KeyvalueService/get", seen(""));
        assert_eq!(status, 404);
        assert!(text.contains("did you mean /prism.keyvalue.v1.KeyValueService/Get?"), "{text}");
        assert!(page("/favicon.ico", seen("")).1.contains("/package.Service/Method"));
    }
}
