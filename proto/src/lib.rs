//! What can be said to Prism: the `.proto` files, the messages generated from
//! them, the catalogue of models, interfaces and methods, and borrowed views
//! for code that must not allocate.
//!
//! The `.proto` files under `proto/proto` are the only source of all of it.
//! This crate decides nothing and does no I/O.

pub mod catalogue;
pub mod rpc;
pub mod view;
pub mod wire;

mod generated {
    //! Written by prost-build.
    #![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

pub use generated::*;

/// The encoded `google.protobuf.FileDescriptorSet` of every file and its
/// imports, options kept, comments left out.
pub fn descriptors() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))
}
