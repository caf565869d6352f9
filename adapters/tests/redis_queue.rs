//! Queues on a real Redis: what redis-cli sees of them, several hosts at once, those who wait, outages, and logged records.

mod servers;
mod twins;

use std::cell::{Cell as Slot, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::ending::Endings as _;
use prism_adapters::lane::{Cell, LaneBackend as _, LaneOwner, LaneRecord};
use prism_adapters::reader::Peek as _;
use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend as _, Context, Error, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConfigureDeadLetterRequest,
    ConfigureDeadLetterResponse, ReceiveRequest, ReceiveResponse, RedriveRequest, RedriveResponse,
    RejectRequest, RejectResponse, SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1::{Delivery, Message, message};
use prost::Message as _;
use servers::{LONG, OwnRedis};

const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config(server: &OwnRedis) -> RedisConfig {
    RedisConfig::at(server.address.ip().to_string(), server.address.port())
}

fn context(lsn: u64) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "jobs",
        partition: 0,
        now_us: wall_us(),
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
        revision: Revision::logged(lsn),
        limits: &LIMITS,
    }
}

async fn call<R: prost::Message + Default>(
    redis: &Redis,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Error> {
    thread_local!(static LSN: Slot<u64> = const { Slot::new(0) });
    LSN.set(LSN.get() + 1);
    let mut reply = Reply::default();
    let request = request.encode_to_vec();
    let context = context(LSN.get());
    redis.unary_checked(&context, method, &request, Redis::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn send_request(message: Message) -> SendRequest {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    SendRequest { namespace, queue, message: Some(message) }
}

fn text_message(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

async fn send(redis: &Redis, message: Message) -> String {
    let request = send_request(message);
    let sent: SendResponse = call(redis, Method::QUEUE_SEND, &request).await.expect("sent");
    sent.message_id
}

fn receive_request(max_messages: u32) -> ReceiveRequest {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    ReceiveRequest { namespace, queue, max_messages, ..Default::default() }
}

async fn receive(redis: &Redis, max_messages: u32) -> Vec<Delivery> {
    let request = receive_request(max_messages);
    let received: ReceiveResponse =
        call(redis, Method::QUEUE_RECEIVE, &request).await.expect("received");
    received.deliveries
}

fn text(delivery: &Delivery) -> String {
    let payload = delivery.message.as_ref().expect("it has its message").payload.clone();
    String::from_utf8(payload.into()).expect("text")
}

async fn acknowledge(redis: &Redis, receipt: &str) -> bool {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    let request = AcknowledgeRequest { namespace, queue, receipts: vec![receipt.to_owned()] };
    let answer: AcknowledgeResponse =
        call(redis, Method::QUEUE_ACKNOWLEDGE, &request).await.expect("answered");
    answer.results[0].status.is_none()
}

#[test]
fn redis_cli_reads_the_same_messages() {
    let server = OwnRedis::start(&[]);
    let (address, config) = (server.address, config(&server));
    let cli = move |arguments: &[&str]| servers::redis_cli(address, 0, arguments);
    rt::run(async move {
        let redis = Redis::start(config);
        let sent = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("country".to_owned(), "CH \"é\"".to_owned())].into(),
            ordering_key: "order-7".to_owned(),
            priority: Some(5),
            ..text_message("bezahlt €")
        };
        let id = send(&redis, sent.clone()).await;
        let delay = prost_types::Duration { seconds: 3600, nanos: 0 };
        let delivery_time = Some(message::DeliveryTime::Delay(delay));
        send(&redis, Message { delivery_time, ..text_message("later") }).await;
        let fields =
            ["id", "payload", "content-type", "attribute.country", "ordering-key", "priority"];
        let read = [&["HMGET", "jobs:mail.out:message:1"][..], &fields].concat();
        let expected = format!("{id}\nbezahlt €\ntext/plain\nCH \"é\"\norder-7\n5");
        assert_eq!(cli(&read), expected);
        assert_eq!(cli(&["ZRANGE", "jobs:mail.out:messages", "0", "-1"]), "1\n2");
        assert_eq!(cli(&["ZRANGE", "jobs:mail.out:ready", "0", "-1"]), "1");
        assert_eq!(cli(&["ZRANGE", "jobs:mail.out:later", "0", "-1"]), "2");

        let received = receive(&redis, 10).await;
        assert_eq!(received[0].message, Some(Message { id, ..sent }));
        assert_eq!(received.len(), 1);
        let ends: u64 = cli(&["ZSCORE", "jobs:mail.out:leased", "1"]).parse().unwrap();
        assert!(ends > wall_us());

        // A lease that somebody ends by hand is over, and a message that somebody deletes by hand is gone.
        cli(&["ZADD", "jobs:mail.out:leased", "1", "1"]);
        cli(&["ZADD", "jobs:mail.out:later", "1", "2"]);
        let again = receive(&redis, 10).await;
        assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["bezahlt €", "later"]);
        assert_eq!(again[1].message.as_ref().unwrap().delivery_time, delivery_time);
        assert!(acknowledge(&redis, &again[1].receipt).await);
        let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
        let settings = ConfigureDeadLetterRequest { namespace, queue, max_deliveries: 3 };
        let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
        let _: ConfigureDeadLetterResponse = call(&redis, method, &settings).await.unwrap();
        let request = RejectRequest {
            namespace: "jobs".to_owned(),
            queue: "mail.out".to_owned(),
            receipts: vec![again[0].receipt.clone()],
            reason: "no address".to_owned(),
        };
        let rejected: RejectResponse = call(&redis, Method::QUEUE_REJECT, &request).await.unwrap();
        assert_eq!(rejected.results[0].status, None);
        assert_eq!(cli(&["ZRANGE", "jobs:mail.out:dead", "0", "-1"]), "1");
        let dead = ["HMGET", "jobs:mail.out:message:1", "reason", "attempts"];
        assert_eq!(cli(&dead), "no address\n2");
        assert_eq!(cli(&["HGETALL", "jobs:mail.out"]), "last-number\n2\nmax-deliveries\n3");
        send(&redis, text_message("deleted")).await;
        cli(&["DEL", "jobs:mail.out:message:3"]);
        assert_eq!(receive(&redis, 10).await, []);
        let left = "jobs:mail.out\njobs:mail.out:dead\njobs:mail.out:message:1";
        let mut keys: Vec<_> = cli(&["KEYS", "*"]).lines().map(str::to_owned).collect();
        keys.sort();
        assert_eq!(keys.join("\n"), left, "nothing else is left behind");
    })
    .unwrap();
}

/// Two hosts and what a third has left behind: no message goes to two receivers, and a receipt is good at any of them.
#[test]
fn hosts_share_a_queue_and_a_receipt_outlives_its_host() {
    let server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move {
        let first = Rc::new(Redis::start(config.clone()));
        for number in 0..100 {
            let ordering_key = format!("key-{}", number % 10);
            send(&first, Message { ordering_key, ..text_message(&number.to_string()) }).await;
        }
        let hosts = [first.clone(), Rc::new(Redis::start(config.clone()))];
        let (seen, running) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Slot::new(8)));
        let done = Rc::new(rt::Signal::default());
        for worker in 0..8 {
            let (host, other) = (hosts[worker % 2].clone(), hosts[(worker + 1) % 2].clone());
            let (seen, running, done) = (seen.clone(), running.clone(), done.clone());
            rt::spawn(async move {
                let until = Instant::now() + LONG;
                while seen.borrow().len() < 100 && Instant::now() < until {
                    for delivery in receive(&host, 3).await {
                        seen.borrow_mut().push(text(&delivery).parse::<u32>().unwrap());
                        assert!(acknowledge(&other, &delivery.receipt).await);
                    }
                }
                running.set(running.get() - 1);
                if running.get() == 0 {
                    done.set();
                }
            });
        }
        done.wait().await;
        let seen = seen.take();
        assert_eq!(seen.len(), 100, "each is delivered once");
        for key in 0..10 {
            let of_key: Vec<u32> =
                seen.iter().copied().filter(|number| number % 10 == key).collect();
            assert!(of_key.is_sorted(), "key {key} came as {of_key:?}");
        }
        send(&first, text_message("held")).await;
        let held = receive(&first, 1).await;
        drop((first, hosts));
        let next = Redis::start(config);
        assert_eq!(receive(&next, 1).await, []);
        assert!(acknowledge(&next, &held[0].receipt).await);
        assert!(!acknowledge(&next, &held[0].receipt).await);
    })
    .unwrap();
}

