//! `prism serve`: flags over the file, then the shards.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, complain};
use crate::config::{self, Config, Flags};
use crate::doctor::FILES_BESIDE_CONNECTIONS;
use crate::{logging, planned};

const AFTER_HELP: &str = "\
Without --config every client API that works has one namespace of its own name, durable at level wal.

Examples:
  prism serve
  prism serve --listen 127.0.0.1:7500 --data-dir /var/lib/prism
  prism serve --cores 2-5 --log-format text
  prism serve --tls-cert server.pem --tls-key server.key
  prism serve --config prism.yaml
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ServeArgs {
    /// The configuration file, YAML; the flags below stand over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve gRPC [default: 127.0.0.1:7400].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Serve TLS with this certificate: a PEM file, the server's own first.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The certificate's private key, a PEM file.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Where to serve metrics, health and configuration over HTTP [default: 127.0.0.1:7401].
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// The directory of logs and snapshots; made if it is not there [default: ./prism-data].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// How many shards to run, each on a core of its own [default: one for every core].
    #[arg(long, value_name = "COUNT")]
    shards: Option<String>,
    /// The cores of the shards, such as 0,2-3.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// How long an idle shard looks for work before it sleeps, such as 50us; for hosts that own their cores [default: 0].
    #[arg(long, value_name = "TIME")]
    busy_poll: Option<String>,
    /// The least serious log line to write: error, warn, info, debug or trace [default: info].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The form of log lines on stderr: json or text [default: json].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ServeArgs {
    fn flags(&self) -> Flags {
        Flags {
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            data_dir: self.data_dir.clone(),
            shards: self.shards.clone(),
            cores: self.cores.clone(),
            busy_poll: self.busy_poll.clone(),
            log_level: self.log_level.clone(),
            log_format: self.log_format.clone(),
        }
    }
}

pub(super) fn run(args: &ServeArgs, serve: impl FnOnce(Config) -> Exit) -> Exit {
    let mut config = match config::load(args.config.as_deref(), &args.flags()) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return Exit::Config;
        }
    };
    if let Err(errors) = planned::resolve(&mut config) {
        errors.iter().for_each(|error| eprintln!("{error}"));
        return Exit::Config;
    }
    let flush = match logging::start(&config.log) {
        Ok(flush) => flush,
        Err(error) => {
            complain(format_args!("the log cannot be started: {error}"));
            return Exit::Failure;
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    fit_connections(&mut config);
    let exit = serve(config);
    drop(flush);
    exit
}

/// Raises the limit on open files to what the connections need; where it cannot be raised so far, fewer connections are
/// taken: those that are refused cost less than a log that cannot open its next file.
fn fit_connections(config: &mut Config) {
    let wanted = u64::from(config.limits.connections_max) + FILES_BESIDE_CONNECTIONS;
    let limit = match prism_io::probe::raise_open_files(wanted) {
        Ok(limit) => limit,
        Err(error) => return tracing::warn!(%error, "the limit on open files cannot be raised"),
    };
    if limit < wanted {
        let connections = limit - FILES_BESIDE_CONNECTIONS.min(limit / 2);
        tracing::warn!(
            limit,
            wanted,
            connections,
            "this process may open fewer files than limits.connections_max needs, so it takes fewer connections; \
             `prism doctor` tells the remedy"
        );
        config.limits.connections_max = u32::try_from(connections).unwrap_or(u32::MAX).max(1);
    }
}
