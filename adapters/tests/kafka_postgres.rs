//! A queue on a real Kafka and a real PostgreSQL together: the suite, what lies where, and what becomes of it when one of them is away or
//! has lost something.

mod servers;

use std::cell::Cell as Slot;
use std::time::{Duration, Instant, SystemTime};

use prism_adapters::conformance::{Direct, run};
use prism_adapters::ending::Endings as _;
use prism_adapters::kafka::KafkaConfig;
use prism_adapters::kafka_postgres::{KafkaPostgres, PAYLOAD_GONE};
use prism_adapters::lane::{Cell, LaneBackend as _, LaneOwner, LaneRecord};
use prism_adapters::postgres::PostgresConfig;
use prism_adapters::{Backend as _, Context, Error, Kind, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConfigureDeadLetterRequest,
    ConfigureDeadLetterResponse, DeadLetter, ListDeadLettersRequest, ListDeadLettersResponse,
    ReceiveRequest, ReceiveResponse, RejectRequest, RejectResponse, SendBatchRequest,
    SendBatchResponse, SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1::{Delivery, Message};
use prost::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use servers::{LONG, OwnKafka, psql};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

/// One test's namespace: its name, its database, and where both servers are.
struct Place {
    namespace: String,
    database: String,
    kafka: KafkaConfig,
    postgres: PostgresConfig,
}

impl Place {
    fn new(name: &str) -> Self {
        Self::at(name, servers::address("kafka"))
    }

    /// One of names that no other run has used.
    fn at(name: &str, kafka: std::net::SocketAddr) -> Self {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
        let (namespace, database) =
            (format!("{name}-{since:x}"), format!("prism_{name}_{since:x}"));
        let address = servers::empty_database(&database);
        let postgres = PostgresConfig {
            password: Some("prism".to_owned()),
            database: database.clone(),
            ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
        };
        let brokers = vec![kafka.to_string()];
        let kafka = KafkaConfig { partitions: 3, answer_timeout: LONG, ..KafkaConfig::at(brokers) };
        Place { namespace, database, kafka, postgres }
    }

    fn start(&self) -> KafkaPostgres {
        KafkaPostgres::start(self.kafka.clone(), self.postgres.clone())
    }

    fn context(&self, lsn: u64) -> Context<'_> {
        Context {
            namespace: 1,
            namespace_name: &self.namespace,
            partition: 0,
            now_us: wall_us(),
            revision: Revision::logged(lsn),
            limits: &LIMITS,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        }
    }

    async fn call<R: prost::Message + Default>(
        &self,
        pair: &KafkaPostgres,
        method: Method,
        request: &impl prost::Message,
    ) -> Result<R, Error> {
        thread_local!(static LSN: Slot<u64> = const { Slot::new(0) });
        LSN.set(LSN.get() + 1);
        let (mut reply, request) = (Reply::default(), request.encode_to_vec());
        let context = self.context(LSN.get());
        pair.unary_checked(&context, method, &request, KafkaPostgres::SERVES, &mut reply).await?;
        Ok(R::decode(reply.to_bytes()).expect("a valid message"))
    }

    fn queue(&self) -> (String, String) {
        (self.namespace.clone(), "mail".to_owned())
    }

    async fn send(&self, pair: &KafkaPostgres, message: Message) -> String {
        let (namespace, queue) = self.queue();
        let request = SendRequest { namespace, queue, message: Some(message) };
        let sent: SendResponse = self.call(pair, Method::QUEUE_SEND, &request).await.expect("sent");
        sent.message_id
    }

    async fn receive(&self, pair: &KafkaPostgres, max: u32) -> Result<Vec<Delivery>, Error> {
        let (namespace, queue) = self.queue();
        let request = ReceiveRequest { namespace, queue, max_messages: max, ..Default::default() };
        let received: ReceiveResponse = self.call(pair, Method::QUEUE_RECEIVE, &request).await?;
        Ok(received.deliveries)
    }

    async fn acknowledge(&self, pair: &KafkaPostgres, receipt: &str) -> bool {
        let (namespace, queue) = self.queue();
        let receipts = vec![receipt.to_owned()];
        let request = AcknowledgeRequest { namespace, queue, receipts };
        let done: AcknowledgeResponse =
            self.call(pair, Method::QUEUE_ACKNOWLEDGE, &request).await.expect("answered");
        done.results[0].status.is_none()
    }

    async fn keep_dead_letters(&self, pair: &KafkaPostgres, max_deliveries: u32) {
        let (namespace, queue) = self.queue();
        let request = ConfigureDeadLetterRequest { namespace, queue, max_deliveries };
        let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
        let _: ConfigureDeadLetterResponse =
            self.call(pair, method, &request).await.expect("configured");
    }

    async fn dead_letters(&self, pair: &KafkaPostgres) -> Vec<DeadLetter> {
        let (namespace, queue) = self.queue();
        let request = ListDeadLettersRequest { namespace, queue, ..Default::default() };
        let listed: ListDeadLettersResponse =
            self.call(pair, Method::QUEUE_LIST_DEAD_LETTERS, &request).await.expect("listed");
        listed.dead_letters
    }

    fn sql(&self, statement: &str) -> String {
        let address = servers::address("postgres");
        psql(address, &self.database, &statement.replace("{ns}", &self.namespace))
    }

    fn topic(&self) -> String {
        format!("{}-queue", self.namespace)
    }

    /// All records of the topic, as a plain client reads them.
    fn records(&self) -> Vec<OwnedMessage> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka.brokers[0])
            .set("group.id", "a-test")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let (topic, mut list, mut left) = (self.topic(), TopicPartitionList::new(), 0);
        let until = Instant::now() + LONG;
        for partition in 0..self.kafka.partitions as i32 {
            let (first, end) = loop {
                match consumer.fetch_watermarks(&topic, partition, LONG) {
                    Ok(bounds) => break bounds,
                    // Of a topic that is new the leaders may not be known yet.
                    Err(error) => assert!(Instant::now() < until, "{error}"),
                }
            };
            left += end - first;
            list.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let (mut records, until) = (Vec::new(), Instant::now() + LONG);
        while (records.len() as i64) < left {
            assert!(Instant::now() < until, "{} of {left} records came", records.len());
            if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                records.push(record.unwrap().detach());
            }
        }
        records
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let address = servers::address("postgres");
        psql(address, "prism", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database));
    }
}

