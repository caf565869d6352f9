//! The binary as a person or a script meets it: exit codes, what goes to stdout and what to stderr, and a first session from
//! `serve` over `kv` to `wal verify`.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

fn prism(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prism")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn check(arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let output = prism(arguments);
    let shown = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown:?}");
    assert!(shown.0.contains(stdout), "{arguments:?}: {stdout:?} is not on stdout: {}", shown.0);
    assert!(shown.1.contains(stderr), "{arguments:?}: {stderr:?} is not on stderr: {}", shown.1);
}

#[test]
fn help_goes_to_stdout_and_is_no_failure() {
    check(&["--help"], 0, "Exit codes:\n   0  done\n", "");
    check(&["--version"], 0, "prism ", "");
    for command in [
        "serve",
        "kv",
        "queue",
        "stream",
        "pubsub",
        "reader",
        "transact",
        "interfaces",
        "doctor",
        "wal",
    ] {
        check(&[command, "--help"], 0, "Usage: prism", "");
    }
    for command in ["serve", "kv", "doctor", "wal", "schema", "plan", "explain"] {
        check(&[command, "--help"], 0, "Examples:\n", "");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    check(&[], 2, "", "Usage: prism <COMMAND>");
    check(&["srve"], 2, "", "unrecognized subcommand 'srve'");
    check(&["kv", "set", "a"], 2, "", "required arguments were not provided");
    check(&["kv", "set", "a", "b", "--ttl", "5"], 2, "", "`5` has no unit of time");
    check(&["kv", "set", "a", "b", "--ttl", "5s", "--keep-ttl"], 2, "", "cannot be used with");
    check(&["kv", "cas", "a", "b"], 2, "", "--expect-absent");
    check(&["kv", "batch-set", "a"], 2, "", "`a` is not KEY=VALUE");
    check(&["kv", "cas", "a", "b", "--expect-version", "?"], 2, "", "`?` is not base64");
    check(&["kv", "get", "a", "--idempotency-key", ""], 2, "", "1 to 128 ASCII characters");
    check(&["queue", "send", "q", "m", "--attribute", "a"], 2, "", "`a` is not NAME=VALUE");
    check(&["stream", "seek", "s", "g", "0"], 2, "", "`0` is not PARTITION:OFFSET");
    check(&["stream", "seek", "s", "g"], 2, "", "required arguments were not provided");
    check(&["pubsub", "subscribe", "t", "--earliest"], 2, "", "--durable");
    check(&["reader", "read", "mail"], 2, "", "write keys, stream:NAME, queue:NAME");
    check(&["reader", "query", "keys", "--descending"], 2, "", "--sort");
    check(&["transact", "--put", "a"], 2, "", "`a` is not KEY=VALUE");
    check(&["transact"], 2, "", "nothing to do");
    let send = ["transact", "--put", "a=1", "--send", "mail=x"];
    check(&send, 2, "", "`mail=x` is not NAMESPACE/NAME=PAYLOAD");
}

#[test]
fn a_wrong_configuration_ends_with_78_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prism.yaml");
    std::fs::write(&file, "listen: 127.0.0.1:0\nshrads: 2\n").unwrap();
    let file = file.to_str().unwrap();
    let place = format!("{file}:2:1: unknown key `shrads`\n    did you mean `shards`?\n");
    check(&["serve", "--config", file], 78, "", &place);
    check(&["doctor", "--config", file], 78, "", &place);
    check(&["serve", "--shards", "none"], 78, "", "--shards: `none` is not a number from 1 to 256");
    check(
        &["serve", "--config", "/no/such/file"],
        78,
        "",
        "/no/such/file: the file cannot be read",
    );
}

#[test]
fn the_schemas_of_both_files_are_printed() {
    check(&["schema", "request"], 0, "\"title\": \"Prism namespace request\"", "");
    check(&["schema", "platform"], 0, "\"title\": \"Prism platform\"", "");
    check(&["schema", "platfrom"], 2, "", "a similar value exists: 'platform'");
}

