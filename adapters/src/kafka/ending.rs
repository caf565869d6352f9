//! The end of a namespace in Kafka: its topics are deleted, and its lane's cell after them.
//!
//! Its topics are those whose names begin with `<namespace>.` (no namespace has a dot in its name), and `_prism.cell.<namespace>.<partition>`.
//! Kafka deletes in its own time what it has agreed to delete: the end is when no broker tells of it any more.

use super::Kafka;
use super::cluster::Cluster;
use super::errors::Fault;
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;

/// Topics that are deleted at a time.
const PIECE_TOPICS: usize = 64;

/// What the names of a namespace's topics begin with: of data, and of cells.
fn prefixes(context: &Context<'_>) -> [String; 2] {
    let name = context.namespace_name;
    [format!("{name}."), format!("_prism.cell.{name}.")]
}

fn holds_records(cluster: &Cluster, prefix: &str) -> Result<bool, Fault> {
    for topic in cluster.topics_under(prefix)? {
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
        let [data, _] = prefixes(context);
        self.link.ask_in_turn(context, move |cluster| holds_records(cluster, &data)).await
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        self.link.ways.leave(context);
        for prefix in prefixes(context) {
            loop {
                let of = prefix.clone();
                let find = move |cluster: &Cluster| cluster.topics_under(&of);
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
