//! The three kinds of numbers that a shard keeps: counters, gauges and histograms.
//!
//! Each has exactly one writer, the shard's own thread, and is read by the control thread at a scrape. Writing is a
//! relaxed load, an addition and a relaxed store, never a read-modify-write instruction: with one writer nothing can
//! come between the load and the store, and a lock prefix would cost some twenty cycles per number and request. A
//! reader may see one number a moment before another; it never sees a torn one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. Only the owning shard may call this.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `count`. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// What has been counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it. Only the owning shard may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `count`. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Takes `count` off; never below zero. Only the owning shard may call this.
    #[inline]
    pub fn subtract(&self, count: u64) {
        let value = self.0.load(Relaxed);
        debug_assert!(value >= count, "a gauge of {value} cannot lose {count}");
        self.0.store(value.saturating_sub(count), Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Buckets of one octave are `2^SUBBUCKET_BITS`; a bucket is at most 12.5 % wide.
const SUBBUCKET_BITS: u32 = 3;
const SUBBUCKETS: usize = 1 << SUBBUCKET_BITS;
/// Everything below this is in the first bucket: 1.024 µs.
const FIRST_OCTAVE: u32 = 10;
/// Everything from here on is in the last bucket: 68.7 s.
const LAST_OCTAVE: u32 = 36;
const BUCKETS: usize = (LAST_OCTAVE - FIRST_OCTAVE) as usize * SUBBUCKETS + 2;

/// How often a span of time was seen, in log-linear buckets between 1 µs and 69 s.
#[derive(Debug)]
pub struct Histogram {
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { sum_ns: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Histogram {
    /// Records one span. Only the owning shard may call this.
    #[inline]
    pub fn record_ns(&self, span_ns: u64) {
        let bucket = &self.buckets[index_of(span_ns)];
        bucket.store(bucket.load(Relaxed).wrapping_add(1), Relaxed);
        self.sum_ns.store(self.sum_ns.load(Relaxed).wrapping_add(span_ns), Relaxed);
    }

    /// Records one span. Only the owning shard may call this.
    pub fn record(&self, span: Duration) {
        self.record_ns(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds what was recorded here to `totals`.
    pub fn add_to(&self, totals: &mut Totals) {
        totals.sum_ns = totals.sum_ns.wrapping_add(self.sum_ns.load(Relaxed));
        for (total, bucket) in totals.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
    }
}

/// What one or several histograms held at a moment.
#[derive(Debug, Clone)]
pub struct Totals {
    sum_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Totals {
    fn default() -> Self {
        Self { sum_ns: 0, buckets: [0; BUCKETS] }
    }
}

impl Totals {
    /// How many spans were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all spans, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// How many spans were certainly at most `bound_ns`: a bucket counts when all of it is. A span less than 12.5 %
    /// below the bound may be left out.
    pub fn count_within(&self, bound_ns: u64) -> u64 {
        let within = |index: &usize| upper_ns(*index) <= bound_ns;
        (0..BUCKETS).take_while(within).map(|index| self.buckets[index]).sum()
    }

    /// A span, in seconds, that at least `share` (0 to 1) of the recorded ones did not exceed, rounded up to its
    /// bucket's end, by at most 12.5 %. `None` when nothing was recorded.
    pub fn quantile_seconds(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((share * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Some(upper_ns(index).min(1 << LAST_OCTAVE) as f64 / 1e9);
            }
        }
        None
    }
}

/// The bucket of a span: octave from the leading bit, place within it from the next three.
#[inline]
fn index_of(span_ns: u64) -> usize {
    if span_ns < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = 63 - span_ns.leading_zeros();
    if octave >= LAST_OCTAVE {
        return BUCKETS - 1;
    }
    let place = (span_ns >> (octave - SUBBUCKET_BITS)) as usize & (SUBBUCKETS - 1);
    (octave - FIRST_OCTAVE) as usize * SUBBUCKETS + place + 1
}

/// The largest span of a bucket, in nanoseconds.
fn upper_ns(index: usize) -> u64 {
    if index == 0 {
        return (1 << FIRST_OCTAVE) - 1;
    }
    if index == BUCKETS - 1 {
        return u64::MAX;
    }
    let octave = FIRST_OCTAVE + ((index - 1) / SUBBUCKETS) as u32;
    let place = ((index - 1) % SUBBUCKETS) as u64;
    ((SUBBUCKETS as u64 + place + 1) << (octave - SUBBUCKET_BITS)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_falls_into_the_bucket_that_covers_it() {
        let mut spans: Vec<u64> = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]).collect();
        spans.extend([1_500, 99_999, 100_000, 123_456_789, u64::MAX]);
        for span in spans {
            let index = index_of(span);
            assert!(span <= upper_ns(index), "{span} is above bucket {index}");
            assert!(index == 0 || span > upper_ns(index - 1), "{span} is below bucket {index}");
        }
        for index in 1..BUCKETS - 1 {
            let (low, high) = (upper_ns(index - 1) + 1, upper_ns(index) + 1);
            assert!((high - low) as f64 <= low as f64 * 0.125, "bucket {index} is too wide");
        }
    }

    #[test]
    fn quantiles_are_within_an_eighth_above_the_truth() {
        let histogram = Histogram::default();
        for microsecond in 1..=10_000u64 {
            histogram.record_ns(microsecond * 1_000);
        }
        let mut totals = Totals::default();
        histogram.add_to(&mut totals);
        assert_eq!(totals.count(), 10_000);
        for (share, truth) in [(0.5, 0.005), (0.99, 0.0099), (0.999, 0.00999)] {
            let shown = totals.quantile_seconds(share).unwrap();
            assert!(shown >= truth && shown <= truth * 1.126, "{share}: {shown} for {truth}");
        }
        let within = totals.count_within(1_000_000);
        assert!((875..=1_000).contains(&within), "{within} spans within 1 ms");
        assert_eq!(totals.count_within(u64::MAX), 10_000);
        assert_eq!(Totals::default().quantile_seconds(0.5), None);
    }
}
