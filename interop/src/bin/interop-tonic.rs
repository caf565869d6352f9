//! gRPC's interop cases with tonic: `interop-tonic ADDRESS [CERTIFICATE]`, over TLS to a server with that certificate. What each has to do stands in gRPC's `interop-test-descriptions.md`.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_interop::client::open_rca_service_client::OpenRcaServiceClient;
use prism_interop::client::test_service_client::TestServiceClient;
use prism_interop::client::unimplemented_service_client::UnimplementedServiceClient;
use prism_interop::orca::{OrcaLoadReport, OrcaLoadReportRequest};
use prism_interop::testing::{
    BoolValue, EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest,
    StreamingInputCallRequest, StreamingOutputCallRequest, StreamingOutputCallResponse,
    TestOrcaReport,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

type Client = TestServiceClient<Channel>;
type Outcome = Result<(), String>;

const LARGE_REQUEST: usize = 271_828;
const LARGE_RESPONSE: usize = 314_159;
const REQUEST_SIZES: [usize; 4] = [27_182, 8, 1_828, 45_904];
const RESPONSE_SIZES: [i32; 4] = [31_415, 9, 2_653, 58_979];
const ECHO_INITIAL: &str = "x-grpc-test-echo-initial";
const ECHO_TRAILING: &str = "x-grpc-test-echo-trailing-bin";
const SPECIAL: &str = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
/// How long one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(20);

fn main() {
    let address = std::env::args().nth(1).expect("usage: interop-tonic ADDRESS [CERTIFICATE]");
    let certificate = std::env::args().nth(2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = run(&address, certificate.as_deref());
    let failed = runtime.block_on(LocalSet::new().run_until(run));
    std::process::exit(i32::from(failed > 0));
}

async fn connect(address: &str, certificate: Option<&str>) -> Channel {
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).expect("an address");
    if let Some(certificate) = certificate {
        let pem = std::fs::read(certificate).expect("a certificate");
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls.domain_name("localhost")).expect("a certificate");
    }
    endpoint.connect().await.expect("a connection")
}

async fn run(address: &str, certificate: Option<&str>) -> usize {
    let channel = connect(address, certificate).await;
    let plain = TestServiceClient::new(channel.clone());
    // Sends compressed requests.
    let sends = TestServiceClient::new(channel.clone()).send_compressed(Gzip);
    // Takes compressed answers, by a way on which they are weighed.
    let tap = Tap::to(address).await;
    let tapped = connect(&tap.address, certificate).await;
    let takes = || TestServiceClient::new(tapped.clone()).accept_compressed(Gzip);
    let muted = TestServiceClient::new(tapped.clone());
    let mut failed = 0;
    failed += case("empty_unary", empty_unary(plain.clone())).await;
    failed += case("large_unary", large_unary(plain.clone())).await;
    failed +=
        case("client_compressed_unary", client_compressed_unary(plain.clone(), sends.clone()))
            .await;
    failed += case("server_compressed_unary", server_compressed_unary(takes(), &tap)).await;
    failed += case("client_streaming", client_streaming(plain.clone())).await;
    let streaming = client_compressed_streaming(plain.clone(), sends);
    failed += case("client_compressed_streaming", streaming).await;
    failed += case("server_streaming", server_streaming(plain.clone())).await;
    let streaming = server_compressed_streaming(takes(), &tap);
    failed += case("server_compressed_streaming", streaming).await;
    failed += case("ping_pong", ping_pong(plain.clone())).await;
    failed += case("empty_stream", empty_stream(plain.clone())).await;
    failed += case("cancel_after_begin", cancel_after_begin(plain.clone())).await;
    let cancelled = cancel_after_first_response(plain.clone());
    failed += case("cancel_after_first_response", cancelled).await;
    failed += case("custom_metadata", custom_metadata(plain.clone())).await;
    failed += case("status_code_and_message", status_code_and_message(plain.clone())).await;
    failed += case("special_status_message", special_status_message(plain.clone())).await;
    failed += case("unimplemented_method", unimplemented_method(plain.clone())).await;
    failed += case("unimplemented_service", unimplemented_service(channel.clone())).await;
    println!("without tonic: pick_first_unary (tonic has no load balancing policies)");
    failed += case("orca_per_rpc", orca_per_rpc(plain.clone())).await;
    failed += case("orca_oob", orca_oob(plain.clone(), channel)).await;
    failed += case("rpc_soak", rpc_soak(plain.clone())).await;
    failed += case("channel_soak", channel_soak(address, certificate)).await;
    // The last one: its connection says nothing any more.
    failed +=
        case("timeout_on_sleeping_server", timeout_on_sleeping_server(muted, plain, &tap)).await;
    failed
}

