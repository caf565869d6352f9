//! What it means to serve ReaderService over whatever a backend offers.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::reader::v1::source::Source as Named;
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prost::Message as _;

use super::caller::{Caller, assert_field};
use super::stream::{Stream, keyed, text_record};
use super::{Client, Failure, Opened, cases};
use crate::error::Kind;

pub(super) async fn run<C: Client>(client: &C, ran: &mut Vec<&'static str>) {
    let offers = client.offers();
    if offers.contains(Interface::StreamBasic) {
        cases!(client, ran, reader_of_streams: [
            a_stream_is_read_to_its_end,
            a_cursor_loses_nothing,
            pages_and_limits_hold,
            records_are_sifted,
            a_read_ends_where_it_is_told,
            who_follows_hears_what_comes,
            one_record_by_its_place,
            records_are_counted,
            a_stream_that_is_not_there_is_empty,
        ]);
    }
    if offers.contains(Interface::KeyValueScan) {
        cases!(client, ran, reader_of_keys: [
            keys_and_values_are_read,
            a_scan_goes_on_at_its_cursor,
            one_value_by_its_key,
            keys_are_counted,
            state_is_not_followed,
            keys_in_their_order,
            what_no_index_gives,
        ]);
    }
    if offers.contains(Interface::StreamBasic) || offers.contains(Interface::KeyValueScan) {
        cases!(client, ran, reader: [sources_must_fit]);
    }
}

const EARLIEST: start::Start = start::Start::Earliest(());

fn from(start: start::Start) -> Option<Start> {
    Some(Start { start: Some(start) })
}

fn of(source: Named) -> Option<reader::Source> {
    Some(reader::Source { source: Some(source) })
}

fn refused<T: std::fmt::Debug>(result: Result<T, Failure>, kind: Kind, reason: &str) {
    let failure = result.expect_err("it is refused");
    assert_eq!((failure.code, &*failure.reason), (kind.grpc_code(), reason), "{failure:?}");
}

/// A reader of one source.
struct Reading<'a, 'c, C> {
    caller: &'a Caller<'c, C>,
    source: Named,
}

impl<'a, 'c, C: Client> Reading<'a, 'c, C> {
    fn stream(stream: &Stream<'a, 'c, C>) -> Self {
        Reading { caller: stream.caller, source: Named::Stream(stream.name.clone()) }
    }

    fn keys(caller: &'a Caller<'c, C>) -> Self {
        Reading { caller, source: Named::Keys(()) }
    }

    fn request(&self, start: start::Start) -> reader::ReadRequest {
        reader::ReadRequest {
            namespace: self.caller.namespace(),
            source: of(self.source.clone()),
            start: from(start),
            ..Default::default()
        }
    }

    async fn pages(
        &self,
        request: &reader::ReadRequest,
    ) -> Result<Vec<reader::ReadResponse>, Failure> {
        self.caller.pages(Method::READER_READ, request, usize::MAX).await
    }

    async fn read(&self, request: &reader::ReadRequest) -> Vec<String> {
        let pages = self.pages(request).await.expect("read");
        pages.iter().flat_map(|page| texts(&page.records)).collect()
    }

    async fn count(&self, change: impl FnOnce(&mut reader::CountRequest)) -> (u64, bool) {
        let mut request = reader::CountRequest {
            namespace: self.caller.namespace(),
            source: of(self.source.clone()),
            ..Default::default()
        };
        change(&mut request);
        let answer: reader::CountResponse =
            self.caller.call(Method::READER_COUNT, &request).await.expect("counted");
        (answer.count, answer.exact)
    }

    async fn get(
        &self,
        which: reader::get_request::Which,
    ) -> Result<Option<reader::Record>, Failure> {
        let request = reader::GetRequest {
            namespace: self.caller.namespace(),
            source: of(self.source.clone()),
            which: Some(which),
        };
        let answer: reader::GetResponse = self.caller.call(Method::READER_GET, &request).await?;
        Ok(answer.record)
    }

