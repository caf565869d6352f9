//! What it means to serve the interfaces of PubSubService.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;

use super::caller::{Caller, assert_field, payload};
use super::{Client, Failure, Opened, cases};

pub(super) async fn run<C: Client>(client: &C, interface: Interface, ran: &mut Vec<&'static str>) {
    match interface {
        Interface::PubSubBasic => {
            cases!(client, ran, pubsub_basic: [
                everybody_hears_what_is_published,
                nobody_hears_what_was_before,
                events_of_every_size_and_alphabet,
                names_and_events_at_their_limits,
                a_batch_keeps_its_order,
                streams_of_one_subscription_share_its_events,
                an_unsubscribed_stream_ends,
            ]);
        }
        Interface::PubSubWildcards => {
            cases!(client, ran, pubsub_wildcards: [
                patterns_hear_what_matches,
                patterns_at_their_limits,
            ]);
        }
        Interface::PubSubFiltering => {
            cases!(client, ran, pubsub_filtering: [
                filters_let_pass_what_matches,
                filters_at_their_limits,
            ]);
        }
        Interface::PubSubOrdering => {
            cases!(client, ran, pubsub_ordering: [a_key_keeps_its_order_for_everybody]);
        }
        Interface::PubSubPersistent => super::pubsub_durable::run(client, ran).await,
        other => panic!("{other} is not of topics"),
    }
}

/// A subscription's stream.
pub(super) struct Subscriber<O> {
    pub(super) opened: O,
    pub(super) id: String,
}

impl<O: Opened> Subscriber<O> {
    /// Waits until it stands.
    async fn start(mut opened: O) -> Result<Self, Failure> {
        let message = opened.next().await?.expect("a stream begins with `started`");
        match decode(message) {
            pubsub::subscribe_response::Event::Started(started) => {
                assert!(!started.subscription_id.is_empty());
                Ok(Subscriber { opened, id: started.subscription_id })
            }
            other => panic!("a stream begins with `started`, not with {other:?}"),
        }
    }

    pub(super) async fn next(&mut self) -> pubsub::EventDelivery {
        let message = self.opened.next().await.expect("an event").expect("an event");
        match decode(message) {
            pubsub::subscribe_response::Event::Delivery(delivery) => delivery,
            other => panic!("an event is to come, not {other:?}"),
        }
    }

    pub(super) async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            let payload = self.next().await.delivery.unwrap().message.unwrap().payload;
            texts.push(String::from_utf8(payload.to_vec()).expect("text"));
        }
        texts
    }
}

/// The messages of all kinds of subscriptions look the same.
fn decode(message: bytes::Bytes) -> pubsub::subscribe_response::Event {
    let response = pubsub::SubscribeResponse::decode(message).expect("a valid message");
    response.event.expect("something has happened")
}

pub(super) fn text_event(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

pub(super) async fn open<'c, C: Client>(
    caller: &Caller<'c, C>,
    method: Method,
    request: &impl prost::Message,
) -> Result<Subscriber<C::Opened<'c>>, Failure> {
    Subscriber::start(caller.client.open(method, request.encode_to_vec()).await?).await
}

pub(super) async fn subscribe<'c, C: Client>(
    caller: &Caller<'c, C>,
    topic: &str,
    subscription_id: &str,
) -> Subscriber<C::Opened<'c>> {
    let request = pubsub::SubscribeRequest {
        namespace: caller.namespace(),
        topic: topic.to_owned(),
        subscription_id: subscription_id.to_owned(),
    };
    open(caller, Method::PUBSUB_SUBSCRIBE, &request).await.expect("subscribed")
}

async fn try_publish<C: Client>(
    caller: &Caller<'_, C>,
    topic: &str,
    message: Message,
) -> Result<String, Failure> {
    let (namespace, topic) = (caller.namespace(), topic.to_owned());
    let request = pubsub::PublishRequest { namespace, topic, message: Some(message) };
    let answer: pubsub::PublishResponse = caller.call(Method::PUBSUB_PUBLISH, &request).await?;
    Ok(answer.message_id)
}

pub(super) async fn publish<C: Client>(caller: &Caller<'_, C>, topic: &str, text: &str) -> String {
    try_publish(caller, topic, text_event(text)).await.expect("published")
}

