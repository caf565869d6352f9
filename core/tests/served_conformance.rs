//! The conformance suite through the whole proxy: over gRPC, over the mesh, at both levels of durability, and on
//! outside backends.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::time::Duration;

use bytes::Bytes;
use harness::{Caller, PATIENCE, Refusal, Server, directory, run, serve, together};
use prism_adapters::Backend as _;
use prism_adapters::conformance::{self, Client, Failure, Versions};
use prism_adapters::kafka::Kafka;
use prism_adapters::kafka_postgres::KafkaPostgres;
use prism_adapters::memory::Memstore;
use prism_adapters::nats::Nats;
use prism_adapters::postgres::Postgres;
use prism_adapters::redis::{Redis, RedisCluster, TopicLog};
use prism_io::rt;
use prism_proto::catalogue::{Interfaces, Method, Model};
use servers::{OwnCluster, OwnNats, OwnRedis};

/// A namespace as its callers see it, what its versions promise, and what it offers.
struct Served(Caller, Versions, Interfaces);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let Refusal { code, reason, message, fields, .. } = refusal;
        Failure { code: code.number(), reason, message, fields }
    }
}

impl Client for Served {
    fn offers(&self) -> Interfaces {
        self.2
    }

    fn namespace(&self) -> &str {
        &self.0.namespace
    }

    fn versions(&self) -> Versions {
        self.1
    }

    fn is_time_simulated(&self) -> bool {
        false
    }

    async fn unary(&self, method: Method, request: Vec<u8>) -> Result<Bytes, Failure> {
        Ok(self.0.raw(method.path(), &[], &request).await?.0)
    }

    async fn stream(
        &self,
        method: Method,
        request: Vec<u8>,
        messages_max: usize,
    ) -> Result<Vec<Bytes>, Failure> {
        // It may read a whole namespace, from a disk that others use too.
        let begun = self.0.client.stream(method.path(), &[], &request, 4 * PATIENCE).await;
        let mut reply = begun.map_err(Refusal::from)?;
        let mut messages = Vec::new();
        while messages.len() < messages_max {
            match reply.next().await.map_err(Refusal::from)? {
                Some(message) => messages.push(message),
                None => break,
            }
        }
        Ok(messages)
    }

    type Opened<'a> = Open;

    async fn open(&self, method: Method, request: Vec<u8>) -> Result<Open, Failure> {
        let begun = self.0.client.stream(method.path(), &[], &request, PATIENCE).await;
        Ok(Open(begun.map_err(Refusal::from)?))
    }

    async fn advance(&self, by: Duration) {
        // The time itself is what the case is about.
        rt::sleep(by).await;
    }
}

/// A stream that stays open.
struct Open(prism_io::client::StreamReply);

impl conformance::Opened for Open {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        Ok(self.0.next().await.map_err(Refusal::from)?)
    }
}

/// Runs the suite on namespaces with all of KeyValue, side by side over one connection.
fn conforms(server: &Server, namespaces: Vec<&'static str>, versions: Versions) {
    let offers = Memstore::SERVES.intersection(Model::KeyValue.interfaces());
    conforms_to(server, namespaces, versions, offers, 60);
}

/// The same where so much is offered; more than so many cases apply.
fn conforms_to(
    server: &Server,
    namespaces: Vec<&'static str>,
    versions: Versions,
    offers: Interfaces,
    cases: usize,
) {
    let listen = server.listen;
    let suites = run(async move {
        let caller = Caller::to(listen, "").await;
        together(namespaces.into_iter().map(|namespace| {
            let served = Served(caller.of(namespace), versions, offers);
            async move {
                let ran = conformance::run(&served).await;
                conformance::random_sequence(&served, 1, 300).await;
                ran
            }
        }))
        .await
    });
    for ran in suites {
        assert!(ran.len() > cases, "{ran:?}");
        let refused = ran.iter().any(|name| name.starts_with("offered::"));
        assert!(refused, "what is not offered is refused: {ran:?}");
    }
    server.assert_well();
}

