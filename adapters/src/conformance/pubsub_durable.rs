//! What it means to keep events for subscriptions that come and go.

use std::time::Duration;

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::r#type::v1::{Message, Start, start};

use super::caller::{Caller, assert_field, assert_if_known, ms, reason};
use super::pubsub::{Subscriber, open, publish, subscribe, text_event};
use super::{Client, Failure, Opened, cases};

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    cases!(client, ran, pubsub_persistent: [
        events_wait_for_a_subscription_that_is_away,
        a_new_subscription_begins_where_it_is_told,
        what_is_not_acknowledged_in_time_comes_again,
        a_stream_that_dies_leaves_its_events_to_the_next,
        streams_share_and_hold_no_more_than_they_may,
        subscriptions_do_not_share_with_each_other,
        a_filter_counts_as_done_what_it_leaves_out,
        an_ordered_subscription_keeps_the_order_when_events_come_again,
        the_newest_event_is_told,
        a_subscription_is_deleted_with_what_it_has_done,
        names_and_receipts,
    ]);
}

/// How long an event waits for its acknowledgement where a case waits for its end.
const SHORT_MS: u64 = 1000;
/// A little more.
const PAST_SHORT: Duration = Duration::from_millis(1100);

/// Calls about one durable subscription of a topic.
struct Durable<'a, 'c, C> {
    caller: &'a Caller<'c, C>,
    topic: String,
    id: String,
}

fn text(delivery: &pubsub::EventDelivery) -> String {
    let message = delivery.delivery.as_ref().and_then(|one| one.message.as_ref());
    String::from_utf8(message.expect("an event").payload.to_vec()).expect("text")
}

fn attempt(delivery: &pubsub::EventDelivery) -> u32 {
    delivery.delivery.as_ref().expect("an event has its delivery").attempt
}

impl<'a, 'c, C: Client> Durable<'a, 'c, C> {
    fn of(caller: &'a Caller<'c, C>, id: &str) -> Self {
        Durable { caller, topic: caller.name("t"), id: caller.name(id) }
    }

    /// A request that subscribes, from the beginning if it is new.
    fn request(&self) -> pubsub::SubscribeDurableRequest {
        pubsub::SubscribeDurableRequest {
            namespace: self.caller.namespace(),
            topic: self.topic.clone(),
            subscription_id: self.id.clone(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ..Default::default()
        }
    }

    async fn open(
        &self,
        request: &pubsub::SubscribeDurableRequest,
    ) -> Result<Subscriber<C::Opened<'c>>, Failure> {
        open(self.caller, Method::PUBSUB_SUBSCRIBE_DURABLE, request).await
    }

    async fn subscribe(&self) -> Subscriber<C::Opened<'c>> {
        let subscriber = self.open(&self.request()).await.expect("subscribed");
        assert_eq!(subscriber.id, self.id);
        subscriber
    }

    async fn try_publish(
        &self,
        message: Message,
    ) -> Result<pubsub::PublishPersistentResponse, Failure> {
        let request = pubsub::PublishPersistentRequest {
            namespace: self.caller.namespace(),
            topic: self.topic.clone(),
            message: Some(message),
        };
        self.caller.call(Method::PUBSUB_PUBLISH_PERSISTENT, &request).await
    }

    async fn publish(&self, text: &str) -> String {
        self.try_publish(text_event(text)).await.expect("published").message_id
    }

    async fn try_acknowledge(&self, receipts: Vec<String>) -> Result<Vec<String>, Failure> {
        let request = pubsub::AcknowledgeRequest {
            namespace: self.caller.namespace(),
            topic: self.topic.clone(),
            subscription_id: self.id.clone(),
            receipts,
        };
        let count = request.receipts.len();
        let answer: pubsub::AcknowledgeResponse =
            self.caller.call(Method::PUBSUB_ACKNOWLEDGE, &request).await?;
        assert_eq!(answer.results.len(), count);
        Ok(answer.results.into_iter().map(|result| reason(result.status)).collect())
    }

    /// Marks deliveries as done.
    async fn acknowledge(&self, taken: &[pubsub::EventDelivery]) {
        let receipt = |one: &pubsub::EventDelivery| one.delivery.as_ref().unwrap().receipt.clone();
        let reasons = self.try_acknowledge(taken.iter().map(receipt).collect()).await;
        let reasons = reasons.expect("answered");
        assert!(reasons.iter().all(String::is_empty), "{reasons:?}");
    }
}

