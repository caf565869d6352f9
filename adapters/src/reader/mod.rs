//! ReaderService, written once over whatever a backend offers: its streams, its keys and values, its queues.
//!
//! A read becomes the backend's own read or scan, whose pages are sifted and handed on ([`walk`]); nothing is kept between
//! calls, no group moves and no lease is taken. Filters look at attributes, and at the fields `key` and `content_type` where no
//! attribute has that name.

mod cursor;
mod peek;
mod query;
mod request;
mod walk;

use prism_proto::catalogue::{Interfaces, Method, Model};
use prism_proto::prism::keyvalue::v1 as keyvalue;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prism_proto::wire::{self, Value};
use prost::Message as _;

pub use peek::{Peek, PeekFuture, Peeked};

use crate::backend::{Backend, wrong_shape};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::{check_offered, malformed};
use crate::limits::COUNT_MAX_DEFAULT;
use request::{Counting, Of, Read, Which};
use walk::{Counted, First, Pages, Walk};

/// Whether a method is one of ReaderService.
pub fn serves(method: Method) -> bool {
    matches!(
        method,
        Method::READER_READ | Method::READER_GET | Method::READER_QUERY | Method::READER_COUNT
    )
}

/// The model that the source of a request belongs to.
///
/// # Errors
/// INVALID_ARGUMENT `SOURCE_MISSING`.
pub fn model_of(message: &[u8]) -> Result<Model, Error> {
    /// The field `source` of every request.
    const SOURCE: u32 = 2;
    let mut model = None;
    for field in wire::fields(message) {
        let (SOURCE, Value::Bytes(source)) = field.map_err(malformed)? else { continue };
        for field in wire::fields(source) {
            model = match field.map_err(malformed)?.0 {
                1 => Some(Model::KeyValue),
                2 => Some(Model::Stream),
                3 => Some(Model::PubSub),
                4 | 5 => Some(Model::Queue),
                6 => Some(Model::Document),
                7 => Some(Model::TimeSeries),
                _ => model,
            };
        }
    }
    model.ok_or_else(request::source_missing)
}

/// Refuses a request that could not be carried out, as [`validate`](crate::interfaces::validate) does.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault; what is not offered.
pub fn validate(method: Method, request: &[u8], offered: Interfaces) -> Result<(), Error> {
    match method {
        Method::READER_READ => Read::new(request, offered).map(drop),
        Method::READER_GET => Which::new(request, offered).map(drop),
        Method::READER_COUNT => Counting::new(request, offered).map(drop),
        Method::READER_QUERY => query::Query::new(request, offered).map(drop),
        _ => Err(crate::backend::not_offered("", method)),
    }
}

/// Answers Get and Count.
///
/// # Errors
/// As [`validate`], and whatever the backend says.
pub async fn unary<B: Backend>(
    (backend, peek): (&B, Option<&dyn Peek>),
    context: &Context<'_>,
    (method, request): (Method, &[u8]),
    offered: Interfaces,
    reply: &mut Reply,
) -> Result<(), Error> {
    check_offered(method, request, offered)?;
    match method {
        Method::READER_GET => {
            let record = match Which::new(request, offered)? {
                Which::Key(key) => get_key(backend, context, key).await?,
                Which::Place(stream, position) => {
                    get_place(backend, context, stream, position).await?
                }
            };
            reader::GetResponse { record }.encode_raw(&mut reply.head);
            Ok(())
        }
        Method::READER_COUNT => {
            let Counting { read, limit } = Counting::new(request, offered)?;
            let limit = if limit == 0 { COUNT_MAX_DEFAULT } else { limit };
            let (count, exact) = count((backend, peek), context, read, limit).await?;
            reader::CountResponse { count, exact }.encode_raw(&mut reply.head);
            Ok(())
        }
        _ => Err(wrong_shape(method)),
    }
}

/// Answers Read and Query with one page after the other.
///
/// # Errors
/// As [`validate`], and whatever the backend says.
pub async fn stream<B: Backend, S: PageSink>(
    (backend, peek): (&B, Option<&dyn Peek>),
    context: &Context<'_>,
    (method, request): (Method, &[u8]),
    offered: Interfaces,
    sink: &mut S,
) -> Result<(), Error> {
    check_offered(method, request, offered)?;
    match method {
        Method::READER_READ => {
            let read = Read::new(request, offered)?;
            read_into((backend, peek), context, read, &mut Pages { sink }).await
        }
        Method::READER_QUERY => {
            let query = query::Query::new(request, offered)?;
            query.answer(backend, context, sink).await
        }
        _ => Err(wrong_shape(method)),
    }
}

