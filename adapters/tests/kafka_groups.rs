//! Consumer groups and durable subscriptions on a real Kafka: what its own tools see of them, who else may take part, and what outlives
//! Prism.

mod servers;

use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join;
use prism_adapters::conformance::{Client, Direct, Failure, Opened, Versions};
use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use servers::LONG;

/// The namespace of these tests: that of the direct client.
const NAMESPACE: &str = "conformance";

/// How long a test may take on a slow machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

fn config() -> KafkaConfig {
    let brokers = vec![servers::address("kafka").to_string()];
    KafkaConfig { answer_timeout: LONG, partitions: 4, ..KafkaConfig::at(brokers) }
}

/// A Prism of its own, as far as Kafka can tell.
fn client() -> Direct<Kafka> {
    Direct::in_real_time(Kafka::start(config()), Versions::None)
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(PATIENCE, test).await.expect("the test ends in time") })
        .unwrap();
}

/// A name that no other run has used.
fn fresh(name: &str) -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    format!("{name}-{since:x}")
}

async fn call<R: prost::Message + Default>(
    client: &Direct<Kafka>,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Failure> {
    let answer = client.unary(method, request.encode_to_vec()).await?;
    Ok(R::decode(answer).expect("a valid message"))
}

fn earliest() -> Option<Start> {
    Some(Start { start: Some(start::Start::Earliest(())) })
}

/// Appends records to every partition, with their numbers as values.
async fn append(
    client: &Direct<Kafka>,
    stream: &str,
    numbers: std::ops::Range<usize>,
    padding: usize,
) {
    let numbers: Vec<_> = numbers.collect();
    for part in numbers.chunks(100) {
        let record = |number: &usize| {
            let value = format!("{number:0width$}", width = padding).into_bytes().into();
            stream::NewRecord { key: Some(format!("key-{number}")), value, ..Default::default() }
        };
        let request = stream::AppendBatchRequest {
            namespace: NAMESPACE.to_owned(),
            stream: stream.to_owned(),
            records: part.iter().map(record).collect(),
        };
        let method = Method::STREAM_APPEND_BATCH;
        let answer: stream::AppendBatchResponse = call(client, method, &request).await.unwrap();
        assert!(answer.results.iter().all(|one| one.status.is_none()));
    }
}

/// Creates the group `g` at the beginning of a stream.
async fn create(client: &Direct<Kafka>, stream: &str, max_in_flight: u32) {
    let request = stream::CreateConsumerGroupRequest {
        namespace: NAMESPACE.to_owned(),
        stream: stream.to_owned(),
        group: "g".to_owned(),
        start: earliest(),
        max_in_flight,
        ..Default::default()
    };
    let method = Method::STREAM_CREATE_CONSUMER_GROUP;
    let answer: stream::CreateConsumerGroupResponse = call(client, method, &request).await.unwrap();
    assert_eq!(answer.sharing(), stream::Sharing::ByPartition);
}

async fn take_part<'a>(
    client: &'a Direct<Kafka>,
    stream: &str,
    member: &str,
) -> <Direct<Kafka> as Client>::Opened<'a> {
    let request = stream::JoinConsumerGroupRequest {
        namespace: NAMESPACE.to_owned(),
        stream: stream.to_owned(),
        group: "g".to_owned(),
        member: member.to_owned(),
    };
    let method = Method::STREAM_JOIN_CONSUMER_GROUP;
    client.open(method, request.encode_to_vec()).await.expect("opened")
}

async fn event(member: &mut impl Opened) -> Event {
    loop {
        let message = member.next().await.expect("it goes on").expect("it goes on");
        let response = stream::JoinConsumerGroupResponse::decode(message).expect("valid");
        match response.event.expect("an event") {
            Event::Heartbeat(_) => {}
            event => return event,
        }
    }
}

/// The next record that a member is handed.
async fn record(member: &mut impl Opened) -> stream::RecordDelivery {
    loop {
        if let Event::Record(record) = event(member).await {
            return record;
        }
    }
}

fn number(delivery: &stream::RecordDelivery) -> usize {
    let value = &delivery.record.as_ref().expect("a record").value;
    std::str::from_utf8(value).expect("text").parse().expect("a number")
}

fn place(delivery: &stream::RecordDelivery) -> (u32, i64) {
    let record = delivery.record.as_ref().expect("a record");
    let position = record.position.as_ref().expect("its place");
    (position.partition, position.offset.parse().expect("a number"))
}

