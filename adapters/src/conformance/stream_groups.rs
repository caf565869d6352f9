//! What it means to share a stream among consumers, and to read its past again.
//!
//! A backend need not offer both ways of sharing: it refuses the other with `SHARING_NOT_OFFERED`, and the cases about that way end
//! there. It need not count deliveries, nor know the lag.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use prism_proto::catalogue::{Interface, Method};
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::r#type::v1::{Position, start};
use prost::Message as _;

use super::caller::{Caller, assert_field, assert_if_known, ms, reason};
use super::stream::{Stream, from, keyed, text_record, texts};
use super::{Client, Failure, Opened, cases};

pub(super) async fn run<C: Client>(client: &C, interface: Interface, ran: &mut Vec<&'static str>) {
    if interface == Interface::StreamConsumerGroups {
        cases!(client, ran, stream_consumer_groups: [
            a_group_gets_what_is_there_and_what_comes,
            a_new_group_begins_with_what_comes,
            groups_do_not_share_with_each_other,
            what_is_not_acknowledged_in_time_comes_again,
            a_member_that_dies_leaves_its_records_to_the_next,
            a_group_goes_on_where_it_stood,
            partitions_are_shared_anew_when_members_come_and_go,
            records_are_shared_one_by_one,
            a_member_holds_no_more_than_it_may,
            a_member_that_joins_again_takes_its_own_place,
            a_group_that_is_not_there_is_told,
            names_of_groups_and_members,
        ]);
    } else {
        cases!(client, ran, stream_replay: [
            a_group_goes_back_to_a_record,
            a_group_goes_back_to_a_moment,
            a_group_with_members_is_not_moved,
            a_range_is_read_again,
        ]);
    }
}

/// How long a record waits for its acknowledgement where a case waits for its end.
const SHORT: Duration = Duration::from_millis(1000);
/// A little more.
const PAST_SHORT: Duration = Duration::from_millis(1100);

/// Calls about one group of a stream.
struct Group<'a, 'c, C> {
    stream: &'a Stream<'a, 'c, C>,
    name: String,
}

/// A stream that takes part in a group.
struct Member<'a, C: Client + 'a> {
    opened: C::Opened<'a>,
    name: String,
    generation: u64,
    partitions: BTreeSet<u32>,
    /// What came while the case waited for something else.
    records: VecDeque<stream::RecordDelivery>,
}

fn text(delivery: &stream::RecordDelivery) -> String {
    texts(std::slice::from_ref(delivery.record.as_ref().expect("a record"))).remove(0)
}

fn partition(delivery: &stream::RecordDelivery) -> u32 {
    let record = delivery.record.as_ref().expect("a record");
    record.position.as_ref().expect("a position").partition
}

impl<'a, 'c, C: Client> Group<'a, 'c, C> {
    fn of(stream: &'a Stream<'a, 'c, C>, name: &str) -> Self {
        Group { stream, name: name.to_owned() }
    }

    fn names(&self) -> (String, String, String) {
        (self.stream.caller.namespace(), self.stream.name.clone(), self.name.clone())
    }

    /// A request that creates it, at the beginning of the stream.
    fn request(&self) -> stream::CreateConsumerGroupRequest {
        let (namespace, stream, group) = self.names();
        let start = from(start::Start::Earliest(()));
        stream::CreateConsumerGroupRequest { namespace, stream, group, start, ..Default::default() }
    }

    async fn try_create(
        &self,
        request: &stream::CreateConsumerGroupRequest,
    ) -> Result<stream::Sharing, Failure> {
        let method = Method::STREAM_CREATE_CONSUMER_GROUP;
        let answer: stream::CreateConsumerGroupResponse =
            self.stream.caller.call(method, request).await?;
        Ok(answer.sharing())
    }

    async fn create(&self, request: &stream::CreateConsumerGroupRequest) -> stream::Sharing {
        self.try_create(request).await.expect("created")
    }

    /// Whether the backend shares in this way; then the group is there.
    async fn shares(&self, request: stream::CreateConsumerGroupRequest) -> bool {
        let asked = request.sharing();
        match self.try_create(&request).await {
            Ok(sharing) => {
                assert_eq!(sharing, asked);
                true
            }
            Err(failure) => {
                assert_eq!((failure.code, &*failure.reason), (9, "SHARING_NOT_OFFERED"));
                false
            }
        }
    }