async fn ready(redis: Rc<Redis>) {
    let request = receive_request(1).encode_to_vec();
    redis.ready(&context(0), Method::QUEUE_RECEIVE, &request).await;
}

/// Waits until somebody on a connection of topics is subscribed to the queue.
async fn until_somebody_waits(server: &OwnRedis, subscribers: &str) {
    let until = Instant::now() + LONG;
    let channel = "_prism:queue:jobs:mail.out";
    while server.cli(&["PUBSUB", "NUMSUB", channel]) != format!("{channel}\n{subscribers}") {
        assert!(Instant::now() < until, "nobody subscribes");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn who_waits_hears_of_messages_whoever_sends_them() {
    let server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move {
        let waiting = Rc::new(Redis::start(config.clone()));
        let other = Rc::new(Redis::start(config));
        for from in [waiting.clone(), other] {
            let (told, waiter) = (Rc::new(rt::Signal::default()), waiting.clone());
            let teller = told.clone();
            rt::spawn(async move {
                ready(waiter).await;
                teller.set();
            });
            until_somebody_waits(&server, "1").await;
            send(&from, text_message("x")).await;
            rt::timeout(LONG, told.wait()).await.expect("it hears of it");
            let received = receive(&waiting, 1).await;
            assert_eq!(text(&received[0]), "x");
            assert!(acknowledge(&waiting, &received[0].receipt).await);
        }
    })
    .unwrap();
}

/// A lease that ends, and a message whose time comes, tell nobody: who waits knows when to look again.
#[test]
fn who_waits_hears_of_what_comes_with_time() {
    let server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move {
        let redis = Rc::new(Redis::start(config));
        send(&redis, text_message("leased")).await;
        let visibility_timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let request = ReceiveRequest { visibility_timeout, ..receive_request(1) };
        let held: ReceiveResponse =
            call(&redis, Method::QUEUE_RECEIVE, &request).await.expect("received");
        assert_eq!(held.deliveries.len(), 1);
        rt::timeout(LONG, ready(redis.clone())).await.expect("the lease has ended");
        let again = receive(&redis, 1).await;
        assert_eq!((text(&again[0]), again[0].attempt), ("leased".to_owned(), 2));
        assert!(acknowledge(&redis, &again[0].receipt).await);
        let delay = prost_types::Duration { seconds: 1, nanos: 0 };
        let delivery_time = Some(message::DeliveryTime::Delay(delay));
        send(&redis, Message { delivery_time, ..text_message("delayed") }).await;
        rt::timeout(LONG, ready(redis.clone())).await.expect("its time has come");
        assert_eq!(text(&receive(&redis, 1).await[0]), "delayed");
    })
    .unwrap();
}