fn text_message(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |delivery: &Delivery| {
        let payload = delivery.message.as_ref().expect("it has its message").payload.clone();
        String::from_utf8(payload.into()).expect("text")
    };
    deliveries.iter().map(text).collect()
}

#[test]
fn it_conforms() {
    let place = Place::new("conforms");
    rt::run(async move {
        let ran = run(&Direct::new(place.start())).await;
        assert!(ran.len() > 15, "{ran:?}");
    })
    .unwrap();
}

#[test]
fn a_payload_is_a_record_of_kafka_and_its_row_says_where() {
    let place = Place::new("lies");
    rt::run(async move {
        let pair = place.start();
        let sent = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("country".to_owned(), "CH".to_owned())].into(),
            ordering_key: "order-7".to_owned(),
            priority: Some(5),
            ..text_message("paid")
        };
        let id = place.send(&pair, sent.clone()).await;

        let [record] = &place.records()[..] else { panic!("one message, one record") };
        assert_eq!((record.key(), record.payload()), (Some(&b"order-7"[..]), Some(&b"paid"[..])));
        let headers = record.headers().expect("it has headers");
        let headers: Vec<_> = headers
            .iter()
            .map(|one| (one.key, String::from_utf8_lossy(one.value.unwrap_or_default())))
            .collect();
        let expected = [
            ("content-type", "text/plain"),
            ("country", "CH"),
            ("prism.message-id", &id),
            ("prism.queue", "mail"),
        ];
        assert_eq!(headers, expected.map(|(key, value)| (key, value.into())));

        let row = "SELECT message_id, length(payload), attributes->>'prism.kafka', attributes->>'prism.bytes', \
                   attributes->>'country' FROM \"{ns}\".queue";
        let at = format!("{}/{}", record.partition(), record.offset());
        assert_eq!(place.sql(row), format!("{id}|0|{at}|4|CH"));

        // Whoever receives it sees nothing of that, also at a host that has not sent it.
        drop(pair);
        let other = place.start();
        let received = place.receive(&other, 10).await.expect("received");
        assert_eq!(received[0].message, Some(Message { id, ..sent }));
        assert!(place.acknowledge(&other, &received[0].receipt).await);
        assert_eq!(place.sql("SELECT count(*) FROM \"{ns}\".queue"), "0");
        assert_eq!(place.records().len(), 1, "what was acknowledged stays in the topic");
    })
    .unwrap();
}

