//! Seeded random numbers, and the ways to choose keys with them.
//!
//! The same seed gives the same requests. Nothing here is fit for secrets.

use std::str::FromStr;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from zero up to, not including, one.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How keys are chosen among those there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every key as often as any other.
    Uniform,
    /// A few keys very often: the key of rank r with a weight of r to the power of minus this exponent.
    Zipf(f64),
    /// One after the other, from the first again after the last.
    Sequential,
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("uniform", "") => Ok(Self::Uniform),
            ("sequential", "") => Ok(Self::Sequential),
            ("zipf", "") => Ok(Self::Zipf(0.99)),
            ("zipf", exponent) => match exponent.parse() {
                Ok(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf(exponent)),
                _ => Err("the exponent of zipf lies between 0 and 10, as in zipf:1.1".into()),
            },
            _ => Err("one of uniform, sequential, zipf, zipf:<exponent>".into()),
        }
    }
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => out.write_str("uniform"),
            Self::Sequential => out.write_str("sequential"),
            Self::Zipf(exponent) => write!(out, "zipf:{exponent}"),
        }
    }
}

/// Chooses keys, numbered from zero.
#[derive(Clone, Debug)]
pub struct Keys {
    count: u64,
    next: u64,
    zipf: Option<Zipf>,
    distribution: Distribution,
}

impl Keys {
    /// Chooses among `count` keys; one that goes through them in order begins at `first`.
    pub fn new(count: u64, distribution: Distribution, first: u64) -> Self {
        assert!(count > 0, "there is at least one key");
        let zipf = match distribution {
            Distribution::Zipf(exponent) => Some(Zipf::new(count, exponent)),
            _ => None,
        };
        Self { count, next: first % count, zipf, distribution }
    }

    /// The next key.
    #[inline]
    pub fn choose(&mut self, random: &mut Random) -> u64 {
        match (&self.zipf, self.distribution) {
            (Some(zipf), _) => zipf.sample(random) - 1,
            (None, Distribution::Sequential) => {
                let key = self.next;
                self.next = if key + 1 == self.count { 0 } else { key + 1 };
                key
            }
            (None, _) => random.below(self.count),
        }
    }
}

/// Zipf's law by rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone
/// discrete distributions", 1996): constant time and no table, for any number of keys.
#[derive(Clone, Debug)]
struct Zipf {
    count: f64,
    exponent: f64,
    integral_first: f64,
    integral_last: f64,
    shortcut: f64,
}

impl Zipf {
    fn new(count: u64, exponent: f64) -> Self {
        let mut zipf = Self {
            count: count as f64,
            exponent,
            integral_first: 0.0,
            integral_last: 0.0,
            shortcut: 0.0,
        };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(count as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, rank: f64) -> f64 {
        rank.powf(-self.exponent)
    }

    fn integral(&self, rank: f64) -> f64 {
        let log = rank.ln();
        let bent = (1.0 - self.exponent) * log;
        // (e^x - 1) / x, which near zero is 1 + x / 2.
        log * if bent.abs() > 1e-8 { bent.exp_m1() / bent } else { 1.0 + bent / 2.0 }
    }

    fn inverse(&self, area: f64) -> f64 {
        let bent = (area * (1.0 - self.exponent)).max(-1.0);
        // ln(1 + x) / x, which near zero is 1 - x / 2.
        (area * if bent.abs() > 1e-8 { bent.ln_1p() / bent } else { 1.0 - bent / 2.0 }).exp()
    }

    /// A rank from one to the number of keys.
    fn sample(&self, random: &mut Random) -> u64 {
        loop {
            let area =
                self.integral_last + random.unit() * (self.integral_first - self.integral_last);
            let exact = self.inverse(area);
            let rank = exact.round().clamp(1.0, self.count);
            if rank - exact <= self.shortcut
                || area >= self.integral(rank + 0.5) - self.weight(rank)
            {
                return rank as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution, keys: u64, samples: u64) -> Vec<u64> {
        let (mut random, mut chooser) = (Random::new(7), Keys::new(keys, distribution, 0));
        let mut counts = vec![0; keys as usize];
        for _ in 0..samples {
            counts[chooser.choose(&mut random) as usize] += 1;
        }
        counts
    }

    #[test]
    fn uniform_is_even_and_sequential_is_exact() {
        let even = counts(Distribution::Uniform, 10, 100_000);
        assert!(even.iter().all(|&count| (9_500..10_500).contains(&count)), "{even:?}");
        assert_eq!(counts(Distribution::Sequential, 10, 100), [10; 10]);
    }

    #[test]
    fn zipf_follows_its_law() {
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let found = counts(Distribution::Zipf(exponent), 100, 400_000);
            let total: f64 = (1..=100).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1, 2, 10, 50] {
                let wanted = 400_000.0 * f64::from(rank).powf(-exponent) / total;
                let ratio = found[rank as usize - 1] as f64 / wanted;
                assert!((0.9..1.1).contains(&ratio), "rank {rank} at {exponent}: {ratio}");
            }
        }
    }

    #[test]
    fn one_key_is_always_chosen() {
        for distribution in
            [Distribution::Uniform, Distribution::Zipf(1.0), Distribution::Sequential]
        {
            assert_eq!(counts(distribution, 1, 10), [10]);
        }
    }

    #[test]
    fn distributions_parse() {
        assert_eq!("zipf:1.2".parse(), Ok(Distribution::Zipf(1.2)));
        assert_eq!("uniform".parse(), Ok(Distribution::Uniform));
        assert!("zipf:x".parse::<Distribution>().is_err());
        assert!("normal".parse::<Distribution>().is_err());
    }
}