async fn take<O: Opened>(
    subscriber: &mut Subscriber<O>,
    count: usize,
) -> Vec<pubsub::EventDelivery> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(subscriber.next().await);
    }
    taken
}

fn texts(taken: &[pubsub::EventDelivery]) -> Vec<String> {
    taken.iter().map(text).collect()
}

async fn events_wait_for_a_subscription_that_is_away<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    drop(durable.subscribe().await);
    let attributes = [("kind".to_owned(), "x".to_owned())].into();
    let rich = Message { content_type: "text/plain".to_owned(), attributes, ..text_event("0") };
    let id = durable.try_publish(rich.clone()).await.expect("published").message_id;
    durable.publish("1").await;
    let mut subscriber = durable.subscribe().await;
    // That the one before has gone may be noticed only now: then the first was on its way to it, and comes again.
    let mut taken = take(&mut subscriber, 2).await;
    taken.sort_by_key(text);
    assert_eq!(texts(&taken), ["0", "1"]);
    let delivery = taken[0].delivery.clone().expect("an event has its delivery");
    assert_eq!(taken[0].topic, durable.topic);
    assert_eq!(delivery.message, Some(Message { id, ..rich }));
    assert!(!delivery.receipt.is_empty() && delivery.sent_at.is_some());
    durable.acknowledge(&taken).await;
    durable.publish("2").await;
    let live = subscriber.next().await;
    assert_eq!(text(&live), "2");
    durable.acknowledge(&[live]).await;
    drop(subscriber);
    // What is acknowledged does not come again.
    durable.publish("3").await;
    let mut subscriber = durable.subscribe().await;
    assert_eq!(text(&subscriber.next().await), "3");
}

async fn a_new_subscription_begins_where_it_is_told<C: Client>(caller: &Caller<'_, C>) {
    let early = Durable::of(caller, "early");
    early.publish("before").await;
    assert_eq!(text(&early.subscribe().await.next().await), "before");
    let late = Durable::of(caller, "late");
    let request = pubsub::SubscribeDurableRequest { start: None, ..late.request() };
    let mut subscriber = late.open(&request).await.expect("subscribed");
    late.publish("after").await;
    assert_eq!(text(&subscriber.next().await), "after");
    // Where one stands that is there, its start says nothing.
    drop(subscriber);
    caller.client.advance(PAST_SHORT).await;
    let since = caller.name("since");
    let since = Durable { caller, topic: late.topic.clone(), id: since };
    since.publish("later").await;
    let mut all = early.subscribe().await;
    let mut heard = all.next().await;
    while text(&heard) != "later" {
        heard = all.next().await;
    }
    let start = start::Start::Since(heard.delivery.unwrap().sent_at.unwrap());
    let start = Some(Start { start: Some(start) });
    let request = pubsub::SubscribeDurableRequest { start, ..since.request() };
    let mut subscriber = since.open(&request).await.expect("subscribed");
    assert_eq!(text(&subscriber.next().await), "later", "a moment is included");
}

async fn what_is_not_acknowledged_in_time_comes_again<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    let ack_wait = Some(ms(SHORT_MS));
    let request = pubsub::SubscribeDurableRequest { ack_wait, ..durable.request() };
    let mut subscriber = durable.open(&request).await.expect("subscribed");
    durable.publish("x").await;
    let first = subscriber.next().await;
    assert!(attempt(&first) <= 1);
    caller.client.advance(PAST_SHORT).await;
    let again = subscriber.next().await;
    assert_eq!((text(&first), text(&again)), ("x".to_owned(), "x".to_owned()));
    assert!(attempt(&again) == 0 || attempt(&again) >= 2);
    durable.acknowledge(&[again]).await;
    durable.publish("y").await;
    let mut next = subscriber.next().await;
    while text(&next) == "x" {
        // Where the time is real it may have been on its way again before the acknowledgement came.
        next = subscriber.next().await;
    }
    assert_eq!(text(&next), "y");
}

