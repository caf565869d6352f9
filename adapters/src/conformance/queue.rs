//! What it means to serve the five interfaces of QueueService.

use std::time::{Duration, Instant};

use prism_io::rt;
use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::r#type::v1::{Delivery, Message, message};

use super::caller::{Caller, assert_field, at_ms, ms, payload};
use super::{Client, Failure, cases};

pub(super) async fn run<C: Client>(client: &C, interface: Interface, ran: &mut Vec<&'static str>) {
    match interface {
        Interface::QueueBasic => {
            cases!(client, ran, queue_basic: [
                what_is_sent_is_received_once_it_is_acknowledged,
                without_messages_nothing_is_received,
                messages_come_in_their_order,
                payloads_of_every_size_and_alphabet,
                names_and_messages_at_their_limits,
                a_batch_keeps_its_order,
                receive_takes_no_more_than_it_asks_for,
                a_key_has_one_message_in_flight,
                receipts_are_good_for_one_delivery,
                what_is_rejected_does_not_come_again,
                what_has_expired_is_not_delivered,
                a_consumer_that_dies_leaves_its_messages_to_others,
            ]);
        }
        Interface::QueueVisibility => {
            cases!(client, ran, queue_visibility: [
                a_lease_that_ends_brings_the_message_again,
                a_lease_can_be_extended,
                a_message_can_be_given_back,
            ]);
        }
        Interface::QueueDeadLetter => {
            cases!(client, ran, queue_dead_letter: [
                rejected_messages_are_kept_with_their_reason,
                after_so_many_deliveries_a_message_is_dead,
                dead_letters_come_in_pages_and_can_be_redriven,
            ]);
        }
        Interface::QueuePriority => {
            cases!(client, ran, queue_priority: [
                higher_priorities_go_first,
            ]);
        }
        Interface::QueueDelayed => {
            cases!(client, ran, queue_delayed: [
                delayed_messages_come_when_it_is_their_time,
            ]);
        }
        other => panic!("{other} is not of queues"),
    }
    if interface == Interface::QueueDelayed && client.offers().contains(Interface::QueuePriority) {
        cases!(client, ran, queue_delayed: [delay_and_priority_together]);
    }
}

/// Calls about one queue of a case.
struct Queue<'a, 'c, C> {
    caller: &'a Caller<'c, C>,
    name: String,
}

/// How long a message may take that ought to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough for the receiver of a test, also on a machine that has much to do.
const LEASE_MS: u64 = 1000;

impl<'a, 'c, C: Client> Queue<'a, 'c, C> {
    fn of(caller: &'a Caller<'c, C>) -> Self {
        Self::named(caller, "q")
    }

    fn named(caller: &'a Caller<'c, C>, name: &str) -> Self {
        Queue { caller, name: caller.name(name) }
    }

    fn namespace(&self) -> String {
        self.caller.namespace()
    }

    async fn try_send(&self, message: Message) -> Result<String, Failure> {
        let request = queue::SendRequest {
            namespace: self.namespace(),
            queue: self.name.clone(),
            message: Some(message),
        };
        let sent: queue::SendResponse = self.caller.call(Method::QUEUE_SEND, &request).await?;
        Ok(sent.message_id)
    }

    async fn send(&self, text: &str) -> String {
        self.try_send(text_message(text)).await.expect("sent")
    }

    fn receive_request(&self, max_messages: u32) -> queue::ReceiveRequest {
        let (namespace, queue) = (self.namespace(), self.name.clone());
        queue::ReceiveRequest { namespace, queue, max_messages, ..Default::default() }
    }

    async fn receive(&self, max_messages: u32) -> Vec<Delivery> {
        self.received(&self.receive_request(max_messages)).await
    }

    async fn receive_for(&self, max_messages: u32, lease_ms: u64) -> Vec<Delivery> {
        let request = self.receive_request(max_messages);
        let visibility_timeout = Some(ms(lease_ms));
        self.received(&queue::ReceiveRequest { visibility_timeout, ..request }).await
    }

    async fn received(&self, request: &queue::ReceiveRequest) -> Vec<Delivery> {
        let received: queue::ReceiveResponse =
            self.caller.call(Method::QUEUE_RECEIVE, request).await.expect("received");
        received.deliveries
    }

    async fn texts(&self, max_messages: u32) -> Vec<String> {
        self.receive(max_messages).await.iter().map(text).collect()
    }

