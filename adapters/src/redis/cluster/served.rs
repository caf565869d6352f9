//! What a cluster offers: a Redis with fewer interfaces. Streams wait for a way to follow several of them that lie on several nodes.

use std::ops::Deref;

use prism_proto::catalogue::{Interfaces, Method};

use crate::backend::{Admission, Backend, not_offered};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::{
    check_offered, keyvalue_basic, keyvalue_batch, keyvalue_cas, keyvalue_scan,
    keyvalue_transactional, keyvalue_ttl, pubsub_basic, pubsub_wildcards, queue_basic,
    queue_dead_letter, queue_delayed, queue_priority, queue_visibility,
};
use crate::redis::{Redis, RedisConfig};

/// A shard's Redis Cluster: a [`Redis`] whose configuration says `cluster`, and no more than that offers.
pub struct RedisCluster(Redis);

impl RedisCluster {
    /// Begins to connect; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(config: RedisConfig) -> Self {
        RedisCluster(Redis::start(RedisConfig { cluster: true, ..config }))
    }
}

impl Deref for RedisCluster {
    type Target = Redis;

    fn deref(&self) -> &Redis {
        &self.0
    }
}

impl Admission for RedisCluster {
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        self.0.admit(method, request)
    }
}

impl Backend for RedisCluster {
    const NAME: &'static str = Redis::NAME;

    const SERVES: Interfaces = Interfaces::of(&[
        keyvalue_basic::INTERFACE,
        keyvalue_scan::INTERFACE,
        keyvalue_ttl::INTERFACE,
        keyvalue_transactional::INTERFACE,
        keyvalue_batch::INTERFACE,
        keyvalue_cas::INTERFACE,
        queue_basic::INTERFACE,
        queue_visibility::INTERFACE,
        queue_dead_letter::INTERFACE,
        queue_priority::INTERFACE,
        queue_delayed::INTERFACE,
        pubsub_basic::INTERFACE,
        pubsub_wildcards::INTERFACE,
    ]);

    async fn unary(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error> {
        check(method)?;
        self.0.unary(context, method, request, reply).await
    }

    async fn unary_checked(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        offered: Interfaces,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        check(method)?;
        check_offered(method, request, offered.intersection(Self::SERVES))?;
        self.0.unary_checked(context, method, request, offered, reply).await
    }

    async fn ready(&self, context: &Context<'_>, method: Method, request: &[u8]) {
        self.0.ready(context, method, request).await;
    }

    async fn stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        sink: &mut S,
    ) -> Result<(), Error> {
        check(method)?;
        self.0.stream(context, method, request, sink).await
    }
}

fn check(method: Method) -> Result<(), Error> {
    match method.interface() {
        Some(interface) if RedisCluster::SERVES.contains(interface) => Ok(()),
        _ => Err(not_offered(RedisCluster::NAME, method)),
    }
}
