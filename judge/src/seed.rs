//! Bytes from a seed, for runs that anybody can repeat.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose frames.
#[derive(Debug, Clone)]
pub struct Seed(u64);

impl Seed {
    /// The generator of that number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// That many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..count.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

/// The seed of a test: `PRISM_TEST_SEED` if it is set, else the one that is given. It is printed, so that a failure shows it.
pub fn of_test(default: u64) -> u64 {
    let seed = match std::env::var("PRISM_TEST_SEED") {
        Ok(text) => text.parse().expect("PRISM_TEST_SEED is a number"),
        Err(_) => default,
    };
    println!("PRISM_TEST_SEED={seed}");
    seed
}
