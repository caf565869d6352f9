//! Peers as processes of their own: started, watched through `/proc`, and ended with the benchmark.
//!
//! Promises: a started process never outlives its [`Server`]. Reads only what every user may read.

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A server under measurement; killed when dropped.
pub struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `command` with its standard output held for [`Server::line`].
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| {
            Error::new(
                error.kind(),
                format!("could not start {:?}: {error}", command.get_program()),
            )
        })?;
        let output = BufReader::new(child.stdout.take().expect("standard output is piped"));
        Ok(Self { child, output })
    }

    /// The next line that the process prints, without its end.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(Error::other("the process ended before it said where it listens"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        // The child may have ended by itself; what counts is that it is gone afterwards.
        let _ = self.child.kill();
        self.child.wait().map(|_| ())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// An address on loopback that nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// The body of `GET path` at `address`, if the answer is 200.
pub fn http_get(address: SocketAddr, path: &str) -> Result<Option<String>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok(body.filter(|_| answer.starts_with("HTTP/1.1 200 ")))
}
