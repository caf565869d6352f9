//! `prism reader`: look at what lies in streams, queues and key-value namespaces, without moving anything.

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::catalogue::Method;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::reader::v1::source::Source as Named;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::{DecodeError, Message as _};
use serde_json::{Map, Value, json};

use super::Exit;
use super::messages::{Told, done, place, put_beside, put_bytes, read_place};
use super::output::{base64, line, printable, shown_value, text};
use super::reach::{Prepared, Reach, time};
use super::stream::ago;

const AFTER_HELP: &str = "\
Examples:
  prism reader read stream:placed                        everything that a stream keeps
  prism reader read stream:placed --since 1h --follow    the last hour, then what comes, until Ctrl-C
  prism reader read queue:mail                           look into a queue; takes nothing
  prism reader read dead-letters:mail -o json            what was given up, one JSON object a line
  prism reader read keys --key-prefix user:              keys and values
  prism reader get stream:placed 0:17                    one record by its place
  prism reader get keys greeting                         one by its key; exit code 4 when it is not there
  prism reader count stream:placed --filter 'country = \"CH\"'
  prism reader query keys --sort key                     in the order of keys
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct ReaderArgs {
    #[command(flatten)]
    reach: Reach,
    /// The namespace: a reader, or one that holds data itself.
    #[arg(short, long, global = true, default_value = "reader")]
    namespace: String,
    #[command(subcommand)]
    command: ReaderCommand,
}

#[derive(Debug, Args)]
struct Sifting {
    /// Only records whose keys start with this.
    #[arg(long, default_value = "")]
    key_prefix: String,
    /// Only records whose attributes match, such as 'country = "CH"'; `key` is a field too.
    #[arg(long, default_value = "")]
    filter: String,
}