    /// The reasons why receipts were refused; empty where they were not.
    async fn acknowledge(&self, receipts: &[&str]) -> Vec<String> {
        let request = queue::AcknowledgeRequest {
            namespace: self.namespace(),
            queue: self.name.clone(),
            receipts: receipts.iter().map(|receipt| receipt.to_string()).collect(),
        };
        let answer: queue::AcknowledgeResponse =
            self.caller.call(Method::QUEUE_ACKNOWLEDGE, &request).await.expect("answered");
        answer.results.into_iter().map(|result| super::caller::reason(result.status)).collect()
    }

    async fn reject(&self, receipt: &str, reason: &str) {
        let request = queue::RejectRequest {
            namespace: self.namespace(),
            queue: self.name.clone(),
            receipts: vec![receipt.to_owned()],
            reason: reason.to_owned(),
        };
        let answer: queue::RejectResponse =
            self.caller.call(Method::QUEUE_REJECT, &request).await.expect("answered");
        assert!(answer.results.len() == 1 && answer.results[0].status.is_none());
    }

    async fn keep_dead_letters(&self, max_deliveries: u32) {
        let request = queue::ConfigureDeadLetterRequest {
            namespace: self.namespace(),
            queue: self.name.clone(),
            max_deliveries,
        };
        let answer: Result<queue::ConfigureDeadLetterResponse, _> =
            self.caller.call(Method::QUEUE_CONFIGURE_DEAD_LETTER, &request).await;
        answer.expect("configured");
    }

    async fn dead_letters(&self, page_size: u32, token: &str) -> queue::ListDeadLettersResponse {
        let request = queue::ListDeadLettersRequest {
            namespace: self.namespace(),
            queue: self.name.clone(),
            page_size,
            page_token: token.to_owned(),
        };
        self.caller.call(Method::QUEUE_LIST_DEAD_LETTERS, &request).await.expect("listed")
    }

    /// The messages that come, though not at the very moment: some backends look at the time only now and then.
    async fn texts_in_time(&self, max_messages: u32) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let texts = self.texts(max_messages).await;
            if !texts.is_empty() || self.caller.client.is_time_simulated() {
                return texts;
            }
            assert!(Instant::now() < until, "a message comes when it is its time");
            rt::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn advance(&self, by_ms: u64) {
        self.caller.client.advance(Duration::from_millis(by_ms)).await;
    }
}

fn text_message(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

fn text(delivery: &Delivery) -> String {
    let message = delivery.message.as_ref().expect("a delivery has its message");
    String::from_utf8(message.payload.to_vec()).expect("text")
}

async fn what_is_sent_is_received_once_it_is_acknowledged<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let message = Message { content_type: "text/plain".to_owned(), ..text_message("hello") };
    let id = queue.try_send(message.clone()).await.expect("sent");
    assert!(!id.is_empty());
    let received = queue.receive(10).await;
    assert_eq!(received.len(), 1);
    let delivery = &received[0];
    assert_eq!(delivery.attempt, 1);
    assert!(!delivery.receipt.is_empty() && delivery.sent_at.is_some());
    assert!(delivery.lease_expires_at.is_some());
    assert_eq!(delivery.message, Some(Message { id, ..message }));
    assert_eq!(queue.receive(10).await, [], "it is leased");
    assert_eq!(queue.acknowledge(&[&delivery.receipt]).await, [""]);
    assert_eq!(queue.receive(10).await, []);
}

async fn without_messages_nothing_is_received<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    assert_eq!(queue.receive(1).await, []);
    assert_eq!(queue.receive(0).await, [], "0 counts as 1");
    assert_eq!(queue.acknowledge(&["none"]).await, ["RECEIPT_EXPIRED"]);
}

async fn messages_come_in_their_order<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(queue.send(&number.to_string()).await);
    }
    assert_eq!(queue.texts(2).await, ["0", "1"]);
    assert_eq!(queue.texts(1000).await, ["2", "3", "4"]);
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 5);
}

async fn payloads_of_every_size_and_alphabet<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    for bytes in [0, 1, 4095, 4096, 100_000, 1 << 20] {
        let sent = Message { payload: payload(bytes).into(), ..Default::default() };
        queue.try_send(sent).await.expect("sent");
        let received = queue.receive(1).await;
        assert_eq!(received[0].message.as_ref().unwrap().payload.len(), bytes);
        assert_eq!(received[0].message.as_ref().unwrap().payload, payload(bytes));
        queue.acknowledge(&[&received[0].receipt]).await;
    }
    queue.send("Grüezi, 世界 🚀").await;
    assert_eq!(queue.texts(1).await, ["Grüezi, 世界 🚀"]);
}

