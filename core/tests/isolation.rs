//! What one namespace does, another never feels, sees or learns of: the same attacks on every backend that is served, with keys and
//! names that mean something to a backend, to a pattern, to SQL, to a protocol or to the eye.
//!
//! A victim keeps secrets under hostile keys and names. The attacker, whose namespace's name begins like the victim's, has
//! nothing but its own namespace, and tries the same names, and those under which backends keep the victim's data.

mod harness;
#[path = "isolation/lasting.rs"]
mod lasting;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::net::SocketAddr;

use harness::{Caller, PATIENCE, Refusal, directory, run, serve};
use prism_adapters::Backend as _;
use prism_adapters::kafka::Kafka;
use prism_adapters::memory::Memstore;
use prism_adapters::nats::Nats;
use prism_adapters::postgres::Postgres;
use prism_adapters::redis::{Redis, TopicLog};
use prism_io::client::StreamReply;
use prism_io::grpc::Code;
use prism_proto::catalogue::{Interfaces, Method, Model};
use prism_proto::prism::keyvalue::v1 as kv;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1 as types;
use prost::Message;
use servers::{OwnNats, OwnRedis};

/// In everything that the victim keeps, and in nothing that the attacker does.
const SECRET: &str = "5ecret";

/// Keys that mean something to somebody.
const KEYS: [&str; 36] = [
    "plain",
    "a:b",
    "a.b.c",
    "a/b",
    "..",
    ".",
    "../../etc/passwd",
    "*",
    "**",
    "?",
    "[a-z]*",
    "\\*",
    "\\",
    "%",
    "_",
    "%'; DROP TABLE keyvalue; --",
    "' OR '1'='1",
    "\"; SELECT 1; --",
    "$1",
    "E'\\x00'",
    "a\r\nSET b c\r\n",
    "\r\n",
    "\t",
    " ",
    "a b",
    ">",
    "a.>",
    "$JS.API.STREAM.LIST",
    "{tag}a",
    "_prism:cell:0:0",
    "se\u{441}ret",
    "\u{ff41}",
    "e\u{301}",
    "\u{e9}",
    "\u{202e}abc",
    "\u{1f512}",
];

/// Names of topics, queues and streams that are allowed, and mean something to somebody.
const NAMES: [&str; 6] = ["plain", "a.b", "a.b.c", "A", "queue_dead_letter", "--"];

/// Names that are not.
const NOT_NAMES: [&str; 12] =
    ["*", ">", "a.>", "a.*", "..", "a..b", "a b", "a\r\nPUB x 1\r\n", "'; --", "\u{e9}", "a/b", ""];

/// The ways in which backends write a name of a namespace's.
fn spelled(victim: &str, name: &str) -> Vec<String> {
    vec![
        format!("{victim}:{name}"),
        format!("{victim}.{name}"),
        format!("../{victim}/{name}"),
        format!("{victim}\".keyvalue"),
        format!("{victim}/{name}"),
        format!("KV_{victim}"),
    ]
}

