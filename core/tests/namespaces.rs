//! The life of a namespace through the real server, by every door: files, the command line, gRPC, JSON, the admin port.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::tokens::{Signer, claims};
use harness::{Caller, Refusal, Server, Setup, directory, prism, run, serve};
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::namespace::v1 as proto;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::r#type::v1::Message;
use servers::OwnRedis;

const ORDERS: &str = "namespace: orders\nteam: payments\nclient_api: queue\n";
/// Longer than anything here takes, on a machine that does other work as well.
const LONG: Duration = Duration::from_secs(120);

/// A call of NamespaceService, with a token where there is one.
fn ask<Answer: prost::Message + Default + 'static>(
    address: SocketAddr,
    method: &'static str,
    request: &impl prost::Message,
    token: &str,
) -> Result<Answer, Box<Refusal>> {
    let (request, token) = (request.encode_to_vec(), token.to_owned());
    run(async move {
        let caller = Caller::to(address, "").await;
        let path = format!("/prism.namespace.v1.NamespaceService/{method}");
        let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
        let metadata = if token.is_empty() { &[] } else { metadata };
        let reply = caller.client.unary(&path, metadata, &request, LONG).await;
        let reply = reply.map_err(|failure| Box::new(Refusal::from(failure)))?;
        Ok(Answer::decode(reply.message).expect("a valid answer"))
    })
}

fn names(address: SocketAddr, token: &str) -> Vec<String> {
    let list = ask::<proto::ListResponse>(address, "List", &proto::ListRequest::default(), token);
    list.expect("listed").namespaces.into_iter().map(|namespace| namespace.name).collect()
}

fn plan(
    address: SocketAddr,
    document: &str,
    token: &str,
) -> Result<proto::PlanResponse, Box<Refusal>> {
    let request = proto::PlanRequest { document: document.to_owned(), ..Default::default() };
    ask(address, "Plan", &request, token)
}

fn apply(
    address: SocketAddr,
    document: &str,
    token: &str,
) -> Result<proto::ApplyResponse, Box<Refusal>> {
    let request = proto::ApplyRequest { document: document.to_owned(), ..Default::default() };
    ask(address, "Apply", &request, token)
}

fn explain(
    address: SocketAddr,
    name: &str,
    token: &str,
) -> Result<proto::ExplainResponse, Box<Refusal>> {
    ask(address, "Explain", &proto::ExplainRequest { namespace: name.to_owned() }, token)
}

/// Sends one message to the queue `q` of a namespace: the level reached, or the reason of the refusal.
fn send(address: SocketAddr, namespace: &str, token: &str) -> Result<String, String> {
    let (namespace, token) = (namespace.to_owned(), token.to_owned());
    run(async move {
        let caller = Caller::to(address, &namespace).await;
        let message = Some(Message { payload: "hello".into(), ..Default::default() });
        let request = queue::SendRequest { namespace, queue: "q".to_owned(), message };
        let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
        let metadata = if token.is_empty() { &[] } else { metadata };
        let sent = caller.call::<queue::SendResponse>(Method::QUEUE_SEND, metadata, &request).await;
        let (_, trailers) = sent.map_err(|refusal| refusal.reason)?;
        Ok(harness::calls::trailer(&trailers, "prism-durability").unwrap_or_default().to_owned())
    })
}

/// How many messages the queue `q` of a namespace gives.
fn received(address: SocketAddr, namespace: &str) -> usize {
    let namespace = namespace.to_owned();
    run(async move {
        let caller = Caller::to(address, &namespace).await;
        let request = queue::ReceiveRequest {
            namespace,
            queue: "q".to_owned(),
            max_messages: 100,
            ..Default::default()
        };
        let got = caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &request);
        got.await.expect("received").0.deliveries.len()
    })
}

/// Runs `prism` against a server: the exit code, stdout and stderr.
fn command(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let endpoint = server.listen.to_string();
    prism(&[arguments, &["--endpoint", &endpoint]].concat())
}

fn registry(server: &Server) -> Vec<u8> {
    std::fs::read(server.data.join("registry.json")).expect("it is there")
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_str().expect("UTF-8").to_owned()
}

/// One that plans from the files of a folder.
fn of_files(folder: &Path, platform: &str, requests: &str) -> Setup {
    let platform = write(folder, "platform.yaml", platform);
    write(folder, "namespaces/all.yaml", requests);
    serve(folder).shards(2).config(&format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {platform}\nrequests: {}\n",
        folder.join("namespaces").display()
    ))
}

