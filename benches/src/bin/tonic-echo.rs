//! The peer that every figure stands beside: Get and Set over tonic on one current-thread tokio runtime, answered without
//! doing anything.
//!
//! `tonic-echo <core> [address]` prints the address that it listens on and serves until it is killed. It speaks the same messages as
//! `prism serve`, so that the same load generator drives both. It stores nothing and writes nothing.

use std::io::Write;

use prism_proto::prism::keyvalue::v1::{GetRequest, GetResponse, SetRequest, SetResponse};
use prism_proto::prism::r#type::v1::Entry;
use tonic::{Request, Response, Status};

/// What tonic's generator makes of the service; its style is not ours.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/prism.keyvalue.v1.KeyValueService.rs"));
}
use generated::key_value_service_server::{KeyValueService, KeyValueServiceServer};

/// Bytes of the value in every answer to Get.
const VALUE_BYTES: usize = 128;

struct Echo {
    value: bytes::Bytes,
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
    prism_io::rt::pin(core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let echo = Echo { value: bytes::Bytes::from(vec![b'v'; VALUE_BYTES]) };
        tonic::transport::Server::builder()
            .add_service(KeyValueServiceServer::new(echo))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}
