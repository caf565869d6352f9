//! Namespaces that are planned from requests and a platform, through the real server.

mod harness;

use std::path::Path;

use harness::{Caller, Setup, directory, run, serve};
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::r#type::v1::Message;

const PLATFORM: &str = "teams: [{name: payments}, {name: web}]
limits: {write_rps: 1k}
quotas: {bytes_in_flight: 8MiB, backlog: 5000}
placement: [{namespace: sessions, shard: 1}]
";
const REQUESTS: &str = "namespace: orders
team: payments
client_api: queue
needs: {durability: strong, max_message_size: 64KiB, write_rps: 200}
---
namespace: sessions
team: web
client_api: keyvalue
needs: {ttl: 1h}
";

/// A server that takes its namespaces from the files below `path`.
fn planned(path: &Path, platform: &str, requests: &str) -> Setup {
    let folder = path.join("namespaces");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(path.join("platform.yaml"), platform).unwrap();
    std::fs::write(folder.join("all.yaml"), requests).unwrap();
    let config = format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {}\nrequests: {}\n",
        path.join("platform.yaml").display(),
        folder.display()
    );
    serve(path).shards(2).config(&config)
}

#[test]
fn what_a_plan_says_is_what_is_served() {
    let path = directory();
    let server = planned(path.path(), PLATFORM, REQUESTS).start();
    let config = server.admin_page("/config");
    let (orders, sessions) = config.split_once("- name: sessions").expect("both are there");
    for says in [
        "- name: orders",
        "client_api: queue",
        "durability: strong",
        "max_message_size: 64KiB",
        "in_flight_bytes_max: 8MiB",
        "backlog_records_max: 5000",
    ] {
        assert!(orders.contains(says), "{says} is not in {config}");
    }
    assert!(sessions.contains("durability: memory"), "{config}");
    let registry = std::fs::read_to_string(path.path().join("data/registry.json")).unwrap();
    let registry: serde_json::Value = serde_json::from_str(&registry).unwrap();
    let placed = registry["namespaces"].as_array().unwrap();
    let sessions = placed.iter().find(|placed| placed["name"] == "sessions").unwrap();
    assert_eq!(sessions["home"], 1, "the platform pins it");

    let address = server.listen;
    run(async move {
        let caller = Caller::to(address, "orders").await;
        let request = queue::SendRequest {
            namespace: "orders".to_owned(),
            queue: "q".to_owned(),
            message: Some(Message { payload: "hello".into(), ..Default::default() }),
        };
        let sent = caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &[], &request).await;
        let (_, trailers) = sent.expect("sent");
        assert_eq!(harness::calls::trailer(&trailers, "prism-durability"), Some("strong"));
    });
    server.stop();
}

#[test]
fn one_request_that_is_refused_and_nothing_is_served() {
    let path = directory();
    let refused = |platform: &str, requests: &str, says: &str| {
        let (code, errors) = planned(path.path(), platform, requests).refused();
        assert_eq!(code, 78, "{errors}");
        assert!(errors.contains(says), "{says} is not in {errors}");
    };
    let greedy = REQUESTS.replace("write_rps: 200", "write_rps: 2k");
    refused(
        PLATFORM,
        &greedy,
        "all.yaml:4:65: LIMIT_WRITES: write_rps 2k/s is more than team `payments` may ask for, 1k/s",
    );
    let lasting = "namespace: ledger\nteam: web\nclient_api: graph\n";
    refused(
        PLATFORM,
        lasting,
        "all.yaml:3:13: NOT_IN_THIS_BUILD: this build of Prism does not serve `graph` yet",
    );
    refused("taems: []\n", REQUESTS, "platform.yaml:1:1: unknown key `taems`");
    refused(PLATFORM, "namespace: a\n", "all.yaml:1:1: this document has no `team`");
    let large = REQUESTS.replace("64KiB", "8MiB");
    refused(
        PLATFORM,
        &large,
        "all.yaml:1:12: SERVER_LIMIT: messages of 8MiB are more than this server takes, 4MiB",
    );
}