/// The reasons for which deliveries' receipts are not accepted.
async fn acknowledge(
    client: &Direct<Kafka>,
    stream: &str,
    deliveries: &[stream::RecordDelivery],
) -> Vec<String> {
    let receipts = deliveries.iter().map(|delivery| delivery.receipt.clone()).collect();
    let request = stream::AcknowledgeRequest {
        namespace: NAMESPACE.to_owned(),
        stream: stream.to_owned(),
        group: "g".to_owned(),
        receipts,
    };
    let answer: stream::AcknowledgeResponse =
        call(client, Method::STREAM_ACKNOWLEDGE, &request).await.expect("answered");
    let refused = answer.results.into_iter().filter_map(|result| result.status);
    refused.map(|status| status.message).collect()
}

fn stranger(group: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers::address("kafka").to_string());
    client.set("group.id", group).set("auto.offset.reset", "earliest");
    client.set("enable.auto.commit", "false").set("heartbeat.interval.ms", "300");
    client
}

/// What a group has committed of a topic's four partitions, as a stranger is told.
fn committed(group: &str, topic: &str) -> Vec<Option<i64>> {
    let consumer: BaseConsumer = stranger(group).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, 3);
    let told = consumer.committed_offsets(list, LONG).unwrap();
    let offset = |partition| match told.find_partition(topic, partition).unwrap().offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    (0..4).map(offset).collect()
}

/// The state of a group and how many take part in it, as a stranger is told.
fn told(group: &str) -> Option<(String, usize)> {
    let consumer: BaseConsumer = stranger("onlooker").create().unwrap();
    let list = consumer.fetch_group_list(Some(group), LONG).unwrap();
    let found = list.groups().iter().find(|found| found.name() == group);
    found.map(|found| (found.state().to_owned(), found.members().len()))
}

#[test]
fn a_group_is_one_of_kafkas_own_and_stands_where_the_first_undone_record_is() {
    run(async {
        let (client, stream) = (client(), fresh("own"));
        let (group, topic) = (format!("{NAMESPACE}.{stream}:g"), format!("{NAMESPACE}.{stream}"));
        append(&client, &stream, 0..20, 1).await;
        create(&client, &stream, 100).await;
        assert_eq!(committed(&group, &topic), [Some(0); 4]);
        let mut member = take_part(&client, &stream, "m").await;
        let mut taken = Vec::new();
        for _ in 0..20 {
            taken.push(record(&mut member).await);
        }
        assert_eq!(told(&group), Some(("Stable".to_owned(), 1)));
        // All but the second of a partition: what follows it is done, and not told.
        let (partition, _) = place(&taken[0]);
        let (held, done): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|one| place(one) == (partition, 1));
        assert_eq!(acknowledge(&client, &stream, &done).await, [""; 0]);
        let mut expected = [Some(0); 4];
        for one in &done {
            let (partition, offset) = place(one);
            expected[partition as usize] = expected[partition as usize].max(Some(offset + 1));
        }
        let whole = expected;
        expected[partition as usize] = Some(1);
        assert_eq!(committed(&group, &topic), expected);
        assert_eq!(acknowledge(&client, &stream, &held).await, [""; 0]);
        assert_eq!(committed(&group, &topic), whole);
        drop(member);
        // It leaves a little later, and what it has done stays.
        let until = Instant::now() + LONG;
        while told(&group).is_none_or(|(state, _)| state != "Empty") {
            assert!(Instant::now() < until, "{:?}", told(&group));
            rt::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(committed(&group, &topic), whole);
        let request = stream::DeleteConsumerGroupRequest {
            namespace: NAMESPACE.to_owned(),
            stream,
            group: "g".to_owned(),
        };
        let method = Method::STREAM_DELETE_CONSUMER_GROUP;
        let _: stream::DeleteConsumerGroupResponse = call(&client, method, &request).await.unwrap();
        assert_eq!(committed(&group, &topic), [None; 4]);
    });
}

/// Takes what a member is handed until so many records have come between it and another, each once done.
async fn drain(
    client: &Direct<Kafka>,
    stream: &str,
    member: &mut impl Opened,
    seen: &std::cell::RefCell<BTreeSet<usize>>,
    count: usize,
) {
    while seen.borrow().len() < count {
        let Some(event) = rt::timeout(Duration::from_millis(200), event(member)).await else {
            continue;
        };
        if let Event::Record(record) = event
            && acknowledge(client, stream, std::slice::from_ref(&record)).await.is_empty()
        {
            seen.borrow_mut().insert(number(&record));
        }
    }
}

