//! What a build of Prism can run: the planner's third input.
//!
//! That of this build comes from what its backends declare (`backend!`) and from what its request path does; nothing here is
//! an intention.

use prism_adapters::Backend as _;
use prism_adapters::kafka::Kafka;
use prism_adapters::kafka_postgres::KafkaPostgres;
use prism_adapters::memory::Memstore;
use prism_adapters::nats::Nats;
use prism_adapters::postgres::Postgres;
use prism_adapters::redis::{Redis, TopicLog};
use prism_proto::catalogue::{Interface, Interfaces, Model};

use super::{Pattern, Target};
use crate::config::platform::{BackendType, Tuning};
use crate::config::request::Api;
use crate::config::{ClientApi, Durability, Topics};

/// What a backend, or a composition of several, serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The interfaces.
    pub interfaces: Interfaces,
    /// The strongest level of durability.
    pub durability: Durability,
}

/// What a build can run.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// Backends and compositions that it has adapters for, and what each serves.
    pub targets: Vec<(Target, Offer)>,
    /// Types of backend whose topics may be kept as a log instead, and what they serve then.
    pub topic_logs: Vec<(BackendType, Interfaces)>,
    /// Client APIs that it serves.
    pub apis: Vec<Api>,
    /// Patterns that its request path carries out.
    pub patterns: Vec<Pattern>,
    /// Types of backend that store messages with the data of a transaction.
    pub outboxes: Vec<BackendType>,
    /// Tuning that it applies to a single namespace.
    pub tuning: Vec<Tuning>,
    /// Types of backend that a namespace may have for itself.
    pub own_backends: Vec<BackendType>,
    /// Whether it holds callers to a namespace's `access`.
    pub grants: bool,
}

impl Capabilities {
    /// Those of this build.
    pub fn of_this_build() -> Self {
        let serves = |kind: BackendType, interfaces: Interfaces, durability: Durability| {
            (Target::of(kind), Offer { interfaces, durability })
        };
        let api = |api: &ClientApi| Api::ALL.iter().copied().find(|of| of.name() == api.name());
        Self {
            targets: vec![
                serves(BackendType::Memstore, Memstore::SERVES, Durability::Strong),
                serves(BackendType::Redis, Redis::SERVES, Durability::Strong),
                serves(BackendType::Postgres, Postgres::SERVES, Durability::Strong),
                serves(BackendType::Nats, Nats::SERVES, Durability::Strong),
                serves(BackendType::Kafka, Kafka::SERVES, Durability::Strong),
                (
                    Target::KAFKA_AND_POSTGRES,
                    Offer { interfaces: KafkaPostgres::SERVES, durability: Durability::Strong },
                ),
            ],
            topic_logs: vec![(BackendType::Redis, TopicLog::SERVES)],
            apis: ClientApi::ALL.iter().filter_map(api).collect(),
            patterns: vec![Pattern::Wal, Pattern::Outbox, Pattern::Audit],
            outboxes: vec![BackendType::Memstore, BackendType::Redis, BackendType::Postgres],
            tuning: vec![Tuning::Backend, Tuning::KafkaPartitions],
            own_backends: Vec::new(),
            grants: false,
        }
    }

    /// What a target serves, where there is an adapter for all of it.
    pub fn offer(&self, target: Target) -> Option<Offer> {
        self.targets.iter().find(|(of, _)| *of == target).map(|(_, offer)| *offer)
    }

    /// How a target keeps the topics of a namespace that needs these interfaces, and what it serves then: as a log only where
    /// it would not do otherwise.
    pub fn topics(
        &self,
        target: Target,
        mut needs: impl Iterator<Item = Interface>,
    ) -> (Topics, Interfaces) {
        let plain = self.offer(target).map_or(Interfaces::NONE, |offer| offer.interfaces);
        let log = self.topic_logs.iter().find(|(kind, _)| Target::of(*kind) == target);
        let lacks =
            |interface: Interface| interface.model() == Model::PubSub && !plain.contains(interface);
        match log {
            Some((_, served)) if needs.any(lacks) => (Topics::Log, *served),
            _ => (Topics::Volatile, plain),
        }
    }

    /// Whether there is an adapter for a type of backend.
    pub fn has(&self, kind: BackendType) -> bool {
        self.offer(Target::of(kind)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::platform::is_served;

    #[test]
    fn every_backend_that_can_be_configured_can_be_planned() {
        let build = Capabilities::of_this_build();
        for kind in BackendType::ALL.iter().copied().filter(|kind| *kind != BackendType::Memstore) {
            assert_eq!(is_served(kind), build.has(kind), "{kind} needs its line in of_this_build");
        }
        assert_eq!(build.apis.len(), ClientApi::ALL.len());
    }

    #[test]
    fn topics_on_redis_are_a_log_where_channels_would_not_do() {
        use Interface::{PubSubBasic, PubSubPersistent, PubSubWildcards, QueueBasic};
        let build = Capabilities::of_this_build();
        let topics = |kind, needs: &[Interface]| {
            let (topics, served) = build.topics(Target::of(kind), needs.iter().copied());
            (topics, needs.iter().all(|one| served.contains(*one)))
        };
        let redis = BackendType::Redis;
        assert_eq!(topics(redis, &[PubSubBasic, PubSubWildcards]), (Topics::Volatile, true));
        assert_eq!(topics(redis, &[PubSubBasic, PubSubPersistent]), (Topics::Log, true));
        assert_eq!(topics(redis, &[PubSubWildcards, PubSubPersistent]), (Topics::Log, false));
        assert_eq!(topics(redis, &[QueueBasic]), (Topics::Volatile, true));
        assert_eq!(topics(BackendType::Postgres, &[PubSubPersistent]), (Topics::Volatile, true));
    }
}
