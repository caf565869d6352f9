//! The shape of the workspace, held by a test: which crate may know which, who may name the runtime, where `unsafe` may
//! stand, and what no server may be built from.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// For each crate the crates of this workspace that it may depend on, in any way, also in tests.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("prism-proto", &[]),
    ("prism-io", &[]),
    ("prism-wal", &["prism-io"]),
    ("prism-adapters", &["prism-io", "prism-proto"]),
    ("prism-core", &["prism-adapters", "prism-io", "prism-proto", "prism-wal"]),
    ("prism-judge", &["prism-io"]),
    ("prism-loadtest", &["prism-io", "prism-proto"]),
    ("prism-interop", &["prism-io"]),
    (
        "prism-benches",
        &["prism-adapters", "prism-core", "prism-io", "prism-loadtest", "prism-proto", "prism-wal"],
    ),
];

/// Crates that compare the runtime with its peers may name it beside `io`.
const NAMES_THE_RUNTIME: [&str; 2] = ["prism-io", "prism-benches"];

/// Beside `io`: the loop that was tried in its place, and is no part of the product.
const UNSAFE_BESIDE_IO: [&str; 1] = ["benches/benches/loops/ring.rs"];

/// HTTP/2 and gRPC are our own in everything that serves.
const NOT_IN_A_SERVER: [&str; 4] = ["h2", "hyper", "tonic", "tower"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every package of the workspace as `cargo metadata` tells it.
fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn dependencies(package: &Value) -> BTreeSet<&str> {
    let dependencies = package["dependencies"].as_array().unwrap();
    dependencies.iter().map(|dependency| dependency["name"].as_str().unwrap()).collect()
}

#[test]
fn crates_reach_only_where_they_may() {
    let packages = packages();
    assert_eq!(packages.len(), ALLOWED.len(), "a new crate needs its line in ALLOWED");
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let allowed = ALLOWED.iter().find(|(allowed, _)| *allowed == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} has no line in ALLOWED"));
        for dependency in dependencies(package) {
            assert!(
                !dependency.starts_with("prism-") || allowed.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn only_io_names_the_runtime() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        if NAMES_THE_RUNTIME.contains(&name) {
            continue;
        }
        let dependencies = dependencies(&package);
        for runtime in ["monoio", "io-uring"] {
            assert!(!dependencies.contains(runtime), "{name} must not depend on {runtime}");
        }
        for file in sources(&package) {
            let text = fs::read_to_string(&file).unwrap();
            let named = code_lines(&text).find(|(_, line)| line.contains("monoio::"));
            assert_eq!(named, None, "{} names the runtime", file.display());
        }
    }
}

#[test]
fn unsafe_stands_only_in_io() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        if name == "prism-io" {
            continue;
        }
        for file in sources(&package) {
            let text = fs::read_to_string(&file).unwrap();
            // An allocator that counts cannot be written without it; such files belong to tests and benchmarks.
            let is_test = file.components().any(|part| {
                ["tests", "benches", "benchmarks"].contains(&part.as_os_str().to_str().unwrap())
            });
            let is_allowed = UNSAFE_BESIDE_IO.iter().any(|allowed| file.ends_with(allowed));
            if is_test && text.contains("impl GlobalAlloc for") || is_allowed {
                continue;
            }
            let found = code_lines(&text).find(|(_, line)| has_word(line, "unsafe"));
            assert_eq!(found, None, "{}: `unsafe` belongs into io", file.display());
        }
    }
}

#[test]
fn no_server_is_built_from_other_transports() {
    let tree =
        cargo(&["tree", "-p", "prism-core", "-e", "normal", "--prefix", "none", "--offline"]);
    let names: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("prism-io"), "{tree}");
    for name in NOT_IN_A_SERVER {
        assert!(!names.contains(name), "{name} is among the dependencies of prism-core");
    }
}

/// Every Rust file of a package.
fn sources(package: &Value) -> Vec<PathBuf> {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let mut files = Vec::new();
    gather(manifest.parent().unwrap(), &mut files);
    assert!(!files.is_empty(), "{} has no source", manifest.display());
    files
}

fn gather(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                gather(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The lines of a file without comments, numbered from 1; text in quotes is taken out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().map(|(index, line)| {
        let mut code = String::new();
        let mut quoted = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if quoted => {
                    characters.next();
                }
                '"' => quoted = !quoted,
                '/' if !quoted && characters.peek() == Some(&'/') => break,
                character if !quoted => code.push(character),
                _ => {}
            }
        }
        (index + 1, code)
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

#[test]
fn the_tests_own_eyes_are_sharp() {
    let found = |text: &str| code_lines(text).any(|(_, line)| has_word(&line, "unsafe"));
    assert!(found("    unsafe { call() }"));
    assert!(found("let a = \"x\"; unsafe fn b() {}"));
    assert!(!found("// unsafe"));
    assert!(!found("//! never unsafe"));
    assert!(!found("let a = \"unsafe \\\" still unsafe\";"));
    assert!(!found("#![allow(unsafe_code)]"));
}
