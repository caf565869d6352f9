//! Kafka: the suite straight on the adapter, and what lies in the topics, read and written by a plain client as a stranger would.

mod servers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use prism_adapters::conformance::{Collect, Direct, Versions, run};
use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_adapters::{Backend as _, Context, Error, Limits, Reply};
use prism_io::clock::wall_us;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{PublishOrderedRequest, PublishOrderedResponse};
use prism_proto::prism::stream::v1::{
    AppendBatchRequest, AppendRequest, AppendResponse, GetRetentionRequest, GetRetentionResponse,
    NewRecord, ReadRequest, ReadResponse, Retention, SetRetentionRequest, SetRetentionResponse,
    StreamRecord,
};
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prost::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use servers::LONG;

fn config() -> KafkaConfig {
    let answer_timeout = LONG;
    KafkaConfig { answer_timeout, ..KafkaConfig::at(vec![servers::address("kafka").to_string()]) }
}

/// A name that no other run has used.
fn fresh(name: &str) -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    format!("{name}-{since:x}")
}

fn context(limits: &Limits) -> Context<'_> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn call<Response: prost::Message + Default>(
    kafka: &Kafka,
    method: Method,
    request: &impl prost::Message,
) -> Result<Response, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let bytes = request.encode_to_vec();
    kafka.unary_checked(&context(&limits), method, &bytes, Kafka::SERVES, &mut reply).await?;
    Ok(Response::decode(reply.to_bytes()).unwrap())
}

async fn append(kafka: &Kafka, stream: &str, record: NewRecord) -> Result<(u32, i64), Error> {
    let request = AppendRequest {
        namespace: "orders".to_owned(),
        stream: stream.to_owned(),
        expected_last: None,
        record: Some(record),
    };
    let answer: AppendResponse = call(kafka, Method::STREAM_APPEND, &request).await?;
    let position = answer.position.unwrap();
    Ok((position.partition, position.offset.parse().unwrap()))
}

async fn read(kafka: &Kafka, stream: &str) -> Vec<StreamRecord> {
    let request = ReadRequest {
        namespace: "orders".to_owned(),
        stream: stream.to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let limits = Limits::default();
    let (messages, messages_max) = (Vec::new(), usize::MAX);
    let mut sink = Collect { messages, messages_max, now_us: wall_us() };
    let bytes = request.encode_to_vec();
    kafka.stream(&context(&limits), Method::STREAM_READ, &bytes, &mut sink).await.unwrap();
    let pages = sink.messages.into_iter().map(|page| ReadResponse::decode(page).unwrap());
    pages.flat_map(|page| page.records).collect()
}

fn plain_client() -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers::address("kafka").to_string());
    client.set("group.id", "strangers").set("auto.offset.reset", "earliest");
    client
}

/// What a stranger reads of a topic: so many records, each partition from its beginning.
fn consume(topic: &str, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = plain_client().create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), LONG).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let until = Instant::now() + LONG;
    let mut read = Vec::new();
    while read.len() < count {
        assert!(Instant::now() < until, "{} of {count} records came", read.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            read.push(message.unwrap().detach());
        }
    }
    read
}

fn headers(message: &OwnedMessage) -> BTreeMap<String, String> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    headers.map(|header| (header.key.to_owned(), text(header.value))).collect()
}

/// The settings of a topic, as the cluster tells them to anybody.
async fn settings(topic: &str) -> BTreeMap<String, String> {
    let admin: AdminClient<DefaultClientContext> = plain_client().create().unwrap();
    let resources = [ResourceSpecifier::Topic(topic)];
    let mut told = admin.describe_configs(&resources, &AdminOptions::new()).await.unwrap();
    let entries = told.remove(0).unwrap().entries.into_iter();
    entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect()
}

#[test]
fn kafka_conforms() {
    prism_io::rt::run(async {
        let client = Direct::in_real_time(Kafka::start(config()), Versions::None);
        let ran = run(&client).await;
        assert!(ran.len() > 15, "{ran:?}");
        assert_eq!(client.backend.facts().outages, 0);
    })
    .unwrap();
}

