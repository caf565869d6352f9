//! `prism-loadtest idle`: connections that are open and silent.

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::time::Duration;

use prism_io::client::Client;
use prism_io::grpc::Limits;
use prism_io::rt;
use prism_io::tls::Connector;

/// Opens `connections` to `endpoint`, over TLS where that is given, says so, and holds them until the process is killed. Fails when one of them is lost.
pub fn run(endpoint: SocketAddr, tls: Option<Connector>, connections: usize) -> Result<()> {
    rt::run(async move {
        let mut held = Vec::with_capacity(connections);
        for number in 1..=connections {
            let client = match &tls {
                None => Client::connect(endpoint).await,
                Some(connector) => {
                    let (authority, limits) = (endpoint.to_string(), Limits::default());
                    let secured = Client::connect_secured(endpoint, connector, &authority, &limits);
                    secured.await.map_err(Error::other)
                }
            };
            held.push(client.map_err(|error| {
                Error::new(error.kind(), format!("connection {number} of {connections}: {error}"))
            })?);
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
