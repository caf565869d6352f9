//! The servers of `dev/servers`, which measurements and tests share.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Starts the server `name` if it is not there; where it is, and its process.
pub fn up(name: &str) -> Result<(SocketAddr, u32)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = root.join("dev/servers");
    if !Command::new(&script).args(["up", name]).status()?.success() {
        return Err(Error::other(format!("dev/servers up {name} has failed")));
    }
    let output = Command::new(&script).arg("addresses").output()?;
    let addresses = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut addresses = addresses.lines().filter_map(|line| line.split_once(' '));
    let address = addresses.find(|(of, _)| *of == name).and_then(|(_, at)| at.parse().ok());
    let id = std::fs::read_to_string(root.join(format!("target/servers/{name}/pid")))?;
    let id = id.split_whitespace().next().and_then(|id| id.parse().ok());
    address.zip(id).ok_or_else(|| Error::other(format!("dev/servers does not say where {name} is")))
}
