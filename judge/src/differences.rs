//! Where the two may differ, and why: one line for each, with the section that allows it or that one of them departs from.

use crate::Role;
use crate::frames::Frame;
use crate::seen::{Seen, Told};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{flag, kind};

/// A whole header block.
#[derive(Debug)]
pub struct Block {
    /// Of which stream.
    pub stream: u32,
    /// Nothing follows it.
    pub end: bool,
    /// As far as it could be decoded.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// It could be decoded to its end.
    pub sound: bool,
}

/// The moment after a frame, at both ends.
#[derive(Debug)]
pub struct Case<'a> {
    /// Whose state machine took the frame.
    pub role: Role,
    /// The last frame.
    pub frame: &'a Frame,
    /// Those before it.
    pub earlier: &'a [Frame],
    /// A header block before it had a field without a name, and came in several frames.
    pub nameless: bool,
    /// The header block that it ends.
    pub block: Option<Block>,
    /// What was observed of ours before it, or before the header block that it ends.
    pub before: &'a Seen,
    /// What was observed of ours after it.
    pub ours: &'a Seen,
    /// What was observed of theirs after it.
    pub theirs: &'a Seen,
}

impl Case<'_> {
    /// Both have ended the connection, with these codes.
    fn codes(&self) -> Option<(u32, u32)> {
        Some((self.ours.goaway?.1, self.theirs.goaway?.1))
    }

    /// What ours did about the stream of the frame was to reset it with that code.
    fn we_reset(&self, code: ErrorCode) -> bool {
        let number = self.number();
        !self.ours.closed
            && self.ours.written.get(&number).and_then(|written| written.reset) == Some(code.0)
            && self.before.written.get(&number).is_none_or(|written| written.reset.is_none())
    }

    /// What theirs did about the stream of the frame was to reset it with that code.
    fn they_reset(&self, code: ErrorCode) -> bool {
        let number = self.number();
        !self.theirs.closed
            && self.theirs.written.get(&number).and_then(|written| written.reset) == Some(code.0)
    }

    /// Theirs has ended the connection with that code, ours goes on.
    fn they_alone_end(&self, code: ErrorCode) -> bool {
        !self.ours.closed && self.theirs.goaway.is_some_and(|(_, theirs)| theirs == code.0)
    }

    /// Ours has ended the connection with that code, theirs goes on.
    fn we_alone_end(&self, code: ErrorCode) -> bool {
        !self.theirs.closed && self.ours.goaway.is_some_and(|(_, ours)| ours == code.0)
    }

    fn number(&self) -> u32 {
        self.frame.stream & 0x7fff_ffff
    }

    fn told_before(&self) -> Option<&Told> {
        self.before.told.get(&self.number())
    }

    /// Ours has ended the connection in good order.
    fn we_are_done(&self) -> bool {
        self.ours.closed && self.ours.goaway.is_none()
    }

    /// Some field of the block that ends is such a one.
    fn any_field(&self, is: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        self.block
            .as_ref()
            .is_some_and(|block| block.fields.iter().any(|(name, value)| is(name, value)))
    }

    /// The block that ends is a head, not trailers.
    fn is_head(&self) -> bool {
        self.block.is_some() && self.told_before().is_none_or(|told| told.head.is_none())
    }

    /// The block that ends is of a stream that has a head already.
    fn is_trailers(&self) -> bool {
        self.block.is_some() && !self.is_head()
    }
}

/// Whether the types of the `http` crate can hold a field: they decide what `h2` can decode.
fn fits_http(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":method" => http::Method::from_bytes(value).is_ok(),
        b":status" => http::StatusCode::from_bytes(value).is_ok(),
        b":authority" | b":scheme" | b":path" | b":protocol" => std::str::from_utf8(value).is_ok(),
        _ => {
            http::HeaderName::from_lowercase(name).is_ok()
                && http::HeaderValue::from_bytes(value).is_ok()
        }
    }
}

/// Whether a part of a request's target can be part of an `http::Uri`.
fn fits_uri(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":authority" => http::uri::Authority::try_from(value).is_ok(),
        b":scheme" => http::uri::Scheme::try_from(value).is_ok(),
        b":path" => http::uri::PathAndQuery::try_from(value).is_ok(),
        _ => true,
    }
}

