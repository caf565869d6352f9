//! What the requests of ReaderService ask for, checked.

use prism_proto::catalogue::{Interface, Interfaces};
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::reader::v1::source::Source as Named;
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prism_proto::view::protobuf::Timestamp;
use prost::Message as _;

use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::limits::{
    CURSOR_BYTES_MAX, OFFSET_BYTES_MAX, PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX, PARTITIONS_MAX,
    PREFIX_BYTES_MAX, check_key, timestamp_ms,
};
use crate::topic::check_name;

/// What is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Of {
    Keys,
    Stream(String),
    Queue { name: String, dead: bool },
}

/// Where a read ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// Where the source ends, or never.
    Natural,
    /// Before the first record of each partition that is not older, µs since the epoch.
    Until(u64),
    /// Before this record.
    Before(Position),
}

/// A read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) of: Of,
    pub(super) start: Start,
    pub(super) end: End,
    pub(super) partitions: Vec<u32>,
    pub(super) key_prefix: String,
    pub(super) filter: Filter,
    pub(super) follow: bool,
    pub(super) page_size: usize,
    /// 0: no limit.
    pub(super) limit: u64,
}

/// One record.
pub(super) enum Which {
    Key(String),
    /// A stream, and the place in it.
    Place(String, Position),
}

/// A count.
pub(super) struct Counting {
    pub(super) read: Read,
    pub(super) limit: u64,
}

/// INVALID_ARGUMENT: the bytes are not the message that they should be.
#[cold]
pub(super) fn malformed(error: prost::DecodeError) -> Error {
    let message = format!("the request is not a valid message: {error}");
    Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", message)
}

#[cold]
pub(super) fn source_missing() -> Error {
    Error::field("SOURCE_MISSING", "source", "must say what to read: keys, stream, queue, …")
}

/// The refusal of a source that the namespace does not have.
#[cold]
pub(super) fn not_readable(backend: &str, what: &str) -> Error {
    let on = if backend.is_empty() { String::new() } else { format!(" on {backend}") };
    let message = format!(
        "{what} cannot be read here{on}: name a source of this namespace's model, or another namespace"
    );
    Error::new(Kind::Unimplemented, "SOURCE_NOT_OFFERED", message)
}

pub(super) fn check_source(
    source: Option<reader::Source>,
    keys: Interface,
    offered: Interfaces,
) -> Result<Of, Error> {
    let source = source.and_then(|source| source.source).ok_or_else(source_missing)?;
    let (of, needs, what) = match source {
        Named::Keys(()) => (Of::Keys, keys, "keys and values"),
        Named::Stream(name) => {
            check_name("source.stream", &name)?;
            (Of::Stream(name), Interface::StreamBasic, "a stream")
        }
        Named::Queue(name) => {
            check_name("source.queue", &name)?;
            (Of::Queue { name, dead: false }, Interface::QueueBasic, "a queue")
        }
        Named::DeadLetters(name) => {
            check_name("source.dead_letters", &name)?;
            let of = Of::Queue { name, dead: true };
            (of, Interface::QueueDeadLetter, "a queue's dead letters")
        }
        Named::Topic(_) => return Err(not_readable("", "a topic")),
        Named::Collection(_) => return Err(not_readable("", "a collection")),
        Named::Series(_) => return Err(not_readable("", "a series")),
    };
    if offered.contains(needs) { Ok(of) } else { Err(not_readable("", what)) }
}

fn check_position(field: &str, position: &Position) -> Result<(), Error> {
    if (1..=OFFSET_BYTES_MAX).contains(&position.offset.len()) {
        return Ok(());
    }
    let expected = format!("must be an offset as it was told, 1 to {OFFSET_BYTES_MAX} bytes");
    Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected))
}

fn moment_us(field: &str, time: &prost_types::Timestamp) -> Result<u64, Error> {
    let time = Timestamp { seconds: time.seconds, nanos: time.nanos };
    timestamp_ms(field, &time).map(|ms| ms * 1000)
}