/// From the folder of the workspace, as its first line says.
#[test]
fn the_example_is_served() {
    let path = directory();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let example = root.join("examples/planned");
    let config = std::fs::read_to_string(example.join("prism.yaml")).unwrap();
    let config = config.replace(": examples/", &format!(": {}/examples/", root.display()));
    let server =
        serve(path.path()).config(&format!("wal: {{segment_bytes: 20MiB}}\n{config}")).start();
    let served = server.admin_page("/config");
    for says in
        ["- name: orders", "durability: strong", "- name: carts", "in_flight_bytes_max: 32MiB"]
    {
        assert!(served.contains(says), "{says} is not in {served}");
    }
    server.stop();
}

/// Sends one message to the queue `q` of a namespace: the level reached, or the code that refused it.
fn sent(address: std::net::SocketAddr, namespace: &'static str) -> Result<String, String> {
    sent_of(address, namespace, 5)
}

/// The same with a message of so many bytes.
fn sent_of(
    address: std::net::SocketAddr,
    namespace: &'static str,
    bytes: usize,
) -> Result<String, String> {
    run(async move {
        let caller = Caller::to(address, namespace).await;
        let request = queue::SendRequest {
            namespace: namespace.to_owned(),
            queue: "q".to_owned(),
            message: Some(Message { payload: vec![b'x'; bytes].into(), ..Default::default() }),
        };
        let sent = caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &[], &request).await;
        let (_, trailers) = sent.map_err(|error| format!("{error:?}"))?;
        Ok(harness::calls::trailer(&trailers, "prism-durability").unwrap_or_default().to_owned())
    })
}

#[test]
fn a_namespace_comes_without_a_restart_and_stays_over_one() {
    let path = directory();
    let setup = planned(path.path(), PLATFORM, REQUESTS);
    let server = setup.start();
    let folder = path.path().join("namespaces");
    let refusal = sent(server.listen, "mail").expect_err("nobody asked for it");
    assert!(refusal.contains("NAMESPACE_UNKNOWN"), "{refusal}");

    // Homes of names differ, and a connection lands on either shard: those of both are found by both.
    let mut asked = String::new();
    for name in ["mail", "bills", "parcels", "audits"] {
        asked += &format!("---\nnamespace: {name}\nteam: payments\nclient_api: queue\n");
    }
    std::fs::write(folder.join("more.yaml"), &asked).unwrap();
    server.signal("HUP");
    server.wait_says("serving also ");
    for name in ["mail", "bills", "parcels", "audits", "orders"] {
        let level = if name == "orders" { "strong" } else { "wal" };
        assert_eq!(sent(server.listen, name).as_deref(), Ok(level), "{name}");
    }
    assert!(server.admin_page("/config").contains("- name: mail"));
    let metrics = server.admin_page("/metrics");
    assert!(metrics.contains("prism_config_reloads_total{outcome=\"applied\"} 1"), "{metrics}");
    assert!(
        metrics.contains(
            "prism_requests_total{namespace=\"mail\",api=\"queue\",status=\"success\"} 1"
        ),
        "{metrics}"
    );
    let registry = std::fs::read(path.path().join("data/registry.json")).unwrap();

    // The same files again change nothing.
    server.signal("HUP");
    server.wait_says("the requests ask for nothing new");
    assert_eq!(std::fs::read(path.path().join("data/registry.json")).unwrap(), registry);

    server.kill();
    let server = setup.start();
    run({
        let address = server.listen;
        async move {
            let caller = Caller::to(address, "mail").await;
            let request = queue::ReceiveRequest {
                namespace: "mail".to_owned(),
                queue: "q".to_owned(),
                max_messages: 1,
                ..Default::default()
            };
            let got = caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &request);
            let (got, _) = got.await.expect("received");
            assert_eq!(got.deliveries.len(), 1, "it outlived the process");
        }
    });
    server.stop();
}