#[test]
fn a_stranger_reads_what_was_appended() {
    let stream = fresh("stranger");
    let topic = format!("orders.{stream}");
    let name = stream.clone();
    let before_ms = (wall_us() / 1000) as i64;
    let (rich, last) = prism_io::rt::run(async move {
        let kafka = Kafka::start(config());
        let record = NewRecord {
            key: Some("order-7".to_owned()),
            content_type: "application/json".to_owned(),
            attributes: [("country", "CH"), ("kind", "new")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            tombstone: false,
            value: b"{\"total\": 3}".to_vec().into(),
        };
        let rich = append(&kafka, &stream, record).await.unwrap();
        let plain = NewRecord { value: b"plain".to_vec().into(), ..Default::default() };
        assert_eq!(append(&kafka, &stream, plain).await.unwrap().0, 0);
        let key = Some("order-7".to_owned());
        let tomb = NewRecord { key, tombstone: true, ..Default::default() };
        (rich, append(&kafka, &stream, tomb).await.unwrap())
    })
    .unwrap();
    assert_eq!(rich.0, last.0, "{name}");
    assert!(rich.1 < last.1);
    let read = consume(&topic, 3);
    let at = |place: (u32, i64)| {
        let found = read.iter().find(|one| (one.partition() as u32, one.offset()) == place);
        found.expect("an offset is Kafka's own")
    };
    let first = at(rich);
    assert_eq!(
        (first.key(), first.payload()),
        (Some(&b"order-7"[..]), Some(&b"{\"total\": 3}"[..]))
    );
    let told = headers(first);
    let expected = [("content-type", "application/json"), ("country", "CH"), ("kind", "new")];
    assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert!(first.timestamp().to_millis().unwrap() >= before_ms);
    let tomb = at(last);
    assert_eq!((tomb.key(), tomb.payload()), (Some(&b"order-7"[..]), None));
    let plain = read.iter().find(|one| one.key().is_none()).unwrap();
    assert_eq!((plain.payload(), plain.headers().is_none()), (Some(&b"plain"[..]), true));
}

#[test]
fn a_stranger_hears_what_was_published() {
    let name = fresh("heard");
    let topic = format!("orders.{name}");
    let id = prism_io::rt::run(async move {
        let kafka = Kafka::start(config());
        let attributes = [("country".to_owned(), "CH".to_owned())].into();
        let expires_at = Some(prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 });
        let message = Message {
            payload: b"placed".to_vec().into(),
            content_type: "text/plain".to_owned(),
            ordering_key: "order-7".to_owned(),
            attributes,
            expires_at,
            ..Default::default()
        };
        let (namespace, message) = ("orders".to_owned(), Some(message));
        let request = PublishOrderedRequest { namespace, topic: name, message };
        let method = Method::PUBSUB_PUBLISH_ORDERED;
        let answer: PublishOrderedResponse = call(&kafka, method, &request).await.unwrap();
        assert!(answer.position.is_some());
        answer.message_id
    })
    .unwrap();
    let read = consume(&topic, 1);
    assert_eq!((read[0].key(), read[0].payload()), (Some(&b"order-7"[..]), Some(&b"placed"[..])));
    let expected = [
        ("content-type", "text/plain"),
        ("country", "CH"),
        ("prism.expires-at", "32503680000000"),
        ("prism.message-id", &id),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(headers(&read[0]), expected.into());
}

#[test]
fn what_a_stranger_has_stored_is_read_and_keys_meet_in_their_partition() {
    let stream = fresh("foreign");
    let topic = format!("orders.{stream}");
    prism_io::rt::run(async move {
        let kafka = Kafka::start(config());
        let mut places = BTreeMap::new();
        for number in 0..20 {
            let key = format!("key-{number}");
            let record = NewRecord { key: Some(key.clone()), ..Default::default() };
            places.insert(key, append(&kafka, &stream, record).await.unwrap().0);
        }
        let mut client = plain_client();
        // As Java's clients choose.
        client.set("partitioner", "murmur2_random");
        let producer: BaseProducer = client.create().unwrap();
        let odd = OwnedHeaders::new()
            .insert(Header { key: "Weird Name", value: Some(&b"\xff\xfe"[..]) })
            .insert(Header { key: "none", value: None::<&[u8]> });
        for key in places.keys() {
            let record = BaseRecord::to(&topic).key(key.as_bytes()).payload(b"theirs".as_slice());
            producer.send(record.headers(odd.clone())).map_err(|(error, _)| error).unwrap();
        }
        producer
            .send(BaseRecord::<[u8], [u8]>::to(&topic).partition(1).key(b"\xff".as_slice()))
            .map_err(|(error, _)| error)
            .unwrap();
        producer.flush(LONG).unwrap();
        let records = read(&kafka, &stream).await;
        assert_eq!(records.len(), 41);
        for record in &records {
            let key = record.key.clone().unwrap();
            if let Some(partition) = places.get(&key) {
                assert_eq!(record.position.as_ref().unwrap().partition, *partition, "{key}");
            } else {
                assert!(record.tombstone && key == "\u{fffd}", "{record:?}");
            }
        }
        let theirs = records.iter().find(|one| &one.value[..] == b"theirs").unwrap();
        assert_eq!(theirs.attributes["Weird Name"], "\u{fffd}\u{fffd}");
        assert_eq!(theirs.attributes["none"], "");
    })
    .unwrap();
}

#[test]
fn topics_are_made_as_planned_and_keep_what_is_asked() {
    let stream = fresh("planned");
    let topic = format!("orders.{stream}");
    prism_io::rt::run(async move {
        let kafka = Kafka::start(KafkaConfig {
            partitions: 3,
            replication: Some(1),
            retention: Some(Duration::from_secs(7200)),
            ..config()
        });
        append(&kafka, &stream, NewRecord::default()).await.unwrap();
        let made = settings(&topic).await;
        assert_eq!(made["retention.ms"], "7200000");
        assert_eq!(made["cleanup.policy"], "delete");
        let consumer: BaseConsumer = plain_client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), LONG).unwrap();
        assert_eq!(metadata.topics()[0].partitions().len(), 3);

        let namespace = "orders".to_owned();
        let hours = |hours: i64| Some(prost_types::Duration { seconds: hours * 3600, nanos: 0 });
        let asked = Retention { max_age: hours(24), max_bytes: Some(3000), ..Default::default() };
        let request = SetRetentionRequest {
            namespace: namespace.clone(),
            stream: stream.clone(),
            retention: Some(asked),
        };
        let answer: SetRetentionResponse =
            call(&kafka, Method::STREAM_SET_RETENTION, &request).await.unwrap();
        let holds = Retention { max_age: hours(2), ..asked };
        assert_eq!(answer.retention, Some(holds), "no more than the plan");
        let request = GetRetentionRequest { namespace, stream: stream.clone() };
        let answer: GetRetentionResponse =
            call(&kafka, Method::STREAM_GET_RETENTION, &request).await.unwrap();
        assert_eq!(answer.retention, Some(holds));
        assert_eq!(answer.plan.unwrap().max_age, hours(2));
        let held = settings(&topic).await;
        assert_eq!((&*held["retention.ms"], &*held["retention.bytes"]), ("7200000", "1000"));
        assert_eq!(held["max.message.bytes"], made["max.message.bytes"], "what was set stays");
    })
    .unwrap();
}

