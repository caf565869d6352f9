//! What of a namespace may change while it is served.
//!
//! The control thread writes, every shard reads, without a lock. Each is read by itself: a call that comes while several change
//! may meet some as they were, as if it had come a moment before.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::config::{self, Durability};
use crate::quota::QuotaInForce;

/// The terms.
#[derive(Debug)]
pub(crate) struct Terms {
    durability: AtomicU8,
    message_bytes_max: AtomicUsize,
    bytes_in_flight_max: AtomicU64,
    backlog_records_max: AtomicU64,
    quota: QuotaInForce,
    is_audited: AtomicBool,
    is_served: AtomicBool,
    has_ended: AtomicBool,
}

impl Terms {
    /// Those of a configured namespace; `is_audited` also where one that it reads is.
    pub(super) fn of(namespace: &config::Namespace, is_audited: bool) -> Self {
        let terms = Self {
            durability: AtomicU8::new(0),
            message_bytes_max: AtomicUsize::new(0),
            bytes_in_flight_max: AtomicU64::new(0),
            backlog_records_max: AtomicU64::new(0),
            quota: QuotaInForce::new(namespace.quotas),
            is_audited: AtomicBool::new(false),
            is_served: AtomicBool::new(true),
            has_ended: AtomicBool::new(false),
        };
        terms.set(namespace);
        terms.is_audited.store(is_audited, Relaxed);
        terms
    }

    /// From now on they are these. For the control thread alone.
    pub(crate) fn set(&self, namespace: &config::Namespace) {
        self.durability.store(namespace.durability as u8, Relaxed);
        self.message_bytes_max.store(namespace.max_message_size as usize, Relaxed);
        self.bytes_in_flight_max.store(namespace.in_flight_bytes_max, Relaxed);
        self.backlog_records_max.store(namespace.backlog_records_max, Relaxed);
        self.quota.set(namespace.quotas);
        self.is_audited.store(namespace.audit_logging, Relaxed);
    }

    /// When its callers hear "done".
    #[inline]
    pub(super) fn durability(&self) -> Durability {
        match self.durability.load(Relaxed) {
            0 => Durability::Memory,
            1 => Durability::Wal,
            _ => Durability::Strong,
        }
    }

    /// Largest request message in bytes.
    #[inline]
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.message_bytes_max.load(Relaxed)
    }

    /// Most bytes of requests in flight.
    #[inline]
    pub(crate) fn bytes_in_flight_max(&self) -> u64 {
        self.bytes_in_flight_max.load(Relaxed)
    }

    /// Most logged writes that may wait for a backend outside.
    #[inline]
    pub(crate) fn backlog_records_max(&self) -> u64 {
        self.backlog_records_max.load(Relaxed)
    }

    /// Whether every access to its data is written down.
    #[inline]
    pub(crate) fn is_audited(&self) -> bool {
        self.is_audited.load(Relaxed)
    }

    /// What it may use at a time besides.
    #[inline]
    pub(crate) fn quota(&self) -> &QuotaInForce {
        &self.quota
    }

    /// From now on it takes calls, or none any more. For the control thread alone.
    pub(crate) fn serve(&self, is_served: bool) {
        self.is_served.store(is_served, Relaxed);
    }

    /// It has come to its end, or takes calls again: those that are open end then as well, once they are told
    /// ([`crate::shard::Endings`]). For the control thread alone.
    pub(crate) fn end(&self, has_ended: bool) {
        self.has_ended.store(has_ended, Relaxed);
        self.serve(!has_ended);
    }

    /// Whether calls that are open end.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Relaxed)
    }

    /// Whether it takes calls.
    #[inline]
    pub(crate) fn is_served(&self) -> bool {
        self.is_served.load(Relaxed)
    }
}

const _: () = assert!(Durability::Memory as u8 == 0 && Durability::Wal as u8 == 1);
