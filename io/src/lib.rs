//! Bytes, time and completions: the only room that knows the runtime.
//!
//! Everything that touches the kernel lives here: the per-core runtime with its ring, sockets, files with O_DIRECT,
//! timers, pinning, the mesh between shards, the pooled call slots, and HTTP/2 and gRPC as state machines without I/O.
//! This crate never knows what a namespace is, and nobody outside it names the runtime.

mod affinity;
pub mod bell;
pub mod bridge;
pub mod calls;
pub mod client;
pub mod clock;
pub mod disk;
pub mod grpc;
pub mod h2;
pub mod http1;
pub mod mesh;
pub mod net;
pub mod probe;
pub mod region;
pub mod rt;
pub mod server;
pub mod tls;
pub mod web;
