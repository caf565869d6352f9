//! `prism-loadtest idle`: connections that are open and silent.

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::time::Duration;

use prism_io::client::Client;
use prism_io::rt;

/// Opens `connections` to `endpoint`, says so, and holds them until the process is killed. Fails when one of them is lost.
pub fn run(endpoint: SocketAddr, connections: usize) -> Result<()> {
    rt::run(async move {
        let mut held = Vec::with_capacity(connections);
        for number in 1..=connections {
            let client = Client::connect(endpoint).await.map_err(|error| {
                Error::new(error.kind(), format!("connection {number} of {connections}: {error}"))
            })?;
            held.push(client);
        }
        println!("holding {connections} connections");
        std::io::stdout().flush()?;
        loop {
            rt::sleep(Duration::from_secs(1)).await;
            let lost = held.iter().filter(|client| client.is_closed()).count();
            if lost > 0 {
                return Err(Error::other(format!("the server closed {lost} connections")));
            }
        }
    })?
}