/// Something to send, with the word in it.
fn message(word: &str) -> Option<types::Message> {
    Some(types::Message { payload: word.to_owned().into(), ..Default::default() })
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

/// What an attacker hears tells nothing.
fn assert_discreet(refusal: &Refusal) {
    assert!(!format!("{refusal:?}").contains(SECRET), "{refusal:?}");
}

/// Calls as the attacker: nothing that comes back is the victim's.
async fn attack<Response: Message + Default>(
    attacker: &Caller,
    method: Method,
    request: &impl Message,
) -> Result<Response, Refusal> {
    match attacker.raw(method.path(), &[], &request.encode_to_vec()).await {
        Ok((reply, _)) => {
            assert!(!has_secret(&reply), "{} tells: {reply:?}", method.path());
            Ok(Response::decode(reply).expect("a valid answer"))
        }
        Err(refusal) => {
            assert_discreet(&refusal);
            Err(refusal)
        }
    }
}

/// The messages of a stream that ends by itself, of which none is the victim's.
async fn attack_stream<Response: Message + Default>(
    attacker: &Caller,
    method: Method,
    request: &impl Message,
) -> Vec<Response> {
    let request = request.encode_to_vec();
    let begun = attacker.client.stream(method.path(), &[], &request, PATIENCE);
    let mut reply = begun.await.expect("begun");
    let mut messages = Vec::new();
    loop {
        match reply.next().await {
            Ok(Some(message)) => {
                assert!(!has_secret(&message), "{} tells: {message:?}", method.path());
                messages.push(Response::decode(message).expect("a valid answer"));
            }
            Ok(None) => return messages,
            Err(failure) => {
                assert_discreet(&failure.into());
                return messages;
            }
        }
    }
}

/// Calls as the victim, who is served.
async fn own<Response: Message + Default>(
    victim: &Caller,
    method: Method,
    request: &impl Message,
) -> Response {
    let answered = victim.call::<Response>(method, &[], request).await;
    answered.unwrap_or_else(|refusal| panic!("{}: {refusal:?}", method.path())).0
}

/// Both sides of one model, and what the backend serves of it.
struct Pair {
    victim: Caller,
    attacker: Caller,
    offers: Interfaces,
}

impl Pair {
    fn offers(&self, method: Method) -> bool {
        method.offered_by(self.offers)
    }
}

async fn keys_stay_apart(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let mut keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    keys.push("x".repeat(1024));
    let mut kept = Vec::new();
    for (number, key) in keys.into_iter().enumerate() {
        let secret = format!("{SECRET}-{number}");
        match victim.try_set(&[], &victim.set_request(&key, secret.as_bytes())).await {
            Ok(_) => kept.push((key, secret)),
            Err(refusal) => {
                // What nobody may have as a key, nobody has.
                assert_eq!(refusal.code, Code::InvalidArgument, "{key:?}: {refusal:?}");
                let other = attacker.try_set(&[], &attacker.set_request(&key, b"mine")).await;
                assert_eq!(other.expect_err("the same for all").reason, refusal.reason);
            }
        }
    }
    assert!(kept.len() > 25, "most of them are keys: {kept:?}");

    // The attacker has nothing: no way to ask finds anything.
    let mut tried: Vec<String> = kept.iter().map(|(key, _)| key.clone()).collect();
    tried.extend(kept.iter().take(12).flat_map(|(key, _)| spelled(&victim.namespace, key)));
    let namespace = attacker.namespace.clone();
    for key in &tried {
        let request = kv::GetRequest { namespace: namespace.clone(), key: key.clone() };
        if let Ok(answer) =
            attack::<kv::GetResponse>(attacker, Method::KEYVALUE_GET, &request).await
        {
            assert!(!answer.found, "{key:?}");
        }
        let request = kv::DeleteRequest { namespace: namespace.clone(), key: key.clone() };
        let answer =
            attack::<kv::DeleteResponse>(attacker, Method::KEYVALUE_DELETE, &request).await;
        assert!(
            answer.is_err() || answer.is_ok_and(|answer| answer.existed != Some(true)),
            "{key:?}"
        );
    }
    if pair.offers(Method::KEYVALUE_BATCH_GET) {
        let request = kv::BatchGetRequest {
            namespace: namespace.clone(),
            keys: kept.iter().map(|(key, _)| key.clone()).collect(),
        };
        let answer = attack::<kv::BatchGetResponse>(attacker, Method::KEYVALUE_BATCH_GET, &request);
        let answer = answer.await.expect("an answer for each");
        assert!(answer.results.iter().all(|result| result.entry.is_none()), "{answer:?}");
    }
    assert_eq!(scanned(pair).await, 0, "there is nothing of the attacker's");

    // It writes the same keys, and what would be the victim's if names ran together.
    for key in &tried {
        let request = kv::SetRequest {
            namespace: namespace.clone(),
            key: key.clone(),
            value: "mine".into(),
            ..Default::default()
        };
        let _ = attack::<kv::SetResponse>(attacker, Method::KEYVALUE_SET, &request).await;
        if pair.offers(Method::KEYVALUE_COMPARE_AND_SWAP) {
            let request = attacker.swap_request(key, Some(b"mine"), b"mine");
            let method = Method::KEYVALUE_COMPARE_AND_SWAP;
            let _ = attack::<kv::CompareAndSwapResponse>(attacker, method, &request).await;
        }
        if pair.offers(Method::KEYVALUE_TRANSACT) {
            let request = kv::TransactRequest {
                namespace: namespace.clone(),
                conditions: Vec::new(),
                operations: vec![types::Operation {
                    key: key.clone(),
                    action: Some(types::operation::Action::Put(types::Put {
                        value: "mine".into(),
                        ..Default::default()
                    })),
                }],
            };
            let _ =
                attack::<kv::TransactResponse>(attacker, Method::KEYVALUE_TRANSACT, &request).await;
        }
    }
    assert!(scanned(pair).await >= kept.len(), "it finds its own");
    for (key, secret) in &kept {
        assert_eq!(victim.get(key).await.as_deref(), Some(secret.as_bytes()), "{key:?}");
    }

    // And takes all of it away again.
    for key in &tried {
        let request = kv::DeleteRequest { namespace: namespace.clone(), key: key.clone() };
        let _ = attack::<kv::DeleteResponse>(attacker, Method::KEYVALUE_DELETE, &request).await;
    }
    for (key, secret) in &kept {
        assert_eq!(victim.get(key).await.as_deref(), Some(secret.as_bytes()), "{key:?}");
        victim.delete(key).await;
    }
}

/// How many entries the widest scan of the attacker finds; no scan at all finds one of the victim's.
async fn scanned(pair: &Pair) -> usize {
    use kv::scan_request::Selection;
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    if !pair.offers(Method::KEYVALUE_SCAN) {
        return usize::MAX;
    }
    let prefixes = ["", "..", "../", "*", "%", "\"", ":", "\\"].map(str::to_owned);
    let prefixes =
        prefixes.into_iter().chain(spelled(&victim.namespace, "")).map(Selection::Prefix);
    let globs = ["*", "**", "*:*", "*5ecret*", "[!a]*", "../*", "?*", "\\**"].map(str::to_owned);
    let globs = globs.into_iter().chain(spelled(&victim.namespace, "*")).map(Selection::Glob);
    let mut widest = 0;
    for selection in prefixes.chain(globs) {
        let mut page_token = String::new();
        let mut found = 0;
        loop {
            let request = kv::ScanRequest {
                namespace: attacker.namespace.clone(),
                selection: Some(selection.clone()),
                page_token: page_token.clone(),
                ..Default::default()
            };
            let pages =
                attack_stream::<kv::ScanResponse>(attacker, Method::KEYVALUE_SCAN, &request).await;
            found += pages.iter().map(|page| page.entries.len()).sum::<usize>();
            // A stream of pages that ends has told all of them.
            match pages.last().map(|page| page.next_page_token.clone()) {
                Some(token) if !token.is_empty() && token != page_token => page_token = token,
                _ => break,
            }
        }
        widest = widest.max(found);
    }
    widest
}

async fn subscribed(caller: &Caller, method: Method, request: &impl Message) -> StreamReply {
    let begun = caller.client.stream(method.path(), &[], &request.encode_to_vec(), PATIENCE).await;
    let mut reply = begun.expect("begun");
    reply.next().await.expect("readable").expect("it has started");
    reply
}

/// Reads events until one with this word comes; all of them.
async fn until(reply: &mut StreamReply, word: &str) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let event = reply.next().await.expect("readable").expect("it goes on");
        all.extend_from_slice(&event);
        if event.windows(word.len()).any(|window| window == word.as_bytes()) {
            return all;
        }
    }
}