#[test]
fn two_prisms_and_a_stranger_share_the_partitions_by_kafkas_protocol() {
    run(async {
        let (one, other, stream) = (Rc::new(client()), Rc::new(client()), fresh("shared"));
        create(&one, &stream, 100).await;
        let seen = std::cell::RefCell::default();
        let mut a = take_part(&one, &stream, "a").await;
        let Event::Assigned(first) = event(&mut a).await else { panic!("that is first of all") };
        assert_eq!(first.partitions, [0, 1, 2, 3]);
        let mut b = take_part(&other, &stream, "b").await;
        let assigned = async |member: &mut <Direct<Kafka> as Client>::Opened<'_>| loop {
            if let Event::Assigned(assigned) = event(member).await
                && assigned.partitions.len() < 4
            {
                return assigned.partitions;
            }
        };
        let (of_a, of_b) = join(assigned(&mut a), assigned(&mut b)).await;
        let all: BTreeSet<u32> = of_a.iter().chain(&of_b).copied().collect();
        assert_eq!((of_a.len(), of_b.len(), all.len()), (2, 2, 4));
        append(&one, &stream, 0..100, 1).await;
        let both = drain(&other, &stream, &mut b, &seen, 100);
        join(drain(&one, &stream, &mut a, &seen, 100), both).await;
        // One of them goes: the other has it all.
        drop(b);
        append(&one, &stream, 100..200, 1).await;
        drain(&one, &stream, &mut a, &seen, 200).await;
        // Somebody else takes part, with a client of another kind.
        let group = format!("{NAMESPACE}.{stream}:g");
        let consumer: BaseConsumer = stranger(&group).create().unwrap();
        consumer.subscribe(&[&format!("{NAMESPACE}.{stream}")]).unwrap();
        let until = Instant::now() + PATIENCE;
        while consumer.assignment().unwrap().count() != 2 {
            assert!(Instant::now() < until);
            let polled = consumer.poll(Duration::ZERO);
            assert!(polled.is_none_or(|one| one.is_err()), "what is done is not read again");
            let _ = rt::timeout(Duration::from_millis(20), event(&mut a)).await;
        }
        append(&one, &stream, 200..300, 1).await;
        let mut theirs = 0;
        while seen.borrow().len() + theirs < 300 {
            assert!(Instant::now() < until);
            if let Some(Ok(message)) = consumer.poll(Duration::ZERO) {
                let text = std::str::from_utf8(message.payload().unwrap()).unwrap();
                assert!(text.parse::<usize>().unwrap() >= 200);
                theirs += 1;
            }
            let Some(Event::Record(record)) =
                rt::timeout(Duration::from_millis(5), event(&mut a)).await
            else {
                continue;
            };
            if acknowledge(&one, &stream, std::slice::from_ref(&record)).await.is_empty() {
                seen.borrow_mut().insert(number(&record));
            }
        }
        assert!(theirs > 0 && seen.borrow().len() > 200);
    });
}

#[test]
fn a_group_goes_on_after_a_restart_and_records_are_read_only_as_they_are_taken() {
    run(async {
        let stream = fresh("restart");
        let before = client();
        // Four times what its windows hold together.
        append(&before, &stream, 0..4000, 4096).await;
        create(&before, &stream, 50).await;
        let mut member = take_part(&before, &stream, "m").await;
        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(record(&mut member).await);
        }
        let none = rt::timeout(Duration::from_millis(300), record(&mut member)).await;
        assert!(none.is_none(), "it holds as many as it may");
        let (done, left) = held.split_at(20);
        assert_eq!(acknowledge(&before, &stream, done).await, [""; 0]);
        drop(member);
        drop(before);
        let after = client();
        // Nobody takes part yet: what was handed out before can be done all the same.
        let (more, rest) = left.split_at(1);
        assert_eq!(acknowledge(&after, &stream, more).await, [""; 0]);
        let mut member = take_part(&after, &stream, "m").await;
        let mut last = std::collections::BTreeMap::new();
        let mut seen: BTreeSet<usize> = done.iter().chain(more).map(number).collect();
        let mut again = 0;
        while seen.len() < 4000 {
            let mut taken = vec![record(&mut member).await];
            while taken.len() < 50
                && let Some(one) = rt::timeout(Duration::from_millis(20), record(&mut member)).await
            {
                taken.push(one);
            }
            for one in &taken {
                let (partition, offset) = place(one);
                assert!(last.insert(partition, offset) < Some(offset), "in their order");
                again += usize::from(rest.iter().any(|other| number(other) == number(one)));
                seen.insert(number(one));
            }
            assert_eq!(acknowledge(&after, &stream, &taken).await, [""; 0]);
        }
        assert_eq!(again, rest.len(), "what was not done comes again, and once");
    });
}

