//! TLS to a real Redis: whom the adapter trusts, who it says it is, and what a caller reads where certificates do not fit.

mod servers;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::tls::{Tls, TlsFiles};
use prism_adapters::{Backend, Context, Error, Kind, Limits, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_io::tls::Roots;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use servers::{Authorities, LONG, OwnRedis};

/// Authorities and what they have signed, and a Redis that has it.
struct Files(Authorities);

impl Files {
    fn new() -> Self {
        Files(Authorities::new("redis.test"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A Redis with its TLS port, and where that is.
    fn redis(&self, auth_clients: &str) -> (OwnRedis, SocketAddr) {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let [certificate, key, ca] =
            ["server.pem", "server.key", "ca.pem"].map(|name| self.0.name(name));
        let redis = OwnRedis::start(&[
            "--tls-port",
            &address.port().to_string(),
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            auth_clients,
        ]);
        (redis, address)
    }

    fn config(
        &self,
        address: SocketAddr,
        ca: &str,
        server_name: &str,
        identity: Option<&str>,
    ) -> RedisConfig {
        let files = TlsFiles {
            roots: Roots::File(self.path(ca)),
            server_name: server_name.to_owned(),
            identity: identity
                .map(|name| (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))),
        };
        let tls = Some(Tls::load(files).unwrap());
        RedisConfig { tls, ..RedisConfig::at(address.ip().to_string(), address.port()) }
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call(redis: &Redis, method: Method, request: &[u8]) -> Result<Vec<u8>, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    redis.unary_checked(&context, method, request, Redis::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

async fn get(redis: &Redis, key: &str) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key }.encode(&mut request);
    call(redis, Method::KEYVALUE_GET, &request).await
}

/// Values of every size come back whole.
async fn works(config: RedisConfig) {
    let redis = Redis::start(config);
    for length in [0, 1, 16_000, 17_000, 1 << 20] {
        let value: Vec<u8> = (0..length).map(|byte| (byte * 31) as u8).collect();
        let mut request = Vec::new();
        SetRequest { namespace: "orders", key: "key", value: &value, ..SetRequest::default() }
            .encode(&mut request);
        call(&redis, Method::KEYVALUE_SET, &request).await.unwrap();
        assert!(get(&redis, "key").await.unwrap().ends_with(&value), "{length} bytes");
    }
    assert_eq!(redis.facts().connects, 1);
}

async fn refused(config: RedisConfig, reason: &str, words: &[&str]) {
    let error = get(&Redis::start(config), "key").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, reason), "{error:?}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn whom_it_trusts_it_talks_to() {
    let files = Files::new();
    let (server, address) = files.redis("no");
    run(async move {
        works(files.config(address, "ca.pem", "redis.test", None)).await;
        // What went in through TLS is what others see without it.
        assert_eq!(server.cli(&["STRLEN", "orders:key"]), (1 << 20).to_string());
        let another_ca = files.config(address, "other-ca.pem", "redis.test", None);
        refused(another_ca, "BACKEND_TLS", &["not trusted", "tls.ca"]).await;
        let another_name = files.config(address, "ca.pem", "redis.example", None);
        refused(another_name, "BACKEND_TLS", &["not trusted", "`redis.example` (tls.server_name)"])
            .await;
        let without = files.config(server.address, "ca.pem", "redis.test", None);
        refused(without, "BACKEND_UNREACHABLE", &["tls-port"]).await;
    });
}

#[test]
fn where_redis_asks_it_says_who_it_is() {
    let files = Files::new();
    let (_server, address) = files.redis("yes");
    run(async move {
        let config = |identity| files.config(address, "ca.pem", "redis.test", identity);
        works(config(Some("client"))).await;
        refused(config(None), "BACKEND_TLS", &["tls.certificate", "tls-auth-clients"]).await;
        refused(config(Some("stranger")), "BACKEND_TLS", &["tls.certificate", "tls-auth-clients"])
            .await;
    });
}

#[test]
fn files_that_do_not_fit_are_refused_before_anything_is_tried() {
    let files = Files::new();
    let load = |ca: &str, certificate: &str, key: &str| {
        let identity = Some((files.path(certificate), files.path(key)));
        let roots = Roots::File(files.path(ca));
        Tls::load(TlsFiles { roots, server_name: "redis.test".to_owned(), identity })
    };
    load("ca.pem", "client.pem", "client.key").unwrap();
    for (ca, certificate, key, says) in [
        ("none.pem", "client.pem", "client.key", "none.pem"),
        ("ca.pem", "none.pem", "client.key", "none.pem"),
        ("ca.pem", "client.pem", "stranger.key", "is not the key of"),
    ] {
        let error = load(ca, certificate, key).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