async fn publish(caller: &Caller, topic: &str, word: &str) -> Result<(), Refusal> {
    let request = pubsub::PublishRequest {
        namespace: caller.namespace.clone(),
        topic: topic.to_owned(),
        message: message(word),
    };
    caller.call::<pubsub::PublishResponse>(Method::PUBSUB_PUBLISH, &[], &request).await.map(drop)
}

async fn subscribe(caller: &Caller, topic: &str) -> StreamReply {
    let request = pubsub::SubscribeRequest {
        namespace: caller.namespace.clone(),
        topic: topic.to_owned(),
        ..Default::default()
    };
    subscribed(caller, Method::PUBSUB_SUBSCRIBE, &request).await
}

async fn topics_stay_apart(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let topics: Vec<String> = NAMES.iter().map(|name| format!("t.{name}")).collect();
    let mut heard_by_victim = Vec::new();
    for topic in &topics {
        heard_by_victim.push(subscribe(victim, topic).await);
    }
    let mut heard_by_attacker = Vec::new();
    for topic in topics.iter().cloned().chain([format!("{}.{}", victim.namespace, topics[0])]) {
        heard_by_attacker.push((topic.clone(), subscribe(attacker, &topic).await));
    }
    if pair.offers(Method::PUBSUB_SUBSCRIBE_PATTERN) {
        let own = format!("{}.>", victim.namespace);
        for pattern in [">", "*.*", "*.plain", &own] {
            let request = pubsub::SubscribePatternRequest {
                namespace: attacker.namespace.clone(),
                pattern: pattern.to_owned(),
                ..Default::default()
            };
            let reply = subscribed(attacker, Method::PUBSUB_SUBSCRIBE_PATTERN, &request).await;
            if pattern != own {
                heard_by_attacker.push((topics[0].clone(), reply));
            }
        }
    }
    for (topic, heard) in topics.iter().zip(&mut heard_by_victim) {
        publish(victim, topic, SECRET).await.expect("published");
        until(heard, SECRET).await;
    }
    // The secrets are through; whatever the attacker's subscriptions hear before its own word would be among them.
    for (topic, heard) in &mut heard_by_attacker {
        publish(attacker, topic, "mine").await.expect("published");
        let heard = until(heard, "mine").await;
        assert!(!has_secret(&heard), "{topic}: {heard:?}");
    }
    for (topic, heard) in topics.iter().zip(&mut heard_by_victim) {
        publish(victim, topic, "the-end").await.expect("published");
        let heard = until(heard, "the-end").await;
        assert!(!heard.windows(4).any(|window| window == b"mine"), "{topic}: {heard:?}");
    }
    for topic in NOT_NAMES {
        let refusal = publish(attacker, topic, "mine").await.expect_err("no topic");
        assert_eq!(refusal.code, Code::InvalidArgument, "{topic:?}: {refusal:?}");
        assert_discreet(&refusal);
    }
}

