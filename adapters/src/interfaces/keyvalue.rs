//! The six interfaces of KeyValueService.
//!
//! What the methods mean stands in `prism/keyvalue/v1/keyvalue.proto`; the conformance suite holds
//! every backend to it. An expired key is as good as absent everywhere, by [`Context::now_us`].

use prism_proto::catalogue::{Interface, Method};
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndSwapRequest, CountRequest, DeleteRequest, ExistsRequest, ExpireRequest, GetRequest,
    GetTtlRequest, PersistRequest, ScanKeysRequest, ScanRequest, SetRequest, TransactRequest,
};

use super::{Check, malformed};
use crate::backend::wrong_shape;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::limits::Limits;

interface! {
    /// One value under one key.
    keyvalue_basic: KeyValueBasic {
        unary KEYVALUE_GET => get(GetRequest) -> GetResponse;
        unary KEYVALUE_SET => set(SetRequest) -> SetResponse;
        unary KEYVALUE_DELETE => delete(DeleteRequest) -> DeleteResponse;
        unary KEYVALUE_EXISTS => exists(ExistsRequest) -> ExistsResponse;
    }
}

interface! {
    /// What keys there are. Never keeps the shard from other work: long walks give way.
    /// The last page of a stream has no page token.
    keyvalue_scan: KeyValueScan {
        unary KEYVALUE_COUNT => count(CountRequest) -> CountResponse;
        stream KEYVALUE_SCAN => scan(ScanRequest) -> ScanResponse;
        stream KEYVALUE_SCAN_KEYS => scan_keys(ScanKeysRequest) -> ScanKeysResponse;
    }
}

interface! {
    /// When keys expire. A new expiry leaves the version as it is.
    keyvalue_ttl: KeyValueTtl {
        unary KEYVALUE_EXPIRE => expire(ExpireRequest) -> ExpireResponse;
        unary KEYVALUE_GET_TTL => get_ttl(GetTtlRequest) -> GetTtlResponse;
        unary KEYVALUE_PERSIST => persist(PersistRequest) -> PersistResponse;
    }
}

interface! {
    /// Several keys, all or nothing.
    keyvalue_transactional: KeyValueTransactional {
        unary KEYVALUE_TRANSACT => transact(TransactRequest) -> TransactResponse;
    }
}

interface! {
    /// Several keys, each for itself.
    keyvalue_batch: KeyValueBatch {
        unary KEYVALUE_BATCH_GET => batch_get(BatchGetRequest) -> BatchGetResponse;
        unary KEYVALUE_BATCH_SET => batch_set(BatchSetRequest) -> BatchSetResponse;
        unary KEYVALUE_BATCH_DELETE => batch_delete(BatchDeleteRequest) -> BatchDeleteResponse;
    }
}

interface! {
    /// Changes that depend on what is there.
    keyvalue_cas: KeyValueCas {
        unary KEYVALUE_COMPARE_AND_SWAP => compare_and_swap(CompareAndSwapRequest) -> CompareAndSwapResponse;
        unary KEYVALUE_COMPARE_AND_DELETE => compare_and_delete(CompareAndDeleteRequest) -> CompareAndDeleteResponse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_catalogue_is_declared_once() {
        for (interface, declared) in [
            (keyvalue_basic::INTERFACE, keyvalue_basic::METHODS),
            (keyvalue_scan::INTERFACE, keyvalue_scan::METHODS),
            (keyvalue_ttl::INTERFACE, keyvalue_ttl::METHODS),
            (keyvalue_transactional::INTERFACE, keyvalue_transactional::METHODS),
            (keyvalue_batch::INTERFACE, keyvalue_batch::METHODS),
            (keyvalue_cas::INTERFACE, keyvalue_cas::METHODS),
        ] {
            let mut declared = declared.to_vec();
            declared.sort_unstable();
            assert_eq!(declared, interface.methods().collect::<Vec<_>>(), "{interface}");
        }
    }
}
