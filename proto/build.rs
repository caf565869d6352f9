//! Compiles the `.proto` files (with protox: no protoc is needed) and derives
//! from their descriptors everything that Prism knows about its API: messages
//! (prost), the catalogue, and the borrowed views.

#[path = "build/catalogue.rs"]
mod catalogue;
#[path = "build/view.rs"]
mod view;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_reflect::DescriptorPool;

/// Packages whose messages get views.
const VIEWED: &[&str] =
    &["prism.keyvalue.v1", "prism.pubsub.v1", "prism.queue.v1", "prism.stream.v1"];

fn main() {
    if let Err(error) = build() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let protos = root.join("proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");

    let mut files = Vec::new();
    collect_protos(&protos, &mut files)?;
    files.sort();

    // Comments go into the Rust documentation, but not into the binary.
    let mut commented = protox::Compiler::new([&protos])?;
    commented.include_imports(true).include_source_info(true).open_files(&files)?;
    let mut bare = protox::Compiler::new([&protos])?;
    bare.include_imports(true).include_source_info(false).open_files(&files)?;
    // Encoded by protox, not by prost-types, which drops the options.
    let bytes = bare.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &bytes)?;

    prost_build::Config::new()
        .bytes(["."])
        // Type names are for packing details into a Status.
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .include_file("messages.rs")
        .out_dir(&out)
        .compile_fds(commented.file_descriptor_set())?;

    let pool = DescriptorPool::decode(bytes.as_slice())?;
    fs::write(out.join("catalogue.rs"), catalogue::generate(&pool)?)?;
    fs::write(out.join("view.rs"), view::generate(&pool, VIEWED)?)?;
    Ok(())
}

fn collect_protos(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
