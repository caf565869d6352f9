//! The shard's own connection to a NATS: who it says it is, TLS, and what is told of what was sent and not acknowledged.

mod servers;

use std::cell::RefCell;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prism_adapters::breaker::{Backoff, STABLE_MIN};
use prism_adapters::lane::{Cell, LaneBackend, LaneOwner, LaneRecord};
use prism_adapters::nats::{Login, Nats, NatsConfig, Tls};
use prism_adapters::{Backend, Context, Error, Kind, Limits, NO_DEADLINE_NS, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_io::tls::Roots;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::PublishRequest;
use prism_proto::prism::stream::v1::{
    AppendRequest, GetLatestOffsetRequest, GetLatestOffsetResponse, NewRecord,
};
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;
use servers::{LONG, OwnNats, Proxy};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };
const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };

fn config(address: SocketAddr) -> NatsConfig {
    let (delay_min, delay_max) = (Duration::from_millis(5), Duration::from_millis(50));
    NatsConfig {
        connect_timeout: LONG,
        answer_timeout: LONG,
        backoff: Backoff { delay_min, delay_max },
        ..NatsConfig::at(address.ip().to_string(), address.port())
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(6 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

fn context(revision: Revision) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision,
        limits: &LIMITS,
        deadline_ns: NO_DEADLINE_NS,
    }
}

fn append_request(value: &str) -> Vec<u8> {
    let request = AppendRequest {
        namespace: "orders".to_owned(),
        stream: "s".to_owned(),
        record: Some(NewRecord { value: value.to_owned().into(), ..Default::default() }),
        expected_last: None,
    };
    request.encode_to_vec()
}

async fn append(nats: &Nats, value: &str) -> Result<(), Error> {
    let (context, request) = (context(Revision::default()), append_request(value));
    nats.unary(&context, Method::STREAM_APPEND, &request, &mut Reply::default()).await
}

/// The number of the last record, which is how many there are.
async fn count(nats: &Nats) -> u64 {
    let request = GetLatestOffsetRequest { namespace: "orders".to_owned(), stream: "s".to_owned() };
    let mut reply = Reply::default();
    let context = context(Revision::default());
    let request = request.encode_to_vec();
    nats.unary(&context, Method::STREAM_GET_LATEST_OFFSET, &request, &mut reply).await.unwrap();
    let answer = GetLatestOffsetResponse::decode(reply.to_bytes()).unwrap();
    answer.positions.first().map_or(0, |last| last.offset.parse().unwrap())
}

/// Appends so many records side by side; what became of each.
async fn append_all(nats: &Rc<Nats>, count: usize) -> Vec<Result<(), Error>> {
    let outcomes: Rc<RefCell<Vec<_>>> = Rc::default();
    let ended = Rc::new(rt::Signal::default());
    for number in 0..count {
        let (nats, outcomes, ended) = (nats.clone(), outcomes.clone(), ended.clone());
        rt::spawn(async move {
            let outcome = append(&nats, &number.to_string()).await;
            outcomes.borrow_mut().push(outcome);
            ended.set();
        });
    }
    while outcomes.borrow().len() < count {
        ended.wait().await;
    }
    outcomes.take()
}

fn is_unknown(error: &Error) -> bool {
    error.kind() == Kind::Unavailable
        && error.is_retryable()
        && error.metadata().contains(&("backend", "nats".into()))
        && error.metadata().contains(&("namespace", "orders".into()))
}

/// Answers a client as a NATS whose stream is there, acknowledges so many records, and hangs up.
fn serve(client: TcpStream, acknowledged: usize, published: &AtomicUsize) -> Option<()> {
    let info = r#"{"version":"2.12.0","max_payload":1048576,"headers":true,"proto":1}"#;
    let stream = r#"{"config":{"retention":"limits","subjects":["$STREAM.orders.s"],"num_replicas":1,"allow_direct":true}}"#;
    let mut out = client.try_clone().ok()?;
    let mut read = BufReader::new(client);
    write!(out, "INFO {info}\r\n").ok()?;
    let (mut line, mut left) = (String::new(), acknowledged);
    loop {
        line.clear();
        if read.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["PING"] => out.write_all(b"PONG\r\n").ok()?,
            ["PUB", subject, reply, length] => {
                let mut payload = vec![0; length.parse::<usize>().ok()? + 2];
                read.read_exact(&mut payload).ok()?;
                if subject.starts_with("$JS.API.") {
                    write!(out, "MSG {reply} 1 {}\r\n{stream}\r\n", stream.len()).ok()?;
                    continue;
                }
                published.fetch_add(1, Ordering::Relaxed);
                if left == 0 {
                    return None;
                }
                left -= 1;
                let answer = r#"{"stream":"s","seq":1}"#;
                write!(out, "MSG {reply} 1 {}\r\n{answer}\r\n", answer.len()).ok()?;
            }
            _ => {}
        }
    }
}