/// Stored state and queues have no places to begin at but the first, and where a cursor stands.
fn check_start(of: &Of, start: &Start) -> Result<(), Error> {
    let only_first = |ok: bool| match ok || matches!(of, Of::Stream(_)) {
        true => Ok(()),
        false => {
            let expected = "must be earliest or a cursor: what is read has no positions";
            Err(Error::field("START_INVALID", "start", expected))
        }
    };
    match &start.start {
        None => Err(Error::field("START_MISSING", "start", "must be given")),
        Some(start::Start::Earliest(())) => Ok(()),
        Some(start::Start::Cursor(cursor)) if cursor.len() <= CURSOR_BYTES_MAX => Ok(()),
        Some(start::Start::Cursor(_)) => {
            let expected = "must be a cursor as it was told";
            Err(Error::field("CURSOR_INVALID", "start.cursor", expected))
        }
        Some(start::Start::Latest(())) => only_first(false),
        Some(start::Start::Since(time)) => {
            moment_us("start.since", time).and_then(|_| only_first(false))
        }
        Some(start::Start::At(position)) => {
            check_position("start.at", position).and_then(|()| only_first(false))
        }
        Some(start::Start::After(position)) => {
            check_position("start.after", position).and_then(|()| only_first(false))
        }
    }
}

pub(super) fn check_filter(text: &str) -> Result<Filter, Error> {
    Filter::parse(text).map_err(|what| Error::field("FILTER_INVALID", "filter", what))
}

fn check_prefix(prefix: &str) -> Result<(), Error> {
    if prefix.len() <= PREFIX_BYTES_MAX {
        return Ok(());
    }
    let expected = format!("has {} bytes, at most {PREFIX_BYTES_MAX} are allowed", prefix.len());
    Err(Error::field("PREFIX_INVALID", "key_prefix", expected))
}

/// What a filter over keys demands of their beginning, no longer than a scan may ask for.
pub(super) fn key_prefix(filter: &Filter) -> &str {
    let prefix = filter.prefix_of("key");
    &prefix[..prefix.floor_char_boundary(PREFIX_BYTES_MAX)]
}

fn longer<'a>(one: &'a str, other: &'a str) -> &'a str {
    if one.len() < other.len() { other } else { one }
}

/// Records on a page.
pub(super) fn page_size(asked: u32) -> usize {
    match asked as usize {
        0 => PAGE_ENTRIES_DEFAULT,
        asked => asked.min(PAGE_ENTRIES_MAX),
    }
}

enum EndAsked {
    Until(prost_types::Timestamp),
    Before(Position),
}

fn check_end(of: &Of, asked: Option<EndAsked>) -> Result<End, Error> {
    let end = match asked {
        None => return Ok(End::Natural),
        Some(EndAsked::Until(time)) => End::Until(moment_us("until", &time)?),
        Some(EndAsked::Before(position)) => {
            check_position("before", &position)?;
            End::Before(position)
        }
    };
    if matches!(of, Of::Stream(_)) {
        return Ok(end);
    }
    let field = if matches!(end, End::Until(_)) { "until" } else { "before" };
    Err(Error::field("END_INVALID", field, "must be left out: what is read has no positions"))
}

impl Read {
    pub(super) fn new(request: &[u8], offered: Interfaces) -> Result<Read, Error> {
        let asked = reader::ReadRequest::decode(request).map_err(malformed)?;
        let of = check_source(asked.source, Interface::KeyValueScan, offered)?;
        let start = asked.start.unwrap_or_default();
        check_start(&of, &start)?;
        check_prefix(&asked.key_prefix)?;
        if asked.follow && !matches!(of, Of::Stream(_)) {
            let message = "following stored state needs the capture of its changes, which this namespace's plan does not \
                           have: read it again, or follow a stream";
            return Err(Error::new(Kind::Unimplemented, "FOLLOW_NOT_OFFERED", message));
        }
        let end = check_end(
            &of,
            asked.end.map(|end| match end {
                reader::read_request::End::Until(time) => EndAsked::Until(time),
                reader::read_request::End::Before(position) => EndAsked::Before(position),
            }),
        )?;
        let read = Read {
            filter: check_filter(&asked.filter)?,
            partitions: asked.partitions,
            key_prefix: asked.key_prefix,
            follow: asked.follow,
            page_size: page_size(asked.page_size),
            limit: asked.limit,
            of,
            start,
            end,
        };
        read.of_one_partition()
    }

