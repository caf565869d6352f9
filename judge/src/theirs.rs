//! The `h2` crate under the application of the comparison, over memory and without an executor: it is polled until nothing
//! moves any more.

use crate::seen::{FieldMap, OutputReader, Seen};
use crate::{Application, CLIENT_REQUESTS, STREAM_WINDOW_BYTES, STREAMS_MAX};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use prism_io::h2::Role;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both directions of a connection, in memory.
#[derive(Debug, Default)]
struct Bytes2 {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Pipe(Rc<RefCell<Bytes2>>);

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let incoming = &mut self.0.borrow_mut().incoming;
        if incoming.is_empty() {
            return Poll::Pending;
        }
        let count = incoming.len().min(buffer.remaining());
        let bytes: Vec<u8> = incoming.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().outgoing.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

enum State {
    Accepting(server::Handshake<Pipe, Bytes>),
    Server(server::Connection<Pipe, Bytes>),
    Client(client::Connection<Pipe, Bytes>),
    Ended,
}

/// What the application holds of a stream.
#[derive(Default)]
struct Handles {
    respond: Option<server::SendResponse<Bytes>>,
    response: Option<client::ResponseFuture>,
    receive: Option<RecvStream>,
    /// Read to the end, and held on to where nothing is consumed: letting go would consume it.
    read: Option<RecvStream>,
    send: Option<SendStream<Bytes>>,
}

/// One end of a connection.
pub struct Theirs {
    pipe: Pipe,
    state: State,
    streams: BTreeMap<u32, Handles>,
    /// Keeps a client open.
    _requests: Option<client::SendRequest<Bytes>>,
    reader: OutputReader,
    /// What was observed so far.
    pub seen: Seen,
}

const NEVER: Duration = Duration::from_secs(1 << 30);

impl Theirs {
    /// An end that has just been connected. A client has begun its requests.
    pub fn new(role: Role) -> Self {
        let pipe = Pipe::default();
        let mut streams = BTreeMap::new();
        let mut requests = None;
        let state = match role {
            Role::Server => {
                let mut builder = server::Builder::new();
                builder
                    .initial_window_size(STREAM_WINDOW_BYTES)
                    .max_concurrent_streams(STREAMS_MAX)
                    .max_header_list_size(1 << 20)
                    .max_concurrent_reset_streams(1 << 20)
                    .max_local_error_reset_streams(None)
                    .max_pending_accept_reset_streams(1 << 20)
                    .data_frame_budget(usize::MAX)
                    .reset_stream_duration(NEVER);
                State::Accepting(builder.handshake(pipe.clone()))
            }
            Role::Client => {
                let mut builder = client::Builder::new();
                builder
                    .initial_window_size(STREAM_WINDOW_BYTES)
                    .max_header_list_size(1 << 20)
                    .max_concurrent_reset_streams(1 << 20)
                    .max_local_error_reset_streams(None)
                    .max_pending_accept_reset_streams(1 << 20)
                    .data_frame_budget(usize::MAX)
                    .enable_push(false)
                    .reset_stream_duration(NEVER);
                let mut handshake = Box::pin(builder.handshake::<_, Bytes>(pipe.clone()));
                let mut context = Context::from_waker(Waker::noop());
                let Poll::Ready(Ok((mut sender, mut connection))) =
                    handshake.as_mut().poll(&mut context)
                else {
                    panic!("a client waits for nothing");
                };
                for nth in 0..CLIENT_REQUESTS {
                    let bytes = Application::of(nth * 2 + 1).answer_bytes;
                    let request = Request::post("http://b/a").body(()).expect("a request");
                    let _ = Pin::new(&mut connection).poll(&mut context);
                    assert!(sender.poll_ready(&mut context).is_ready(), "there is room");
                    let (response, mut send) =
                        sender.send_request(request, bytes == Some(0)).expect("room");
                    if let Some(bytes @ 1..) = bytes {
                        send.send_data(vec![7; bytes].into(), true).expect("an open stream");
                    }
                    let handles = Handles {
                        response: Some(response),
                        send: Some(send),
                        ..Handles::default()
                    };
                    streams.insert(nth * 2 + 1, handles);
                }
                requests = Some(sender);
                State::Client(connection)
            }
        };
        let mut theirs = Self {
            pipe,
            state,
            streams,
            _requests: requests,
            reader: OutputReader::default(),
            seen: Seen::default(),
        };
        theirs.turn();
        theirs
    }