async fn everybody_hears_what_is_published<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let mut first = subscribe(caller, &topic, "").await;
    let mut second = subscribe(caller, &topic, "").await;
    assert_ne!(first.id, second.id);
    let event = Message { content_type: "text/plain".to_owned(), ..text_event("hello") };
    let id = try_publish(caller, &topic, event.clone()).await.expect("published");
    publish(caller, &caller.name("other"), "not for them").await;
    publish(caller, &topic, "bye").await;
    for subscriber in [&mut first, &mut second] {
        let heard = subscriber.next().await;
        let delivery = heard.delivery.expect("an event has its delivery");
        assert_eq!(heard.topic, topic);
        assert_eq!((&*delivery.receipt, delivery.attempt), ("", 1));
        assert!(delivery.sent_at.is_some() && delivery.lease_expires_at.is_none());
        assert_eq!(delivery.message, Some(Message { id: id.clone(), ..event.clone() }));
        assert_eq!(subscriber.texts(1).await, ["bye"]);
    }
}

async fn nobody_hears_what_was_before<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    publish(caller, &topic, "before").await;
    let mut subscriber = subscribe(caller, &topic, "").await;
    publish(caller, &topic, "after").await;
    assert_eq!(subscriber.texts(1).await, ["after"]);
}

async fn events_of_every_size_and_alphabet<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let mut subscriber = subscribe(caller, &topic, "").await;
    for bytes in [0, 1, 4095, 4096, 100_000, 1 << 20] {
        let event = Message { payload: payload(bytes).into(), ..Default::default() };
        try_publish(caller, &topic, event).await.expect("published");
        let heard = subscriber.next().await.delivery.unwrap().message.unwrap();
        assert_eq!(heard.payload, payload(bytes));
    }
    publish(caller, &topic, "Grüezi, 世界 🚀").await;
    assert_eq!(subscriber.texts(1).await, ["Grüezi, 世界 🚀"]);
}

async fn names_and_events_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let longest = caller.name(&"n".repeat(200 - caller.name("").len()));
    let mut subscriber = subscribe(caller, &longest, "").await;
    publish(caller, &longest, "x").await;
    assert_eq!(subscriber.texts(1).await, ["x"]);
    for bad in ["", ".", "a..b", "a.*", ">", "a b", "é", &"n".repeat(201)] {
        let refused = try_publish(caller, bad, text_event("x")).await;
        assert_field(refused, "NAME_INVALID", "topic");
    }
    let queue_only = Message { priority: Some(1), ..text_event("x") };
    let refused = try_publish(caller, &longest, queue_only).await;
    assert_field(refused, "FIELD_NOT_ALLOWED", "message.priority");
    let given = Message { id: "mine".to_owned(), ..text_event("x") };
    assert_field(try_publish(caller, &longest, given).await, "MESSAGE_ID_GIVEN", "message.id");
    let large = caller.client.limits().max_message_size - 2047;
    let large = Message { payload: payload(large).into(), ..Default::default() };
    let refused = try_publish(caller, &longest, large).await;
    assert_field(refused, "PAYLOAD_TOO_LARGE", "message.payload");
}

async fn a_batch_keeps_its_order<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let mut subscriber = subscribe(caller, &topic, "").await;
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let request = pubsub::PublishBatchRequest {
        namespace: caller.namespace(),
        topic,
        messages: expected.iter().map(|text| text_event(text)).collect(),
    };
    let answer: pubsub::PublishBatchResponse =
        caller.call(Method::PUBSUB_PUBLISH_BATCH, &request).await.expect("published");
    assert!(answer.results.iter().all(|result| result.status.is_none()));
    let mut ids: Vec<_> = answer.results.into_iter().map(|result| result.message_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(subscriber.texts(200).await, expected);
}

