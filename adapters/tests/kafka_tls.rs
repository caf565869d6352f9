//! TLS and SASL to a real Kafka: whom the adapter trusts, who it says it is, and what a caller reads where they do not fit.

mod servers;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use prism_adapters::conformance::{Client, Direct, Failure, Opened, Versions};
use prism_adapters::kafka::{Kafka, KafkaConfig, Login, Mechanism, Tls};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::{Authorities, LONG, OwnKafka, free_address};

/// Authorities and what they have signed, and a Kafka that has it.
struct Files(Authorities);

impl Files {
    fn new() -> Self {
        Files(Authorities::new("127.0.0.1"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A Kafka with two more listeners: one that asks for certificates, one for users.
    fn kafka(&self) -> (OwnKafka, SocketAddr, SocketAddr) {
        let (ssl, sasl) = (free_address(), free_address());
        let (both, ca) = (self.0.name("server-both.pem"), self.0.name("ca.pem"));
        let module = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let settings = format!(
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL\n\
             inter.broker.listener.name=PLAINTEXT\nssl.keystore.type=PEM\nssl.keystore.location={both}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={ca}\nlistener.name.ssl.ssl.client.auth=required\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={module}\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={module}\n"
        );
        let users = [
            "SCRAM-SHA-256=[name=app,password=app-secret]",
            "SCRAM-SHA-512=[name=app,password=app-secret]",
        ];
        let kafka = OwnKafka::with(&[("SSL", ssl), ("SASL_SSL", sasl)], &settings, &users);
        (kafka, ssl, sasl)
    }

    fn tls(&self, ca: &str, has_identity: bool) -> Option<Tls> {
        let identity = has_identity.then(|| (self.path("client.pem"), self.path("client.key")));
        Some(Tls { ca: Some(self.path(ca)), identity })
    }
}

fn client(address: SocketAddr, tls: Option<Tls>, login: Option<Login>) -> Direct<Kafka> {
    client_for(LONG, address, tls, login)
}

/// One that is to be refused, which it is told by its client, not by an answer.
fn refused_client(address: SocketAddr, tls: Option<Tls>, login: Option<Login>) -> Direct<Kafka> {
    client_for(Duration::from_secs(2), address, tls, login)
}

fn client_for(
    answer_timeout: Duration,
    address: SocketAddr,
    tls: Option<Tls>,
    login: Option<Login>,
) -> Direct<Kafka> {
    let config =
        KafkaConfig { tls, login, answer_timeout, ..KafkaConfig::at(vec![address.to_string()]) };
    Direct::in_real_time(Kafka::start(config), Versions::None)
}

fn login(mechanism: Mechanism, password: &str) -> Option<Login> {
    let (user, password) = ("app".to_owned(), password.to_owned());
    Some(Login { mechanism, user, password })
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(12 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call<R: prost::Message + Default>(
    client: &Direct<Kafka>,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Failure> {
    let answer = client.unary(method, request.encode_to_vec()).await?;
    Ok(R::decode(answer).expect("a valid message"))
}

async fn append(client: &Direct<Kafka>, text: &str) -> Result<(), Failure> {
    let value = text.as_bytes().to_vec().into();
    let request = stream::AppendRequest {
        namespace: client.namespace().to_owned(),
        stream: "secret".to_owned(),
        expected_last: None,
        record: Some(stream::NewRecord { value, ..Default::default() }),
    };
    call::<stream::AppendResponse>(client, Method::STREAM_APPEND, &request).await.map(drop)
}

/// The first record that a group's only member is handed.
async fn first_of_group(client: &Direct<Kafka>) -> String {
    let [namespace, stream, group] = [client.namespace(), "secret", "g"].map(str::to_owned);
    let request = stream::CreateConsumerGroupRequest {
        namespace: namespace.clone(),
        stream: stream.clone(),
        group: group.clone(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let method = Method::STREAM_CREATE_CONSUMER_GROUP;
    let _: stream::CreateConsumerGroupResponse = call(client, method, &request).await.unwrap();
    let member = "m".to_owned();
    let request = stream::JoinConsumerGroupRequest { namespace, stream, group, member };
    let method = Method::STREAM_JOIN_CONSUMER_GROUP;
    let mut member = client.open(method, request.encode_to_vec()).await.unwrap();
    loop {
        let message = member.next().await.unwrap().unwrap();
        let response = stream::JoinConsumerGroupResponse::decode(message).unwrap();
        if let Some(Event::Record(delivery)) = response.event {
            return String::from_utf8(delivery.record.unwrap().value.to_vec()).unwrap();
        }
    }
}

/// What a caller reads, once the client has said what is wrong.
async fn refusal(client: &Direct<Kafka>, says: impl Fn(&Failure) -> bool) -> Failure {
    let until = std::time::Instant::now() + 3 * LONG;
    loop {
        let failure = append(client, "x").await.expect_err("it is not let in");
        assert_eq!(failure.code, 14, "{failure:?}");
        if says(&failure) {
            return failure;
        }
        assert!(std::time::Instant::now() < until, "{failure:?}");
        rt::sleep(Duration::from_millis(20)).await;
    }
}

/// One broker for all of it, since a start takes a while.
#[test]
fn certificates_and_users_are_held_to() {
    let files = Files::new();
    let (kafka, ssl, sasl) = files.kafka();
    run(async move {
        // By certificates on both sides.
        let known = client(ssl, files.tls("ca.pem", true), None);
        append(&known, "first").await.unwrap();
        assert_eq!(first_of_group(&known).await, "first", "consumers get there, too");
        // By a user, either way.
        for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
            let user = client(sasl, files.tls("ca.pem", false), login(mechanism, "app-secret"));
            append(&user, "of a user").await.unwrap();
        }
        let wrong = login(Mechanism::ScramSha512, "guessed");
        let wrong = refused_client(sasl, files.tls("ca.pem", false), wrong);
        let reason = "BACKEND_CREDENTIALS_REFUSED";
        let failure = refusal(&wrong, |failure| failure.reason == reason).await;
        assert!(!failure.message.contains("guessed"), "{failure:?}");
        // Who does not trust the server is told why.
        let about_tls = |failure: &Failure| {
            let said = failure.message.to_lowercase();
            failure.reason == "BACKEND_TLS" || said.contains("ssl") || said.contains("certificate")
        };
        let distrustful = refused_client(ssl, files.tls("other-ca.pem", true), None);
        refusal(&distrustful, about_tls).await;
        let nameless = refused_client(ssl, files.tls("ca.pem", false), None);
        // Who does not say who it is is not let in. TLS 1.3 says why only after the handshake, and the connection may be gone by then.
        refusal(&nameless, |_| true).await;
        drop(kafka);
    });
}
