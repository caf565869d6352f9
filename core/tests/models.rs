//! Queues and streams through the whole proxy: what waits, what a retry hears, and what a process leaves behind that is killed.

mod harness;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::frames::{Frame, Raw};
use harness::{Caller, Server, directory, run, serve, together};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::kind;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Delivery, Message, Start, start};
use prost::Message as _;
use prost_types::Duration as Span;

const CONFIG: &str = "wal: {segment_bytes: 20MiB}\nnamespaces:\n  - {name: jobs, client_api: queue}\n  - {name: facts, client_api: stream}\n  - {name: news, client_api: pubsub}\n";

fn start(path: &Path) -> Server {
    serve(path).shards(2).config(CONFIG).start()
}

/// One queue of the namespace `jobs`.
struct Jobs(Caller);

impl Jobs {
    async fn of(server: std::net::SocketAddr) -> Self {
        Jobs(Caller::to(server, "jobs").await)
    }

    async fn send(&self, text: &str) {
        let request = queue::SendRequest {
            namespace: "jobs".to_owned(),
            queue: "q".to_owned(),
            message: Some(Message {
                payload: Bytes::copy_from_slice(text.as_bytes()),
                ..Default::default()
            }),
        };
        let sent = self.0.call::<queue::SendResponse>(Method::QUEUE_SEND, &[], &request).await;
        sent.expect("sent");
    }

    async fn receive(&self, key: &str, max_messages: u32, wait_s: i64) -> Vec<Delivery> {
        let request = queue::ReceiveRequest {
            namespace: "jobs".to_owned(),
            queue: "q".to_owned(),
            max_messages,
            wait: Some(Span { seconds: wait_s, nanos: 0 }),
            visibility_timeout: Some(Span { seconds: 3600, nanos: 0 }),
        };
        let keyed = [("prism-idempotency-key", key.as_bytes())];
        let metadata = if key.is_empty() { &[][..] } else { &keyed[..] };
        let received =
            self.0.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, metadata, &request).await;
        received.expect("received").0.deliveries
    }

    async fn acknowledge(&self, delivery: &Delivery) -> bool {
        let request = queue::AcknowledgeRequest {
            namespace: "jobs".to_owned(),
            queue: "q".to_owned(),
            receipts: vec![delivery.receipt.clone()],
        };
        let method = Method::QUEUE_ACKNOWLEDGE;
        let answer = self.0.call::<queue::AcknowledgeResponse>(method, &[], &request).await;
        answer.expect("answered").0.results[0].status.is_none()
    }
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |one: &Delivery| one.message.as_ref().unwrap().payload.to_vec();
    deliveries.iter().map(|one| String::from_utf8(text(one)).unwrap()).collect()
}

/// Who waits for messages and goes away is sent none: the next one gets them, as the first.
#[test]
fn who_has_gone_is_not_waited_for() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    let request = queue::ReceiveRequest {
        namespace: "jobs".to_owned(),
        queue: "q".to_owned(),
        max_messages: 1,
        wait: Some(Span { seconds: 110, nanos: 0 }),
        visibility_timeout: Some(Span { seconds: 3600, nanos: 0 }),
    }
    .encode_to_vec();
    let path = Method::QUEUE_RECEIVE.path();
    // Some are of the queue's own shard and some of the other; some say that they go and some only hang up.
    let waiting = (0..16).map(|_| {
        let mut raw = Raw::open(&server);
        raw.call(1, path, &[("grpc-timeout", "2M")], &request);
        raw
    });
    let waiting: Vec<_> = waiting.collect();
    let in_flight = "prism_request_bytes_in_flight";
    let bytes = (waiting.len() * request.len()) as f64;
    server.wait_for_metric(in_flight, |held| held >= bytes);
    for (number, mut raw) in waiting.into_iter().enumerate() {
        if number % 2 == 0 {
            raw.frame(kind::RST_STREAM, 0, 1, &ErrorCode::CANCEL.0.to_be_bytes());
            raw.frame(kind::PING, 0, 0, &[0; 8]);
            let is_answer = |frame: Frame| frame.head.kind == kind::PING;
            while !is_answer(raw.read().expect("it still listens")) {}
        }
    }
    server.wait_for_metric(in_flight, |held| held == 0.0);
    run(async move {
        let jobs = Jobs::of(listen).await;
        jobs.send("a").await;
        let received = jobs.receive("", 1, 20).await;
        assert_eq!(texts(&received), ["a"]);
        assert_eq!(received[0].attempt, 1);
    });
    server.stop();
}