    fn join_request(&self, member: &str) -> stream::JoinConsumerGroupRequest {
        let (namespace, stream, group) = self.names();
        stream::JoinConsumerGroupRequest { namespace, stream, group, member: member.to_owned() }
    }

    /// Takes part; comes back with the first assignment.
    async fn join(&self, member: &str) -> Member<'c, C> {
        let mut member = self.open(member).await;
        assert!(matches!(member.event().await, Event::Assigned(_)), "that is first of all");
        member
    }

    async fn open(&self, member: &str) -> Member<'c, C> {
        let request = self.join_request(member).encode_to_vec();
        let method = Method::STREAM_JOIN_CONSUMER_GROUP;
        let opened = self.stream.caller.client.open(method, request).await.expect("opened");
        let (partitions, records) = (BTreeSet::new(), VecDeque::new());
        Member { opened, name: String::new(), generation: 0, partitions, records }
    }

    async fn try_acknowledge(
        &self,
        deliveries: &[stream::RecordDelivery],
    ) -> Result<Vec<String>, Failure> {
        let (namespace, stream, group) = self.names();
        let receipts = deliveries.iter().map(|one| one.receipt.clone()).collect();
        let request = stream::AcknowledgeRequest { namespace, stream, group, receipts };
        let answer: stream::AcknowledgeResponse =
            self.stream.caller.call(Method::STREAM_ACKNOWLEDGE, &request).await?;
        assert_eq!(answer.results.len(), deliveries.len());
        Ok(answer.results.into_iter().map(|result| reason(result.status)).collect())
    }

    /// Marks deliveries as done.
    async fn acknowledge(&self, deliveries: &[stream::RecordDelivery]) {
        let reasons = self.try_acknowledge(deliveries).await.expect("answered");
        assert!(reasons.iter().all(String::is_empty), "{reasons:?}");
    }

    async fn info(&self) -> Result<stream::GetConsumerGroupInfoResponse, Failure> {
        let (namespace, stream, group) = self.names();
        let request = stream::GetConsumerGroupInfoRequest { namespace, stream, group };
        self.stream.caller.call(Method::STREAM_GET_CONSUMER_GROUP_INFO, &request).await
    }

    /// Comes back when the backend has noticed that nobody takes part any more.
    async fn is_left(&self) {
        for _ in 0..1500 {
            if self.info().await.expect("told").members.is_empty() {
                return;
            }
            self.stream.caller.client.advance(Duration::from_millis(20)).await;
        }
        panic!("a member that is gone is noticed");
    }

    async fn seek_to_offset(&self, positions: Vec<Position>) -> Result<(), Failure> {
        let (namespace, stream, group) = self.names();
        let request = stream::SeekToOffsetRequest { namespace, stream, group, positions };
        let caller = self.stream.caller;
        caller
            .call::<stream::SeekToOffsetResponse>(Method::STREAM_SEEK_TO_OFFSET, &request)
            .await?;
        Ok(())
    }

    async fn seek_to_timestamp(
        &self,
        timestamp: Option<prost_types::Timestamp>,
    ) -> Result<(), Failure> {
        let (namespace, stream, group) = self.names();
        let request = stream::SeekToTimestampRequest { namespace, stream, group, timestamp };
        let method = Method::STREAM_SEEK_TO_TIMESTAMP;
        self.stream.caller.call::<stream::SeekToTimestampResponse>(method, &request).await?;
        Ok(())
    }
}

