//! Topics on a real PostgreSQL: what psql sees of them, what is heard of what psql writes, and what outlives a host.

mod servers;

use std::cell::{Cell as Slot, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prism_adapters::lane::{Cell, LaneBackend as _, LaneOwner, LaneRecord};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::{Backend as _, Context, Error, Kind, Limits, PageSink, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{
    AcknowledgeRequest, AcknowledgeResponse, EventDelivery, PublishOrderedRequest,
    PublishOrderedResponse, PublishRequest, PublishResponse, SubscribeDurableRequest,
    SubscribePatternRequest, SubscribeResponse, subscribe_response,
};
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prost::Message as _;
use servers::{LONG, psql};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

/// An empty database, and settings for it.
fn config(database: &str) -> PostgresConfig {
    let address = servers::empty_database(database);
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        look_every: Duration::from_millis(20),
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

fn context() -> Context<'static> {
    thread_local!(static LSN: Slot<u64> = const { Slot::new(0) });
    LSN.set(LSN.get() + 1);
    Context {
        namespace: 1,
        namespace_name: "shop",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(LSN.get()),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn call<R: prost::Message + Default>(
    postgres: &Postgres,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Error> {
    let mut reply = Reply::default();
    let request = request.encode_to_vec();
    postgres.unary_checked(&context(), method, &request, Postgres::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn event(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

async fn publish(postgres: &Postgres, topic: &str, message: Message) -> PublishResponse {
    let (namespace, topic, message) = ("shop".to_owned(), topic.to_owned(), Some(message));
    let request = PublishRequest { namespace, topic, message };
    call(postgres, Method::PUBSUB_PUBLISH, &request).await.expect("published")
}

fn text(delivery: &EventDelivery) -> String {
    let message =
        delivery.delivery.as_ref().and_then(|one| one.message.as_ref()).expect("an event");
    String::from_utf8(message.payload.to_vec()).expect("text")
}

/// What a stream has sent, as its test hears it; the stream ends when the test has heard enough.
#[derive(Clone, Default)]
struct Ear {
    heard: Rc<RefCell<Vec<EventDelivery>>>,
    started: Rc<Slot<bool>>,
    enough: Rc<Slot<bool>>,
    news: Rc<prism_adapters::News>,
}

fn gone() -> Error {
    Error::new(Kind::Cancelled, "CANCELLED", "the caller has heard enough")
}

impl PageSink for Ear {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        match SubscribeResponse::decode(message).unwrap().event.unwrap() {
            subscribe_response::Event::Started(_) => self.started.set(true),
            subscribe_response::Event::Delivery(delivery) => {
                self.heard.borrow_mut().push(delivery);
            }
        }
        self.news.tell();
        if self.enough.get() { Err(gone()) } else { Ok(()) }
    }

    fn now_us(&self) -> u64 {
        wall_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        rt::timeout(Duration::from_millis(20), event).await;
        if self.enough.get() { Err(gone()) } else { Ok(()) }
    }

    async fn write(&mut self, _: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        panic!("PostgreSQL keeps what a stream changes itself")
    }
}

impl Ear {
    /// Opens a stream and waits until it has begun.
    async fn open(postgres: &Rc<Postgres>, method: Method, request: &impl prost::Message) -> Self {
        let ear = Ear::default();
        let (postgres, request, mut sink) =
            (postgres.clone(), request.encode_to_vec(), ear.clone());
        rt::spawn(async move {
            let ended = postgres.stream(&context(), method, &request, &mut sink).await;
            assert_eq!(ended.unwrap_err().reason(), "CANCELLED");
        });
        ear.until(|ear| ear.started.get()).await;
        ear
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + LONG;
        let mut told = self.news.listen();
        while !done(self) {
            assert!(Instant::now() < until, "it heard {:?}", self.heard.borrow());
            rt::timeout(Duration::from_millis(100), &mut told).await;
        }
    }

    async fn texts(&self, count: usize) -> Vec<String> {
        self.until(|ear| ear.heard.borrow().len() >= count).await;
        self.heard.borrow().iter().map(text).collect()
    }
}

fn durable_request() -> SubscribeDurableRequest {
    SubscribeDurableRequest {
        namespace: "shop".to_owned(),
        topic: "orders.placed".to_owned(),
        subscription_id: "mailer".to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    }
}

#[test]
fn psql_reads_and_writes_the_same_events() {
    let database = "prism_pubsub_read_back";
    let config = config(database);
    let address = servers::address("postgres");
    let sql = move |statement: &str| psql(address, database, statement);
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        let message = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("country".to_owned(), "CH".to_owned())].into(),
            ordering_key: "order-7".to_owned(),
            ..event("bezahlt €")
        };
        let (namespace, topic) = ("shop".to_owned(), "orders.placed".to_owned());
        let request = PublishOrderedRequest { namespace, topic, message: Some(message) };
        let method = Method::PUBSUB_PUBLISH_ORDERED;
        let published: PublishOrderedResponse = call(&postgres, method, &request).await.unwrap();
        let row = "SELECT id, topic, message_id, convert_from(payload, 'UTF8'), content_type, attributes->>'country', ordering_key \
                   FROM shop.pubsub";
        let (id, offset) = (published.message_id, published.position.unwrap().offset);
        let expected = format!("{offset}|orders.placed|{id}|bezahlt €|text/plain|CH|order-7");
        assert_eq!(sql(row), expected);

        // What is published by hand is heard like any other, by whoever is there and by whoever comes.
        let (namespace, pattern) = ("shop".to_owned(), "orders.*".to_owned());
        let request = SubscribePatternRequest { namespace, pattern, ..Default::default() };
        let passing = Ear::open(&postgres, Method::PUBSUB_SUBSCRIBE_PATTERN, &request).await;
        sql("INSERT INTO shop.pubsub (topic, payload) VALUES ('orders.placed', 'by hand'), ('other', 'x')");
        assert_eq!(passing.texts(1).await, ["by hand"]);
        let method = Method::PUBSUB_SUBSCRIBE_DURABLE;
        let durable = Ear::open(&postgres, method, &durable_request()).await;
        assert_eq!(durable.texts(2).await, ["bezahlt €", "by hand"]);
        assert_eq!(sql("SELECT subscription, topic FROM shop.pubsub_subscription"), "mailer|orders.placed");
        assert_eq!(sql("SELECT count(*) FROM shop.pubsub_delivery WHERE subscription = 'mailer'"), "2");

        // A subscription's place, and a receipt, outlive their host; what is not acknowledged comes to the next.
        let receipt = durable.heard.borrow()[0].delivery.clone().unwrap().receipt;
        durable.enough.set(true);
        passing.enough.set(true);
        let next = Rc::new(Postgres::start(PostgresConfig {
            password: Some("prism".to_owned()),
            database: database.to_owned(),
            ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
        }));
        let SubscribeDurableRequest { namespace, topic, subscription_id, .. } = durable_request();
        let request =
            AcknowledgeRequest { namespace, topic, subscription_id, receipts: vec![receipt] };
        let method = Method::PUBSUB_ACKNOWLEDGE;
        let done: AcknowledgeResponse = call(&next, method, &request).await.unwrap();
        assert_eq!(done.results[0].status, None);
        let heir = Ear::open(&next, Method::PUBSUB_SUBSCRIBE_DURABLE, &durable_request()).await;
        assert_eq!(heir.texts(1).await, ["by hand"]);
        assert_eq!(heir.heard.borrow()[0].delivery.as_ref().unwrap().attempt, 2);
        heir.enough.set(true);
    })
    .unwrap();
}

#[test]
fn who_is_there_hears_everything_in_order_also_across_a_lost_connection() {
    let database = "prism_pubsub_cut";
    let config = config(database);
    let address = servers::address("postgres");
    let proxy = servers::Proxy::to(address);
    rt::run(async move {
        let publisher = Postgres::start(config.clone());
        let port = proxy.address.port();
        let postgres = Rc::new(Postgres::start(PostgresConfig { port, ..config }));
        let (namespace, pattern) = ("shop".to_owned(), "orders.>".to_owned());
        let request = SubscribePatternRequest { namespace, pattern, ..Default::default() };
        let ear = Ear::open(&postgres, Method::PUBSUB_SUBSCRIBE_PATTERN, &request).await;
        for number in 0..30 {
            if number % 10 == 5 {
                proxy.cut();
            }
            publish(&publisher, "orders.placed", event(&number.to_string())).await;
        }
        let expected: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        assert_eq!(ear.texts(30).await, expected);
        ear.enough.set(true);
    })
    .unwrap();
}

#[test]
fn logged_events_have_one_effect() {
    const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
    let database = "prism_pubsub_lane";
    let config = config(database);
    let address = servers::address("postgres");
    rt::run(async move {
        let postgres = Postgres::start(config);
        let until = Instant::now() + LONG;
        while postgres.resume(&context(), &OWNER).await.is_err() {
            assert!(Instant::now() < until, "it does not resume");
        }
        postgres.set_cell(&context(), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        let request = |text| {
            let (namespace, topic) = ("shop".to_owned(), "orders.placed".to_owned());
            PublishRequest { namespace, topic, message: Some(event(text)) }.encode_to_vec()
        };
        let requests = ["a", "b", "c"].map(request);
        let record = |(number, request)| {
            let method = Method::PUBSUB_PUBLISH;
            LaneRecord { lane_seq: number, context: context(), method, request }
        };
        let batch: Vec<_> = (1..).zip(requests.iter().map(Vec::as_slice)).map(record).collect();
        let mut outcomes = Vec::new();
        postgres.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        let told = outcomes[2].as_ref().unwrap().to_bytes();
        let told = PublishResponse::decode(told).unwrap();
        let again = postgres.apply(&OWNER, &batch, &mut Vec::new()).await;
        assert_eq!(again.unwrap_err().reason(), "LANE_MOVED");
        let rows =
            "SELECT string_agg(convert_from(payload, 'UTF8'), '' ORDER BY id) FROM shop.pubsub";
        assert_eq!(psql(address, database, rows), "abc");
        let newest = "SELECT message_id, id FROM shop.pubsub ORDER BY id DESC LIMIT 1";
        let expected = format!("{}|{}", told.message_id, told.position.unwrap().offset);
        assert_eq!(psql(address, database, newest), expected);
    })
    .unwrap();
}

#[test]
fn what_everybody_has_done_with_is_swept_but_for_the_newest() {
    let database = "prism_pubsub_sweep";
    let config =
        PostgresConfig { sweep_every: Some(Duration::from_millis(20)), ..config(database) };
    let address = servers::address("postgres");
    let sql = move |statement: &str| psql(address, database, statement);
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        publish(&postgres, "orders.placed", event("first")).await;
        let method = Method::PUBSUB_SUBSCRIBE_DURABLE;
        let durable = Ear::open(&postgres, method, &durable_request()).await;
        assert_eq!(durable.texts(1).await, ["first"]);
        durable.enough.set(true);
        for topic in ["orders.placed", "unheard"] {
            sql(&format!(
                "INSERT INTO shop.pubsub (topic, payload, published_at) \
                 SELECT '{topic}', '', now() - interval '1 hour' FROM generate_series(1, 1500)"
            ));
        }
        let until = Instant::now() + LONG;
        while sql("SELECT count(*) FROM shop.pubsub WHERE topic = 'unheard'") != "1000" {
            assert!(Instant::now() < until, "it is not swept");
            rt::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(sql("SELECT count(*) FROM shop.pubsub WHERE topic = 'orders.placed'"), "1501");
        let trimmed: i64 =
            sql("SELECT id FROM shop.pubsub_trimmed WHERE topic = 'unheard'").parse().unwrap();
        let offset = (trimmed - 10).to_string();
        let position = prism_proto::prism::r#type::v1::Position { partition: 0, offset };
        let start = Some(Start { start: Some(start::Start::At(position)) });
        let (topic, subscription_id) = ("unheard".to_owned(), "late".to_owned());
        let request =
            SubscribeDurableRequest { topic, subscription_id, start, ..durable_request() };
        let bytes = request.encode_to_vec();
        let ended = postgres.stream(&context(), method, &bytes, &mut Ear::default()).await;
        assert_eq!(ended.unwrap_err().reason(), "POSITION_TRIMMED");
    })
    .unwrap();
}