/// A way to the server on which what comes back is counted, and what goes there can be held back.
struct Tap {
    address: String,
    /// Bytes that have come from the server.
    came: Rc<Cell<usize>>,
    is_mute: Rc<Cell<bool>>,
}

impl Tap {
    /// Needs a runtime of one thread, which it takes a task of.
    async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (came, is_mute) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let (server, counted, mute) = (server.to_owned(), came.clone(), is_mute.clone());
        tokio::task::spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(upstream) = TcpStream::connect(&server).await else { return };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = upstream.into_split();
                let mute = mute.clone();
                tokio::task::spawn_local(pass(from_client, to_server, move |_| !mute.get()));
                let counted = counted.clone();
                tokio::task::spawn_local(pass(from_server, to_client, move |count| {
                    counted.set(counted.get() + count);
                    true
                }));
            }
        });
        Tap { address, came, is_mute }
    }

    /// Whether so many bytes come for what `call` asks for. Framing, heads and acknowledgements may add a little.
    async fn weigh(&self, wanted: usize, call: impl Future<Output = Outcome>) -> Outcome {
        const SPARE: usize = 8 * 1024;
        let before = self.came.get();
        call.await?;
        let came = self.came.get() - before;
        let fits = (wanted..wanted + SPARE).contains(&came);
        if fits { Ok(()) } else { Err(format!("{came} bytes came, and not about {wanted}")) }
    }
}