/// One that namespaces are applied to, with a platform.
fn of_platform(folder: &Path, platform: &str) -> Setup {
    let platform = write(folder, "platform.yaml", platform);
    serve(folder)
        .shards(2)
        .config(&format!("wal: {{segment_bytes: 20MiB}}\nplatform: {platform}\n"))
}

/// A call in JSON over HTTP/1.1: the whole answer.
fn post(address: SocketAddr, method: &str, json: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    let length = json.len();
    write!(
        stream,
        "POST /prism.namespace.v1.NamespaceService/{method} HTTP/1.1\r\nhost: prism\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{json}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer in UTF-8");
    text
}

#[test]
fn what_is_served_is_told_by_every_door() {
    let folder = directory();
    let platform = "teams: [{name: payments}, {name: web}]\nlimits: {write_rps: 1k}\n";
    let requests = format!(
        "{ORDERS}needs: {{durability: strong, max_message_size: 64KiB}}\n---\nnamespace: carts\nteam: web\nclient_api: keyvalue\n"
    );
    let server = of_files(folder.path(), platform, &requests).start();
    let address = server.listen;

    assert_eq!(names(address, ""), ["carts", "orders"]);
    let of_team = proto::ListRequest { team: "web".to_owned(), ..Default::default() };
    let listed: proto::ListResponse = ask(address, "List", &of_team, "").unwrap();
    assert_eq!(listed.namespaces.len(), 1);
    let page = proto::ListRequest { page_size: 1, ..Default::default() };
    let first: proto::ListResponse = ask(address, "List", &page, "").unwrap();
    assert_eq!(first.namespaces[0].name, "carts");
    let page = proto::ListRequest { page_token: first.next_page_token, ..page };
    let second: proto::ListResponse = ask(address, "List", &page, "").unwrap();
    assert_eq!(
        (second.namespaces[0].name.as_str(), second.next_page_token.as_str()),
        ("orders", "")
    );

    let request = proto::GetRequest { namespace: "orders".to_owned() };
    let got = ask::<proto::GetResponse>(address, "Get", &request, "").unwrap().namespace.unwrap();
    assert_eq!((got.team.as_str(), got.client_api.as_str()), ("payments", "queue"));
    assert_eq!((got.durability(), got.source()), (proto::Durability::Strong, proto::Source::Files));
    assert_eq!(got.limits.unwrap().max_message_size, 64 << 10);
    assert!(got.interfaces.contains(&"queue_dead_letter".to_owned()), "{:?}", got.interfaces);
    let why = explain(address, "orders", "").unwrap();
    let durability = why.decisions.iter().find(|one| one.subject == "durability").unwrap();
    assert_eq!(durability.choice, "strong");
    assert!(why.text.contains("all.yaml:1:12"), "{}", why.text);
    let refusal = explain(address, "ordres", "").unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "NAMESPACE_UNKNOWN"));
    assert!(refusal.message.contains("did you mean `orders`?"), "{}", refusal.message);

    // What would change is told field by field, against what runs.
    let changed = format!("{ORDERS}needs: {{durability: eventual, max_message_size: 64KiB}}\n");
    let outcome = plan(address, &changed, "").unwrap().outcomes.remove(0);
    assert_eq!(outcome.change(), proto::Change::Update);
    let durability = outcome.actions.iter().find(|action| action.target == "durability").unwrap();
    assert_eq!(durability.description, "strong -> wal");
    let outcomes = plan(address, &requests, "").unwrap().outcomes;
    assert!(outcomes.iter().all(|one| one.change() == proto::Change::None), "{outcomes:?}");

    let (code, listed, errors) = command(&server, &["namespaces"]);
    assert_eq!(code, 0, "{errors}");
    assert!(listed.contains("orders     payments  queue"), "{listed}");
    let (code, listed, _) = command(&server, &["namespaces", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((code, &listed["namespaces"][1]["name"]), (0, &"orders".into()));
    let (code, why, _) = command(&server, &["explain", "orders", "--server"]);
    assert!(code == 0 && why.contains("durability: strong, because"), "{why}");
    assert_eq!(command(&server, &["explain", "ordres", "--server"]).0, 4);
    let file = write(folder.path(), "new/orders.yaml", &requests);
    let (code, said, errors) = command(&server, &["plan", &file, "--server"]);
    assert!(
        code == 0 && said.ends_with("0 to create, 0 to change, 2 there, 0 refused\n"),
        "{said}{errors}"
    );
    let file = write(folder.path(), "new/orders.yaml", &changed);
    let (code, said, _) = command(&server, &["plan", &file, "--server"]);
    assert!(code == 2 && said.contains("~ change   orders\n"), "{said}");
    assert!(said.contains("             durability: strong -> wal\n"), "{said}");
    write(
        folder.path(),
        "new/more.yaml",
        "# one more\nnamespace: mail\nteam: webb\nclient_api: queue\n",
    );
    let new = folder.path().join("new").to_str().unwrap().to_owned();
    let (code, said, _) = command(&server, &["plan", &new, "--server"]);
    assert!(code == 78 && said.contains("new/more.yaml:3:7: TEAM_UNKNOWN"), "{said}");

    let page = server.admin_page("/namespaces");
    assert!(page.contains("200 OK") && page.contains("\"name\": \"carts\""), "{page}");
    let page = server.admin_page("/namespaces/orders");
    assert!(page.contains("\"choice\": \"strong\""), "{page}");
    assert!(server.admin_page("/namespaces/ordres").contains("404"));
    let answer = post(address, "Get", r#"{"namespace":"carts"}"#);
    assert!(answer.contains("200 OK") && answer.contains(r#""clientApi":"keyvalue""#), "{answer}");
    server.stop();
}

#[test]
fn where_files_decide_nothing_is_applied() {
    let folder = directory();
    let server = of_files(folder.path(), "{}", ORDERS).start();
    let mail = ORDERS.replace("orders", "mail");
    let refused = |server: &Server, says: &str| {
        let before = registry(server);
        let refusal = apply(server.listen, &mail, "").unwrap_err();
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::FailedPrecondition, "FILES_DECIDE")
        );
        assert!(refusal.message.contains(says), "{}", refusal.message);
        let file = write(folder.path(), "mail.yaml", &mail);
        let (code, _, errors) = command(server, &["apply", &file]);
        assert!(code == 78 && errors.contains(says), "{errors}");
        let approve =
            ["approve", "mail", "--field", "backend", "--until", "2999-01-01", "--by", "ops"];
        let (code, _, errors) = command(server, &approve);
        assert!(code == 78 && errors.contains("FILES_DECIDE"), "{errors}");
        assert_eq!(registry(server), before);
        assert_eq!(send(server.listen, "mail", ""), Err("NAMESPACE_UNKNOWN".to_owned()));
    };
    refused(&server, "namespaces are the truth here; change it there, and send SIGHUP");
    server.stop();

    // A configuration that lists namespaces decides as well.
    let listed = directory();
    let server = serve(listed.path()).namespaces(&[("keyvalue", "wal")]).start();
    refused(&server, "prism.yaml lists the namespaces; change it there, or leave `namespaces`");
    server.stop();
}

#[test]
fn what_is_applied_is_served_at_once_and_over_a_crash() {
    let folder = directory();
    let setup = serve(folder.path()).shards(2);
    let server = setup.start();
    assert_eq!(send(server.listen, "orders", ""), Err("NAMESPACE_UNKNOWN".to_owned()));
    let file = write(folder.path(), "orders.yaml", ORDERS);
    let (code, said, errors) = command(&server, &["apply", &file]);
    assert!(code == 0 && said.contains("+ create   orders\n"), "{said}{errors}");
    assert!(said.contains("durability: wal, because") && said.ends_with("\napplied\n"), "{said}");
    for _ in 0..4 {
        // A connection lands on either shard.
        assert_eq!(send(server.listen, "orders", "").as_deref(), Ok("wal"));
    }
    let metrics = server.admin_page("/metrics");
    let counted = "prism_requests_total{namespace=\"orders\",api=\"queue\",status=\"success\"} 4";
    assert!(metrics.contains(counted), "{metrics}");

    // Twice changes nothing.
    let before = registry(&server);
    let (code, said, _) = command(&server, &["apply", &file]);
    assert!(code == 0 && said.ends_with("nothing to apply: it is so already\n"), "{said}");
    let outcomes = apply(server.listen, ORDERS, "").unwrap().outcomes;
    assert_eq!(outcomes[0].change(), proto::Change::None);
    assert_eq!(registry(&server), before);

    server.kill();
    let server = setup.start();
    assert_eq!(received(server.listen, "orders"), 4, "they outlived the process");
    assert!(
        names(server.listen, "").contains(&"keyvalue".to_owned()),
        "beside those without a configuration"
    );
    let why = explain(server.listen, "orders", "").unwrap();
    assert!(why.text.contains("asked for at orders (applied):1:12"), "{}", why.text);
    let namespace = why.namespace.unwrap();
    assert_eq!((namespace.generation, namespace.source()), (1, proto::Source::Applied));

    // What keeps backend and data is taken while it is served.
    let strong = format!("{ORDERS}needs: {{durability: strong}}\n");
    let outcome = apply(server.listen, &strong, "").unwrap().outcomes.remove(0);
    assert_eq!(outcome.change(), proto::Change::Update);
    assert_eq!(outcome.namespace.unwrap().generation, 2);
    assert_eq!(send(server.listen, "orders", "").as_deref(), Ok("strong"));
    server.kill();
    let server = setup.start();
    assert_eq!(send(server.listen, "orders", "").as_deref(), Ok("strong"));
    server.stop();
}

#[test]
fn what_would_lose_data_or_is_wrong_is_refused_as_a_whole() {
    let folder = directory();
    let server = of_platform(
        folder.path(),
        "teams: [{name: payments}]\nlimits: {write_rps: 1k, namespaces: 3}\n",
    )
    .start();
    let sized = format!("{ORDERS}needs: {{max_message_size: 64KiB}}\n");
    apply(server.listen, &sized, "").expect("applied");
    let before = registry(&server);
    let mail = "---\nnamespace: mail\nteam: payments\nclient_api: queue\n";
    let cases = [
        (sized.replace("queue", "keyvalue"), "API_CHANGES", "document:3:13: "),
        (sized.replace("64KiB", "32KiB"), "MESSAGE_SIZE_STAYS", "document:4:27: "),
        (sized.replace("64KiB", "8MiB") + mail, "MESSAGE_SIZE_STAYS", "SERVER_LIMIT"),
        (sized.replace("payments", "paymets"), "TEAM_UNKNOWN", "did you mean `payments`?"),
        (mail.replace("queue", "graph"), "NOT_IN_THIS_BUILD", "does not serve `graph` yet"),
        (format!("{sized}{mail}needs: {{write_rps: 2k}}\n"), "LIMIT_WRITES", "document:9:20"),
        (format!("{sized}{mail}taem: x\n"), "REQUEST_INVALID", "document:9:1: unknown key `taem`"),
        (format!("{sized}{sized}"), "REQUEST_INVALID", "document:"),
        (format!("{sized}{mail}{mail}"), "REQUEST_INVALID", "is there twice"),
        (String::new(), "REQUEST_INVALID", "no namespace is asked for"),
        (
            ["a", "b", "c"].map(|name| mail.replace("mail", name)).concat(),
            "LIMIT_NAMESPACES",
            "one more than the 3 namespaces",
        ),
    ];
    for (document, reason, says) in cases {
        let refusal = apply(server.listen, &document, "").expect_err(reason);
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(says), "{says} is not in {}", refusal.message);
        assert_eq!(registry(&server), before, "{reason}");
        assert_eq!(names(server.listen, ""), ["orders"], "{reason}");
    }
    let named = proto::ApplyRequest {
        namespace: "mail".to_owned(),
        document: sized.clone(),
        ..Default::default()
    };
    let refusal = ask::<proto::ApplyResponse>(server.listen, "Apply", &named, "").unwrap_err();
    assert_eq!(
        (refusal.code, refusal.fields),
        (Code::InvalidArgument, vec!["document".to_owned()])
    );

    // A disk that takes nothing: nothing is served that would be gone after a start.
    let blocked = server.data.join("registry.json.new");
    std::fs::create_dir(&blocked).unwrap();
    let refusal = apply(server.listen, mail, "").unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "REGISTRY_UNWRITABLE"));
    assert_eq!(names(server.listen, ""), ["orders"]);
    std::fs::remove_dir(&blocked).unwrap();
    apply(server.listen, mail, "").expect("applied");
    assert_eq!(names(server.listen, ""), ["mail", "orders"]);
    server.stop();

    // What is there without a configuration was not applied.
    let other = directory();
    let server = serve(other.path()).start();
    let refusal = apply(server.listen, &ORDERS.replace("orders", "queue"), "").unwrap_err();
    assert_eq!(refusal.reason, "NAMESPACE_CONFIGURED");
    server.stop();
}

