//! The bytes of a simulated file: what reads see, what a power cut leaves, and the changes between.
//!
//! Changes are logged in order. A sync applies the log to the durable bytes; a power cut applies a
//! part of it:
//!
//! - The length is any that the file has had since the last sync. Lengths are metadata, which file
//!   systems journal in order.
//! - Each sector of 512 bytes is any version it has had since then, whatever its neighbours are.
//!   Growth whose data is lost reads as zeros.
//! - What a truncation cut off does not come back if a length at or after that truncation is
//!   chosen. If an earlier length is, the bytes past the cut may be old or zeros.

#![forbid(unsafe_code)]

use super::rng::Rng;
use std::ops::Range;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// What the page cache writes.
const PAGE: usize = 4096;

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// What reads see.
    bytes: Vec<u8>,
    /// What is on the disk for certain.
    durable: Vec<u8>,
    /// What came since, by ascending number.
    pending: Vec<Change>,
    /// The bytes of pending writes.
    arena: Vec<u8>,
    /// A failed sync has dropped something: bytes are not durable ones plus pending changes.
    dropped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    number: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Bytes that are in the arena from `at` on.
    Write { position: usize, at: usize, len: usize },
    /// A new length; growth by a write comes before the write.
    Length { from: usize, to: usize },
}

/// How many versions a sector has, and which is chosen.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    all: u32,
    least: u32,
    chosen: u32,
    applied: u32,
}

/// Memory for choosing, used again for each file.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch(Vec<Versions>);

/// Why only a part of the changes reaches the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    PowerCut,
    FailedSync,
}

impl Change {
    /// Sectors it touches. Growth touches none: what is past the end are zeros already.
    fn sectors(self) -> Range<usize> {
        let (from, to) = match self.what {
            What::Write { position, len, .. } => (position, position + len),
            What::Length { from, to } if to < from => (to, from),
            What::Length { .. } => return 0..0,
        };
        from / SECTOR..to.div_ceil(SECTOR)
    }

    /// Does its part between two positions to bytes that are long enough, but for lengths.
    fn apply(self, to_bytes: &mut [u8], arena: &[u8], within: Range<usize>) {
        match self.what {
            What::Write { position, at, len } => {
                let from = position.max(within.start);
                let to = (position + len).min(within.end).min(to_bytes.len());
                if from < to {
                    let at = at + (from - position);
                    to_bytes[from..to].copy_from_slice(&arena[at..at + (to - from)]);
                }
            }
            What::Length { from, to } => {
                let start = to.max(within.start);
                let end = from.min(within.end).min(to_bytes.len());
                if start < end {
                    to_bytes[start..end].fill(0);
                }
            }
        }
    }
}