#[test]
fn one_shard_conforms_at_both_levels() {
    let directory = directory();
    let namespaces = [("volatile", "memory"), ("durable", "wal")];
    let server = serve(directory.path()).namespaces(&namespaces).start();
    conforms(&server, vec!["volatile", "durable"], Versions::Revision);
    assert_eq!(server.metric("prism_mesh_sent_total"), 0.0);
    server.stop();
}

#[test]
fn two_shards_conform_at_both_levels_also_across_the_mesh() {
    const NAMES: [&str; 8] = ["m-a", "m-b", "m-c", "m-d", "w-a", "w-b", "w-c", "w-d"];
    let directory = directory();
    let level = |name: &str| if name.starts_with('m') { "memory" } else { "wal" };
    let namespaces = NAMES.map(|name| (name, level(name)));
    let server = serve(directory.path()).shards(2).namespaces(&namespaces).start();
    // One of each level on either shard: whichever shard takes the connection, two of them are at the other.
    let home = |wanted: char, shard: u64| {
        let text = std::fs::read(server.data.join("registry.json")).unwrap();
        let registry: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let homes = registry["namespaces"].as_array().unwrap();
        let at = |name: &str| homes.iter().any(|one| one["name"] == name && one["home"] == shard);
        *NAMES
            .iter()
            .find(|name| name.starts_with(wanted) && at(name))
            .expect("a name on each shard")
    };
    let homes = vec![home('m', 0), home('m', 1), home('w', 0), home('w', 1)];
    conforms(&server, homes, Versions::Revision);
    assert!(server.metric("prism_mesh_sent_total") > 0.0, "calls cross the mesh");
    server.stop();
}

/// A namespace on a real Redis, beside one in the embedded store, called through either shard.
#[test]
fn a_namespace_on_redis_conforms_and_its_data_is_plain_there() {
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = format!(
        "backends:\n  - {{name: cache, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-redis, client_api: keyvalue, backend: cache, durability: memory}}\n  \
         - {{name: strong, client_api: keyvalue, backend: cache, durability: strong}}\n  \
         - {{name: embedded, client_api: keyvalue}}\n",
        redis.address
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    conforms(&server, vec!["on-redis", "strong"], Versions::Digest);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "on-redis").await;
        caller.set("greeting", b"hello").await;
    });
    assert_eq!(servers::redis_cli(redis.address, 0, &["GET", "on-redis:greeting"]), "hello");
    server.stop();
}

/// Keys, queues and topics on a real Redis Cluster, called through either shard.
#[test]
fn namespaces_on_a_redis_cluster_conform_also_across_the_mesh() {
    // Nodes that are only slow are not to be taken for dead.
    let cluster = OwnCluster::start(3, 0, 60_000);
    let directory = directory();
    let backend = format!(
        "{{name: log, type: redis, addresses: [\"{}\", \"{}\"]}}",
        cluster.nodes[0].address, cluster.nodes[1].address
    );
    let config = format!(
        "backends:\n  - {backend}\nnamespaces:\n  \
         - {{name: one, client_api: keyvalue, backend: log, durability: memory}}\n  \
         - {{name: two, client_api: keyvalue, backend: log, durability: memory}}\n  \
         - {{name: strong, client_api: keyvalue, backend: log, durability: strong}}\n"
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    let keys = RedisCluster::SERVES.intersection(Model::KeyValue.interfaces());
    conforms_to(&server, vec!["one", "two", "strong"], Versions::Digest, keys, 20);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "one").await;
        caller.set("greeting", b"hello").await;
    });
    let (_, home) = cluster.place_of("one:greeting");
    assert_eq!(cluster.nodes[home].cli(&["GET", "one:greeting"]), "hello");
    server.stop();
    let models = ["memory", "wal", "strong"];
    let models = models.map(|level| [(Model::Queue, level), (Model::PubSub, level)]).concat();
    messages_conform(1, "cluster", &backend, &models, RedisCluster::SERVES);
}