async fn names_and_messages_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let sent = |name: &str, message: Option<Message>| {
        let (namespace, queue) = (caller.namespace(), name.to_owned());
        let request = queue::SendRequest { namespace, queue, message };
        async move { caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &request).await }
    };
    for bad in ["", ".", "a..b", "a b", "*", "é", &"n".repeat(201)] {
        assert_field(sent(bad, Some(text_message("x"))).await, "NAME_INVALID", "queue");
    }
    let longest = Queue::named(caller, &"n".repeat(200 - caller.name("").len()));
    assert_eq!(longest.name.len(), 200);
    longest.send("x").await;
    assert_eq!(longest.texts(1).await, ["x"]);
    let name = &longest.name;
    assert_field(sent(name, None).await, "MESSAGE_MISSING", "message");
    let given = Message { id: "mine".to_owned(), ..text_message("x") };
    assert_field(sent(name, Some(given)).await, "MESSAGE_ID_GIVEN", "message.id");
    for (key, value) in
        [("A", "x"), ("", "x"), ("a.b", "x"), ("a", "x\ny"), ("a", &*"v".repeat(1025))]
    {
        let attributes = [(key.to_owned(), value.to_owned())].into();
        let message = Message { attributes, ..text_message("x") };
        assert_field(sent(name, Some(message)).await, "ATTRIBUTE_INVALID", "message.attributes");
    }
    let attributes = (0..9).map(|number| (format!("a{number}"), String::new())).collect();
    let message = Message { attributes, ..text_message("x") };
    assert_field(sent(name, Some(message)).await, "TOO_MANY_ITEMS", "message.attributes");
    let attributes: std::collections::HashMap<_, _> =
        (0..8).map(|number| (format!("a{number}-_"), "é".repeat(512))).collect();
    let message = Message { attributes: attributes.clone(), ..text_message("x") };
    sent(name, Some(message)).await.expect("at the limit");
    let received = longest.receive(1).await;
    assert_eq!(received[0].message.as_ref().unwrap().attributes, attributes);
    let too_large = caller.client.limits().max_message_size - 2047;
    let message = Message { payload: payload(too_large).into(), ..Default::default() };
    assert_field(sent(name, Some(message)).await, "PAYLOAD_TOO_LARGE", "message.payload");
    assert_field(longest.acknowledge_raw(vec![]).await, "BATCH_EMPTY", "receipts");
    let twice = vec!["a".to_owned(), "a".to_owned()];
    assert_field(longest.acknowledge_raw(twice).await, "DUPLICATE_RECEIPT", "receipts[1]");
}

impl<C: Client> Queue<'_, '_, C> {
    async fn acknowledge_raw(
        &self,
        receipts: Vec<String>,
    ) -> Result<queue::AcknowledgeResponse, Failure> {
        let (namespace, queue) = (self.namespace(), self.name.clone());
        let request = queue::AcknowledgeRequest { namespace, queue, receipts };
        self.caller.call(Method::QUEUE_ACKNOWLEDGE, &request).await
    }
}

async fn a_batch_keeps_its_order<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let messages = (0..100).map(|number: u32| text_message(&number.to_string())).collect();
    let (namespace, name) = (caller.namespace(), queue.name.clone());
    let request = queue::SendBatchRequest { namespace, queue: name, messages };
    let sent: queue::SendBatchResponse =
        caller.call(Method::QUEUE_SEND_BATCH, &request).await.expect("sent");
    assert_eq!(sent.results.len(), 100);
    assert!(sent.results.iter().all(|result| result.status.is_none()));
    let received = queue.receive(1000).await;
    for (number, (delivery, result)) in received.iter().zip(&sent.results).enumerate() {
        assert_eq!(text(delivery), number.to_string());
        assert_eq!(delivery.message.as_ref().unwrap().id, result.message_id);
    }
    assert_eq!(received.len(), 100);
    let receipts: Vec<&str> = received.iter().map(|one| one.receipt.as_str()).collect();
    assert!(queue.acknowledge(&receipts).await.iter().all(String::is_empty));
    let empty = queue::SendBatchRequest { messages: Vec::new(), ..request };
    let refused = caller.call::<queue::SendBatchResponse>(Method::QUEUE_SEND_BATCH, &empty).await;
    assert_field(refused, "BATCH_EMPTY", "messages");
}