#[test]
fn a_plan_is_applied_as_it_was_shown_or_not_at_all() {
    let folder = directory();
    let server = serve(folder.path()).start();
    let address = server.listen;
    let with_token = |document: &str, plan_token: &str| {
        let request = proto::ApplyRequest {
            document: document.to_owned(),
            plan_token: plan_token.to_owned(),
            ..Default::default()
        };
        ask::<proto::ApplyResponse>(address, "Apply", &request, "")
    };
    let mail = ORDERS.replace("orders", "mail");
    let (one, other) = (plan(address, ORDERS, "").unwrap(), plan(address, &mail, "").unwrap());
    with_token(ORDERS, &one.plan_token).expect("as it was shown");
    let refusal = with_token(&mail, &other.plan_token).unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Aborted, "PLAN_CHANGED"));
    assert!(!names(address, "").contains(&"mail".to_owned()));
    let other = plan(address, &mail, "").unwrap();
    let refusal = with_token(ORDERS, &other.plan_token).unwrap_err();
    assert_eq!(refusal.reason, "PLAN_CHANGED", "of another document");
    with_token(&mail, &other.plan_token).expect("as it was shown");

    // Several at once come one after the other.
    let names_of = |from: u32| (from..from + 4).map(|number| format!("n-{number}"));
    let threads: Vec<_> = [0, 10, 20]
        .map(|from| {
            let document: String = names_of(from)
                .map(|name| format!("---\n{}", ORDERS.replace("orders", &name)))
                .collect();
            std::thread::spawn(move || apply(address, &document, "").map(|_| ()))
        })
        .into_iter()
        .collect();
    for thread in threads {
        thread.join().expect("it ended").expect("applied");
    }
    let served = names(address, "");
    for name in [0, 10, 20].into_iter().flat_map(names_of) {
        assert!(served.contains(&name), "{name} is not in {served:?}");
        assert_eq!(send(address, &name, "").as_deref(), Ok("wal"));
    }
    server.stop();
}