#[test]
fn what_was_published_and_not_acknowledged_is_told_as_unknown() {
    const ACKNOWLEDGED: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let published = Arc::new(AtomicUsize::new(0));
    let seen = published.clone();
    std::thread::spawn(move || {
        let client = listener.incoming().flatten().next().unwrap();
        drop(listener);
        serve(client, ACKNOWLEDGED, &seen);
    });
    run(async move {
        let nats = Rc::new(Nats::start(config(address)));
        let outcomes = append_all(&nats, 32).await;
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(done, ACKNOWLEDGED, "none is told as done that was not acknowledged");
        assert!(published.load(Ordering::Relaxed) > ACKNOWLEDGED);
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(is_unknown(error), "{error:?}");
            assert!(
                error.reason() == "BACKEND_LOST" || error.reason() == "BACKEND_UNREACHABLE",
                "{error:?}"
            );
        }
        assert_eq!(nats.facts().calls_under_way, 0);
    });
}

#[test]
fn a_server_that_talks_nonsense_is_told_as_unavailable() {
    for nonsense in ["MSG\r\n", "HMSG a 1 9 5\r\n", "PONG\r\nPONG\r\n", "INFO {\r\n", "\0\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let info = r#"{"version":"2.12.0","max_payload":1048576,"headers":true}"#;
                let _ = write!(client, "INFO {info}\r\nPONG\r\n");
                let mut read = BufReader::new(client.try_clone().unwrap());
                let mut line = String::new();
                while read.read_line(&mut line).is_ok_and(|count| count > 0) {
                    if line.starts_with("PUB") {
                        let _ = client.write_all(nonsense.as_bytes());
                    }
                    line.clear();
                }
            }
        });
        run(async move {
            let nats = Nats::start(config(address));
            let error = append(&nats, "x").await.unwrap_err();
            assert!(
                is_unknown(&error) && error.reason() == "BACKEND_PROTOCOL",
                "{nonsense:?}: {error:?}"
            );
        });
    }
}

#[test]
fn appends_that_are_cut_off_are_done_or_told_so() {
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Rc::new(Nats::start(config(proxy.address)));
        append(&nats, "first").await.unwrap();
        let mut least = 1;
        let mut most = 1;
        for round in 0..20 {
            let cutter = async {
                rt::sleep(Duration::from_millis(round % 4)).await;
                proxy.cut();
            };
            let (outcomes, ()) = futures_util::future::join(append_all(&nats, 64), cutter).await;
            for outcome in &outcomes {
                match outcome {
                    Ok(()) => least += 1,
                    Err(error) => assert!(is_unknown(error), "{error:?}"),
                }
            }
            most += outcomes.len() as u64;
            let until = Instant::now() + LONG;
            while let Err(error) = append(&nats, "between").await {
                assert!(is_unknown(&error) && Instant::now() < until, "{error:?}");
                most += 1;
                rt::sleep(Duration::from_millis(5)).await;
            }
            (least, most) = (least + 1, most + 1);
        }
        let there = count(&nats).await;
        assert!((least..=most).contains(&there), "{there} of {least} to {most}");
    });
}