impl Content {
    /// A file whose bytes are durable.
    pub(super) fn durable(bytes: Vec<u8>) -> Content {
        Content { durable: bytes.clone(), bytes, ..Content::default() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that a power cut now could not take, as far as they reach.
    pub(super) fn durable_bytes(&self) -> &[u8] {
        &self.durable
    }

    pub(super) fn read(&self, buf: &mut [u8], position: u64) -> usize {
        let from = usize::try_from(position).unwrap_or(usize::MAX).min(self.bytes.len());
        let n = buf.len().min(self.bytes.len() - from);
        buf[..n].copy_from_slice(&self.bytes[from..from + n]);
        n
    }

    pub(super) fn write(&mut self, data: &[u8], position: usize, number: u64) {
        if data.is_empty() {
            return;
        }
        let end = position + data.len();
        if end > self.bytes.len() {
            self.set_len(end, number);
        }
        self.bytes[position..end].copy_from_slice(data);
        // A page that is dirty again is written whole, with what an earlier failed sync dropped.
        let (from, to) = match self.dropped {
            true => (position / PAGE * PAGE, end.next_multiple_of(PAGE).min(self.bytes.len())),
            false => (position, end),
        };
        let (at, len) = (self.arena.len(), to - from);
        self.arena.extend_from_slice(&self.bytes[from..to]);
        self.pending.push(Change { number, what: What::Write { position: from, at, len } });
    }

    pub(super) fn set_len(&mut self, len: usize, number: u64) {
        if len != self.bytes.len() {
            let what = What::Length { from: self.bytes.len(), to: len };
            self.pending.push(Change { number, what });
            self.bytes.resize(len, 0);
        }
    }

    /// Makes durable what was changed up to a number.
    pub(super) fn settle(&mut self, up_to: u64) {
        let count = self.pending.partition_point(|change| change.number <= up_to);
        self.settle_first(count);
    }

    fn settle_first(&mut self, count: usize) {
        for change in self.pending.drain(..count) {
            match change.what {
                What::Length { to, .. } => self.durable.resize(to, 0),
                What::Write { .. } => change.apply(&mut self.durable, &self.arena, 0..usize::MAX),
            }
        }
        if self.pending.is_empty() {
            self.arena.clear();
        }
    }

    /// Makes the length and the sectors of a range durable, as a write with DSYNC does.
    pub(super) fn settle_range(&mut self, range: Range<usize>) {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        let inside = |change: &Change| match change.what {
            What::Write { .. } => {
                let touched = change.sectors();
                touched.start >= sectors.start && touched.end <= sectors.end
            }
            What::Length { .. } => true,
        };
        if self.pending.iter().all(inside) {
            return self.settle_first(self.pending.len());
        }
        self.durable.resize(self.longest(), 0);
        for i in 0..self.pending.len() {
            // A truncation is part of the length, and takes with it what it cut off.
            if let What::Length { from, to } = self.pending[i].what
                && to < from
            {
                self.settle_sectors(to / SECTOR..usize::MAX / SECTOR, i + 1);
                // Done: the next round must not zero what was written since.
                self.pending[i].what = What::Length { from: to, to };
            }
        }
        self.settle_sectors(sectors, self.pending.len());
        self.durable.resize(self.bytes.len(), 0);
        self.pending.retain(|change| matches!(change.what, What::Write { len, .. } if len > 0));
    }

    /// Applies the part of the first `count` changes that is in some sectors. Leaves those changes
    /// in their places without that part, and appends what is left on its far side.
    fn settle_sectors(&mut self, sectors: Range<usize>, count: usize) {
        let range = sectors.start * SECTOR..sectors.end.saturating_mul(SECTOR);
        let mut behind = Vec::new();
        for (i, change) in self.pending.iter_mut().enumerate().take(count) {
            change.apply(&mut self.durable, &self.arena, range.clone());
            if let What::Write { position, at, len } = &mut change.what {
                let end = *position + *len;
                if end > range.end && *position < range.end {
                    let from = range.end.max(*position);
                    let at = *at + (from - *position);
                    let what = What::Write { position: from, at, len: end - from };
                    behind.push((i, Change { what, ..*change }));
                }
                if end > range.start && *position < range.end {
                    *len = range.start.saturating_sub(*position);
                }
            }
        }
        for (i, change) in behind.into_iter().rev() {
            self.pending.insert(i + 1, change);
        }
    }

    /// The longest it has been since the last sync.
    fn longest(&self) -> usize {
        let lengths = self.pending.iter().filter_map(|change| match change.what {
            What::Length { to, .. } => Some(to),
            What::Write { .. } => None,
        });
        lengths.fold(self.durable.len(), usize::max)
    }

    /// A sync fails: Linux reports it once and marks the pages clean, so that no later sync writes
    /// them. Reads still see them, until a power cut. Lengths, which are metadata, get through.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng, scratch: &mut Scratch) {
        self.settle_part(rng, scratch, Loss::FailedSync);
        self.dropped = self.bytes != self.durable;
    }

    /// The power goes. Keeps nothing, everything, a prefix, or (mostly) any mixture of the pending
    /// changes: the simple outcomes would be rare among many independent choices.
    pub(super) fn cut_power(&mut self, rng: &mut Rng, scratch: &mut Scratch) {
        if self.pending.is_empty() && !self.dropped {
            return;
        }
        match rng.below(8) {
            0 => {}
            1 => self.settle_first(self.pending.len()),
            2 => {
                let count = rng.index(self.pending.len() + 1);
                self.settle_first(count);
            }
            _ => self.settle_part(rng, scratch, Loss::PowerCut),
        }
        self.pending.clear();
        self.arena.clear();
        self.dropped = false;
        self.bytes.clone_from(&self.durable);
    }

    fn settle_part(&mut self, rng: &mut Rng, scratch: &mut Scratch, loss: Loss) {
        let lengths = self.pending.iter().filter(|c| matches!(c.what, What::Length { .. })).count();
        let lengths_kept = match loss {
            Loss::PowerCut => rng.index(lengths + 1),
            Loss::FailedSync => lengths,
        };
        let versions = &mut scratch.0;
        versions.clear();
        let (longest, mut len, mut lengths_seen) = (self.longest(), self.durable.len(), 0);
        for change in &self.pending {
            let sectors = change.sectors();
            if versions.len() < sectors.end {
                versions.resize(sectors.end, Versions::default());
            }
            let mut kept_cut = false;
            if let What::Length { to, .. } = change.what {
                lengths_seen += 1;
                if lengths_seen <= lengths_kept {
                    len = to;
                    kept_cut = true;
                }
            }
            for sector in &mut versions[sectors] {
                sector.all += 1;
                if kept_cut {
                    sector.least = sector.all;
                }
            }
        }
        let drop_all = loss == Loss::FailedSync && rng.coin();
        for sector in versions.iter_mut() {
            let range = u64::from(sector.all - sector.least);
            sector.chosen = match loss {
                _ if range == 0 => sector.all,
                Loss::PowerCut => sector.least + rng.below(range + 1) as u32,
                // Writeback takes the newest or fails.
                Loss::FailedSync if drop_all || rng.coin() => sector.least,
                Loss::FailedSync => sector.all,
            };
        }
        self.durable.resize(longest, 0);
        for change in self.pending.drain(..) {
            for i in change.sectors() {
                let sector = &mut versions[i];
                sector.applied += 1;
                if sector.applied <= sector.chosen {
                    let within = i * SECTOR..(i + 1) * SECTOR;
                    change.apply(&mut self.durable, &self.arena, within);
                }
            }
        }
        self.durable.resize(len, 0);
        self.arena.clear();
    }

    /// Turns a bit over on the disk, and in the page cache as if it had been read again since.
    pub(super) fn flip(&mut self, bit: u64) -> bool {
        let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        let Some(durable) = self.durable.get_mut(byte) else { return false };
        *durable ^= mask;
        if let Some(read) = self.bytes.get_mut(byte) {
            *read ^= mask;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What a power cut leaves, over many seeds.
    fn outcomes(content: &Content) -> BTreeSet<Vec<u8>> {
        let mut scratch = Scratch::default();
        let cut = |seed| {
            let mut content = content.clone();
            content.cut_power(&mut Rng::new(seed), &mut scratch);
            assert_eq!(content.bytes, content.durable);
            content.bytes
        };
        (0..2000).map(cut).collect()
    }

    fn filled(len: usize, byte: u8) -> Vec<u8> {
        vec![byte; len]
    }

    #[test]
    fn sectors_are_kept_or_lost_each_for_itself() {
        let mut content = Content::durable(filled(3 * SECTOR, b'a'));
        content.write(&filled(3 * SECTOR, b'b'), 0, 1);
        let outcomes = outcomes(&content);
        assert_eq!(outcomes.len(), 8, "all of 2 to the 3rd");
        for bytes in outcomes {
            for sector in bytes.chunks(SECTOR) {
                assert!(sector.iter().all(|b| *b == sector[0]), "a sector is never torn");
            }
        }
    }

    #[test]
    fn a_sector_written_twice_comes_back_as_any_version_it_had() {
        let mut content = Content::durable(b"0000".to_vec());
        content.write(b"11", 0, 1);
        content.write(b"2", 1, 2);
        let expected = [&b"0000"[..], b"1100", b"1200"].map(<[u8]>::to_vec);
        assert_eq!(outcomes(&content), BTreeSet::from(expected));
    }

    #[test]
    fn growth_may_be_kept_without_its_data_or_lost() {
        let mut content = Content::durable(b"a".to_vec());
        content.write(b"b", 1, 1);
        let expected = [&b"a"[..], b"a\0", b"ab"].map(<[u8]>::to_vec);
        assert_eq!(outcomes(&content), BTreeSet::from(expected));
    }

    #[test]
    fn a_truncation_is_kept_or_lost_and_a_kept_one_brings_nothing_back() {
        let mut content = Content::durable(b"abcd".to_vec());
        content.set_len(1, 1);
        content.set_len(3, 2);
        let outcomes = outcomes(&content);
        for wanted in [&b"abcd"[..], b"a", b"a\0\0"] {
            assert!(outcomes.contains(wanted), "{wanted:?} of {outcomes:?}");
        }
        let stale = outcomes.iter().find(|bytes| bytes.len() == 3 && bytes[1] != 0);
        assert_eq!(stale, None, "cut bytes came back behind a length that is newer than the cut");
    }

    #[test]
    fn what_was_settled_survives_every_cut() {
        let mut content = Content::default();
        content.write(&filled(2000, b'x'), 0, 1);
        content.settle(1);
        content.write(&filled(2000, b'y'), 1500, 2);
        for bytes in outcomes(&content) {
            assert!(bytes.len() == 2000 || bytes.len() == 3500, "{}", bytes.len());
            assert!(bytes[..1500].iter().all(|b| *b == b'x'));
        }
        content.settle(u64::MAX);
        assert_eq!(outcomes(&content).len(), 1);
        assert_eq!((content.pending.len(), content.arena.len()), (0, 0));
    }

    #[test]
    fn a_settled_range_is_durable_with_the_length_and_the_rest_stays_open() {
        let mut content = Content::durable(filled(4 * SECTOR, b'a'));
        content.write(&filled(4 * SECTOR, b'b'), 0, 1);
        content.set_len(3 * SECTOR, 2);
        content.write(&filled(2 * SECTOR, b'c'), 3 * SECTOR, 3);
        content.write(&filled(SECTOR, b'd'), SECTOR, 4);
        content.settle_range(SECTOR..2 * SECTOR);
        let outcomes = outcomes(&content);
        for bytes in &outcomes {
            assert_eq!(bytes.len(), 5 * SECTOR);
            assert!(bytes[SECTOR..2 * SECTOR].iter().all(|b| *b == b'd'), "durable");
            assert!(bytes[3 * SECTOR..].iter().all(|b| *b == b'c' || *b == 0), "cut bytes");
        }
        assert_eq!(outcomes.len(), 16, "four sectors are open: 0, 2, 3 and 4");
        content.settle(u64::MAX);
        assert_eq!(content.bytes, content.durable);
    }

    #[test]
    fn settling_ranges_at_random_never_changes_what_a_full_sync_gives() {
        // Method: random changes and partial syncs; at the end a full one must leave what reads see.
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut content = Content::default();
            for number in 0..40 {
                let position = rng.index(6000);
                match rng.below(6) {
                    0 => content.set_len(position, number),
                    1 => content.settle_range(position..position + rng.index(3000)),
                    2 => content.settle(number - number.min(rng.below(4))),
                    _ => {
                        let data = filled(1 + rng.index(2500), number as u8 + 1);
                        content.write(&data, position, number);
                    }
                }
            }
            content.settle(u64::MAX);
            assert_eq!(content.bytes, content.durable, "seed {seed}");
        }
    }

    #[test]
    fn bytes_a_failed_sync_dropped_are_read_but_no_later_sync_makes_them_durable() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut content = Content::default();
            content.write(&filled(2 * SECTOR, b'x'), 0, 1);
            content.fail_sync(&mut rng, &mut Scratch::default());
            assert!(content.bytes.iter().all(|b| *b == b'x'), "still in the page cache");
            content.settle(u64::MAX);
            content.cut_power(&mut rng, &mut Scratch::default());
            assert_eq!(content.bytes.len(), 2 * SECTOR);
            match content.bytes.iter().all(|b| *b == b'x') {
                true => kept += 1,
                false => lost += 1,
            }
        }
        assert!(lost > 100 && kept > 5, "lost {lost}, kept {kept}");
    }

    #[test]
    fn a_page_dirty_again_after_a_failed_sync_is_written_whole() {
        let mut content = Content::default();
        content.write(&filled(PAGE + 1, b'x'), 0, 1);
        let failing = (0..).find_map(|seed| {
            let mut content = content.clone();
            content.fail_sync(&mut Rng::new(seed), &mut Scratch::default());
            content.durable.iter().all(|b| *b == 0).then_some(content)
        });
        let mut content = failing.unwrap();
        content.write(b"y", 10, 2);
        content.settle(u64::MAX);
        assert_eq!(content.durable[..PAGE], content.bytes[..PAGE]);
        assert_eq!(content.durable[PAGE], 0, "the next page stays lost");
    }
}
