//! The conformance suite, straight on memstore.

use prism_adapters::conformance::{Direct, block_on, random_sequence, run};
use prism_adapters::interfaces::keyvalue::{KeyValueBasic, KeyValueTtl};
use prism_adapters::memory::Memstore;
use prism_adapters::{Admission, Context, Error, Reply, backend};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue as view;

#[test]
fn memstore_serves_what_it_declares() {
    prism_io::rt::run(async {
        let client = Direct::new(Memstore::default());
        let ran = run(&client).await;
        assert!(ran.len() > 60, "{ran:?}");
        assert_eq!(run(&client).await.len(), ran.len(), "also a second time");
    })
    .unwrap();
}

#[test]
fn random_sequences_agree_with_a_model() {
    let seed = match std::env::var("PRISM_SEED") {
        Ok(seed) => seed.parse().expect("PRISM_SEED is a number"),
        Err(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    prism_io::rt::run(async move {
        for round in 0..20 {
            let client = Direct::new(Memstore::default());
            random_sequence(&client, seed.wrapping_add(round), 5_000).await;
        }
    })
    .unwrap();
}

/// memstore with less on offer, to see that the rest is refused.
struct BasicOnly(Memstore);

impl KeyValueBasic for BasicOnly {
    async fn get(
        &self,
        context: &Context<'_>,
        request: view::GetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.0.get(context, request, reply).await
    }

    async fn set(
        &self,
        context: &Context<'_>,
        request: view::SetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.0.set(context, request, reply).await
    }

    async fn delete(
        &self,
        context: &Context<'_>,
        request: view::DeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.0.delete(context, request, reply).await
    }

    async fn exists(
        &self,
        context: &Context<'_>,
        request: view::ExistsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.0.exists(context, request, reply).await
    }
}

/// Implemented, but not listed: never called.
impl KeyValueTtl for BasicOnly {
    async fn expire(
        &self,
        _: &Context<'_>,
        _: view::ExpireRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        panic!("the backend saw a call that it does not offer")
    }

    async fn get_ttl(
        &self,
        _: &Context<'_>,
        _: view::GetTtlRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        panic!("the backend saw a call that it does not offer")
    }

    async fn persist(
        &self,
        _: &Context<'_>,
        _: view::PersistRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        panic!("the backend saw a call that it does not offer")
    }
}

impl Admission for BasicOnly {
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        self.0.admit(method, request)
    }
}

backend! { BasicOnly: "basic-only" => keyvalue_basic }

#[test]
fn what_is_not_declared_is_refused() {
    use prism_adapters::Backend;
    use prism_adapters::conformance::Client;
    use prost::Message;

    let client = Direct::new(BasicOnly(Memstore::default()));
    let ran = block_on(run(&client));
    assert!(
        ran.iter().all(|name| name.starts_with("keyvalue_basic") || name.starts_with("offered"))
    );

    let limits = prism_adapters::Limits::default();
    let context = Context {
        namespace: 1,
        namespace_name: "conformance",
        partition: 0,
        now_us: 1,
        revision: prism_adapters::Revision::logged(1),
        limits: &limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    let mut reply = Reply::default();
    let unchecked = client.backend.unary(&context, Method::KEYVALUE_PERSIST, &[], &mut reply);
    let error = block_on(unchecked).expect_err("also where nobody asked before");
    assert_eq!(error.reason(), "INTERFACE_NOT_OFFERED");
    assert!(error.metadata().contains(&("backend", "basic-only".into())));

    let set = prism_proto::prism::keyvalue::v1::SetRequest {
        key: "key".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let refused = block_on(client.unary(Method::KEYVALUE_SET, set.encode_to_vec()));
    assert_eq!(refused.expect_err("a field too").reason, "INTERFACE_NOT_OFFERED");
}