async fn receive_takes_no_more_than_it_asks_for<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    for number in 0..3 {
        queue.send(&number.to_string()).await;
    }
    assert_eq!(queue.texts(0).await, ["0"]);
    assert_eq!(queue.texts(1).await, ["1"]);
    let request = queue.receive_request(1001);
    let refused = caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &request).await;
    assert_field(refused, "TOO_MANY_ITEMS", "max_messages");
    assert_eq!(queue.texts(1).await, ["2"]);
}

async fn a_key_has_one_message_in_flight<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    for (key, text) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("", "free"), ("a", "a3")] {
        let message = Message { ordering_key: key.to_owned(), ..text_message(text) };
        queue.try_send(message).await.expect("sent");
    }
    let first = queue.receive(10).await;
    assert_eq!(first.iter().map(text).collect::<Vec<_>>(), ["a1", "b1", "free"]);
    assert_eq!(queue.receive(10).await, []);
    queue.acknowledge(&[&first[0].receipt]).await;
    let second = queue.receive(10).await;
    assert_eq!(second.iter().map(text).collect::<Vec<_>>(), ["a2"]);
    queue.reject(&second[0].receipt, "no").await;
    assert_eq!(queue.texts(10).await, ["a3"]);
}

async fn receipts_are_good_for_one_delivery<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.send("one").await;
    queue.send("two").await;
    let received = queue.receive(2).await;
    let receipts = [&*received[0].receipt, "nonsense", &*received[1].receipt];
    assert_eq!(queue.acknowledge(&receipts).await, ["", "RECEIPT_EXPIRED", ""]);
    let again = queue.acknowledge(&[&received[0].receipt]).await;
    // A record that may have been carried out before is told that it was, since the message is gone.
    let may_be_second = again == [""] && !caller.client.is_time_simulated();
    assert!(again == ["RECEIPT_EXPIRED"] || may_be_second, "{again:?}");
}

async fn what_is_rejected_does_not_come_again<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.send("bad").await;
    let received = queue.receive(1).await;
    queue.reject(&received[0].receipt, "not for me").await;
    assert_eq!(queue.receive(1).await, []);
    assert_eq!(queue.acknowledge(&[&received[0].receipt]).await, ["RECEIPT_EXPIRED"]);
}

async fn what_has_expired_is_not_delivered<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let expires_at = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    queue.try_send(Message { expires_at, ..text_message("old") }).await.expect("sent");
    let expires_at = Some(prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 });
    queue.try_send(Message { expires_at, ..text_message("new") }).await.expect("sent");
    assert_eq!(queue.texts(10).await, ["new"]);
}

async fn a_consumer_that_dies_leaves_its_messages_to_others<C: Client>(caller: &Caller<'_, C>) {
    if !caller.client.is_time_simulated() {
        // The queue's own lease is too long to wait for; with a shorter one it is a case of queue_visibility.
        return;
    }
    let queue = Queue::of(caller);
    for text in ["1", "2", "3"] {
        queue.send(text).await;
    }
    let held = queue.receive(2).await;
    assert_eq!(queue.texts(10).await, ["3"]);
    queue.advance(12 * 3_600_000).await;
    let again = queue.receive(10).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["1", "2", "3"], "oldest first");
    assert!(again.iter().all(|delivery| delivery.attempt == 2));
    assert_eq!(queue.acknowledge(&[&held[0].receipt]).await, ["RECEIPT_EXPIRED"]);
    assert_eq!(queue.acknowledge(&[&again[0].receipt]).await, [""]);
}

async fn a_lease_that_ends_brings_the_message_again<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.send("1").await;
    queue.send("2").await;
    let held = queue.receive_for(1, LEASE_MS).await;
    assert_eq!(text(&held[0]), "1");
    queue.advance(LEASE_MS + 50).await;
    let again = queue.receive(10).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["1", "2"], "oldest first");
    assert_eq!((again[0].attempt, again[1].attempt), (2, 1));
    assert_eq!(queue.acknowledge(&[&held[0].receipt]).await, ["RECEIPT_EXPIRED"]);
    assert_eq!(queue.acknowledge(&[&again[0].receipt]).await, [""]);
}

