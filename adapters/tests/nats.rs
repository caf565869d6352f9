//! NATS, a real one: the conformance suite, random calls against the model, and what NATS's own client sees.

mod servers;

use std::future::Future;

use async_nats::jetstream;
use futures_util::TryStreamExt;
use prism_adapters::conformance::{Collect, Direct, Versions, random_sequence, run};
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::{Backend, Context, Error, Kind, Limits, Reply};
use prism_io::clock::wall_us;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchGetRequest, BatchGetResponse, CompareAndSwapRequest, CompareAndSwapResponse, CountRequest,
    CountResponse, DeleteRequest, GetRequest, GetResponse, ScanKeysRequest, ScanKeysResponse,
    SetRequest, compare_and_swap_request, scan_keys_request,
};
use prost::Message;
use servers::OwnNats;

fn config(server: &OwnNats) -> NatsConfig {
    NatsConfig::at(server.address.ip().to_string(), server.address.port())
}

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn context() -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn call<R: Message + Default>(
    nats: &Nats,
    method: Method,
    request: &impl Message,
) -> Result<R, Error> {
    let (request, mut reply) = (request.encode_to_vec(), Reply::default());
    nats.unary_checked(&context(), method, &request, Nats::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn get(key: &str) -> GetRequest {
    GetRequest { namespace: "orders".to_owned(), key: key.to_owned() }
}

fn set(key: &str, value: &[u8]) -> SetRequest {
    SetRequest {
        namespace: "orders".to_owned(),
        key: key.to_owned(),
        value: value.to_vec().into(),
        ..SetRequest::default()
    }
}

async fn scan_keys(nats: &Nats, prefix: &str) -> Vec<String> {
    let selection = Some(scan_keys_request::Selection::Prefix(prefix.to_owned()));
    let namespace = "orders".to_owned();
    let request = ScanKeysRequest { namespace, selection, ..Default::default() }.encode_to_vec();
    let mut sink = Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: wall_us() };
    nats.stream(&context(), Method::KEYVALUE_SCAN_KEYS, &request, &mut sink).await.unwrap();
    let pages = sink.messages.into_iter().map(|page| ScanKeysResponse::decode(page).unwrap());
    let mut keys: Vec<String> = pages.flat_map(|page| page.keys).collect();
    keys.sort();
    keys
}

/// Does something with NATS's own client, on a loop of its own.
fn stranger<F: Future<Output = T>, T>(
    server: &OwnNats,
    work: impl FnOnce(jetstream::Context) -> F,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://{}", server.address);
    runtime.block_on(async move {
        let client = async_nats::connect(url).await.unwrap();
        work(jetstream::new(client)).await
    })
}

#[test]
fn nats_serves_what_it_declares() {
    let server = OwnNats::start("");
    let config = config(&server);
    prism_io::rt::run(async {
        let client = Direct::in_real_time(Nats::start(config), Versions::Revision);
        let ran = run(&client).await;
        assert!(ran.len() > 40, "{ran:?}");
    })
    .unwrap();
}

#[test]
fn random_sequences_agree_with_a_model() {
    let seed = match std::env::var("PRISM_SEED") {
        Ok(seed) => seed.parse().expect("PRISM_SEED is a number"),
        Err(_) => wall_us(),
    };
    let server = OwnNats::start("");
    let config = config(&server);
    prism_io::rt::run(async move {
        let client = Direct::in_real_time(Nats::start(config), Versions::Revision);
        for round in 0..4 {
            random_sequence(&client, seed.wrapping_add(round), 1_500).await;
        }
    })
    .unwrap();
}

#[test]
fn its_own_client_reads_and_writes_the_same_data() {
    let server = OwnNats::start("");
    let config = config(&server);
    let nats = |work: fn(Nats) -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let config = config.clone();
        prism_io::rt::run(async move { work(Nats::start(config)).await }).unwrap();
    };
    nats(|nats| {
        Box::pin(async move {
            for (key, value) in [("user.42.name", "Zoë"), ("{7}:status", "paid"), ("gone", "")] {
                let request = set(key, value.as_bytes());
                call::<()>(&nats, Method::KEYVALUE_SET, &request).await.unwrap();
            }
            let delete = DeleteRequest { namespace: "orders".to_owned(), key: "gone".to_owned() };
            call::<()>(&nats, Method::KEYVALUE_DELETE, &delete).await.unwrap();
        })
    });
    stranger(&server, |jetstream| async move {
        let bucket = jetstream.get_key_value("orders").await.expect("a bucket of this name");
        let name = bucket.get("user.42.name").await.unwrap().expect("it is there");
        assert_eq!(&name[..], "Zoë".as_bytes());
        assert_eq!(&bucket.get("=7B7=7D=3Astatus").await.unwrap().unwrap()[..], b"paid");
        assert_eq!(bucket.get("gone").await.unwrap(), None);
        let mut keys: Vec<String> = bucket.keys().await.unwrap().try_collect().await.unwrap();
        keys.sort();
        assert_eq!(keys, ["=7B7=7D=3Astatus", "user.42.name"]);
        bucket.put("by.hand", "written by hand".into()).await.unwrap();
        bucket.put("user.43", "one".into()).await.unwrap();
        bucket.delete("user.43").await.unwrap();
        bucket.put("user.44", "one".into()).await.unwrap();
        bucket.purge("user.44").await.unwrap();
    });
    nats(|nats| {
        Box::pin(async move {
            let response: GetResponse =
                call(&nats, Method::KEYVALUE_GET, &get("by.hand")).await.unwrap();
            let entry = response.entry.unwrap();
            assert_eq!(&entry.value[..], b"written by hand");
            for gone in ["user.43", "user.44"] {
                let response: GetResponse =
                    call(&nats, Method::KEYVALUE_GET, &get(gone)).await.unwrap();
                assert!(!response.found, "{gone}");
            }
            assert_eq!(scan_keys(&nats, "user.4").await, ["user.42.name"]);
            let expected = Some(compare_and_swap_request::Expected::ExpectedVersion(
                entry.version.expect("a version"),
            ));
            let request = CompareAndSwapRequest {
                namespace: "orders".to_owned(),
                key: "by.hand".to_owned(),
                value: b"swapped".to_vec().into(),
                expected,
                ..CompareAndSwapRequest::default()
            };
            let method = Method::KEYVALUE_COMPARE_AND_SWAP;
            let response: CompareAndSwapResponse = call(&nats, method, &request).await.unwrap();
            assert!(response.swapped);
            let response: CompareAndSwapResponse = call(&nats, method, &request).await.unwrap();
            assert_eq!(&response.current.expect("it is another").value[..], b"swapped");
            assert_eq!(nats.facts().connects, 2);
        })
    });
    stranger(&server, |jetstream| async move {
        let bucket = jetstream.get_key_value("orders").await.unwrap();
        assert_eq!(&bucket.get("by.hand").await.unwrap().unwrap()[..], b"swapped");
        // What nobody can name through Prism harms nobody.
        for foreign in ["=41", "a=b"] {
            bucket.put(foreign, "no key of ours".into()).await.unwrap();
        }
        bucket.put("huge", vec![b'x'; 5 * 1024 * 1024].into()).await.unwrap();
    });
    nats(|nats| {
        Box::pin(async move {
            let huge = call::<GetResponse>(&nats, Method::KEYVALUE_GET, &get("huge")).await;
            assert_eq!(huge.unwrap_err().reason(), "REPLY_TOO_LARGE");
            let keys = ["by.hand", "huge", "missing"].map(str::to_owned).to_vec();
            let request = BatchGetRequest { namespace: "orders".to_owned(), keys };
            let response: BatchGetResponse =
                call(&nats, Method::KEYVALUE_BATCH_GET, &request).await.unwrap();
            let codes =
                response.results.iter().map(|one| one.status.as_ref().map_or(0, |s| s.code));
            assert_eq!(codes.collect::<Vec<_>>(), [0, 8, 0]);
            let expected = ["by.hand", "huge", "user.42.name", "{7}:status"];
            assert_eq!(scan_keys(&nats, "").await, expected);
            let request = CountRequest { namespace: "orders".to_owned(), ..Default::default() };
            let response: CountResponse =
                call(&nats, Method::KEYVALUE_COUNT, &request).await.unwrap();
            assert_eq!((response.count, response.exact), (4, true));
        })
    });
}

