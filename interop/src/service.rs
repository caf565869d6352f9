//! `grpc.testing.TestService` on the loop of one thread, to the letter of gRPC's `interop-test-descriptions.md`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prism_io::grpc::{Code, Compressing, Message, Metadata, RequestHead, Route, Status};
use prism_io::h2::StreamId;
use prism_io::rt;
use prism_io::server::{Connection, Service, StreamCall, StreamClosed};
use prost::Message as _;

use crate::orca::OrcaLoadReport;
use crate::testing::{
    BoolValue, EchoStatus, Payload, ResponseParameters, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingInputCallResponse, StreamingOutputCallRequest,
    StreamingOutputCallResponse, TestOrcaReport,
};

const EMPTY: u32 = 0;
const UNARY: u32 = 1;
const OUTPUT: u32 = 2;
const INPUT: u32 = 3;
const FULL_DUPLEX: u32 = 4;
const HALF_DUPLEX: u32 = 5;
const LOAD: u32 = 6;

/// Metadata that is given back in the head of the answer.
const ECHO_INITIAL: &str = "x-grpc-test-echo-initial";
/// Metadata that is given back in the trailers.
const ECHO_TRAILING: &str = "x-grpc-test-echo-trailing-bin";
/// The trailer that carries a load report.
const LOAD_TRAILER: &str = "endpoint-load-metrics-bin";
/// The trailer of EmptyCall that says how many calls of FullDuplexCall with a deadline have ended under their handlers. For a client
/// whose words are held back on the way: then nobody but the server can have ended them.
const EXPIRED_TRAILER: &str = "x-prism-expired";
/// Who answers.
const SERVER_ID: &str = "prism";
/// How often load is reported to those who watch it.
const LOAD_INTERVAL: Duration = Duration::from_millis(50);
/// Largest payload that is made.
const PAYLOAD_BYTES_MAX: i32 = 32 << 20;
/// Most requests that HalfDuplexCall keeps.
const REQUESTS_MAX: usize = 1000;

/// The methods that are served.
pub fn route(path: &[u8]) -> Option<Route> {
    let (id, client_streaming, server_streaming) = match path {
        b"/grpc.testing.TestService/EmptyCall" => (EMPTY, false, false),
        b"/grpc.testing.TestService/UnaryCall" => (UNARY, false, false),
        b"/grpc.testing.TestService/StreamingOutputCall" => (OUTPUT, false, true),
        b"/grpc.testing.TestService/StreamingInputCall" => (INPUT, true, false),
        b"/grpc.testing.TestService/FullDuplexCall" => (FULL_DUPLEX, true, true),
        b"/grpc.testing.TestService/HalfDuplexCall" => (HALF_DUPLEX, true, true),
        b"/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics" => (LOAD, false, true),
        _ => return None,
    };
    Some(Route { id, client_streaming, server_streaming })
}

/// The service.
#[derive(Default)]
pub struct TestService {
    /// What FullDuplexCall was told to report last.
    load: Rc<RefCell<TestOrcaReport>>,
    /// What [`EXPIRED_TRAILER`] says.
    expired: Rc<Cell<u32>>,
}

/// How a call has failed.
struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: message.into() }
    }

    fn status(&self) -> Status<'_> {
        Status::new(self.code, &self.message)
    }
}

/// Why a call that streams has ended.
enum End {
    Failed(Failure),
    /// The caller has gone; nobody is to be told.
    Gone,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StreamClosed> for End {
    fn from(_: StreamClosed) -> Self {
        Self::Gone
    }
}

impl Service for TestService {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        head: RequestHead,
        message: Bytes,
    ) {
        match route {
            EMPTY => {
                let expired = self.expired.get().to_string();
                let trailers = [(EXPIRED_TRAILER, expired.as_bytes())];
                connection.respond(stream, Message::default(), &trailers);
            }
            UNARY => self.unary(connection, stream, &head, &message),
            OUTPUT => {
                let call = connection.stream(stream);
                call.end_in(head.timeout);
                rt::spawn(async move {
                    let outcome = async {
                        let request = decode::<StreamingOutputCallRequest>(message)?;
                        send_all(&call, &request).await
                    };
                    let outcome = outcome.await;
                    end(call, outcome, &[]);
                });
            }
            _ => self.report_load(connection.stream(stream), &head),
        }
    }