/// A HEADERS frame that depends on its own stream.
fn depends_on_itself(frame: &Frame) -> bool {
    let at = usize::from(frame.flags & flag::PADDED != 0);
    let word = frame.payload.get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>());
    frame.kind == kind::HEADERS
        && frame.flags & flag::PRIORITY != 0
        && word.is_some_and(|word| {
            u32::from_be_bytes(*word) & 0x7fff_ffff == frame.stream & 0x7fff_ffff
        })
}

/// A known difference.
pub struct Difference {
    /// What it is about.
    pub name: &'static str,
    /// Where the RFC stands, and who does what.
    pub why: &'static str,
    /// Whether this is it.
    pub applies: fn(&Case<'_>) -> bool,
}

/// All of them. A comparison goes on without the frames that the first one that applies is about. Sections without a name are of RFC 9113.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "a HEADERS frame that depends on its own stream",
        why: "Section 5.3.2 has no priorities any more; RFC 7540, section 5.3.1, calls it a stream error. Both reset the stream, but \
              h2 does not decode the block, so that its table is out of step with its peer's from then on. A client of ours \
              ignores the dependency",
        applies: |case| depends_on_itself(case.frame) || case.earlier.iter().any(depends_on_itself),
    },
    Difference {
        name: "the code for a header block that cannot be decoded",
        why: "COMPRESSION_ERROR (section 4.3) by us, PROTOCOL_ERROR by h2",
        applies: |case| {
            matches!(case.frame.kind, kind::HEADERS | kind::CONTINUATION)
                && case.codes()
                    == Some((ErrorCode::COMPRESSION_ERROR.0, ErrorCode::PROTOCOL_ERROR.0))
                && case.block.as_ref().is_some_and(|block| !block.sound)
        },
    },
    Difference {
        name: "the code for a frame of the wrong size",
        why: "FRAME_SIZE_ERROR (section 4.2) by us, PROTOCOL_ERROR by h2",
        applies: |case| {
            case.codes() == Some((ErrorCode::FRAME_SIZE_ERROR.0, ErrorCode::PROTOCOL_ERROR.0))
        },
    },
    Difference {
        name: "the code for an initial window that is too large",
        why: "FLOW_CONTROL_ERROR (section 6.5.2) by us, PROTOCOL_ERROR by h2",
        applies: |case| {
            case.frame.kind == kind::SETTINGS
                && case.codes()
                    == Some((ErrorCode::FLOW_CONTROL_ERROR.0, ErrorCode::PROTOCOL_ERROR.0))
        },
    },
    Difference {
        name: "the last stream that a GOAWAY names",
        why: "The highest that may have been acted upon (section 6.8). Ours counts the streams that were refused or reset at their \
              head, h2 does not; nobody repeats what was reset for an error",
        applies: |case| match (case.ours.goaway, case.theirs.goaway) {
            (Some((ours, a)), Some((theirs, b))) => a == b && ours > theirs,
            _ => false,
        },
    },
    Difference {
        name: "HEADERS on a stream that has ended",
        why: "STREAM_CLOSED, of the connection once both sides have ended, else of the stream (section 5.1), by us; h2 says \
              PROTOCOL_ERROR, or takes them for trailers while it still writes its answer",
        applies: |case| {
            case.block.is_some()
                && case.told_before().is_some_and(|told| told.ended || told.reset.is_some())
                && (case.ours.goaway.is_some_and(|(_, code)| code == ErrorCode::STREAM_CLOSED.0)
                    || case.we_reset(ErrorCode::STREAM_CLOSED)
                    || case.we_alone_end(ErrorCode::STREAM_CLOSED))
        },
    },
    Difference {
        name: "DATA on a stream that has ended",
        why: "A stream error STREAM_CLOSED (section 5.1) by us; h2 ends the connection while it still writes its answer",
        applies: |case| {
            case.frame.kind == kind::DATA
                && case.told_before().is_some_and(|told| told.ended)
                && case.we_reset(ErrorCode::STREAM_CLOSED)
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "DATA before the head of a response",
        why: "A malformed message, so a stream error (section 8.1.1), by us; h2 ends the connection",
        applies: |case| {
            case.role == Role::Client
                && case.frame.kind == kind::DATA
                && case.told_before().is_none_or(|told| told.head.is_none())
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "DATA within the window that h2 has opened already",
        why: "When to send WINDOW_UPDATE is left open (section 6.9): ours at half of the whole window, h2 at half of what is left",
        applies: |case| {
            let granted = |seen: &Seen, number| seen.granted.0.get(&number).copied().unwrap_or(0);
            let less = |number| granted(case.ours, number) < granted(case.theirs, number);
            case.frame.kind == kind::DATA
                && (case.we_reset(ErrorCode::FLOW_CONTROL_ERROR) && less(case.number())
                    || case.we_alone_end(ErrorCode::FLOW_CONTROL_ERROR) && less(0))
        },
    },
    Difference {
        name: "WINDOW_UPDATE of 0 on a stream",
        why: "A stream error (section 6.9), and nothing on a stream that has ended, by us; h2 ends the connection",
        applies: |case| {
            case.frame.kind == kind::WINDOW_UPDATE
                && case.number() != 0
                && case.frame.payload.iter().fold(0, |all, byte| all | byte) & 0x7f == 0
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "too large a WINDOW_UPDATE on a stream of which our side has ended",
        why: "An error of the stream (section 6.9.1) by us; h2 keeps no window where nothing will be sent",
        applies: |case| {
            case.frame.kind == kind::WINDOW_UPDATE
                && case.we_reset(ErrorCode::FLOW_CONTROL_ERROR)
                && case.before.written.get(&case.number()).is_some_and(|written| written.ended)
        },
    },
    Difference {
        name: "an acknowledgement of SETTINGS that were not sent",
        why: "Not in the RFC: suffered at a rate by us, the end of the connection in h2",
        applies: |case| {
            let is_ack =
                |frame: &Frame| frame.kind == kind::SETTINGS && frame.flags & flag::ACK != 0;
            is_ack(case.frame)
                && case.earlier.iter().any(is_ack)
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "PRIORITY of the wrong size",
        why: "A stream error FRAME_SIZE_ERROR (section 6.3) by us; h2 ends the connection",
        applies: |case| {
            case.frame.kind == kind::PRIORITY
                && case.frame.payload.len() != 5
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "PRIORITY of an idle stream on itself",
        why: "An idle stream cannot be reset (section 5.1), so we end the connection; h2 resets it",
        applies: |case| {
            case.frame.kind == kind::PRIORITY
                && case.we_alone_end(ErrorCode::PROTOCOL_ERROR)
                && case.they_reset(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "PUSH_PROMISE that cannot be read",
        why: "Never allowed towards a server, nor towards a client that has switched it off (section 6.6): the end of the \
              connection at once by us; h2 reads its block first",
        applies: |case| {
            case.frame.kind == kind::PUSH_PROMISE && case.we_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "a server that switches push on",
        why: "ENABLE_PUSH with the value 1 from a server has to end the connection (section 6.5.2); h2 takes it",
        applies: |case| {
            case.role == Role::Client
                && case.frame.kind == kind::SETTINGS
                && case.we_alone_end(ErrorCode::PROTOCOL_ERROR)
                && case.frame.payload.chunks_exact(6).any(|setting| setting == [0, 2, 0, 0, 0, 1])
        },
    },
    Difference {
        name: "a field that the types of the http crate cannot hold",
        why: "A malformed message is a stream error (section 8.1.1); h2 cannot decode it and ends the connection. Control characters \
              within a value are not malformed by section 8.2.1",
        applies: |case| {
            case.any_field(|name, value| !fits_http(name, value))
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "a target that is no http::Uri",
        why: "We hand on what the next layer has to know anyway; h2 resets the stream",
        applies: |case| {
            case.any_field(|name, value| !fits_uri(name, value))
                && case.they_reset(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "a request without :path",
        why: "Malformed (section 8.3.1) for us; h2 lets it pass when there is no :authority either",
        applies: |case| {
            case.role == Role::Server
                && case.is_head()
                && !case.any_field(|name, _| name == b":path")
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "white space around a value",
        why: "Malformed (section 8.2.1) for us; h2 lets it pass",
        applies: |case| {
            let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
            case.any_field(|_, value| edge(value.first()) || edge(value.last()))
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "pseudo-headers where they may not be",
        why: "Those of requests in responses and any in trailers are malformed (sections 8.1 and 8.3) for us; h2 drops them",
        applies: |case| {
            (case.is_trailers() && case.any_field(|name, _| name.starts_with(b":"))
                || case.role == Role::Client
                    && case.any_field(|name, _| name.starts_with(b":") && name != b":status"))
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "content-length in trailers",
        why: "Several that differ, or no number, are malformed (section 8.1.1) for us wherever they stand; h2 looks at heads",
        applies: |case| {
            case.is_trailers()
                && case.any_field(|name, _| name == b"content-length")
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "a client that leaves with an error",
        why: "It has given up, so we close at once; h2 goes on with what is open (section 6.8)",
        applies: |case| {
            case.role == Role::Server
                && case.frame.kind == kind::GOAWAY
                && case.frame.payload.get(4..8).is_some_and(|code| code != [0; 4])
                && case.ours.closed
                && !case.theirs.closed
        },
    },
    Difference {
        name: "the end after a client's GOAWAY",
        why: "h2 closes once the last stream has ended, we leave it to the client, who said that it would (section 6.8)",
        applies: |case| {
            case.role == Role::Server
                && case.earlier.iter().any(|frame| frame.kind == kind::GOAWAY)
                && !case.ours.closed
                && case.theirs.closed
                && case.theirs.goaway.is_none()
        },
    },
    Difference {
        name: "a malformed message on a stream of which both sides have ended",
        why: "Reset all the same (section 8.1.1) by us; h2 tells its application alone, also where the server has said GOAWAY with \
              an error",
        applies: |case| {
            let has_ended =
                case.before.written.get(&case.number()).is_some_and(|written| written.ended);
            let was_given_up = case.role == Role::Client
                && case.earlier.iter().any(|frame| frame.kind == kind::GOAWAY);
            case.block.as_ref().is_some_and(|block| block.end)
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && (has_ended || was_given_up)
                && case
                    .theirs
                    .told
                    .get(&case.number())
                    .is_some_and(|told| told.reset == Some(ErrorCode::PROTOCOL_ERROR.0))
        },
    },
    Difference {
        name: "a malformed block in several frames",
        why: "Judged as a whole (section 4.3) by us. h2 judges each part: it forgets what it found in a part that ends inside a \
              field, and takes what follows a part with a finding for a stray CONTINUATION",
        applies: |case| {
            let interrupted = case.earlier.last().is_some_and(|last| {
                matches!(last.kind, kind::HEADERS | kind::CONTINUATION)
                    && last.flags & flag::END_HEADERS == 0
            });
            if case.frame.kind != kind::CONTINUATION {
                return interrupted && case.we_alone_end(ErrorCode::PROTOCOL_ERROR);
            }
            case.we_reset(ErrorCode::PROTOCOL_ERROR)
                || case.we_alone_end(ErrorCode::COMPRESSION_ERROR)
                || case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "an empty content-length",
        why: "No number (RFC 9110, section 8.6) for us, 0 for h2",
        applies: |case| {
            case.any_field(|name, value| name == b"content-length" && value.is_empty())
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "a malformed request where no more streams are allowed",
        why: "Both errors are there: REFUSED_STREAM (section 5.1.2) by us, PROTOCOL_ERROR by h2",
        applies: |case| {
            case.we_reset(ErrorCode::REFUSED_STREAM) && case.they_reset(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "a malformed head on a stream that cannot have one",
        why: "Both errors are there: we look at the stream (section 5.1.1) and end the connection, h2 at the head and resets",
        applies: |case| {
            case.block.is_some()
                && case.we_alone_end(ErrorCode::PROTOCOL_ERROR)
                && case.they_reset(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "a reset of an answer that waits for the window of the connection",
        why: "Ends it (section 5.4.2) for us; h2 believes that it was sent already, keeps it, and sends it later",
        applies: |case| {
            case.role == Role::Server
                && case.frame.kind == kind::RST_STREAM
                && case.told_before().is_some_and(|told| told.ended)
                && case.before.written.get(&case.number()).is_none_or(|written| !written.ended)
                && case.theirs.told.get(&case.number()).is_some_and(|told| told.reset.is_none())
        },
    },
    Difference {
        name: "content-length of an informational response",
        why: "Says nothing of the response that follows (RFC 9110, section 15.2) for us; h2 holds that to it",
        applies: |case| {
            let told = case.theirs.told.get(&case.number());
            case.role == Role::Client
                && told.is_some_and(|told| told.reset == Some(ErrorCode::PROTOCOL_ERROR.0))
                && !case.ours.closed
                && case.earlier.iter().any(|frame| {
                    matches!(frame.kind, kind::HEADERS | kind::CONTINUATION)
                        && frame.stream & 0x7fff_ffff == case.number()
                })
                && (case.frame.kind == kind::DATA
                    || case.block.as_ref().is_some_and(|block| block.end))
        },
    },
    Difference {
        name: "a second GOAWAY with a higher stream",
        why: "The sender must not (section 6.8): nothing to us, who as a client have given those streams up; an error to h2",
        applies: |case| {
            case.frame.kind == kind::GOAWAY
                && case.earlier.iter().any(|frame| frame.kind == kind::GOAWAY)
                && case.ours.goaway.is_none()
                && case.theirs.goaway.is_some_and(|(_, code)| code == ErrorCode::PROTOCOL_ERROR.0)
        },
    },
    Difference {
        name: "an error of the last stream after a server's GOAWAY",
        why: "The connection is over once nothing is open: for the one who resets a stream earlier than for the other",
        applies: |case| {
            case.role == Role::Client
                && case.earlier.iter().any(|frame| frame.kind == kind::GOAWAY)
                && (case.we_are_done() || case.theirs.closed && case.theirs.goaway.is_none())
        },
    },
    Difference {
        name: "a field without a name in a block of several frames",
        why: "Malformed (section 8.2.1) for both; h2 takes it for the end of what has come so far, and its table is out of step with \
              its peer's from then on",
        applies: |case| case.nameless,
    },
    Difference {
        name: "HEADERS on a stream that was refused",
        why: "Sent before the peer knew, so to be ignored (section 5.1), by us; h2 ends the connection",
        applies: |case| {
            let written = case.before.written.get(&case.number());
            case.block.is_some()
                && written.is_some_and(|w| w.reset == Some(ErrorCode::REFUSED_STREAM.0))
                && case.they_alone_end(ErrorCode::PROTOCOL_ERROR)
        },
    },
    Difference {
        name: "more than one name of the host",
        why: "Two host fields (RFC 9112, section 3.2), or one that is not :authority (section 8.3.1): malformed for us, because the \
              next one may believe the other; h2 hands both on",
        applies: |case| {
            let Some(block) = &case.block else { return false };
            let values = |wanted: &[u8]| {
                block
                    .fields
                    .iter()
                    .filter(|(name, _)| name == wanted)
                    .map(|(_, value)| value)
                    .collect::<Vec<_>>()
            };
            let (hosts, authorities) = (values(b"host"), values(b":authority"));
            let others = authorities
                .first()
                .is_some_and(|authority| hosts.iter().any(|host| host != authority));
            (hosts.len() > 1 || others)
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "a host or a scheme that can be none",
        why: "With characters that RFC 3986, section 3.2, does not have there (user information included, section 8.3.1), or empty: \
              malformed for us; h2 looks at :authority alone",
        applies: |case| {
            let of_a_host =
                |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%[]".contains(byte);
            case.any_field(|name, value| match name {
                b"host" => !value.iter().all(of_a_host),
                b":scheme" => !value.first().is_some_and(u8::is_ascii_alphabetic),
                _ => false,
            }) && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
    Difference {
        name: "whose turn it is when the window of the connection is short",
        why: "Left open (section 5.3): as much is sent altogether",
        applies: |case| {
            let sent = |seen: &Seen| seen.written.values().map(|w| w.data_bytes).sum::<usize>();
            let apart = |seen: &Seen| Seen { written: Default::default(), ..seen.clone() };
            let resets = |seen: &Seen| {
                seen.written.iter().map(|(&number, w)| (number, w.reset)).collect::<Vec<_>>()
            };
            !case.ours.closed
                && apart(case.ours) == apart(case.theirs)
                && resets(case.ours) == resets(case.theirs)
                && sent(case.ours) == sent(case.theirs)
        },
    },
    Difference {
        name: "a path that does not begin with a slash",
        why: "Malformed (section 8.3.1) for us; h2 takes what an http::Uri takes",
        applies: |case| {
            case.any_field(|name, value| name == b":path" && !value.starts_with(b"/"))
                && case.we_reset(ErrorCode::PROTOCOL_ERROR)
                && !case.theirs.closed
        },
    },
];
