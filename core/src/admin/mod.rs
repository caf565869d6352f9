//! The admin port: metrics, health, the effective configuration and the namespaces over HTTP, for people, probes and Prometheus.
//!
//! Runs on a thread of its own, reads atomics, asks the control thread about namespaces, and never waits for a shard. Shows no secret and no user data. Has no
//! authentication: it listens on loopback unless the configuration says otherwise.

mod connections;
mod namespaces;
mod readiness;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prism_io::http1::{Request, Response, Server, Stop};

pub use readiness::Readiness;

use crate::access::keys::KeyStore;
use crate::audit::{AuditView, show};
use crate::config::Config;
use crate::control::Ask;
use crate::logging;
use crate::metrics::{CONTENT_TYPE, Metrics, ProcessNumbers};

/// The effective configuration as the admin port shows it. `Clone` shares it.
#[derive(Debug, Clone)]
pub(crate) struct ShownConfig(Arc<Mutex<String>>);

impl ShownConfig {
    fn of(config: &Config) -> Self {
        Self(Arc::new(Mutex::new(config.to_string())))
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows this one from now on.
    pub(crate) fn set(&self, config: &Config) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = config.to_string();
    }
}

/// What the admin port shows.
#[derive(Debug, Clone)]
pub struct AdminState {
    /// Every shard's numbers.
    pub metrics: Metrics,
    /// Whether calls are served.
    pub readiness: Readiness,
    /// The effective configuration as YAML.
    config: ShownConfig,
    audit: Option<AuditView>,
    keys: Option<Arc<KeyStore>>,
    /// Who knows about namespaces; `None`: nobody yet.
    ask: Option<Ask>,
    started_seconds: f64,
}

impl AdminState {
    /// The state of a process that starts now.
    pub fn new(config: &Config, metrics: Metrics, readiness: Readiness) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            metrics,
            readiness,
            config: ShownConfig::of(config),
            audit: None,
            keys: None,
            ask: None,
            started_seconds: now.as_secs_f64(),
        }
    }

    /// With what is shown of the audit log.
    pub(crate) fn with_audit(self, audit: AuditView) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// With what is shown of issuers' keys.
    pub(crate) fn with_keys(self, keys: Arc<KeyStore>) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// The same, with somebody to ask about namespaces.
    pub(crate) fn asking(self, ask: Ask) -> Self {
        Self { ask: Some(ask), ..self }
    }

    /// What is shown of the configuration, for whoever changes it.
    pub(crate) fn config(&self) -> ShownConfig {
        self.config.clone()
    }

    /// The answer to one request.
    pub fn answer(&self, request: &Request<'_>) -> Response {
        match request.path {
            "/" => Response::text(200, INDEX),
            "/metrics" => {
                let process = ProcessNumbers {
                    started_seconds: self.started_seconds,
                    ready: self.readiness.missing().is_none(),
                    log_lines_dropped: logging::dropped(),
                    audit: self.audit.clone(),
                    keys: self.keys.as_ref().map(|keys| keys.numbers()),
                    ..ProcessNumbers::default()
                };
                let body = self.metrics.render(&process.read_proc()).into_bytes();
                Response { status: 200, content_type: CONTENT_TYPE, body }
            }
            "/audit" => match &self.audit {
                Some(audit) => {
                    let head = audit.head();
                    let body = serde_json::json!({
                        "sequence": head.sequence,
                        "hash": show(&head.hash),
                        "failed": audit.has_failed(),
                    });
                    let body = format!("{body}\n").into_bytes();
                    Response { status: 200, content_type: "application/json", body }
                }
                None => Response::text(503, "there is no audit log yet\n"),
            },
            "/debug/connections" => Response {
                status: 200,
                content_type: "application/json",
                body: connections::render(&self.metrics),
            },
            "/healthz" => Response::text(200, "ok\n"),
            "/readyz" => match self.readiness.missing() {
                None => Response::text(200, "ready\n"),
                Some(missing) => Response::text(503, format!("not ready: {missing}\n")),
            },
            "/config" => Response {
                status: 200,
                content_type: "application/yaml",
                body: self.config.get().into_bytes(),
            },
            path => match (path.strip_prefix("/namespaces"), &self.ask) {
                (Some(name), Some(ask)) if name.is_empty() || name.starts_with('/') => {
                    namespaces::answer(ask, name.trim_matches('/'))
                }
                _ => Response::text(404, INDEX),
            },
        }
    }
}

