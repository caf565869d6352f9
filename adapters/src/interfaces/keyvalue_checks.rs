//! What makes a KeyValueService request valid, on every backend.

use std::collections::HashSet;

use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndSwapRequest, CountRequest, CountRequestSelection, DeleteRequest, ExistsRequest,
    ExpireRequest, ExpireRequestExpiry, GetRequest, GetTtlRequest, PersistRequest, ScanKeysRequest,
    ScanKeysRequestSelection, ScanRequest, ScanRequestSelection, SetRequest, TransactRequest,
};
use prism_proto::view::protobuf::Duration;
use prism_proto::view::types::{Operation, OperationAction};

use super::Check;
use crate::error::Error;
use crate::limits::{
    Limits, TRANSACT_CONDITIONS_MAX, TRANSACT_OPERATIONS_MAX, check_batch_count, check_glob,
    check_key, check_prefix, timestamp_ms, ttl_ms,
};

pub(super) const REQUIRED: &str = "exactly one of its fields must be given";

impl Check for GetRequest<'_> {
    #[inline]
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)
    }
}

impl Check for SetRequest<'_> {
    #[inline]
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_key("key", self.key)?;
        if self.only_if().is_none() {
            let expected = format!("{} is no known condition", self.only_if);
            return Err(Error::field("CONDITION_UNKNOWN", "only_if", expected));
        }
        check_put(self.ttl, self.keep_ttl, self.value, limits, str::to_owned)
    }
}

impl Check for DeleteRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)
    }
}

impl Check for ExistsRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)
    }
}

impl Check for ScanRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        match self.selection {
            None => Ok(()),
            Some(ScanRequestSelection::Prefix(prefix)) => check_prefix("prefix", prefix),
            Some(ScanRequestSelection::Glob(glob)) => check_glob("glob", glob),
        }
    }
}

impl Check for ScanKeysRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        match self.selection {
            None => Ok(()),
            Some(ScanKeysRequestSelection::Prefix(prefix)) => check_prefix("prefix", prefix),
            Some(ScanKeysRequestSelection::Glob(glob)) => check_glob("glob", glob),
        }
    }
}

impl Check for CountRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        match self.selection {
            None => Ok(()),
            Some(CountRequestSelection::Prefix(prefix)) => check_prefix("prefix", prefix),
            Some(CountRequestSelection::Glob(glob)) => check_glob("glob", glob),
        }
    }
}

impl Check for ExpireRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)?;
        match self.expiry {
            None => Err(Error::field("EXPIRY_MISSING", "expiry", REQUIRED)),
            Some(ExpireRequestExpiry::Ttl(ttl)) => ttl_ms("ttl", &ttl).map(drop),
            Some(ExpireRequestExpiry::ExpiresAt(time)) => {
                timestamp_ms("expires_at", &time).map(drop)
            }
        }
    }
}

impl Check for GetTtlRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)
    }
}

impl Check for PersistRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)
    }
}

impl Check for BatchGetRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_batch("keys", self.keys.len(), self.keys.iter().map(|key| ("", key)))
    }
}

impl Check for BatchSetRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let items = self.items;
        check_batch("items", items.len(), items.iter().map(|item| (".key", item.key)))?;
        for (index, item) in items.iter().enumerate() {
            let place = |field: &str| format!("items[{index}].{field}");
            check_put(item.ttl, item.keep_ttl, item.value, limits, place)?;
        }
        Ok(())
    }
}

impl Check for BatchDeleteRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_batch("keys", self.keys.len(), self.keys.iter().map(|key| ("", key)))
    }
}

impl Check for CompareAndSwapRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_key("key", self.key)?;
        if self.expected.is_none() {
            return Err(Error::field("EXPECTATION_MISSING", "expected", REQUIRED));
        }
        check_put(self.ttl, self.keep_ttl, self.value, limits, str::to_owned)
    }
}

impl Check for CompareAndDeleteRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_key("key", self.key)?;
        if self.expected.is_none() {
            return Err(Error::field("EXPECTATION_MISSING", "expected", REQUIRED));
        }
        Ok(())
    }
}

impl Check for TransactRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let (conditions, operations) = (self.conditions, self.operations);
        if operations.is_empty() {
            return Err(Error::field("OPERATIONS_MISSING", "operations", "must not be empty"));
        }
        check_count("operations", operations.len(), TRANSACT_OPERATIONS_MAX)?;
        check_count("conditions", conditions.len(), TRANSACT_CONDITIONS_MAX)?;
        for (index, condition) in conditions.iter().enumerate() {
            check_item_key("conditions", index, ".key", condition.key)?;
            if condition.requirement.is_none() {
                let field = format!("conditions[{index}].requirement");
                return Err(Error::field("CONDITION_MISSING", field, REQUIRED));
            }
        }
        check_distinct("operations", operations.iter().map(|operation| (".key", operation.key)))?;
        for (index, operation) in operations.iter().enumerate() {
            check_operation(index, &operation, limits)?;
        }
        Ok(())
    }
}

#[inline]
fn check_put(
    ttl: Option<Duration>,
    keep_ttl: bool,
    value: &[u8],
    limits: &Limits,
    place: impl Fn(&str) -> String,
) -> Result<(), Error> {
    if let Some(ttl) = ttl {
        if keep_ttl {
            let expected = "must not be given together with ttl";
            return Err(Error::field("TTL_INVALID", place("keep_ttl"), expected));
        }
        ttl_ms("", &ttl).or_else(|_| ttl_ms(&place("ttl"), &ttl))?;
    }
    if value.len() > limits.value_bytes_max() {
        return limits.check_value(&place("value"), value);
    }
    Ok(())
}

fn check_operation(index: usize, operation: &Operation<'_>, limits: &Limits) -> Result<(), Error> {
    match operation.action {
        Some(OperationAction::Put(put)) => {
            let place = |field: &str| format!("operations[{index}].put.{field}");
            check_put(put.ttl, put.keep_ttl, put.value, limits, place)
        }
        Some(OperationAction::Delete(_)) => Ok(()),
        None => {
            let field = format!("operations[{index}].action");
            Err(Error::field("OPERATION_MISSING", field, REQUIRED))
        }
    }
}

fn check_batch<'a>(
    field: &str,
    count: usize,
    keys: impl Iterator<Item = (&'static str, &'a str)>,
) -> Result<(), Error> {
    check_batch_count(field, count)?;
    check_distinct(field, keys)
}

pub(super) fn check_count(field: &str, count: usize, count_max: usize) -> Result<(), Error> {
    if count <= count_max {
        return Ok(());
    }
    let expected = format!("has {count} items, at most {count_max} are allowed");
    Err(Error::field("TOO_MANY_ITEMS", field, expected))
}

fn check_distinct<'a>(
    field: &str,
    keys: impl Iterator<Item = (&'static str, &'a str)>,
) -> Result<(), Error> {
    let mut seen = HashSet::with_capacity(keys.size_hint().0);
    for (index, (suffix, key)) in keys.enumerate() {
        check_item_key(field, index, suffix, key)?;
        if !seen.insert(key) {
            let field = format!("{field}[{index}]{suffix}");
            return Err(Error::field(
                "DUPLICATE_KEY",
                field,
                "every key may stand there only once",
            ));
        }
    }
    Ok(())
}

fn check_item_key(field: &str, index: usize, suffix: &str, key: &str) -> Result<(), Error> {
    check_key("", key).or_else(|_| check_key(&format!("{field}[{index}]{suffix}"), key))
}
