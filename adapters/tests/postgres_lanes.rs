//! A lane's records on a real PostgreSQL: each has one effect, whatever is lost on the way.

mod servers;

use std::cell::Cell as Slot;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::Backoff;
use prism_adapters::lane::{Cell, LaneBackend, LaneOwner, LaneRecord};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::{Backend as _, Context, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{DeleteRequest, GetRequest, SetRequest};
use servers::{LONG, Proxy, psql};

const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config(database: &str, address: std::net::SocketAddr) -> PostgresConfig {
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

fn context(lane_seq: u64) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(lane_seq),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key, value, ..SetRequest::default() }.encode(&mut request);
    request
}

fn record(lane_seq: u64, request: &[u8]) -> LaneRecord<'_> {
    LaneRecord { lane_seq, context: context(lane_seq), method: Method::KEYVALUE_SET, request }
}

/// Asks for the cell until somebody answers.
async fn resumed(postgres: &Postgres) -> Option<Cell> {
    let until = Instant::now() + LONG;
    loop {
        match postgres.resume(&context(0), &OWNER).await {
            Ok(cell) => return cell,
            Err(error) => assert!(Instant::now() < until, "it does not resume: {error:?}"),
        }
        rt::sleep(Duration::from_millis(5)).await;
    }
}

/// Has the namespace's tables made.
async fn make_tables(postgres: &Postgres) {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key: "none" }.encode(&mut request);
    let (context, mut reply) = (context(0), Reply::default());
    postgres.unary(&context, Method::KEYVALUE_GET, &request, &mut reply).await.unwrap();
}

#[test]
fn a_batch_applies_its_records_and_moves_the_cell_once() {
    let database = "prism_lane";
    let address = servers::empty_database(database);
    let sql = move |statement: &str| psql(address, database, statement);
    run(async move {
        let postgres = Postgres::start(config(database, address));
        let mut outcomes = Vec::new();
        let (a, b) = (set("a", b"1"), set("b", b"2"));
        let error = postgres.apply(&OWNER, &[record(1, &a)], &mut outcomes).await.unwrap_err();
        assert_eq!(error.reason(), "LANE_MOVED", "nobody has asked for the cell");
        assert_eq!(resumed(&postgres).await, None);
        postgres.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();

        let mut delete = Vec::new();
        DeleteRequest { namespace: "orders", key: "a" }.encode(&mut delete);
        let delete = LaneRecord { method: Method::KEYVALUE_DELETE, ..record(3, &delete) };
        let batch = [record(1, &a), record(2, &b), delete];
        postgres.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        assert_eq!(outcomes.len(), 3);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        assert_eq!(sql("SELECT key, version >> 32 > 0 FROM orders.keyvalue"), "b|t");
        assert_eq!(sql("SELECT lane_seq, epoch FROM orders.cell"), "3|3");

        // What is older is not applied again, what is newer not yet, and what is another's never.
        let again = set("b", b"again");
        for (owner, lane_seq) in
            [(OWNER, 2), (OWNER, 5), (LaneOwner { directory_id: [8; 16], ..OWNER }, 4)]
        {
            let error = postgres.apply(&owner, &[record(lane_seq, &again)], &mut Vec::new()).await;
            assert_eq!(error.unwrap_err().reason(), "LANE_MOVED", "{lane_seq}");
        }
        assert_eq!(sql("SELECT convert_from(value, 'UTF8') FROM orders.keyvalue"), "2");

        // Another connection that asks for the cell takes the lane over.
        let other = Postgres::start(config(database, address));
        assert_eq!(resumed(&other).await, Some(Cell { owner: OWNER, lane_seq: 3 }));
        let error = postgres.apply(&OWNER, &[record(4, &again)], &mut Vec::new()).await;
        assert_eq!(error.unwrap_err().reason(), "LANE_MOVED");
        other.apply(&OWNER, &[record(4, &again)], &mut Vec::new()).await.unwrap();
        assert_eq!(sql("SELECT convert_from(value, 'UTF8') FROM orders.keyvalue"), "again");
    });
}

