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
use prism_adapters::redis::Redis;
use prism_proto::catalogue::Interfaces;

use super::{Pattern, Target};
use crate::config::platform::{BackendType, Tuning};
use crate::config::request::Api;
use crate::config::{ClientApi, Durability};

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
            apis: ClientApi::ALL.iter().filter_map(api).collect(),
            patterns: vec![Pattern::Wal, Pattern::Outbox, Pattern::Audit],
            outboxes: vec![BackendType::Memstore, BackendType::Postgres],
            tuning: vec![Tuning::Backend, Tuning::KafkaPartitions],
            own_backends: Vec::new(),
            grants: false,
        }
    }

    /// What a target serves, where there is an adapter for all of it.
    pub fn offer(&self, target: Target) -> Option<Offer> {
        self.targets.iter().find(|(of, _)| *of == target).map(|(_, offer)| *offer)
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
}
