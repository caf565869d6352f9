//! What lasts, and what takes several steps: durable subscriptions, groups of consumers, transactions and readers.

use prism_io::client::StreamReply;
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::r#type::v1 as types;
use prost::Message;

use super::harness::{Caller, PATIENCE, Refusal};
use super::{
    NAMES, Pair, SECRET, assert_discreet, attack, has_secret, message, own, subscribed, until,
};

fn earliest() -> Option<types::Start> {
    Some(types::Start { start: Some(types::start::Start::Earliest(())) })
}

/// Whether every receipt was refused, one by one or all together.
fn are_refused<Answer>(
    settled: Result<Answer, Refusal>,
    refused: impl Fn(&Answer) -> bool,
) -> bool {
    settled.is_err() || settled.is_ok_and(|answer| refused(&answer))
}

/// The next delivery of a durable subscription with this word in it: its receipt.
async fn receipt_of(heard: &mut StreamReply, word: &str) -> String {
    use pubsub::subscribe_durable_response::Event;
    loop {
        let event = heard.next().await.expect("readable").expect("it goes on");
        let event = pubsub::SubscribeDurableResponse::decode(event).expect("a valid answer").event;
        let Some(Event::Delivery(event)) = event else { continue };
        let delivery = event.delivery.expect("an event");
        let payload = delivery.message.expect("with a message").payload;
        if payload.windows(word.len()).any(|window| window == word.as_bytes()) {
            return delivery.receipt;
        }
    }
}

/// A subscription of each topic, of the same name in both namespaces.
fn id_of(topic: &str) -> String {
    topic.replace('.', "-")
}

pub(super) async fn durable_subscriptions(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let publish = |caller: &Caller, topic: &str, word: &str| pubsub::PublishPersistentRequest {
        namespace: caller.namespace.clone(),
        topic: topic.to_owned(),
        message: message(word),
    };
    let subscribe = |caller: &Caller, topic: &str| pubsub::SubscribeDurableRequest {
        namespace: caller.namespace.clone(),
        topic: topic.to_owned(),
        subscription_id: id_of(topic),
        start: earliest(),
        ..Default::default()
    };
    for name in &NAMES[..3] {
        let topic = format!("lasting.{name}");
        let method = Method::PUBSUB_SUBSCRIBE_DURABLE;
        let mut heard = subscribed(victim, method, &subscribe(victim, &topic)).await;
        let publishes = Method::PUBSUB_PUBLISH_PERSISTENT;
        let request = publish(victim, &topic, SECRET);
        own::<pubsub::PublishPersistentResponse>(victim, publishes, &request).await;
        let receipt = receipt_of(&mut heard, SECRET).await;

        // A subscription of the same name to the same topic, from the beginning, hears none of it.
        let request = subscribe(attacker, &topic);
        let mut of_attacker = subscribed(attacker, method, &request).await;
        let request = publish(attacker, &topic, "mine");
        attack::<pubsub::PublishPersistentResponse>(attacker, publishes, &request)
            .await
            .expect("published");
        let told = until(&mut of_attacker, "mine").await;
        assert!(!has_secret(&told), "{topic}: {told:?}");

        // The receipt opens nothing there, and neither the victim's subscriptions nor its own take anything of the victim's away.
        let request = pubsub::AcknowledgeRequest {
            namespace: attacker.namespace.clone(),
            topic: topic.clone(),
            subscription_id: id_of(&topic),
            receipts: vec![receipt.clone()],
        };
        let acknowledges = Method::PUBSUB_ACKNOWLEDGE;
        let settled = attack::<pubsub::AcknowledgeResponse>(attacker, acknowledges, &request).await;
        assert!(are_refused(settled, |answer| answer.results[0].status.is_some()), "{topic}");
        for subscription_id in [id_of(&topic), format!("{}.{}", victim.namespace, id_of(&topic))] {
            let namespace = attacker.namespace.clone();
            let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
            let method = Method::PUBSUB_UNSUBSCRIBE;
            let _ = attack::<pubsub::UnsubscribeResponse>(attacker, method, &request).await;
        }
        drop(of_attacker);
        let request = pubsub::AcknowledgeRequest { namespace: victim.namespace.clone(), ..request };
        let settled = own::<pubsub::AcknowledgeResponse>(victim, acknowledges, &request).await;
        assert_eq!(settled.results[0].status, None, "{topic}");
        let request = publish(victim, &topic, "the-end");
        own::<pubsub::PublishPersistentResponse>(victim, publishes, &request).await;
        let told = until(&mut heard, "the-end").await;
        assert!(!told.windows(4).any(|window| window == b"mine"), "{topic}: {told:?}");
    }
}