#[test]
fn logged_appends_arrive_once_while_the_connection_is_cut_again_and_again() {
    const RECORDS: u64 = 200;
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Nats::start(config(proxy.address));
        let requests: Vec<Vec<u8>> =
            (0..=RECORDS).map(|lane_seq| append_request(&lane_seq.to_string())).collect();
        // Beside the outage a caller asks again after some time; the record keeps its log time.
        let now_us = wall_us();
        let record = |lane_seq: u64| LaneRecord {
            lane_seq,
            context: Context { now_us, ..context(Revision::logged(lane_seq)) },
            method: Method::STREAM_APPEND,
            request: &requests[lane_seq as usize],
        };
        let (mut cell, mut cuts, until) = (None::<Cell>, 0, Instant::now() + 3 * LONG);
        loop {
            assert!(Instant::now() < until, "it does not come to an end: {cell:?}");
            match nats.resume(&context(Revision::default()), &OWNER).await {
                Err(_) => {
                    rt::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                Ok(found) => cell = found,
            }
            let mut next = cell.map_or(0, |cell| cell.lane_seq) + 1;
            while next <= RECORDS {
                let batch: Vec<_> = (next..=RECORDS.min(next + 19)).map(record).collect();
                let mut outcomes = Vec::new();
                cuts += 1;
                let number = cuts;
                let cutter = async {
                    if number <= 12 {
                        rt::sleep(Duration::from_millis(number % 3)).await;
                        proxy.cut();
                    }
                };
                let apply = nats.apply(&OWNER, &batch, &mut outcomes);
                let (applied, ()) = futures_util::future::join(apply, cutter).await;
                if applied.is_err() {
                    break;
                }
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
                next += batch.len() as u64;
            }
            if next > RECORDS {
                break;
            }
        }
        let until = Instant::now() + LONG;
        while append(&nats, "last").await.is_err() {
            assert!(Instant::now() < until, "it does not recover");
            rt::sleep(Duration::from_millis(5)).await;
        }
        let fresh = Nats::start(config(server.address));
        assert!(
            count(&fresh).await > RECORDS,
            "one may have been appended twice: it was not logged"
        );
        assert_eq!(
            logged(&server, RECORDS),
            (1..=RECORDS).map(|one| one.to_string()).collect::<Vec<_>>()
        );
    });
}

/// The first records of the stream, as NATS's own client reads them.
fn logged(server: &OwnNats, records: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://{}", server.address);
    runtime.block_on(async move {
        let client = async_nats::connect(url).await.unwrap();
        let stream =
            async_nats::jetstream::new(client).get_stream("STREAM_orders_s").await.unwrap();
        let mut values = Vec::new();
        for number in 1..=records {
            let message = stream.get_raw_message(number).await.unwrap();
            values.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
        values
    })
}

#[test]
fn a_server_that_retires_sends_its_clients_to_the_next() {
    let servers = [OwnNats::start(""), OwnNats::start("")];
    let proxies = [Proxy::to(servers[0].address), Proxy::to(servers[1].address)];
    run(async move {
        let other = proxies[1].address;
        let others = vec![(other.ip().to_string(), other.port())];
        let nats = Nats::start(NatsConfig { others, ..config(proxies[0].address) });
        publish(&nats).await.unwrap();
        // It has lasted: the next one is made at once, and calls wait for it.
        rt::sleep(STABLE_MIN + Duration::from_millis(100)).await;
        let there = proxies.iter().position(|proxy| proxy.accepted() > 0).unwrap();
        assert_eq!(proxies[1 - there].accepted(), 0, "one is enough");
        servers[there].retire();
        let until = Instant::now() + LONG;
        while proxies[1 - there].accepted() == 0 {
            publish(&nats).await.expect("no call fails because of it");
            assert!(Instant::now() < until, "it stays where it is");
            rt::sleep(Duration::from_millis(1)).await;
        }
        publish(&nats).await.unwrap();
        assert_eq!(nats.facts().connects, 2);
    });
}

/// Publishes an event to whoever is there.
async fn publish(nats: &Nats) -> Result<(), Error> {
    let message = Some(Message { payload: "x".into(), ..Default::default() });
    let request = PublishRequest { namespace: "orders".to_owned(), topic: "t".to_owned(), message };
    let context = context(Revision::default());
    nats.unary(&context, Method::PUBSUB_PUBLISH, &request.encode_to_vec(), &mut Reply::default())
        .await
}

#[test]
fn a_key_opens_the_door_and_another_does_not() {
    let (key, other) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let server =
        OwnNats::start(&format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key()));
    run(async move {
        let login = |key: &nkeys::KeyPair| Some(Login::NKey(key.seed().unwrap()));
        let nats = Nats::start(NatsConfig { login: login(&key), ..config(server.address) });
        append(&nats, "one").await.unwrap();
        let nats = Nats::start(NatsConfig { login: login(&other), ..config(server.address) });
        let error = append(&nats, "two").await.unwrap_err();
        assert!(is_unknown(&error) && error.reason() == "BACKEND_CREDENTIALS_REFUSED", "{error:?}");
    });
}