async fn queues_stay_apart(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let send = |caller: &Caller, queue: &str, word: &str| queue::SendRequest {
        namespace: caller.namespace.clone(),
        queue: queue.to_owned(),
        message: message(word),
    };
    let receive = |caller: &Caller, queue: &str| queue::ReceiveRequest {
        namespace: caller.namespace.clone(),
        queue: queue.to_owned(),
        max_messages: 10,
        ..Default::default()
    };
    for name in NAMES {
        let queue = format!("t.{name}");
        own::<queue::SendResponse>(victim, Method::QUEUE_SEND, &send(victim, &queue, SECRET)).await;
        for queue in std::iter::once(queue.clone()).chain([format!("{}.{queue}", victim.namespace)])
        {
            let request = receive(attacker, &queue);
            let got =
                attack::<queue::ReceiveResponse>(attacker, Method::QUEUE_RECEIVE, &request).await;
            assert_eq!(got.expect("answered").deliveries, []);
        }
        let request = receive(victim, &queue);
        let mut got = own::<queue::ReceiveResponse>(victim, Method::QUEUE_RECEIVE, &request).await;
        let delivery = got.deliveries.remove(0);
        // A receipt opens nothing in another namespace: not to settle the message, nor to have it come again.
        let request = queue::AcknowledgeRequest {
            namespace: attacker.namespace.clone(),
            queue: queue.clone(),
            receipts: vec![delivery.receipt.clone()],
        };
        let settled =
            attack::<queue::AcknowledgeResponse>(attacker, Method::QUEUE_ACKNOWLEDGE, &request)
                .await;
        assert!(
            settled.is_err() || settled.is_ok_and(|settled| settled.results[0].status.is_some()),
            "{queue}"
        );
        let request = queue::AcknowledgeRequest { namespace: victim.namespace.clone(), ..request };
        let settled =
            own::<queue::AcknowledgeResponse>(victim, Method::QUEUE_ACKNOWLEDGE, &request);
        assert_eq!(settled.await.results[0].status, None, "{queue}");
    }
    for name in NOT_NAMES {
        let request = send(attacker, name, "mine");
        let sent = attack::<queue::SendResponse>(attacker, Method::QUEUE_SEND, &request).await;
        assert_eq!(sent.expect_err("no queue").code, Code::InvalidArgument, "{name:?}");
    }
}

