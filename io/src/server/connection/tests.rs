//! How much of a connection one turn of the loop takes.

use super::*;
use crate::grpc::{ClientConnection, Limits, RequestHead, Route};

/// More than one turn takes, and fewer than a client may send before it has heard of a bound.
const CALLS: usize = 90;

/// Counts calls, and answers each.
#[derive(Default)]
struct Counting(Cell<usize>);

impl Service for Counting {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        _route: u32,
        _head: RequestHead,
        _message: Bytes,
    ) {
        self.0.set(self.0.get() + 1);
        connection.respond(stream, Message::new(b"a"), &[]);
    }

    fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {}

    fn turn_ended(&self) {}
}

#[test]
fn a_long_queue_of_one_connection_is_taken_in_several_turns() {
    let route = |_: &[u8]| Some(Route { id: 1, client_streaming: false, server_streaming: false });
    let options = Options::new(Limits::default(), route, 1);
    let (connection, _) = Connection::to_nowhere(&options, ([127, 0, 0, 1], 1).into());
    let mut client = ClientConnection::new(&Limits::default(), "test", 0);
    for _ in 0..CALLS {
        client.call(b"/test.Counting/Count", Message::new(b"a"), &[], None).unwrap();
    }
    let mut output = Output::default();
    client.swap_output(&mut output);
    let mut buffer = BytesMut::from(&output.inline[..]);
    let count = buffer.len();
    rt::run(async move {
        let service = Counting::default();
        connection.take_in(&mut buffer, count, &service);
        assert_eq!(service.0.get(), REQUESTS_TURN);
        // Others have a turn before it goes on, and then all of it is taken.
        let others = Rc::new(Cell::new(0));
        let other = others.clone();
        rt::spawn(async move { other.set(1) });
        connection.go_on(&service).await;
        assert_eq!((others.get(), service.0.get()), (1, CALLS));
        assert!(!connection.has_more.get());
    })
    .unwrap();
}
