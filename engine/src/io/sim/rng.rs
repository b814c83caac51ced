//! The one source of chance of a simulated run: splitmix64, so that a seed is a run.

#![forbid(unsafe_code)]

/// A seeded generator.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number under `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// An index into something of `len` items.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Heads or tails.
    pub(crate) fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// True `rate` times in a million. Takes nothing from the sequence if that is never.
    pub(crate) fn per_million(&mut self, rate: u32) -> bool {
        rate > 0 && self.below(1_000_000) < u64::from(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence_and_limits_hold() {
        let (mut a, mut b, mut c) = (Rng::new(1), Rng::new(1), Rng::new(2));
        let first: Vec<u64> = (0..100).map(|_| a.next()).collect();
        assert!(first.iter().all(|n| *n == b.next()));
        assert!(first.iter().any(|n| *n != c.next()));
        let mut seen = [0; 5];
        (0..1000).for_each(|_| seen[a.index(5)] += 1);
        assert!(seen.iter().all(|n| *n > 100), "{seen:?}");
        assert_eq!(a.below(0), 0);
        let heads = (0..1000).filter(|_| a.coin()).count();
        assert!((400..600).contains(&heads), "{heads}");
        let hits = (0..10_000).filter(|_| a.per_million(100_000)).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