    async fn query(
        &self,
        change: impl FnOnce(&mut reader::QueryRequest),
    ) -> Result<Vec<reader::QueryResponse>, Failure> {
        let mut request = reader::QueryRequest {
            namespace: self.caller.namespace(),
            source: of(self.source.clone()),
            ..Default::default()
        };
        change(&mut request);
        self.caller.pages(Method::READER_QUERY, &request, usize::MAX).await
    }
}

fn texts(records: &[reader::Record]) -> Vec<String> {
    records.iter().map(|one| String::from_utf8(one.value.to_vec()).expect("text")).collect()
}

/// A stream with so many records of one key, so that they are of one partition.
async fn filled<'a, 'c, C: Client>(caller: &'a Caller<'c, C>, records: usize) -> Stream<'a, 'c, C> {
    let stream = Stream::of(caller);
    for number in 0..records {
        stream.append(keyed("k", &number.to_string())).await;
    }
    stream
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn a_stream_is_read_to_its_end<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let mut record = keyed("k", "0");
    record.content_type = "text/plain".to_owned();
    record.attributes.insert("country".to_owned(), "CH".to_owned());
    stream.append(record).await;
    stream.append(keyed("k", "1")).await;
    let reading = Reading::stream(&stream);
    let pages = reading.pages(&reading.request(EARLIEST)).await.expect("read");
    let records: Vec<_> = pages.iter().flat_map(|page| page.records.clone()).collect();
    assert_eq!(texts(&records), ["0", "1"]);
    let first = &records[0];
    assert_eq!((first.key.as_deref(), &*first.content_type), (Some("k"), "text/plain"));
    assert_eq!(first.attributes.get("country").map(String::as_str), Some("CH"));
    assert!(first.timestamp.is_some() && first.position.is_some() && first.source.is_none());
    assert!(pages.iter().all(|page| !page.cursor.is_empty()), "every answer says where to go on");
}

async fn a_cursor_loses_nothing<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 7).await;
    let reading = Reading::stream(&stream);
    let request = reader::ReadRequest { page_size: 2, ..reading.request(EARLIEST) };
    let pages = reading.pages(&request).await.expect("read");
    let mut seen = 0;
    for page in &pages {
        seen += page.records.len();
        let cursor = start::Start::Cursor(page.cursor.clone());
        let rest = reading.read(&reading.request(cursor)).await;
        assert!(rest.ends_with(&numbers(seen..7)), "after {seen}: {rest:?}");
    }
    assert_eq!(seen, 7);
    let last = start::Start::Cursor(pages.last().expect("a page").cursor.clone());
    assert_eq!(reading.read(&reading.request(last)).await, [""; 0], "and repeats nothing");
}

async fn pages_and_limits_hold<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 7).await;
    let reading = Reading::stream(&stream);
    let request = reader::ReadRequest { page_size: 3, ..reading.request(EARLIEST) };
    let pages = reading.pages(&request).await.expect("read");
    assert!(pages.iter().all(|page| page.records.len() <= 3));
    let request = reader::ReadRequest { limit: 4, ..reading.request(EARLIEST) };
    let pages = reading.pages(&request).await.expect("read");
    let records: Vec<_> = pages.iter().flat_map(|page| texts(&page.records)).collect();
    assert_eq!(records, numbers(0..4));
    let cursor = start::Start::Cursor(pages.last().expect("a page").cursor.clone());
    assert_eq!(reading.read(&reading.request(cursor)).await, numbers(4..7));
}

