//! `prism stream`: append and read records, and work in consumer groups, from the command line.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::{DecodeError, Message as _};
use serde_json::{Map, Value, json};

use super::Exit;
use super::messages::{Told, attributes, done, outcomes, place, put_beside, put_bytes, read_place};
use super::output::{line, printable, shown_value, text};
use super::reach::{Prepared, Reach, read_value, span, time};

const AFTER_HELP: &str = "\
Examples:
  prism stream append placed '{\"id\": 1}' --key o-1       append a record; prints its place
  prism stream read placed                               everything that is kept
  prism stream read placed --since 1h -o json            the last hour, one JSON object a line
  prism stream follow placed                             what comes from now on, until Ctrl-C
  prism stream create-group placed billing               a group of consumers, from the beginning
  prism stream join placed billing                       take part: receipt, place and value of each record
  prism stream ack placed billing RECEIPT                it is done; exit code 5 when the receipt is no longer good
  prism stream seek placed billing --since 2h            go back; only while nobody takes part
  prism stream group placed billing                      how far it is
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct StreamArgs {
    #[command(flatten)]
    reach: Reach,
    /// The namespace.
    #[arg(short, long, global = true, default_value = "stream")]
    namespace: String,
    #[command(subcommand)]
    command: StreamCommand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sharing {
    /// Each partition has one member at a time.
    Partition,
    /// Any record may go to any member.
    Record,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Begin {
    /// At this place, PARTITION:OFFSET, of its partition.
    #[arg(long, value_name = "PLACE")]
    at: Option<String>,
    /// With what was appended in the last time, such as 10min.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Duration>,
    /// With what comes from now on.
    #[arg(long)]
    latest: bool,
}

#[derive(Debug, Subcommand)]
enum StreamCommand {
    /// Append a record; prints its place, PARTITION:OFFSET.
    Append {
        stream: String,
        /// The value; `-` reads stdin.
        value: String,
        /// Records of one key keep their order.
        #[arg(long)]
        key: Option<String>,
        /// NAME=VALUE; may be given several times.
        #[arg(long = "attribute", value_name = "NAME=VALUE")]
        attributes: Vec<String>,
    },
    /// Print records, from the earliest unless told otherwise, to where the stream ends now.
    Read {
        stream: String,
        #[command(flatten)]
        begin: Begin,
        /// Only this partition; may be given several times.
        #[arg(long = "partition", value_name = "NUMBER")]
        partitions: Vec<u32>,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Print records as they come, from now on unless told otherwise.
    Follow {
        stream: String,
        #[command(flatten)]
        begin: Begin,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Print the newest place of each partition.
    Latest { stream: String },
    /// Create a group of consumers, at the beginning unless told otherwise.
    CreateGroup {
        stream: String,
        group: String,
        #[command(flatten)]
        begin: Begin,
        /// How members share the records.
        #[arg(long, value_enum)]
        sharing: Option<Sharing>,
        /// What is not acknowledged within this time comes again.
        #[arg(long, value_name = "TIME", value_parser = time)]
        ack_wait: Option<Duration>,
    },
    /// Delete a group and what it has acknowledged.
    DeleteGroup { stream: String, group: String },
    /// Show a group: its members, and how far it is.
    Group { stream: String, group: String },
    /// Take part in a group: print receipt, place and value of each record.
    Join {
        stream: String,
        group: String,
        /// A name for this member.
        #[arg(long, default_value = "")]
        member: String,
        /// Stop after so many records.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Records are done for a group.
    Ack {
        stream: String,
        group: String,
        #[arg(required = true)]
        receipts: Vec<String>,
    },
    /// Move a group that has no members.
    Seek {
        stream: String,
        group: String,
        /// To these places, PARTITION:OFFSET.
        #[arg(required_unless_present = "since", conflicts_with = "since")]
        places: Vec<String>,
        /// To what was appended in the last time, such as 2h.
        #[arg(long, value_name = "TIME", value_parser = time)]
        since: Option<Duration>,
    },
}

pub(super) fn run(args: StreamArgs) -> Exit {
    let prepared = prepare(&args);
    let told = match &args.command {
        StreamCommand::Read { limit, .. }
        | StreamCommand::Follow { limit, .. }
        | StreamCommand::Join { limit, .. } => Told::upto(*limit),
        _ => Told::default(),
    };
    let reach = args.reach.clone();
    reach.call(prepared, told, move |message, told| show(&args, message, told))
}

fn prepare(args: &StreamArgs) -> Result<Prepared, String> {
    let namespace = args.namespace.clone();
    Ok(match &args.command {
        StreamCommand::Append { stream, value, key, attributes: given } => {
            let record = Some(stream::NewRecord {
                key: key.clone(),
                attributes: attributes(given)?,
                value: read_value(value, &mut std::io::stdin().lock())?,
                ..Default::default()
            });
            let (stream, expected_last) = (stream.clone(), None);
            let request = stream::AppendRequest { namespace, stream, expected_last, record };
            Prepared::new(Method::STREAM_APPEND, &request)
        }
        StreamCommand::Read { stream, begin, partitions, limit } => {
            let request = stream::ReadRequest {
                namespace,
                stream: stream.clone(),
                start: Some(begin.start(start::Start::Earliest(()))?),
                partitions: partitions.clone(),
                follow: false,
                limit: limit.unwrap_or(0),
            };
            Prepared::new(Method::STREAM_READ, &request)
        }
        StreamCommand::Follow { stream, begin, limit } => {
            let request = stream::ReadRequest {
                namespace,
                stream: stream.clone(),
                start: Some(begin.start(start::Start::Latest(()))?),
                follow: true,
                limit: limit.unwrap_or(0),
                ..Default::default()
            };
            Prepared::endless(Method::STREAM_READ, &request)
        }
        StreamCommand::Latest { stream } => {
            let request = stream::GetLatestOffsetRequest { namespace, stream: stream.clone() };
            Prepared::new(Method::STREAM_GET_LATEST_OFFSET, &request)
        }
        StreamCommand::CreateGroup { stream, group, begin, sharing, ack_wait } => {
            let sharing = match sharing {
                None => stream::Sharing::Unspecified,
                Some(Sharing::Partition) => stream::Sharing::ByPartition,
                Some(Sharing::Record) => stream::Sharing::ByRecord,
            };
            let request = stream::CreateConsumerGroupRequest {
                namespace,
                stream: stream.clone(),
                group: group.clone(),
                start: Some(begin.start(start::Start::Earliest(()))?),
                sharing: sharing.into(),
                ack_wait: ack_wait.map(span).transpose()?,
                max_in_flight: 0,
            };
            Prepared::new(Method::STREAM_CREATE_CONSUMER_GROUP, &request)
        }
        StreamCommand::DeleteGroup { stream, group } => {
            let (stream, group) = (stream.clone(), group.clone());
            let request = stream::DeleteConsumerGroupRequest { namespace, stream, group };
            Prepared::new(Method::STREAM_DELETE_CONSUMER_GROUP, &request)
        }
        StreamCommand::Group { stream, group } => {
            let (stream, group) = (stream.clone(), group.clone());
            let request = stream::GetConsumerGroupInfoRequest { namespace, stream, group };
            Prepared::new(Method::STREAM_GET_CONSUMER_GROUP_INFO, &request)
        }
        StreamCommand::Join { stream, group, member, .. } => {
            let (stream, group, member) = (stream.clone(), group.clone(), member.clone());
            let request = stream::JoinConsumerGroupRequest { namespace, stream, group, member };
            Prepared::endless(Method::STREAM_JOIN_CONSUMER_GROUP, &request)
        }
        StreamCommand::Ack { stream, group, receipts } => {
            let (stream, group, receipts) = (stream.clone(), group.clone(), receipts.clone());
            let request = stream::AcknowledgeRequest { namespace, stream, group, receipts };
            Prepared::new(Method::STREAM_ACKNOWLEDGE, &request)
        }
        StreamCommand::Seek { stream, group, places, since } => {
            let (stream, group) = (stream.clone(), group.clone());
            if let Some(since) = since {
                let timestamp = Some(ago(*since)?);
                let request =
                    stream::SeekToTimestampRequest { namespace, stream, group, timestamp };
                return Ok(Prepared::new(Method::STREAM_SEEK_TO_TIMESTAMP, &request));
            }
            let positions = places.iter().map(|place| read_place(place));
            let positions = positions.collect::<Result<_, _>>()?;
            let request = stream::SeekToOffsetRequest { namespace, stream, group, positions };
            Prepared::new(Method::STREAM_SEEK_TO_OFFSET, &request)
        }
    })
}

impl Begin {
    fn start(&self, otherwise: start::Start) -> Result<Start, String> {
        let start = match self {
            Begin { at: Some(place), .. } => start::Start::At(read_place(place)?),
            Begin { since: Some(since), .. } => start::Start::Since(ago(*since)?),
            Begin { latest: true, .. } => start::Start::Latest(()),
            _ => otherwise,
        };
        Ok(Start { start: Some(start) })
    }
}

/// The moment so long ago, to the millisecond.
pub(super) fn ago(span: Duration) -> Result<prost_types::Timestamp, String> {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let at = since.checked_sub(span).ok_or("that is before 1970")?;
    let nanos = at.subsec_millis() as i32 * 1_000_000;
    Ok(prost_types::Timestamp { seconds: at.as_secs() as i64, nanos })
}

fn show(args: &StreamArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    let json = args.reach.json();
    Ok(match &args.command {
        StreamCommand::Append { .. } => {
            let place = stream::AppendResponse::decode(bytes)?.position.as_ref().map(place);
            let word = place.clone().unwrap_or_else(|| "appended".to_string());
            done(&word, json!({ "place": place }), json)
        }
        StreamCommand::Read { .. } | StreamCommand::Follow { .. } => {
            let records = stream::ReadResponse::decode(bytes)?.records;
            let mut shown = Vec::new();
            for one in records.iter().take_while(|_| told.takes()) {
                shown.extend(record(one, None, json));
            }
            shown
        }
        StreamCommand::Latest { .. } => {
            let positions = stream::GetLatestOffsetResponse::decode(bytes)?.positions;
            let show = |one| done(&place(one), json!({ "place": place(one) }), json);
            positions.iter().flat_map(show).collect()
        }
        StreamCommand::CreateGroup { .. } => {
            let sharing = stream::CreateConsumerGroupResponse::decode(bytes)?.sharing();
            done("created", json!({ "sharing": sharing.as_str_name() }), json)
        }
        StreamCommand::DeleteGroup { .. } => {
            let existed = stream::DeleteConsumerGroupResponse::decode(bytes)?.existed;
            let word = if existed == Some(false) { "there was no such group" } else { "deleted" };
            done(word, json!({ "existed": existed }), json)
        }
        StreamCommand::Group { .. } => {
            group(&stream::GetConsumerGroupInfoResponse::decode(bytes)?, json)
        }
        StreamCommand::Join { .. } => {
            match stream::JoinConsumerGroupResponse::decode(bytes)?.event {
                Some(Event::Record(delivery)) if told.takes() => {
                    record(&delivery.record.clone().unwrap_or_default(), Some(&delivery), json)
                }
                _ => Vec::new(),
            }
        }
        StreamCommand::Ack { receipts, .. } => {
            let results = stream::AcknowledgeResponse::decode(bytes)?.results;
            let statuses = results.iter().map(|result| result.status.as_ref());
            outcomes(receipts, statuses, ("done", json), told)
        }
        StreamCommand::Seek { .. } => done("moved", json!({ "moved": true }), json),
    })
}

/// A record: its receipt if it is a delivery, its place, its key and its value.
fn record(
    record: &stream::StreamRecord,
    delivery: Option<&stream::RecordDelivery>,
    json: bool,
) -> Vec<u8> {
    let at = record.position.as_ref().map(place).unwrap_or_default();
    if !json {
        let receipt = delivery.map(|one| format!("{}\t", printable(&one.receipt)));
        let key = record.key.as_deref().map(printable).unwrap_or_default();
        let value = if record.tombstone { "(deleted)".into() } else { shown_value(&record.value) };
        return text(&format!("{}{at}\t{key}\t{value}", receipt.unwrap_or_default()));
    }
    let mut object = Map::from_iter([("place".into(), Value::from(at))]);
    object.insert("key".into(), record.key.as_deref().into());
    put_bytes(&mut object, "value", &record.value);
    put_beside(&mut object, &record.content_type, &record.attributes);
    if record.tombstone {
        object.insert("tombstone".into(), true.into());
    }
    object.insert("timestamp".into(), record.timestamp.map(|time| time.to_string()).into());
    if let Some(delivery) = delivery {
        object.insert("receipt".into(), delivery.receipt.as_str().into());
        object.insert("attempt".into(), delivery.attempt.into());
    }
    line(Value::Object(object))
}

fn group(info: &stream::GetConsumerGroupInfoResponse, json: bool) -> Vec<u8> {
    if json {
        let members = info.members.iter();
        let members: Vec<_> = members
            .map(|one| json!({ "member": one.member, "partitions": one.partitions }))
            .collect();
        let progress = info.progress.iter();
        let progress: Vec<_> = progress
            .map(|one| {
                json!({ "partition": one.partition, "acknowledged": one.acknowledged, "lag": one.lag })
            })
            .collect();
        return line(json!({
            "sharing": info.sharing().as_str_name(),
            "generation": info.generation,
            "members": members,
            "progress": progress,
        }));
    }
    let mut shown = text(&format!("generation {}", info.generation));
    for member in &info.members {
        let partitions: Vec<_> = member.partitions.iter().map(u32::to_string).collect();
        let partitions = partitions.join(", ");
        shown.extend(text(&format!("member\t{}\t{partitions}", printable(&member.member))));
    }
    for one in &info.progress {
        let acknowledged = one.acknowledged.as_deref().unwrap_or("nothing yet");
        let lag = one.lag.map_or("unknown".to_string(), |lag| lag.to_string());
        let partition = one.partition;
        shown.extend(text(&format!("partition {partition}\t{acknowledged}\tlag {lag}")));
    }
    shown
}