#[test]
fn a_bucket_that_somebody_has_made_is_taken_if_it_can_be() {
    let server = OwnNats::start("");
    stranger(&server, |jetstream| async move {
        for (bucket, history) in [("orders", 1), ("kept", 5)] {
            let config =
                jetstream::kv::Config { bucket: bucket.to_owned(), history, ..Default::default() };
            let bucket = jetstream.create_key_value(config).await.unwrap();
            bucket.put("old", "value".into()).await.unwrap();
        }
    });
    let config = config(&server);
    prism_io::rt::run(async move {
        let nats = Nats::start(config);
        let response: GetResponse = call(&nats, Method::KEYVALUE_GET, &get("old")).await.unwrap();
        assert_eq!(&response.entry.unwrap().value[..], b"value");
        let delete = DeleteRequest { namespace: "orders".to_owned(), key: "old".to_owned() };
        call::<()>(&nats, Method::KEYVALUE_DELETE, &delete).await.unwrap();
        let request = get("old").encode_to_vec();
        let kept = Context { namespace: 2, namespace_name: "kept", ..context() };
        let mut reply = Reply::default();
        let refused = nats
            .unary_checked(&kept, Method::KEYVALUE_GET, &request, Nats::SERVES, &mut reply)
            .await;
        let error = refused.unwrap_err();
        let found = (error.kind(), error.reason());
        assert_eq!(found, (Kind::FailedPrecondition, "BACKEND_STREAM_UNFIT"), "{error:?}");
        assert!(error.message().contains("KV_kept") && error.message().contains("history"));
    })
    .unwrap();
    stranger(&server, |jetstream| async move {
        let stream = jetstream.get_stream("KV_kept").await.unwrap();
        assert_eq!(stream.cached_info().config.max_messages_per_subject, 5, "it is left as it was");
    });
}

#[test]
fn a_bucket_that_is_deleted_under_way_is_made_anew() {
    let server = OwnNats::start("");
    let config = config(&server);
    let url = format!("nats://{}", server.address);
    prism_io::rt::run(async move {
        let nats = Nats::start(config);
        call::<()>(&nats, Method::KEYVALUE_SET, &set("key", b"value")).await.unwrap();
        let deleted = std::sync::Arc::new(prism_io::rt::Flag::default());
        let told = deleted.clone();
        prism_io::bridge::spawn_beside(async move {
            let client = async_nats::connect(url).await.unwrap();
            jetstream::new(client).delete_key_value("orders").await.unwrap();
            told.set();
        })
        .unwrap();
        deleted.wait().await;
        let response: GetResponse = call(&nats, Method::KEYVALUE_GET, &get("key")).await.unwrap();
        assert!(!response.found);
        call::<()>(&nats, Method::KEYVALUE_SET, &set("key", b"again")).await.unwrap();
        let response: GetResponse = call(&nats, Method::KEYVALUE_GET, &get("key")).await.unwrap();
        assert_eq!(&response.entry.unwrap().value[..], b"again");
    })
    .unwrap();
}