async fn records_are_sifted<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for (key, text, country) in [("a:1", "0", "CH"), ("b:1", "1", "CH"), ("a:2", "2", "DE")] {
        let mut record = keyed(key, text);
        record.attributes.insert("country".to_owned(), country.to_owned());
        stream.append(record).await;
    }
    stream.append(text_record("3")).await;
    let reading = Reading::stream(&stream);
    for (key_prefix, filter, expected) in [
        ("a:", "", vec!["0", "2"]),
        ("", "country = \"CH\"", vec!["0", "1"]),
        ("a:", "country = \"CH\"", vec!["0"]),
        ("", "key STARTS_WITH \"b:\"", vec!["1"]),
        ("", "has(country) AND NOT country = \"CH\"", vec!["2"]),
        ("c:", "", vec![]),
    ] {
        let request = reader::ReadRequest {
            key_prefix: key_prefix.to_owned(),
            filter: filter.to_owned(),
            ..reading.request(EARLIEST)
        };
        let mut read = reading.read(&request).await;
        read.sort();
        assert_eq!(read, expected, "{key_prefix} {filter}");
        let request = reader::ReadRequest { limit: 1, ..request };
        assert_eq!(reading.read(&request).await.len(), expected.len().min(1));
    }
    let request = reader::ReadRequest { filter: "=".to_owned(), ..reading.request(EARLIEST) };
    assert_field(reading.pages(&request).await, "FILTER_INVALID", "filter");
}

/// The places of a stream's records.
async fn places<C: Client>(reading: &Reading<'_, '_, C>) -> Vec<Position> {
    let pages = reading.pages(&reading.request(EARLIEST)).await.expect("read");
    let records = pages.into_iter().flat_map(|page| page.records);
    records.map(|record| record.position.expect("a place")).collect()
}

async fn a_read_ends_where_it_is_told<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 5).await;
    let reading = Reading::stream(&stream);
    let places = places(&reading).await;
    let end = Some(reader::read_request::End::Before(places[3].clone()));
    let request =
        reader::ReadRequest { end, ..reading.request(start::Start::At(places[1].clone())) };
    assert_eq!(reading.read(&request).await, numbers(1..3));
    let after = reading.request(start::Start::After(places[3].clone()));
    let after = reader::ReadRequest { partitions: vec![places[3].partition], ..after };
    assert_eq!(reading.read(&after).await, numbers(4..5));
    for (seconds, expected) in [(0, 0..0), (4_000_000_000, 0..5)] {
        let until = prost_types::Timestamp { seconds, nanos: 0 };
        let end = Some(reader::read_request::End::Until(until));
        let request = reader::ReadRequest { end, ..reading.request(EARLIEST) };
        assert_eq!(reading.read(&request).await, numbers(expected));
    }
    let latest = reading.request(start::Start::Latest(()));
    assert_eq!(reading.read(&latest).await, [""; 0]);
}

async fn who_follows_hears_what_comes<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 2).await;
    let reading = Reading::stream(&stream);
    let request = reader::ReadRequest { follow: true, limit: 4, ..reading.request(EARLIEST) };
    let opened = caller.client.open(Method::READER_READ, request.encode_to_vec()).await;
    let mut opened = opened.expect("opened");
    let mut heard = Vec::new();
    while heard.len() < 4 {
        if heard.len() == 2 {
            stream.append(keyed("k", "2")).await;
            stream.append(keyed("k", "3")).await;
        }
        let message = opened.next().await.expect("goes on").expect("goes on");
        let page = reader::ReadResponse::decode(message).expect("a valid message");
        heard.extend(texts(&page.records));
    }
    assert_eq!(heard, numbers(0..4));
    assert_eq!(opened.next().await.expect("the limit is its end"), None);
}

async fn one_record_by_its_place<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 3).await;
    let reading = Reading::stream(&stream);
    let places = places(&reading).await;
    for (number, place) in places.iter().enumerate() {
        let record = reading.get(reader::get_request::Which::Position(place.clone())).await;
        let record = record.expect("got").expect("it is there");
        assert_eq!(texts(std::slice::from_ref(&record)), numbers(number..number + 1));
        assert_eq!(record.position.as_ref(), Some(place));
    }
    let by_key = reading.get(reader::get_request::Which::Key("k".to_owned())).await;
    assert_field(by_key, "WHICH_INVALID", "key");
}