    fn open(&self, call: StreamCall, route: u32, head: RequestHead) {
        let echo = echo_trailing(&head.metadata);
        echo_initial(&head.metadata, |fields| call.send_headers(fields));
        let (load, expired) = (self.load.clone(), self.expired.clone());
        rt::spawn(async move {
            let outcome = match route {
                INPUT => sum_up(&call).await,
                FULL_DUPLEX => answer_each(&call, &load).await,
                _ => answer_all(&call).await,
            };
            let is_gone = matches!(outcome, Err(End::Gone));
            if route == FULL_DUPLEX && head.timeout.is_some() && is_gone {
                expired.set(expired.get() + 1);
            }
            end(call, outcome, &as_trailers(&echo));
        });
    }

    fn turn_ended(&self) {}
}

impl TestService {
    fn unary(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        head: &RequestHead,
        message: &Bytes,
    ) {
        let echo = echo_trailing(&head.metadata);
        let request = match decode::<SimpleRequest>(message.clone()) {
            Ok(request) => request,
            Err(failure) => return connection.fail(stream, &failure.status()),
        };
        let load = request.orca_per_query_report.as_ref().map(|report| report_of(report, true));
        let load = load.or_else(|| {
            let known = self.load.borrow();
            (*known != TestOrcaReport::default()).then(|| report_of(&known, true))
        });
        let load = load.map(|report| report.encode_to_vec());
        let mut trailers = as_trailers(&echo);
        trailers.extend(load.as_ref().map(|report| (LOAD_TRAILER, &report[..])));
        if let Err(failure) = check_compressed(&request.expect_compressed, head.compressed)
            .and_then(|()| check_status(&request.response_status))
        {
            return connection.fail(stream, &Status { trailers: &trailers, ..failure.status() });
        }
        if let Some(BoolValue { value }) = request.response_compressed {
            connection.set_compressing(stream, compressing(value));
        }
        echo_initial(&head.metadata, |fields| connection.send_headers(stream, fields));
        match payload(request.response_size) {
            Ok(payload) => {
                let server_id =
                    if request.fill_server_id { SERVER_ID.to_owned() } else { String::new() };
                let response = SimpleResponse {
                    payload: Some(payload),
                    server_id,
                    ..SimpleResponse::default()
                };
                let message = Message { head: b"", tail: response.encode_to_vec().into() };
                connection.respond(stream, message, &trailers);
            }
            Err(failure) => connection.fail(stream, &failure.status()),
        }
    }

    fn report_load(&self, call: StreamCall, head: &RequestHead) {
        call.end_in(head.timeout);
        let load = self.load.clone();
        rt::spawn(async move {
            loop {
                let report = report_of(&load.borrow(), false).encode_to_vec();
                if call.send(Message::new(&report)).await.is_err() {
                    return;
                }
                if rt::timeout(LOAD_INTERVAL, call.closed()).await.is_some() {
                    return;
                }
            }
        });
    }
}

fn report_of(report: &TestOrcaReport, with_cost: bool) -> OrcaLoadReport {
    OrcaLoadReport {
        cpu_utilization: report.cpu_utilization,
        mem_utilization: report.memory_utilization,
        request_cost: if with_cost { report.request_cost.clone() } else { Default::default() },
        utilization: report.utilization.clone(),
    }
}

fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M, Failure> {
    M::decode(message).map_err(|error| Failure::invalid(error.to_string()))
}

fn compressing(wanted: bool) -> Compressing {
    if wanted { Compressing::Always } else { Compressing::Never }
}

fn check_compressed(expected: &Option<BoolValue>, compressed: bool) -> Result<(), Failure> {
    match expected {
        Some(BoolValue { value }) if *value != compressed => {
            let how = if compressed { "compressed" } else { "uncompressed" };
            Err(Failure::invalid(format!("the message came {how}")))
        }
        _ => Ok(()),
    }
}