/// A Redis that is away costs its own namespace an error in time, and the others nothing.
#[test]
fn a_redis_that_is_away_is_named_and_comes_back() {
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = format!(
        "backends:\n  - {{name: cache, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-redis, client_api: keyvalue, backend: cache, durability: memory}}\n  \
         - {{name: embedded, client_api: keyvalue}}\n",
        redis.address
    );
    let server = serve(directory.path()).config(&config).start();
    let listen = server.listen;
    let call = |namespace: &'static str| {
        run(async move {
            let caller = Caller::to(listen, namespace).await;
            let set = caller.try_set(&[], &caller.set_request("k", b"v")).await;
            set.map(|_| ()).map_err(Box::new)
        })
    };
    assert_eq!(call("on-redis").map_err(|refusal| refusal.reason), Ok(()));
    redis.kill();
    let refused = call("on-redis").expect_err("there is no Redis");
    assert_eq!(refused.code, prism_io::grpc::Code::Unavailable, "{refused:?}");
    assert!(refused.message.contains("redis"), "{refused:?}");
    assert_eq!(call("embedded").map_err(|refusal| refusal.reason), Ok(()));
    assert!(server.metric("prism_backend_errors_total") >= 1.0);
    redis.restart();
    let until = std::time::Instant::now() + PATIENCE;
    while call("on-redis").is_err() {
        assert!(std::time::Instant::now() < until, "it comes back by itself");
    }
    server.stop();
}

/// Namespaces on a real NATS, called through either shard, and what they see of an outage.
#[test]
fn a_namespace_on_nats_conforms_and_comes_back_after_an_outage() {
    let mut nats = OwnNats::start("");
    let directory = directory();
    let config = format!(
        "backends:\n  - {{name: bus, type: nats, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-nats, client_api: keyvalue, backend: bus, durability: memory}}\n  \
         - {{name: strong, client_api: keyvalue, backend: bus, durability: strong}}\n  \
         - {{name: logged, client_api: keyvalue, backend: bus, durability: wal}}\n  \
         - {{name: embedded, client_api: keyvalue}}\n",
        nats.address
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    let offered = Nats::SERVES.intersection(Model::KeyValue.interfaces());
    conforms_to(&server, vec!["on-nats"], Versions::Revision, offered, 30);
    let listen = server.listen;
    let set = |namespace: &'static str, value: &'static [u8]| {
        run(async move {
            let caller = Caller::to(listen, namespace).await;
            let set = caller.try_set(&[], &caller.set_request("k", value)).await;
            set.map(|_| ()).map_err(Box::new)
        })
    };
    for namespace in ["on-nats", "strong", "logged", "embedded"] {
        assert_eq!(set(namespace, b"v").map_err(|refusal| refusal.reason), Ok(()), "{namespace}");
    }
    nats.kill();
    let refused = set("on-nats", b"w").expect_err("there is no NATS");
    assert_eq!(refused.code, prism_io::grpc::Code::Unavailable, "{refused:?}");
    assert!(refused.message.contains("nats"), "{refused:?}");
    for namespace in ["logged", "embedded"] {
        assert_eq!(set(namespace, b"w").map_err(|refusal| refusal.reason), Ok(()), "{namespace}");
    }
    assert!(server.metric("prism_backend_errors_total") >= 1.0);
    nats.restart();
    let until = std::time::Instant::now() + PATIENCE;
    while set("on-nats", b"w").is_err() {
        assert!(std::time::Instant::now() < until, "it comes back by itself");
    }
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
    server.stop();
}

/// The models beside KeyValue, at both levels, each called through either shard.
fn models_conform(model: Model) {
    let directory = directory();
    let levels = ["memory", "wal"];
    let mut config = "wal: {segment_bytes: 20MiB}\nnamespaces:\n".to_owned();
    let names: Vec<String> = levels
        .iter()
        .flat_map(|level| (0..4).map(move |number| format!("{level}-{number}")))
        .collect();
    for name in &names {
        let level = name.split('-').next().unwrap();
        let api = model.name();
        config += &format!("  - {{name: {name}, client_api: {api}, durability: {level}}}\n");
    }
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    let suites = run(async move {
        // On a connection each: the largest messages of all of them are more than one connection may have under way.
        together(names.into_iter().map(|name| async move {
            let offers = Memstore::SERVES.intersection(model.interfaces());
            let served = Served(Caller::to(listen, &name).await, Versions::None, offers);
            conformance::run(&served).await
        }))
        .await
    });
    for ran in suites {
        assert!(ran.len() > 10, "{ran:?}");
    }
    server.assert_well();
    assert!(server.metric("prism_mesh_sent_total") > 0.0, "calls cross the mesh");
    server.stop();
}

#[test]
fn queues_conform_at_both_levels_also_across_the_mesh() {
    models_conform(Model::Queue);
}

#[test]
fn streams_conform_at_both_levels_also_across_the_mesh() {
    models_conform(Model::Stream);
}

#[test]
fn topics_conform_at_both_levels_also_across_the_mesh() {
    models_conform(Model::PubSub);
}

/// Namespaces on a real PostgreSQL, at the weakest and the strongest level, called through either shard.
#[test]
fn a_namespace_on_postgres_conforms_and_its_data_is_plain_there() {
    const DATABASE: &str = "prism_served";
    let address = servers::empty_database(DATABASE);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let config = format!(
        "backends:\n  - {{name: db, type: postgres, address: \"{address}\", user: prism, database: {DATABASE}, \
         password_file: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-postgres, client_api: keyvalue, backend: db, durability: memory}}\n  \
         - {{name: strong, client_api: keyvalue, backend: db, durability: strong}}\n  \
         - {{name: embedded, client_api: keyvalue}}\n",
        password.display()
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    conforms(&server, vec!["on-postgres", "strong"], Versions::Revision);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "on-postgres").await;
        caller.set("greeting", b"hello").await;
    });
    let greeting =
        "SELECT convert_from(value, 'UTF8') FROM \"on-postgres\".keyvalue WHERE key = 'greeting'";
    assert_eq!(servers::psql(address, DATABASE, greeting), "hello");
    let cell = servers::psql(address, DATABASE, "SELECT lane_seq > 100 FROM strong.cell");
    assert_eq!(cell, "t", "logged writes go by the lane's cell");
    server.stop();
}