async fn a_stream_that_dies_leaves_its_events_to_the_next<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    for number in 0..4 {
        durable.publish(&number.to_string()).await;
    }
    let ack_wait = Some(ms(SHORT_MS));
    let request = pubsub::SubscribeDurableRequest { ack_wait, ..durable.request() };
    let mut dies = durable.open(&request).await.expect("subscribed");
    let held = take(&mut dies, 4).await;
    durable.acknowledge(&held[..2]).await;
    drop(dies);
    caller.client.advance(PAST_SHORT).await;
    let mut heir = durable.open(&request).await.expect("subscribed");
    let left = take(&mut heir, 2).await;
    assert_eq!(texts(&left), ["2", "3"]);
    durable.acknowledge(&left).await;
}

async fn streams_share_and_hold_no_more_than_they_may<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    let request = pubsub::SubscribeDurableRequest { max_in_flight: 3, ..durable.request() };
    let mut idle = durable.open(&request).await.expect("subscribed");
    for number in 0..10 {
        durable.publish(&number.to_string()).await;
    }
    let held = take(&mut idle, 3).await;
    let mut busy = durable.open(&request).await.expect("subscribed");
    let mut seen = texts(&held);
    for _ in 0..7 {
        let taken = busy.next().await;
        seen.push(text(&taken));
        durable.acknowledge(&[taken]).await;
    }
    seen.sort();
    assert_eq!(seen, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    durable.acknowledge(&held).await;
}

async fn subscriptions_do_not_share_with_each_other<C: Client>(caller: &Caller<'_, C>) {
    let (one, other) = (Durable::of(caller, "one"), Durable::of(caller, "other"));
    let mut passing = subscribe(caller, &one.topic, "").await;
    let (mut a, mut b) = (one.subscribe().await, other.subscribe().await);
    one.publish("x").await;
    // Whoever is only passing hears it too.
    assert_eq!(passing.texts(1).await, ["x"]);
    let of_one = take(&mut a, 1).await;
    one.acknowledge(&of_one).await;
    let of_other = take(&mut b, 1).await;
    assert_eq!((texts(&of_one), texts(&of_other)), (vec!["x".to_owned()], vec!["x".to_owned()]));
    let receipt = of_one[0].delivery.clone().unwrap().receipt;
    let foreign = other.try_acknowledge(vec![receipt]).await.expect("answered");
    assert_eq!(foreign, ["RECEIPT_EXPIRED"], "a receipt is good for its subscription alone");
    other.acknowledge(&of_other).await;
    let elsewhere = Durable { caller, topic: caller.name("elsewhere"), id: one.id.clone() };
    let refused = elsewhere.open(&elsewhere.request()).await.err().expect("it hears another topic");
    assert_eq!((refused.code, &*refused.reason), (9, "SUBSCRIPTION_MISMATCH"));
}

async fn a_filter_counts_as_done_what_it_leaves_out<C: Client>(caller: &Caller<'_, C>) {
    if !caller.client.offers().contains(Interface::PubSubFiltering) {
        return;
    }
    let durable = Durable::of(caller, "d");
    let filter = "kind = \"a\"".to_owned();
    let request = pubsub::SubscribeDurableRequest { filter, ..durable.request() };
    drop(durable.open(&request).await.expect("subscribed"));
    for number in 0..6 {
        let kind = if number % 3 == 0 { "a" } else { "b" };
        let attributes = [("kind".to_owned(), kind.to_owned())].into();
        let event = Message { attributes, ..text_event(&number.to_string()) };
        durable.try_publish(event).await.expect("published");
    }
    let mut subscriber = durable.open(&request).await.expect("subscribed");
    // The first may have been on its way to the one before, and come again.
    let mut taken = take(&mut subscriber, 2).await;
    taken.sort_by_key(text);
    assert_eq!(texts(&taken), ["0", "3"]);
    durable.acknowledge(&taken).await;
    drop(subscriber);
    let refused = durable.open(&durable.request()).await.err().expect("a filter never changes");
    assert_eq!((refused.code, &*refused.reason), (9, "SUBSCRIPTION_MISMATCH"));
}