/// Reads a source and hands its records to `out`.
async fn read_into<B: Backend, O: walk::Out>(
    (backend, peek): (&B, Option<&dyn Peek>),
    context: &Context<'_>,
    read: Read,
    out: &mut O,
) -> Result<(), Error> {
    match read.of.clone() {
        Of::Keys => {
            let Some(page_token) = cursor::page_token(&read.start)? else {
                // It had come to its end.
                return out.page(Vec::new(), cursor::END, true).await;
            };
            let prefix = read.scan_prefix().to_owned();
            let selection = Some(prefix).filter(|prefix| !prefix.is_empty());
            let request = keyvalue::ScanRequest {
                namespace: context.namespace_name.to_owned(),
                selection: selection.map(keyvalue::scan_request::Selection::Prefix),
                page_size: read.page_size as u32,
                page_token,
            };
            let base = cursor::begin(&read.start, context.now_us);
            let mut walk = Walk::new(read, base, out);
            let outcome = backend
                .stream(context, Method::KEYVALUE_SCAN, &request.encode_to_vec(), &mut walk)
                .await;
            walk.end(outcome)
        }
        Of::Stream(name) => {
            let request = stream::ReadRequest {
                namespace: context.namespace_name.to_owned(),
                stream: name,
                start: Some(cursor::resumed(&read.start)?),
                partitions: read.partitions.clone(),
                follow: read.follow,
                limit: if read.takes_all() { read.limit } else { 0 },
            };
            let base = cursor::begin(&read.start, context.now_us);
            let mut walk = Walk::new(read, base, out);
            let outcome = backend
                .stream(context, Method::STREAM_READ, &request.encode_to_vec(), &mut walk)
                .await;
            walk.end(outcome)
        }
        Of::Queue { name, dead } => {
            let peek = peek.ok_or_else(|| request::not_readable(B::NAME, "a queue"))?;
            peek::read(peek, context, (&name, dead), read, out).await
        }
    }
}

async fn get_key<B: Backend>(
    backend: &B,
    context: &Context<'_>,
    key: String,
) -> Result<Option<reader::Record>, Error> {
    let request = keyvalue::GetRequest { namespace: context.namespace_name.to_owned(), key };
    let mut reply = Reply::default();
    let bytes = request.encode_to_vec();
    backend.unary(context, Method::KEYVALUE_GET, &bytes, &mut reply).await?;
    let answer = keyvalue::GetResponse::decode(reply.to_bytes()).map_err(walk::unreadable)?;
    Ok(answer.entry.map(|entry| walk::record_of_entry(request.key, entry)))
}

async fn get_place<B: Backend>(
    backend: &B,
    context: &Context<'_>,
    name: String,
    position: Position,
) -> Result<Option<reader::Record>, Error> {
    let request = stream::ReadRequest {
        namespace: context.namespace_name.to_owned(),
        stream: name,
        partitions: vec![position.partition],
        start: Some(Start { start: Some(start::Start::At(position.clone())) }),
        follow: false,
        limit: 1,
    };
    let mut first = First::new(context.now_us);
    let bytes = request.encode_to_vec();
    let outcome = backend.stream(context, Method::STREAM_READ, &bytes, &mut first).await;
    let record = first.end(outcome)?;
    Ok(record.filter(|record| record.position.as_ref() == Some(&position)))
}

/// How many records there are, and whether that is all of them.
async fn count<B: Backend>(
    (backend, peek): (&B, Option<&dyn Peek>),
    context: &Context<'_>,
    read: Read,
    limit: u64,
) -> Result<(u64, bool), Error> {
    if read.of == Of::Keys && read.filter.is_empty() {
        let selection = keyvalue::count_request::Selection::Prefix(read.key_prefix.clone());
        let request = keyvalue::CountRequest {
            namespace: context.namespace_name.to_owned(),
            selection: Some(selection).filter(|_| !read.key_prefix.is_empty()),
            limit,
        };
        let mut reply = Reply::default();
        let bytes = request.encode_to_vec();
        backend.unary(context, Method::KEYVALUE_COUNT, &bytes, &mut reply).await?;
        let counted = keyvalue::CountResponse::decode(reply.to_bytes());
        return counted.map(|told| (told.count, told.exact)).map_err(walk::unreadable);
    }
    // One more tells whether there are more.
    let read = Read { limit: limit.saturating_add(1), ..read };
    let mut counted = Counted { count: 0, now_us: context.now_us };
    read_into((backend, peek), context, read, &mut counted).await?;
    Ok((counted.count.min(limit), counted.count <= limit))
}