async fn streams_of_one_subscription_share_its_events<C: Client>(caller: &Caller<'_, C>) {
    let (topic, id) = (caller.name("t"), caller.name("shared"));
    let mut first = subscribe(caller, &topic, &id).await;
    assert_eq!(first.id, id);
    let mut second = subscribe(caller, &topic, &id).await;
    let mut whole = subscribe(caller, &topic, "").await;
    let expected = ["0", "1"];
    for text in expected {
        publish(caller, &topic, text).await;
    }
    assert_eq!(whole.texts(2).await, expected);
    let request = pubsub::SubscribeRequest {
        namespace: caller.namespace(),
        topic: caller.name("another"),
        subscription_id: id.clone(),
    };
    let refused = open(caller, Method::PUBSUB_SUBSCRIBE, &request).await;
    let failure = refused.err().expect("it is of another topic");
    assert_eq!((failure.code, &*failure.reason), (9, "SUBSCRIPTION_MISMATCH"));
    // Whichever of the two takes an event: none comes to both.
    let (namespace, subscription_id) = (caller.namespace(), first.id.clone());
    let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
    caller
        .call::<pubsub::UnsubscribeResponse>(Method::PUBSUB_UNSUBSCRIBE, &request)
        .await
        .expect("unsubscribed");
    let mut heard = Vec::new();
    for subscriber in [&mut first, &mut second] {
        while let Some(message) = subscriber.opened.next().await.expect("it ends well") {
            match decode(message) {
                pubsub::subscribe_response::Event::Delivery(delivery) => heard.push(delivery),
                other => panic!("an event is to come, not {other:?}"),
            }
        }
    }
    let ids = heard.iter().map(|one| &one.delivery.as_ref().unwrap().message.as_ref().unwrap().id);
    let ids: Vec<_> = ids.collect();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len(), "none comes twice");
}

async fn an_unsubscribed_stream_ends<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let mut subscriber = subscribe(caller, &topic, "").await;
    let unsubscribe = |id: &str| {
        let (namespace, subscription_id) = (caller.namespace(), id.to_owned());
        let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
        async move {
            let method = Method::PUBSUB_UNSUBSCRIBE;
            caller.call::<pubsub::UnsubscribeResponse>(method, &request).await
        }
    };
    let known = unsubscribe(&subscriber.id).await.expect("unsubscribed");
    super::caller::assert_if_known(known.existed, true);
    assert_eq!(subscriber.opened.next().await.expect("it ends well"), None);
    let unknown = unsubscribe(&caller.name("nobody")).await.expect("that is no failure");
    super::caller::assert_if_known(unknown.existed, false);
    assert_field(unsubscribe("").await, "NAME_INVALID", "subscription_id");
}

async fn subscribe_pattern<'c, C: Client>(
    caller: &Caller<'c, C>,
    pattern: &str,
) -> Result<Subscriber<C::Opened<'c>>, Failure> {
    let request = pubsub::SubscribePatternRequest {
        namespace: caller.namespace(),
        pattern: pattern.to_owned(),
        subscription_id: String::new(),
    };
    open(caller, Method::PUBSUB_SUBSCRIBE_PATTERN, &request).await
}

async fn patterns_hear_what_matches<C: Client>(caller: &Caller<'_, C>) {
    let root = caller.name("w");
    let topics = ["", ".a", ".a.b", ".a.b.c", ".x.b", ".x.c"].map(|end| format!("{root}{end}"));
    for (pattern, expected) in [
        (format!("{root}.*"), &[1][..]),
        (format!("{root}.>"), &[1, 2, 3, 4, 5][..]),
        (format!("{root}.*.b"), &[2, 4][..]),
        (format!("{root}.*.>"), &[2, 3, 4, 5][..]),
        (format!("{root}.a.b"), &[2][..]),
    ] {
        let mut subscriber = subscribe_pattern(caller, &pattern).await.expect("subscribed");
        for (number, topic) in topics.iter().enumerate() {
            publish(caller, topic, &number.to_string()).await;
        }
        for number in expected {
            let heard = subscriber.next().await;
            assert_eq!(heard.topic, topics[*number], "{pattern}");
        }
    }
}

async fn patterns_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    for bad in ["a.>.b", "a*", "a.**", ">.a", "a..b", "a.", ".", "a >"] {
        let refused = subscribe_pattern(caller, bad).await.map(drop);
        assert_field(refused, "PATTERN_INVALID", "pattern");
    }
    for bad in ["", &"n".repeat(201)] {
        let refused = subscribe_pattern(caller, bad).await.map(drop);
        assert_field(refused, "NAME_INVALID", "pattern");
    }
}

