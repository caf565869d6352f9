//! The same random calls about queues on memstore and on another backend, at the same times.

use std::time::Duration;

use prism_adapters::Backend;
use prism_adapters::conformance::{Client as _, Direct, Failure};
use prism_adapters::memory::{Memstore, MemstoreLimits};
use prism_io::clock::wall_us;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConfigureDeadLetterRequest,
    ConfigureDeadLetterResponse, ExtendVisibilityRequest, ExtendVisibilityResponse,
    GetScheduledCountRequest, GetScheduledCountResponse, ListDeadLettersRequest,
    ListDeadLettersResponse, ReceiveRequest, ReceiveResponse, RedriveRequest, RedriveResponse,
    RejectRequest, RejectResponse, ReleaseRequest, ReleaseResponse, SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1::{Message, message};

/// Calls an empty backend and memstore: the same answers, but for the receipts.
pub(crate) async fn queues_agree<B: Backend>(other: B) {
    let seed = match std::env::var("PRISM_SEED") {
        Ok(seed) => seed.parse().expect("PRISM_SEED is a number"),
        Err(_) => wall_us(),
    };
    println!("PRISM_SEED={seed}");
    let twins = Twins {
        memory: Direct::new(Memstore::new(MemstoreLimits::default())),
        other: Direct::new(other),
    };
    let mut random = Random(seed | 1);
    // Receipts of the same delivery at both.
    let mut held: Vec<[String; 2]> = Vec::new();
    for step in 0..1500 {
        let (namespace, queue) = ("conformance".to_owned(), format!("q{}", random.below(2)));
        let place = || (namespace.clone(), queue.clone());
        let pick = |random: &mut Random, held: &[[String; 2]]| match held.len() {
            0 => ["none".to_owned(), "none".to_owned()],
            count => held[random.below(count as u64) as usize].clone(),
        };
        match random.below(12) {
            0..=3 => {
                let (namespace, queue) = place();
                let key = random.below(4);
                let message = Message {
                    ordering_key: if key < 2 { format!("k{key}") } else { String::new() },
                    priority: (random.below(2) == 0).then(|| random.below(3) as u32),
                    delivery_time: (random.below(4) == 0)
                        .then(|| message::DeliveryTime::Delay(ms(random.below(500) as i64))),
                    payload: step.to_string().into_bytes().into(),
                    ..Default::default()
                };
                let request = SendRequest { namespace, queue, message: Some(message) };
                twins.same::<SendResponse>(step, Method::QUEUE_SEND, &request).await;
            }
            4..=5 => {
                let (namespace, queue) = place();
                let visibility_timeout = Some(ms(1 + random.below(600) as i64));
                let max_messages = random.below(4) as u32;
                let request = ReceiveRequest {
                    namespace,
                    queue,
                    max_messages,
                    visibility_timeout,
                    wait: None,
                };
                let [mut memory, mut other] = twins
                    .both::<ReceiveResponse>(Method::QUEUE_RECEIVE, [&request, &request])
                    .await;
                let receipts = |answer: &mut ReceiveResponse| {
                    let deliveries = answer.deliveries.iter_mut();
                    deliveries.map(|one| std::mem::take(&mut one.receipt)).collect::<Vec<_>>()
                };
                let (of_memory, of_other) = (receipts(&mut memory), receipts(&mut other));
                assert_eq!(other, memory, "step {step}");
                held.extend(of_memory.into_iter().zip(of_other).map(|(a, b)| [a, b]));
                if held.len() > 12 {
                    held.remove(0);
                }
            }
            6 => {
                let request = pick(&mut random, &held).map(|receipt| {
                    let (namespace, queue) = place();
                    AcknowledgeRequest { namespace, queue, receipts: vec![receipt] }
                });
                twins.alike::<AcknowledgeResponse>(step, Method::QUEUE_ACKNOWLEDGE, request).await;
            }
            7 => {
                let request = pick(&mut random, &held).map(|receipt| {
                    let ((namespace, queue), reason) = (place(), format!("at {step}"));
                    RejectRequest { namespace, queue, receipts: vec![receipt], reason }
                });
                twins.alike::<RejectResponse>(step, Method::QUEUE_REJECT, request).await;
            }
            8 => {
                let (delay, extends) = (ms(1 + random.below(300) as i64), random.below(2) == 0);
                let receipts = pick(&mut random, &held);
                if extends {
                    let request = receipts.map(|receipt| {
                        let ((namespace, queue), visibility_timeout) = (place(), Some(delay));
                        ExtendVisibilityRequest { namespace, queue, receipt, visibility_timeout }
                    });
                    let method = Method::QUEUE_EXTEND_VISIBILITY;
                    twins.alike::<ExtendVisibilityResponse>(step, method, request).await;
                } else {
                    let request = receipts.map(|receipt| {
                        let ((namespace, queue), delay) = (place(), Some(delay));
                        ReleaseRequest { namespace, queue, receipt, delay }
                    });
                    twins.alike::<ReleaseResponse>(step, Method::QUEUE_RELEASE, request).await;
                }
            }
            9 => {
                let ((namespace, queue), max_deliveries) = (place(), random.below(4) as u32);
                let request = ConfigureDeadLetterRequest { namespace, queue, max_deliveries };
                let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
                twins.same::<ConfigureDeadLetterResponse>(step, method, &request).await;
            }
            10 => {
                let (namespace, queue) = place();
                let limit = random.below(3) as u32;
                let request = RedriveRequest { namespace, queue, message_ids: Vec::new(), limit };
                if random.below(3) == 0 {
                    twins.same::<RedriveResponse>(step, Method::QUEUE_REDRIVE, &request).await;
                } else {
                    let by = Duration::from_millis(random.below(400));
                    twins.memory.advance(by).await;
                    twins.other.advance(by).await;
                }
            }
            _ => {
                let (namespace, queue) = place();
                let page_size = 1000;
                let request =
                    ListDeadLettersRequest { namespace, queue, page_size, ..Default::default() };
                let method = Method::QUEUE_LIST_DEAD_LETTERS;
                twins.same::<ListDeadLettersResponse>(step, method, &request).await;
                let (namespace, queue) = place();
                let request = GetScheduledCountRequest { namespace, queue };
                let method = Method::QUEUE_GET_SCHEDULED_COUNT;
                twins.same::<GetScheduledCountResponse>(step, method, &request).await;
            }
        }
    }
}

