//! Serves `grpc.testing.TestService` on Prism's transport: `interop-server [address [certificate key]]` prints where it listens, and
//! serves until it is killed, over TLS where it is given the two files. `interop-server --descriptors` prints the service's files as a `FileDescriptorSet`.

use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use prism_interop::{DESCRIPTORS, service};
use prism_io::grpc::Limits;
use prism_io::server::{Connections, Options, Tls, accept};
use prism_io::tls::{Acceptor, Identity};
use prism_io::{net, rt};

const CONNECTIONS_MAX: usize = 1000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (address, tls) = match words[..] {
        ["--descriptors"] => return io::stdout().write_all(DESCRIPTORS),
        [] => ("127.0.0.1:0", None),
        [address] => (address, None),
        [address, certificate, key] => (address, Some(tls(certificate, key)?)),
        _ => return Err(io::Error::other("usage: interop-server [ADDRESS [CERTIFICATE KEY]]")),
    };
    let listener = std::net::TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    rt::run(async move {
        let listener = net::Listener::new(listener)?;
        let options = Options::new(Limits::default(), service::route, CONNECTIONS_MAX);
        let connections = Rc::new(tls.map_or_else(Connections::default, Connections::with_tls));
        rt::spawn(connections.clone().watch());
        let service = Rc::new(service::TestService::default());
        accept(listener, service, options, connections).await;
        Ok(())
    })?
}

fn tls(certificate: &str, key: &str) -> io::Result<Tls> {
    let identity = Identity::load(Path::new(certificate), Path::new(key));
    let acceptor = Acceptor::new(&identity.map_err(io::Error::other)?).map_err(io::Error::other)?;
    let timeout = Duration::from_secs(10);
    Ok(Tls { acceptor, handshakes_max: CONNECTIONS_MAX, timeout })
}