/// Nothing there: 2, something would change. There: 0. Refused: 78, with the rule. Wrong files: 78, with the place.
#[test]
fn a_plan_tells_by_its_code_whether_something_would_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("namespaces")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let request =
        "namespace: orders\nteam: payments\nclient_api: queue\nneeds: {durability: strong}\n";
    write("namespaces/orders.yaml", request);
    let (requests, data) = (path("namespaces"), path("data"));
    let plan = |requests: &str, code, stdout: &str, stderr: &str| {
        check(&["plan", requests, "--data-dir", &data], code, stdout, stderr);
    };
    plan(&requests, 2, "+ create   orders\n1 to create, 0 there, 0 refused\nplatform: none", "");
    write("platform.yaml", "teams: [{name: payments}]\n");
    plan(&requests, 2, "/../platform.yaml\n", "");
    write("platform.yaml", "teams: [{name: paymets}]\n");
    plan(&requests, 78, "orders.yaml:2:7: TEAM_UNKNOWN: there is no team `payments`\n", "");
    write("platform.yaml", "taems: []\n");
    plan(&requests, 78, "", "platform.yaml:1:1: unknown key `taems`\n    did you mean `teams`?\n");
    std::fs::remove_file(path("platform.yaml")).unwrap();
    plan(&path("none.yaml"), 78, "", "none.yaml: the file cannot be read: ");

    // What a Prism with that data directory serves is there.
    write(
        "prism.yaml",
        "namespaces: [{name: orders, client_api: queue}, {name: other, client_api: queue}]\n",
    );
    let arguments = ["--config", &path("prism.yaml"), "--data-dir", &data, "--shards", "1"];
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut server = Command::new(env!("CARGO_BIN_EXE_prism"))
        .arg("serve")
        .args(arguments)
        .args(ports)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    plan(
        &requests,
        0,
        "= there    orders\nleft alone: other\n0 to create, 1 there, 0 refused\n",
        "",
    );
    let json = prism(&["plan", &requests, "--data-dir", &data, "-o", "json"]);
    assert!(text(&json.stdout).contains("\"change\": \"none\""), "{}", text(&json.stdout));

    let explain = |name: &str, code, stdout: &str, stderr: &str| {
        check(
            &["explain", name, "--requests", &requests, "--data-dir", &data],
            code,
            stdout,
            stderr,
        );
    };
    explain("orders", 0, "home: shard 0, because: it lives there, and stays\n", "");
    explain("ordres", 4, "", "does not ask for a namespace `ordres`; did you mean `orders`?");
}

#[test]
fn a_server_that_is_not_there_ends_with_69() {
    // No server of these tests gets this port: free ones are far above.
    let endpoint = "127.0.0.1:1";
    let remedy = "start one with `prism serve`, or name another with --endpoint";
    check(&["kv", "get", "a", "--endpoint", endpoint], 69, "", remedy);
    check(&["kv", "get", "a", "--endpoint", "nowhere"], 69, "", "no server at nowhere: ");
}

#[test]
fn a_log_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    check(&["wal", "verify", "--data-dir", path], 1, "", "there is no log in ");
    check(&["wal", "inspect", "--data-dir", "/no/such"], 73, "", "/no/such is not a directory");
}

#[test]
fn interfaces_and_doctor_speak_json() {
    let output = prism(&["interfaces", "-o", "json"]);
    let interfaces: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(interfaces["models"].as_array().unwrap().len(), 10);
    assert_eq!(interfaces["models"][0]["interfaces"][0]["name"], "keyvalue_basic");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prism.yaml");
    let data = directory.path().join("data");
    let config = format!("listen: 127.0.0.1:0\nadmin: '[::1]:0'\ndata_dir: {}\n", data.display());
    std::fs::write(&file, config).unwrap();
    let output = prism(&["doctor", "--config", file.to_str().unwrap(), "-o", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), found["fit"].as_bool().unwrap(), "{found}");
    assert!(!data.exists(), "it makes no data directory");
}

