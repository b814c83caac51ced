//! Producers in the simulation: clients that number their batches, and an oracle that reads the whole
//! log and says what must be known of them. The oracle shares no code with what it checks.

#![forbid(unsafe_code)]

use crate::format::{BatchBuilder, BatchHeader, Batches, Codec};
use crate::{
    AppendInfo, FetchOptions, Isolation, Offset, Partition, ProducerState, TransactionMarker,
    TransactionOutcome,
};
use std::collections::BTreeMap;

/// Producers of each partition; those past [`IDEMPOTENT`] are transactional.
pub(super) const CLIENTS: usize = 4;
const IDEMPOTENT: usize = 2;

/// A producer as it sees itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    id: i64,
    epoch: i16,
    next_sequence: i32,
    /// It does not know what became of its last appends.
    pub(super) is_lost: bool,
    /// Its last batch that was answered.
    last: Option<(Vec<u8>, AppendInfo)>,
}

impl Client {
    pub(super) fn all() -> Vec<Client> {
        (0..CLIENTS).map(|i| Client { id: i as i64 + 1, ..Client::default() }).collect()
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.id > IDEMPOTENT as i64
    }

    /// Goes on where the partition says it is.
    pub(super) fn find_itself(&mut self, states: &[ProducerState]) {
        self.is_lost = false;
        let Some(state) = states.iter().find(|state| state.producer_id == self.id) else { return };
        self.epoch = state.producer_epoch;
        self.next_sequence = state.last_sequence + 1;
    }

    /// Its next batch, which says `number` in every record.
    pub(super) fn batch(&mut self, number: u64, count: i64, bytes: usize, now: i64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None);
        builder
            .producer(self.id, self.epoch, self.next_sequence)
            .transactional(self.is_transactional());
        let mut value = number.to_le_bytes().to_vec();
        value.resize(8 + bytes, 0x2a);
        for _ in 0..count {
            builder.append(now, None, Some(&value), &[]).unwrap();
        }
        self.next_sequence += count as i32;
        builder.build().unwrap()
    }

    /// A marker that ends its transaction; its number is the coordinator's epoch and says how.
    pub(super) fn marker(&mut self, number: u64, version: i16, now: i64) -> TransactionMarker {
        if version >= 2 {
            self.epoch += 1;
            self.next_sequence = 0;
        }
        TransactionMarker {
            producer_id: self.id,
            producer_epoch: self.epoch,
            coordinator_epoch: number as i32,
            outcome: outcome(number),
            transaction_version: version,
            timestamp: now,
        }
    }

    pub(super) fn answered(&mut self, bytes: Vec<u8>, info: AppendInfo) {
        self.last = Some((bytes, info));
    }

    /// Its last batch and the receipt, if the partition has it as the last one.
    pub(super) fn last_known(&self, states: &[ProducerState]) -> Option<&(Vec<u8>, AppendInfo)> {
        let (bytes, info) = self.last.as_ref()?;
        let header = BatchHeader::read(bytes).unwrap();
        let state = states.iter().find(|state| state.producer_id == self.id)?;
        let is_it = state.last_offset == info.last_offset.0
            && state.producer_epoch == header.producer_epoch
            && state.offset_delta == header.last_offset_delta
            && state.last_sequence == header.base_sequence + header.last_offset_delta;
        is_it.then_some(self.last.as_ref()?)
    }
}

/// How the transaction ends whose marker has this number.
fn outcome(number: u64) -> TransactionOutcome {
    if number.is_multiple_of(2) { TransactionOutcome::Abort } else { TransactionOutcome::Commit }
}