#[test]
fn a_record_that_is_refused_is_passed_and_those_beside_it_apply() {
    let database = "prism_lane_refused";
    let address = servers::empty_database(database);
    let sql = move |statement: &str| psql(address, database, statement);
    run(async move {
        let postgres = Postgres::start(config(database, address));
        assert_eq!(resumed(&postgres).await, None);
        postgres.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        make_tables(&postgres).await;
        sql("ALTER TABLE orders.keyvalue ADD CHECK (key <> 'bad')");
        let (a, bad, b) = (set("a", b"1"), set("bad", b"2"), set("b", b"3"));
        let batch = [record(1, &a), record(2, &bad), record(3, &b)];
        let mut outcomes = Vec::new();
        postgres.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        let reasons: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().err().map(|error| error.reason()))
            .collect();
        assert_eq!(reasons, [None, Some("BACKEND_REFUSED"), None]);
        assert_eq!(sql("SELECT string_agg(key, ',' ORDER BY key) FROM orders.keyvalue"), "a,b");
        assert_eq!(sql("SELECT lane_seq FROM orders.cell"), "3");
    });
}

/// Counters are added up by a trigger, so that a record that took effect twice would show.
#[test]
fn records_have_one_effect_while_the_connection_is_cut_again_and_again() {
    const RECORDS: u64 = 300;
    let database = "prism_lane_cut";
    let address = servers::empty_database(database);
    let proxy = Proxy::to(address);
    let sql = move |statement: &str| psql(address, database, statement);
    run(async move {
        let postgres = Postgres::start(config(database, proxy.address));
        assert_eq!(resumed(&postgres).await, None);
        postgres.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        make_tables(&postgres).await;
        sql("CREATE TABLE orders.seen (n serial, key text); \
             CREATE FUNCTION orders.note() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO orders.seen (key) VALUES (NEW.key); RETURN NEW; END $$; \
             CREATE TRIGGER note BEFORE INSERT ON orders.keyvalue FOR EACH ROW EXECUTE FUNCTION orders.note()");
        let (proxy, done) = (Rc::new(proxy), Rc::new(Slot::new(false)));
        let begun = Rc::new(rt::Signal::default());
        let (cutter, is_done, has_begun) = (proxy.clone(), done.clone(), begun.clone());
        rt::spawn(async move {
            // A batch has begun: at another moment of it each time.
            for round in 0u64.. {
                has_begun.wait().await;
                rt::sleep(Duration::from_micros(round * 331 % 6_000)).await;
                if is_done.get() {
                    return;
                }
                cutter.cut();
            }
        });
        let requests: Vec<_> =
            (1..=RECORDS).map(|number| set(&format!("key-{number:03}"), b"v")).collect();
        let (mut at, mut failures) = (0, 0);
        while at < RECORDS {
            let end = (at + 7).min(RECORDS);
            let batch: Vec<_> =
                (at..end).map(|place| record(place + 1, &requests[place as usize])).collect();
            begun.set();
            match postgres.apply(&OWNER, &batch, &mut Vec::new()).await {
                Ok(()) => at = end,
                Err(_) => {
                    failures += 1;
                    if failures == 40 {
                        done.set(true);
                    }
                    let cell = resumed(&postgres).await.expect("the lane has begun");
                    assert!((at..=end).contains(&cell.lane_seq), "{cell:?} {at}");
                    at = cell.lane_seq;
                }
            }
        }
        done.set(true);
        assert!(failures > 0, "no cut came at a bad moment");
        assert_eq!(
            sql(
                "SELECT count(*), count(DISTINCT key), bool_and(key = 'key-' || lpad(rank::text, 3, '0')) \
                 FROM (SELECT key, row_number() OVER (ORDER BY n) AS rank FROM orders.seen) s"
            ),
            format!("{RECORDS}|{RECORDS}|t"),
            "each once, in order"
        );
    });
}
