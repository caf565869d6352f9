//! A lane's records on a real Kafka: each is there once, whatever is lost on the way.

mod servers;

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use prism_adapters::conformance::Collect;
use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_adapters::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};
use prism_adapters::{Backend as _, Context, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{PublishRequest, PublishResponse};
use prism_proto::prism::stream::v1::{
    AppendBatchRequest, AppendBatchResponse, AppendRequest, AppendResponse,
    AppendToPartitionRequest, NewRecord, ReadRequest, ReadResponse, Retention, SetRetentionRequest,
    SetRetentionResponse,
};
use prism_proto::prism::r#type::v1::{Message as Event, Start, start};
use prost::Message;
use servers::LONG;

const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config() -> KafkaConfig {
    let address = servers::address("kafka").to_string();
    KafkaConfig { answer_timeout: LONG, ..KafkaConfig::at(vec![address]) }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(12 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

/// A namespace that no other run has used.
fn namespace() -> &'static str {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    Box::leak(format!("lane-{since:x}").into_boxed_str())
}

fn context(namespace_name: &'static str, lane_seq: u64) -> Context<'static> {
    let revision = match lane_seq {
        0 => Revision::unlogged(1, 1, 1),
        _ => Revision::logged(lane_seq),
    };
    Context {
        namespace: 1,
        namespace_name,
        partition: 0,
        now_us: wall_us(),
        revision,
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

fn text_record(text: &str) -> NewRecord {
    NewRecord { value: text.as_bytes().to_vec().into(), ..Default::default() }
}

fn append(text: &str) -> (Method, Vec<u8>) {
    let (stream, record) = ("s".to_owned(), Some(text_record(text)));
    let request = AppendRequest { stream, record, ..Default::default() };
    (Method::STREAM_APPEND, request.encode_to_vec())
}

/// Records, numbered from here on.
fn records<'a>(
    namespace: &'static str,
    from: u64,
    calls: &'a [(Method, Vec<u8>)],
) -> Vec<LaneRecord<'a>> {
    (from..)
        .zip(calls)
        .map(|(lane_seq, (method, request))| LaneRecord {
            lane_seq,
            context: context(namespace, lane_seq),
            method: *method,
            request,
        })
        .collect()
}

fn answer<R: Message + Default>(outcome: &Outcome) -> R {
    let reply = outcome.as_ref().expect("it is not refused");
    R::decode(reply.to_bytes()).expect("a valid message")
}

/// Asks for the cell until somebody answers.
async fn resumed(kafka: &Kafka, namespace: &'static str) -> Option<Cell> {
    let until = Instant::now() + 3 * LONG;
    loop {
        match kafka.resume(&context(namespace, 0), &OWNER).await {
            Ok(cell) => return cell,
            Err(error) => assert!(Instant::now() < until, "it does not resume: {error:?}"),
        }
        rt::sleep(Duration::from_millis(5)).await;
    }
}

/// Goes on with a lane, wherever it stands; its last number.
async fn gone_on(kafka: &Kafka, namespace: &'static str) -> u64 {
    if let Some(cell) = resumed(kafka, namespace).await {
        assert_eq!(cell.owner, OWNER);
        return cell.lane_seq;
    }
    let cell = Cell { owner: OWNER, lane_seq: 0 };
    kafka.set_cell(&context(namespace, 0), &cell).await.unwrap();
    0
}

/// What readers see of the partition that records without a key are in.
async fn texts(kafka: &Kafka, namespace: &'static str) -> Vec<String> {
    let start = Some(Start { start: Some(start::Start::Earliest(())) });
    let request =
        ReadRequest { stream: "s".to_owned(), start, partitions: vec![0], ..Default::default() };
    let mut sink = Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: wall_us() };
    let (context, bytes) = (context(namespace, 0), request.encode_to_vec());
    kafka.stream(&context, Method::STREAM_READ, &bytes, &mut sink).await.unwrap();
    let pages = sink.messages.into_iter().map(|page| ReadResponse::decode(page).unwrap());
    let records = pages.flat_map(|page| page.records);
    records.map(|one| String::from_utf8(one.value.to_vec()).unwrap()).collect()
}

#[test]
fn a_batch_applies_its_records_and_moves_the_cell_once() {
    let namespace = namespace();
    run(async move {
        let kafka = Kafka::start(config());
        let message = Some(Event { payload: b"told".to_vec().into(), ..Default::default() });
        let publish = PublishRequest { topic: "t".to_owned(), message, ..Default::default() };
        let batch = ["2", "3"].map(text_record).to_vec();
        let batch =
            AppendBatchRequest { stream: "s".to_owned(), records: batch, ..Default::default() };
        let calls = [
            append("1"),
            (Method::STREAM_APPEND_BATCH, batch.encode_to_vec()),
            (Method::PUBSUB_PUBLISH, publish.encode_to_vec()),
        ];
        let batch = records(namespace, 1, &calls);
        let mut outcomes = Vec::new();
        let error = kafka.apply(&OWNER, &batch, &mut outcomes).await.unwrap_err();
        assert_eq!(error.reason(), "LANE_MOVED", "nobody has asked for the cell");
        assert_eq!(gone_on(&kafka, namespace).await, 0);
        kafka.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        assert_eq!(outcomes.len(), 3);
        let position = answer::<AppendResponse>(&outcomes[0]).position.unwrap();
        assert_eq!((position.partition, &*position.offset), (0, "0"));
        let results = answer::<AppendBatchResponse>(&outcomes[1]).results;
        assert_eq!(results[1].position.as_ref().unwrap().offset, "2");
        let published = answer::<PublishResponse>(&outcomes[2]);
        assert!(published.position.is_some() && !published.message_id.is_empty());
        assert_eq!(texts(&kafka, namespace).await, ["1", "2", "3"]);

        // What is older is not applied again, what is newer not yet.
        let next = [append("4")];
        for lane_seq in [3, 6] {
            let late = records(namespace, lane_seq, &next);
            let error = kafka.apply(&OWNER, &late, &mut Vec::new()).await.unwrap_err();
            assert_eq!(error.reason(), "LANE_MOVED", "{lane_seq}");
        }
        // Another client that begins the lane takes it over.
        let other = Kafka::start(config());
        assert_eq!(gone_on(&other, namespace).await, 3);
        let fenced = kafka.apply(&OWNER, &records(namespace, 4, &next), &mut Vec::new()).await;
        assert!(fenced.is_err());
        other.apply(&OWNER, &records(namespace, 4, &next), &mut Vec::new()).await.unwrap();
        assert_eq!(texts(&kafka, namespace).await, ["1", "2", "3", "4"]);

        // Who has another log sees whose lane it is, and leaves it alone.
        let stranger = Kafka::start(config());
        let owner = LaneOwner { directory_id: [8; 16], epoch: 1 };
        let cell = stranger.resume(&context(namespace, 0), &owner).await.unwrap();
        assert_eq!(cell, Some(Cell { owner: OWNER, lane_seq: 4 }));
        let next = [append("5")];
        other.apply(&OWNER, &records(namespace, 5, &next), &mut Vec::new()).await.unwrap();
        assert_eq!(texts(&kafka, namespace).await, ["1", "2", "3", "4", "5"]);
    });
}

/// A batch that is given up somewhere on its way is there as a whole, or not at all; sent again it is there once.
#[test]
fn what_a_client_leaves_behind_is_there_once() {
    let namespace = namespace();
    run(async move {
        let calls: Vec<_> = (1..=120).map(|number| append(&number.to_string())).collect();
        let (mut seq, mut attempts) = (0, 0);
        while seq < calls.len() as u64 {
            attempts += 1;
            assert!(attempts < 40, "it gets on: {seq}");
            let kafka = Kafka::start(config());
            let now = gone_on(&kafka, namespace).await;
            assert!(now == seq || now == (seq + 20).min(120), "{now} after {seq}");
            seq = now;
            let from = seq as usize;
            let batch = records(namespace, seq + 1, &calls[from..(from + 20).min(calls.len())]);
            let mut outcomes = Vec::new();
            // The later attempts have more time, so that it comes to an end on every machine.
            let time = Duration::from_millis(attempts * attempts * attempts);
            if let Some(applied) =
                rt::timeout(time, kafka.apply(&OWNER, &batch, &mut outcomes)).await
            {
                applied.unwrap();
            }
        }
        let kafka = Kafka::start(config());
        let expected: Vec<_> = (1..=120).map(|number: u32| number.to_string()).collect();
        assert_eq!(texts(&kafka, namespace).await, expected);
    });
}

#[test]
fn a_record_that_kafka_refuses_is_passed_and_takes_nobody_with_it() {
    let namespace = namespace();
    run(async move {
        let kafka = Kafka::start(config());
        gone_on(&kafka, namespace).await;
        let keyed = |text: &str| {
            let record = Some(NewRecord { key: Some("k".to_owned()), ..text_record(text) });
            let request = AppendRequest { stream: "s".to_owned(), record, ..Default::default() };
            (Method::STREAM_APPEND, request.encode_to_vec())
        };
        let retention = Some(Retention { by_key: true, ..Default::default() });
        let retention =
            SetRetentionRequest { stream: "s".to_owned(), retention, ..Default::default() };
        let first = [keyed("1"), (Method::STREAM_SET_RETENTION, retention.encode_to_vec())];
        let mut outcomes = Vec::new();
        kafka.apply(&OWNER, &records(namespace, 1, &first), &mut outcomes).await.unwrap();
        assert!(answer::<SetRetentionResponse>(&outcomes[1]).retention.unwrap().by_key);
        // The brokers go by it a moment later.
        let until = Instant::now() + LONG;
        let (method, request) = append("no key");
        while kafka
            .unary(&context(namespace, 0), method, &request, &mut Reply::default())
            .await
            .is_ok()
        {
            assert!(Instant::now() < until, "it keeps records without a key");
        }
        let beyond = AppendToPartitionRequest {
            stream: "s".to_owned(),
            partition: 1000,
            record: Some(text_record("nowhere")),
            ..Default::default()
        };
        let calls = [
            keyed("2"),
            append("refused"),
            (Method::STREAM_APPEND_TO_PARTITION, beyond.encode_to_vec()),
            keyed("3"),
        ];
        outcomes.clear();
        kafka.apply(&OWNER, &records(namespace, 3, &calls), &mut outcomes).await.unwrap();
        let reasons: Vec<_> =
            outcomes.iter().map(|one| one.as_ref().err().map_or("", |one| one.reason())).collect();
        assert_eq!(reasons, ["", "BACKEND_REFUSES_RECORD", "PARTITION_UNKNOWN", ""]);
        assert_eq!(gone_on(&kafka, namespace).await, 6);
        let start = Some(Start { start: Some(start::Start::Earliest(())) });
        let request = ReadRequest { stream: "s".to_owned(), start, ..Default::default() };
        let mut sink =
            Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: wall_us() };
        let bytes = request.encode_to_vec();
        let context = context(namespace, 0);
        kafka.stream(&context, Method::STREAM_READ, &bytes, &mut sink).await.unwrap();
        let pages = sink.messages.into_iter().map(|page| ReadResponse::decode(page).unwrap());
        let keyed = pages.flat_map(|page| page.records).filter(|one| one.key.is_some());
        let texts: Vec<_> =
            keyed.map(|one| String::from_utf8(one.value.to_vec()).unwrap()).collect();
        // Compaction may have taken the older ones.
        assert!(["1", "2", "3"].map(str::to_owned).ends_with(&texts) && !texts.is_empty());
    });
}