impl<C: Client> Member<'_, C> {
    async fn try_event(&mut self) -> Result<Event, Failure> {
        loop {
            let message = self.opened.next().await?.expect("it goes on");
            let response = stream::JoinConsumerGroupResponse::decode(message).expect("valid");
            let event = response.event.expect("an event");
            match &event {
                Event::Heartbeat(_) => continue,
                Event::Assigned(assigned) => {
                    assert!(assigned.generation >= self.generation && !assigned.member.is_empty());
                    self.generation = assigned.generation;
                    self.name = assigned.member.clone();
                    self.partitions = assigned.partitions.iter().copied().collect();
                }
                Event::Revoked(revoked) => {
                    // With sharing by record no partitions are named, and all is revoked.
                    let all = revoked.partitions.is_empty();
                    let goes = |number: &u32| all || revoked.partitions.contains(number);
                    self.partitions.retain(|number| !goes(number));
                    self.records.retain(|one| !goes(&partition(one)));
                }
                Event::Record(record) => {
                    assert!(!record.receipt.is_empty());
                    self.records.push_back(record.clone());
                }
            }
            return Ok(event);
        }
    }

    async fn event(&mut self) -> Event {
        self.try_event().await.expect("it goes on")
    }

    /// The next record.
    async fn record(&mut self) -> stream::RecordDelivery {
        while self.records.is_empty() {
            self.event().await;
        }
        self.records.pop_front().expect("a record")
    }

    async fn take(&mut self, count: usize) -> Vec<stream::RecordDelivery> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.push(self.record().await);
        }
        taken
    }
}

/// Both futures' outputs; either may need the other to go on.
async fn both<A: Future, B: Future>(one: A, other: B) -> (A::Output, B::Output) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(output) = one.as_mut().poll(context)
        {
            first = Some(output);
        }
        if second.is_none()
            && let Poll::Ready(output) = other.as_mut().poll(context)
        {
            second = Some(output);
        }
        match first.is_some() && second.is_some() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    (first.expect("it is ready"), second.expect("it is ready"))
}

/// Comes back when two members share all partitions, each in the same generation.
async fn settle<C: Client>(a: &mut Member<'_, C>, b: &mut Member<'_, C>, all: &BTreeSet<u32>) {
    loop {
        let shared: BTreeSet<u32> = a.partitions.union(&b.partitions).copied().collect();
        let apart = a.partitions.is_disjoint(&b.partitions);
        if a.generation == b.generation && apart && shared == *all {
            return;
        }
        match a.generation.cmp(&b.generation) {
            std::cmp::Ordering::Less => drop(a.event().await),
            std::cmp::Ordering::Greater => drop(b.event().await),
            std::cmp::Ordering::Equal => drop(both(a.event(), b.event()).await),
        }
    }
}

async fn a_group_gets_what_is_there_and_what_comes<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let attributes = [("kind".to_owned(), "x".to_owned())].into();
    let rich = stream::NewRecord { attributes, ..keyed("k", "rich") };
    stream.append(rich.clone()).await;
    stream.append(keyed("k", "")).await;
    let group = Group::of(&stream, "g");
    let sharing = group.create(&group.request()).await;
    assert_ne!(sharing, stream::Sharing::Unspecified);
    let mut member = group.join("").await;
    let there = member.take(2).await;
    let all = stream.all().await;
    let records: Vec<_> = there.iter().map(|one| one.record.clone().unwrap()).collect();
    assert_eq!(records, all, "as they are read");
    assert!(there.iter().all(|one| one.attempt <= 1));
    stream.append(keyed("k", "later")).await;
    let later = member.record().await;
    assert_eq!(text(&later), "later");
    group.acknowledge(&[there, vec![later.clone()]].concat()).await;
    let again = group.try_acknowledge(&[later]).await.expect("answered");
    assert!(["", "RECEIPT_EXPIRED"].contains(&&*again[0]), "{again:?}");
    let info = group.info().await.expect("told");
    assert_eq!((info.sharing(), info.generation), (sharing, member.generation));
    let names: Vec<_> = info.members.iter().map(|one| one.member.clone()).collect();
    assert_eq!(names, [member.name.clone()]);
    let partition = all[0].position.as_ref().unwrap().partition;
    let progress = info.progress.iter().find(|one| one.partition == partition).expect("told");
    assert!(progress.acknowledged.is_some());
    assert_if_known(progress.lag, 0);
}