async fn an_ordered_subscription_keeps_the_order_when_events_come_again<C: Client>(
    caller: &Caller<'_, C>,
) {
    if !caller.client.offers().contains(Interface::PubSubOrdering) {
        return;
    }
    let durable = Durable::of(caller, "d");
    let request = pubsub::SubscribeDurableRequest {
        ordered: true,
        ack_wait: Some(ms(SHORT_MS)),
        ..durable.request()
    };
    let mut subscriber = durable.open(&request).await.expect("subscribed");
    for number in 0..4 {
        let event = Message { ordering_key: "k".to_owned(), ..text_event(&number.to_string()) };
        durable.try_publish(event).await.expect("published");
    }
    let first = subscriber.next().await;
    assert_eq!(text(&first), "0");
    durable.acknowledge(&[first]).await;
    drop(subscriber);
    caller.client.advance(PAST_SHORT).await;
    let mut subscriber = durable.open(&request).await.expect("subscribed");
    for expected in ["1", "2", "3"] {
        let taken = subscriber.next().await;
        assert_eq!(text(&taken), expected);
        durable.acknowledge(&[taken]).await;
    }
}

async fn the_newest_event_is_told<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    let newest = || async {
        let (namespace, topic) = (caller.namespace(), durable.topic.clone());
        let request = pubsub::GetLastMessageIdRequest { namespace, topic };
        let answer: pubsub::GetLastMessageIdResponse =
            caller.call(Method::PUBSUB_GET_LAST_MESSAGE_ID, &request).await.expect("told");
        assert_eq!(answer.message_id.is_some(), answer.position.is_some());
        answer
    };
    assert_eq!(newest().await.message_id, None);
    durable.publish("0").await;
    let published = durable.try_publish(text_event("1")).await.expect("published");
    let told = newest().await;
    assert_eq!(told.message_id, Some(published.message_id));
    if let Some(position) = published.position {
        assert_eq!(told.position, Some(position));
    }
}

async fn a_subscription_is_deleted_with_what_it_has_done<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    let other = Durable::of(caller, "other");
    drop(other.subscribe().await);
    durable.publish("x").await;
    let mut subscriber = durable.subscribe().await;
    let taken = take(&mut subscriber, 1).await;
    durable.acknowledge(&taken).await;
    let unsubscribe = || async {
        let (namespace, subscription_id) = (caller.namespace(), durable.id.clone());
        let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
        let answer: pubsub::UnsubscribeResponse =
            caller.call(Method::PUBSUB_UNSUBSCRIBE, &request).await.expect("answered");
        answer.existed
    };
    assert_if_known(unsubscribe().await, true);
    assert_eq!(subscriber.opened.next().await, Ok(None), "its stream ends");
    assert_if_known(unsubscribe().await, false);
    let refused = durable.try_acknowledge(vec!["x".to_owned()]).await.expect_err("it is gone");
    assert_eq!((refused.code, &*refused.reason), (5, "SUBSCRIPTION_NOT_FOUND"));
    // Another of this name begins anew; the event is there for the other one.
    assert_eq!(text(&durable.subscribe().await.next().await), "x");
    publish(caller, &durable.topic, "y").await;
}

async fn names_and_receipts<C: Client>(caller: &Caller<'_, C>) {
    let durable = Durable::of(caller, "d");
    for bad in ["", "a..b", "a b", &"n".repeat(201)] {
        let request = pubsub::SubscribeDurableRequest {
            subscription_id: bad.to_owned(),
            ..durable.request()
        };
        assert_field(durable.open(&request).await.map(drop), "NAME_INVALID", "subscription_id");
        let request =
            pubsub::SubscribeDurableRequest { topic: bad.to_owned(), ..durable.request() };
        assert_field(durable.open(&request).await.map(drop), "NAME_INVALID", "topic");
    }
    drop(durable.subscribe().await);
    assert_field(durable.try_acknowledge(Vec::new()).await, "BATCH_EMPTY", "receipts");
    let nonsense = vec!["nonsense".to_owned(), "0-0".to_owned()];
    let reasons = durable.try_acknowledge(nonsense).await.expect("answered");
    assert_eq!(reasons, ["RECEIPT_EXPIRED", "RECEIPT_EXPIRED"]);
    let priority = Message { priority: Some(1), ..text_event("x") };
    assert_field(durable.try_publish(priority).await, "FIELD_NOT_ALLOWED", "message.priority");
}