async fn streams_stay_apart(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let append = |caller: &Caller, stream: &str, word: &str| stream::AppendRequest {
        namespace: caller.namespace.clone(),
        stream: stream.to_owned(),
        record: Some(stream::NewRecord { value: word.to_owned().into(), ..Default::default() }),
        ..Default::default()
    };
    let read = |caller: &Caller, stream: &str| stream::ReadRequest {
        namespace: caller.namespace.clone(),
        stream: stream.to_owned(),
        start: Some(types::Start { start: Some(types::start::Start::Earliest(())) }),
        ..Default::default()
    };
    for name in NAMES {
        let stream = format!("t.{name}");
        let request = append(victim, &stream, SECRET);
        own::<stream::AppendResponse>(victim, Method::STREAM_APPEND, &request).await;
        for stream in [stream.clone(), format!("{}.{stream}", victim.namespace)] {
            let request = read(attacker, &stream);
            let read =
                attack_stream::<stream::ReadResponse>(attacker, Method::STREAM_READ, &request)
                    .await;
            assert_eq!(read.iter().map(|page| page.records.len()).sum::<usize>(), 0, "{stream}");
        }
        let request = append(attacker, &stream, "mine");
        attack::<stream::AppendResponse>(attacker, Method::STREAM_APPEND, &request)
            .await
            .expect("appended");
        let request = read(attacker, &stream);
        let read_by =
            attack_stream::<stream::ReadResponse>(attacker, Method::STREAM_READ, &request).await;
        assert_eq!(read_by.iter().map(|page| page.records.len()).sum::<usize>(), 1, "{stream}");
        let request = read(victim, &stream).encode_to_vec();
        let begun = victim.client.stream(Method::STREAM_READ.path(), &[], &request, PATIENCE);
        let mut reply = begun.await.expect("begun");
        let mut records = Vec::new();
        while let Some(page) = reply.next().await.expect("readable") {
            records.extend(stream::ReadResponse::decode(page).expect("a valid answer").records);
        }
        let values: Vec<_> = records.iter().map(|record| &record.value[..]).collect();
        assert_eq!(values, [SECRET.as_bytes()], "{stream}");
        if pair.offers(Method::STREAM_CREATE_CONSUMER_GROUP) {
            let group = |caller: &Caller| stream::CreateConsumerGroupRequest {
                namespace: caller.namespace.clone(),
                stream: stream.clone(),
                group: "group".to_owned(),
                ..Default::default()
            };
            let method = Method::STREAM_CREATE_CONSUMER_GROUP;
            own::<stream::CreateConsumerGroupResponse>(victim, method, &group(victim)).await;
            let request = stream::GetConsumerGroupInfoRequest {
                namespace: attacker.namespace.clone(),
                stream: stream.clone(),
                group: "group".to_owned(),
            };
            let method = Method::STREAM_GET_CONSUMER_GROUP_INFO;
            let seen =
                attack::<stream::GetConsumerGroupInfoResponse>(attacker, method, &request).await;
            assert_eq!(seen.expect_err("the group is another's").code, Code::NotFound, "{stream}");
            let request = stream::DeleteConsumerGroupRequest {
                namespace: attacker.namespace.clone(),
                stream: stream.clone(),
                group: "group".to_owned(),
            };
            let method = Method::STREAM_DELETE_CONSUMER_GROUP;
            let gone =
                attack::<stream::DeleteConsumerGroupResponse>(attacker, method, &request).await;
            assert!(gone.is_err() || gone.is_ok_and(|gone| gone.existed != Some(true)), "{stream}");
            // It is still there.
            let request = stream::GetConsumerGroupInfoRequest {
                namespace: victim.namespace.clone(),
                stream: stream.clone(),
                group: "group".to_owned(),
            };
            let method = Method::STREAM_GET_CONSUMER_GROUP_INFO;
            own::<stream::GetConsumerGroupInfoResponse>(victim, method, &request).await;
        }
    }
    for name in NOT_NAMES {
        let request = append(attacker, name, "mine");
        let appended =
            attack::<stream::AppendResponse>(attacker, Method::STREAM_APPEND, &request).await;
        assert_eq!(appended.expect_err("no stream").code, Code::InvalidArgument, "{name:?}");
    }
}

