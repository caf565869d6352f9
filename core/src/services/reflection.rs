//! Server reflection, v1 and v1alpha (the same messages under two names): what grpcurl and dynamic clients ask for.
//!
//! Answers from the descriptors that the build compiled in, with their options as they were written.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::Poll;

use prism_io::grpc::Message;
use prism_io::rt;
use prism_io::server::StreamCall;
use prism_proto::grpc::reflection::v1::server_reflection_request::MessageRequest;
use prism_proto::grpc::reflection::v1::server_reflection_response::MessageResponse;
use prism_proto::grpc::reflection::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use prism_proto::wire::Reader;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

use prism_adapters::{Error, Kind};

use super::Health;
use crate::shard::StreamPlace;
use crate::status;

/// gRPC's NOT_FOUND, in the body of an error response.
const NOT_FOUND: i32 = 5;
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// One file: its bytes as compiled, and the files that it imports.
struct File {
    bytes: Vec<u8>,
    imports: Vec<usize>,
}

#[derive(Default)]
struct Index {
    files: Vec<File>,
    by_name: HashMap<String, usize>,
    by_symbol: HashMap<String, usize>,
    by_extension: HashMap<(String, i32), usize>,
    messages: HashSet<String>,
}

/// Made at the first question: most processes are never asked.
fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| Index::new(prism_proto::descriptors()))
}

impl Index {
    fn new(set: &[u8]) -> Self {
        let mut index = Self::default();
        let mut decoded = Vec::new();
        // The files are cut out as they are: decoding and encoding them would lose the custom options.
        for bytes in files_of(set) {
            let Ok(file) = FileDescriptorProto::decode(bytes) else { continue };
            let number = index.files.len();
            index.files.push(File { bytes: bytes.to_vec(), imports: Vec::new() });
            index.by_name.insert(file.name().to_owned(), number);
            index.add_symbols(number, &file);
            decoded.push(file);
        }
        for (number, file) in decoded.iter().enumerate() {
            index.files[number].imports = file
                .dependency
                .iter()
                .filter_map(|name| index.by_name.get(name).copied())
                .collect();
        }
        index
    }

    fn add_symbols(&mut self, number: usize, file: &FileDescriptorProto) {
        let package = file.package();
        for message in &file.message_type {
            self.add_message(number, package, message);
        }
        for enumeration in &file.enum_type {
            self.add_enum(number, package, enumeration);
        }
        for extension in &file.extension {
            self.add_extension(number, package, extension);
        }
        for service in &file.service {
            let name = within(package, service.name());
            for method in &service.method {
                self.by_symbol.insert(within(&name, method.name()), number);
            }
            self.by_symbol.insert(name, number);
        }
    }

    fn add_message(&mut self, number: usize, scope: &str, message: &DescriptorProto) {
        let name = within(scope, message.name());
        for field in &message.field {
            self.by_symbol.insert(within(&name, field.name()), number);
        }
        for oneof in &message.oneof_decl {
            self.by_symbol.insert(within(&name, oneof.name()), number);
        }
        for nested in &message.nested_type {
            self.add_message(number, &name, nested);
        }
        for enumeration in &message.enum_type {
            self.add_enum(number, &name, enumeration);
        }
        for extension in &message.extension {
            self.add_extension(number, &name, extension);
        }
        self.messages.insert(name.clone());
        self.by_symbol.insert(name, number);
    }

    fn add_enum(&mut self, number: usize, scope: &str, enumeration: &EnumDescriptorProto) {
        for value in &enumeration.value {
            self.by_symbol.insert(within(scope, value.name()), number);
        }
        self.by_symbol.insert(within(scope, enumeration.name()), number);
    }

    fn add_extension(&mut self, number: usize, scope: &str, extension: &FieldDescriptorProto) {
        self.by_symbol.insert(within(scope, extension.name()), number);
        let extendee = extension.extendee().trim_start_matches('.').to_owned();
        self.by_extension.insert((extendee, extension.number()), number);
    }

