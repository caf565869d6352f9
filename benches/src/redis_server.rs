//! A Redis for a measurement: pinned, with the settings of `dev/servers`, and gone with the benchmark.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Server, free_address};

/// How long a server may take until it can be connected to.
const START_MAX: Duration = Duration::from_secs(20);

/// A running Redis.
pub struct RedisServer {
    /// The process.
    pub server: Server,
    /// Where it listens.
    pub address: SocketAddr,
}

impl RedisServer {
    /// Starts the `redis-server` of the PATH on core `core`, with its append-only file (everysec) in `folder`.
    pub fn start(folder: &Path, core: usize) -> Result<Self> {
        let address = free_address()?;
        std::fs::create_dir_all(folder)?;
        let mut command = pinned("redis-server", core);
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning"])
            .args(["--logfile", "redis.log"])
            .current_dir(folder);
        let server = Server::start(&mut command)?;
        let mut redis = Self { server, address };
        await_listener(&mut redis.server, address)?;
        Ok(redis)
    }
}

/// A command whose threads all stay on one core.
pub fn pinned(program: impl AsRef<std::ffi::OsStr>, core: usize) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Waits until `server` takes connections at `address`.
pub fn await_listener(server: &mut Server, address: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    loop {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        if let Some(status) = server.ended()? {
            return Err(Error::other(format!("the server ended: {status}")));
        }
        if begin.elapsed() > START_MAX {
            return Err(Error::other(format!("nobody listens at {address}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
