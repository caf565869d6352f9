//! What a namespace may use at a time, through the real binary: what is refused, what the refusal says, and that nobody else
//! feels it. Rates are so low, or their price so high, that nothing is earned while a test runs.

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use harness::tokens::{ISSUER, Signer, claims};
use harness::{Caller, PATIENCE, Refusal, Server, directory, run, serve, together};
use prism_io::client::StreamReply;
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prost::Message as _;

/// Connections of a test: with so many some land on either shard, and some calls cross to the home of their namespace.
const CONNECTIONS: usize = 8;

const CONFIG: &str = "wal: {segment_bytes: 20MiB}
namespaces:
  - {name: few, client_api: keyvalue, requests_per_second_max: 10/h}
  - {name: small, client_api: keyvalue, bytes_per_second_max: 1B/s}
  - {name: free, client_api: keyvalue}
  - {name: steps, client_api: transact, bytes_per_second_max: 1B/s}
  - {name: news, client_api: pubsub, subscriptions_max: 2}
";

fn start(path: &std::path::Path) -> Server {
    serve(path).shards(2).config(CONFIG).start()
}

async fn callers(address: SocketAddr, namespace: &str) -> Vec<Caller> {
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(Caller::to(address, namespace).await);
    }
    callers
}

/// The refusals of a read on each connection.
async fn refusals(callers: &[Caller]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for caller in callers {
        refusals.extend(caller.try_get(&[], "key").await.err());
    }
    refusals
}

fn check(refusal: &Refusal, reason: &str, namespace: &str, most: &str, longest: Duration) {
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, reason));
    assert_eq!(refusal.quotas, [(format!("namespace:{namespace}"), most.to_owned())]);
    let retry = refusal.retry.expect("it says when");
    assert!(retry > Duration::ZERO && retry <= longest, "{retry:?}");
    assert!(refusal.message.contains(most), "{}", refusal.message);
}

#[test]
fn requests_beyond_the_quota_are_refused_wherever_they_come_in() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let callers = callers(listen, "few").await;
        let first = refusals(&callers).await;
        assert_eq!(first.len(), CONNECTIONS - 1, "one request is what there is room for");
        // And again, where a shard may have learnt it.
        for refusal in first.iter().chain(&refusals(&callers).await) {
            check(refusal, "QUOTA_REQUESTS", "few", "10/h requests", Duration::from_secs(360));
        }
        // Nobody else feels it, not even on the same connections.
        for caller in &callers {
            let free = caller.of("free");
            free.set("key", b"value").await;
            assert_eq!(free.get("key").await.as_deref(), Some(&b"value"[..]));
        }
    });
    let page = server.admin_page("/metrics");
    let refused =
        format!("prism_refused_total{{reason=\"QUOTA_REQUESTS\"}} {}", 2 * CONNECTIONS - 1);
    assert!(page.contains(&refused), "{page}");
    server.stop();
}

#[test]
fn every_call_of_a_flood_is_refused_in_full_and_others_go_on_beside_it() {
    /// More than are answered at once.
    const FLOOD: usize = 200;
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let few = Caller::to(listen, "few").await;
        few.try_get(&[], "key").await.expect("the first has room");
        let free = few.of("free");
        free.set("key", b"value").await;
        // On the same connection, amid the flood, others are answered.
        let calls = together((0..=FLOOD).map(|number| {
            let (few, free) = (&few, &free);
            async move {
                if number == FLOOD {
                    assert_eq!(free.get("key").await.as_deref(), Some(&b"value"[..]));
                    return None;
                }
                Some(few.try_get(&[], "key").await.expect_err("nothing is earned meanwhile"))
            }
        }));
        let refusals: Vec<_> = calls.await.into_iter().flatten().collect();
        assert_eq!(refusals.len(), FLOOD);
        for refusal in &refusals {
            check(refusal, "QUOTA_REQUESTS", "few", "10/h requests", Duration::from_secs(360));
        }
    });
    let page = server.admin_page("/metrics");
    let refused = format!("prism_refused_total{{reason=\"QUOTA_REQUESTS\"}} {FLOOD}");
    assert!(page.contains(&refused), "{page}");
    server.assert_well();
    server.stop();
}

#[test]
fn bytes_beyond_the_quota_are_refused_and_a_large_message_is_paid_for_afterwards() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let callers = callers(listen, "small").await;
        callers[0].set("key", &[b'x'; 4000]).await;
        let refusals = refusals(&callers).await;
        assert_eq!(refusals.len(), CONNECTIONS);
        for refusal in &refusals {
            check(refusal, "QUOTA_BYTES", "small", "1B/s of requests", Duration::from_secs(4100));
            assert!(refusal.retry > Some(Duration::from_secs(3000)), "{refusal:?}");
        }
    });
    server.stop();
}

