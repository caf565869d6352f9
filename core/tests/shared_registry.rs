//! What is applied, shared by several servers through a PostgreSQL.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Caller, Refusal, Setup, directory, run, serve};
use prism_io::grpc::Code;
use prism_proto::prism::namespace::v1 as proto;
use prost::Message;
use servers::OwnPostgres;

/// Longer than anything here takes, on a machine that does other work as well.
const LONG: Duration = Duration::from_secs(120);

/// A server that shares what is applied.
fn sharing(folder: &Path, postgres: SocketAddr, database: &str) -> Setup {
    let (platform, password) = (folder.join("platform.yaml"), folder.join("postgres-password"));
    std::fs::write(&password, "prism\n").unwrap();
    let backend = format!(
        "{{name: db, type: postgres, address: \"{postgres}\", user: prism, database: {database}, password_file: \"{}\"}}",
        password.display()
    );
    // So that nothing of the data lies in the database that the test counts on.
    let text =
        format!("backends: [{backend}]\nregistry: {{backend: db}}\nallowed_backends: [memstore]\n");
    std::fs::write(&platform, text).unwrap();
    serve(folder)
        .shards(2)
        .config(&format!("wal: {{segment_bytes: 20MiB}}\nplatform: {}\n", platform.display()))
}

fn ask<Answer: Message + Default + 'static>(
    address: SocketAddr,
    method: &'static str,
    request: &impl Message,
) -> Result<Answer, Box<Refusal>> {
    let request = request.encode_to_vec();
    run(async move {
        let caller = Caller::to(address, "").await;
        let path = format!("/prism.namespace.v1.NamespaceService/{method}");
        let reply = caller.client.unary(&path, &[], &request, LONG).await;
        let reply = reply.map_err(|failure| Box::new(Refusal::from(failure)))?;
        Ok(Answer::decode(reply.message).expect("a valid answer"))
    })
}

fn apply(address: SocketAddr, name: &str, needs: &str) -> Result<(), Box<Refusal>> {
    let document = format!("namespace: {name}\nteam: web\nclient_api: keyvalue\nneeds: {needs}\n");
    let request = proto::ApplyRequest { document, ..Default::default() };
    ask::<proto::ApplyResponse>(address, "Apply", &request).map(drop)
}

fn delete(address: SocketAddr, name: &str, data: &str) -> Result<(), Box<Refusal>> {
    let (name, data) = (name.to_owned(), data.to_owned());
    let request =
        proto::DeleteRequest { namespace: name.clone(), confirm: name, delete_data_of: data };
    ask::<proto::DeleteResponse>(address, "Delete", &request).map(drop)
}