/// What somebody hears as Unsubscribe of subscriptions that do not last.
pub(super) async fn unsubscribe(pair: &Pair) {
    use pubsub::subscribe_response::Event;
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let request = pubsub::SubscribeRequest {
        namespace: victim.namespace.clone(),
        topic: "leave".to_owned(),
        ..Default::default()
    };
    let bytes = request.encode_to_vec();
    let path = Method::PUBSUB_SUBSCRIBE.path();
    let mut heard = victim.client.stream(path, &[], &bytes, PATIENCE).await.expect("begun");
    let first = heard.next().await.expect("readable").expect("it has started");
    let first = pubsub::SubscribeResponse::decode(first).expect("a valid answer");
    let Some(Event::Started(started)) = first.event else { panic!("{first:?}") };
    let (namespace, subscription_id) = (attacker.namespace.clone(), started.subscription_id);
    let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
    let method = Method::PUBSUB_UNSUBSCRIBE;
    let _ = attack::<pubsub::UnsubscribeResponse>(attacker, method, &request).await;
    // To join it in the other namespace makes one there at most.
    let request = pubsub::SubscribeRequest {
        namespace: attacker.namespace.clone(),
        topic: "leave".to_owned(),
        subscription_id: request.subscription_id,
    };
    let bytes = request.encode_to_vec();
    let joined = attacker.client.stream(path, &[], &bytes, PATIENCE).await.expect("begun");
    let request = pubsub::PublishRequest {
        namespace: victim.namespace.clone(),
        topic: "leave".to_owned(),
        message: message("still-here"),
    };
    own::<pubsub::PublishResponse>(victim, Method::PUBSUB_PUBLISH, &request).await;
    until(&mut heard, "still-here").await;
    drop(joined);
}

pub(super) async fn groups(pair: &Pair) {
    use stream::join_consumer_group_response::Event;
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let stream_name = "shared".to_owned();
    let append = |caller: &Caller, word: &str| stream::AppendRequest {
        namespace: caller.namespace.clone(),
        stream: stream_name.clone(),
        record: Some(stream::NewRecord { value: word.to_owned().into(), ..Default::default() }),
        ..Default::default()
    };
    let create = |caller: &Caller| stream::CreateConsumerGroupRequest {
        namespace: caller.namespace.clone(),
        stream: stream_name.clone(),
        group: "members".to_owned(),
        start: earliest(),
        ..Default::default()
    };
    let join = |caller: &Caller, group: &str| stream::JoinConsumerGroupRequest {
        namespace: caller.namespace.clone(),
        stream: stream_name.clone(),
        group: group.to_owned(),
        ..Default::default()
    };
    own::<stream::AppendResponse>(victim, Method::STREAM_APPEND, &append(victim, SECRET)).await;
    let creates = Method::STREAM_CREATE_CONSUMER_GROUP;
    own::<stream::CreateConsumerGroupResponse>(victim, creates, &create(victim)).await;
    let joins = Method::STREAM_JOIN_CONSUMER_GROUP;
    let mut member = subscribed(victim, joins, &join(victim, "members")).await;
    let receipt = loop {
        let event = member.next().await.expect("readable").expect("it goes on");
        let event = stream::JoinConsumerGroupResponse::decode(event).expect("a valid answer").event;
        if let Some(Event::Record(record)) = event {
            break record.receipt;
        }
    };

    // Nobody joins a group of another namespace, and one of the same name has nothing of it.
    own::<stream::AppendResponse>(attacker, Method::STREAM_APPEND, &append(attacker, "mine")).await;
    for group in ["members".to_owned(), format!("{}.members", victim.namespace)] {
        let bytes = join(attacker, &group).encode_to_vec();
        let mut reply =
            attacker.client.stream(joins.path(), &[], &bytes, PATIENCE).await.expect("begun");
        let refusal: Refusal = match reply.next().await {
            Ok(told) => panic!("{group} of another namespace is joined: {told:?}"),
            Err(failure) => failure.into(),
        };
        assert!([Code::NotFound, Code::InvalidArgument].contains(&refusal.code), "{refusal:?}");
        assert_discreet(&refusal);
    }
    attack::<stream::CreateConsumerGroupResponse>(attacker, creates, &create(attacker))
        .await
        .expect("one of its own");
    let mut own_member = subscribed(attacker, joins, &join(attacker, "members")).await;
    let told = until(&mut own_member, "mine").await;
    assert!(!has_secret(&told), "{told:?}");
    let request = stream::AcknowledgeRequest {
        namespace: attacker.namespace.clone(),
        stream: stream_name.clone(),
        group: "members".to_owned(),
        receipts: vec![receipt.clone()],
    };
    let acknowledges = Method::STREAM_ACKNOWLEDGE;
    let settled = attack::<stream::AcknowledgeResponse>(attacker, acknowledges, &request).await;
    assert!(are_refused(settled, |answer| answer.results[0].status.is_some()));
    drop(own_member);
    let request = stream::AcknowledgeRequest { namespace: victim.namespace.clone(), ..request };
    let settled = own::<stream::AcknowledgeResponse>(victim, acknowledges, &request).await;
    assert_eq!(settled.results[0].status, None, "the victim's own still holds");
}