#[test]
fn a_thousand_namespaces_come_in_one_call() {
    let folder = directory();
    let setup = serve(folder.path()).shards(2);
    let server = setup.start();
    let document: String = (0..1000)
        .map(|number| format!("---\nnamespace: n-{number}\nteam: web\nclient_api: queue\n"))
        .collect();
    let outcomes = apply(server.listen, &document, "").expect("applied").outcomes;
    let created = outcomes.iter().filter(|one| one.change() == proto::Change::Create).count();
    assert_eq!(created, 1000);
    for name in ["n-0", "n-500", "n-999"] {
        assert_eq!(send(server.listen, name, "").as_deref(), Ok("wal"), "{name}");
    }
    let more: String = document.replace("namespace: n-", "namespace: m-");
    let refusal = apply(server.listen, &more, "").unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "NO_ROOM"));
    server.kill();
    let server = setup.start();
    assert_eq!(received(server.listen, "n-999"), 1);
    server.stop();
}

/// A platform with two teams, of which one is the platform's own, and who is of which.
fn knowing(folder: &Path) -> Setup {
    let keys: PathBuf = folder.join("keys.json");
    std::fs::write(&keys, Signer::new(1).keys()).unwrap();
    of_platform(
        folder,
        &format!(
            "owner: {{team: platform, contact: '#platform'}}
teams: [{{name: platform}}, {{name: payments, mode: advanced}}, {{name: web}}]
tokens: [{{issuer: 'https://issuer.example', audience: [prism], keys: {}}}]
identities:
  - {{id: checkout, issuer: 'https://issuer.example', team: payments}}
  - {{id: shop, issuer: 'https://issuer.example', team: web}}
  - {{id: ops, issuer: 'https://issuer.example', team: platform}}
grants: [{{team: platform, namespace: '*', may: admin}}]
",
            keys.display()
        ),
    )
}

