//! Generates the tonic peer's server code, as tonic's own users would have it: KeyValue over Prism's own messages, and the echo that the
//! transport's benchmark calls.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let messages = "prism_proto::prism::keyvalue::v1";
    let method = |name: &str, route: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("{messages}::{route}Request"))
            .output_type(format!("{messages}::{route}Response"))
            .codec_path("tonic_prost::ProstCodec")
            .build()
    };
    let key_value = Service::builder()
        .name("KeyValueService")
        .package("prism.keyvalue.v1")
        .method(method("get", "Get"))
        .method(method("set", "Set"))
        .build();
    let method = |name: &str, route: &str, input: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("prism_benches::echo::{input}"))
            .output_type("prism_benches::echo::Payload")
            .codec_path("tonic_prost::ProstCodec")
    };
    let echo = Service::builder()
        .name("Echo")
        .package("prism.bench.v1")
        .method(method("unary", "Unary", "Payload").build())
        .method(method("stream", "Stream", "StreamRequest").server_streaming().build())
        .build();
    Builder::new().build_client(false).compile(&[key_value, echo]);
}
