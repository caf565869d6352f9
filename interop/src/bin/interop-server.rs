//! Serves `grpc.testing.TestService` on Prism's transport: `interop-server [address]` prints where it listens, and serves until it
//! is killed. `interop-server --descriptors` prints the service's files as a `FileDescriptorSet`.

use std::io::{self, Write};
use std::rc::Rc;

use prism_interop::{DESCRIPTORS, service};
use prism_io::grpc::Limits;
use prism_io::server::{Connections, Options, accept};
use prism_io::{net, rt};

const CONNECTIONS_MAX: usize = 1000;

fn main() -> io::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--descriptors") {
        return io::stdout().write_all(DESCRIPTORS);
    }
    let address = argument.as_deref().unwrap_or("127.0.0.1:0");
    let listener = std::net::TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    rt::run(async move {
        let listener = net::Listener::new(listener)?;
        let options = Options::new(Limits::default(), service::route, CONNECTIONS_MAX);
        let connections = Rc::new(Connections::default());
        rt::spawn(connections.clone().watch());
        let service = Rc::new(service::TestService::default());
        accept(listener, service, options, connections).await;
        Ok(())
    })?
}
