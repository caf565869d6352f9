//! What it means to serve the interfaces of StreamService.

use std::time::Duration;

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prost::Message as _;

use super::caller::{Caller, assert_field, at_ms, payload};
use super::{Client, Failure, Opened, cases};

pub(super) async fn run<C: Client>(client: &C, interface: Interface, ran: &mut Vec<&'static str>) {
    match interface {
        Interface::StreamBasic => {
            cases!(client, ran, stream_basic: [
                what_is_appended_is_read_in_its_order,
                an_empty_stream_has_an_end,
                records_of_every_size_and_alphabet,
                names_and_records_at_their_limits,
                a_batch_keeps_its_order,
                a_key_keeps_its_partition_and_order,
                reading_begins_where_it_is_told,
                a_cursor_goes_on_where_it_stood,
                a_reader_that_follows_hears_what_comes,
                the_end_is_fixed_without_follow,
                an_append_may_expect_what_is_last,
            ]);
        }
        Interface::StreamRetention => {
            cases!(client, ran, stream_retention: [
                retention_is_told_and_keeps_the_newest,
                by_key_the_newest_record_stays,
                what_is_too_old_goes,
            ]);
        }
        Interface::StreamPartitioning => {
            cases!(client, ran, stream_partitioning: [records_go_to_the_partition_of_choice]);
        }
        Interface::StreamConsumerGroups | Interface::StreamReplay => {
            super::stream_groups::run(client, interface, ran).await;
        }
        other => panic!("{other} is not of streams"),
    }
}

/// Calls about one stream of a case.
pub(super) struct Stream<'a, 'c, C> {
    pub(super) caller: &'a Caller<'c, C>,
    pub(super) name: String,
}

pub(super) fn text_record(text: &str) -> stream::NewRecord {
    stream::NewRecord { value: text.as_bytes().to_vec().into(), ..Default::default() }
}

pub(super) fn keyed(key: &str, text: &str) -> stream::NewRecord {
    stream::NewRecord { key: Some(key.to_owned()), ..text_record(text) }
}

pub(super) fn from(start: start::Start) -> Option<Start> {
    Some(Start { start: Some(start) })
}

pub(super) fn texts(records: &[stream::StreamRecord]) -> Vec<String> {
    records.iter().map(|one| String::from_utf8(one.value.to_vec()).expect("text")).collect()
}

impl<'a, 'c, C: Client> Stream<'a, 'c, C> {
    pub(super) fn of(caller: &'a Caller<'c, C>) -> Self {
        Stream { caller, name: caller.name("s") }
    }

    async fn try_append(
        &self,
        record: stream::NewRecord,
        expected_last: Option<Position>,
    ) -> Result<Option<Position>, Failure> {
        let request = stream::AppendRequest {
            namespace: self.caller.namespace(),
            stream: self.name.clone(),
            expected_last,
            record: Some(record),
        };
        let answer: stream::AppendResponse =
            self.caller.call(Method::STREAM_APPEND, &request).await?;
        Ok(answer.position)
    }

    pub(super) async fn append(&self, record: stream::NewRecord) {
        self.try_append(record, None).await.expect("appended");
    }

    fn read_request(&self, start: Option<Start>) -> stream::ReadRequest {
        let (namespace, stream) = (self.caller.namespace(), self.name.clone());
        stream::ReadRequest { namespace, stream, start, ..Default::default() }
    }

    async fn pages(
        &self,
        request: &stream::ReadRequest,
    ) -> Result<Vec<stream::ReadResponse>, Failure> {
        self.caller.pages(Method::STREAM_READ, request, usize::MAX).await
    }

    async fn read(&self, start: start::Start) -> Vec<stream::StreamRecord> {
        let pages = self.pages(&self.read_request(from(start))).await.expect("read");
        pages.into_iter().flat_map(|page| page.records).collect()
    }

    pub(super) async fn all(&self) -> Vec<stream::StreamRecord> {
        self.read(start::Start::Earliest(())).await
    }