/// The models beside KeyValue on a real PostgreSQL, at every level, called through either shard.
fn model_on_postgres_conforms(model: Model, database: &str) {
    let address = servers::empty_database(database);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let mut config = format!(
        "backends:\n  - {{name: db, type: postgres, address: \"{address}\", user: prism, database: {database}, \
         password_file: \"{}\"}}\nnamespaces:\n",
        password.display()
    );
    let levels = ["memory", "wal", "strong"];
    let names: Vec<String> = levels
        .iter()
        .flat_map(|level| (0..2).map(move |number| format!("{level}-{number}")))
        .collect();
    for name in &names {
        let (level, api) = (name.split('-').next().unwrap(), model.name());
        config +=
            &format!("  - {{name: {name}, client_api: {api}, backend: db, durability: {level}}}\n");
    }
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    let suites = run(async move {
        together(names.into_iter().map(|name| async move {
            let offers = Postgres::SERVES.intersection(model.interfaces());
            let served = Served(Caller::to(listen, &name).await, Versions::None, offers);
            conformance::run(&served).await
        }))
        .await
    });
    for ran in suites {
        assert!(ran.len() > 15, "{ran:?}");
    }
    server.assert_well();
    let cell = servers::psql(address, database, "SELECT lane_seq > 100 FROM \"wal-0\".cell");
    assert_eq!(cell, "t", "logged messages go by the lane's cell");
    let left = servers::psql(
        address,
        database,
        &format!("SELECT count(*) > 0 FROM \"memory-0\".{}", model.name()),
    );
    assert_eq!(left, "t", "what the suite has left is in a plain table");
    server.stop();
}