/// A server on a free port, ended with the test.
struct Server {
    process: Child,
    stdout: BufReader<ChildStdout>,
    endpoint: String,
    admin: String,
    screen: String,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let data_dir = data_dir.to_str().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_prism"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--shards", "1", "--data-dir", data_dir])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut screen = String::new();
        while !screen.contains("Ready after") {
            let read = stdout.read_line(&mut screen).unwrap();
            assert!(read > 0, "it ended before it was ready: {screen}");
        }
        let word_after = |label: &str| {
            let mut words = screen.split_whitespace().skip_while(|word| *word != label);
            words.nth(1).unwrap().trim_start_matches("http://").to_string()
        };
        let (endpoint, admin) = (word_after("gRPC"), word_after("admin"));
        Self { process, stdout, endpoint, admin, screen }
    }

    #[track_caller]
    fn kv(&self, arguments: &[&str], code: i32, stdout: &str) {
        let shown = self.told("kv", arguments, code);
        assert_eq!(shown, stdout, "{arguments:?}");
    }

    /// What a command says on stdout.
    #[track_caller]
    fn told(&self, command: &str, arguments: &[&str], code: i32) -> String {
        let output = prism(&[&[command, "--endpoint", &self.endpoint], arguments].concat());
        let shown = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{command} {arguments:?}: {shown:?}");
        shown.0
    }

    /// The objects that a command prints as JSON.
    #[track_caller]
    fn json(&self, command: &str, arguments: &[&str]) -> Vec<serde_json::Value> {
        let shown = self.told(command, &[arguments, &["-o", "json"]].concat(), 0);
        shown.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    fn page(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(&self.admin).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }

    /// Ends it as an operator would, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_first_session_works_as_the_screen_says() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let server = Server::start(&data_dir);
    let next = format!("prism kv --endpoint {} set greeting hello", server.endpoint);
    assert!(server.screen.contains(&next), "{}", server.screen);

    server.kv(&["set", "greeting", "hello"], 0, "stored\n");
    server.kv(&["get", "greeting"], 0, "hello");
    server.kv(&["get", "nothing"], 4, "");
    server.kv(&["exists", "greeting"], 0, "yes\n");
    server.kv(&["exists", "nothing"], 4, "no\n");
    server.kv(
        &["set", "greeting", "x", "--if", "absent"],
        5,
        "not stored: the condition did not hold\n",
    );
    server.kv(&["set", "greeting", "hi", "--previous"], 0, "hello");
    server.kv(&["cas", "greeting", "hey", "--expect", "hi"], 0, "swapped\n");
    server.kv(
        &["cas", "greeting", "x", "--expect", "hi"],
        5,
        "not swapped: the key is not as expected\n",
    );
    server.kv(&["set", "short", "lived", "--ttl", "1h"], 0, "stored\n");
    server.kv(&["ttl", "greeting"], 0, "does not expire\n");
    server.kv(&["ttl", "nothing"], 4, "");
    server.kv(&["persist", "short"], 0, "persists\n");
    server.kv(&["ttl", "short"], 0, "does not expire\n");
    server.kv(&["batch-set", "a=1", "b=2=3"], 0, "a\tstored\nb\tstored\n");
    server.kv(&["batch-get", "a", "b", "c"], 0, "a\t1\nb\t2=3\nc\t(not found)\n");
    server.kv(&["count"], 0, "4\n");
    server.kv(&["count", "--prefix", "g", "-o", "json"], 0, "{\"count\":1,\"exact\":true}\n");
    server.kv(&["scan", "--prefix", "a"], 0, "a\t1\n");
    server.kv(&["scan", "--glob", "gr*", "--keys-only"], 0, "greeting\n");
    server.kv(&["batch-delete", "a", "b"], 0, "a\tdeleted\nb\tdeleted\n");
    server.kv(&["delete", "short"], 0, "deleted\n");
    server.kv(&["count"], 0, "1\n");
    server.kv(&["-n", "elsewhere", "get", "a"], 1, "");

    assert!(server.page("/readyz").ends_with("\r\n\r\nready\n"));
    let success = r#"prism_requests_total{namespace="keyvalue",api="keyvalue",status="success"}"#;
    assert!(server.page("/metrics").contains(success));
    check(&["wal", "verify", "--data-dir", data_dir.to_str().unwrap()], 73, "", "is in use");

    assert_eq!(server.end(), Some(0));
    let data_dir = data_dir.to_str().unwrap();
    check(&["wal", "verify", "--data-dir", data_dir], 0, "closed cleanly", "");
    check(&["wal", "inspect", "--data-dir", data_dir, "-o", "json"], 0, "\"type\":\"batch\"", "");
    check(&["wal", "repair", "--data-dir", data_dir], 0, "shard 0: accepted", "");

    let server = Server::start(Path::new(data_dir));
    server.kv(&["get", "greeting"], 0, "hey");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn values_pass_byte_for_byte_through_pipes() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"));
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut set = Command::new(env!("CARGO_BIN_EXE_prism"))
        .args(["kv", "--endpoint", &server.endpoint, "set", "blob", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    set.stdin.take().unwrap().write_all(&value).unwrap();
    assert!(set.wait().unwrap().success());
    let get = prism(&["kv", "--endpoint", &server.endpoint, "get", "blob"]);
    assert!(get.stdout == value, "{} bytes came back", get.stdout.len());
    let get = prism(&["kv", "--endpoint", &server.endpoint, "get", "blob", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&get.stdout).unwrap();
    assert!(json["value_base64"].as_str().unwrap().starts_with("AAECAwQF"));
    assert_eq!(server.end(), Some(0));
}

#[test]
fn queues_streams_and_topics_are_used_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"));

    assert_eq!(server.told("queue", &["receive", "mail"], 4), "");
    server.told("queue", &["send", "mail", "hello", "--attribute", "kind=letter"], 0);
    server.told("queue", &["send", "mail", "urgent", "--priority", "9"], 0);
    server.told("queue", &["send", "mail", "later", "--delay", "1h"], 0);
    assert_eq!(server.told("queue", &["scheduled", "mail"], 0), "1\n");
    let received = server.json("queue", &["receive", "mail", "--max", "5", "--wait", "1s"]);
    assert_eq!(
        (&received[0]["payload"], &received[1]["payload"]),
        (&"urgent".into(), &"hello".into())
    );
    assert_eq!(
        (&received[1]["attributes"]["kind"], &received[1]["attempt"]),
        (&"letter".into(), &1.into())
    );
    let receipt = |of: &serde_json::Value| of["receipt"].as_str().unwrap().to_string();
    let (urgent, hello) = (receipt(&received[0]), receipt(&received[1]));
    assert_eq!(server.told("queue", &["ack", "mail", &urgent], 0), format!("{urgent}\tdone\n"));
    assert!(server.told("queue", &["ack", "mail", &urgent], 5).contains("refused"));
    server.told("queue", &["release", "mail", &hello], 0);
    let again = server.told("queue", &["receive", "mail"], 0);
    let (again, payload) = again.trim_end().split_once('\t').unwrap();
    assert_eq!(payload, "hello");
    server.told("queue", &["reject", "mail", again, "--reason", "unreadable"], 0);

    let place = server.told("stream", &["append", "placed", "one", "--key", "k"], 0);
    server.told("stream", &["append", "placed", "two", "--key", "k"], 0);
    assert_eq!(
        server.told("stream", &["read", "placed", "--limit", "1"], 0),
        format!("{}\tk\tone\n", place.trim())
    );
    let read = server.json("stream", &["read", "placed", "--since", "1h"]);
    assert_eq!((read.len(), &read[1]["value"], &read[1]["key"]), (2, &"two".into(), &"k".into()));
    let followed =
        server.told("stream", &["follow", "placed", "--at", place.trim(), "--limit", "2"], 0);
    assert!(followed.ends_with("\ttwo\n"), "{followed}");
    server.told("stream", &["create-group", "placed", "billing"], 0);
    let joined = server.json("stream", &["join", "placed", "billing", "--limit", "2"]);
    let receipts = [receipt(&joined[0]), receipt(&joined[1])];
    server.told("stream", &["ack", "placed", "billing", &receipts[0], &receipts[1]], 0);
    let group = &server.json("stream", &["group", "placed", "billing"])[0];
    assert!(group["progress"].as_array().unwrap().iter().all(|one| one["lag"] == 0), "{group}");
    server.told("stream", &["join", "placed", "nobody"], 1);

    let durable = ["subscribe", "orders", "--durable", "billing", "--earliest", "--limit", "1"];
    server.told("pubsub", &["publish", "orders", "o-1", "--persistent"], 0);
    let heard = &server.json("pubsub", &durable)[0];
    assert_eq!((&heard["payload"], &heard["topic"]), (&"o-1".into(), &"orders".into()));
    server.told("pubsub", &["ack", "orders", "billing", &receipt(heard)], 0);
    server.told("pubsub", &["publish", "orders", "o-2", "--persistent"], 0);
    assert!(server.told("pubsub", &durable, 0).ends_with("\to-2\n"));
    assert_eq!(server.told("pubsub", &["unsubscribe", "billing"], 0), "unsubscribed\n");
}

#[test]
fn what_lies_there_is_read_and_transactions_are_made_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"));

    server.told("queue", &["send", "mail", "hello"], 0);
    for _ in 0..2 {
        let mail = &server.json("reader", &["read", "queue:mail"])[0];
        assert_eq!(mail["value"], "hello", "{mail}");
    }
    let place = server.told("stream", &["append", "placed", "one", "--key", "k"], 0);
    server.told("stream", &["append", "placed", "two", "--key", "k"], 0);
    let read = server.told("reader", &["read", "stream:placed", "--limit", "1"], 0);
    assert_eq!(read, format!("{}\tk\tone\n", place.trim()));
    let followed = ["read", "stream:placed", "--at", place.trim(), "--follow", "--limit", "2"];
    assert!(server.told("reader", &followed, 0).ends_with("\ttwo\n"));
    let got = server.told("reader", &["get", "stream:placed", place.trim()], 0);
    assert!(got.ends_with("\tk\tone\n"), "{got}");
    assert_eq!(server.told("reader", &["count", "stream:placed"], 0), "2\n");
    server.told("reader", &["get", "keys", "nothing"], 4);

    let first = ["--put", "stock=42", "--put", "order=1", "--if-absent", "order"];
    assert_eq!(server.told("transact", &first, 0), "committed\n");
    assert_eq!(server.told("transact", &first, 5), "not committed: order is 1\n");
    let second = ["--put", "stock=41", "--delete", "order", "--if", "stock=42"];
    assert_eq!(server.told("transact", &second, 0), "committed\n");
    let told = server.told("reader", &["-n", "transact", "read", "keys"], 0);
    assert_eq!(told, "stock\t41\n");
    let sends = ["--put", "a=1", "--put", "b=2", "--send", "queue/paid=order 1"];
    let told = server.told("transact", &sends, 0);
    let id = told.strip_prefix("committed\nmessage ").expect("an id").trim();
    let received = server.told("queue", &["receive", "paid", "--wait", "30s", "-o", "json"], 0);
    assert!(received.contains(id) && received.contains("order 1"), "{received}");
    let sorted = ["-n", "transact", "query", "keys", "--sort", "key", "--descending"];
    assert_eq!(server.told("reader", &sorted, 0), "stock\t41\nb\t2\na\t1\n");
    assert_eq!(server.end(), Some(0));
}