const INDEX: &str = "\
Prism, admin port

/metrics   numbers in the Prometheus text format
/healthz   200 while the process lives
/readyz    200 while every shard serves, 503 before and while draining
/config    the effective configuration
/audit     number and hash of the last line of the audit log, as JSON
/namespaces  the namespaces as JSON; /namespaces/NAME: one of them, and why it is so
/debug/connections  who is connected, and what has passed, as JSON
";

/// The admin port's server.
#[derive(Debug)]
pub struct Admin {
    server: Server,
    state: AdminState,
}

impl Admin {
    /// Listens on `address`.
    pub fn bind(address: SocketAddr, state: AdminState) -> io::Result<Self> {
        Ok(Self { server: Server::bind(address)?, state })
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.server.local_address()
    }

    /// A handle that ends [`Admin::run`] from another thread.
    pub fn stop_handle(&self) -> io::Result<Stop> {
        self.server.stop_handle()
    }

    /// Serves on the calling thread until it is stopped.
    pub fn run(mut self) -> io::Result<()> {
        let state = &self.state;
        self.server.run(|request| state.answer(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Machine, read};
    use crate::metrics::Labels;
    use std::io::{Read, Write};

    fn state() -> AdminState {
        let machine = Machine { cores: vec![0, 1], memory_bytes: 8 << 30 };
        let config = read(None, &Flags::default(), &machine).unwrap();
        let labels = Labels::of(&config, &["WAL_FULL"]);
        let (metrics, shards) = Metrics::new(labels, 2);
        shards[1].request(Some(0), 0, 0, 90_000);
        AdminState::new(&config, metrics, Readiness::new(2)).asking(Ask::nobody())
    }

    fn answer(state: &AdminState, path: &str) -> (u16, String) {
        let Response { status, body, .. } = state.answer(&Request { path, query: "" });
        (status, String::from_utf8(body).unwrap())
    }

    #[test]
    fn every_page_answers() {
        let state = state();
        assert_eq!(answer(&state, "/healthz"), (200, "ok\n".into()));
        let (status, text) = answer(&state, "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains(
            r#"prism_requests_total{namespace="keyvalue",api="keyvalue",status="success"} 1"#
        ));
        let (status, text) = answer(&state, "/debug/connections");
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &page["open"]), (200, &serde_json::json!(0)));
        let (status, text) = answer(&state, "/config");
        assert!(status == 200 && text.contains("listen: 127.0.0.1:7400"), "{text}");
        assert_eq!(answer(&state, "/").0, 200);
        assert_eq!(answer(&state, "/favicon.ico").0, 404);
        for line in INDEX.lines().filter(|line| line.starts_with('/')) {
            let path = line.split(' ').next().unwrap();
            assert_ne!(answer(&state, path).0, 404, "{path} is in the index");
        }
    }

    #[test]
    fn ready_means_that_every_shard_serves_and_none_drains() {
        let state = state();
        let ready = || answer(&state, "/readyz");
        assert_eq!(ready(), (503, "not ready: 2 of 2 shards do not serve yet\n".into()));
        state.readiness.serving(0);
        assert_eq!(ready(), (503, "not ready: 1 of 2 shards do not serve yet\n".into()));
        state.readiness.serving(1);
        assert_eq!(ready(), (200, "ready\n".into()));
        state.readiness.drain();
        assert_eq!(ready(), (503, "not ready: draining\n".into()));
        assert!(answer(&state, "/metrics").1.contains("prism_ready 0"));
    }

    #[test]
    fn it_serves_over_a_socket_until_it_is_stopped() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), state()).unwrap();
        let (address, stop) = (admin.local_address().unwrap(), admin.stop_handle().unwrap());
        let thread = std::thread::spawn(|| admin.run());
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nok\n"),
            "{text}"
        );
        stop.stop();
        thread.join().unwrap().unwrap();
    }
}