#[test]
fn queues_on_postgres_conform_and_their_messages_are_plain_there() {
    model_on_postgres_conforms(Model::Queue, "prism_served_queues");
}

#[test]
fn topics_on_postgres_conform_and_their_events_are_plain_there() {
    model_on_postgres_conforms(Model::PubSub, "prism_served_topics");
}

/// Namespaces on a real Kafka, answered by it and by way of the log, called through either shard.
#[test]
fn namespaces_on_kafka_conform_also_across_the_mesh() {
    let address = servers::address("kafka");
    let backend = format!("{{name: log, type: kafka, brokers: [\"{address}\"], partitions: 3}}");
    let levels = ["memory", "wal"];
    let models = levels.map(|level| [(Model::Stream, level), (Model::PubSub, level)]).concat();
    // A lane belongs to one data directory: on a server that others use too its namespace has a name that no other run has used.
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let kind = format!("kafka-{since:x}");
    messages_conform(2, &kind, &backend, &models, Kafka::SERVES);
}

/// Queues whose payloads are on a real Kafka and whose state is in a real PostgreSQL, at every level.
#[test]
fn queues_on_kafka_and_postgres_together_conform_also_across_the_mesh() {
    // A lane belongs to one data directory: on servers that others use too its namespace has a name that no other run has used.
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let database = format!("prism_served_pair_{since:x}");
    let (kafka, postgres) = (servers::address("kafka"), servers::empty_database(&database));
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let backends = format!(
        "{{name: log, type: kafka, brokers: [\"{kafka}\"], partitions: 3}}\n  \
         - {{name: db, type: postgres, address: \"{postgres}\", user: prism, database: {database}, password_file: \"{}\"}}",
        password.display()
    );
    let models = ["memory", "wal", "strong"].map(|level| (Model::Queue, level));
    let kind = format!("pair-{since:x}");
    messages_conform_on(2, &kind, (&backends, "log+db"), &models, KafkaPostgres::SERVES);
    let drop = format!("DROP DATABASE {database} WITH (FORCE)");
    servers::psql(postgres, "prism", &drop);
}

/// The same on a real NATS, also by way of the log.
#[test]
fn topics_on_nats_conform_also_across_the_mesh() {
    let nats = OwnNats::start("");
    let backend = format!("{{name: log, type: nats, address: \"{}\"}}", nats.address);
    let models = [(Model::PubSub, "memory"), (Model::PubSub, "wal"), (Model::PubSub, "strong")];
    messages_conform(4, "nats", &backend, &models, Nats::SERVES);
}

#[test]
fn queues_on_nats_conform_also_across_the_mesh() {
    let nats = OwnNats::start("");
    let backend = format!("{{name: log, type: nats, address: \"{}\"}}", nats.address);
    let models = [(Model::Queue, "memory"), (Model::Queue, "wal"), (Model::Queue, "strong")];
    messages_conform(2, "nats", &backend, &models, Nats::SERVES);
}

#[test]
fn streams_on_nats_conform_also_across_the_mesh() {
    let nats = OwnNats::start("");
    let backend = format!("{{name: log, type: nats, address: \"{}\"}}", nats.address);
    let models = [(Model::Stream, "memory"), (Model::Stream, "strong")];
    messages_conform(4, "nats", &backend, &models, Nats::SERVES);
}

/// Streams on a real Redis, answered by it and by way of the log.
#[test]
fn streams_on_redis_conform_also_across_the_mesh() {
    let redis = OwnRedis::start(&[]);
    let backend = format!("{{name: log, type: redis, address: \"{}\"}}", redis.address);
    let models = [(Model::Stream, "memory"), (Model::Stream, "wal")];
    messages_conform(4, "redis", &backend, &models, Redis::SERVES);
}