    async fn try_set_retention(
        &self,
        retention: stream::Retention,
    ) -> Result<stream::Retention, Failure> {
        let request = stream::SetRetentionRequest {
            namespace: self.caller.namespace(),
            stream: self.name.clone(),
            retention: Some(retention),
        };
        let answer: stream::SetRetentionResponse =
            self.caller.call(Method::STREAM_SET_RETENTION, &request).await?;
        Ok(answer.retention.expect("what holds"))
    }

    async fn set_retention(&self, retention: stream::Retention) -> stream::Retention {
        self.try_set_retention(retention).await.expect("set")
    }

    /// Whether it is done at once.
    async fn compact(&self) -> bool {
        let (namespace, stream) = (self.caller.namespace(), self.name.clone());
        let request = stream::CompactRequest { namespace, stream };
        let answer: stream::CompactResponse =
            self.caller.call(Method::STREAM_COMPACT, &request).await.expect("compacted");
        answer.state() == stream::CompactionState::Done
    }
}

async fn what_is_appended_is_read_in_its_order<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let attributes = [("kind".to_owned(), "x".to_owned())].into();
    let rich = stream::NewRecord {
        content_type: "text/plain".to_owned(),
        attributes,
        ..keyed("{k}1", "rich")
    };
    stream.append(rich.clone()).await;
    stream.append(keyed("{k}2", "second")).await;
    let tomb = stream::NewRecord { tombstone: true, ..keyed("{k}1", "") };
    stream.append(tomb).await;
    let records = stream.all().await;
    assert_eq!(texts(&records), ["rich", "second", ""]);
    assert_eq!(records[0].content_type, rich.content_type);
    assert_eq!((&records[0].attributes, &records[0].key), (&rich.attributes, &rich.key));
    assert_eq!((records[0].tombstone, records[2].tombstone), (false, true));
    assert!(at_ms(records[0].timestamp) <= at_ms(records[2].timestamp));
    let positions: Vec<_> = records.iter().map(|one| one.position.clone().unwrap()).collect();
    assert_eq!(positions[0].partition, positions[2].partition, "one tag, one partition");
    assert_ne!(positions[0].offset, positions[1].offset);
}

async fn an_empty_stream_has_an_end<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    assert_eq!(stream.all().await, []);
    let (namespace, name) = (caller.namespace(), stream.name.clone());
    let request = stream::GetLatestOffsetRequest { namespace, stream: name };
    let latest = || async {
        let answer: stream::GetLatestOffsetResponse =
            caller.call(Method::STREAM_GET_LATEST_OFFSET, &request).await.expect("told");
        answer.positions
    };
    assert_eq!(latest().await, []);
    stream.append(text_record("x")).await;
    let records = stream.all().await;
    assert_eq!(latest().await, [records[0].position.clone().unwrap()]);
}

async fn records_of_every_size_and_alphabet<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let sizes = [0, 1, 4095, 4096, 100_000, 1 << 20];
    for bytes in sizes {
        let value = payload(bytes).into();
        stream.append(stream::NewRecord { value, ..Default::default() }).await;
    }
    stream.append(keyed("ключ 🚀", "Grüezi, 世界")).await;
    let records = stream.all().await;
    let without_key: Vec<_> = records.iter().filter(|one| one.key.is_none()).collect();
    assert_eq!(without_key.len(), sizes.len());
    for (record, bytes) in without_key.into_iter().zip(sizes) {
        assert_eq!(record.value, payload(bytes));
    }
    let last = records.iter().find(|one| one.key.is_some()).expect("the one with a key");
    assert_eq!(last.key.as_deref(), Some("ключ 🚀"));
}

async fn names_and_records_at_their_limits<C: Client>(caller: &Caller<'_, C>) {
    let name = caller.name(&"n".repeat(200 - caller.name("").len()));
    let longest = Stream { caller, name };
    longest.append(keyed(&"k".repeat(1024), "x")).await;
    assert_eq!(texts(&longest.all().await), ["x"]);
    for bad in ["", "a..b", "a.", "*", "a b", "é", &"n".repeat(201)] {
        let stream = Stream { caller, name: bad.to_owned() };
        let refused = stream.try_append(text_record("x"), None).await;
        assert_field(refused, "NAME_INVALID", "stream");
    }
    for bad in ["", "a\nb", &"k".repeat(1025)] {
        let refused = longest.try_append(keyed(bad, "x"), None).await;
        assert_field(refused, "KEY_INVALID", "record.key");
    }
    let tomb = stream::NewRecord { tombstone: true, ..text_record("") };
    assert_field(longest.try_append(tomb, None).await, "TOMBSTONE_INVALID", "record.tombstone");
    let value = payload(caller.client.limits().max_message_size - 2047).into();
    let large = stream::NewRecord { value, ..Default::default() };
    assert_field(longest.try_append(large, None).await, "PAYLOAD_TOO_LARGE", "record.value");
    let refused = longest.pages(&longest.read_request(None)).await.map(drop);
    assert_field(refused, "START_MISSING", "start");
}

