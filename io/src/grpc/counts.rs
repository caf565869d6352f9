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

impl Counts {
    /// Adds what has come to `before` to make it `now`.
    pub fn add_growth(&mut self, before: &Self, now: &Self) {
        self.streams_started += now.streams_started - before.streams_started;
        self.streams_succeeded += now.streams_succeeded - before.streams_succeeded;
        self.streams_failed += now.streams_failed - before.streams_failed;
        self.messages_received += now.messages_received - before.messages_received;
        self.messages_sent += now.messages_sent - before.messages_sent;
        self.keepalives_sent += now.keepalives_sent - before.keepalives_sent;
        self.last_stream_ns = self.last_stream_ns.max(now.last_stream_ns);
        self.last_received_ns = self.last_received_ns.max(now.last_received_ns);
        self.last_sent_ns = self.last_sent_ns.max(now.last_sent_ns);
    }
}
