//! The generator against the server that does nothing: what is sent is counted, and nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use prism_loadtest::kv::workload::Recipe;
use prism_loadtest::kv::{self, Beside, Load};
use prism_loadtest::null_server;
use prism_loadtest::random::Distribution;

fn null_server() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || null_server::serve(socket, 128).unwrap());
    address
}

fn load(endpoint: SocketAddr) -> Load {
    Load {
        endpoint,
        tls: None,
        recipe: Recipe {
            namespace: "keyvalue".into(),
            stream: None,
            value_bytes: 128,
            mix: "1:1".parse().unwrap(),
            keys: 100,
            distribution: Distribution::Uniform,
            seed: 1,
        },
        connections: 4,
        in_flight: 8,
        rate: None,
        beside: None,
        durability: None,
        threads: vec![None, None],
        preload: true,
        warmup: Duration::ZERO,
        duration: Duration::from_secs(60),
        requests: Some(10_001),
        timeout: Duration::from_secs(60),
        server_id: Some(std::process::id()),
    }
}

#[test]
fn a_closed_loop_sends_exactly_what_it_was_told() {
    let report = kv::run(&load(null_server())).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.requests, report.latency.count, report.not_found), (10_001, 10_001, 0));
    assert!(report.reads.count > 4_000 && report.writes.count > 4_000, "{report}");
    assert!(report.server_cpu_us.is_some_and(|cpu| cpu > 0.0));
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let wanted = Load { rate: Some(2_000.0), requests: Some(500), ..load(null_server()) };
    let report = kv::run(&wanted).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.requests, report.latency.count), (500, 500));
    // 500 requests at 2,000 a second cannot be over sooner; how much later is the machine's affair.
    assert!(report.seconds >= 0.24, "{report}");
}

#[test]
fn what_is_asked_beside_is_counted_by_itself() {
    let beside = Some(Beside { namespace: "other".into(), rate: 1_000.0 });
    let wanted = Load { rate: Some(1_000.0), beside, requests: Some(500), ..load(null_server()) };
    let report = kv::run(&wanted).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.requests, report.latency.count), (500, 500));
    let statuses: Vec<_> = report.beside.keys().map(String::as_str).collect();
    assert_eq!(statuses, ["OK"], "{report}");
    assert!(report.beside["OK"] <= 1_000 * 60, "{report}");
}

#[test]
fn values_larger_than_every_window_go_through() {
    let mut large = load(null_server());
    large.recipe.value_bytes = 2 << 20;
    large.recipe.mix = "0:1".parse().unwrap();
    // More at once would be more than the server gathers on one connection.
    let wanted = Load { requests: Some(40), in_flight: 4, preload: false, ..large };
    let report = kv::run(&wanted).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.requests, 40);
}

#[test]
fn nobody_there_is_an_error_not_a_report() {
    // No server of these tests gets this port: free ones are far above.
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let error = kv::run(&load(address)).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