#[test]
fn a_receive_waits_for_what_is_sent_later() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let begun = Instant::now();
        // Several wait, on either shard; each of the messages goes to one of them.
        let waiting = (0..4).map(|_| async move {
            let jobs = Jobs::of(listen).await;
            texts(&jobs.receive("", 1, 20).await)
        });
        let mut waiting = std::pin::pin!(together(waiting.collect::<Vec<_>>()));
        let jobs = Jobs::of(listen).await;
        let mut received = Vec::new();
        let sending = async {
            for number in 0..4 {
                jobs.send(&number.to_string()).await;
            }
        };
        let mut sending = std::pin::pin!(sending);
        let mut sent = false;
        std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(texts) = waiting.as_mut().poll(context) {
                received = texts.concat();
                return std::task::Poll::Ready(());
            }
            sent = sent || sending.as_mut().poll(context).is_ready();
            std::task::Poll::Pending
        })
        .await;
        received.sort();
        assert_eq!(received, ["0", "1", "2", "3"]);
        assert!(begun.elapsed() < Duration::from_secs(15), "they were told");
        assert_eq!(texts(&jobs.receive("", 1, 0).await), [""; 0]);
    });
    server.stop();
}

#[test]
fn a_wait_ends_when_the_server_does() {
    let directory = directory();
    let server = start(directory.path());
    let (listen, id) = (server.listen, server.id());
    run(async move {
        let begun = Instant::now();
        let waiting = async {
            let jobs = Jobs::of(listen).await;
            // It is there before the signal comes: the same connection has carried a call.
            jobs.receive("", 1, 0).await;
            let request = jobs.receive("", 1, 20);
            harness::signal(id, "TERM");
            request.await
        };
        assert_eq!(waiting.await.len(), 0);
        assert!(begun.elapsed() < Duration::from_secs(15), "it did not wait for its end");
    });
    let (code, errors) = server.wait_end();
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn a_keyed_retry_hears_the_same_deliveries_also_after_a_kill() {
    let directory = directory();
    let server = start(directory.path());
    let listen = server.listen;
    let first = run(async move {
        let jobs = Jobs::of(listen).await;
        for text in ["1", "2", "3"] {
            jobs.send(text).await;
        }
        let first = jobs.receive("one", 2, 0).await;
        assert_eq!(texts(&first), ["1", "2"]);
        assert_eq!(jobs.receive("one", 2, 0).await, first);
        first
    });
    server.kill();
    let server = start(directory.path());
    let listen = server.listen;
    run(async move {
        let jobs = Jobs::of(listen).await;
        assert_eq!(jobs.receive("one", 2, 0).await, first, "also after a restart");
        assert_eq!(texts(&jobs.receive("two", 2, 0).await), ["3"]);
        assert!(jobs.acknowledge(&first[0]).await, "receipts survive");
        assert!(!jobs.acknowledge(&first[0]).await);
    });
    server.stop();
}

#[test]
fn sigkill_keeps_messages_leases_and_acknowledgements() {
    let directory = directory();
    let mut held: Vec<Delivery> = Vec::new();
    for round in 0..4_usize {
        let server = start(directory.path());
        let listen = server.listen;
        let before = std::mem::take(&mut held);
        held = run(async move {
            let jobs = Jobs::of(listen).await;
            // What was leased and not acknowledged is still leased; what was acknowledged is gone.
            assert_eq!(jobs.receive("", 10, 0).await, []);
            for delivery in &before {
                assert!(jobs.acknowledge(delivery).await, "round {round}: {delivery:?}");
            }
            let expected: Vec<String> = (0..20).map(|number| format!("{round}-{number}")).collect();
            for text in &expected {
                jobs.send(text).await;
            }
            let received = jobs.receive("", 100, 0).await;
            assert_eq!(texts(&received), expected);
            for delivery in &received[..10] {
                assert!(jobs.acknowledge(delivery).await);
            }
            received[10..].to_vec()
        });
        // The snapshot of an orderly end and the log of a kill lead to the same.
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

#[test]
fn sigkill_keeps_records_offsets_and_retention() {
    let directory = directory();
    let read = |listen| {
        run(async move {
            let caller = Caller::to(listen, "facts").await;
            let request = stream::ReadRequest {
                namespace: "facts".to_owned(),
                stream: "s".to_owned(),
                start: Some(Start { start: Some(start::Start::Earliest(())) }),
                ..Default::default()
            };
            let (path, message) = (Method::STREAM_READ.path(), request.encode_to_vec());
            let begun = caller.client.stream(path, &[], &message, harness::PATIENCE);
            let (mut reply, mut records) = (begun.await.expect("begun"), Vec::new());
            while let Some(message) = reply.next().await.expect("readable") {
                records.extend(stream::ReadResponse::decode(message).unwrap().records);
            }
            records
        })
    };
    let mut before: Vec<stream::StreamRecord> = Vec::new();
    for round in 0..4_usize {
        let server = start(directory.path());
        let listen = server.listen;
        assert_eq!(read(listen), before, "round {round}");
        run(async move {
            let caller = Caller::to(listen, "facts").await;
            let retention = Some(stream::Retention { max_records: Some(25), ..Default::default() });
            let (namespace, name) = ("facts".to_owned(), "s".to_owned());
            let request = stream::SetRetentionRequest { namespace, stream: name, retention };
            let method = Method::STREAM_SET_RETENTION;
            let set = caller.call::<stream::SetRetentionResponse>(method, &[], &request).await;
            set.expect("set");
            for number in 0..20 {
                let request = stream::AppendRequest {
                    namespace: "facts".to_owned(),
                    stream: "s".to_owned(),
                    record: Some(stream::NewRecord {
                        key: Some(format!("key-{number}")),
                        value: format!("{round}-{number}").into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let method = Method::STREAM_APPEND;
                let sent = caller.call::<stream::AppendResponse>(method, &[], &request).await;
                sent.expect("appended");
            }
        });
        let after = read(listen);
        assert_eq!(after.len(), 25.min(20 * (round + 1)));
        let place = |one: &stream::StreamRecord| one.position.clone().unwrap();
        let used_twice = after
            .iter()
            .any(|one| before.iter().any(|old| place(old) == place(one) && old.value != one.value));
        assert!(!used_twice, "no offset is used twice");
        before = after;
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

/// One group of the stream `s`, which shares by partition or by record.
struct Workers(Caller, &'static str);

impl Workers {
    async fn create(&self, sharing: stream::Sharing) {
        let request = stream::CreateConsumerGroupRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            group: self.1.to_owned(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            sharing: sharing.into(),
            ..Default::default()
        };
        let method = Method::STREAM_CREATE_CONSUMER_GROUP;
        let created = self.0.call::<stream::CreateConsumerGroupResponse>(method, &[], &request);
        created.await.expect("created");
    }

    /// The next records, in the order in which they came.
    async fn take(&self, count: usize) -> Vec<stream::RecordDelivery> {
        use stream::join_consumer_group_response::Event;
        let request = stream::JoinConsumerGroupRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            group: self.1.to_owned(),
            member: "worker".to_owned(),
        };
        let (path, message) = (Method::STREAM_JOIN_CONSUMER_GROUP.path(), request.encode_to_vec());
        let begun = self.0.client.stream(path, &[], &message, harness::PATIENCE);
        let (mut reply, mut taken) = (begun.await.expect("begun"), Vec::new());
        while taken.len() < count {
            let message = reply.next().await.expect("readable").expect("it goes on");
            let event = stream::JoinConsumerGroupResponse::decode(message).expect("valid").event;
            if let Some(Event::Record(record)) = event {
                taken.push(record);
            }
        }
        taken
    }

    async fn acknowledge(&self, taken: &[stream::RecordDelivery]) {
        let request = stream::AcknowledgeRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            group: self.1.to_owned(),
            receipts: taken.iter().map(|one| one.receipt.clone()).collect(),
        };
        let method = Method::STREAM_ACKNOWLEDGE;
        let answer = self.0.call::<stream::AcknowledgeResponse>(method, &[], &request).await;
        let results = answer.expect("answered").0.results;
        assert!(results.iter().all(|result| result.status.is_none()), "{results:?}");
    }

    async fn generation(&self) -> u64 {
        let request = stream::GetConsumerGroupInfoRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            group: self.1.to_owned(),
        };
        let method = Method::STREAM_GET_CONSUMER_GROUP_INFO;
        let told = self.0.call::<stream::GetConsumerGroupInfoResponse>(method, &[], &request);
        told.await.expect("told").0.generation
    }
}

#[test]
fn sigkill_keeps_what_groups_have_acknowledged_and_their_generation() {
    let directory = directory();
    let groups =
        [("by-partition", stream::Sharing::ByPartition), ("by-record", stream::Sharing::ByRecord)];
    let mut before: Vec<(Vec<stream::RecordDelivery>, u64)> = vec![Default::default(); 2];
    for round in 0..4_usize {
        let server = start(directory.path());
        let listen = server.listen;
        before = run(async move {
            let caller = Caller::to(listen, "facts").await;
            for number in 0..20 {
                let request = stream::AppendRequest {
                    namespace: "facts".to_owned(),
                    stream: "s".to_owned(),
                    record: Some(stream::NewRecord {
                        value: format!("{round}-{number}").into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let method = Method::STREAM_APPEND;
                let sent = caller.call::<stream::AppendResponse>(method, &[], &request).await;
                sent.expect("appended");
            }
            let mut after = Vec::new();
            for ((name, sharing), (left, generation)) in groups.into_iter().zip(before) {
                let workers = Workers(Caller::to(listen, "facts").await, name);
                workers.create(sharing).await;
                assert!(workers.generation().await >= generation, "it never goes back");
                if sharing == stream::Sharing::ByRecord && !left.is_empty() {
                    // Receipts outlive the process.
                    workers.acknowledge(&left[..1]).await;
                }
                let text = |one: &stream::RecordDelivery| one.record.clone().unwrap().value;
                let skip = usize::from(sharing == stream::Sharing::ByRecord).min(left.len());
                let expected: Vec<Bytes> = left[skip..]
                    .iter()
                    .map(text)
                    .chain((0..20).map(|number| format!("{round}-{number}").into()))
                    .collect();
                let taken = workers.take(expected.len()).await;
                assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), expected, "{name} {round}");
                // One in the middle stays open, and the end.
                let (open, end) = (taken.len() / 2, taken.len() - 3);
                let done: Vec<_> = (0..end).filter(|number| *number != open).collect();
                let done: Vec<_> = done.into_iter().map(|number| taken[number].clone()).collect();
                workers.acknowledge(&done).await;
                let left = std::iter::once(open).chain(end..taken.len());
                let left = left.map(|number| taken[number].clone()).collect();
                after.push((left, workers.generation().await));
            }
            after
        });
        // The snapshot of an orderly end and the log of a kill lead to the same.
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

/// The durable subscription `d` of the topic `t`.
struct Reader(Caller);

impl Reader {
    async fn publish(&self, text: &str) {
        let request = pubsub::PublishPersistentRequest {
            namespace: "news".to_owned(),
            topic: "t".to_owned(),
            message: Some(Message { payload: text.to_owned().into(), ..Default::default() }),
        };
        let method = Method::PUBSUB_PUBLISH_PERSISTENT;
        let sent = self.0.call::<pubsub::PublishPersistentResponse>(method, &[], &request).await;
        sent.expect("published");
    }

    async fn take(&self, count: usize) -> Vec<Delivery> {
        use pubsub::subscribe_durable_response::Event;
        let request = pubsub::SubscribeDurableRequest {
            namespace: "news".to_owned(),
            topic: "t".to_owned(),
            subscription_id: "d".to_owned(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ..Default::default()
        };
        let (path, message) = (Method::PUBSUB_SUBSCRIBE_DURABLE.path(), request.encode_to_vec());
        let begun = self.0.client.stream(path, &[], &message, harness::PATIENCE);
        let (mut reply, mut taken) = (begun.await.expect("begun"), Vec::new());
        while taken.len() < count {
            let message = reply.next().await.expect("readable").expect("it goes on");
            let event = pubsub::SubscribeDurableResponse::decode(message).expect("valid").event;
            if let Some(Event::Delivery(event)) = event {
                taken.extend(event.delivery);
            }
        }
        taken
    }

    async fn acknowledge(&self, taken: &[Delivery]) {
        let request = pubsub::AcknowledgeRequest {
            namespace: "news".to_owned(),
            topic: "t".to_owned(),
            subscription_id: "d".to_owned(),
            receipts: taken.iter().map(|one| one.receipt.clone()).collect(),
        };
        let method = Method::PUBSUB_ACKNOWLEDGE;
        let answer = self.0.call::<pubsub::AcknowledgeResponse>(method, &[], &request).await;
        let results = answer.expect("answered").0.results;
        assert!(results.iter().all(|result| result.status.is_none()), "{results:?}");
    }
}

#[test]
fn sigkill_keeps_events_subscriptions_and_what_they_have_acknowledged() {
    let directory = directory();
    let mut before: Vec<Delivery> = Vec::new();
    for round in 0..4_usize {
        let server = start(directory.path());
        let listen = server.listen;
        before = run(async move {
            let reader = Reader(Caller::to(listen, "news").await);
            // Receipts outlive the process, and what is acknowledged never comes again.
            if !before.is_empty() {
                reader.acknowledge(&before[..1]).await;
            }
            let mut expected = texts(&before[before.len().min(1)..]);
            for number in 0..20 {
                // Nobody is subscribed at this moment.
                reader.publish(&format!("{round}-{number}")).await;
                expected.push(format!("{round}-{number}"));
            }
            let taken = reader.take(expected.len()).await;
            assert_eq!(texts(&taken), expected, "round {round}");
            let (open, end) = (taken.len() / 2, taken.len() - 3);
            let (first, second) = (&taken[..open], &taken[open + 1..end]);
            reader.acknowledge(&[first, second].concat()).await;
            [&taken[open..=open], &taken[end..]].concat()
        });
        // The snapshot of an orderly end and the log of a kill lead to the same.
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

#[test]
fn a_follower_ends_with_the_server_and_its_place_is_free_when_it_leaves() {
    let directory = directory();
    let server = start(directory.path());
    let (listen, id) = (server.listen, server.id());
    run(async move {
        let request = stream::ReadRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            start: Some(Start { start: Some(start::Start::Latest(())) }),
            follow: true,
            ..Default::default()
        };
        let (path, message) = (Method::STREAM_READ.path(), request.encode_to_vec());
        // Eight connections, so that some cross the mesh.
        let mut replies = Vec::new();
        for _ in 0..8 {
            let caller = Caller::to(listen, "facts").await;
            let begun = caller.client.stream(path, &[], &message, harness::PATIENCE).await;
            let mut reply = begun.expect("begun");
            let first = reply.next().await.expect("readable").expect("it goes on");
            assert!(stream::ReadResponse::decode(first).unwrap().caught_up);
            replies.push(reply);
        }
        drop(replies.split_off(4));
        harness::signal(id, "TERM");
        for mut reply in replies {
            let end = reply.next().await.expect_err("the end");
            assert_eq!(end.code, prism_io::grpc::Code::Unavailable);
        }
    });
    let (code, errors) = server.wait_end();
    assert_eq!(code, 0, "{errors}");
}
