//! From a command to a method and an encoded request.

use std::io::Read;

use bytes::Bytes;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as kv;
use prost::Message;

use super::super::output::from_base64;
use super::super::reach::{Prepared, read_value, span};
use super::{Expected, Expiry, KvArgs, KvCommand, OnlyIf, Selection};

/// Builds the call of a command; a value of `-` is read from `stdin`.
pub(super) fn build(args: &KvArgs, stdin: &mut dyn Read) -> Result<Prepared, String> {
    let namespace = args.namespace.clone();
    let call = |method, request: &dyn Encode| {
        Ok(Prepared { method, request: request.encoded(), is_endless: false })
    };
    match &args.command {
        KvCommand::Get { key } => {
            call(Method::KEYVALUE_GET, &kv::GetRequest { namespace, key: key.clone() })
        }
        KvCommand::Set { key, value, expiry, only_if, previous } => call(
            Method::KEYVALUE_SET,
            &kv::SetRequest {
                namespace,
                key: key.clone(),
                ttl: expiry.ttl.map(span).transpose()?,
                keep_ttl: expiry.keep_ttl,
                only_if: match only_if {
                    None => kv::SetCondition::Unspecified,
                    Some(OnlyIf::Absent) => kv::SetCondition::Absent,
                    Some(OnlyIf::Exists) => kv::SetCondition::Exists,
                }
                .into(),
                return_previous: *previous,
                value: read_value(value, stdin)?,
            },
        ),
        KvCommand::Delete { key } => {
            call(Method::KEYVALUE_DELETE, &kv::DeleteRequest { namespace, key: key.clone() })
        }
        KvCommand::Exists { key } => {
            call(Method::KEYVALUE_EXISTS, &kv::ExistsRequest { namespace, key: key.clone() })
        }
        KvCommand::Scan { selection, keys_only: false, limit } => call(
            Method::KEYVALUE_SCAN,
            &kv::ScanRequest {
                namespace,
                selection: selection
                    .choose(kv::scan_request::Selection::Prefix, kv::scan_request::Selection::Glob),
                page_size: page_size(*limit),
                page_token: String::new(),
            },
        ),
        KvCommand::Scan { selection, keys_only: true, limit } => call(
            Method::KEYVALUE_SCAN_KEYS,
            &kv::ScanKeysRequest {
                namespace,
                selection: selection.choose(
                    kv::scan_keys_request::Selection::Prefix,
                    kv::scan_keys_request::Selection::Glob,
                ),
                page_size: page_size(*limit),
                page_token: String::new(),
            },
        ),
        KvCommand::Count { selection, limit } => call(
            Method::KEYVALUE_COUNT,
            &kv::CountRequest {
                namespace,
                selection: selection.choose(
                    kv::count_request::Selection::Prefix,
                    kv::count_request::Selection::Glob,
                ),
                limit: *limit,
            },
        ),
        KvCommand::Ttl { key } => {
            call(Method::KEYVALUE_GET_TTL, &kv::GetTtlRequest { namespace, key: key.clone() })
        }
        KvCommand::Expire { key, ttl } => call(
            Method::KEYVALUE_EXPIRE,
            &kv::ExpireRequest {
                namespace,
                key: key.clone(),
                expiry: Some(kv::expire_request::Expiry::Ttl(span(*ttl)?)),
            },
        ),
        KvCommand::Persist { key } => {
            call(Method::KEYVALUE_PERSIST, &kv::PersistRequest { namespace, key: key.clone() })
        }
        KvCommand::Cas { key, value, expected, expiry } => call(
            Method::KEYVALUE_COMPARE_AND_SWAP,
            &kv::CompareAndSwapRequest {
                namespace,
                key: key.clone(),
                expected: Some(expectation(expected)?),
                ttl: expiry.ttl.map(span).transpose()?,
                keep_ttl: expiry.keep_ttl,
                value: read_value(value, stdin)?,
            },
        ),
        KvCommand::BatchGet { keys } => {
            call(Method::KEYVALUE_BATCH_GET, &kv::BatchGetRequest { namespace, keys: keys.clone() })
        }
        KvCommand::BatchSet { entries, expiry } => {
            let items =
                entries.iter().map(|entry| item(entry, expiry)).collect::<Result<_, _>>()?;
            call(Method::KEYVALUE_BATCH_SET, &kv::BatchSetRequest { namespace, items })
        }
        KvCommand::BatchDelete { keys } => call(
            Method::KEYVALUE_BATCH_DELETE,
            &kv::BatchDeleteRequest { namespace, keys: keys.clone() },
        ),
    }
}

/// A message that encodes itself, whatever its type.
trait Encode {
    fn encoded(&self) -> Vec<u8>;
}

impl<M: Message> Encode for M {
    fn encoded(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl Selection {
    fn choose<T>(&self, prefix: impl Fn(String) -> T, glob: impl Fn(String) -> T) -> Option<T> {
        self.prefix.clone().map(prefix).or(self.glob.clone().map(glob))
    }
}

fn item(entry: &str, expiry: &Expiry) -> Result<kv::BatchSetItem, String> {
    let Some((key, value)) = entry.split_once('=') else {
        return Err(format!("`{entry}` is not KEY=VALUE"));
    };
    Ok(kv::BatchSetItem {
        key: key.to_string(),
        ttl: expiry.ttl.map(span).transpose()?,
        keep_ttl: expiry.keep_ttl,
        value: Bytes::copy_from_slice(value.as_bytes()),
    })
}

fn expectation(expected: &Expected) -> Result<kv::compare_and_swap_request::Expected, String> {
    use kv::compare_and_swap_request::Expected as Choice;
    match expected {
        Expected { expect: Some(value), .. } => {
            Ok(Choice::ExpectedValue(Bytes::copy_from_slice(value.as_bytes())))
        }
        Expected { expect_version: Some(version), .. } => match from_base64(version) {
            Some(version) => Ok(Choice::ExpectedVersion(version.into())),
            None => {
                Err(format!("`{version}` is not base64, the form in which -o json prints versions"))
            }
        },
        _ => Ok(Choice::ExpectedAbsent(())),
    }
}

/// The server's choice, unless fewer are wanted.
fn page_size(limit: Option<u64>) -> u32 {
    limit.map_or(0, |limit| u32::try_from(limit).unwrap_or(0).min(1_000))
}