#[test]
fn teams_change_what_is_theirs_and_nothing_else() {
    let folder = directory();
    let setup = knowing(folder.path());
    let server = setup.start();
    let (address, signer) = (server.listen, Signer::new(1));
    let token = |subject: &str| signer.token(&claims(subject));
    let (checkout, shop, ops) = (token("checkout"), token("shop"), token("ops"));
    let open = format!("{ORDERS}access: {{consumers: [{{team: web, may: read}}]}}\n");
    let denied = |refusal: Box<Refusal>| {
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::PermissionDenied, "PERMISSION_DENIED")
        );
        refusal.message
    };

    assert_eq!(apply(address, &open, "").unwrap_err().code, Code::Unauthenticated);
    denied(apply(address, &open, &token("stranger")).unwrap_err());
    denied(apply(address, &open, &shop).unwrap_err());
    denied(plan(address, &open, &shop).unwrap_err());
    assert_eq!(names(address, &ops), Vec::<String>::new());
    apply(address, &open, &checkout).expect("a team's own");
    assert_eq!(send(address, "orders", &checkout).as_deref(), Ok("wal"), "granted at once");
    assert_eq!(send(address, "orders", &shop), Err("PERMISSION_DENIED".to_owned()), "reads only");

    // Who may read it sees no more of it than a stranger, in the same words as where there is nothing.
    let there = denied(explain(address, "orders", &shop).unwrap_err());
    assert_eq!(there, denied(explain(address, "nowhere", &shop).unwrap_err()));
    assert_eq!(names(address, &shop), Vec::<String>::new());
    assert_eq!(names(address, &checkout), ["orders"]);
    assert_eq!(names(address, &ops), ["orders"]);
    denied(apply(address, &open.replace("payments", "web"), &shop).unwrap_err());
    denied(apply(address, &open.replace("payments", "web"), &checkout).unwrap_err());
    assert!(explain(address, "orders", &ops).unwrap().text.contains("team payments"));

    // Who may what changes with the request, at once; whom it was taken from is denied.
    let owned = format!("{ORDERS}access: {{owners: [{{team: web}}]}}\n");
    apply(address, &owned, &checkout).expect("a team's own");
    assert_eq!(send(address, "orders", &shop).as_deref(), Ok("wal"));
    assert_eq!(names(address, &shop), ["orders"]);
    apply(address, ORDERS, &shop).expect("an owner may");
    assert_eq!(send(address, "orders", &shop), Err("PERMISSION_DENIED".to_owned()));
    apply(address, &ORDERS.replace("payments", "web"), &ops).expect("the platform team moves it");
    assert_eq!(send(address, "orders", &shop).as_deref(), Ok("wal"));
    assert_eq!(send(address, "orders", &checkout), Err("PERMISSION_DENIED".to_owned()));
    server.wait_says("a call was denied: nothing grants it");

    // With a token from a file, by the command line.
    let file = write(folder.path(), "token", ops.strip_prefix("Bearer ").unwrap());
    let (code, said, errors) = command(&server, &["namespaces", "--token-file", &file]);
    assert!(code == 0 && said.contains("orders     web"), "{said}{errors}");
    assert_eq!(command(&server, &["namespaces"]).0, 1);
    server.kill();
    let server = setup.start();
    assert_eq!(send(server.listen, "orders", &shop).as_deref(), Ok("wal"));
    server.stop();
}