/// Passes on what `may` lets pass, and throws the rest away.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, may: impl Fn(usize) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if may(count) && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn case(name: &str, run: impl Future<Output = Outcome>) -> usize {
    let began = Instant::now();
    let outcome = match tokio::time::timeout(CASE_TIMEOUT, run).await {
        Ok(outcome) => outcome,
        Err(_) => Err("not done in time".into()),
    };
    match outcome {
        Ok(()) => {
            println!("ok      tonic: {name} ({} ms)", began.elapsed().as_millis());
            0
        }
        Err(message) => {
            println!("FAILED  tonic: {name}: {message}");
            1
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(seen: T, wanted: T) -> Outcome {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?} is not {wanted:?}")) }
}

fn text(status: Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn fails<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    message: Option<&str>,
) -> Outcome {
    let status = result.err().ok_or_else(|| format!("{code:?} was to come"))?;
    same(status.code(), code)?;
    message.map_or(Ok(()), |message| same(status.message(), message))
}

fn zeros(bytes: usize) -> Option<Payload> {
    Some(Payload { r#type: 0, body: vec![0; bytes].into() })
}

fn large() -> SimpleRequest {
    SimpleRequest {
        response_size: LARGE_RESPONSE as i32,
        payload: zeros(LARGE_REQUEST),
        ..SimpleRequest::default()
    }
}

fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

fn parameters(size: i32, compressed: Option<BoolValue>) -> ResponseParameters {
    ResponseParameters { size, interval_us: 0, compressed }
}

fn ask(size: i32, body: usize) -> StreamingOutputCallRequest {
    StreamingOutputCallRequest {
        response_parameters: vec![parameters(size, None)],
        payload: zeros(body),
        ..StreamingOutputCallRequest::default()
    }
}

fn bytes(response: &StreamingOutputCallResponse) -> i32 {
    response.payload.as_ref().map_or(0, |payload| payload.body.len()) as i32
}

async fn large_call(client: &mut Client, request: SimpleRequest) -> Outcome {
    let response = client.unary_call(request).await.map_err(text)?.into_inner();
    same(response.payload, zeros(LARGE_RESPONSE))
}

async fn empty_unary(mut client: Client) -> Outcome {
    same(client.empty_call(Empty {}).await.map_err(text)?.into_inner(), Empty {})
}

async fn large_unary(mut client: Client) -> Outcome {
    large_call(&mut client, large()).await
}

async fn client_compressed_unary(mut plain: Client, mut sends: Client) -> Outcome {
    let expecting = |value| SimpleRequest { expect_compressed: flag(value), ..large() };
    fails(plain.unary_call(expecting(true)).await, Code::InvalidArgument, None)?;
    large_call(&mut sends, expecting(true)).await?;
    large_call(&mut plain, expecting(false)).await
}

async fn server_compressed_unary(mut takes: Client, tap: &Tap) -> Outcome {
    for value in [true, false] {
        let request = SimpleRequest { response_compressed: flag(value), ..large() };
        // Zeros in gzip are next to nothing.
        let wanted = if value { 0 } else { LARGE_RESPONSE };
        let call = async {
            let response = takes.unary_call(request).await.map_err(text)?;
            let encoding = response.metadata().get("grpc-encoding").map(|value| value.as_bytes());
            same(encoding, value.then_some(&b"gzip"[..]))?;
            same(response.into_inner().payload, zeros(LARGE_RESPONSE))
        };
        tap.weigh(wanted, call).await?;
    }
    Ok(())
}

async fn sum(client: &mut Client, requests: Vec<StreamingInputCallRequest>) -> Result<i32, Status> {
    let response = client.streaming_input_call(tokio_stream::iter(requests)).await?;
    Ok(response.into_inner().aggregated_payload_size)
}

async fn client_streaming(mut client: Client) -> Outcome {
    let request =
        |size| StreamingInputCallRequest { payload: zeros(size), expect_compressed: None };
    same(sum(&mut client, REQUEST_SIZES.map(request).into()).await.map_err(text)?, 74_922)
}

async fn client_compressed_streaming(mut plain: Client, mut sends: Client) -> Outcome {
    let request = |size, value| StreamingInputCallRequest {
        payload: zeros(size),
        expect_compressed: flag(value),
    };
    fails(sum(&mut plain, vec![request(27_182, true)]).await, Code::InvalidArgument, None)?;
    let packed = vec![request(27_182, true), request(45_904, true)];
    same(sum(&mut sends, packed).await.map_err(text)?, 73_086)?;
    same(sum(&mut plain, vec![request(45_904, false)]).await.map_err(text)?, 45_904)
}

async fn output(
    client: &mut Client,
    response_parameters: Vec<ResponseParameters>,
) -> Result<Vec<i32>, Status> {
    let request =
        StreamingOutputCallRequest { response_parameters, ..StreamingOutputCallRequest::default() };
    let mut responses = client.streaming_output_call(request).await?.into_inner();
    let mut sizes = Vec::new();
    while let Some(response) = responses.message().await? {
        sizes.push(bytes(&response));
    }
    Ok(sizes)
}

async fn server_streaming(mut client: Client) -> Outcome {
    let wanted = RESPONSE_SIZES.map(|size| parameters(size, None));
    same(output(&mut client, wanted.into()).await.map_err(text)?, RESPONSE_SIZES.into())
}

async fn server_compressed_streaming(mut takes: Client, tap: &Tap) -> Outcome {
    for first in [true, false] {
        let wanted = vec![parameters(31_415, flag(first)), parameters(92_653, flag(!first))];
        let plain = if first { 92_653 } else { 31_415 };
        let call =
            async { same(output(&mut takes, wanted).await.map_err(text)?, vec![31_415, 92_653]) };
        tap.weigh(plain, call).await?;
    }
    Ok(())
}

async fn ping_pong(mut client: Client) -> Outcome {
    let (requests, queue) = mpsc::channel(1);
    let call = client.full_duplex_call(ReceiverStream::new(queue));
    requests.send(ask(RESPONSE_SIZES[0], REQUEST_SIZES[0])).await.map_err(|e| e.to_string())?;
    let mut responses = call.await.map_err(text)?.into_inner();
    for round in 0..RESPONSE_SIZES.len() {
        let response = responses.message().await.map_err(text)?.ok_or("too few answers")?;
        same(bytes(&response), RESPONSE_SIZES[round])?;
        if let Some(size) = RESPONSE_SIZES.get(round + 1) {
            let next = ask(*size, REQUEST_SIZES[round + 1]);
            requests.send(next).await.map_err(|error| error.to_string())?;
        }
    }
    drop(requests);
    same(responses.message().await.map_err(text)?, None)
}

async fn empty_stream(mut client: Client) -> Outcome {
    let responses = client.full_duplex_call(tokio_stream::empty()).await.map_err(text)?;
    same(responses.into_inner().next().await.map(|_| ()), None)
}

/// tonic cancels a call whose future is dropped; what the server saw of it shows in that it goes on serving.
async fn cancel_after_begin(mut client: Client) -> Outcome {
    let (requests, queue) = mpsc::channel::<StreamingInputCallRequest>(1);
    let call = client.streaming_input_call(ReceiverStream::new(queue));
    let given_up = tokio::time::timeout(Duration::from_millis(20), call).await;
    same(given_up.is_err(), true)?;
    drop(requests);
    large_unary(client).await
}

async fn cancel_after_first_response(mut client: Client) -> Outcome {
    let (requests, queue) = mpsc::channel(1);
    requests.send(ask(31_415, 27_182)).await.map_err(|error| error.to_string())?;
    let call = client.full_duplex_call(ReceiverStream::new(queue)).await.map_err(text)?;
    let mut responses = call.into_inner();
    let first = responses.message().await.map_err(text)?.ok_or("no answer")?;
    same(bytes(&first), 31_415)?;
    drop((responses, requests));
    large_unary(client).await
}

/// How many calls have ended under their handlers at the server.
async fn expired(client: &mut Client) -> Result<u32, String> {
    let response = client.empty_call(Empty {}).await.map_err(text)?;
    let told = response.metadata().get("x-prism-expired").and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).ok_or_else(|| "the server does not say".to_owned())
}

/// tonic watches the time itself, and calls its own time-out CANCELLED; so it is kept from telling the server, which has to end the call
/// by the field that it was sent.
async fn timeout_on_sleeping_server(mut client: Client, mut other: Client, tap: &Tap) -> Outcome {
    let before = expired(&mut other).await?;
    let (requests, queue) = mpsc::channel(1);
    requests.send(ask(1, 27_182)).await.map_err(|error| error.to_string())?;
    let mut request = Request::new(ReceiverStream::new(queue));
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("500m"));
    let outcome = async {
        let mut responses = client.full_duplex_call(request).await?.into_inner();
        // The first answer shows that the server has the call.
        let first = responses.message().await?;
        tap.is_mute.set(true);
        if first.is_none() {
            return Err(Status::unknown("the call has ended"));
        }
        responses.message().await.map(|_| ())
    };
    let status = outcome.await.err().ok_or("the call did not end")?;
    same(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), true)?;
    while expired(&mut other).await? == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn check_echo(head: &MetadataMap, trailers: &MetadataMap) -> Outcome {
    same(
        head.get(ECHO_INITIAL).map(|value| value.as_bytes()),
        Some(b"test_initial_metadata_value"),
    )?;
    let trailing = trailers.get_bin(ECHO_TRAILING).and_then(|value| value.to_bytes().ok());
    same(trailing.as_deref(), Some(&[0xab, 0xab, 0xab][..]))
}

fn with_echo<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let initial = MetadataValue::from_static("test_initial_metadata_value");
    request.metadata_mut().insert(ECHO_INITIAL, initial);
    let trailing = MetadataValue::from_bytes(&[0xab, 0xab, 0xab]);
    request.metadata_mut().insert_bin(ECHO_TRAILING, trailing);
    request
}