async fn publish(client: &Direct<Kafka>, topic: &str, text: &str) {
    let payload = text.as_bytes().to_vec().into();
    let request = pubsub::PublishPersistentRequest {
        namespace: NAMESPACE.to_owned(),
        topic: topic.to_owned(),
        message: Some(Message { payload, ..Default::default() }),
    };
    let method = Method::PUBSUB_PUBLISH_PERSISTENT;
    let _: pubsub::PublishPersistentResponse = call(client, method, &request).await.unwrap();
}

async fn subscribe<'a>(
    client: &'a Direct<Kafka>,
    topic: &str,
    id: &str,
) -> <Direct<Kafka> as Client>::Opened<'a> {
    let request = pubsub::SubscribeDurableRequest {
        namespace: NAMESPACE.to_owned(),
        topic: topic.to_owned(),
        subscription_id: id.to_owned(),
        start: earliest(),
        ..Default::default()
    };
    let method = Method::PUBSUB_SUBSCRIBE_DURABLE;
    client.open(method, request.encode_to_vec()).await.expect("opened")
}

/// Text and receipt of the next event.
async fn heard(subscriber: &mut impl Opened) -> (String, String) {
    loop {
        let message = subscriber.next().await.expect("it goes on").expect("it goes on");
        let response = pubsub::SubscribeDurableResponse::decode(message).expect("valid");
        let event = response.event.expect("an event");
        if let pubsub::subscribe_durable_response::Event::Delivery(event) = event {
            let delivery = event.delivery.expect("a delivery");
            let payload = delivery.message.expect("a message").payload.to_vec();
            return (String::from_utf8(payload).expect("text"), delivery.receipt);
        }
    }
}

async fn done(client: &Direct<Kafka>, topic: &str, id: &str, receipts: Vec<String>) -> usize {
    let request = pubsub::AcknowledgeRequest {
        namespace: NAMESPACE.to_owned(),
        topic: topic.to_owned(),
        subscription_id: id.to_owned(),
        receipts,
    };
    let answer: pubsub::AcknowledgeResponse =
        call(client, Method::PUBSUB_ACKNOWLEDGE, &request).await.expect("answered");
    answer.results.iter().filter(|one| one.status.is_none()).count()
}

#[test]
fn receipts_of_a_durable_subscription_outlive_a_restart() {
    run(async {
        let (topic, id) = (fresh("lasting"), fresh("subscription"));
        let before = client();
        for text in ["0", "1", "2"] {
            publish(&before, &topic, text).await;
        }
        let mut subscriber = subscribe(&before, &topic, &id).await;
        let mut taken = Vec::new();
        for expected in ["0", "1", "2"] {
            let (text, receipt) = heard(&mut subscriber).await;
            assert_eq!(text, expected);
            taken.push(receipt);
        }
        drop(subscriber);
        drop(before);
        let after = client();
        let group = format!("{NAMESPACE}:{id}");
        let kafka_topic = format!("{NAMESPACE}.{topic}");
        assert_eq!(done(&after, &topic, &id, vec![taken[0].clone()]).await, 1);
        assert_eq!(committed(&group, &kafka_topic)[0], Some(1));
        assert_eq!(done(&after, &topic, &id, vec![taken[0].clone()]).await, 0, "it is done");
        let mut subscriber = subscribe(&after, &topic, &id).await;
        assert_eq!(heard(&mut subscriber).await.0, "1");
        // The receipt of the delivery before, while another one is under way.
        assert_eq!(done(&after, &topic, &id, taken[1..].to_vec()).await, 2);
        publish(&after, &topic, "3").await;
        let mut next = heard(&mut subscriber).await;
        if next.0 == "2" {
            // It was under way already.
            next = heard(&mut subscriber).await;
        }
        assert_eq!(next.0, "3");
        assert_eq!(committed(&group, &kafka_topic)[0], Some(3));
    });
}