/// Messages whose payloads are far apart, empty, or large, at a host that has none of them in memory.
#[test]
fn another_host_finds_every_payload_and_an_answer_stays_within_its_bounds() {
    let place = Place::new("finds");
    rt::run(async move {
        let pair = place.start();
        let large = "x".repeat(1024 * 1024);
        let payloads: Vec<String> = (0..2000)
            .map(|number| match number {
                0 => String::new(),
                1..=5 => large.clone(),
                number => number.to_string(),
            })
            .collect();
        for some in payloads.chunks(100) {
            let (namespace, queue) = place.queue();
            let messages = some.iter().map(|text| text_message(text)).collect();
            let request = SendBatchRequest { namespace, queue, messages };
            let sent: SendBatchResponse =
                place.call(&pair, Method::QUEUE_SEND_BATCH, &request).await.expect("sent");
            assert!(sent.results.iter().all(|result| result.status.is_none()), "{sent:?}");
        }
        drop(pair);
        let other = place.start();
        // Only the first and the last are left in line, which is as far apart as can be.
        place.sql("UPDATE \"{ns}\".queue SET visible_at = now() + interval '1 hour' WHERE id BETWEEN 11 AND 1990");
        let mut received: Vec<String> = Vec::new();
        let until = Instant::now() + LONG * 3;
        while received.len() < 20 {
            assert!(Instant::now() < until, "{} came", received.len());
            let deliveries = place.receive(&other, 1000).await.expect("received");
            let bytes: usize = deliveries.iter().map(Delivery::encoded_len).sum();
            assert!(bytes <= LIMITS.max_message_size, "{bytes} in one answer");
            received.extend(texts(&deliveries));
        }
        let expected: Vec<_> = payloads[..10].iter().chain(&payloads[1990..]).cloned().collect();
        assert_eq!(received, expected);
    })
    .unwrap();
}

/// What retention has removed is given up, and holds up nobody.
#[test]
fn a_message_whose_payload_is_gone_is_given_up_and_the_others_come() {
    let place = Place::new("gone");
    rt::run(async move {
        let pair = place.start();
        place.keep_dead_letters(&pair, 5).await;
        let message = |text| Message { ordering_key: "k".to_owned(), ..text_message(text) };
        let first = place.send(&pair, message("first")).await;
        place.send(&pair, message("second")).await;
        let record = place.records().into_iter().find(|one| one.payload() == Some(b"first"));
        let record = record.expect("it is there");
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &place.kafka.brokers[0]).create().unwrap();
        let mut list = TopicPartitionList::new();
        let until = Offset::Offset(record.offset() + 1);
        list.add_partition_offset(record.topic(), record.partition(), until).unwrap();
        let deleting = admin.delete_records(&list, &AdminOptions::new());
        let deleted = prism_adapters::conformance::block_on(deleting);
        deleted.expect("the records are deleted");
        drop(pair);
        let other = place.start();
        let mut came = Vec::new();
        let until = Instant::now() + LONG;
        while came.is_empty() {
            assert!(Instant::now() < until, "the second comes");
            came = texts(&place.receive(&other, 10).await.expect("received"));
        }
        assert_eq!(came, ["second"]);
        let dead = place.dead_letters(&other).await;
        let [letter] = &dead[..] else { panic!("{dead:?}") };
        let of_letter = letter.message.as_ref().expect("it is told");
        assert_eq!((letter.reason.as_str(), &of_letter.id), (PAYLOAD_GONE, &first));
        assert!(of_letter.payload.is_empty() && of_letter.attributes.is_empty());
    })
    .unwrap();
}

#[test]
fn dead_letters_have_their_payloads() {
    let place = Place::new("dead");
    rt::run(async move {
        let pair = place.start();
        place.keep_dead_letters(&pair, 5).await;
        place.send(&pair, text_message("unreadable")).await;
        let received = place.receive(&pair, 1).await.expect("received");
        let (namespace, queue) = place.queue();
        let receipts = vec![received[0].receipt.clone()];
        let request = RejectRequest { namespace, queue, receipts, reason: "why not".to_owned() };
        let _: RejectResponse =
            place.call(&pair, Method::QUEUE_REJECT, &request).await.expect("rejected");
        drop(pair);
        let dead = place.dead_letters(&place.start()).await;
        let [letter] = &dead[..] else { panic!("{dead:?}") };
        let message = letter.message.as_ref().expect("it is told");
        assert_eq!((&message.payload[..], letter.reason.as_str()), (&b"unreadable"[..], "why not"));
    })
    .unwrap();
}