async fn a_new_group_begins_with_what_comes<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("before")).await;
    let group = Group::of(&stream, "g");
    let request = stream::CreateConsumerGroupRequest { start: None, ..group.request() };
    group.create(&request).await;
    stream.append(text_record("after")).await;
    let mut member = group.join("").await;
    assert_eq!(text(&member.record().await), "after");
    // It is there: creating it again changes nothing.
    group.create(&request).await;
    let after = Group::of(&stream, "after");
    let first = stream.all().await[0].position.clone().unwrap();
    let start = from(start::Start::After(first));
    after.create(&stream::CreateConsumerGroupRequest { start, ..after.request() }).await;
    assert_eq!(text(&after.join("").await.record().await), "after");
}

async fn groups_do_not_share_with_each_other<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let (one, other) = (Group::of(&stream, "one"), Group::of(&stream, "other"));
    for number in 0..5 {
        stream.append(keyed("k", &number.to_string())).await;
    }
    for group in [&one, &other] {
        group.create(&group.request()).await;
        let taken = group.join("").await.take(5).await;
        assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
        group.acknowledge(&taken).await;
    }
    let (a, b) = (one.join("").await, other.join("").await);
    drop((a, b));
    let elsewhere = Stream { caller, name: caller.name("elsewhere") };
    let refused = Group::of(&elsewhere, "one").info().await.expect_err("it is another stream's");
    assert_eq!((refused.code, &*refused.reason), (5, "GROUP_NOT_FOUND"));
}

async fn what_is_not_acknowledged_in_time_comes_again<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    let ack_wait = Some(ms(SHORT.as_millis() as u64));
    group.create(&stream::CreateConsumerGroupRequest { ack_wait, ..group.request() }).await;
    stream.append(text_record("x")).await;
    let mut member = group.join("").await;
    let first = member.record().await;
    assert!(first.attempt <= 1);
    caller.client.advance(PAST_SHORT).await;
    let again = member.record().await;
    assert_eq!((text(&first), text(&again)), ("x".to_owned(), "x".to_owned()));
    assert!(again.attempt == 0 || again.attempt >= 2);
    group.acknowledge(&[again]).await;
    stream.append(text_record("y")).await;
    let next = member.record().await;
    assert_eq!(text(&next), "y", "what is acknowledged does not come again");
    group.acknowledge(&[next]).await;
}

/// Both ways of sharing.
const SHARINGS: [stream::Sharing; 2] = [stream::Sharing::ByPartition, stream::Sharing::ByRecord];

async fn a_member_that_dies_leaves_its_records_to_the_next<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for number in 0..4 {
        stream.append(keyed("k", &number.to_string())).await;
    }
    let mut offered = 0;
    for sharing in SHARINGS {
        let group = Group::of(&stream, sharing.as_str_name());
        let ack_wait = Some(ms(SHORT.as_millis() as u64));
        let request = stream::CreateConsumerGroupRequest { ack_wait, ..group.request() };
        let request = stream::CreateConsumerGroupRequest { sharing: sharing.into(), ..request };
        if !group.shares(request).await {
            continue;
        }
        offered += 1;
        let mut dies = group.join("dies").await;
        let held = dies.take(4).await;
        group.acknowledge(&held[..2]).await;
        drop(dies);
        caller.client.advance(PAST_SHORT).await;
        let mut heir = group.join("heir").await;
        let left = heir.take(2).await;
        assert_eq!(left.iter().map(text).collect::<Vec<_>>(), ["2", "3"], "{sharing:?}");
        group.acknowledge(&left).await;
    }
    assert!(offered > 0, "at least one way of sharing is offered");
}

async fn a_group_goes_on_where_it_stood<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    group.create(&group.request()).await;
    for round in 0..3 {
        for number in 0..3 {
            stream.append(keyed("k", &format!("{round}-{number}"))).await;
        }
        let mut member = group.join("same").await;
        let taken = member.take(3).await;
        let expected: Vec<_> = (0..3).map(|number| format!("{round}-{number}")).collect();
        assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), expected);
        group.acknowledge(&taken).await;
        drop(member);
        group.is_left().await;
    }
}