    /// Takes bytes and does everything that follows from them.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Ended) {
            self.pipe.0.borrow_mut().incoming.extend(bytes);
            self.turn();
        }
    }

    fn turn(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut idle_rounds = 0;
        // What one part did may let another go on without a wake that we would see: two idle rounds are the end.
        while idle_rounds < 2 {
            let before = self.pipe.0.borrow().incoming.len();
            let mut moved = self.connection(&mut context);
            let numbers: Vec<u32> = self.streams.keys().copied().collect();
            for number in numbers {
                moved |= self.stream(number, &mut context);
            }
            let outgoing = std::mem::take(&mut self.pipe.0.borrow_mut().outgoing);
            self.reader.read(&outgoing, &mut self.seen);
            moved |= !outgoing.is_empty() || self.pipe.0.borrow().incoming.len() != before;
            idle_rounds = if moved { 0 } else { idle_rounds + 1 };
        }
    }

    /// True when something happened.
    fn connection(&mut self, context: &mut Context<'_>) -> bool {
        match &mut self.state {
            State::Accepting(handshake) => match Pin::new(handshake).poll(context) {
                Poll::Pending => false,
                Poll::Ready(Ok(connection)) => {
                    self.state = State::Server(connection);
                    true
                }
                Poll::Ready(Err(_)) => self.end(),
            },
            State::Server(connection) => match connection.poll_accept(context) {
                Poll::Pending => false,
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond);
                    true
                }
                Poll::Ready(Some(Err(_)) | None) => self.end(),
            },
            State::Client(connection) => match Pin::new(connection).poll(context) {
                Poll::Pending => false,
                Poll::Ready(_) => self.end(),
            },
            State::Ended => false,
        }
    }

    fn end(&mut self) -> bool {
        self.seen.closed = true;
        self.state = State::Ended;
        true
    }

    fn accept(&mut self, request: Request<RecvStream>, respond: server::SendResponse<Bytes>) {
        let (head, receive) = request.into_parts();
        let mut fields = field_map(&head.headers);
        let mut pseudo = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                fields.insert(name.to_string(), vec![value.as_bytes().to_vec()]);
            }
        };
        pseudo(":method", Some(head.method.as_str()));
        pseudo(":scheme", head.uri.scheme_str());
        pseudo(":authority", head.uri.authority().map(http::uri::Authority::as_str));
        pseudo(":path", head.uri.path_and_query().map(http::uri::PathAndQuery::as_str));
        let number = respond.stream_id().as_u32();
        self.seen.told(number).head = Some(fields);
        let handles =
            Handles { respond: Some(respond), receive: Some(receive), ..Handles::default() };
        self.streams.insert(number, handles);
    }

    /// True when something happened.
    fn stream(&mut self, number: u32, context: &mut Context<'_>) -> bool {
        let Some(handles) = self.streams.get_mut(&number) else { return false };
        let told = self.seen.told.entry(number).or_default();
        let application = Application::of(number);
        let mut moved = false;
        if let Some(response) = &mut handles.response {
            match Pin::new(response).poll(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(response)) => {
                    let (head, receive) = response.into_parts();
                    let mut fields = field_map(&head.headers);
                    let status = head.status.as_str().as_bytes().to_vec();
                    fields.insert(":status".to_string(), vec![status]);
                    told.head = Some(fields);
                    handles.receive = Some(receive);
                    handles.response = None;
                    moved = true;
                }
                Poll::Ready(Err(error)) => {
                    note_reset(&error, &mut told.reset);
                    handles.response = None;
                    moved = true;
                }
            }
        }
        if let Some(receive) = &mut handles.receive {
            while let Poll::Ready(next) = receive.poll_data(context) {
                moved = true;
                match next {
                    Some(Ok(payload)) => {
                        told.body.extend_from_slice(&payload);
                        if application.consumes {
                            let _ = receive.flow_control().release_capacity(payload.len());
                        }
                    }
                    Some(Err(error)) => {
                        note_reset(&error, &mut told.reset);
                        handles.receive = None;
                        break;
                    }
                    None => {
                        match receive.poll_trailers(context) {
                            Poll::Ready(Ok(trailers)) => {
                                told.trailers = trailers.as_ref().map(field_map);
                                told.ended = true;
                            }
                            Poll::Ready(Err(error)) => note_reset(&error, &mut told.reset),
                            Poll::Pending => panic!("no payload follows, so the end is known"),
                        }
                        let receive = handles.receive.take();
                        handles.read = receive.filter(|_| !application.consumes);
                        break;
                    }
                }
            }
        }
        if told.ended
            && let Some(bytes) = application.answer_bytes
            && let Some(mut respond) = handles.respond.take()
        {
            moved = true;
            let end = bytes == 0 && !application.trailers;
            if let Ok(mut send) = respond.send_response(Response::new(()), end) {
                if bytes > 0 {
                    let _ = send.send_data(vec![7; bytes].into(), !application.trailers);
                }
                if application.trailers {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("a-trailer", HeaderValue::from_static("1"));
                    let _ = send.send_trailers(trailers);
                }
                handles.send = Some(send);
            }
        }
        // A reset after the end of what the peer had to say shows on the sending side alone.
        if told.reset.is_none() {
            let reset = match (&mut handles.respond, &mut handles.send) {
                (Some(respond), _) => respond.poll_reset(context),
                (_, Some(send)) => send.poll_reset(context),
                _ => Poll::Pending,
            };
            if let Poll::Ready(Ok(reason)) = reset {
                told.reset = Some(reason.into());
                moved = true;
            }
        }
        moved
    }
}

fn note_reset(error: &h2::Error, reset: &mut Option<u32>) {
    if error.is_reset() {
        reset.get_or_insert(error.reason().map_or(0, u32::from));
    }
}

fn field_map(headers: &HeaderMap) -> FieldMap {
    let mut map = FieldMap::new();
    for (name, value) in headers {
        map.entry(name.as_str().to_string()).or_default().push(value.as_bytes().to_vec());
    }
    map
}