#[test]
fn tuning_waits_for_an_approval_that_is_remembered() {
    let folder = directory();
    let setup = knowing(folder.path());
    let server = setup.start();
    let signer = Signer::new(1);
    let token = |subject: &str| signer.token(&claims(subject));
    let (checkout, shop, ops) = (token("checkout"), token("shop"), token("ops"));
    let tuned = format!("{ORDERS}backend: memstore\n");

    // A guided team writes no tuning, and hears who could let it.
    let refusal = apply(server.listen, &tuned.replace("payments", "web"), &shop).unwrap_err();
    assert_eq!(refusal.reason, "MODE_GUIDED");
    assert!(
        refusal.message.contains("ask the platform team `platform` (#platform)"),
        "{}",
        refusal.message
    );
    let own = format!("{ORDERS}backend: {{type: redis, connection: 'redis://127.0.0.1:6379'}}\n");
    assert_eq!(apply(server.listen, &own, &checkout).unwrap_err().reason, "MODE_EXPERT_ONLY");
    let refusal = apply(server.listen, &tuned, &checkout).unwrap_err();
    assert_eq!(refusal.reason, "APPROVAL_MISSING");
    let outcome = plan(server.listen, &tuned, &checkout).unwrap().outcomes.remove(0);
    assert!(outcome.needs_approval && outcome.change() == proto::Change::Refused);

    let request = proto::ApproveRequest {
        namespace: "orders".to_owned(),
        fields: vec!["backend".to_owned()],
        until: "2999-12-31".to_owned(),
        by: "somebody else".to_owned(),
        reason: "measured".to_owned(),
    };
    let approve = |address, request: &proto::ApproveRequest, token: &str| {
        ask::<proto::ApproveResponse>(address, "Approve", request, token)
    };
    let refusal = approve(server.listen, &request, &checkout).unwrap_err();
    assert_eq!(refusal.code, Code::PermissionDenied, "nobody approves for themselves");
    for (field, wrong) in [
        (
            "fields[0]",
            proto::ApproveRequest { fields: vec!["replicas".to_owned()], ..request.clone() },
        ),
        ("fields", proto::ApproveRequest { fields: Vec::new(), ..request.clone() }),
        ("until", proto::ApproveRequest { until: "2020-01-01".to_owned(), ..request.clone() }),
        ("until", proto::ApproveRequest { until: "soon".to_owned(), ..request.clone() }),
        ("namespace", proto::ApproveRequest { namespace: "A b".to_owned(), ..request.clone() }),
        ("reason", proto::ApproveRequest { reason: "a\nb".to_owned(), ..request.clone() }),
    ] {
        let refusal = approve(server.listen, &wrong, &ops).unwrap_err();
        assert_eq!((refusal.code, refusal.fields), (Code::InvalidArgument, vec![field.to_owned()]));
    }
    let approved = approve(server.listen, &request, &ops).expect("the platform team may");
    assert_eq!(approved.by, "ops", "who it is, not who they say");
    let remembered = String::from_utf8(registry(&server)).unwrap();
    assert!(
        remembered.contains("\"until\": \"2999-12-31\"") && remembered.contains("\"by\": \"ops\"")
    );

    server.kill();
    let server = setup.start();
    apply(server.listen, &tuned, &checkout).expect("it is approved");
    let why = explain(server.listen, "orders", &checkout).unwrap().text;
    assert!(why.contains("approval: backend, because: approved by ops on "), "{why}");
    // Of another namespace it is not.
    let other = tuned.replace("orders", "mail");
    assert_eq!(apply(server.listen, &other, &checkout).unwrap_err().reason, "APPROVAL_MISSING");
    server.kill();
    let server = setup.start();
    assert_eq!(send(server.listen, "orders", &checkout).as_deref(), Ok("wal"));
    server.stop();
}