fn check_status(wanted: &Option<EchoStatus>) -> Result<(), Failure> {
    match wanted {
        Some(EchoStatus { code, message }) if *code != 0 => {
            let code = Code::from_number(u32::try_from(*code).unwrap_or(u32::MAX));
            Err(Failure { code, message: message.clone() })
        }
        _ => Ok(()),
    }
}

fn payload(bytes: i32) -> Result<Payload, Failure> {
    if !(0..=PAYLOAD_BYTES_MAX).contains(&bytes) {
        return Err(Failure::invalid(format!("a payload of {bytes} bytes cannot be made")));
    }
    Ok(Payload { r#type: 0, body: vec![0; bytes as usize].into() })
}

fn echo_initial(metadata: &Metadata, send: impl FnOnce(&[(&str, &[u8])]) -> bool) {
    if let Some(value) = metadata.get(ECHO_INITIAL) {
        send(&[(ECHO_INITIAL, value)]);
    }
}

fn echo_trailing(metadata: &Metadata) -> Option<Vec<u8>> {
    metadata.get_bin(ECHO_TRAILING)
}

fn as_trailers(echo: &Option<Vec<u8>>) -> Vec<(&str, &[u8])> {
    echo.iter().map(|value| (ECHO_TRAILING, &value[..])).collect()
}

fn end(call: StreamCall, outcome: Result<(), End>, trailers: &[(&str, &[u8])]) {
    match outcome {
        Ok(()) => call.finish(trailers),
        Err(End::Failed(failure)) => call.fail(&Status { trailers, ..failure.status() }),
        Err(End::Gone) => {}
    }
}

async fn send_all(call: &StreamCall, request: &StreamingOutputCallRequest) -> Result<(), End> {
    for parameters in &request.response_parameters {
        let ResponseParameters { size, interval_us, compressed } = parameters;
        if *interval_us > 0 {
            let interval = Duration::from_micros(*interval_us as u64);
            if rt::timeout(interval, call.closed()).await.is_some() {
                return Err(End::Gone);
            }
        }
        if let Some(BoolValue { value }) = compressed {
            call.set_compressing(compressing(*value));
        }
        let response = StreamingOutputCallResponse { payload: Some(payload(*size)?) };
        call.send(Message { head: b"", tail: response.encode_to_vec().into() }).await?;
    }
    Ok(())
}

/// StreamingInputCall.
async fn sum_up(call: &StreamCall) -> Result<(), End> {
    let mut bytes = 0;
    while let Some((message, compressed)) = call.next_as_it_came().await? {
        let request = decode::<StreamingInputCallRequest>(message)?;
        check_compressed(&request.expect_compressed, compressed)?;
        bytes += request.payload.map_or(0, |payload| payload.body.len());
    }
    let response = StreamingInputCallResponse { aggregated_payload_size: bytes as i32 };
    call.send(Message::new(&response.encode_to_vec())).await?;
    Ok(())
}

/// FullDuplexCall.
async fn answer_each(call: &StreamCall, load: &RefCell<TestOrcaReport>) -> Result<(), End> {
    while let Some(message) = call.next().await? {
        let request = decode::<StreamingOutputCallRequest>(message)?;
        check_status(&request.response_status)?;
        if let Some(report) = &request.orca_oob_report {
            load.replace(report.clone());
        }
        send_all(call, &request).await?;
    }
    Ok(())
}

/// HalfDuplexCall.
async fn answer_all(call: &StreamCall) -> Result<(), End> {
    let mut requests = Vec::new();
    while let Some(message) = call.next().await? {
        if requests.len() == REQUESTS_MAX {
            return Err(Failure::invalid(format!("more than {REQUESTS_MAX} requests")).into());
        }
        requests.push(decode::<StreamingOutputCallRequest>(message)?);
    }
    for request in &requests {
        check_status(&request.response_status)?;
        send_all(call, request).await?;
    }
    Ok(())
}