/// A Receive that cannot be given its payloads was no delivery: it does not count, and the messages come when Kafka does.
#[test]
fn while_kafka_is_away_nothing_is_delivered_and_no_attempt_is_counted() {
    let mut kafka = OwnKafka::start();
    let mut place = Place::at("away", kafka.address);
    place.kafka.answer_timeout = Duration::from_secs(2);
    rt::run(async move {
        let pair = place.start();
        let until = Instant::now() + LONG * 2;
        let (namespace, queue) = place.queue();
        let message = Some(text_message("kept"));
        let request = SendRequest { namespace, queue, message };
        // A new topic may take longer than one call has.
        while place.call::<SendResponse>(&pair, Method::QUEUE_SEND, &request).await.is_err() {
            assert!(Instant::now() < until, "it is sent");
        }
        drop(pair);
        // At this host the payload is not in memory, and the cluster is there when it is asked for it, but does not answer.
        let other = place.start();
        assert!(place.dead_letters(&other).await.is_empty());
        kafka.set_frozen(true);
        for _ in 0..3 {
            let refused = place.receive(&other, 1).await.expect_err("Kafka is away");
            assert_eq!(refused.kind(), Kind::Unavailable, "{refused:?}");
            assert!(refused.message().contains("kafka"), "{refused:?}");
        }
        assert_eq!(place.sql("SELECT max(attempts), count(lease) FROM \"{ns}\".queue"), "0|0");
        kafka.set_frozen(false);
        let until = Instant::now() + LONG * 3;
        let received = loop {
            assert!(Instant::now() < until, "it comes when Kafka is back");
            match place.receive(&other, 1).await {
                Ok(received) if !received.is_empty() => break received,
                _ => rt::sleep(Duration::from_millis(100)).await,
            }
        };
        assert_eq!((texts(&received), received[0].attempt), (vec!["kept".to_owned()], 1));
        kafka.kill();
    })
    .unwrap();
}

#[test]
fn a_namespace_that_ends_leaves_neither_rows_nor_payloads() {
    let place = Place::new("ends");
    rt::run(async move {
        let pair = place.start();
        let context = place.context(0);
        assert!(!pair.holds_data(&context).await.expect("it is asked"));
        place.send(&pair, text_message("gone soon")).await;
        assert!(pair.holds_data(&context).await.expect("it is asked"));
        pair.erase(&context).await.expect("it is erased");
        pair.erase(&context).await.expect("nothing is left to erase, which is no error");
        assert!(!pair.holds_data(&context).await.expect("it is asked"));
        let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = '{ns}'";
        assert_eq!(place.sql(schemas), "0");
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &place.kafka.brokers[0]).create().unwrap();
        let topics = consumer.fetch_metadata(None, LONG).unwrap();
        assert!(topics.topics().iter().all(|topic| topic.name() != place.topic()));
    })
    .unwrap();
}

/// What is sent at level `wal` has one effect, however often its batch is sent; a payload that arrived without its row is delivered to nobody.
#[test]
fn logged_messages_have_one_effect() {
    const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
    let place = Place::new("lane");
    rt::run(async move {
        let pair = place.start();
        let until = Instant::now() + LONG;
        while pair.resume(&place.context(0), &OWNER).await.is_err() {
            assert!(Instant::now() < until, "it does not resume");
        }
        pair.set_cell(&place.context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        let request = |text| {
            let (namespace, queue) = place.queue();
            SendRequest { namespace, queue, message: Some(text_message(text)) }.encode_to_vec()
        };
        let requests = ["a", "b"].map(request);
        let (namespace, queue) = place.queue();
        let receive = ReceiveRequest { namespace, queue, max_messages: 2, ..Default::default() };
        let receive = receive.encode_to_vec();
        let record = |lane_seq, method, request| {
            let context = place.context(lane_seq);
            LaneRecord { lane_seq, context, method, request }
        };
        let batch = [
            record(1, Method::QUEUE_SEND, &requests[0][..]),
            record(2, Method::QUEUE_SEND, &requests[1]),
            record(3, Method::QUEUE_RECEIVE, &receive),
        ];
        // The row's way is barred: the payloads have arrived, and nothing else.
        place.sql("ALTER TABLE \"{ns}\".cell RENAME TO barred");
        let mut outcomes = Vec::new();
        pair.apply(&OWNER, &batch, &mut outcomes).await.expect_err("there is no cell");
        place.sql("ALTER TABLE \"{ns}\".barred RENAME TO cell");
        assert_eq!(place.records().len(), 2);
        pair.resume(&place.context(0), &OWNER).await.unwrap();
        outcomes.clear();
        pair.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        let replies: Vec<_> =
            outcomes.drain(..).map(|outcome| outcome.unwrap().to_bytes()).collect();
        let told = SendResponse::decode(replies[0].clone()).unwrap().message_id;
        let received = ReceiveResponse::decode(replies[2].clone()).unwrap().deliveries;
        assert_eq!(texts(&received), ["a", "b"]);
        assert_eq!(received[0].message.as_ref().unwrap().id, told);
        assert_eq!(place.records().len(), 2, "what had arrived is not sent again");
        let again = pair.apply(&OWNER, &batch, &mut outcomes).await;
        assert_eq!(again.unwrap_err().reason(), "LANE_MOVED");
        let rows = "SELECT count(*), max(lane_seq) FROM \"{ns}\".queue, \"{ns}\".cell";
        assert_eq!(place.sql(rows), "2|3");
    })
    .unwrap();
}