async fn records_are_counted<C: Client>(caller: &Caller<'_, C>) {
    let stream = filled(caller, 5).await;
    stream.append(keyed("other", "5")).await;
    let reading = Reading::stream(&stream);
    assert_eq!(reading.count(|_| ()).await, (6, true));
    assert_eq!(reading.count(|request| request.limit = 4).await, (4, false));
    assert_eq!(reading.count(|request| request.limit = 6).await, (6, true));
    assert_eq!(reading.count(|request| request.key_prefix = "o".to_owned()).await, (1, true));
    // Offsets are not dense everywhere.
    let places = places(&reading).await;
    let end = places[2].clone();
    let mut of_partition = places.iter().filter(|one| one.partition == end.partition);
    let before = of_partition.position(|one| *one == end).expect("it is one of them") as u64;
    let counted = reading.count(|request| {
        request.end = Some(reader::count_request::End::Before(end));
    });
    assert_eq!(counted.await, (before, true));
}

async fn a_stream_that_is_not_there_is_empty<C: Client>(caller: &Caller<'_, C>) {
    let reading = Reading::stream(&Stream::of(caller));
    assert_eq!(reading.read(&reading.request(EARLIEST)).await, [""; 0]);
    assert_eq!(reading.count(|_| ()).await, (0, true));
}

async fn keys_and_values_are_read<C: Client>(caller: &Caller<'_, C>) {
    caller.set(&caller.key("a"), "1").await;
    caller.set(&caller.key("b"), "2").await;
    let reading = Reading::keys(caller);
    let request = reader::ReadRequest { key_prefix: caller.prefix(), ..reading.request(EARLIEST) };
    let pages = reading.pages(&request).await.expect("read");
    let last = pages.last().expect("a page");
    assert!(last.caught_up && !last.cursor.is_empty());
    let mut records: Vec<_> = pages.into_iter().flat_map(|page| page.records).collect();
    records.sort_by(|one, other| one.key.cmp(&other.key));
    assert_eq!(texts(&records), ["1", "2"]);
    assert_eq!(records[0].key, Some(caller.key("a")));
    assert!(records.iter().all(|record| record.position.is_none()));
    let version = records[0].version.as_ref().map(|version| version.to_vec());
    assert_eq!(version, caller.version(&caller.key("a")).await);
}

async fn a_scan_goes_on_at_its_cursor<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..9 {
        caller.set(&caller.key(&number.to_string()), number.to_string()).await;
    }
    let reading = Reading::keys(caller);
    let all = |start| reader::ReadRequest {
        key_prefix: caller.prefix(),
        page_size: 2,
        ..reading.request(start)
    };
    let pages = reading.pages(&all(EARLIEST)).await.expect("read");
    assert!(pages.iter().all(|page| page.records.len() <= 2));
    let mut seen: Vec<String> = Vec::new();
    for page in &pages {
        seen.extend(texts(&page.records));
        let cursor = start::Start::Cursor(page.cursor.clone());
        let mut both = reading.read(&all(cursor)).await;
        both.extend(seen.iter().cloned());
        both.sort();
        both.dedup();
        assert_eq!(both, numbers(0..9), "what was read and what follows is everything");
    }
    let limited = reader::ReadRequest { limit: 5, ..all(EARLIEST) };
    assert_eq!(reading.read(&limited).await.len(), 5);
}

async fn one_value_by_its_key<C: Client>(caller: &Caller<'_, C>) {
    caller.set(&caller.key("a"), "1").await;
    let reading = Reading::keys(caller);
    let get = |key: String| reading.get(reader::get_request::Which::Key(key));
    let record = get(caller.key("a")).await.expect("got").expect("it is there");
    assert_eq!((record.key, &record.value[..]), (Some(caller.key("a")), &b"1"[..]));
    assert_eq!(get(caller.key("missing")).await.expect("answered"), None);
    assert_field(get(String::new()).await, "KEY_INVALID", "key");
}

