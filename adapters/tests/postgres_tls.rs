//! TLS to a real PostgreSQL: whom the adapter trusts, who it says it is, and what a caller reads where certificates do not fit.

mod servers;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::tls::{Tls, TlsFiles};
use prism_adapters::{Backend, Context, Error, Kind, Limits, NO_DEADLINE_NS, Reply};
use prism_io::clock::{monotonic_ns, wall_us};
use prism_io::rt;
use prism_io::tls::Roots;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use servers::{Authorities, LONG, OwnPostgres, is_root};

/// The name that the server's certificate is for.
const NAME: &str = "postgres.test";

/// A PostgreSQL that speaks TLS, and who may come to it how, as lines of `pg_hba.conf`.
fn server(files: &Authorities, rules: &str) -> OwnPostgres {
    std::fs::write(files.path("pg_hba.conf"), rules).unwrap();
    if is_root() {
        files.give_to("postgres");
    } else {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(files.path("server.key"), mode).unwrap();
    }
    let option = |name: &str, value: String| ["-c".to_owned(), format!("{name}={value}")];
    let options = [
        option("ssl", "on".to_owned()),
        option("ssl_cert_file", files.name("server.pem")),
        option("ssl_key_file", files.name("server.key")),
        option("ssl_ca_file", files.name("ca.pem")),
        option("hba_file", files.name("pg_hba.conf")),
    ]
    .concat();
    OwnPostgres::start(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

fn config(
    files: &Authorities,
    address: SocketAddr,
    (ca, server_name, identity): (&str, &str, Option<&str>),
) -> PostgresConfig {
    let path = |name: String| files.path(&name);
    let files = TlsFiles {
        roots: Roots::File(path(ca.to_owned())),
        server_name: server_name.to_owned(),
        identity: identity.map(|who| (path(format!("{who}.pem")), path(format!("{who}.key")))),
    };
    PostgresConfig {
        tls: Some(Tls::load(files).unwrap()),
        database: "postgres".to_owned(),
        pool: 1,
        lock_timeout: LONG,
        answer_timeout: 2 * LONG,
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call(
    postgres: &Postgres,
    method: Method,
    request: &[u8],
    deadline_ns: u64,
) -> Result<Vec<u8>, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &limits,
        deadline_ns,
    };
    postgres.unary_checked(&context, method, request, Postgres::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

async fn set(
    postgres: &Postgres,
    key: &str,
    value: &[u8],
    deadline_ns: u64,
) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key, value, ..SetRequest::default() }.encode(&mut request);
    call(postgres, Method::KEYVALUE_SET, &request, deadline_ns).await
}

async fn get(postgres: &Postgres, key: &str) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key }.encode(&mut request);
    call(postgres, Method::KEYVALUE_GET, &request, NO_DEADLINE_NS).await
}

/// Values of every size come back whole.
async fn works(config: PostgresConfig) {
    let postgres = Postgres::start(config);
    for length in [0, 1, 16_000, 17_000, 1 << 20] {
        let value: Vec<u8> = (0..length).map(|byte| (byte * 31) as u8).collect();
        set(&postgres, "key", &value, NO_DEADLINE_NS).await.unwrap();
        assert!(get(&postgres, "key").await.unwrap().ends_with(&value), "{length} bytes");
    }
    assert_eq!(postgres.facts().connects, 1);
}

async fn refused(config: PostgresConfig, reason: &str, words: &[&str]) {
    let error = get(&Postgres::start(config), "key").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, reason), "{error:?}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn whom_it_trusts_it_talks_to() {
    let files = Authorities::new(NAME);
    let server = server(&files, "host all all 127.0.0.1/32 trust\n");
    let address = server.address;
    run(async move {
        works(config(&files, address, ("ca.pem", NAME, None))).await;
        // What went in through TLS is what others see without it.
        let length = server.psql("SELECT length(value) FROM orders.keyvalue WHERE key = 'key'");
        assert_eq!(length, (1 << 20).to_string());
        let stands = Postgres::start(config(&files, address, ("ca.pem", NAME, None)));
        set(&stands, "key", b"value", NO_DEADLINE_NS).await.unwrap();
        let spoken = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                      WHERE application_name = 'prism'";
        assert_eq!(server.psql(spoken), "t");
        let another_ca = config(&files, address, ("other-ca.pem", NAME, None));
        refused(another_ca, "BACKEND_TLS", &["not trusted", "tls.ca"]).await;
        let another_name = config(&files, address, ("ca.pem", "postgres.example", None));
        let words = ["not trusted", "`postgres.example` (tls.server_name)"];
        refused(another_name, "BACKEND_TLS", &words).await;
    });
}

