//! What a shard counts besides requests, each with its name in the exposition and its help text.
//!
//! One declaration gives the field, its documentation and its family, so that they cannot differ.

use super::cell::{Counter, Gauge, Histogram};

/// One number as the exposition sees it.
#[derive(Debug)]
pub(super) enum Reading<'a> {
    Counter(u64),
    Gauge(u64),
    Histogram(&'a Histogram),
}

impl Counter {
    fn reading(&self) -> Reading<'_> {
        Reading::Counter(self.get())
    }
}

impl Gauge {
    fn reading(&self) -> Reading<'_> {
        Reading::Gauge(self.get())
    }
}

impl Histogram {
    fn reading(&self) -> Reading<'_> {
        Reading::Histogram(self)
    }
}

/// A family's name and help text with its reading.
pub(super) type Described<'a> = (&'static str, &'static str, Reading<'a>);

macro_rules! families {
    ($(#[doc = $about:literal] $group:ident { $(#[doc = $help:literal] $field:ident: $kind:ident = $family:literal,)* })*) => {
        $(
            #[doc = $about]
            #[derive(Debug, Default)]
            pub struct $group {
                $(#[doc = $help] pub $field: $kind,)*
            }

            impl $group {
                pub(super) fn describe<'a>(&'a self, out: &mut Vec<Described<'a>>) {
                    $(out.push(($family, $help, self.$field.reading()));)*
                }
            }
        )*
    };
}

families! {
    /// The log of one shard.
    WalMetrics {
        /// Bytes of batches written to the log, padding included.
        append_bytes: Counter = "prism_wal_append_bytes_total",
        /// Records written to the log.
        records: Counter = "prism_wal_records_total",
        /// Batches written to the log, one write each.
        batches: Counter = "prism_wal_batches_total",
        /// Time from the submission of a log write until it was durable.
        sync: Histogram = "prism_wal_sync_duration_seconds",
        /// Segment files of the log, of any state.
        segments: Gauge = "prism_wal_segments",
        /// Segment files that still hold records which a backend or snapshot needs.
        segments_pinned: Gauge = "prism_wal_segments_pinned",
        /// Prepared segment files that are ready to be written.
        segments_reserve: Gauge = "prism_wal_segments_reserve",
        /// Bytes in memory held for records that are not yet confirmed.
        pinned_bytes: Gauge = "prism_wal_pinned_bytes",
        /// Writes refused because the log was below its low-water mark.
        refused_full: Counter = "prism_wal_refused_full_total",
        /// Bytes of the log that recovery read at the last start.
        recovery_bytes: Gauge = "prism_wal_recovery_bytes",
        /// Nanoseconds that recovery took at the last start.
        recovery_ns: Gauge = "prism_wal_recovery_nanoseconds",
        /// Batches cut off as a torn tail at the last start; nobody was promised them.
        cuts: Counter = "prism_wal_cuts_total",
        /// Records between the newest and the oldest one that is not yet confirmed by its backend.
        backlog_records: Gauge = "prism_wal_backlog_records",
    }
    /// The connections of one shard.
    ConnectionMetrics {
        /// Open client connections.
        open: Gauge = "prism_connections",
        /// Client connections accepted.
        accepted: Counter = "prism_connections_accepted_total",
        /// Client connections closed for a fault of the client's.
        faulted: Counter = "prism_connections_faulted_total",
        /// Streams that are open on client connections.
        streams: Gauge = "prism_streams",
        /// Streams that clients have begun.
        streams_started: Counter = "prism_streams_started_total",
        /// Streams that ended with another status than OK, were cancelled, or ended with their connection.
        streams_failed: Counter = "prism_streams_failed_total",
        /// Messages received from clients.
        messages_received: Counter = "prism_messages_received_total",
        /// Messages sent to clients.
        messages_sent: Counter = "prism_messages_sent_total",
        /// PINGs that asked silent clients whether they are there.
        keepalives_sent: Counter = "prism_keepalives_sent_total",
        /// Bytes of requests in flight.
        bytes_in_flight: Gauge = "prism_request_bytes_in_flight",
        /// Bytes that connections hold: unfinished messages, and answers that wait to be taken.
        buffered_bytes: Gauge = "prism_transport_buffered_bytes",
        /// Bytes read from clients.
        received_bytes: Counter = "prism_received_bytes_total",
        /// Bytes written to clients.
        sent_bytes: Counter = "prism_sent_bytes_total",
        /// Copies of a request's payload made between socket and backend.
        payload_copies: Counter = "prism_payload_copies_total",
        /// Bytes of request payloads copied between socket and backend.
        payload_copied_bytes: Counter = "prism_payload_copied_bytes_total",
    }
    /// TLS on the connections of one shard. What failed is counted by kind beside it.
    TlsMetrics {
        /// Handshakes under way.
        in_flight: Gauge = "prism_tls_handshakes_in_flight",
        /// Handshakes done in full.
        full: Counter = "prism_tls_handshakes_full_total",
        /// Handshakes that took an earlier connection up again.
        resumed: Counter = "prism_tls_handshakes_resumed_total",
        /// Connections whose peers hung up without closing TLS.
        truncated: Counter = "prism_tls_truncated_total",
        /// Clients that began TLS on a port without it.
        unexpected: Counter = "prism_tls_unexpected_total",
    }
    /// The lane of one namespace to a backend outside.
    LaneMetrics {
        /// Logged writes that the backend has not confirmed.
        pending: Gauge = "prism_lane_pending_records",
        /// Microseconds since the oldest of them was logged, as far as memory holds it.
        age_us: Gauge = "prism_lane_pending_age_microseconds",
        /// 1 while the backend takes nothing and the lane waits.
        stalled: Gauge = "prism_lane_stalled",
        /// Batches that the backend has confirmed.
        batches: Counter = "prism_lane_batches_total",
        /// Records in those batches.
        records: Counter = "prism_lane_records_total",
        /// Times that the lane asked for its backend's watermark: at start and after every failure.
        resumes: Counter = "prism_lane_resumes_total",
        /// Records that the backend refused for their own sake after their callers were told that they are done.
        refused: Counter = "prism_lane_dead_letters_total",
    }
    /// The outbox of one namespace: messages of its transactions.
    OutboxMetrics {
        /// Messages of committed transactions that have not been relayed.
        pending: Gauge = "prism_outbox_pending_messages",
        /// Microseconds since the oldest of them was committed.
        age_us: Gauge = "prism_outbox_pending_age_microseconds",
        /// Messages that their targets have taken, those that were relayed again included.
        relayed: Counter = "prism_outbox_relayed_total",
        /// Times that a target did not take a message, which then waits.
        failures: Counter = "prism_outbox_failures_total",
        /// Messages that their targets refused for their own sake.
        dead_letters: Counter = "prism_outbox_dead_letters_total",
    }
    /// The embedded store of one shard.
    StoreMetrics {
        /// Bytes held by the embedded store, keys and overhead included.
        bytes: Gauge = "prism_memstore_bytes",
        /// Keys held by the embedded store.
        keys: Gauge = "prism_memstore_keys",
        /// Keys removed because their time had come.
        expired: Counter = "prism_memstore_expired_total",
        /// Snapshots of the embedded store completed.
        snapshots: Counter = "prism_memstore_snapshots_total",
        /// Snapshots that failed; the log is kept until one succeeds.
        snapshots_failed: Counter = "prism_memstore_snapshots_failed_total",
        /// Idempotency keys remembered.
        idempotency_keys: Gauge = "prism_idempotency_keys",
        /// Retries answered with the outcome of the first call.
        replayed: Counter = "prism_idempotency_replayed_total",
    }
    /// The mesh as one shard sees it.
    MeshMetrics {
        /// Calls sent to their home shard.
        sent: Counter = "prism_mesh_sent_total",
        /// Calls received from other shards.
        received: Counter = "prism_mesh_received_total",
        /// Calls refused because a ring or its reply credits were used up.
        refused: Counter = "prism_mesh_refused_total",
    }
}