/// A day that passes or a limit that is lowered ends nothing that was let in; a new request meets it.
#[test]
fn what_was_let_in_goes_on_under_a_lower_limit() {
    let folder = directory();
    let setup = of_platform(folder.path(), "limits: {write_rps: 1k}\n");
    let server = setup.start();
    let busy = format!("{ORDERS}needs: {{write_rps: 800}}\n");
    apply(server.listen, &busy, "").expect("applied");
    server.stop();
    write(folder.path(), "platform.yaml", "limits: {write_rps: 500}\n");
    let server = setup.start();
    server.wait_says("it goes on as it was applied: orders (applied):4:20: LIMIT_WRITES");
    assert_eq!(send(server.listen, "orders", "").as_deref(), Ok("wal"));
    let busier = busy.replace("800", "900");
    assert_eq!(apply(server.listen, &busier, "").unwrap_err().reason, "LIMIT_WRITES");
    server.stop();
}

fn delete(
    address: SocketAddr,
    name: &str,
    data: &str,
    token: &str,
) -> Result<proto::DeleteResponse, Box<Refusal>> {
    let request = proto::DeleteRequest {
        namespace: name.to_owned(),
        confirm: name.to_owned(),
        delete_data_of: data.to_owned(),
    };
    ask(address, "Delete", &request, token)
}