async fn a_batch_keeps_its_order<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let request = stream::AppendBatchRequest {
        namespace: caller.namespace(),
        stream: stream.name.clone(),
        records: (0..600).map(|number: u32| keyed("k", &number.to_string())).collect(),
    };
    let answer: stream::AppendBatchResponse =
        caller.call(Method::STREAM_APPEND_BATCH, &request).await.expect("appended");
    assert_eq!(answer.results.len(), 600);
    assert!(answer.results.iter().all(|result| result.status.is_none()));
    let expected: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    assert_eq!(texts(&stream.all().await), expected);
    let limited =
        stream::ReadRequest { limit: 300, ..stream.read_request(from(start::Start::Earliest(()))) };
    let pages = stream.pages(&limited).await.expect("read");
    let records: Vec<_> = pages.into_iter().flat_map(|page| page.records).collect();
    assert_eq!(texts(&records), expected[..300]);
    let empty = stream::AppendBatchRequest { records: Vec::new(), ..request };
    let refused = caller.call::<stream::AppendBatchResponse>(Method::STREAM_APPEND_BATCH, &empty);
    assert_field(refused.await, "BATCH_EMPTY", "records");
}

async fn a_key_keeps_its_partition_and_order<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for round in 0..3 {
        for key in 0..10 {
            stream.append(keyed(&format!("key-{key}"), &round.to_string())).await;
        }
    }
    let records = stream.all().await;
    assert_eq!(records.len(), 30);
    for key in 0..10 {
        let key = format!("key-{key}");
        let of_key: Vec<_> =
            records.iter().filter(|one| one.key.as_ref() == Some(&key)).cloned().collect();
        assert_eq!(texts(&of_key), ["0", "1", "2"], "{key}");
        let partition = |one: &stream::StreamRecord| one.position.as_ref().unwrap().partition;
        assert!(of_key.iter().all(|one| partition(one) == partition(&of_key[0])));
    }
}

async fn reading_begins_where_it_is_told<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("0")).await;
    caller.client.advance(Duration::from_millis(20)).await;
    stream.append(text_record("1")).await;
    caller.client.advance(Duration::from_millis(20)).await;
    stream.append(text_record("2")).await;
    let all = stream.all().await;
    let position = |index: usize| all[index].position.clone().unwrap();
    assert_eq!(texts(&stream.read(start::Start::At(position(1))).await), ["1", "2"]);
    assert_eq!(texts(&stream.read(start::Start::After(position(1))).await), ["2"]);
    assert_eq!(stream.read(start::Start::After(position(2))).await, []);
    assert_eq!(stream.read(start::Start::Latest(())).await, []);
    let since = start::Start::Since(all[1].timestamp.unwrap());
    assert_eq!(texts(&stream.read(since).await), ["1", "2"], "a moment is included");
    let later = prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 };
    assert_eq!(stream.read(start::Start::Since(later)).await, []);
    let dawn = prost_types::Timestamp { seconds: 0, nanos: 0 };
    assert_eq!(stream.read(start::Start::Since(dawn)).await.len(), 3);
}

async fn a_cursor_goes_on_where_it_stood<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for number in 0..10 {
        stream.append(keyed(&number.to_string(), &number.to_string())).await;
    }
    let first =
        stream::ReadRequest { limit: 4, ..stream.read_request(from(start::Start::Earliest(()))) };
    let pages = stream.pages(&first).await.expect("read");
    let cursor = pages.last().expect("a page").cursor.clone();
    let mut seen: Vec<_> = pages.into_iter().flat_map(|page| page.records).collect();
    assert_eq!(seen.len(), 4);
    seen.extend(stream.read(start::Start::Cursor(cursor.clone())).await);
    let mut values = texts(&seen);
    values.sort();
    assert_eq!(values, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    let other = Stream { caller, name: caller.name("other") };
    for wrong in [cursor, "nonsense".to_owned()] {
        let request = other.read_request(from(start::Start::Cursor(wrong)));
        let refused = other.pages(&request).await.map(drop);
        assert_field(refused, "CURSOR_INVALID", "start.cursor");
    }
}