/// The number of a marker.
///
/// # Errors
/// If it says another outcome than the one with this number did.
pub(super) fn marker_number(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<u64, String> {
    let (Some([0, 0, 0, kind]), Some([0, 0, epoch @ ..])) = (key, value) else {
        return Err("a marker that nobody wrote".into());
    };
    let number = u32::from_be_bytes(epoch.try_into().map_err(|_| "a long marker")?);
    let says = if *kind == 0 { TransactionOutcome::Abort } else { TransactionOutcome::Commit };
    match says == outcome(number.into()) {
        true => Ok(number.into()),
        false => Err(format!("transaction {number} has changed its outcome to {says:?}")),
    }
}

/// What the log says of one producer.
#[derive(Clone, Copy, Debug)]
struct Told {
    epoch: i16,
    last: Option<(i32, i64)>,
    coordinator: Option<i32>,
    open: Option<i64>,
}

/// An aborted transaction: producer, first offset, marker, last stable offset then.
type Aborted = (i64, i64, i64, i64);

#[derive(Default)]
struct Oracle {
    told: BTreeMap<i64, Told>,
    aborted: Vec<Aborted>,
    /// Producers of abort markers, by offset.
    markers: BTreeMap<i64, i64>,
}

impl Oracle {
    fn read(partition: &Partition, start: i64, end: i64) -> Result<Oracle, String> {
        let mut oracle = Oracle::default();
        let mut offset = start;
        let options = FetchOptions { isolation: Isolation::LogEnd, ..FetchOptions::default() };
        while offset < end {
            let lease = partition.fetch(Offset(offset), &options).map_err(|e| e.to_string())?;
            let bytes = lease.to_vec().map_err(|e| e.to_string())?;
            for batch in Batches::new(&bytes) {
                let (_, batch) = batch.map_err(|(_, fault)| fault.to_string())?;
                let header = batch.header();
                if header.producer_id < 0 {
                    continue;
                }
                let decoded = batch.decode().map_err(|e| e.to_string())?;
                let first = decoded.records().next().ok_or("no record")?;
                let first = first.map_err(|e| e.to_string())?;
                match header.attributes.is_control() {
                    true => oracle.marker(header, marker_number(first.key, first.value)?),
                    false => oracle.data(header)?,
                }
            }
            offset = lease.next_offset().0;
        }
        Ok(oracle)
    }

    fn data(&mut self, header: &BatchHeader) -> Result<(), String> {
        let nothing =
            Told { epoch: header.producer_epoch, last: None, coordinator: None, open: None };
        let known = self.told.contains_key(&header.producer_id);
        let told = self.told.entry(header.producer_id).or_insert(nothing);
        let follows = match told.last {
            _ if !known => true,
            Some((last, _)) if told.epoch == header.producer_epoch => {
                header.base_sequence == last + 1
            }
            // The beginning of this epoch may be below the log start.
            None if told.epoch == header.producer_epoch => true,
            _ => header.base_sequence == 0,
        };
        if !follows || header.producer_epoch < told.epoch {
            return Err(format!("{header:?} does not follow {told:?}"));
        }
        told.epoch = header.producer_epoch;
        told.last = Some((header.base_sequence + header.last_offset_delta, header.last_offset()));
        if header.attributes.is_transactional() && told.open.is_none() {
            told.open = Some(header.base_offset);
        }
        Ok(())
    }

    fn marker(&mut self, header: &BatchHeader, number: u64) {
        let (id, at) = (header.producer_id, header.base_offset);
        let others = self.told.iter().filter(|(other, _)| **other != id);
        let stable = others.filter_map(|(_, told)| told.open).min().unwrap_or(at + 1);
        let nothing =
            Told { epoch: header.producer_epoch, last: None, coordinator: None, open: None };
        let told = self.told.entry(id).or_insert(nothing);
        if told.epoch != header.producer_epoch {
            told.epoch = header.producer_epoch;
            told.last = None;
        }
        told.coordinator = Some(number as i32);
        let first = told.open.take();
        if outcome(number) == TransactionOutcome::Abort {
            self.markers.insert(at, id);
            self.aborted.extend(first.map(|first| (id, first, at, stable)));
        }
    }
}

/// Compares what a partition knows of its producers with what its log says.
///
/// # Errors
/// What is wrong, in a sentence.
pub(super) fn check(partition: &Partition) -> Result<(), String> {
    let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
    let oracle = Oracle::read(partition, start, end)?;
    let states = partition.producers().map_err(|e| format!("producers: {e}"))?;
    let open = states.iter().map(|s| s.transaction_first_offset).filter(|first| *first >= 0);
    // Until its marker is below the high watermark a transaction is as good as open, unless it had
    // ended before the log was opened: there the offset may be lower, never higher.
    let mark = partition.high_watermark().0;
    let opened = open.min().map_or(end, |first| first.max(start)).min(mark);
    let stable = partition.last_stable_offset().0;
    if stable > opened || stable < start || mark == end && stable != opened {
        let found = partition.last_stable_offset();
        return Err(format!("the last stable offset is {found}, not {opened}: {states:?}"));
    }
    for state in &states {
        if !oracle.told.contains_key(&state.producer_id) && state.last_offset >= start {
            return Err(format!("{state:?} is known, and nothing of it in the log"));
        }
    }
    for (id, told) in &oracle.told {
        let Some(state) = states.iter().find(|state| state.producer_id == *id) else {
            return Err(format!("producer {id} is not known: {told:?}"));
        };
        // What is below the log start may be known or forgotten.
        let found = (state.last_sequence, state.last_offset);
        let last = told.last.map_or(found.1 < start, |last| last == found);
        let coordinator = told.coordinator.is_none_or(|c| c == state.coordinator_epoch);
        let first = state.transaction_first_offset;
        let open = match told.open {
            Some(open) => first == open || (0..start).contains(&first),
            None => first < start,
        };
        let ended = told.coordinator.is_some() && told.open.is_none() && first >= 0;
        if state.producer_epoch != told.epoch || !last || !coordinator || !open || ended {
            return Err(format!("{state:?} is known, the log says {told:?}"));
        }
    }
    check_aborted(partition, &oracle, start, end)
}

fn check_aborted(
    partition: &Partition,
    oracle: &Oracle,
    start: i64,
    end: i64,
) -> Result<(), String> {
    let found = partition.aborted_transactions(Offset(start), Offset(end));
    let found = found.map_err(|e| format!("aborted transactions: {e}"))?;
    let found: Vec<Aborted> = found
        .iter()
        .map(|a| (a.producer_id, a.first_offset, a.last_offset, a.last_stable_offset))
        .collect();
    if start == 0 && found != oracle.aborted {
        return Err(format!("aborted are {found:?}, the log says {:?}", oracle.aborted));
    }
    for (id, first, last, _) in &found {
        let expected = oracle.aborted.iter().any(|a| (a.0, a.1, a.2) == (*id, *first, *last));
        if !expected && (*first >= start || oracle.markers.get(last) != Some(id)) {
            return Err(format!("({id}, {first}, {last}) was not aborted"));
        }
    }
    for (id, first, last, _) in &oracle.aborted {
        let same = |a: &Aborted| (a.0, a.2) == (*id, *last) && (a.1 == *first || a.1 < start);
        if !found.iter().any(same) {
            return Err(format!("({id}, {first}, {last}) was aborted and is not in {found:?}"));
        }
    }
    Ok(())
}