    /// With the partitions that it is about.
    fn of_one_partition(mut self) -> Result<Read, Error> {
        let field =
            |expected: String| Err(Error::field("PARTITION_INVALID", "partitions", expected));
        if self.partitions.len() > PARTITIONS_MAX {
            return field(format!("has more than {PARTITIONS_MAX} items"));
        }
        if !matches!(self.of, Of::Stream(_)) && self.partitions.iter().any(|of| *of != 0) {
            return field("must be empty: there is one partition, 0".to_owned());
        }
        if let End::Before(position) = &self.end {
            if !self.partitions.is_empty() && !self.partitions.contains(&position.partition) {
                return field("must be empty or hold that of `before`".to_owned());
            }
            self.partitions = vec![position.partition];
        }
        Ok(self)
    }

    /// Whether every record that the backend hands over is wanted.
    pub(super) fn takes_all(&self) -> bool {
        self.key_prefix.is_empty() && self.filter.is_empty() && self.end == End::Natural
    }

    /// What the keys of all wanted records begin with, so that a backend need not bring others.
    pub(super) fn scan_prefix(&self) -> &str {
        longer(&self.key_prefix, key_prefix(&self.filter))
    }

    /// Whether a record is wanted.
    pub(super) fn takes(&self, record: &reader::Record) -> bool {
        let key = record.key.as_deref();
        if !self.key_prefix.is_empty() && !key.is_some_and(|key| key.starts_with(&self.key_prefix))
        {
            return false;
        }
        self.filter.matches(|name| match record.attributes.get(name) {
            Some(value) => Some(value.as_str()),
            None if name == "key" => key,
            None if name == "content_type" => Some(record.content_type.as_str()),
            None => None,
        })
    }
}

impl Which {
    pub(super) fn new(request: &[u8], offered: Interfaces) -> Result<Which, Error> {
        let asked = reader::GetRequest::decode(request).map_err(malformed)?;
        let of = check_source(asked.source, Interface::KeyValueBasic, offered)?;
        let which = asked.which.ok_or_else(|| {
            Error::field("WHICH_MISSING", "which", "must be given: key or position")
        })?;
        match (of, which) {
            (Of::Keys, reader::get_request::Which::Key(key)) => {
                check_key("key", &key)?;
                Ok(Which::Key(key))
            }
            (Of::Stream(name), reader::get_request::Which::Position(position)) => {
                check_position("position", &position)?;
                Ok(Which::Place(name, position))
            }
            (Of::Queue { .. }, _) => Err(not_readable("", "a single message of a queue")),
            (Of::Keys, _) => {
                Err(Error::field("WHICH_INVALID", "position", "keys are got by their key"))
            }
            (Of::Stream(_), _) => {
                Err(Error::field("WHICH_INVALID", "key", "records of a stream are got by position"))
            }
        }
    }
}

impl Counting {
    pub(super) fn new(request: &[u8], offered: Interfaces) -> Result<Counting, Error> {
        let asked = reader::CountRequest::decode(request).map_err(malformed)?;
        let of = check_source(asked.source, Interface::KeyValueScan, offered)?;
        let start = match asked.start {
            Some(start) if start.start.is_some() => start,
            _ => Start { start: Some(start::Start::Earliest(())) },
        };
        check_start(&of, &start)?;
        check_prefix(&asked.key_prefix)?;
        let end = check_end(
            &of,
            asked.end.map(|end| match end {
                reader::count_request::End::Until(time) => EndAsked::Until(time),
                reader::count_request::End::Before(position) => EndAsked::Before(position),
            }),
        )?;
        let read = Read {
            filter: check_filter(&asked.filter)?,
            partitions: Vec::new(),
            key_prefix: asked.key_prefix,
            follow: false,
            page_size: PAGE_ENTRIES_MAX,
            limit: 0,
            of,
            start,
            end,
        };
        Ok(Counting { read: read.of_one_partition()?, limit: asked.limit })
    }
}