#[test]
fn a_topic_whose_name_kafka_cannot_tell_from_another_is_refused() {
    let stream = fresh("like");
    prism_io::rt::run(async move {
        let kafka = Kafka::start(config());
        append(&kafka, &format!("{stream}.a"), NewRecord::default()).await.unwrap();
        let refused = append(&kafka, &format!("{stream}_a"), NewRecord::default()).await;
        let error = refused.unwrap_err();
        assert_eq!((error.kind().grpc_code(), error.reason()), (9, "BACKEND_NAME_TAKEN"));
    })
    .unwrap();
}

/// A record that Kafka refuses is its own failure, in its place.
#[test]
fn a_batch_answers_for_each_record() {
    let stream = fresh("batch");
    prism_io::rt::run(async move {
        let kafka = Kafka::start(config());
        append(&kafka, &stream, NewRecord::default()).await.unwrap();
        let request = SetRetentionRequest {
            namespace: "orders".to_owned(),
            stream: stream.clone(),
            retention: Some(Retention { by_key: true, ..Default::default() }),
        };
        let _: SetRetentionResponse =
            call(&kafka, Method::STREAM_SET_RETENTION, &request).await.unwrap();
        // The brokers go by it a moment later.
        let until = Instant::now() + LONG;
        let error = loop {
            match append(&kafka, &stream, NewRecord::default()).await {
                Ok(_) => assert!(Instant::now() < until, "it keeps records without a key"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), "BACKEND_REFUSES_RECORD", "{error:?}");
        let keyed = |key: &str| NewRecord { key: Some(key.to_owned()), ..Default::default() };
        let request = AppendBatchRequest {
            namespace: "orders".to_owned(),
            stream: stream.clone(),
            records: vec![keyed("a"), keyed("b")],
        };
        let answer: prism_proto::prism::stream::v1::AppendBatchResponse =
            call(&kafka, Method::STREAM_APPEND_BATCH, &request).await.unwrap();
        assert!(answer.results.iter().all(|one| one.status.is_none() && one.position.is_some()));
    })
    .unwrap();
}