#[test]
fn what_is_deleted_is_gone_and_no_start_brings_it_back() {
    let folder = directory();
    let setup = serve(folder.path()).shards(2);
    let server = setup.start();
    let address = server.listen;
    let mail = ORDERS.replace("orders", "mail");
    apply(address, &format!("{ORDERS}---\n{mail}"), "").expect("applied");
    for name in ["orders", "mail"] {
        assert_eq!(send(address, name, "").as_deref(), Ok("wal"));
    }

    // Not by mistake, and not with data that nobody spoke of; it goes on meanwhile.
    let mut request = proto::DeleteRequest { namespace: "orders".to_owned(), ..Default::default() };
    for confirm in ["", "mail"] {
        request.confirm = confirm.to_owned();
        let refusal = ask::<proto::DeleteResponse>(address, "Delete", &request, "").unwrap_err();
        assert_eq!(
            (refusal.code, refusal.fields),
            (Code::InvalidArgument, vec!["confirm".to_owned()])
        );
    }
    let refusal = delete(address, "orders", "", "").unwrap_err();
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::FailedPrecondition, "NAMESPACE_HOLDS_DATA")
    );
    assert_eq!(delete(address, "orders", "mail", "").unwrap_err().code, Code::InvalidArgument);
    assert_eq!(delete(address, "queue", "", "").unwrap_err().reason, "NAMESPACE_CONFIGURED");
    assert_eq!(delete(address, "nowhere", "", "").unwrap_err().reason, "NAMESPACE_UNKNOWN");
    let (code, _, errors) = command(&server, &["delete", "orders"]);
    assert!(code == 2 && errors.contains("--yes orders"), "{errors}");
    let (code, _, errors) = command(&server, &["delete", "orders", "--yes", "orders"]);
    assert!(code == 78 && errors.contains("NAMESPACE_HOLDS_DATA"), "{errors}");
    assert_eq!(send(address, "orders", "").as_deref(), Ok("wal"), "it goes on");

    let told = ["delete", "orders", "--yes", "orders", "--data", "orders"];
    let (code, said, errors) = command(&server, &told);
    assert!(code == 0 && said.contains("orders is deleted"), "{said}{errors}");
    assert_eq!(send(address, "orders", ""), Err("NAMESPACE_UNKNOWN".to_owned()));
    assert!(!names(address, "").contains(&"orders".to_owned()));
    assert_eq!(delete(address, "orders", "orders", "").unwrap_err().reason, "NAMESPACE_UNKNOWN");
    assert_eq!(received(address, "mail"), 1, "another is as it was");

    // Another of the name begins empty, at once and after a start.
    apply(address, ORDERS, "").expect("applied");
    assert_eq!(received(address, "orders"), 0);
    delete(address, "orders", "orders", "").expect("deleted");
    apply(address, ORDERS, "").expect("applied");
    assert_eq!(send(address, "orders", "").as_deref(), Ok("wal"));
    let metrics = server.admin_page("/metrics");
    let series = "prism_requests_total{namespace=\"orders\",api=\"queue\",status=\"success\"} ";
    assert_eq!(metrics.matches(series).count(), 1, "one series for a name: {metrics}");
    server.kill();
    let server = setup.start();
    assert_eq!(received(server.listen, "orders"), 1);
    delete(server.listen, "orders", "orders", "").expect("deleted");
    server.stop();
    let server = setup.start();
    assert_eq!(send(server.listen, "orders", ""), Err("NAMESPACE_UNKNOWN".to_owned()));
    apply(server.listen, ORDERS, "").expect("applied");
    assert_eq!(received(server.listen, "orders"), 0);
    let explained = explain(server.listen, "orders", "").unwrap().namespace.unwrap();
    assert_eq!(explained.generation, 1, "it is another");
    delete(server.listen, "orders", "", "").expect("it holds nothing");
    server.stop();
}

/// On a backend outside, which is away when it is asked for: nothing is half made, and what is logged arrives when it is back.
#[test]
fn a_namespace_comes_on_a_backend_that_is_away() {
    let mut redis = OwnRedis::start(&[]);
    let folder = directory();
    let address = redis.address;
    let setup = of_platform(
        folder.path(),
        &format!(
            "backends: [{{name: cache, type: redis, address: \"{address}\"}}]\nallowed_backends: [redis]\n"
        ),
    );
    let server = setup.start();
    redis.kill();
    let carts =
        "namespace: carts\nteam: web\nclient_api: keyvalue\nneeds: {durability: eventual}\n";
    let outcome = apply(server.listen, carts, "").expect("applied").outcomes.remove(0);
    assert_eq!(outcome.namespace.unwrap().backend, "cache");
    assert_eq!(apply(server.listen, carts, "").unwrap().outcomes[0].change(), proto::Change::None);
    let listen = server.listen;
    run(async move {
        for number in 0..8 {
            // A connection lands on either shard.
            let caller = Caller::to(listen, "carts").await;
            caller.set(&format!("key-{number}"), b"logged").await;
            assert_eq!(caller.get("key-0").await.as_deref(), Some(&b"logged"[..]));
        }
    });
    server.wait_for_metric("prism_lane_pending_records", |pending| pending >= 8.0);
    // What is on its way there is data too.
    let refusal = delete(server.listen, "carts", "", "").unwrap_err();
    assert_eq!(refusal.reason, "NAMESPACE_HOLDS_DATA", "{}", refusal.message);
    // Also over a death of the server, which finds them in its log.
    server.kill();
    let server = setup.start();
    redis.restart();
    let end = Instant::now() + harness::PATIENCE;
    while redis.cli(&["GET", "carts:key-7"]) != "logged" {
        assert!(Instant::now() < end, "it never came: {}", server.errors());
        std::thread::sleep(Duration::from_millis(5));
    }
    server.stop();
}