/// Whoever waits over an outage hears of what was sent after it, and what was sent before it is there.
#[test]
fn who_waits_over_an_outage_goes_on_waiting() {
    let mut server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move {
        let redis = Rc::new(Redis::start(config));
        send(&redis, text_message("before")).await;
        let held = receive(&redis, 1).await;
        let (done, waiter) = (Rc::new(rt::Signal::default()), redis.clone());
        let told = done.clone();
        rt::spawn(async move {
            // What is wrong ends a wait, and the call that follows says so; a caller then calls again.
            loop {
                ready(waiter.clone()).await;
                let request = receive_request(1);
                let received: Result<ReceiveResponse, _> =
                    call(&waiter, Method::QUEUE_RECEIVE, &request).await;
                match received {
                    Ok(received) if !received.deliveries.is_empty() => {
                        assert_eq!(text(&received.deliveries[0]), "after");
                        return told.set();
                    }
                    _ => rt::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        until_somebody_waits(&server, "1").await;
        server.kill();
        server.restart();
        until_somebody_waits(&server, "1").await;
        let until = Instant::now() + LONG;
        while call::<SendResponse>(&redis, Method::QUEUE_SEND, &send_request(text_message("after")))
            .await
            .is_err()
        {
            assert!(Instant::now() < until, "it does not come back");
            rt::sleep(Duration::from_millis(10)).await;
        }
        rt::timeout(LONG, done.wait()).await.expect("it hears of it");
        assert!(acknowledge(&redis, &held[0].receipt).await, "a lease survives the outage");
    })
    .unwrap();
}

#[test]
fn a_reader_looks_at_messages_and_takes_none() {
    let server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move {
        let redis = Redis::start(config);
        for number in 0..250 {
            send(&redis, text_message(&number.to_string())).await;
        }
        let held = receive(&redis, 2).await;
        let context = context(0);
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let looked = redis.peek(&context, "mail.out", false, after, 64).await.unwrap();
            after = looked.0.last().map(|one| one.number).or(after);
            assert!(looked.0.len() <= 64);
            let texts = looked.0.iter().map(|one| String::from_utf8_lossy(&one.record.value));
            seen.extend(texts.map(|text| text.parse::<u32>().unwrap()));
            if looked.1 {
                break;
            }
        }
        assert_eq!(seen, (0..250).collect::<Vec<_>>(), "leased ones too");
        assert_eq!(receive(&redis, 1000).await.len(), 248);
        assert!(acknowledge(&redis, &held[0].receipt).await);
    })
    .unwrap();
}

/// Where memory is used up, nothing is taken in by halves, and what is there can be taken out.
#[test]
fn a_full_redis_gives_out_what_it_has() {
    let server = OwnRedis::start(&["--maxmemory-policy", "noeviction"]);
    let (address, config) = (server.address, config(&server));
    let cli = move |arguments: &[&str]| servers::redis_cli(address, 0, arguments);
    rt::run(async move {
        let redis = Redis::start(config);
        for key in ["a", "a", ""] {
            let ordering_key = key.to_owned();
            send(&redis, Message { ordering_key, ..text_message("x") }).await;
        }
        cli(&["CONFIG", "SET", "maxmemory", "1"]);
        let request = send_request(text_message("no room"));
        let refused = call::<SendResponse>(&redis, Method::QUEUE_SEND, &request).await;
        assert_eq!(refused.unwrap_err().reason(), "BACKEND_FULL");
        assert_eq!(cli(&["HGET", "jobs:mail.out", "last-number"]), "3");
        let mut taken = 0;
        for expected in [2, 1] {
            let received = receive(&redis, 10).await;
            assert_eq!(received.len(), expected);
            for delivery in received {
                assert!(acknowledge(&redis, &delivery.receipt).await);
                taken += 1;
            }
        }
        assert_eq!((taken, cli(&["KEYS", "*"])), (3, "jobs:mail.out".to_owned()));
    })
    .unwrap();
}

/// What is sent at level `wal` arrives under the identity that the caller was told, and moves the lane's cell.
#[test]
fn logged_messages_go_with_the_cell() {
    let server = OwnRedis::start(&[]);
    let (address, config) = (server.address, config(&server));
    rt::run(async move {
        let redis = Redis::start(config);
        let until = Instant::now() + LONG;
        while redis.resume(&context(0), &OWNER).await.is_err() {
            assert!(Instant::now() < until, "it does not resume");
        }
        redis.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        // Redis has forgotten its scripts: the batch brings those that it needs.
        servers::redis_cli(address, 0, &["SCRIPT", "FLUSH"]);
        let requests: Vec<Vec<u8>> =
            ["a", "b"].map(|text| send_request(text_message(text)).encode_to_vec()).into();
        let receive = receive_request(2).encode_to_vec();
        let record = |lane_seq, method, request| {
            let context = context(lane_seq);
            LaneRecord { lane_seq, context, method, request }
        };
        let batch = [
            record(1, Method::QUEUE_SEND, &requests[0]),
            record(2, Method::QUEUE_SEND, &requests[1]),
            record(3, Method::QUEUE_RECEIVE, &receive),
        ];
        let mut outcomes = Vec::new();
        redis.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        let replies: Vec<_> =
            outcomes.drain(..).map(|outcome| outcome.unwrap().to_bytes()).collect();
        let told = SendResponse::decode(replies[0].clone()).unwrap().message_id;
        let received = ReceiveResponse::decode(replies[2].clone()).unwrap().deliveries;
        assert_eq!(received.iter().map(text).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(received[0].message.as_ref().unwrap().id, told);
        let cell = redis.resume(&context(0), &OWNER).await.unwrap().expect("it has one");
        assert_eq!(cell.lane_seq, 3);
    })
    .unwrap();
}

/// Dead letters as they lie in Redis, so many.
fn put_dead_letters(cli: impl Fn(&[&str]) -> String, count: usize) {
    let script = "for n = 1, tonumber(ARGV[1]) do \
                  redis.call('HSET', KEYS[1] .. ':message:' .. n, 'id', 'id-' .. n, 'payload', n, 'sent-at-us', 1) \
                  redis.call('ZADD', KEYS[1] .. ':dead', n, n) end \
                  redis.call('HSET', KEYS[1], 'last-number', ARGV[1], 'max-deliveries', 1)";
    cli(&["EVAL", script, "1", "jobs:mail.out", &count.to_string()]);
}

/// However many dead letters there are, no script puts back more than a page of them.
#[test]
fn many_dead_letters_are_put_back_a_page_at_a_time() {
    let server = OwnRedis::start(&[]);
    let (address, config) = (server.address, config(&server));
    let cli = move |arguments: &[&str]| servers::redis_cli(address, 0, arguments);
    let scripts = move || -> u64 {
        let stats = cli(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    rt::run(async move {
        let redis = Redis::start(config);
        put_dead_letters(cli, 2_500);
        let request = |ids: &[&str], limit| {
            let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
            let message_ids = ids.iter().map(|id| (*id).to_owned()).collect();
            RedriveRequest { namespace, queue, message_ids, limit }
        };
        let redrive = async |ids: &[&str], limit| -> u64 {
            let before = scripts();
            let method = Method::QUEUE_REDRIVE;
            let answer: RedriveResponse =
                call(&redis, method, &request(ids, limit)).await.expect("redriven");
            assert!(scripts() - before > answer.redriven / 1_000, "in pages");
            answer.redriven
        };
        assert_eq!(redrive(&["id-2400", "id-3", "id-9999"], 0).await, 2);
        assert_eq!(redrive(&[], 1_200).await, 1_200);
        assert_eq!(cli(&["ZCARD", "jobs:mail.out:dead"]), "1298");

        // A logged one is a part of a batch, and takes one page.
        redis.resume(&context(0), &OWNER).await.unwrap();
        redis.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        let (all, named) =
            (request(&[], 0).encode_to_vec(), request(&["id-2499"], 0).encode_to_vec());
        let record = |lane_seq, request| {
            let (context, method) = (context(lane_seq), Method::QUEUE_REDRIVE);
            LaneRecord { lane_seq, context, method, request }
        };
        let mut outcomes = Vec::new();
        redis.apply(&OWNER, &[record(1, &named), record(2, &all)], &mut outcomes).await.unwrap();
        let redriven = outcomes
            .drain(..)
            .map(|outcome| RedriveResponse::decode(outcome.unwrap().to_bytes()).unwrap().redriven);
        assert_eq!(redriven.collect::<Vec<_>>(), [1, 1_000]);
        assert_eq!(redrive(&[], 0).await, 297);
        assert_eq!(redrive(&[], 0).await, 0);
        assert_eq!(cli(&["ZCARD", "jobs:mail.out:ready"]), "2500");
        assert_eq!(receive(&redis, 1).await.len(), 1);
    })
    .unwrap();
}

/// A queue in which there is nothing leaves its hash, which nobody would miss.
#[test]
fn what_is_left_of_an_empty_queue_is_no_data() {
    let server = OwnRedis::start(&[]);
    let (address, config) = (server.address, config(&server));
    let cli = move |arguments: &[&str]| servers::redis_cli(address, 0, arguments);
    rt::run(async move {
        let redis = Redis::start(config);
        let request = ConfigureDeadLetterRequest {
            namespace: "jobs".to_owned(),
            queue: "mail.out".to_owned(),
            max_deliveries: 3,
        };
        let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
        let _: ConfigureDeadLetterResponse = call(&redis, method, &request).await.unwrap();
        send(&redis, text_message("a")).await;
        assert!(redis.holds_data(&context(0)).await.unwrap());
        let delivery = receive(&redis, 1).await.remove(0);
        assert!(acknowledge(&redis, &delivery.receipt).await);
        assert_eq!(cli(&["KEYS", "*"]), "jobs:mail.out");
        assert!(!redis.holds_data(&context(0)).await.unwrap());
        for foreign in
            [&["HSET", "jobs:mail.out", "by hand", "1"][..], &["SET", "jobs:key", "1"][..]]
        {
            cli(foreign);
            assert!(redis.holds_data(&context(0)).await.unwrap(), "{foreign:?}");
            redis.erase(&context(0)).await.unwrap();
            assert_eq!(cli(&["DBSIZE"]), "0");
            assert!(!redis.holds_data(&context(0)).await.unwrap());
        }
    })
    .unwrap();
}

/// The same random calls on memstore and on Redis, at the same times.
#[test]
fn random_calls_are_answered_as_memstore_answers_them() {
    let server = OwnRedis::start(&[]);
    let config = config(&server);
    rt::run(async move { twins::queues_agree(Redis::start(config)).await }).unwrap();
}
