//! `prism pubsub`: publish events and hear them, from the command line.

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prost::{DecodeError, Message as _};
use serde_json::json;

use super::Exit;
use super::messages::{self, Told, attributes, done, outcomes};
use super::reach::{Prepared, Reach, read_value, span, time};

const AFTER_HELP: &str = "\
Examples:
  prism pubsub publish weather sunny                      to those who are subscribed
  prism pubsub subscribe weather                          what comes from now on, until Ctrl-C
  prism pubsub subscribe 'weather.*' --pattern            of all topics that match
  prism pubsub subscribe orders --filter 'total > 100'    only what matches
  prism pubsub publish orders o-1 --persistent            also to durable subscriptions that are away
  prism pubsub subscribe orders --durable billing         what is not acknowledged yet; prints receipts
  prism pubsub ack orders billing RECEIPT                 it is done; exit code 5 when the receipt is no longer good
  prism pubsub unsubscribe billing                        delete a subscription
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct PubSubArgs {
    #[command(flatten)]
    reach: Reach,
    /// The namespace.
    #[arg(short, long, global = true, default_value = "pubsub")]
    namespace: String,
    #[command(subcommand)]
    command: PubSubCommand,
}

#[derive(Debug, Subcommand)]
enum PubSubCommand {
    /// Publish an event; prints its id.
    Publish {
        topic: String,
        /// The event; `-` reads stdin.
        payload: String,
        /// Keep it for durable subscriptions.
        #[arg(long)]
        persistent: bool,
        /// Events of one key keep their order.
        #[arg(long, value_name = "KEY")]
        ordering_key: Option<String>,
        /// NAME=VALUE; may be given several times.
        #[arg(long = "attribute", value_name = "NAME=VALUE")]
        attributes: Vec<String>,
    },
    /// Print events as they come, one a line, until Ctrl-C.
    Subscribe {
        /// A topic, or a pattern with --pattern.
        topic: String,
        /// All topics that match: `*` is one token, `>` at the end is the rest.
        #[arg(long, conflicts_with_all = ["filter", "durable"])]
        pattern: bool,
        /// Only events whose attributes match, such as 'kind = "a" AND total > 100'.
        #[arg(long, value_name = "FILTER")]
        filter: Option<String>,
        /// Under a name that keeps its place; events are to be acknowledged.
        #[arg(long, value_name = "NAME")]
        durable: Option<String>,
        /// A durable subscription that is new begins with the oldest event that is kept.
        #[arg(long, requires = "durable")]
        earliest: bool,
        /// What is not acknowledged within this time comes again.
        #[arg(long, value_name = "TIME", value_parser = time, requires = "durable")]
        ack_wait: Option<Duration>,
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Events are done for a durable subscription.
    Ack {
        topic: String,
        subscription: String,
        #[arg(required = true)]
        receipts: Vec<String>,
    },
    /// Delete a subscription.
    Unsubscribe { subscription: String },
}

pub(super) fn run(args: PubSubArgs) -> Exit {
    let prepared = prepare(&args);
    let told = match &args.command {
        PubSubCommand::Subscribe { limit, .. } => Told::upto(*limit),
        _ => Told::default(),
    };
    let reach = args.reach.clone();
    reach.call(prepared, told, move |message, told| show(&args, message, told))
}

fn prepare(args: &PubSubArgs) -> Result<Prepared, String> {
    let namespace = args.namespace.clone();
    Ok(match &args.command {
        PubSubCommand::Publish { topic, payload, persistent, ordering_key, attributes: given } => {
            let message = Some(Message {
                attributes: attributes(given)?,
                ordering_key: ordering_key.clone().unwrap_or_default(),
                payload: read_value(payload, &mut std::io::stdin().lock())?,
                ..Message::default()
            });
            // The requests and answers of both have the same fields.
            let request = pubsub::PublishRequest { namespace, topic: topic.clone(), message };
            match persistent {
                true => Prepared::new(Method::PUBSUB_PUBLISH_PERSISTENT, &request),
                false => Prepared::new(Method::PUBSUB_PUBLISH, &request),
            }
        }
        PubSubCommand::Subscribe {
            topic, durable: Some(id), filter, earliest, ack_wait, ..
        } => {
            let start = earliest.then(|| Start { start: Some(start::Start::Earliest(())) });
            let request = pubsub::SubscribeDurableRequest {
                namespace,
                topic: topic.clone(),
                subscription_id: id.clone(),
                start,
                filter: filter.clone().unwrap_or_default(),
                ack_wait: ack_wait.map(span).transpose()?,
                ..Default::default()
            };
            Prepared::endless(Method::PUBSUB_SUBSCRIBE_DURABLE, &request)
        }
        PubSubCommand::Subscribe { topic, pattern: true, .. } => {
            let (pattern, subscription_id) = (topic.clone(), String::new());
            let request = pubsub::SubscribePatternRequest { namespace, pattern, subscription_id };
            Prepared::endless(Method::PUBSUB_SUBSCRIBE_PATTERN, &request)
        }
        PubSubCommand::Subscribe { topic, filter: Some(filter), .. } => {
            let request = pubsub::SubscribeFilteredRequest {
                namespace,
                topic: topic.clone(),
                filter: filter.clone(),
                subscription_id: String::new(),
            };
            Prepared::endless(Method::PUBSUB_SUBSCRIBE_FILTERED, &request)
        }
        PubSubCommand::Subscribe { topic, .. } => {
            let (topic, subscription_id) = (topic.clone(), String::new());
            let request = pubsub::SubscribeRequest { namespace, topic, subscription_id };
            Prepared::endless(Method::PUBSUB_SUBSCRIBE, &request)
        }
        PubSubCommand::Ack { topic, subscription, receipts } => {
            let request = pubsub::AcknowledgeRequest {
                namespace,
                topic: topic.clone(),
                subscription_id: subscription.clone(),
                receipts: receipts.clone(),
            };
            Prepared::new(Method::PUBSUB_ACKNOWLEDGE, &request)
        }
        PubSubCommand::Unsubscribe { subscription } => {
            let subscription_id = subscription.clone();
            let request = pubsub::UnsubscribeRequest { namespace, subscription_id };
            Prepared::new(Method::PUBSUB_UNSUBSCRIBE, &request)
        }
    })
}

fn show(args: &PubSubArgs, bytes: &[u8], told: &mut Told) -> Result<Vec<u8>, DecodeError> {
    let json = args.reach.json();
    Ok(match &args.command {
        PubSubCommand::Publish { .. } => {
            let id = pubsub::PublishResponse::decode(bytes)?.message_id;
            done(&id, json!({ "id": id }), json)
        }
        PubSubCommand::Subscribe { .. } => {
            // The messages of all kinds of subscriptions look the same.
            use pubsub::subscribe_response::Event;
            match pubsub::SubscribeResponse::decode(bytes)?.event {
                Some(Event::Delivery(event)) if told.takes() => {
                    let delivery = event.delivery.unwrap_or_default();
                    messages::delivery(&delivery, Some(&event.topic), json)
                }
                _ => Vec::new(),
            }
        }
        PubSubCommand::Ack { receipts, .. } => {
            let results = pubsub::AcknowledgeResponse::decode(bytes)?.results;
            let statuses = results.iter().map(|result| result.status.as_ref());
            outcomes(receipts, statuses, ("done", json), told)
        }
        PubSubCommand::Unsubscribe { .. } => {
            let existed = pubsub::UnsubscribeResponse::decode(bytes)?.existed;
            done("unsubscribed", json!({ "existed": existed }), json)
        }
    })
}
