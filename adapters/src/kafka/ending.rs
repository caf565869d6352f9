//! The end of a namespace in Kafka: its topics are deleted, and its lane's cell after them.
//!
//! Its topics are those whose names begin with `<namespace>.` (no namespace has a dot in its name), and what Prism keeps beside them, in
//! `_prism.<kind>.<namespace>` and `_prism.<kind>.<namespace>.<partition>`.
//! Kafka deletes in its own time what it has agreed to delete: the end is when no broker tells of it any more.

use super::Kafka;
use super::cluster::Cluster;
use super::errors::Fault;
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;

/// Topics that are deleted at a time.
const PIECE_TOPICS: usize = 64;

/// What of a namespace a topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its data.
    Data,
    /// What Prism keeps beside them.
    Beside,
}

impl Part {
    fn of(namespace: &str, topic: &str) -> Option<Self> {
        let (part, rest) = match topic.strip_prefix("_prism.") {
            Some(beside) => (Part::Beside, beside.split_once('.')?.1),
            None => (Part::Data, topic),
        };
        let rest = rest.strip_prefix(namespace)?;
        let is_of = rest.starts_with('.') || part == Part::Beside && rest.is_empty();
        is_of.then_some(part)
    }
}

fn holds_records(cluster: &Cluster, namespace: &str) -> Result<bool, Fault> {
    for topic in cluster.topics_where(|topic| Part::of(namespace, topic) == Some(Part::Data))? {
        let Some(partitions) = cluster.partitions(&topic)? else { continue };
        let bounds = cluster.bounds(&topic, partitions, None)?;
        if bounds.first.iter().zip(&bounds.end).any(|(first, end)| first < end) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Endings for Kafka {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        let name = context.namespace_name.to_owned();
        self.link.ask_in_turn(context, move |cluster| holds_records(cluster, &name)).await
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        self.link.ways.leave(context);
        // What is kept beside the data goes after it.
        for part in [Part::Data, Part::Beside] {
            loop {
                let name = context.namespace_name.to_owned();
                let find = move |cluster: &Cluster| {
                    cluster.topics_where(|topic| Part::of(&name, topic) == Some(part))
                };
                let mut topics = self.link.ask_in_turn(context, find).await?;
                if topics.is_empty() {
                    break;
                }
                topics.truncate(PIECE_TOPICS);
                topics.iter().for_each(|topic| self.link.forget(topic));
                let delete = move |cluster: &Cluster| cluster.delete(&topics);
                self.link.ask_in_turn(context, delete).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespace_s_own_topics_are_its_own() {
        for (topic, part) in [
            ("orders.placed", Some(Part::Data)),
            ("orders.a.b", Some(Part::Data)),
            ("_prism.cell.orders.0", Some(Part::Beside)),
            ("_prism.groups.orders", Some(Part::Beside)),
            ("orders", None),
            ("orders-eu.placed", None),
            ("mail.orders.placed", None),
            ("_prism.cell.orders-eu.0", None),
            ("_prism.groups.orders-eu", None),
            ("_prism.cell.mail.orders", None),
            ("_prism", None),
        ] {
            assert_eq!(Part::of("orders", topic), part, "{topic}");
        }
    }
}