async fn a_lease_can_be_extended<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.send("1").await;
    let held = queue.receive_for(1, LEASE_MS).await;
    let extend = |receipt: &str, to_ms| queue::ExtendVisibilityRequest {
        namespace: queue.namespace(),
        queue: queue.name.clone(),
        receipt: receipt.to_owned(),
        visibility_timeout: Some(ms(to_ms)),
    };
    let method = Method::QUEUE_EXTEND_VISIBILITY;
    let extended: queue::ExtendVisibilityResponse =
        caller.call(method, &extend(&held[0].receipt, 60_000)).await.expect("extended");
    assert!(at_ms(extended.lease_expires_at) > at_ms(held[0].lease_expires_at));
    queue.advance(LEASE_MS + 50).await;
    assert_eq!(queue.receive(1).await, []);
    assert_eq!(queue.acknowledge(&[&held[0].receipt]).await, [""]);
    let refused =
        caller.call::<queue::ExtendVisibilityResponse>(method, &extend(&held[0].receipt, 1)).await;
    assert_eq!(refused.expect_err("it is over").reason, "RECEIPT_EXPIRED");
    let zero =
        caller.call::<queue::ExtendVisibilityResponse>(method, &extend(&held[0].receipt, 0)).await;
    assert_field(zero, "DURATION_INVALID", "visibility_timeout");
}

async fn a_message_can_be_given_back<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.send("1").await;
    let release = |receipt: &str, delay| queue::ReleaseRequest {
        namespace: queue.namespace(),
        queue: queue.name.clone(),
        receipt: receipt.to_owned(),
        delay,
    };
    let first = queue.receive(1).await;
    let released: Result<queue::ReleaseResponse, _> =
        caller.call(Method::QUEUE_RELEASE, &release(&first[0].receipt, None)).await;
    released.expect("released");
    let second = queue.receive(1).await;
    assert_eq!((text(&second[0]), second[0].attempt), ("1".to_owned(), 2));
    let stale: Result<queue::ReleaseResponse, _> =
        caller.call(Method::QUEUE_RELEASE, &release(&first[0].receipt, None)).await;
    assert_eq!(stale.expect_err("it is delivered again").reason, "RECEIPT_EXPIRED");
    let released: Result<queue::ReleaseResponse, _> =
        caller.call(Method::QUEUE_RELEASE, &release(&second[0].receipt, Some(ms(LEASE_MS)))).await;
    released.expect("released");
    assert_eq!(queue.receive(1).await, [], "not yet");
    queue.advance(LEASE_MS + 50).await;
    assert_eq!(queue.receive(1).await[0].attempt, 3);
}

async fn rejected_messages_are_kept_with_their_reason<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.keep_dead_letters(0).await;
    let id = queue.send("bad").await;
    let received = queue.receive(1).await;
    queue.reject(&received[0].receipt, "cannot parse: é").await;
    let listed = queue.dead_letters(0, "").await;
    assert_eq!((listed.dead_letters.len(), &*listed.next_page_token), (1, ""));
    let letter = &listed.dead_letters[0];
    assert_eq!((&*letter.reason, letter.attempts), ("cannot parse: é", 1));
    assert!(letter.sent_at.is_some() && at_ms(letter.dead_at) >= at_ms(letter.sent_at));
    assert_eq!(letter.message.as_ref().unwrap().id, id);
    assert_eq!(letter.message.as_ref().unwrap().payload, b"bad"[..]);
    assert_eq!(queue.receive(1).await, []);
}

async fn after_so_many_deliveries_a_message_is_dead<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.keep_dead_letters(2).await;
    queue.send("poison").await;
    for attempt in 1..=2 {
        let held = queue.receive_for(1, LEASE_MS).await;
        assert_eq!(held[0].attempt, attempt);
        queue.advance(LEASE_MS + 50).await;
    }
    let listed = queue.dead_letters(0, "").await;
    let letters: Vec<_> =
        listed.dead_letters.iter().map(|one| (&*one.reason, one.attempts)).collect();
    assert_eq!(letters, [("MAX_DELIVERIES", 2)]);
    assert_eq!(queue.receive(1).await, []);
    assert_eq!(queue.dead_letters(0, "").await.dead_letters.len(), 1);
}