async fn a_reader_that_follows_hears_what_comes<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("old")).await;
    let request = stream::ReadRequest {
        follow: true,
        ..stream.read_request(from(start::Start::Earliest(())))
    };
    let mut opened =
        caller.client.open(Method::STREAM_READ, request.encode_to_vec()).await.expect("opened");
    let (mut heard, mut caught_up) = (Vec::new(), false);
    for (number, expected) in ["old", "new", "newest"].into_iter().enumerate() {
        while heard.len() <= number || !caught_up {
            let message = opened.next().await.expect("it goes on").expect("it goes on");
            let page = stream::ReadResponse::decode(message).expect("a valid message");
            assert!(!page.cursor.is_empty());
            heard.extend(texts(&page.records));
            caught_up = page.caught_up;
        }
        assert_eq!(heard[number], expected);
        caught_up = false;
        stream.append(text_record(["new", "newest", "unread"][number])).await;
    }
}

async fn the_end_is_fixed_without_follow<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for number in 0..3 {
        stream.append(text_record(&number.to_string())).await;
    }
    let request = stream.read_request(from(start::Start::Earliest(())));
    let mut opened =
        caller.client.open(Method::STREAM_READ, request.encode_to_vec()).await.expect("opened");
    let mut heard = Vec::new();
    while let Some(message) = opened.next().await.expect("readable") {
        let page = stream::ReadResponse::decode(message).expect("a valid message");
        heard.extend(texts(&page.records));
        stream.append(text_record("late")).await;
    }
    assert_eq!(heard, ["0", "1", "2"]);
}

async fn an_append_may_expect_what_is_last<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("0")).await;
    let last = stream.all().await[0].position.clone();
    let appended = stream.try_append(text_record("1"), last.clone()).await;
    if appended.as_ref().is_err_and(|failure| failure.reason == "EXPECTED_LAST_NOT_OFFERED") {
        return;
    }
    assert!(appended.expect("appended").is_some(), "only the backend could answer");
    let refused = stream.try_append(text_record("2"), last).await.expect_err("it is not the last");
    assert_eq!((refused.code, &*refused.reason), (9, "EXPECTED_LAST_MISMATCH"));
    assert_eq!(texts(&stream.all().await), ["0", "1"]);
}

async fn retention_is_told_and_keeps_the_newest<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for number in 0..10 {
        stream.append(text_record(&number.to_string())).await;
    }
    let mut asked = stream::Retention { max_records: Some(3), ..Default::default() };
    match stream.try_set_retention(asked).await {
        Ok(holds) => assert_eq!(holds, asked),
        // Not every backend counts records.
        Err(failure) => {
            assert_eq!((failure.code, &*failure.reason), (12, "RETENTION_NOT_OFFERED"));
            let max_age = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
            asked = stream::Retention { max_age, ..Default::default() };
            assert_eq!(stream.set_retention(asked).await, asked);
        }
    }
    let (namespace, name) = (caller.namespace(), stream.name.clone());
    let request = stream::GetRetentionRequest { namespace, stream: name };
    let told: stream::GetRetentionResponse =
        caller.call(Method::STREAM_GET_RETENTION, &request).await.expect("told");
    assert_eq!(told.retention, Some(asked));
    assert!(told.plan.is_some());
    if stream.compact().await {
        let records = stream.all().await;
        assert_eq!(texts(&records), ["7", "8", "9"]);
        stream.append(text_record("10")).await;
        assert!(texts(&stream.all().await).ends_with(&["8", "9", "10"].map(str::to_owned)));
        stream.compact().await;
        let gone = start::Start::At(Position {
            partition: records[0].position.as_ref().unwrap().partition,
            ..records[0].position.clone().unwrap()
        });
        let refused = stream.pages(&stream.read_request(from(gone))).await.expect_err("trimmed");
        assert_eq!((refused.code, &*refused.reason), (11, "POSITION_TRIMMED"));
    }
    let zero = stream::Retention { max_records: Some(0), ..Default::default() };
    let (namespace, name) = (caller.namespace(), stream.name.clone());
    let request = stream::SetRetentionRequest { namespace, stream: name, retention: Some(zero) };
    let refused =
        caller.call::<stream::SetRetentionResponse>(Method::STREAM_SET_RETENTION, &request);
    assert_field(refused.await, "RETENTION_INVALID", "retention.max_records");
}

