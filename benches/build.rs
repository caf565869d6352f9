//! Generates the tonic peer's server code, as tonic's own users would have it, over Prism's own messages.

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
    let service = Service::builder()
        .name("KeyValueService")
        .package("prism.keyvalue.v1")
        .method(method("get", "Get"))
        .method(method("set", "Set"))
        .build();
    Builder::new().build_client(false).compile(&[service]);
}