    /// A file and everything that it imports, itself first.
    fn with_imports(&self, file: usize) -> FileDescriptorResponse {
        let (mut wanted, mut next) = (vec![file], 0);
        while next < wanted.len() {
            for import in &self.files[wanted[next]].imports {
                if !wanted.contains(import) {
                    wanted.push(*import);
                }
            }
            next += 1;
        }
        let file_descriptor_proto =
            wanted.into_iter().map(|file| self.files[file].bytes.clone().into()).collect();
        FileDescriptorResponse { file_descriptor_proto }
    }

    fn answer(&self, question: Option<MessageRequest>, services: &[&str]) -> MessageResponse {
        let file = |found: Option<&usize>, what: String| match found {
            Some(file) => MessageResponse::FileDescriptorResponse(self.with_imports(*file)),
            None => error(NOT_FOUND, format!("{what} is not known here")),
        };
        match question {
            Some(MessageRequest::FileByFilename(name)) => {
                file(self.by_name.get(&name), format!("file {name}"))
            }
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                file(self.by_symbol.get(symbol.trim_start_matches('.')), format!("symbol {symbol}"))
            }
            Some(MessageRequest::FileContainingExtension(extension)) => {
                let name = extension.containing_type.trim_start_matches('.').to_owned();
                let key = (name, extension.extension_number);
                file(self.by_extension.get(&key), format!("extension {} of {}", key.1, key.0))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                let of_type = name.trim_start_matches('.');
                if !self.messages.contains(of_type) {
                    return error(NOT_FOUND, format!("type {name} is not known here"));
                }
                let mut extension_number: Vec<i32> = self
                    .by_extension
                    .keys()
                    .filter(|(of, _)| *of == of_type)
                    .map(|(_, number)| *number)
                    .collect();
                extension_number.sort_unstable();
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name,
                    extension_number,
                })
            }
            Some(MessageRequest::ListServices(_)) => {
                MessageResponse::ListServicesResponse(ListServiceResponse {
                    service: services
                        .iter()
                        .map(|name| ServiceResponse { name: (*name).to_owned() })
                        .collect(),
                })
            }
            None => error(
                INVALID_ARGUMENT,
                "the request asks for nothing that this version knows".to_owned(),
            ),
        }
    }
}

/// The encoded files of a `FileDescriptorSet`, whose only field they are.
fn files_of(set: &[u8]) -> Vec<&[u8]> {
    let (mut reader, mut files) = (Reader::new(set), Vec::new());
    while let Ok(Some(_)) = reader.tag() {
        match reader.bytes() {
            Ok(file) => files.push(file),
            Err(_) => break,
        }
    }
    files
}

fn within(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn error(error_code: i32, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code, error_message })
}

/// Answers one reflection stream until its caller has asked everything or the server stops.
pub(crate) fn reflect(stream: StreamCall, health: Rc<Health>, place: StreamPlace) {
    rt::spawn(async move {
        let _place = place;
        loop {
            let Some(next) = unless_stopped(&health, stream.next()).await else {
                // The last word of a server that drains: an idle stream must not hold up its end.
                let error =
                    Error::new(Kind::Unavailable, "SHUTTING_DOWN", "this server is shutting down");
                return status::with_status(&error, |status| stream.fail(status));
            };
            let message = match next {
                Ok(Some(message)) => message,
                Ok(None) => return stream.finish(&[]),
                Err(_) => return,
            };
            let request = match ServerReflectionRequest::decode(message) {
                Ok(request) => request,
                Err(error) => {
                    let error = Error::new(
                        Kind::InvalidArgument,
                        "REQUEST_MALFORMED",
                        format!("the request is not a ServerReflectionRequest: {error}"),
                    );
                    return status::with_status(&error, |status| stream.fail(status));
                }
            };
            let response = ServerReflectionResponse {
                valid_host: request.host.clone(),
                message_response: Some(
                    index().answer(request.message_request.clone(), health.services()),
                ),
                original_request: Some(request),
            };
            if stream.send(Message::new(&response.encode_to_vec())).await.is_err() {
                return;
            }
        }
    });
}