/// Names and generations.
fn listed(address: SocketAddr) -> BTreeSet<(String, u64)> {
    let request = proto::ListRequest { page_size: 1000, ..Default::default() };
    let list = ask::<proto::ListResponse>(address, "List", &request).expect("listed");
    list.namespaces.into_iter().map(|of| (of.name, of.generation)).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn set(address: SocketAddr, namespace: &'static str, key: &'static str) -> Result<(), String> {
    run(async move {
        let caller = Caller::to(address, namespace).await;
        let stored = caller.try_set(&[], &caller.set_request(key, b"value")).await;
        stored.map(drop).map_err(|refusal| refusal.reason)
    })
}

fn get(address: SocketAddr, namespace: &'static str, key: &'static str) -> Option<Vec<u8>> {
    run(async move { Caller::to(address, namespace).await.get(key).await })
}

const LOGGED: &str = "{durability: eventual}";

#[test]
fn what_is_applied_to_one_server_is_served_by_all() {
    const DATABASE: &str = "prism_shared_registry";
    let postgres = servers::empty_database(DATABASE);
    let folders = [directory(), directory()];
    let setups = folders.each_ref().map(|folder| sharing(folder.path(), postgres, DATABASE));
    let [one, other] = setups.each_ref().map(Setup::start);
    apply(one.listen, "orders", LOGGED).expect("applied");
    wait_until("the other hears of it", || listed(other.listen) == listed(one.listen));
    assert_eq!(set(other.listen, "orders", "key"), Ok(()));
    apply(other.listen, "orders", "{durability: strong}").expect("changed");
    let changed = BTreeSet::from([("orders".to_owned(), 2)]);
    wait_until("it hears of the change", || listed(one.listen) == changed);

    // Many at once, on both: one after the other, none lost.
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let address = if number % 2 == 0 { one.listen } else { other.listen };
            std::thread::spawn(move || {
                for count in 0..3 {
                    let name = format!("n-{number}-{count}");
                    let until = Instant::now() + LONG;
                    while let Err(refusal) = apply(address, &name, LOGGED) {
                        assert_eq!(refusal.reason, "PLAN_CHANGED", "{}", refusal.message);
                        assert_eq!(refusal.code, Code::Aborted);
                        assert!(Instant::now() < until, "somebody else is always quicker");
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("applied"));
    wait_until("both have all", || {
        listed(one.listen).len() == 19 && listed(one.listen) == listed(other.listen)
    });

    // Each has a store of its own, and nobody can ask all of them whether they hold data.
    let refusal = delete(one.listen, "orders", "").expect_err("others may hold data");
    assert_eq!(refusal.reason, "NAMESPACE_HOLDS_DATA");
    delete(one.listen, "orders", "orders").expect("told by name");
    wait_until("it ends there too", || {
        set(other.listen, "orders", "key") == Err("NAMESPACE_UNKNOWN".to_owned())
    });
    apply(one.listen, "orders", LOGGED).expect("another one");
    wait_until("it begins there", || set(other.listen, "orders", "new") == Ok(()));
    assert_eq!(get(other.listen, "orders", "key"), None, "it began empty");

    // A server that was away comes back to what is applied now.
    other.stop();
    delete(one.listen, "n-0-0", "n-0-0").expect("deleted");
    apply(one.listen, "mail", LOGGED).expect("applied");
    let other = setups[1].start();
    assert_eq!(listed(other.listen), listed(one.listen), "before it says that it is ready");
    assert_eq!(get(other.listen, "orders", "new").as_deref(), Some(&b"value"[..]));
    one.stop();
    other.stop();
}

#[test]
fn a_registry_that_is_away_leaves_in_force_what_was_known_last() {
    let mut postgres = OwnPostgres::start(&[]);
    let folder = directory();
    let setup = sharing(folder.path(), postgres.address, "postgres");
    let server = setup.start();
    apply(server.listen, "orders", LOGGED).expect("applied");
    assert_eq!(set(server.listen, "orders", "key"), Ok(()));
    postgres.kill();
    let refusal = apply(server.listen, "mail", LOGGED).expect_err("nobody else could know");
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::Unavailable, "REGISTRY_UNREACHABLE"),
        "{}",
        refusal.message
    );
    assert_eq!(set(server.listen, "orders", "key"), Ok(()), "it goes on");
    server.kill();
    let server = setup.start();
    assert_eq!(get(server.listen, "orders", "key").as_deref(), Some(&b"value"[..]));
    assert_eq!(
        delete(server.listen, "orders", "orders").expect_err("away").code,
        Code::Unavailable
    );
    assert_eq!(set(server.listen, "orders", "key"), Ok(()), "it goes on");
    postgres.restart();
    wait_until("it is back", || apply(server.listen, "mail", LOGGED).is_ok());
    server.stop();
}

#[test]
fn servers_that_know_different_things_do_not_take_over_each_other() {
    const DATABASE: &str = "prism_shared_registry_two";
    let postgres = servers::empty_database(DATABASE);
    let (first, second) = (directory(), directory());
    // One has namespaces of its own, from a time when it shared nothing.
    let platform = second.path().join("platform.yaml");
    std::fs::write(&platform, "allowed_backends: [memstore]\n").unwrap();
    let config = format!("wal: {{segment_bytes: 20MiB}}\nplatform: {}\n", platform.display());
    let alone = serve(second.path()).shards(2).config(&config).start();
    apply(alone.listen, "mine", LOGGED).expect("applied");
    alone.stop();
    let one = sharing(first.path(), postgres, DATABASE).start();
    apply(one.listen, "orders", LOGGED).expect("applied");
    let other = sharing(second.path(), postgres, DATABASE).start();
    let refusal = apply(other.listen, "mail", LOGGED).expect_err("it has its own");
    assert_eq!(refusal.reason, "REGISTRY_DIFFERS", "{}", refusal.message);
    assert_eq!(listed(other.listen), BTreeSet::from([("mine".to_owned(), 1)]), "it goes on");
    assert!(other.metric("prism_config_reloads_total") >= 1.0);
    one.stop();
    other.stop();
}