async fn partitions_are_shared_anew_when_members_come_and_go<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    let sharing = stream::Sharing::ByPartition.into();
    let request = stream::CreateConsumerGroupRequest { sharing, ..group.request() };
    stream.append(text_record("unread")).await;
    if !group.shares(request).await {
        return;
    }
    let mut a = group.join("a").await;
    let all = a.partitions.clone();
    assert!(!all.is_empty(), "one member has them all");
    let unread = a.record().await;
    let mut b = group.open("b").await;
    both(a.event(), b.event()).await;
    settle(&mut a, &mut b, &all).await;
    let generation = a.generation;
    // What the first generation left is of the second, whose receipts are not those of the first.
    let stale = group.try_acknowledge(std::slice::from_ref(&unread)).await.expect("answered");
    assert_eq!(stale, ["STALE_GENERATION"]);
    for number in 0..20 {
        stream.append(keyed(&format!("key-{number}"), &number.to_string())).await;
    }
    let mut by_partition: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for record in stream.all().await {
        let number = record.position.as_ref().unwrap().partition;
        by_partition.entry(number).or_default().extend(texts(&[record]));
    }
    let info = group.info().await.expect("told");
    for member in [&mut a, &mut b] {
        let mine = member.partitions.iter().filter_map(|number| by_partition.get(number));
        let taken = member.take(mine.map(Vec::len).sum()).await;
        for number in &member.partitions {
            let of = taken.iter().filter(|one| partition(one) == *number).map(text);
            let expected = by_partition.get(number).cloned().unwrap_or_default();
            assert_eq!(of.collect::<Vec<_>>(), expected, "in order, and by nobody else");
        }
        group.acknowledge(&taken).await;
        let told = info.members.iter().find(|one| one.member == member.name).expect("told");
        assert_eq!(told.partitions.iter().copied().collect::<BTreeSet<_>>(), member.partitions);
    }
    // One is gone: the other has it all, and knows.
    drop(a);
    while b.partitions != all {
        b.event().await;
    }
    assert!(b.generation > generation);
    for number in 20..40 {
        stream.append(keyed(&format!("key-{number}"), &number.to_string())).await;
    }
    let mut values: Vec<u32> =
        b.take(20).await.iter().map(|one| text(one).parse().expect("a new one")).collect();
    values.sort_unstable();
    assert_eq!(values, (20..40).collect::<Vec<_>>());
}

/// Creates a group whose members share record by record, if that is offered.
async fn by_record<C: Client>(group: &Group<'_, '_, C>, max_in_flight: u32) -> bool {
    let sharing = stream::Sharing::ByRecord.into();
    let request = group.request();
    group.shares(stream::CreateConsumerGroupRequest { sharing, max_in_flight, ..request }).await
}

async fn records_are_shared_one_by_one<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    if !by_record(&group, 1).await {
        return;
    }
    let (mut a, mut b) = (group.join("a").await, group.join("b").await);
    assert!(a.partitions.is_empty() && b.partitions.is_empty());
    for number in 0..10 {
        stream.append(keyed("k", &number.to_string())).await;
    }
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        for member in [&mut a, &mut b] {
            let taken = member.record().await;
            seen.insert(text(&taken));
            group.acknowledge(&[taken]).await;
        }
    }
    assert_eq!(seen.len(), 10, "{seen:?}");
}

async fn a_member_holds_no_more_than_it_may<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    if !by_record(&group, 3).await {
        return;
    }
    for number in 0..10 {
        stream.append(keyed("k", &number.to_string())).await;
    }
    let mut idle = group.join("idle").await;
    let held = idle.take(3).await;
    let mut busy = group.join("busy").await;
    let mut seen: Vec<String> = held.iter().map(text).collect();
    for _ in 0..7 {
        let taken = busy.record().await;
        seen.push(text(&taken));
        group.acknowledge(&[taken]).await;
    }
    seen.sort();
    assert_eq!(seen, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    // Whoever acknowledges may have more.
    stream.append(keyed("k", "more")).await;
    group.acknowledge(&held).await;
}

async fn a_member_that_joins_again_takes_its_own_place<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("x")).await;
    let group = Group::of(&stream, "g");
    group.create(&group.request()).await;
    let mut before = group.join("same").await;
    assert_eq!(before.name, "same");
    assert_eq!(text(&before.record().await), "x");
    let mut after = group.open("same").await;
    let ends = async {
        loop {
            if let Err(failure) = before.try_event().await {
                return failure;
            }
        }
    };
    let (failure, taken) = both(ends, after.record()).await;
    assert_eq!((failure.code, &*failure.reason), (10, "MEMBER_REPLACED"));
    assert_eq!(text(&taken), "x", "what the stream before held is its own again");
    group.acknowledge(&[taken]).await;
    assert_eq!(group.info().await.expect("told").members.len(), 1);
}