/// Names of namespaces that nobody has, some of which would be more than a name if they were taken for one.
async fn other_names_lead_nowhere(address: SocketAddr, victim: &str) {
    let upper = victim.to_uppercase();
    for name in ["", "*", "..", "v", "v-\u{43a}eyvalue", "a\",x=\"", "a\r\nb", "-", &upper] {
        let caller = Caller::to(address, name).await;
        let refusal = caller.try_get(&[], "plain").await.expect_err("there is none");
        assert!([Code::NotFound, Code::InvalidArgument].contains(&refusal.code), "{refusal:?}");
    }
}

/// Runs every attack on a backend that serves so much; `backend` is its entry in the configuration, `data` its name there.
fn namespaces_stay_apart(backend: &str, serves: Interfaces) {
    namespaces_with_settings_stay_apart(backend, "", serves);
}

/// The same, with more settings of each namespace.
fn namespaces_with_settings_stay_apart(backend: &str, settings: &str, serves: Interfaces) {
    let all = [Model::KeyValue, Model::PubSub, Model::Queue, Model::Stream];
    let models: Vec<Model> = all
        .into_iter()
        .filter(|model| serves.intersection(model.interfaces()) != Interfaces::NONE)
        .collect();
    let mut config = "wal: {segment_bytes: 20MiB}\n".to_owned();
    let on = match backend {
        "" => "",
        entry => {
            config += &format!("backends:\n  - {entry}\n");
            ", backend: data, durability: memory"
        }
    };
    config += "namespaces:\n";
    // Of this run alone, for servers that several share.
    let run_name = format!("v-{:x}", prism_io::clock::wall_us());
    for model in &models {
        let api = model.name();
        for name in [format!("{run_name}-{api}"), format!("{run_name}-{api}-x")] {
            config += &format!("  - {{name: {name}, client_api: {api}{on}{settings}}}\n");
        }
    }
    let has_transactions = Method::TRANSACT_EXECUTE.offered_by(serves);
    let transacting = ["", "-x"].map(|end| format!("{run_name}-transact{end}"));
    if has_transactions {
        for name in &transacting {
            config += &format!("  - {{name: {name}, client_api: transact{on}}}\n");
        }
    }
    let reading = format!("{run_name}-reader");
    let has_reader = models.contains(&Model::Stream);
    if has_reader {
        let reads = format!("{run_name}-stream-x");
        config += &format!("  - {{name: {reading}, client_api: reader, reads: [{reads}]}}\n");
    }
    let directory = directory();
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    let first = format!("{run_name}-{}", models[0].name());
    run(async move {
        for model in models {
            let api = model.name();
            let pair = Pair {
                victim: Caller::to(listen, &format!("{run_name}-{api}")).await,
                attacker: Caller::to(listen, &format!("{run_name}-{api}-x")).await,
                offers: serves.intersection(model.interfaces()),
            };
            match model {
                Model::KeyValue => keys_stay_apart(&pair).await,
                Model::PubSub => {
                    topics_stay_apart(&pair).await;
                    lasting::unsubscribe(&pair).await;
                    if pair.offers(Method::PUBSUB_SUBSCRIBE_DURABLE) {
                        lasting::durable_subscriptions(&pair).await;
                    }
                }
                Model::Queue => queues_stay_apart(&pair).await,
                _ => {
                    streams_stay_apart(&pair).await;
                    if pair.offers(Method::STREAM_JOIN_CONSUMER_GROUP) {
                        lasting::groups(&pair).await;
                    }
                    let of_attacker = pair.attacker.of(&reading);
                    lasting::readers(&pair.victim.namespace, &of_attacker).await;
                }
            }
        }
        if has_transactions {
            let [victim, attacker] = &transacting;
            let pair = Pair {
                victim: Caller::to(listen, victim).await,
                attacker: Caller::to(listen, attacker).await,
                offers: serves,
            };
            lasting::transactions(&pair).await;
        }
        other_names_lead_nowhere(listen, &first).await;
    });
    // Names of namespaces are labels; what callers make up is none.
    let page = server.admin_page("/metrics");
    for line in page.lines().filter(|line| line.contains("namespace=\"")) {
        let (_, rest) = line.split_once("namespace=\"").expect("it has one");
        let label = rest.split('"').next().unwrap_or_default();
        assert!(label == "-" || label.starts_with("v-"), "{line}");
    }
    assert!(!page.contains(SECRET) && !page.contains("DROP TABLE"), "{page}");
    let errors = server.errors();
    assert!(!errors.contains(SECRET), "{errors}");
    server.assert_well();
    server.stop();
}

