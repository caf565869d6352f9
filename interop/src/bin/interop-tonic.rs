//! gRPC's interop cases with tonic: `interop-tonic ADDRESS [CERTIFICATE]`, over TLS to a server with that certificate. What each has to do stands in gRPC's `interop-test-descriptions.md`.

use std::future::Future;
use std::time::{Duration, Instant};

use prism_interop::client::test_service_client::TestServiceClient;
use prism_interop::client::unimplemented_service_client::UnimplementedServiceClient;
use prism_interop::testing::{
    BoolValue, EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest,
    StreamingInputCallRequest, StreamingOutputCallRequest, StreamingOutputCallResponse,
};
use tokio::sync::mpsc;
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
    let failed = runtime.block_on(run(&address, certificate.as_deref()));
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
    // Takes compressed answers, and sends compressed requests.
    let takes = TestServiceClient::new(channel.clone()).accept_compressed(Gzip);
    let sends = TestServiceClient::new(channel.clone()).send_compressed(Gzip);
    let mut failed = 0;
    failed += case("empty_unary", empty_unary(plain.clone())).await;
    failed += case("large_unary", large_unary(plain.clone())).await;
    failed +=
        case("client_compressed_unary", client_compressed_unary(plain.clone(), sends.clone()))
            .await;
    failed += case("server_compressed_unary", server_compressed_unary(takes.clone())).await;
    failed += case("client_streaming", client_streaming(plain.clone())).await;
    let streaming = client_compressed_streaming(plain.clone(), sends);
    failed += case("client_compressed_streaming", streaming).await;
    failed += case("server_streaming", server_streaming(plain.clone())).await;
    failed += case("server_compressed_streaming", server_compressed_streaming(takes)).await;
    failed += case("ping_pong", ping_pong(plain.clone())).await;
    failed += case("empty_stream", empty_stream(plain.clone())).await;
    failed += case("cancel_after_begin", cancel_after_begin(plain.clone())).await;
    let cancelled = cancel_after_first_response(plain.clone());
    failed += case("cancel_after_first_response", cancelled).await;
    failed += case("timeout_on_sleeping_server", timeout_on_sleeping_server(plain.clone())).await;
    failed += case("custom_metadata", custom_metadata(plain.clone())).await;
    failed += case("status_code_and_message", status_code_and_message(plain.clone())).await;
    failed += case("special_status_message", special_status_message(plain.clone())).await;
    failed += case("unimplemented_method", unimplemented_method(plain)).await;
    failed += case("unimplemented_service", unimplemented_service(channel)).await;
    failed
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

async fn server_compressed_unary(mut takes: Client) -> Outcome {
    for value in [true, false] {
        let request = SimpleRequest { response_compressed: flag(value), ..large() };
        let response = takes.unary_call(request).await.map_err(text)?;
        let encoding = response.metadata().get("grpc-encoding").map(|value| value.as_bytes());
        same(encoding, value.then_some(&b"gzip"[..]))?;
        same(response.into_inner().payload, zeros(LARGE_RESPONSE))?;
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

async fn server_compressed_streaming(mut takes: Client) -> Outcome {
    for first in [true, false] {
        let wanted = vec![parameters(31_415, flag(first)), parameters(92_653, flag(!first))];
        same(output(&mut takes, wanted).await.map_err(text)?, vec![31_415, 92_653])?;
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

async fn timeout_on_sleeping_server(mut client: Client) -> Outcome {
    let (requests, queue) = mpsc::channel(1);
    let first = StreamingOutputCallRequest { payload: zeros(27_182), ..Default::default() };
    requests.send(first).await.map_err(|error| error.to_string())?;
    let mut request = Request::new(ReceiverStream::new(queue));
    // Only the server is told: what ends the call is its answer. A handler that waits for a second message holds no one up.
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("50m"));
    let outcome = match client.full_duplex_call(request).await {
        Ok(responses) => responses.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    let status = outcome.err().ok_or("the call did not end")?;
    // tonic watches the same field, and calls its own time-out CANCELLED.
    same(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), true)
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