/// Calls of one transaction, one after the other: what each is told, to the refusal that ends it.
async fn steps(caller: &Caller, requests: Vec<transact::TransactionRequest>) -> Vec<Vec<u8>> {
    let path = Method::TRANSACT_TRANSACTION.path();
    let mut reply = caller.client.open(path, &[], PATIENCE).await.expect("opened");
    let mut told = Vec::new();
    for request in requests {
        if reply.send(&request.encode_to_vec()).is_err() {
            return told;
        }
        match reply.next().await {
            Ok(Some(answer)) => told.push(answer.to_vec()),
            Ok(None) => return told,
            Err(failure) => {
                assert_discreet(&failure.into());
                return told;
            }
        }
    }
    told
}

pub(super) async fn transactions(pair: &Pair) {
    let (victim, attacker) = (&pair.victim, &pair.attacker);
    let keys = ["account".to_owned(), format!("{}:account", victim.namespace)];
    let put = |key: &String, word: &'static str| types::Operation {
        key: key.clone(),
        action: Some(types::operation::Action::Put(types::Put {
            value: word.into(),
            ..Default::default()
        })),
    };
    let execute = |caller: &Caller, word| transact::ExecuteRequest {
        namespace: caller.namespace.clone(),
        operations: keys.iter().map(|key| put(key, word)).collect(),
        ..Default::default()
    };
    let executes = Method::TRANSACT_EXECUTE;
    own::<transact::ExecuteResponse>(victim, executes, &execute(victim, SECRET)).await;
    let request = |namespace: &str, id, request| transact::TransactionRequest {
        namespace: namespace.to_owned(),
        id,
        request: Some(request),
    };
    let begin = || Request::Begin(transact::Begin::default());
    let get = |key: &str| Request::Get(transact::TransactionGet { key: key.to_owned() });
    for key in &keys {
        // What it reads, writes and commits is its own.
        let own_name = &attacker.namespace;
        let write = transact::TransactionPut {
            key: key.clone(),
            put: Some(types::Put { value: "mine".into(), ..Default::default() }),
        };
        let requests = vec![
            request(own_name, 1, begin()),
            request(own_name, 2, get(key)),
            request(own_name, 3, Request::Put(write)),
            request(own_name, 4, Request::Commit(())),
        ];
        let told = steps(attacker, requests).await;
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told.iter().all(|answer| !has_secret(answer)), "{told:?}");
        // A step in another namespace than the transaction began in is refused, and tells nothing.
        let requests = vec![request(own_name, 1, begin()), request(&victim.namespace, 2, get(key))];
        let told = steps(attacker, requests).await;
        assert_eq!(told.len(), 1, "{told:?}");
    }
    attack::<transact::ExecuteResponse>(attacker, executes, &execute(attacker, "mine"))
        .await
        .expect("its own");
    let requests = vec![
        request(&victim.namespace, 1, begin()),
        request(&victim.namespace, 2, get(&keys[0])),
        request(&victim.namespace, 3, get(&keys[1])),
    ];
    let told = steps(victim, requests).await;
    assert!(told.len() == 3 && told[1..].iter().all(|answer| has_secret(answer)), "{told:?}");
}

/// A reader of the attacker's streams finds none of the victim's, whatever it names as its source.
pub(super) async fn readers(victim: &str, of_attacker: &Caller) {
    use reader::source::Source as Of;
    let names = ["t.plain".to_owned(), format!("{victim}.t.plain"), format!("{victim}:t.plain")];
    let streams = names.iter().map(|name| Of::Stream(name.clone()));
    for source in streams.chain([Of::Keys(())]) {
        let request = reader::ReadRequest {
            namespace: of_attacker.namespace.clone(),
            source: Some(reader::Source { source: Some(source.clone()) }),
            start: earliest(),
            ..Default::default()
        };
        let bytes = request.encode_to_vec();
        let path = Method::READER_READ.path();
        let mut reply =
            of_attacker.client.stream(path, &[], &bytes, PATIENCE).await.expect("begun");
        loop {
            match reply.next().await {
                Ok(Some(page)) => assert!(!has_secret(&page), "{source:?} tells: {page:?}"),
                Ok(None) => break,
                Err(failure) => {
                    assert_discreet(&failure.into());
                    break;
                }
            }
        }
        let request = reader::CountRequest {
            namespace: of_attacker.namespace.clone(),
            source: Some(reader::Source { source: Some(source) }),
            ..Default::default()
        };
        let counted =
            attack::<reader::CountResponse>(of_attacker, Method::READER_COUNT, &request).await;
        // Its own record, where it has one there.
        assert!(counted.is_err() || counted.is_ok_and(|counted| counted.count <= 1));
    }
}