async fn a_group_that_is_not_there_is_told<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    stream.append(text_record("x")).await;
    let group = Group::of(&stream, "g");
    group.create(&group.request()).await;
    let taken = group.join("m").await.take(1).await;
    let delete = || async {
        let (namespace, stream, group) = group.names();
        let request = stream::DeleteConsumerGroupRequest { namespace, stream, group };
        let method = Method::STREAM_DELETE_CONSUMER_GROUP;
        caller.call::<stream::DeleteConsumerGroupResponse>(method, &request).await.expect("deleted")
    };
    group.is_left().await;
    assert_if_known(delete().await.existed, true);
    assert_if_known(delete().await.existed, false);
    let join = group.join_request("m");
    let joined = caller.pages::<stream::JoinConsumerGroupResponse>(
        Method::STREAM_JOIN_CONSUMER_GROUP,
        &join,
        1,
    );
    let failures = [
        joined.await.map(drop),
        group.try_acknowledge(&taken).await.map(drop),
        group.info().await.map(drop),
    ];
    for failure in failures.map(|one| one.expect_err("there is no such group")) {
        assert_eq!((failure.code, &*failure.reason), (5, "GROUP_NOT_FOUND"), "{failure:?}");
    }
    // Another one of this name begins anew.
    group.create(&group.request()).await;
    assert_eq!(text(&group.join("m").await.record().await), "x");
}

async fn names_of_groups_and_members<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for bad in ["", "a..b", "*", "a b", &"n".repeat(201)] {
        let group = Group::of(&stream, bad);
        assert_field(group.try_create(&group.request()).await, "NAME_INVALID", "group");
    }
    let group = Group::of(&stream, &"n".repeat(100));
    group.create(&group.request()).await;
    assert_eq!(group.join("a.member-1").await.name, "a.member-1");
    let join = group.join_request("a b");
    let method = Method::STREAM_JOIN_CONSUMER_GROUP;
    let refused = caller.pages::<stream::JoinConsumerGroupResponse>(method, &join, 1).await;
    assert_field(refused.map(drop), "NAME_INVALID", "member");
    let none = group.try_acknowledge(&[]).await;
    assert_field(none, "BATCH_EMPTY", "receipts");
    let nonsense = stream::RecordDelivery { receipt: "nonsense".to_owned(), ..Default::default() };
    let reasons = group.try_acknowledge(&[nonsense]).await.expect("answered");
    assert_eq!(reasons, ["RECEIPT_EXPIRED"]);
}

/// A group that has read and acknowledged five records of one partition, at different times.
async fn five_done<C: Client>(stream: &Stream<'_, '_, C>, group: &Group<'_, '_, C>) {
    for number in 0..5 {
        stream.append(keyed("k", &number.to_string())).await;
        stream.caller.client.advance(Duration::from_millis(20)).await;
    }
    group.create(&group.request()).await;
    let mut member = group.join("m").await;
    let taken = member.take(5).await;
    group.acknowledge(&taken).await;
    drop(member);
    group.is_left().await;
}

async fn a_group_goes_back_to_a_record<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    five_done(&stream, &group).await;
    let all = stream.all().await;
    group.seek_to_offset(vec![all[2].position.clone().unwrap()]).await.expect("moved");
    let mut member = group.join("m").await;
    let taken = member.take(3).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), ["2", "3", "4"]);
    group.acknowledge(&taken).await;
    stream.append(keyed("k", "5")).await;
    assert_eq!(text(&member.record().await), "5");
    let twice = vec![all[0].position.clone().unwrap(); 2];
    assert_field(group.seek_to_offset(twice).await, "DUPLICATE_PARTITION", "positions[1]");
    assert_field(group.seek_to_offset(Vec::new()).await, "BATCH_EMPTY", "positions");
    let missing = Group::of(&stream, "missing");
    let position = all[0].position.clone().unwrap();
    let refused = missing.seek_to_offset(vec![position]).await.expect_err("there is none");
    assert_eq!((refused.code, &*refused.reason), (5, "GROUP_NOT_FOUND"));
}