/// What `future` gives, unless the server stops first.
async fn unless_stopped<F: Future>(health: &Health, future: F) -> Option<F::Output> {
    let (mut stopped, mut future) = (std::pin::pin!(health.stopped()), std::pin::pin!(future));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        stopped.as_mut().poll(context).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use prism_proto::grpc::reflection::v1::ExtensionRequest;

    use super::*;

    #[test]
    fn every_service_of_the_catalogue_is_found_with_its_imports() {
        let index = index();
        for method in prism_proto::catalogue::Method::all() {
            let question = MessageRequest::FileContainingSymbol(method.service().to_owned());
            let MessageResponse::FileDescriptorResponse(files) = index.answer(Some(question), &[])
            else {
                panic!("{} is not found", method.service());
            };
            let names: Vec<String> = files
                .file_descriptor_proto
                .iter()
                .map(|bytes| FileDescriptorProto::decode(&bytes[..]).unwrap().name().to_owned())
                .collect();
            assert!(names.iter().any(|name| name == "prism/options.proto"), "{names:?}");
        }
    }

    #[test]
    fn options_are_found_by_number() {
        let name = "google.protobuf.MethodOptions".to_owned();
        let MessageResponse::AllExtensionNumbersResponse(found) =
            index().answer(Some(MessageRequest::AllExtensionNumbersOfType(name)), &[])
        else {
            panic!("the type is known");
        };
        assert!(!found.extension_number.is_empty());
    }

    #[test]
    fn what_is_unknown_is_said_to_be() {
        let service = "prism.keyvalue.v1.KeyValueService".to_owned();
        let options = "google.protobuf.MethodOptions".to_owned();
        let extension = |containing_type, extension_number| {
            MessageRequest::FileContainingExtension(ExtensionRequest {
                containing_type,
                extension_number,
            })
        };
        for question in [
            MessageRequest::FileContainingSymbol("no.such.Thing".to_owned()),
            MessageRequest::FileByFilename("no/such.proto".to_owned()),
            MessageRequest::AllExtensionNumbersOfType("no.such.Type".to_owned()),
            // A service is no type that could be extended.
            MessageRequest::AllExtensionNumbersOfType(service),
            extension(options, 1),
            extension("no.such.Type".to_owned(), 50_000),
        ] {
            let text = format!("{question:?}");
            let answer = index().answer(Some(question), &[]);
            let MessageResponse::ErrorResponse(error) = answer else { panic!("{text}") };
            assert_eq!(error.error_code, NOT_FOUND, "{text}");
        }
        let MessageResponse::ErrorResponse(error) = index().answer(None, &[]) else { panic!() };
        assert_eq!(error.error_code, INVALID_ARGUMENT);
    }

    #[test]
    fn every_kind_of_symbol_leads_to_its_file() {
        let index = index();
        for symbol in [
            "prism.keyvalue.v1.KeyValueService",
            "prism.keyvalue.v1.KeyValueService.Get",
            "prism.keyvalue.v1.GetRequest",
            "prism.keyvalue.v1.GetRequest.key",
            ".prism.keyvalue.v1.GetRequest",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "grpc.reflection.v1.ServerReflectionRequest.message_request",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
            let answer = index.answer(Some(question), &[]);
            assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{symbol}");
        }
        // An extension by its type and number.
        let ((containing_type, extension_number), _) = index.by_extension.iter().next().unwrap();
        let question = MessageRequest::FileContainingExtension(ExtensionRequest {
            containing_type: format!(".{containing_type}"),
            extension_number: *extension_number,
        });
        let answer = index.answer(Some(question), &[]);
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)));
    }
}