#[test]
fn a_reload_that_is_refused_changes_nothing_and_says_why() {
    let path = directory();
    let server = planned(path.path(), PLATFORM, REQUESTS).start();
    let file = path.path().join("namespaces/all.yaml");
    let mail = "---\nnamespace: mail\nteam: payments\nclient_api: queue\n";
    let cases = [
        (format!("{REQUESTS}{mail}taem: web\n"), "all.yaml:14:1: unknown key `taem`"),
        (format!("{REQUESTS}{mail}{mail}"), "all.yaml:15:12: "),
        (format!("{REQUESTS}{mail}needs: {{write_rps: 2k}}\n"), "all.yaml:14:20: LIMIT_WRITES"),
        (
            REQUESTS.replace("client_api: queue", "client_api: pubsub") + mail,
            "namespace `orders` is asked for with another API or backend",
        ),
        (
            REQUESTS.replace("64KiB", "32KiB") + mail,
            "namespace `orders` is a queue, and its messages are asked for with another size",
        ),
    ];
    for (number, (requests, says)) in cases.iter().enumerate() {
        std::fs::write(&file, requests).unwrap();
        server.signal("HUP");
        server.wait_says(says);
        let count = format!("prism_config_reloads_total{{outcome=\"refused\"}} {}", number + 1);
        while !server.admin_page("/metrics").contains(&count) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let refusal = sent(server.listen, "mail").expect_err("it was refused");
        assert!(refusal.contains("NAMESPACE_UNKNOWN"), "{refusal}");
        assert_eq!(sent(server.listen, "orders").as_deref(), Ok("strong"));
    }
    std::fs::write(&file, format!("{REQUESTS}{mail}")).unwrap();
    server.signal("HUP");
    server.wait_says("serving also mail");
    assert_eq!(sent(server.listen, "mail").as_deref(), Ok("wal"));
    server.stop();
}

#[test]
fn terms_change_and_namespaces_end_and_come_back_without_a_restart() {
    let path = directory();
    let setup = planned(path.path(), PLATFORM, REQUESTS);
    let server = setup.start();
    let file = path.path().join("namespaces/all.yaml");
    let reloads = |count: usize| {
        server.signal("HUP");
        let applied = format!("prism_config_reloads_total{{outcome=\"applied\"}} {count}");
        let end = std::time::Instant::now() + harness::PATIENCE;
        while !server.admin_page("/metrics").contains(&applied) {
            assert!(std::time::Instant::now() < end, "{}", server.admin_page("/metrics"));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    assert_eq!(sent(server.listen, "orders").as_deref(), Ok("strong"));
    std::fs::write(&file, REQUESTS.replace("strong", "eventual")).unwrap();
    reloads(1);
    assert_eq!(sent(server.listen, "orders").as_deref(), Ok("wal"));

    // A quota of the platform: one message is more than a second's worth, and paid for in an hour; then as many as come.
    let narrow = PLATFORM.replace("quotas: {", "quotas: {bytes: 1B/s, ");
    std::fs::write(path.path().join("platform.yaml"), narrow).unwrap();
    reloads(2);
    let first = sent_of(server.listen, "orders", 4000);
    assert_eq!(first.as_deref(), Ok("wal"), "there is room for the first");
    let refusal = sent(server.listen, "orders").expect_err("it is not paid for yet");
    assert!(refusal.contains("QUOTA_BYTES"), "{refusal}");
    std::fs::write(path.path().join("platform.yaml"), PLATFORM).unwrap();
    reloads(3);
    assert_eq!(sent(server.listen, "orders").as_deref(), Ok("wal"), "at once");

    // Not asked for any more, and again: the data is still there.
    let sessions = REQUESTS.split("---\n").nth(1).unwrap();
    std::fs::write(&file, sessions).unwrap();
    reloads(4);
    let refusal = sent(server.listen, "orders").expect_err("it has ended");
    assert!(refusal.contains("NAMESPACE_UNKNOWN"), "{refusal}");
    std::fs::write(&file, REQUESTS).unwrap();
    reloads(5);
    assert_eq!(sent(server.listen, "orders").as_deref(), Ok("strong"));
    server.kill();
    let server = setup.start();
    run({
        let address = server.listen;
        async move {
            let caller = Caller::to(address, "orders").await;
            let request = queue::ReceiveRequest {
                namespace: "orders".to_owned(),
                queue: "q".to_owned(),
                max_messages: 10,
                ..Default::default()
            };
            let got = caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &request);
            assert_eq!(got.await.expect("received").0.deliveries.len(), 5, "all of them");
        }
    });
    server.stop();
}
