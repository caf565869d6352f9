//! What operators see of single requests: the trace that a call belongs to, and a log line where one is worth it.

use std::cell::Cell;
use std::time::Duration;

use prism_io::grpc::Metadata;

use super::Call;
use crate::logging::{self, RequestLine};
use crate::shard::Shard;

/// Request metadata: the W3C trace context.
const TRACEPARENT: &str = "traceparent";
/// Log lines about failed requests that one shard writes in a second; what is more is counted in the metrics alone.
const LINES_PER_SECOND: u32 = 20;

/// The trace id of `traceparent` (W3C Trace Context, version 00); zeroes without a valid one.
pub(crate) fn trace_id(metadata: &Metadata) -> [u8; 16] {
    let mut id = [0; 16];
    let Some(value) = metadata.get(TRACEPARENT) else { return id };
    let digits = match value {
        [_, _, b'-', rest @ ..] if rest.len() >= 33 && rest[32] == b'-' => &rest[..32],
        _ => return id,
    };
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let (Some(high), Some(low)) =
            ((pair[0] as char).to_digit(16), (pair[1] as char).to_digit(16))
        else {
            return [0; 16];
        };
        *byte = (high << 4 | low) as u8;
    }
    id
}

/// Says of which failures a line is written, so that a flood of them is no flood of lines.
#[derive(Default)]
pub(crate) struct LineBudget {
    second: Cell<u64>,
    written: Cell<u32>,
}

impl LineBudget {
    pub(crate) fn take(&self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if self.second.replace(second) != second {
            self.written.set(0);
        }
        let written = self.written.get();
        self.written.set(written.saturating_add(1));
        written < LINES_PER_SECOND
    }
}

/// Whether the status code speaks of a fault or want on our side.
fn is_ours(code: u8) -> bool {
    matches!(code, 2 | 4 | 8 | 13 | 14 | 15)
}

/// Writes the line of a finished call: always at level debug, else for our own failures and within the budget.
pub(super) fn log_line(
    shard: &Shard,
    call: &Call,
    namespace: Option<usize>,
    code: u8,
    now_ns: u64,
) {
    let wanted =
        tracing::enabled!(tracing::Level::DEBUG) || (is_ours(code) && shard.lines.take(now_ns));
    if !wanted {
        return;
    }
    let namespace = namespace.map(|index| shard.namespaces.at(index));
    let trace_id = trace_id(&call.metadata);
    let trace_id = if trace_id == [0; 16] {
        String::new()
    } else {
        trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    logging::request(&RequestLine {
        namespace: namespace.map_or("", |namespace| &namespace.name),
        api: namespace.map_or("", |namespace| namespace.api.name()),
        operation: &call.method.name().to_ascii_lowercase(),
        latency: Duration::from_nanos(now_ns.saturating_sub(call.received_ns)),
        backend: namespace.map_or("", |namespace| &namespace.backend_name),
        trace_id: &trace_id,
        code,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_gives_an_id() {
        let id_of = |value: &[u8]| {
            let mut metadata = Metadata::new();
            metadata.push(b"traceparent", value);
            trace_id(&metadata)
        };
        let id = id_of(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!((id[0], id[15]), (0x4b, 0x36));
        for bad in [
            &b""[..],
            b"00-",
            b"00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01",
            &[0xff; 55],
        ] {
            assert_eq!(id_of(bad), [0; 16]);
        }
    }

    #[test]
    fn a_flood_of_failures_is_no_flood_of_lines() {
        let budget = LineBudget::default();
        let lines =
            |second: u64| (0..1000).filter(|_| budget.take(second * 1_000_000_000 + 5)).count();
        assert_eq!((lines(1), lines(2)), (LINES_PER_SECOND as usize, LINES_PER_SECOND as usize));
    }
}