async fn a_group_goes_back_to_a_moment<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    five_done(&stream, &group).await;
    let all = stream.all().await;
    group.seek_to_timestamp(all[3].timestamp).await.expect("moved");
    let taken = group.join("m").await.take(2).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), ["3", "4"], "a moment is included");
    group.is_left().await;
    // After the last record: what comes from now on.
    let later = prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 };
    group.seek_to_timestamp(Some(later)).await.expect("moved");
    stream.append(keyed("k", "new")).await;
    assert_eq!(text(&group.join("m").await.record().await), "new");
    assert_field(group.seek_to_timestamp(None).await, "TIME_MISSING", "timestamp");
}

async fn a_group_with_members_is_not_moved<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    let group = Group::of(&stream, "g");
    five_done(&stream, &group).await;
    let member = group.join("m").await;
    let all = stream.all().await;
    let offset = group.seek_to_offset(vec![all[0].position.clone().unwrap()]).await;
    for refused in [offset, group.seek_to_timestamp(all[0].timestamp).await] {
        let refused = refused.expect_err("it is at work");
        assert_eq!((refused.code, &*refused.reason), (9, "GROUP_ACTIVE"));
    }
    drop(member);
    group.is_left().await;
    stream.append(keyed("k", "5")).await;
    assert_eq!(text(&group.join("m").await.record().await), "5", "it stands where it stood");
}

async fn a_range_is_read_again<C: Client>(caller: &Caller<'_, C>) {
    let stream = Stream::of(caller);
    for number in 0..5 {
        stream.append(keyed("k", &number.to_string())).await;
        caller.client.advance(Duration::from_millis(20)).await;
    }
    stream.append(keyed("another key", "other")).await;
    let all = stream.all().await;
    let of_key: Vec<_> = all.iter().filter(|one| one.key.as_deref() == Some("k")).collect();
    let position = |index: usize| of_key[index].position.clone().unwrap();
    let request = |start, end| {
        let (namespace, stream) = (caller.namespace(), stream.name.clone());
        let start = from(start);
        stream::ReplayRangeRequest { namespace, stream, start, end, ..Default::default() }
    };
    let replay = |request: stream::ReplayRangeRequest| async move {
        let pages: Vec<stream::ReplayRangeResponse> =
            caller.pages(Method::STREAM_REPLAY_RANGE, &request, usize::MAX).await?;
        let cursor = pages.last().map(|page| page.cursor.clone()).unwrap_or_default();
        Ok::<_, Failure>((pages.into_iter().flat_map(|page| page.records).collect(), cursor))
    };
    let earliest = || start::Start::Earliest(());
    let (records, _): (Vec<_>, _) = replay(request(earliest(), None)).await.expect("read");
    assert_eq!(records.len(), 6, "to the end, which is fixed");
    use stream::replay_range_request::End;
    let before = Some(End::Before(position(3)));
    let (records, _) =
        replay(request(start::Start::At(position(1)), before.clone())).await.unwrap();
    assert_eq!(texts(&records), ["1", "2"]);
    let since = start::Start::Since(of_key[1].timestamp.unwrap());
    let until = Some(End::Until(of_key[4].timestamp.unwrap()));
    let (records, _) = replay(request(since, until)).await.expect("read");
    assert_eq!(texts(&records), ["1", "2", "3"]);
    let limited = stream::ReplayRangeRequest { limit: 2, ..request(earliest(), before.clone()) };
    let (records, cursor) = replay(limited).await.expect("read");
    assert_eq!(texts(&records), ["0", "1"]);
    let (records, _) = replay(request(start::Start::Cursor(cursor), before)).await.expect("read");
    assert_eq!(texts(&records), ["2"]);
    let without = stream::ReplayRangeRequest { start: None, ..request(earliest(), None) };
    assert_field(replay(without).await.map(|_: (Vec<_>, _)| ()), "START_MISSING", "start");
}
