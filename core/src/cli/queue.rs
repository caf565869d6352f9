//! `prism queue`: send, receive and settle messages from the command line.

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::r#type::v1::{Message, message::DeliveryTime};
use prost::{DecodeError, Message as _};
use serde_json::{Value, json};

use super::Exit;
use super::messages::{self, Told, attributes, done, message_map, outcomes};
use super::output::{line, printable, shown_value, text};
use super::reach::{Prepared, Reach, read_value, span, time};

const AFTER_HELP: &str = "\
Examples:
  prism queue send mail hello                       send a message
  prism queue send mail - < letter.txt              send what stdin holds
  prism queue send mail later --delay 10min         not to be received before
  prism queue send mail urgent --priority 9         before others
  prism queue receive mail --wait 20s               wait for one; exit code 4 when there was none
  prism queue receive mail -o json                  with its id, attempt and attributes
  prism queue ack mail RECEIPT                      it is done; exit code 5 when the receipt is no longer good
  prism queue release mail RECEIPT --delay 1min     give it back
  prism queue dead-letters mail                     what was given up
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct QueueArgs {
    #[command(flatten)]
    reach: Reach,
    /// The namespace.
    #[arg(short, long, global = true, default_value = "queue")]
    namespace: String,
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Send a message; prints its id.
    Send {
        queue: String,
        /// The message; `-` reads stdin.
        payload: String,
        /// Not to be received before this time has passed, such as 10min.
        #[arg(long, value_name = "TIME", value_parser = time)]
        delay: Option<Duration>,
        /// 0 to 9; higher comes first.
        #[arg(long)]
        priority: Option<u32>,
        /// Messages of one key are received one after the other, in their order.
        #[arg(long, value_name = "KEY")]
        ordering_key: Option<String>,
        /// NAME=VALUE; may be given several times.
        #[arg(long = "attribute", value_name = "NAME=VALUE")]
        attributes: Vec<String>,
    },
    /// Receive messages: receipt and payload, one a line.
    Receive {
        queue: String,
        /// So many at most.
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        max: u32,
        /// Wait so long for the first.
        #[arg(long, value_name = "TIME", value_parser = time)]
        wait: Option<Duration>,
        /// Nobody else receives them for so long.
        #[arg(long, value_name = "TIME", value_parser = time)]
        lease: Option<Duration>,
    },
    /// Messages are done: remove them.
    Ack {
        queue: String,
        #[arg(required = true)]
        receipts: Vec<String>,
    },
    /// Messages cannot be done: make dead letters of them.
    Reject {
        queue: String,
        #[arg(required = true)]
        receipts: Vec<String>,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Give a message back, to be received again.
    Release {
        queue: String,
        receipt: String,
        /// Not before this time has passed.
        #[arg(long, value_name = "TIME", value_parser = time)]
        delay: Option<Duration>,
    },
    /// Keep a message for so long from now on.
    Extend {
        queue: String,
        receipt: String,
        #[arg(value_name = "TIME", value_parser = time)]
        lease: Duration,
    },
    /// Show the messages that were given up, and why.
    DeadLetters {
        queue: String,
        /// So many at most.
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        limit: u32,
    },
    /// Put dead letters back into their queue.
    Redrive {
        queue: String,
        /// These; without any, all.
        message_ids: Vec<String>,
    },
    /// Count the messages that wait for their time.
    Scheduled { queue: String },
}

pub(super) fn run(args: QueueArgs) -> Exit {
    let prepared = prepare(&args);
    let told = match &args.command {
        QueueCommand::Receive { .. } => Told::some(),
        _ => Told::default(),
    };
    let reach = args.reach.clone();
    reach.call(prepared, told, move |message, told| show(&args, message, told))
}

fn prepare(args: &QueueArgs) -> Result<Prepared, String> {
    let namespace = args.namespace.clone();
    Ok(match &args.command {
        QueueCommand::Send { queue, payload, delay, priority, ordering_key, attributes: given } => {
            let message = Some(Message {
                attributes: attributes(given)?,
                ordering_key: ordering_key.clone().unwrap_or_default(),
                priority: *priority,
                delivery_time: delay.map(span).transpose()?.map(DeliveryTime::Delay),
                payload: read_value(payload, &mut std::io::stdin().lock())?,
                ..Message::default()
            });
            let request = queue::SendRequest { namespace, queue: queue.clone(), message };
            Prepared::new(Method::QUEUE_SEND, &request)
        }
        QueueCommand::Receive { queue, max, wait, lease } => {
            let request = queue::ReceiveRequest {
                namespace,
                queue: queue.clone(),
                max_messages: *max,
                wait: wait.map(span).transpose()?,
                visibility_timeout: lease.map(span).transpose()?,
            };
            Prepared::new(Method::QUEUE_RECEIVE, &request)
        }
        QueueCommand::Ack { queue, receipts } => {
            let (queue, receipts) = (queue.clone(), receipts.clone());
            let request = queue::AcknowledgeRequest { namespace, queue, receipts };
            Prepared::new(Method::QUEUE_ACKNOWLEDGE, &request)
        }
        QueueCommand::Reject { queue, receipts, reason } => {
            let (queue, receipts, reason) = (queue.clone(), receipts.clone(), reason.clone());
            let request = queue::RejectRequest { namespace, queue, receipts, reason };
            Prepared::new(Method::QUEUE_REJECT, &request)
        }
        QueueCommand::Release { queue, receipt, delay } => {
            let (queue, receipt) = (queue.clone(), receipt.clone());
            let delay = delay.map(span).transpose()?;
            let request = queue::ReleaseRequest { namespace, queue, receipt, delay };
            Prepared::new(Method::QUEUE_RELEASE, &request)
        }
        QueueCommand::Extend { queue, receipt, lease } => {
            let (queue, receipt) = (queue.clone(), receipt.clone());
            let visibility_timeout = Some(span(*lease)?);
            let request =
                queue::ExtendVisibilityRequest { namespace, queue, receipt, visibility_timeout };
            Prepared::new(Method::QUEUE_EXTEND_VISIBILITY, &request)
        }
        QueueCommand::DeadLetters { queue, limit } => {
            let (queue, page_token) = (queue.clone(), String::new());
            let request =
                queue::ListDeadLettersRequest { namespace, queue, page_size: *limit, page_token };
            Prepared::new(Method::QUEUE_LIST_DEAD_LETTERS, &request)
        }
        QueueCommand::Redrive { queue, message_ids } => {
            let (queue, message_ids) = (queue.clone(), message_ids.clone());
            let request = queue::RedriveRequest { namespace, queue, message_ids, limit: 0 };
            Prepared::new(Method::QUEUE_REDRIVE, &request)
        }
        QueueCommand::Scheduled { queue } => {
            let request = queue::GetScheduledCountRequest { namespace, queue: queue.clone() };
            Prepared::new(Method::QUEUE_GET_SCHEDULED_COUNT, &request)
        }
    })
}

fn show(args: &QueueArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    let json = args.reach.json();
    Ok(match &args.command {
        QueueCommand::Send { .. } => {
            let id = queue::SendResponse::decode(bytes)?.message_id;
            done(&id, json!({ "id": id }), json)
        }
        QueueCommand::Receive { .. } => {
            let deliveries = queue::ReceiveResponse::decode(bytes)?.deliveries;
            told.results += deliveries.len() as u64;
            deliveries.iter().flat_map(|one| messages::delivery(one, None, json)).collect()
        }
        QueueCommand::Ack { receipts, .. } => {
            let results = queue::AcknowledgeResponse::decode(bytes)?.results;
            let statuses = results.iter().map(|result| result.status.as_ref());
            outcomes(receipts, statuses, ("done", json), told)
        }
        QueueCommand::Reject { receipts, .. } => {
            let results = queue::RejectResponse::decode(bytes)?.results;
            let statuses = results.iter().map(|result| result.status.as_ref());
            outcomes(receipts, statuses, ("rejected", json), told)
        }
        QueueCommand::Release { .. } => done("released", json!({ "released": true }), json),
        QueueCommand::Extend { .. } => {
            let until = queue::ExtendVisibilityResponse::decode(bytes)?.lease_expires_at;
            let until = until.map(|time| time.to_string());
            let word = until.clone().unwrap_or_default();
            done(&word, json!({ "lease_expires_at": until }), json)
        }
        QueueCommand::DeadLetters { .. } => {
            let letters = queue::ListDeadLettersResponse::decode(bytes)?.dead_letters;
            letters.iter().flat_map(|letter| dead_letter(letter, json)).collect()
        }
        QueueCommand::Redrive { .. } => {
            let redriven = queue::RedriveResponse::decode(bytes)?.redriven;
            done(&redriven.to_string(), json!({ "redriven": redriven }), json)
        }
        QueueCommand::Scheduled { .. } => {
            let count = queue::GetScheduledCountResponse::decode(bytes)?.count;
            done(&count.to_string(), json!({ "count": count }), json)
        }
    })
}

fn dead_letter(letter: &queue::DeadLetter, json: bool) -> Vec<u8> {
    let message = letter.message.clone().unwrap_or_default();
    if !json {
        let (id, reason) = (printable(&message.id), printable(&letter.reason));
        return text(&format!("{id}\t{reason}\t{}", shown_value(&message.payload)));
    }
    let mut object = message_map(&message);
    object.insert("reason".into(), letter.reason.as_str().into());
    object.insert("attempts".into(), letter.attempts.into());
    object.insert("dead_at".into(), letter.dead_at.map(|time| time.to_string()).into());
    line(Value::Object(object))
}
