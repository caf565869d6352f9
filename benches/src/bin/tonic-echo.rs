//! The peer that every figure stands beside: Get and Set over tonic on one current-thread tokio runtime, answered without
//! doing anything, and the echo of the transport's benchmark.
//!
//! `tonic-echo <core> [address [certificate key]]` prints the address that it listens on and serves until it is killed, over TLS
//! where it is given the two PEM files of an identity. It speaks the same messages as
//! `prism serve`, so that the same load generator drives both. It stores nothing and writes nothing.

use std::io::Write;
use std::pin::Pin;

use prism_benches::echo::{Payload, StreamRequest};
use prism_proto::prism::keyvalue::v1::{GetRequest, GetResponse, SetRequest, SetResponse};
use prism_proto::prism::r#type::v1::Entry;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// What tonic's generator makes of the service; its style is not ours.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/prism.keyvalue.v1.KeyValueService.rs"));
    include!(concat!(env!("OUT_DIR"), "/prism.bench.v1.Echo.rs"));
}
use generated::echo_server::EchoServer;
use generated::key_value_service_server::{KeyValueService, KeyValueServiceServer};

/// Bytes of the value in every answer to Get.
const VALUE_BYTES: usize = 128;
/// Messages that a channel holds between a handler's task and its stream, as in tonic's own examples of streaming.
const CHANNEL_MESSAGES: usize = 128;

struct Echo {
    value: bytes::Bytes,
}

#[tonic::async_trait]
impl generated::echo_server::Echo for Echo {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn stream(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let StreamRequest { messages, value_bytes, through_channel } = request.into_inner();
        let value = bytes::Bytes::from(vec![b'v'; value_bytes as usize]);
        let message = move || Payload { key: bytes::Bytes::new(), value: value.clone() };
        if !through_channel {
            let all = tokio_stream::iter(0..messages).map(move |_| Ok(message()));
            return Ok(Response::new(Box::pin(all)));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(CHANNEL_MESSAGES);
        tokio::spawn(async move {
            for _ in 0..messages {
                if sender.send(Ok(message())).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl KeyValueService for Echo {
    async fn get(&self, _request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let entry = Entry { value: self.value.clone(), ..Entry::default() };
        Ok(Response::new(GetResponse { found: true, entry: Some(entry) }))
    }

    async fn set(&self, _request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        Ok(Response::new(SetResponse { applied: true, ..SetResponse::default() }))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let core = arguments.next().ok_or("usage: tonic-echo <core> [address]")?.parse()?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let tls = match (arguments.next(), arguments.next()) {
        (Some(certificate), Some(key)) => {
            let identity = Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?);
            Some(ServerTlsConfig::new().identity(identity))
        }
        _ => None,
    };
    prism_io::rt::pin(core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let echo = || Echo { value: bytes::Bytes::from(vec![b'v'; VALUE_BYTES]) };
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls)?;
        }
        server
            .add_service(KeyValueServiceServer::new(echo()))
            .add_service(EchoServer::new(echo()))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}
