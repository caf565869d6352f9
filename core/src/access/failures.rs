//! How many tokens that do not hold are looked at: to verify one costs as much as a hundred calls.
//!
//! Each address may fail a few times at once and then at a slow pace, and all of them together at a pace that a shard does not
//! feel. Tokens that are known already are not concerned.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Failures of one address that are looked at at once.
const AT_ONCE: u64 = 64;
/// After which time it may fail once more.
const EACH_NS: u64 = 100_000_000;
/// The same for all addresses together.
const ALL_AT_ONCE: u64 = 512;
const ALL_EACH_NS: u64 = 2_000_000;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Failures {
    /// Monotonic time until which failures are paid for, in ns.
    all_ns: Cell<u64>,
    by_address: RefCell<HashMap<IpAddr, u64, ahash::RandomState>>,
}

impl Failures {
    /// Whether an unknown token from this address is looked at; else in how many ns.
    pub(super) fn look(&self, from: IpAddr, now_ns: u64) -> Result<(), u64> {
        let of_address = self.by_address.borrow().get(&network(from)).copied().unwrap_or(0);
        let left =
            |until_ns: u64, most_ns: u64| until_ns.saturating_sub(now_ns).saturating_sub(most_ns);
        let left_ns = left(of_address, (AT_ONCE - 1) * EACH_NS)
            .max(left(self.all_ns.get(), (ALL_AT_ONCE - 1) * ALL_EACH_NS));
        if left_ns == 0 { Ok(()) } else { Err(left_ns) }
    }

    /// Counts one that did not hold.
    pub(super) fn count(&self, from: IpAddr, now_ns: u64) {
        self.all_ns.set(self.all_ns.get().max(now_ns) + ALL_EACH_NS);
        let mut by_address = self.by_address.borrow_mut();
        let from = network(from);
        if by_address.len() >= ADDRESSES_MAX && !by_address.contains_key(&from) {
            by_address.retain(|_, until_ns| *until_ns > now_ns);
            if by_address.len() >= ADDRESSES_MAX {
                // So many at a time are held back by what all of them may.
                return;
            }
        }
        let until_ns = by_address.entry(from).or_default();
        *until_ns = (*until_ns).max(now_ns) + EACH_NS;
    }
}

/// Who has an IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(failures: &Failures, from: &str, now_ns: u64, times: usize) -> usize {
        let from = from.parse().unwrap();
        let looked_at = |_: &usize| {
            let is_looked_at = failures.look(from, now_ns).is_ok();
            if is_looked_at {
                failures.count(from, now_ns);
            }
            is_looked_at
        };
        (0..times).filter(looked_at).count()
    }

    #[test]
    fn an_address_fails_some_times_and_then_slowly_and_others_do_not_feel_it() {
        let failures = Failures::default();
        let begin_ns = 5_000_000_000;
        assert_eq!(fail(&failures, "10.0.0.1", begin_ns, 1000), 64);
        assert_eq!(failures.look("10.0.0.1".parse().unwrap(), begin_ns), Err(EACH_NS));
        assert_eq!(fail(&failures, "::ffff:10.0.0.1", begin_ns + 5 * EACH_NS, 1000), 5);
        assert_eq!(fail(&failures, "10.0.0.2", begin_ns, 10), 10);
        assert_eq!(fail(&failures, "2001:db8::1", begin_ns, 60), 60);
        assert_eq!(fail(&failures, "2001:db8::ffff:1", begin_ns, 60), 4, "the same network");
    }

    #[test]
    fn all_addresses_together_fail_at_a_pace_and_what_is_kept_of_them_is_bounded() {
        let failures = Failures::default();
        let failed: usize =
            (0..100u8).map(|n| fail(&failures, &format!("10.0.0.{n}"), 1, 10)).sum();
        assert_eq!(failed, 512);
        for n in 0..20_000u32 {
            failures.count(Ipv6Addr::from_bits(u128::from(n) << 64).into(), 1);
        }
        assert_eq!(failures.by_address.borrow().len(), ADDRESSES_MAX);
        let later_ns = 3600 * 1_000_000_000;
        assert_eq!(fail(&failures, "10.1.0.1", later_ns, 10), 10);
        assert!(failures.by_address.borrow().len() < 10);
    }
}