async fn custom_metadata(mut client: Client) -> Outcome {
    let response = client.unary_call(with_echo(large())).await.map_err(text)?;
    // tonic merges the trailers of a unary call into its metadata.
    check_echo(response.metadata(), response.metadata())?;
    let requests = tokio_stream::iter([ask(LARGE_RESPONSE as i32, LARGE_REQUEST)]);
    let response = client.full_duplex_call(with_echo(requests)).await.map_err(text)?;
    let head = response.metadata().clone();
    let mut responses = response.into_inner();
    while responses.message().await.map_err(text)?.is_some() {}
    let trailers = responses.trailers().await.map_err(text)?.ok_or("no trailers")?;
    check_echo(&head, &trailers)
}

async fn status_code_and_message(mut client: Client) -> Outcome {
    let message = "test status message";
    let response_status = Some(EchoStatus { code: 2, message: message.into() });
    let request =
        SimpleRequest { response_status: response_status.clone(), ..SimpleRequest::default() };
    fails(client.unary_call(request).await, Code::Unknown, Some(message))?;
    let request = StreamingOutputCallRequest { response_status, ..Default::default() };
    let outcome = match client.full_duplex_call(tokio_stream::iter([request])).await {
        Ok(responses) => responses.into_inner().message().await,
        Err(status) => Err(status),
    };
    fails(outcome, Code::Unknown, Some(message))
}