#[test]
fn steps_of_a_transaction_are_counted() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "steps").await;
        let path = Method::TRANSACT_TRANSACTION.path();
        let mut reply = caller.client.open(path, &[], PATIENCE).await.expect("opened");
        let send = |reply: &StreamReply, request| {
            let namespace = "steps".to_owned();
            let request = transact::TransactionRequest { namespace, id: 1, request: Some(request) };
            reply.send(&request.encode_to_vec()).expect("room");
        };
        send(&reply, Request::Begin(transact::Begin::default()));
        reply.next().await.expect("begun").expect("an answer");
        let put = transact::TransactionPut { key: "key".to_owned(), put: Some(Default::default()) };
        // At its home to begin is a request too, and elsewhere the first step is what has room.
        let mut refused = None;
        for _ in 0..3 {
            send(&reply, Request::Put(put.clone()));
            if let Err(failure) = reply.next().await {
                refused = Some(Refusal::from(failure));
                break;
            }
        }
        assert_eq!(refused.expect("no step is free").reason, "QUOTA_BYTES");
    });
    server.stop();
}

async fn subscribe(caller: &Caller) -> Result<StreamReply, Refusal> {
    let request = pubsub::SubscribeRequest {
        namespace: "news".to_owned(),
        topic: "t".to_owned(),
        ..Default::default()
    };
    let (path, message) = (Method::PUBSUB_SUBSCRIBE.path(), request.encode_to_vec());
    let mut reply = caller.client.stream(path, &[], &message, PATIENCE).await?;
    reply.next().await?;
    Ok(reply)
}

#[test]
fn one_subscription_too_many_is_refused_until_another_ends() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let callers = callers(listen, "news").await;
        let mut open = Vec::new();
        for caller in &callers {
            match subscribe(caller).await {
                Ok(reply) => open.push(reply),
                Err(refusal) => {
                    check(&refusal, "QUOTA_SUBSCRIPTIONS", "news", "2 subscriptions", PATIENCE)
                }
            }
        }
        assert_eq!(open.len(), 2);
        drop(open.pop());
        let again = async {
            while subscribe(&callers[0]).await.is_err() {
                prism_io::rt::yield_now().await;
            }
        };
        prism_io::rt::timeout(PATIENCE, again).await.expect("its place is free in time");
    });
    server.stop();
}

#[test]
fn the_platforms_quotas_hold_and_who_is_denied_uses_none_of_them() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let requests = "namespace: orders\nteam: payments\nclient_api: keyvalue\n---\n\
                    namespace: carts\nteam: web\nclient_api: keyvalue\n";
    let platform = format!(
        "tokens: [{{issuer: '{ISSUER}', audience: [prism], keys: {}}}]
identities:
  - {{id: checkout, issuer: '{ISSUER}', team: payments}}
  - {{id: shop, issuer: '{ISSUER}', team: web}}
quotas: {{requests: 5k, bytes: 10MB/s, subscriptions: 50}}
placement: [{{namespace: orders, quotas: {{requests: 10/h}}}}]
",
        path("keys.json").display()
    );
    std::fs::write(path("requests.yaml"), requests).unwrap();
    std::fs::write(path("platform.yaml"), platform).unwrap();
    std::fs::write(path("keys.json"), Signer::new(1).keys()).unwrap();
    let config = format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {}\nrequests: {}\n",
        path("platform.yaml").display(),
        path("requests.yaml").display()
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    let shown = server.admin_page("/config");
    for line in [
        "requests_per_second_max: 10/h",
        "requests_per_second_max: 5k/s",
        "bytes_per_second_max: 10MB/s",
        "subscriptions_max: 50",
    ] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    let listen = server.listen;
    run(async move {
        let (good, other) = (claims("checkout"), claims("shop"));
        let (good, other) = (Signer::new(1).token(&good), Signer::new(1).token(&other));
        let callers = callers(listen, "orders").await;
        for caller in &callers {
            let denied = caller.try_get(&[("authorization", other.as_bytes())], "key").await;
            assert_eq!(denied.expect_err("not its own").code, Code::PermissionDenied);
        }
        let mut served = 0;
        for caller in &callers {
            match caller.try_get(&[("authorization", good.as_bytes())], "key").await {
                Ok(_) => served += 1,
                Err(refusal) => {
                    let longest = Duration::from_secs(360);
                    check(&refusal, "QUOTA_REQUESTS", "orders", "10/h requests", longest);
                }
            }
        }
        assert_eq!(served, 1);
    });
    server.stop();
}