async fn dead_letters_come_in_pages_and_can_be_redriven<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    queue.keep_dead_letters(0).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(queue.send(&number.to_string()).await);
    }
    for delivery in queue.receive(5).await {
        queue.reject(&delivery.receipt, "").await;
    }
    let (mut token, mut listed) = (String::new(), Vec::new());
    loop {
        let page = queue.dead_letters(2, &token).await;
        assert!(page.dead_letters.len() <= 2);
        listed.extend(page.dead_letters.into_iter().map(|one| one.message.unwrap().id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids, "oldest first");
    let redrive = |message_ids: Vec<String>, limit| {
        let (namespace, queue) = (caller.namespace(), queue.name.clone());
        let request = queue::RedriveRequest { namespace, queue, message_ids, limit };
        async move {
            let answer: queue::RedriveResponse =
                caller.call(Method::QUEUE_REDRIVE, &request).await.expect("redriven");
            answer.redriven
        }
    };
    assert_eq!(redrive(vec![ids[3].clone(), "unknown".to_owned()], 0).await, 1);
    let again = queue.receive(10).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["3"]);
    assert_eq!(again[0].attempt, 1, "as if just sent");
    assert_eq!(again[0].message.as_ref().unwrap().id, ids[3]);
    assert_eq!(redrive(Vec::new(), 2).await, 2);
    assert_eq!(queue.texts(10).await, ["0", "1"]);
    assert_eq!(redrive(Vec::new(), 0).await, 2);
    assert_eq!(queue.dead_letters(0, "").await.dead_letters.len(), 0);
}

async fn higher_priorities_go_first<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let send = |text: &str, priority| {
        let message = Some(Message { priority, ..text_message(text) });
        let (namespace, queue) = (caller.namespace(), queue.name.clone());
        let request = queue::SendWithPriorityRequest { namespace, queue, message };
        async move {
            let method = Method::QUEUE_SEND_WITH_PRIORITY;
            caller.call::<queue::SendWithPriorityResponse>(method, &request).await
        }
    };
    queue.send("plain").await;
    for (text, priority) in [("5a", 5), ("9", 9), ("5b", 5), ("0", 0)] {
        assert!(!send(text, Some(priority)).await.expect("sent").message_id.is_empty());
    }
    assert_eq!(queue.texts(2).await, ["9", "5a"]);
    assert_eq!(queue.texts(10).await, ["5b", "plain", "0"]);
    assert_field(send("x", None).await, "PRIORITY_MISSING", "message.priority");
    assert_field(send("x", Some(10)).await, "PRIORITY_INVALID", "message.priority");
}

fn after(delay_ms: u64) -> Option<message::DeliveryTime> {
    Some(message::DeliveryTime::Delay(ms(delay_ms)))
}

async fn delayed_messages_come_when_it_is_their_time<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    let send = |text: &str, delivery_time| {
        let message = Some(Message { delivery_time, ..text_message(text) });
        let (namespace, queue) = (caller.namespace(), queue.name.clone());
        let request = queue::SendDelayedRequest { namespace, queue, message };
        async move {
            caller.call::<queue::SendDelayedResponse>(Method::QUEUE_SEND_DELAYED, &request).await
        }
    };
    let count = || async {
        let (namespace, queue) = (caller.namespace(), queue.name.clone());
        let request = queue::GetScheduledCountRequest { namespace, queue };
        let answer: queue::GetScheduledCountResponse =
            caller.call(Method::QUEUE_GET_SCHEDULED_COUNT, &request).await.expect("counted");
        answer.count
    };
    assert_eq!(count().await, 0);
    send("late", after(3_600_000)).await.expect("sent");
    send("soon", after(LEASE_MS)).await.expect("sent");
    let past = prost_types::Timestamp { seconds: 1, nanos: 0 };
    send("past", Some(message::DeliveryTime::DeliverAt(past))).await.expect("sent");
    queue.send("now").await;
    assert_eq!(count().await, 2);
    assert_eq!(queue.texts(10).await, ["past", "now"]);
    queue.advance(LEASE_MS + 50).await;
    assert_eq!(queue.texts_in_time(10).await, ["soon"]);
    let until = Instant::now() + PATIENCE;
    while !caller.client.is_time_simulated() && count().await != 1 && Instant::now() < until {
        rt::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count().await, 1);
    assert_field(send("x", None).await, "DELIVERY_TIME_MISSING", "message.delivery_time");
    assert_field(send("x", after(367 * 86_400_000)).await, "DURATION_INVALID", "message.delay");
}

async fn delay_and_priority_together<C: Client>(caller: &Caller<'_, C>) {
    let queue = Queue::of(caller);
    for (text, priority, delay_ms) in
        [("low", 1, 0), ("high later", 9, LEASE_MS), ("middle later", 5, LEASE_MS), ("none", 0, 0)]
    {
        let delivery_time = after(delay_ms);
        let priority = Some(priority);
        queue
            .try_send(Message { priority, delivery_time, ..text_message(text) })
            .await
            .expect("sent");
    }
    assert_eq!(queue.texts(1).await, ["low"]);
    queue.advance(LEASE_MS + 50).await;
    assert_eq!(queue.texts(10).await, ["high later", "middle later", "none"]);
}
