//! What was refused or cut off for the sake of the others, by kind.
//!
//! One list gives the kind, its label in `prism_transport_refused_total` and its documentation. A connection counts its own
//! and hands the counts on when it is asked; it allocates nothing before the first.

macro_rules! refusals {
    ($($(#[doc = $about:literal])+ $kind:ident = $name:literal,)*) => {
        /// Why something of a peer was refused or its connection ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[doc = $about])+ $kind,)*
        }

        impl Refusal {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The label `kind` of the metric.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

refusals! {
    /// More streams than `streams_max`: REFUSED_STREAM.
    Streams = "streams",
    /// A header list above `header_list_bytes_max`: 431.
    HeaderList = "header_list",
    /// More fields in a head than `header_count_max`: 431.
    HeaderCount = "header_count",
    /// An encoded header block above `header_block_bytes_max`: ENHANCE_YOUR_CALM.
    HeaderBlock = "header_block",
    /// More CONTINUATION frames than `continuations_max`: ENHANCE_YOUR_CALM.
    Continuations = "continuations",
    /// A header block that did not become whole within `headers_timeout`: ENHANCE_YOUR_CALM.
    HeaderTime = "header_time",
    /// A frame above `frame_bytes_max`: FRAME_SIZE_ERROR.
    FrameSize = "frame_size",
    /// A message above `message_bytes_max`: RESOURCE_EXHAUSTED.
    MessageSize = "message_size",
    /// A message of a reply above `reply_bytes_max`: RESOURCE_EXHAUSTED.
    ReplySize = "reply_size",
    /// Status message and details above `trailer_bytes_max`: the details are left out, then the message is cut.
    TrailerSize = "trailer_size",
    /// Unfinished messages above `gather_bytes_max`: RESOURCE_EXHAUSTED.
    Gathered = "gathered",
    /// A stream whose queued messages reached `stream_queue_bytes`: its handler waits, nothing is lost.
    StreamQueue = "stream_queue",
    /// Replies that wait above `queue_bytes_max`: RESOURCE_EXHAUSTED.
    Queued = "queued",
    /// Answers to control frames above `output_bytes_max`, because the peer does not read: ENHANCE_YOUR_CALM.
    Output = "output",
    /// The connection that held most when its shard held more than `shard_buffer_bytes_max`: ended.
    ShardBuffers = "shard_buffers",
    /// Resets by the peer beyond `peer_resets`: ENHANCE_YOUR_CALM.
    PeerResets = "peer_resets",
    /// Resets that the peer provoked beyond `provoked_resets`: ENHANCE_YOUR_CALM.
    ProvokedResets = "provoked_resets",
    /// PING frames beyond `pings`, or closer together than `ping_interval_min` too often: ENHANCE_YOUR_CALM.
    Pings = "pings",
    /// SETTINGS or GOAWAY frames beyond `settings`: ENHANCE_YOUR_CALM.
    Settings = "settings",
    /// DATA frames without a byte beyond `empty_data`: ENHANCE_YOUR_CALM.
    EmptyData = "empty_data",
    /// PRIORITY frames beyond `idle_frames`: ENHANCE_YOUR_CALM.
    Priorities = "priorities",
    /// Other frames without effect beyond `idle_frames`: ENHANCE_YOUR_CALM.
    IdleFrames = "idle_frames",
    /// WINDOW_UPDATE frames beyond `window_updates`: ENHANCE_YOUR_CALM.
    WindowUpdates = "window_updates",
    /// Nothing came within `first_byte_timeout`: closed.
    FirstByteTime = "first_byte_time",
    /// No preface and SETTINGS within `preface_timeout`: closed.
    PrefaceTime = "preface_time",
    /// Our SETTINGS were not acknowledged within `settings_timeout`: SETTINGS_TIMEOUT.
    SettingsTime = "settings_time",
    /// A silent peer that did not answer a PING within `keepalive_timeout`: closed.
    KeepaliveTime = "keepalive_time",
    /// A connection as old as `connection_age_max`: GOAWAY, then closed.
    ConnectionAge = "connection_age",
    /// A drain whose PING was not answered within `drain_ping_timeout`: its second GOAWAY goes out all the same.
    DrainTime = "drain_time",
    /// No call for `idle_timeout`: GOAWAY, then closed.
    IdleTime = "idle_time",
    /// A peer that reads less than `slow_reader_min`: its stream is reset, or its connection ended.
    SlowReader = "slow_reader",
    /// A peer that writes less than `slow_writer_min` of what it has begun: its stream is reset, or its connection ended.
    SlowWriter = "slow_writer",
    /// More connections than `connections_max`: closed at once.
    Connections = "connections",
    /// More connections of one peer than `connections_per_peer_max`: closed at once.
    ConnectionsPerPeer = "connections_per_peer",
    /// More TLS handshakes at a time than `handshakes_max`: closed at once.
    Handshakes = "handshakes",
    /// A TLS handshake that took longer than `handshake_timeout`: closed.
    HandshakeTime = "handshake_time",
    /// A connection whose client's certificate was revoked since it began: ended.
    Revoked = "revoked",
    /// A browser that calls for a page whose origin is not among `web.allowed_origins`: 403.
    Origin = "origin",
    /// A head that no intermediary could agree on (RFC 9113, section 8.1.1): PROTOCOL_ERROR on its stream; 400 in HTTP/1.1.
    MalformedHead = "malformed_head",
    /// Any other stream error of the peer's.
    StreamError = "stream_error",
    /// Any other connection error of the peer's.
    ConnectionError = "connection_error",
}

/// Kinds that there are.
pub const REFUSALS: usize = Refusal::ALL.len();

/// How often each kind has happened since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Option<Box<[u32; REFUSALS]>>);

impl Refusals {
    /// Counts one.
    #[cold]
    pub(crate) fn count(&mut self, kind: Refusal) {
        let counts = self.0.get_or_insert_with(|| Box::new([0; REFUSALS]));
        counts[kind as usize] = counts[kind as usize].saturating_add(1);
    }

    /// Hands out what was counted, and begins again.
    #[inline]
    pub(crate) fn take(&mut self, mut each: impl FnMut(Refusal, u32)) {
        if let Some(counts) = self.0.take() {
            for (&kind, &count) in
                Refusal::ALL.iter().zip(&*counts).filter(|(_, count)| **count > 0)
            {
                each(kind, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_handed_out_once() {
        let mut refusals = Refusals::default();
        refusals.count(Refusal::Pings);
        refusals.count(Refusal::Streams);
        refusals.count(Refusal::Pings);
        let mut seen = Vec::new();
        refusals.take(|kind, count| seen.push((kind.name(), count)));
        assert_eq!(seen, [("streams", 1), ("pings", 2)]);
        refusals.take(|kind, _| panic!("{kind:?} again"));
    }

    #[test]
    fn the_documentation_lists_every_kind() {
        let page = include_str!("../../../docs/transport.md");
        for kind in Refusal::ALL {
            assert!(page.contains(&format!("`{}`", kind.name())), "docs/transport.md: {kind:?}");
        }
    }
}
