//! What tests against a real NATS of their own begin with.

use std::future::Future;
use std::time::Duration;

use async_nats::jetstream;
use prism_adapters::breaker::Backoff;
use prism_adapters::conformance::{Direct, Versions};
use prism_adapters::nats::{Nats, NatsConfig};
use prism_io::rt;

use crate::servers::{LONG, OwnNats};

/// The namespace of [`Direct`].
pub(crate) const NAMESPACE: &str = "conformance";

/// A Prism that calls the adapter as the core does.
pub(crate) fn client(server: &OwnNats) -> Direct<Nats> {
    let (delay_min, delay_max) = (Duration::from_millis(5), Duration::from_millis(50));
    let config = NatsConfig {
        backoff: Backoff { delay_min, delay_max },
        ..NatsConfig::at(server.address.ip().to_string(), server.address.port())
    };
    Direct::in_real_time(Nats::start(config), Versions::None)
}

/// Runs a test on a shard's loop, within its time.
pub(crate) fn run_test(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(6 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

/// Does something with NATS's own client, on a loop of its own.
pub(crate) fn stranger<F: Future<Output = T>, T>(
    server: &OwnNats,
    work: impl FnOnce(jetstream::Context) -> F,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://{}", server.address);
    runtime.block_on(async move {
        let client = async_nats::connect(url).await.unwrap();
        work(jetstream::new(client)).await
    })
}