async fn subscribe_filtered<'c, C: Client>(
    caller: &Caller<'c, C>,
    topic: &str,
    filter: &str,
) -> Result<Subscriber<C::Opened<'c>>, Failure> {
    let request = pubsub::SubscribeFilteredRequest {
        namespace: caller.namespace(),
        topic: topic.to_owned(),
        filter: filter.to_owned(),
        subscription_id: String::new(),
    };
    open(caller, Method::PUBSUB_SUBSCRIBE_FILTERED, &request).await
}

async fn filters_let_pass_what_matches<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let filter =
        r#"country = "CH" AND (amount > 100 OR has(urgent)) AND NOT kind IN ("test", "x")"#;
    let mut subscriber = subscribe_filtered(caller, &topic, filter).await.expect("subscribed");
    let mut all = subscribe_filtered(caller, &topic, "").await.expect("subscribed");
    let publish = |text: &'static str, attributes: &[(&str, &str)]| {
        let attributes =
            attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let message = Some(Message { attributes, ..text_event(text) });
        let (namespace, topic) = (caller.namespace(), topic.clone());
        let request = pubsub::PublishWithAttributesRequest { namespace, topic, message };
        let method = Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES;
        async move { caller.call::<pubsub::PublishWithAttributesResponse>(method, &request).await }
    };
    for (text, attributes) in [
        ("no", &[("country", "DE"), ("amount", "500")][..]),
        ("rich", &[("country", "CH"), ("amount", "100.01")]),
        ("poor", &[("country", "CH"), ("amount", "99")]),
        ("urgent", &[("country", "CH"), ("urgent", "")]),
        ("test", &[("country", "CH"), ("amount", "500"), ("kind", "test")]),
        ("last", &[("country", "CH"), ("amount", "500"), ("kind", "order")]),
    ] {
        publish(text, attributes).await.expect("published");
    }
    assert_eq!(subscriber.texts(3).await, ["rich", "urgent", "last"]);
    let everything = ["no", "rich", "poor", "urgent", "test", "last"];
    assert_eq!(all.texts(6).await, everything);
    assert_field(publish("x", &[]).await, "ATTRIBUTES_MISSING", "message.attributes");
}

async fn filters_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let many = |count| vec!["a = 1"; count].join(" AND ");
    let deep = |depth| format!("{}a = 1{}", "(".repeat(depth), ")".repeat(depth));
    for good in [many(16), deep(4)] {
        subscribe_filtered(caller, &topic, &good).await.expect("subscribed");
    }
    for bad in [&*many(17), &*deep(5), "a =", "a", "A = 1", &"a".repeat(1025)] {
        let refused = subscribe_filtered(caller, &topic, bad).await.map(drop);
        assert_field(refused, "FILTER_INVALID", "filter");
    }
}

async fn a_key_keeps_its_order_for_everybody<C: Client>(caller: &Caller<'_, C>) {
    let topic = caller.name("t");
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        subscribers.push(subscribe(caller, &topic, "").await);
    }
    let publish = |key: &str, text: &str| {
        let message = Some(Message { ordering_key: key.to_owned(), ..text_event(text) });
        let (namespace, topic) = (caller.namespace(), topic.clone());
        let request = pubsub::PublishOrderedRequest { namespace, topic, message };
        async move {
            let method = Method::PUBSUB_PUBLISH_ORDERED;
            caller.call::<pubsub::PublishOrderedResponse>(method, &request).await
        }
    };
    for number in 0..20 {
        publish(["a", "b"][number % 2], &number.to_string()).await.expect("published");
    }
    for subscriber in &mut subscribers {
        let heard = subscriber.texts(20).await;
        for key in 0..2 {
            let of_key: Vec<usize> =
                heard.iter().map(|text| text.parse().unwrap()).filter(|n| n % 2 == key).collect();
            assert!(of_key.is_sorted() && of_key.len() == 10, "{heard:?}");
        }
    }
    assert_field(publish("", "x").await, "ORDERING_KEY_MISSING", "message.ordering_key");
}