#[test]
fn namespaces_of_the_embedded_store_stay_apart() {
    namespaces_stay_apart("", Memstore::SERVES);
}

#[test]
fn namespaces_on_redis_stay_apart() {
    let redis = OwnRedis::start(&[]);
    let backend = format!("{{name: data, type: redis, address: \"{}\"}}", redis.address);
    namespaces_stay_apart(&backend, Redis::SERVES);
    namespaces_with_settings_stay_apart(&backend, ", topics: log", TopicLog::SERVES);
}

#[test]
fn namespaces_on_postgres_stay_apart() {
    const DATABASE: &str = "prism_isolation";
    let address = servers::empty_database(DATABASE);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let backend = format!(
        "{{name: data, type: postgres, address: \"{address}\", user: prism, database: {DATABASE}, password_file: \"{}\"}}",
        password.display()
    );
    namespaces_stay_apart(&backend, Postgres::SERVES);
}

#[test]
fn namespaces_on_nats_stay_apart() {
    let nats = OwnNats::start("");
    let backend = format!("{{name: data, type: nats, address: \"{}\"}}", nats.address);
    namespaces_stay_apart(&backend, Nats::SERVES);
}

#[test]
fn namespaces_on_kafka_stay_apart() {
    let address = servers::address("kafka");
    let backend = format!("{{name: data, type: kafka, brokers: [\"{address}\"], partitions: 1}}");
    namespaces_stay_apart(&backend, Kafka::SERVES);
}