async fn special_status_message(mut client: Client) -> Outcome {
    let response_status = Some(EchoStatus { code: 2, message: SPECIAL.into() });
    let request = SimpleRequest { response_status, ..SimpleRequest::default() };
    fails(client.unary_call(request).await, Code::Unknown, Some(SPECIAL))
}

async fn unimplemented_method(mut client: Client) -> Outcome {
    fails(client.unimplemented_call(Empty {}).await, Code::Unimplemented, None)
}

async fn unimplemented_service(channel: Channel) -> Outcome {
    let mut client = UnimplementedServiceClient::new(channel);
    fails(client.unimplemented_call(Empty {}).await, Code::Unimplemented, None)
}

/// tonic has no interface for load reports: they are read where they are sent.
async fn orca_per_rpc(mut client: Client) -> Outcome {
    let report = TestOrcaReport {
        cpu_utilization: 0.8210,
        memory_utilization: 0.5847,
        request_cost: [("cost".to_owned(), 3456.32)].into(),
        utilization: [("util".to_owned(), 0.30499)].into(),
    };
    let request =
        SimpleRequest { orca_per_query_report: Some(report.clone()), ..SimpleRequest::default() };
    let response = client.unary_call(request).await.map_err(text)?;
    let told = response.metadata().get_bin("endpoint-load-metrics-bin").ok_or("no report")?;
    let told = told.to_bytes().map_err(|error| error.to_string())?;
    let told = OrcaLoadReport::decode(told).map_err(|error| error.to_string())?;
    same(told, as_told(report))
}

fn as_told(report: TestOrcaReport) -> OrcaLoadReport {
    OrcaLoadReport {
        cpu_utilization: report.cpu_utilization,
        mem_utilization: report.memory_utilization,
        request_cost: report.request_cost,
        utilization: report.utilization,
    }
}

async fn orca_oob(mut client: Client, channel: Channel) -> Outcome {
    let mut watcher = OpenRcaServiceClient::new(channel);
    let reports = watcher.stream_core_metrics(OrcaLoadReportRequest::default()).await;
    let mut reports = reports.map_err(text)?.into_inner();
    let (requests, queue) = mpsc::channel(1);
    let call = client.full_duplex_call(ReceiverStream::new(queue));
    let mut call = Some(call);
    let mut responses = None;
    for (cpu, memory, util) in [(0.8210, 0.5847, 0.30499), (0.29309, 0.2, 0.2039)] {
        let report = TestOrcaReport {
            cpu_utilization: cpu,
            memory_utilization: memory,
            utilization: [("util".to_owned(), util)].into(),
            ..TestOrcaReport::default()
        };
        let request =
            StreamingOutputCallRequest { orca_oob_report: Some(report.clone()), ..ask(1, 0) };
        requests.send(request).await.map_err(|error| error.to_string())?;
        if let Some(call) = call.take() {
            responses = Some(call.await.map_err(text)?.into_inner());
        }
        let responses = responses.as_mut().ok_or("no call")?;
        responses.message().await.map_err(text)?.ok_or("no answer")?;
        let wanted = as_told(report);
        while reports.message().await.map_err(text)?.ok_or("no report")? != wanted {}
    }
    Ok(())
}

/// Calls of each soak, and how many are under way at once.
const SOAK: (usize, usize) = (200, 4);

async fn rpc_soak(client: Client) -> Outcome {
    let (calls, at_once) = SOAK;
    let mut under_way = JoinSet::new();
    for _ in 0..at_once {
        let mut client = client.clone();
        under_way.spawn(async move {
            for _ in 0..calls / at_once {
                large_call(&mut client, large()).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = under_way.join_next().await {
        ended.map_err(|error| error.to_string())??;
    }
    Ok(())
}

async fn channel_soak(address: &str, certificate: Option<&str>) -> Outcome {
    let (calls, at_once) = SOAK;
    for _ in 0..calls / at_once {
        let mut under_way = JoinSet::new();
        for _ in 0..at_once {
            let channel = connect(address, certificate).await;
            under_way.spawn(large_unary(TestServiceClient::new(channel)));
        }
        while let Some(ended) = under_way.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
    }
    Ok(())
}