/// A JWT: what it claims, signed.
fn jwt(claims: &str, signer: &nkeys::KeyPair) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    let header = BASE64.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", BASE64.encode(claims));
    let signature = BASE64.encode(signer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[test]
fn credentials_that_an_operator_has_given_open_the_door() {
    let (operator, user) = (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_user());
    let (account, system) = (nkeys::KeyPair::new_account(), nkeys::KeyPair::new_account());
    let claims = |subject: &nkeys::KeyPair, issuer: &nkeys::KeyPair, nats: &str| {
        let (subject, issuer) = (subject.public_key(), issuer.public_key());
        format!(
            r#"{{"jti":"x","iat":1700000000,"iss":"{issuer}","name":"n","sub":"{subject}","nats":{nats}}}"#
        )
    };
    let limits = r#"{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1,"mem_storage":-1,"disk_storage":-1}"#;
    let operator_jwt =
        jwt(&claims(&operator, &operator, r#"{"type":"operator","version":2}"#), &operator);
    let account_claims = format!(r#"{{"type":"account","version":2,"limits":{limits}}}"#);
    // The server's own account stores nothing.
    let system_claims = account_claims.replace(r#"_storage":-1"#, r#"_storage":0"#);
    let account_jwt = jwt(&claims(&account, &operator, &account_claims), &operator);
    let system_jwt = jwt(&claims(&system, &operator, &system_claims), &operator);
    let user_claims =
        r#"{"type":"user","version":2,"subs":-1,"data":-1,"payload":-1,"pub":{},"sub":{}}"#;
    let user_jwt = jwt(&claims(&user, &account, user_claims), &account);
    let server = OwnNats::start(&format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {0}\n\
         resolver_preload: {{ {0}: {system_jwt}, {1}: {account_jwt} }}",
        system.public_key(),
        account.public_key()
    ));
    let file = |seed: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    let (good, bad) =
        (file(&user.seed().unwrap()), file(&nkeys::KeyPair::new_user().seed().unwrap()));
    run(async move {
        let login = |file: String| Some(Login::Credentials(file));
        let nats = Nats::start(NatsConfig { login: login(good), ..config(server.address) });
        append(&nats, "one").await.unwrap();
        let nats = Nats::start(NatsConfig { login: login(bad), ..config(server.address) });
        let error = append(&nats, "two").await.unwrap_err();
        assert!(is_unknown(&error) && error.reason() == "BACKEND_CREDENTIALS_REFUSED", "{error:?}");
    });
}

#[test]
fn tls_may_begin_before_the_server_has_said_anything() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let files = format!(
        "cert_file: \"{}\", key_file: \"{}\"",
        path("cert.pem").display(),
        path("key.pem").display()
    );
    let first = OwnNats::start(&format!("tls {{ {files}, handshake_first: true }}"));
    let after = OwnNats::start(&format!("tls {{ {files} }}"));
    let tls = Tls::load(Roots::File(path("cert.pem")), "localhost", None).unwrap();
    run(async move {
        for (server, handshake_first) in [(first, true), (after, false)] {
            let tls = Some(Tls { handshake_first, ..tls.clone() });
            let config = NatsConfig { host: "localhost".to_owned(), tls, ..config(server.address) };
            let nats = Nats::start(config);
            append(&nats, "one").await.unwrap();
            assert_eq!(count(&nats).await, 1);
            // A page of records comes over the other connection, with the same TLS.
            assert_eq!(nats.facts().connects, 1);
        }
    });
}