async fn by_key_the_newest_record_stays<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for (key, text) in [("{t}a", "a1"), ("{t}b", "b1"), ("{t}a", "a2")] {
        stream.append(keyed(key, text)).await;
    }
    let by_key = stream::Retention { by_key: true, ..Default::default() };
    if let Err(failure) = stream.try_set_retention(by_key).await {
        // Not every backend looks at keys.
        assert_eq!((failure.code, &*failure.reason), (12, "RETENTION_NOT_OFFERED"));
        return;
    }
    if !stream.compact().await {
        return;
    }
    assert_eq!(texts(&stream.all().await), ["b1", "a2"]);
    stream.append(keyed("{t}b", "b2")).await;
    stream.compact().await;
    assert_eq!(texts(&stream.all().await), ["a2", "b2"]);
}

async fn what_is_too_old_goes<C: Client>(caller: &Caller<'_, C>) {
    if !caller.client.is_time_simulated() {
        return;
    }
    let stream = Stream::of(caller);
    stream.append(text_record("old")).await;
    let max_age = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    stream.set_retention(stream::Retention { max_age, ..Default::default() }).await;
    caller.client.advance(Duration::from_secs(61)).await;
    stream.append(text_record("new")).await;
    assert!(stream.compact().await);
    assert_eq!(texts(&stream.all().await), ["new"]);
    caller.client.advance(Duration::from_secs(61)).await;
    assert!(stream.compact().await);
    assert_eq!(stream.all().await, []);
    stream.append(text_record("newest")).await;
    let records = stream.all().await;
    assert_eq!(texts(&records), ["newest"]);
}

async fn records_go_to_the_partition_of_choice<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let partitions = || async {
        let (namespace, name) = (caller.namespace(), stream.name.clone());
        let request = stream::GetPartitionsRequest { namespace, stream: name };
        let answer: stream::GetPartitionsResponse =
            caller.call(Method::STREAM_GET_PARTITIONS, &request).await.expect("told");
        answer.partitions
    };
    let append = |partition, text: &str| {
        let request = stream::AppendToPartitionRequest {
            namespace: caller.namespace(),
            stream: stream.name.clone(),
            partition,
            expected_last: None,
            record: Some(text_record(text)),
        };
        let method = Method::STREAM_APPEND_TO_PARTITION;
        async move { caller.call::<stream::AppendToPartitionResponse>(method, &request).await }
    };
    append(0, "first").await.expect("appended");
    let there = partitions().await;
    assert!(!there.is_empty());
    assert!(there[0].earliest.is_some() && there[0].earliest == there[0].latest);
    for (number, partition) in there.iter().enumerate() {
        assert_eq!(partition.partition, number as u32);
        append(partition.partition, &format!("p{number}")).await.expect("appended");
    }
    for partition in partitions().await {
        let number = partition.partition;
        let request = stream::ReadRequest {
            partitions: vec![number],
            ..stream.read_request(from(start::Start::Earliest(())))
        };
        let pages = stream.pages(&request).await.expect("read");
        let records: Vec<_> = pages.into_iter().flat_map(|page| page.records).collect();
        assert!(records.iter().all(|one| one.position.as_ref().unwrap().partition == number));
        assert_eq!(texts(&records).last(), Some(&format!("p{number}")));
        assert_eq!(
            records.last().unwrap().position.as_ref().unwrap().offset,
            partition.latest.unwrap()
        );
    }
    let beyond = there.len() as u32;
    assert_field(append(beyond, "x").await, "PARTITION_UNKNOWN", "partition");
}
