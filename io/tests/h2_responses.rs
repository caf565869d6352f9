//! Responses as a client has to take them (RFC 9113, section 8.1).

mod h2_support;

use bytes::BytesMut;
use h2_support::Writer;
use prism_io::h2::{BareConnection, BareEvent, CloseReason, ErrorCode, Fields, Limits, Role};

/// What becomes of the head of a response that ends its stream.
fn ended(head: &str) -> String {
    let mut client = BareConnection::new(Role::Client, &Limits::default(), 0);
    let mut request = Fields::new();
    for (name, value) in [(":method", "POST"), (":scheme", "http"), (":path", "/")] {
        request.push(name.as_bytes(), value.as_bytes());
    }
    client.open(&request, false).expect("room");
    let frames = Writer::new().frames(&format!("SETTINGS -\nHEADERS 1 eh {head}"));
    client.receive(&mut BytesMut::from(&frames[..]), 0);
    match client.poll_event() {
        Some(BareEvent::Head { end: true, .. }) => "taken".to_string(),
        Some(BareEvent::Reset { code, .. }) => format!("{code:?}"),
        other => panic!("{other:?}"),
    }
}

/// Section 8.1.1: a content-length that nothing follows is malformed, except where there is never any content.
#[test]
fn what_has_no_content_may_have_a_length() {
    let malformed = format!("{:?}", ErrorCode::PROTOCOL_ERROR);
    for status in ["204", "304"] {
        assert_eq!(ended(&format!(":status={status} content-length=7")), "taken");
    }
    assert_eq!(ended(":status=200 content-length=7"), malformed);
    assert_eq!(ended(":status=200 content-length=0"), "taken");
    assert_eq!(ended(":status=204 content-length=x"), malformed);
}

/// Section 6.9.2: a side that has ended has no window, so a larger initial size cannot overflow it.
#[test]
fn a_window_of_which_nothing_is_sent_any_more_cannot_overflow() {
    let settings_after = |ended: bool| {
        let mut client = BareConnection::new(Role::Client, &Limits::default(), 0);
        let mut request = Fields::new();
        request.push(b":method", b"POST");
        client.open(&request, ended).expect("room");
        let frames =
            Writer::new().frames("SETTINGS -\nWU 1 2147418112\nSETTINGS - 4=100000\nPING -");
        client.receive(&mut BytesMut::from(&frames[..]), 0);
        assert!(client.poll_event().is_none());
        client.close_reason()
    };
    assert_eq!(settings_after(true), None);
    assert!(matches!(
        settings_after(false),
        Some(CloseReason::Error(ErrorCode::FLOW_CONTROL_ERROR, _))
    ));
}
