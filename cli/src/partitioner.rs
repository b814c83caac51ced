//! Which partition a record goes to, as Kafka's clients choose it.
//!
//! Given by number; else by key: murmur2 with Kafka's seed, so that a key written here and by a
//! Kafka producer lands in the same partition; else sticky: one partition for a batch, then the next.

#![forbid(unsafe_code)]

/// Chooses among the partitions 0 to `count` − 1.
#[derive(Clone, Debug)]
pub(crate) struct Partitioner {
    count: u32,
    fixed: Option<u32>,
    sticky: u32,
}

impl Partitioner {
    /// `fixed` overrules keys.
    pub(crate) fn new(count: u32, fixed: Option<u32>) -> Partitioner {
        Partitioner { count: count.max(1), fixed, sticky: 0 }
    }

    /// The partition of a record.
    pub(crate) fn partition(&self, key: Option<&[u8]>) -> u32 {
        match (self.fixed, key) {
            (Some(fixed), _) => fixed,
            (None, Some(key)) => to_positive(murmur2(key)) % self.count,
            (None, None) => self.sticky,
        }
    }

    /// Records without a key go to the next partition from now on: the batch of this one is full.
    pub(crate) fn batch_done(&mut self, partition: u32) {
        if partition == self.sticky {
            self.sticky = (self.sticky + 1) % self.count;
        }
    }
}

/// `org.apache.kafka.common.utils.Utils.toPositive`.
fn to_positive(hash: i32) -> u32 {
    hash.cast_unsigned() & 0x7fff_ffff
}

/// `org.apache.kafka.common.utils.Utils.murmur2`: 32-bit, little-endian words, a fixed seed.
pub(crate) fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut h = SEED ^ length;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (at, byte) in rest.iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * at);
        if at == 0 {
            h = h.wrapping_mul(M);
        }
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    (h ^ (h >> 15)).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_kafkas_own_test_vectors() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }

    #[test]
    fn a_number_wins_over_a_key_and_a_key_over_the_turn() {
        let fixed = Partitioner::new(4, Some(3));
        assert_eq!(fixed.partition(Some(b"abc")), 3);
        let mut free = Partitioner::new(4, None);
        assert_eq!(free.partition(Some(b"abc")), 479_470_107 % 4);
        assert_eq!(
            free.partition(Some(b"21")),
            (973_932_308_i32.wrapping_neg() & 0x7fff_ffff) as u32 % 4
        );
        assert_eq!(free.partition(None), 0);
        free.batch_done(2);
        assert_eq!(free.partition(None), 0, "another partition's batch does not end the turn");
        free.batch_done(0);
        assert_eq!(free.partition(None), 1);
    }
}