#[derive(Debug, Subcommand)]
enum ReaderCommand {
    /// Print records, from the earliest unless told otherwise, to where the source ends now.
    Read {
        /// keys, stream:NAME, queue:NAME or dead-letters:NAME.
        #[arg(value_parser = source)]
        source: Named,
        #[command(flatten)]
        sifting: Sifting,
        /// Begin at this place, PARTITION:OFFSET, of its partition.
        #[arg(long, value_name = "PLACE", conflicts_with_all = ["since", "cursor"])]
        at: Option<String>,
        /// Begin with what was accepted in the last time, such as 10min.
        #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "cursor")]
        since: Option<Duration>,
        /// Go on where an earlier answer stood; -o json prints cursors.
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
        /// End before this place, PARTITION:OFFSET; only its partition is read.
        #[arg(long, value_name = "PLACE")]
        before: Option<String>,
        /// Only this partition; may be given several times.
        #[arg(long = "partition", value_name = "NUMBER")]
        partitions: Vec<u32>,
        /// Go on with records as they come.
        #[arg(long)]
        follow: bool,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Print one record: of keys by its key, of a stream by its place, PARTITION:OFFSET.
    Get {
        /// keys or stream:NAME.
        #[arg(value_parser = source)]
        source: Named,
        /// The key, or the place.
        which: String,
    },
    /// Count records.
    Count {
        /// keys, stream:NAME, queue:NAME or dead-letters:NAME.
        #[arg(value_parser = source)]
        source: Named,
        #[command(flatten)]
        sifting: Sifting,
        /// Stop counting at so many.
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        limit: u64,
    },
    /// Print the records that match, in an order if one is asked for.
    Query {
        /// keys.
        #[arg(value_parser = source)]
        source: Named,
        /// Only records that match, such as 'key STARTS_WITH "user:"'.
        #[arg(long, default_value = "")]
        filter: String,
        /// The order: `key`.
        #[arg(long, value_name = "FIELD")]
        sort: Option<String>,
        /// The largest first.
        #[arg(long, requires = "sort")]
        descending: bool,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
}

/// A source on the command line.
fn source(text: &str) -> Result<Named, String> {
    match text.split_once(':') {
        None if text == "keys" => Ok(Named::Keys(())),
        Some(("stream", name)) => Ok(Named::Stream(name.to_owned())),
        Some(("topic", name)) => Ok(Named::Topic(name.to_owned())),
        Some(("queue", name)) => Ok(Named::Queue(name.to_owned())),
        Some(("dead-letters", name)) => Ok(Named::DeadLetters(name.to_owned())),
        _ => Err("write keys, stream:NAME, queue:NAME or dead-letters:NAME".into()),
    }
}

pub(super) fn run(args: ReaderArgs) -> Exit {
    let prepared = prepare(&args);
    let told = match &args.command {
        ReaderCommand::Read { limit, .. } | ReaderCommand::Query { limit, .. } => {
            Told::upto(*limit)
        }
        ReaderCommand::Get { .. } => Told::some(),
        ReaderCommand::Count { .. } => Told::default(),
    };
    let reach = args.reach.clone();
    reach.call(prepared, told, move |message, told| show(&args, message, told))
}

fn prepare(args: &ReaderArgs) -> Result<Prepared, String> {
    let namespace = args.namespace.clone();
    let named = |source: &Named| Some(reader::Source { source: Some(source.clone()) });
    Ok(match &args.command {
        ReaderCommand::Read {
            source,
            sifting,
            at,
            since,
            cursor,
            before,
            partitions,
            follow,
            limit,
        } => {
            let start = match (at, since, cursor) {
                (Some(place), ..) => start::Start::At(read_place(place)?),
                (_, Some(since), _) => start::Start::Since(ago(*since)?),
                (.., Some(cursor)) => start::Start::Cursor(cursor.clone()),
                _ => start::Start::Earliest(()),
            };
            let before = before.as_deref().map(read_place).transpose()?;
            let request = reader::ReadRequest {
                namespace,
                source: named(source),
                start: Some(Start { start: Some(start) }),
                end: before.map(reader::read_request::End::Before),
                partitions: partitions.clone(),
                key_prefix: sifting.key_prefix.clone(),
                filter: sifting.filter.clone(),
                follow: *follow,
                page_size: 0,
                limit: limit.unwrap_or(0),
            };
            match follow {
                true => Prepared::endless(Method::READER_READ, &request),
                false => Prepared::new(Method::READER_READ, &request),
            }
        }
        ReaderCommand::Get { source, which } => {
            let which = match source {
                Named::Keys(()) => reader::get_request::Which::Key(which.clone()),
                _ => reader::get_request::Which::Position(read_place(which)?),
            };
            let request =
                reader::GetRequest { namespace, source: named(source), which: Some(which) };
            Prepared::new(Method::READER_GET, &request)
        }
        ReaderCommand::Count { source, sifting, limit } => {
            let request = reader::CountRequest {
                namespace,
                source: named(source),
                key_prefix: sifting.key_prefix.clone(),
                filter: sifting.filter.clone(),
                limit: *limit,
                ..Default::default()
            };
            Prepared::new(Method::READER_COUNT, &request)
        }
        ReaderCommand::Query { source, filter, sort, descending, limit } => {
            let sort = sort
                .iter()
                .map(|field| reader::SortField { field: field.clone(), descending: *descending });
            let request = reader::QueryRequest {
                namespace,
                source: named(source),
                filter: filter.clone(),
                sort: sort.collect(),
                fields: Vec::new(),
                page_size: limit.map_or(0, |limit| limit.min(1_000) as u32),
                page_token: String::new(),
            };
            Prepared::new(Method::READER_QUERY, &request)
        }
    })
}

fn show(args: &ReaderArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    let json = args.reach.json();
    Ok(match &args.command {
        ReaderCommand::Read { .. } => {
            let page = reader::ReadResponse::decode(bytes)?;
            let mut shown = Vec::new();
            for one in page.records.iter().take_while(|_| told.takes()) {
                shown.extend(record(one, json));
            }
            if json && !page.cursor.is_empty() {
                shown.extend(line(json!({ "cursor": page.cursor, "caught_up": page.caught_up })));
            }
            shown
        }
        ReaderCommand::Get { .. } => {
            let found = reader::GetResponse::decode(bytes)?.record;
            found.iter().filter(|_| told.takes()).flat_map(|one| record(one, json)).collect()
        }
        ReaderCommand::Count { .. } => {
            let reader::CountResponse { count, exact } = reader::CountResponse::decode(bytes)?;
            let word = if exact { count.to_string() } else { format!("{count} or more") };
            done(&word, json!({ "count": count, "exact": exact }), json)
        }
        ReaderCommand::Query { .. } => {
            let records = reader::QueryResponse::decode(bytes)?.records;
            let mut shown = Vec::new();
            for one in records.iter().take_while(|_| told.takes()) {
                shown.extend(record(one, json));
            }
            shown
        }
    })
}

/// A record: its place if it has one, its key and its value.
fn record(record: &reader::Record, json: bool) -> Vec<u8> {
    let at = record.position.as_ref().map(place);
    if !json {
        let at = at.map(|at| format!("{at}\t")).unwrap_or_default();
        let key = record.key.as_deref().map(printable).unwrap_or_default();
        let value = if record.deleted { "(deleted)".into() } else { shown_value(&record.value) };
        return text(&format!("{at}{key}\t{value}"));
    }
    let mut object = Map::new();
    if let Some(at) = at {
        object.insert("place".into(), at.into());
    }
    object.insert("key".into(), record.key.as_deref().into());
    put_bytes(&mut object, "value", &record.value);
    put_beside(&mut object, &record.content_type, &record.attributes);
    if record.deleted {
        object.insert("deleted".into(), true.into());
    }
    for (name, time) in [("timestamp", &record.timestamp), ("expires_at", &record.expires_at)] {
        if let Some(time) = time {
            object.insert(name.into(), time.to_string().into());
        }
    }
    if let Some(version) = &record.version {
        object.insert("version".into(), base64(version).into());
    }
    line(Value::Object(object))
}