fn ms(ms: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: ms / 1000, nanos: (ms % 1000 * 1_000_000) as i32 }
}

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Two backends whose calls come at the same times.
struct Twins<B> {
    memory: Direct<Memstore>,
    other: Direct<B>,
}

impl<B: Backend> Twins<B> {
    async fn both<R: prost::Message + Default>(
        &self,
        method: Method,
        [of_memory, of_other]: [&impl prost::Message; 2],
    ) -> [R; 2] {
        let memory = self.memory.unary(method, of_memory.encode_to_vec()).await.expect("answered");
        let other = self.other.unary(method, of_other.encode_to_vec()).await;
        [memory, other.expect("answered")].map(|reply| R::decode(reply).expect("a valid message"))
    }

    /// The same request at both has the same answer.
    async fn same<R: prost::Message + Default + PartialEq + std::fmt::Debug>(
        &self,
        step: u32,
        method: Method,
        request: &impl prost::Message,
    ) {
        let [memory, other] = self.both::<R>(method, [request, request]).await;
        assert_eq!(other, memory, "step {step}: {}", method.path());
    }

    /// Requests that differ in their receipts have the same answer, or are refused for the same reason.
    async fn alike<R: prost::Message + Default + PartialEq + std::fmt::Debug>(
        &self,
        step: u32,
        method: Method,
        [of_memory, of_other]: [impl prost::Message; 2],
    ) {
        let told = |reply: Result<bytes::Bytes, Failure>| match reply {
            Ok(reply) => Ok(R::decode(reply).expect("a valid message")),
            Err(failure) => Err((failure.code, failure.reason)),
        };
        let memory = told(self.memory.unary(method, of_memory.encode_to_vec()).await);
        let other = told(self.other.unary(method, of_other.encode_to_vec()).await);
        assert_eq!(other, memory, "step {step}: {}", method.path());
    }
}
