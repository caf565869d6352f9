//! At the bounds: memory, connections, open files, time to drain. What is too much is refused; the rest goes on.

mod harness;

use std::net::TcpStream;

use harness::frames::{End, Raw};
use harness::{Caller, Neighbour, Server, directory, run, serve};
use prism_io::grpc::Code;
use prism_io::h2::frame::kind;

const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";

/// Writes 100 KiB under ever more keys until that is refused with `reason`; how many there was room for.
fn fill(server: &Server, reason: &'static str) -> u32 {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for number in 0..2000_u32 {
            let request = caller.set_request(&format!("key-{number}"), &[number as u8; 100 << 10]);
            if let Err(refusal) = caller.try_set(&[], &request).await {
                let told = (refusal.code, refusal.reason.as_str());
                assert_eq!(told, (Code::ResourceExhausted, reason), "{refusal:?}");
                return number;
            }
        }
        panic!("there is no bound")
    })
}

fn holds(server: &Server, keys: u32) {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for number in 0..keys {
            let value = caller.get(&format!("key-{number}")).await;
            assert_eq!(value.as_deref(), Some(&[number as u8; 100 << 10][..]), "key-{number}");
        }
    });
}

#[test]
fn full_memory_refuses_writes_and_takes_them_again_when_there_is_room() {
    let directory = directory();
    let setup = |bytes: &str| {
        let config = format!("wal: {{segment_bytes: 20MiB}}\nmemory: {{bytes_max: {bytes}}}\n");
        serve(directory.path()).config(&config)
    };
    let server = setup("16MiB").start();
    let keys = fill(&server, "MEMORY_FULL");
    assert!((100..164).contains(&keys), "{keys} values of 100 KiB in 16 MiB");
    holds(&server, keys);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        caller.delete(&format!("key-{}", keys - 1)).await;
        caller.set("another", &[1; 80 << 10]).await;
    });
    server.assert_well();
    server.kill();

    // What was acknowledged is there after a restart, also where less memory is allowed then.
    for bytes in ["16MiB", "8MiB"] {
        let server = setup(bytes).start();
        holds(&server, keys - 1);
        server.kill();
    }
}

#[test]
fn too_many_connections_are_refused_and_the_others_go_on() {
    let directory = directory();
    let config = "wal: {segment_bytes: 20MiB}\nlimits: {connections_max: 10}\n\
                  transport: {connections_per_peer_max: 10}\n";
    let server = serve(directory.path()).config(config).start();
    let neighbour = Neighbour::of(&server);
    let admitted: Vec<Raw> = (0..9).map(|_| Raw::open(&server)).collect();
    for _ in 0..50 {
        let mut refused = Raw::bare(&server);
        assert_eq!(refused.end(), End::Closed);
    }
    server.wait_refused("connections", 49.0);
    drop(admitted);
    server.wait_for_metric("prism_connections", |open| open <= 1.0);
    drop(Raw::open(&server));
    neighbour.leave();
    server.stop();
}

#[test]
fn one_peer_cannot_take_every_connection() {
    let directory = directory();
    let config = "wal: {segment_bytes: 20MiB}\ntransport: {connections_per_peer_max: 5}\n";
    let server = serve(directory.path()).config(config).start();
    let neighbour = Neighbour::of(&server);
    let admitted: Vec<Raw> = (0..4).map(|_| Raw::open(&server)).collect();
    for _ in 0..20 {
        assert_eq!(Raw::bare(&server).end(), End::Closed);
    }
    server.wait_refused("connections_per_peer", 19.0);
    drop(admitted);
    server.wait_for_metric("prism_connections", |open| open <= 1.0);
    drop(Raw::open(&server));
    neighbour.leave();
    server.stop();
}

#[test]
fn when_open_files_run_out_the_log_goes_on() {
    let directory = directory();
    let server = serve(directory.path()).open_files_max(100).start();
    let neighbour = Neighbour::of(&server);
    let many: Vec<_> = (0..200).map(|_| TcpStream::connect(server.listen).unwrap()).collect();
    server.wait_for_metric("prism_connections", |open| open >= 20.0);
    neighbour.wait_rounds(100);
    drop(many);
    // Until the server has seen them go, one more is one too many.
    server.wait_for_metric("prism_connections", |open| open <= 2.0);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        caller.set("after", b"the crowd").await;
    });
    neighbour.leave();
    server.assert_well();
    server.stop();
}

#[test]
fn calls_that_do_not_end_are_left_behind_when_the_time_to_drain_is_up() {
    let directory = directory();
    let config = "wal: {segment_bytes: 20MiB}\nlimits: {drain_timeout: 1s}\n";
    let server = serve(directory.path()).config(config).start();
    let listen = server.listen;
    run(async move {
        Caller::to(listen, "keyvalue").await.set("key", b"value").await;
    });
    // A call of which only the beginning came.
    let mut raw = Raw::open(&server);
    raw.head(1, SET, &[], 0);
    raw.frame(kind::DATA, 0, 1, &[0, 0, 0, 1, 0, 1, 2, 3]);
    server.wait_for_metric("prism_streams", |streams| streams >= 1.0);
    server.terminate();
    let (code, errors) = server.wait_end();
    assert_eq!(code, 75, "{errors}");
    assert!(errors.contains("what is logged is safe"), "{errors}");

    let server = serve(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        assert!(caller.get("key").await.is_some());
    });
    server.stop();
}