#[test]
fn where_postgres_asks_it_says_who_it_is() {
    let files = Authorities::new(NAME);
    let rules = "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n\
                 hostnossl all all 127.0.0.1/32 reject\n";
    // Whether it runs is asked in clear, and answered by the refusal.
    let server = server(&files, rules);
    let address = server.address;
    run(async move {
        let _server = server;
        works(config(&files, address, ("ca.pem", NAME, Some("client")))).await;
        let nobody = config(&files, address, ("ca.pem", NAME, None));
        refused(nobody, "BACKEND_CREDENTIALS_REFUSED", &["valid client certificate"]).await;
        let stranger = config(&files, address, ("ca.pem", NAME, Some("stranger")));
        refused(stranger, "BACKEND_TLS", &["tls.certificate", "clientcert"]).await;
        let clear = config(&files, address, ("ca.pem", NAME, None));
        let clear = PostgresConfig { tls: None, ..clear };
        refused(clear, "BACKEND_CREDENTIALS_REFUSED", &["no encryption"]).await;
    });
}

#[test]
fn a_postgres_without_tls_is_not_talked_to_in_clear() {
    let files = Authorities::new(NAME);
    let server = OwnPostgres::start(&[]);
    let address = server.address;
    run(async move {
        let _server = server;
        let config = config(&files, address, ("ca.pem", NAME, None));
        refused(config, "BACKEND_TLS", &["ssl = on"]).await;
    });
}

/// Whoever stands between may not add to what is said in clear: it would be taken for what the server has said through TLS.
#[test]
fn what_comes_in_clear_behind_the_consent_is_not_taken() {
    let files = Authorities::new(NAME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 8];
        socket.read_exact(&mut request).unwrap();
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47], "SSLRequest");
        socket.write_all(b"SR\0\0\0\x08\0\0\0\0").unwrap();
        // It hangs up.
        let _ = socket.read(&mut request);
    });
    run(async move {
        let config = config(&files, address, ("ca.pem", NAME, None));
        refused(config, "BACKEND_TLS", &["in clear"]).await;
    });
    server.join().unwrap();
}

/// Somebody who holds a lock for a minute.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_nobody_waits_for_is_given_up_through_tls_as_well() {
    let files = Authorities::new(NAME);
    let rules = "host postgres all 127.0.0.1/32 trust\n";
    let server = server(&files, rules);
    let address = server.address;
    run(async move {
        let postgres = Postgres::start(config(&files, address, ("ca.pem", NAME, None)));
        set(&postgres, "locked", b"value", NO_DEADLINE_NS).await.unwrap();
        let hold = "BEGIN; SELECT 1 FROM orders.keyvalue WHERE key = 'locked' FOR UPDATE; \
                    SELECT pg_sleep(60)";
        let psql = Command::new("psql")
            .args(["-X", "-q", "-U", "prism", "-d", "postgres", "-h", "127.0.0.1"])
            .args(["-p", &address.port().to_string(), "-c", hold])
            .stdout(Stdio::null())
            .spawn();
        let sleeper = Sleeper(psql.unwrap());
        let until = Instant::now() + LONG;
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while server.psql(sleeps) != "1" {
            assert!(Instant::now() < until, "nobody holds the row");
            rt::sleep(Duration::from_millis(10)).await;
        }
        let mut span_ns = 200_000_000;
        let error = loop {
            let deadline_ns = monotonic_ns() + span_ns;
            let error = set(&postgres, "locked", b"late", deadline_ns).await.unwrap_err();
            if error.reason() != "BACKEND_NOT_ASKED" {
                break error;
            }
            // The machine is so slow that it was not even sent.
            span_ns *= 2;
        };
        let found = (error.kind(), error.reason());
        assert_eq!(found, (Kind::DeadlineExceeded, "BACKEND_TIMEOUT"), "{error:?}");
        // The connection is free again, which it is only where PostgreSQL was told.
        set(&postgres, "free", b"value", NO_DEADLINE_NS).await.unwrap();
        assert_eq!(server.psql(sleeps), "1", "nobody else has let the row go");
        assert_eq!(postgres.facts().connects, 1);
        drop(sleeper);
    });
}