async fn keys_are_counted<C: Client>(caller: &Caller<'_, C>) {
    for number in 0..5 {
        caller.set(&caller.key(&number.to_string()), "v").await;
    }
    let reading = Reading::keys(caller);
    let count = |limit: u64, filter: String| {
        reading.count(move |request| {
            request.key_prefix = caller.prefix();
            request.limit = limit;
            request.filter = filter;
        })
    };
    assert_eq!(count(0, String::new()).await, (5, true));
    let one = format!("key = \"{}\"", caller.key("3"));
    assert_eq!(count(0, one).await, (1, true));
    let all = "has(key)".to_owned();
    assert_eq!(count(3, all).await, (3, false));
}

async fn state_is_not_followed<C: Client>(caller: &Caller<'_, C>) {
    let reading = Reading::keys(caller);
    let request = reader::ReadRequest { follow: true, ..reading.request(EARLIEST) };
    refused(reading.pages(&request).await, Kind::Unimplemented, "FOLLOW_NOT_OFFERED");
    let latest = reading.request(start::Start::Latest(()));
    assert_field(reading.pages(&latest).await, "START_INVALID", "start");
    let unknown = reading.request(start::Start::Cursor("x".to_owned()));
    assert_field(reading.pages(&unknown).await, "CURSOR_INVALID", "start.cursor");
}

async fn keys_in_their_order<C: Client>(caller: &Caller<'_, C>) {
    for number in [3, 0, 4, 1, 2] {
        caller.set(&caller.key(&number.to_string()), number.to_string()).await;
    }
    let reading = Reading::keys(caller);
    let sorted = |descending: bool, page_token: String| {
        reading.query(move |request| {
            request.filter = format!("key STARTS_WITH \"{}\"", caller.prefix());
            request.sort = vec![reader::SortField { field: "key".to_owned(), descending }];
            request.page_size = 2;
            request.page_token = page_token;
        })
    };
    for descending in [false, true] {
        let mut expected = numbers(0..5);
        if descending {
            expected.reverse();
        }
        let pages = sorted(descending, String::new()).await.expect("queried");
        let read: Vec<_> = pages.iter().flat_map(|page| texts(&page.records)).collect();
        assert_eq!(read, expected);
        assert_eq!(pages.last().expect("a page").next_page_token, "");
        let rest = sorted(descending, pages[0].next_page_token.clone()).await.expect("queried");
        let read: Vec<_> = rest.iter().flat_map(|page| texts(&page.records)).collect();
        assert_eq!(read, expected[pages[0].records.len()..]);
    }
    let mut found: Vec<_> = reading
        .query(|request| request.filter = format!("key STARTS_WITH \"{}\"", caller.prefix()))
        .await
        .expect("queried")
        .iter()
        .flat_map(|page| texts(&page.records))
        .collect();
    found.sort();
    assert_eq!(found, numbers(0..5));
}

async fn what_no_index_gives<C: Client>(caller: &Caller<'_, C>) {
    let reading = Reading::keys(caller);
    let by_value = reading.query(|request| {
        request.sort = vec![reader::SortField { field: "value".to_owned(), descending: false }];
    });
    refused(by_value.await, Kind::FailedPrecondition, "INDEX_REQUIRED");
}

async fn sources_must_fit<C: Client>(caller: &Caller<'_, C>) {
    let offers = caller.client.offers();
    let collection = Reading { caller, source: Named::Collection("c".to_owned()) };
    let request = collection.request(EARLIEST);
    refused(collection.pages(&request).await, Kind::Unimplemented, "SOURCE_NOT_OFFERED");
    if !offers.contains(Interface::KeyValueScan) {
        let keys = Reading::keys(caller);
        let request = keys.request(EARLIEST);
        refused(keys.pages(&request).await, Kind::Unimplemented, "SOURCE_NOT_OFFERED");
    }
    let none = reader::ReadRequest { source: None, ..request };
    assert_field(collection.pages(&none).await, "SOURCE_MISSING", "source");
}
