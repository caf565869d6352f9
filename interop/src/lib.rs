//! gRPC's interop tests: `grpc.testing.TestService` over Prism's transport, and a client of somebody else's that calls it.
//!
//! The binary `interop-server` serves it to the clients of grpc-go, grpcio, @grpc/grpc-js and tonic (`dev/check-interop`); the
//! binary `interop-tonic` is the last of these. Judges of the transport, and no part of the product.

pub mod service;

/// The messages of `grpc.testing`; what the generator writes has no documentation.
#[allow(missing_docs)]
pub mod testing {
    include!(concat!(env!("OUT_DIR"), "/grpc.testing.rs"));
}

/// tonic's client of these services, as its generator writes it.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/grpc.testing.TestService.rs"));
    include!(concat!(env!("OUT_DIR"), "/grpc.testing.UnimplementedService.rs"));
    include!(concat!(env!("OUT_DIR"), "/xds.service.orca.v3.OpenRcaService.rs"));
}

/// Reports of load, as ORCA has them.
#[allow(missing_docs)]
pub mod orca {
    include!(concat!(env!("OUT_DIR"), "/xds.orca.rs"));
}

/// The files of this service as a `FileDescriptorSet`, for clients that generate nothing.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
