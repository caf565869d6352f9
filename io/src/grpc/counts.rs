//! What has passed over a connection, counted as gRPC's channelz does.

/// Counts of one connection since its start. Times are monotonic nanoseconds, 0 if never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that began, those included that were refused.
    pub streams_started: u64,
    /// Calls that ended with status OK.
    pub streams_succeeded: u64,
    /// Calls that ended otherwise: with another status, cancelled, or with their connection.
    pub streams_failed: u64,
    /// Messages that were received whole.
    pub messages_received: u64,
    /// Messages that were sent or queued.
    pub messages_sent: u64,
    /// PINGs that asked whether the peer is there.
    pub keepalives_sent: u64,
    /// When the newest call began.
    pub last_stream_ns: u64,
    /// When a message came last.
    pub last_received_ns: u64,
    /// When a message was sent last.
    pub last_sent_ns: u64,
}