/// Topics on a real Redis, published to it at once and by way of the log.
#[test]
fn topics_on_redis_conform_also_across_the_mesh() {
    let redis = OwnRedis::start(&[]);
    let backend = format!("{{name: log, type: redis, address: \"{}\"}}", redis.address);
    let models = [(Model::PubSub, "memory"), (Model::PubSub, "wal")];
    messages_conform(4, "redis", &backend, &models, Redis::SERVES);
}

/// So many namespaces for each model and level.
fn messages_conform(
    each: usize,
    kind: &str,
    backend: &str,
    models: &[(Model, &str)],
    serves: Interfaces,
) {
    messages_conform_on(each, kind, (backend, "log"), models, serves);
}

/// The same on the backend of this name among these.
fn messages_conform_on(
    each: usize,
    kind: &str,
    (backends, backend): (&str, &str),
    models: &[(Model, &str)],
    serves: Interfaces,
) {
    let directory = directory();
    let mut config = format!("backends:\n  - {backends}\nnamespaces:\n");
    let mut names = Vec::new();
    for (model, level) in models {
        let api = model.name();
        for number in 0..each {
            let name = format!("on-{kind}-{api}-{level}-{number}");
            config += &format!(
                "  - {{name: {name}, client_api: {api}, backend: {backend}, durability: {level}}}\n"
            );
            names.push((name, serves.intersection(model.interfaces())));
        }
    }
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    let suites = run(async move {
        together(names.into_iter().map(|(name, offers)| async move {
            let served = Served(Caller::to(listen, &name).await, Versions::None, offers);
            conformance::run(&served).await
        }))
        .await
    });
    for ran in suites {
        assert!(ran.len() > 9, "{ran:?}");
    }
    server.assert_well();
    assert!(server.metric("prism_mesh_sent_total") > 0.0, "calls cross the mesh");
    server.stop();
}

/// Two namespaces at each level on a real Redis, answered by it and by way of the log, with more settings of each.
fn model_on_redis_conforms(model: Model, settings: &str, serves: Interfaces) -> OwnRedis {
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    let mut config = format!(
        "backends:\n  - {{name: data, type: redis, address: \"{}\"}}\nnamespaces:\n",
        redis.address
    );
    let api = model.name();
    let levels = ["memory", "wal", "strong"];
    let names = levels.map(|level| [0, 1].map(|number| format!("{level}-{number}"))).concat();
    for name in &names {
        let level = name.split('-').next().unwrap();
        config += &format!(
            "  - {{name: {name}, client_api: {api}, backend: data, durability: {level}{settings}}}\n"
        );
    }
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    let suites = run(async move {
        together(names.into_iter().map(|name| async move {
            let offers = serves.intersection(model.interfaces());
            let served = Served(Caller::to(listen, &name).await, Versions::None, offers);
            conformance::run(&served).await
        }))
        .await
    });
    for ran in suites {
        assert!(ran.len() > 15, "{ran:?}");
    }
    server.assert_well();
    let moved = redis.cli(&["GET", "_prism:cell:wal-0:0"]);
    assert!(!moved.is_empty(), "logged messages go by the lane's cell");
    server.stop();
    redis
}

#[test]
fn queues_on_redis_conform_and_their_messages_are_plain_there() {
    let redis = model_on_redis_conforms(Model::Queue, "", Redis::SERVES);
    let left = redis.cli(&["--raw", "KEYS", "wal-0:*:message:*"]);
    let first = left.lines().next().expect("what the suite has left is in plain hashes");
    assert!(!redis.cli(&["HGET", first, "id"]).is_empty());
}

#[test]
fn topics_kept_as_a_log_on_redis_conform_and_their_events_are_plain_there() {
    let redis = model_on_redis_conforms(Model::PubSub, ", topics: log", TopicLog::SERVES);
    let left = redis.cli(&["--raw", "KEYS", "wal-0:*"]);
    let first = left.lines().next().expect("what the suite has left is in plain streams");
    assert_eq!(redis.cli(&["TYPE", first]), "stream");
}
