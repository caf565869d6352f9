//! Compiles the `.proto` files of gRPC's interop tests (with protox: no protoc is needed), and tonic's client for them.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use tonic_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_source_info(false)
        .open_files(["grpc/testing/test.proto", "xds/orca.proto"])?;
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(&out)
        .compile_fds(compiler.file_descriptor_set())?;

    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::testing::{input}"))
            .output_type(format!("crate::testing::{output}"))
            .codec_path("tonic_prost::ProstCodec")
    };
    let output = ("StreamingOutputCallRequest", "StreamingOutputCallResponse");
    let test = Service::builder()
        .name("TestService")
        .package("grpc.testing")
        .method(method("empty_call", "EmptyCall", "Empty", "Empty").build())
        .method(method("unary_call", "UnaryCall", "SimpleRequest", "SimpleResponse").build())
        .method(
            method("streaming_output_call", "StreamingOutputCall", output.0, output.1)
                .server_streaming()
                .build(),
        )
        .method(
            method(
                "streaming_input_call",
                "StreamingInputCall",
                "StreamingInputCallRequest",
                "StreamingInputCallResponse",
            )
            .client_streaming()
            .build(),
        )
        .method(
            method("full_duplex_call", "FullDuplexCall", output.0, output.1)
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .method(method("unimplemented_call", "UnimplementedCall", "Empty", "Empty").build())
        .build();
    let unimplemented = Service::builder()
        .name("UnimplementedService")
        .package("grpc.testing")
        .method(method("unimplemented_call", "UnimplementedCall", "Empty", "Empty").build())
        .build();
    let load = Service::builder()
        .name("OpenRcaService")
        .package("xds.service.orca.v3")
        .method(
            Method::builder()
                .name("stream_core_metrics")
                .route_name("StreamCoreMetrics")
                .input_type("crate::orca::OrcaLoadReportRequest")
                .output_type("crate::orca::OrcaLoadReport")
                .codec_path("tonic_prost::ProstCodec")
                .server_streaming()
                .build(),
        )
        .build();
    Builder::new().build_server(false).out_dir(&out).compile(&[test, unimplemented, load]);
    Ok(())
}
