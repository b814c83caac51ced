//! One simulated life of a directory: work, a crash at some I/O, recovery, and so on.

#![forbid(unsafe_code)]

use super::model::{Died, Model, Stored, is_tombstone, key_of};
use super::producers::{self, CLIENTS, Client};
use super::retain::Terms;
use super::values::{Held, Values};
use crate::config::{CleanupPolicy, Config, PartitionConfig};
use crate::engine::{Engine, Threads};
use crate::format::{BatchBuilder, Codec};
use crate::io::Clock;
use crate::io::sim::{CrashKind, FaultRates, Knobs, Rng, SimWorld};
use crate::planted::{Bug, planted};
use crate::{
    AppendInfo, AppendOptions, Cursor, Durability, LeaderEpoch, Offset, Partition, Pending,
};
use std::time::Duration;

const DIR: &str = "/data";
const TOPIC: &str = "t";
const GROUP: &str = "g";

/// What a run does and what befalls it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) partitions: u32,
    /// Operations between two crashes.
    pub(super) operations: u32,
    /// Crashes in a row.
    pub(super) crashes: u32,
    /// Power cuts only.
    pub(super) power_only: bool,
    /// One call in so many fails, of a million; with an errno that fits it.
    pub(super) faults: u32,
    /// Retention, pins and changes of settings are among the work.
    pub(super) retention: bool,
    /// Records have keys, and the log is compacted now and then.
    pub(super) compacts: bool,
    /// The crash comes at this I/O of the life instead of a random one.
    pub(super) cut_at: Option<u64>,
    /// This I/O of the life fails with this errno.
    pub(super) fail_at: Option<(u64, i32)>,
}

impl Plan {
    pub(super) fn random(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        // One in three retains, one in three compacts.
        let kind = rng.below(3);
        Plan {
            seed,
            partitions: 1 + u32::try_from(rng.below(3)).unwrap(),
            operations: 8 + u32::try_from(rng.below(40)).unwrap(),
            crashes: 1 + u32::try_from(rng.below(3)).unwrap(),
            power_only: false,
            faults: if rng.below(4) == 0 { 2_000 } else { 0 },
            retention: kind == 0,
            compacts: kind == 1,
            cut_at: None,
            fail_at: None,
        }
    }
}

/// What a run saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    pub(super) crashes: u64,
    pub(super) ios: u64,
    pub(super) acknowledged: u64,
    pub(super) recovered: u64,
    pub(super) replayed_bytes: u64,
    /// Segments that retention deleted.
    pub(super) deleted: u64,
    pub(super) compacted: u64,
}

/// The directory, its oracles, and what is under way.
pub(super) struct Life {
    pub(super) plan: Plan,
    pub(super) world: SimWorld,
    pub(super) rng: Rng,
    pub(super) engine: Option<Engine>,
    pub(super) partitions: Vec<Partition>,
    pub(super) models: Vec<Model>,
    pending: Vec<Vec<Waiting>>,
    /// Of each partition's values, and at the end of the group's cursors.
    values: Vec<Values>,
    commits: Vec<(u64, Pending<()>)>,
    clients: Vec<Vec<Client>>,
    next_number: u64,
    pub(super) seen: Seen,
    pub(super) verbose: bool,
    pub(super) terms: Vec<Terms>,
}

/// An append or a change of values, in the order they were handed in.
enum Waiting {
    Append {
        number: u64,
        count: i64,
        answer: Pending<AppendInfo>,
        /// Which client of its partition sent it, and what, if it is not a marker.
        client: Option<(usize, Option<Vec<u8>>)>,
    },
    Change {
        number: u64,
        durability: Durability,
        answer: Pending<()>,
    },
}

impl Waiting {
    fn is_ready(&self) -> bool {
        match self {
            Waiting::Append { answer, .. } => answer.is_ready(),
            Waiting::Change { answer, .. } => answer.is_ready(),
        }
    }
}

/// Says what a life does, when one seed is looked at.
macro_rules! say {
    ($life:expr, $($what:tt)*) => {
        if $life.verbose {
            println!("{:>6} {}", $life.world.ios(), format_args!($($what)*));
        }
    };
}

fn knobs() -> Knobs {
    Knobs { short_writes: 20_000, ..Knobs::default() }
}

/// What ends a stretch of work: an I/O error that the crash, or a planned fault, brought about.
type Step = Result<(), String>;

pub(super) use say;

impl Life {
    pub(super) fn new(plan: Plan) -> Life {
        let world = SimWorld::new(plan.seed);
        world.make_dir_all(DIR);
        world.set_knobs(knobs());
        let partitions = plan.partitions as usize;
        Life {
            plan,
            world,
            rng: Rng::new(plan.seed ^ 0x5eed),
            engine: None,
            partitions: Vec::new(),
            models: (0..partitions).map(|_| Model::default()).collect(),
            pending: (0..partitions).map(|_| Vec::new()).collect(),
            clients: (0..partitions).map(|_| Client::all()).collect(),
            values: (0..=partitions).map(|_| Values::default()).collect(),
            commits: Vec::new(),
            next_number: 1,
            seen: Seen::default(),
            verbose: std::env::var_os("SEED").is_some(),
            terms: (0..partitions).map(|_| Terms::default()).collect(),
        }
    }

    pub(super) fn world(&self) -> &SimWorld {
        &self.world
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::new(DIR);
        config.shards = 1 + (self.plan.seed % 2) as usize;
        config.replay_bytes_max = 4 * 8 * 32_768 * config.shards as u64;
        config.reserve_bytes = 0;
        config.mailbox_requests_max = 64;
        config.checkpoint_interval_ms = 100;
        config.file_delete_delay_ms = 0;
        config.open_files_max = Some(4);
        config.partition = PartitionConfig {
            segment_bytes: 1024 + u32::try_from(self.plan.seed % 4).unwrap() * 700,
            index_interval_bytes: 200,
            cleanup_policy: match self.plan.compacts {
                true => CleanupPolicy::Compact,
                false => CleanupPolicy::Delete,
            },
            delete_retention_ms: 100,
            ..self.retention_config()
        };
        config.clock = self.world.clock();
        config
    }

    /// All of it: work, crash, recovery, as often as planned, then a clean close and a look at it.
    pub(super) fn live(mut self) -> Result<Seen, String> {
        // The first partitions are made before anything can happen to them.
        self.start(Died::Nobody)?;
        for _ in 0..self.plan.crashes {
            let died = self.work_until_crash();
            self.recover(died)?;
        }
        self.world.clear_faults();
        let closed = self.close().or_else(|_| {
            // A fault before the calm may have failed a partition: reopened it is whole.
            self.drop_engine();
            self.world.crash(CrashKind::Process);
            self.start(Died::Process)?;
            self.close()
        });
        closed?;
        self.start(Died::Nobody)?;
        self.seen.ios = self.world.ios();
        Ok(self.seen)
    }

    /// One short life from the first open to the close, with the planned cut or fault anywhere in it;
    /// then recovery, perhaps cut short as well, and a last look.
    pub(super) fn live_through(mut self) -> Result<Seen, String> {
        if let Some(at) = self.plan.cut_at {
            self.world.cut_at(at, CrashKind::Power);
        }
        if let Some((at, errno)) = self.plan.fail_at {
            self.world.fail_at(at, errno);
        }
        let started = self.start(Died::Nobody);
        if started.is_ok() {
            for _ in 0..self.plan.operations {
                self.operation();
            }
            self.settle();
        } else if self.world.died().is_none() && self.plan.fail_at.is_none() {
            started?;
        }
        let closed = self.close();
        self.seen.ios = self.world.ios();
        let died = match self.world.died() {
            Some(_) => Died::Machine,
            None if closed.is_ok() && self.plan.fail_at.is_none() => Died::Nobody,
            None => Died::Process,
        };
        self.drop_engine();
        if died != Died::Nobody {
            self.seen.crashes += 1;
            let machine = died == Died::Machine;
            self.world.crash(if machine { CrashKind::Power } else { CrashKind::Process });
        }
        self.recover(died)?;
        self.world.clear_faults();
        self.close()?;
        self.start(Died::Nobody)?;
        Ok(self.seen)
    }

    /// Opens the directory and compares every partition with its oracle.
    fn start(&mut self, died: Died) -> Step {
        let engine = Engine::open_on(self.config(), self.world.disk(), None, Threads::Caller)
            .map_err(|e| format!("open: {e}"))?;
        self.partitions.clear();
        for number in 0..self.plan.partitions {
            let partition = match engine.partition(TOPIC, number) {
                Err(crate::Error::NotFound { .. })
                    if self.models[number as usize].log_end() == 0 =>
                {
                    engine.create_partition(TOPIC, number, self.config().partition)
                }
                opened => opened,
            };
            let partition = partition.map_err(|e| format!("partition {number}: {e}"))?;
            say!(self, "partition {number} opened: {:?}", partition.stat());
            for segment in partition.shared().segments.load().iter() {
                say!(self, "   {segment:?} {:?}", segment.damaged());
            }
            self.models[number as usize]
                .check(&partition, died)
                .and_then(|()| producers::check(&partition))
                .map_err(|e| format!("partition {number}: {e}"))?;
            self.terms[number as usize]
                .check(&partition)
                .map_err(|e| format!("partition {number}: {e}"))?;
            let found = partition.values().map_err(|e| format!("values: {e}"))?;
            let found = found.iter().map(|(key, value)| Some((*key.first()?, number_of(value)?)));
            let found = found.collect::<Option<_>>().ok_or("a value that nobody wrote")?;
            self.values[number as usize]
                .check(&found, died)
                .map_err(|e| format!("values of partition {number}: {e}"))?;
            for client in &mut self.clients[number as usize] {
                client.is_lost = true;
            }
            self.seen.recovered += 1;
            self.partitions.push(partition);
        }
        let cursors = engine.cursors(GROUP).map_err(|e| format!("cursors: {e}"))?;
        let found = cursors.iter().map(|(partition, cursor)| {
            let number = u8::try_from(partition.partition()).unwrap();
            (number, cursor.offset.0.cast_unsigned())
        });
        let group = self.values.last_mut().unwrap();
        group.check(&found.collect(), died).map_err(|e| format!("cursors: {e}"))?;
        let reports = engine.recovery_reports();
        self.seen.replayed_bytes += reports.values().map(|r| r.replayed_bytes).sum::<u64>();
        self.engine = Some(engine);
        Ok(())
    }

    fn work_until_crash(&mut self) -> Died {
        let died = match self.plan.power_only || self.rng.below(3) > 0 {
            true => Died::Machine,
            false => Died::Process,
        };
        let kind = if died == Died::Machine { CrashKind::Power } else { CrashKind::Process };
        self.set_faults(self.plan.faults);
        // Out of which only a reboot leads.
        let aborts = died == Died::Machine && self.rng.below(4) == 0;
        self.world.set_knobs(Knobs { aborts, ..knobs() });
        let at = match self.plan.cut_at {
            Some(at) => at,
            None => self.world.ios() + self.rng.below(u64::from(self.plan.operations) * 6),
        };
        self.world.cut_at(at, kind);
        if let Some((at, errno)) = self.plan.fail_at {
            self.world.fail_at(at, errno);
        }
        for _ in 0..self.plan.operations {
            self.operation();
            if self.world.died().is_some() {
                break;
            }
        }
        self.settle();
        self.seen.crashes += 1;
        self.drop_engine();
        self.world.crash(kind);
        self.world.set_knobs(knobs());
        say!(self, "crashed: {died:?}");
        died
    }

    /// Opens until an open gets through: every try may be cut short by another crash or fault.
    fn recover(&mut self, mut died: Died) -> Step {
        for _ in 0..self.rng.below(3) {
            let at = self.world.ios() + 1 + self.rng.below(60);
            let kind = if self.rng.coin() { CrashKind::Power } else { CrashKind::Process };
            self.world.cut_at(at, kind);
            let opened = self.open_and_touch();
            if self.world.died().is_none() && opened.is_ok() {
                self.world.clear_faults();
                break;
            }
            self.drop_engine();
            self.world.crash(kind);
            if kind == CrashKind::Power {
                died = Died::Machine;
            }
            self.seen.crashes += 1;
        }
        self.drop_engine();
        self.world.clear_faults();
        self.start(died)
    }

    fn open_and_touch(&mut self) -> Result<(), crate::Error> {
        let engine = Engine::open_on(self.config(), self.world.disk(), None, Threads::Caller)?;
        for number in 0..self.plan.partitions {
            match engine.partition(TOPIC, number) {
                Err(crate::Error::NotFound { .. }) | Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        for _ in 0..self.rng.below(8) {
            engine.poll();
            engine.keep()?;
        }
        engine.abandon();
        Ok(())
    }

    /// Leaves the engine as a process that dies does.
    fn drop_engine(&mut self) {
        self.partitions.clear();
        for pending in &mut self.pending {
            pending.clear();
        }
        self.commits.clear();
        if let Some(engine) = self.engine.take() {
            engine.abandon();
        }
    }

    fn close(&mut self) -> Step {
        self.settle();
        self.partitions.clear();
        match self.engine.take() {
            Some(engine) => engine.close().map_err(|e| format!("close: {e}")),
            None => Ok(()),
        }
    }

    fn operation(&mut self) {
        let at = self.rng.index(self.partitions.len());
        if planted(Bug::FramesOutOfOrder) {
            // It shows where several frames are under way: other work would keep them few.
            return match self.rng.below(10) {
                0..=6 => self.append(at, Durability::Durable),
                7 => self.append(at, Durability::Written),
                8 => self.turn(),
                _ => self.settle(),
            };
        }
        if self.plan.retention && self.rng.below(4) == 0 {
            return self.retention_operation(at);
        }
        if self.plan.compacts && self.rng.below(8) == 0 {
            return self.compact(at);
        }
        match self.rng.below(66) {
            56..=59 => self.change(at, Durability::Durable),
            60..=62 => self.change(at, Durability::Written),
            63..=65 => self.commit(),
            // Their oracle reads the whole log, and compaction would have taken some of it.
            39..=53 if self.plan.compacts => self.settle(),
            0..=15 => self.append(at, Durability::Durable),
            16..=24 => self.append(at, Durability::Written),
            25..=31 => self.turn(),
            32..=33 => self.flush(at),
            34 => {
                let _ = self.partitions[at].roll();
            }
            35 => self.delete_records(at),
            36 => self.truncate(at),
            37 => {
                let _ = self.engine.as_ref().unwrap().keep();
            }
            38 => self.world.clock().advance(Duration::from_millis(120)),
            39..=46 => self.produce(at),
            47..=51 => self.end_transaction(at),
            52 => self.send_again(at),
            53 => self.check_producers(at),
            _ => self.settle(),
        }
    }

    fn append(&mut self, at: usize, durability: Durability) {
        let number = self.next_number;
        self.next_number += 1;
        let count = 1 + i64::try_from(self.rng.below(3)).unwrap();
        let mut batch = BatchBuilder::new(Codec::None);
        let value = vec![0x2a; self.rng.index(300)];
        let (key, value) = match self.plan.compacts {
            true => (Some(key_of(number)), (!is_tombstone(number)).then_some(&value[..])),
            false => (None, Some(&value[..])),
        };
        let key = key.as_ref().map(|key| &key[..]);
        for i in 0..count {
            let header = ("n", Some(&number.to_le_bytes()[..]));
            batch.append(1_000 + i, key, value, &[header]).unwrap();
        }
        let options = AppendOptions { durability, leader_epoch: None::<LeaderEpoch> };
        // A full mailbox is no answer about the batch.
        if let Ok(answer) = self.partitions[at].start_append(batch.build().unwrap(), options) {
            self.models[at].submitted(number, count);
            self.pending[at].push(Waiting::Append { number, count, answer, client: None });
        }
    }

    fn set_faults(&self, rate: u32) {
        let rates = FaultRates { read: 0, write: rate, sync: rate, open: rate, names: rate };
        self.world.set_fault_rates(rates);
    }

    /// A client that knows where it is; none if the partition does not answer.
    fn client(&mut self, at: usize, which: usize) -> Option<()> {
        if self.clients[at][which].is_lost {
            self.settle();
            let states = self.partitions[at].producers().ok()?;
            self.clients[at][which].find_itself(&states);
        }
        Some(())
    }

    fn durability(&mut self) -> AppendOptions {
        let durability = if self.rng.coin() { Durability::Durable } else { Durability::Written };
        AppendOptions { durability, leader_epoch: None }
    }

    fn produce(&mut self, at: usize) {
        let which = self.rng.index(CLIENTS);
        let Some(()) = self.client(at, which) else { return };
        let number = self.next_number;
        self.next_number += 1;
        let count = 1 + i64::try_from(self.rng.below(3)).unwrap();
        let (bytes, now) = (self.rng.index(200), self.world.clock().now_ms());
        let options = self.durability();
        let client = &mut self.clients[at][which];
        let batch = client.batch(number, count, bytes, now);
        match self.partitions[at].start_append(batch.clone(), options) {
            Ok(answer) => {
                self.models[at].submitted(number, count);
                let client = Some((which, Some(batch)));
                self.pending[at].push(Waiting::Append { number, count, answer, client });
            }
            Err(_) => client.is_lost = true,
        }
    }

    fn end_transaction(&mut self, at: usize) {
        let which = CLIENTS / 2 + self.rng.index(CLIENTS / 2);
        let Some(()) = self.client(at, which) else { return };
        let number = self.next_number;
        self.next_number += 1;
        let version = i16::try_from(self.rng.below(3)).unwrap();
        let (options, now) = (self.durability(), self.world.clock().now_ms());
        let client = &mut self.clients[at][which];
        let marker = client.marker(number, version, now);
        match self.partitions[at].start_append_marker(&marker, options) {
            Ok(answer) => {
                self.models[at].submitted(number, 1);
                let client = Some((which, None));
                self.pending[at].push(Waiting::Append { number, count: 1, answer, client });
            }
            Err(_) => client.is_lost = true,
        }
    }

    /// A client has not seen the answer to its last batch.
    fn send_again(&mut self, at: usize) {
        self.settle();
        let which = self.rng.index(CLIENTS);
        let partition = &self.partitions[at];
        let Ok(states) = partition.producers() else { return };
        let Some((bytes, info)) = self.clients[at][which].last_known(&states) else { return };
        let end = partition.log_end_offset();
        let again = match partition.append(bytes.clone(), AppendOptions::default()) {
            Ok(again) => again,
            Err(error) => {
                let refused = matches!(error, crate::Error::Producer { .. });
                assert!(!refused, "a batch that is remembered was refused: {error}");
                return;
            }
        };
        assert!(again.duplicate, "written twice: {again:?}");
        assert_eq!((again.base_offset, again.last_offset), (info.base_offset, info.last_offset));
        assert_eq!(partition.log_end_offset(), end);
    }

    fn check_producers(&mut self, at: usize) {
        self.settle();
        if self.plan.fail_at.is_some() {
            return;
        }
        // One that has failed is whole again when it is reopened, not before.
        match self.partitions[at].flush() {
            Ok(durable) => self.models[at].on_durable(durable.0),
            Err(_) => return,
        }
        // What a reader is told of a fault is no fault of what is known.
        self.set_faults(0);
        let checked = producers::check(&self.partitions[at]);
        self.set_faults(self.plan.faults);
        // The plug may have been pulled while it read.
        if self.world.died().is_none()
            && let Err(what) = checked
        {
            panic!("partition {at}: {what}");
        }
    }

    /// Some keys, each set to the number of the change or taken away.
    fn keys(&mut self, number: u64, among: u64) -> Vec<(u8, Held)> {
        let first = self.rng.below(among);
        let count = 1 + self.rng.below(2).min(among - 1);
        let keys = (0..count).map(|i| u8::try_from((first + i) % among).unwrap());
        keys.map(|key| (key, (self.rng.below(5) > 0).then_some(number))).collect()
    }

    fn change(&mut self, at: usize, durability: Durability) {
        let number = self.next_number;
        self.next_number += 1;
        let keys = self.keys(number, 4);
        let padding = self.rng.index(120);
        let changes = keys.iter().map(|(key, held)| {
            let value = held.map(|number| {
                let mut value = number.to_le_bytes().to_vec();
                value.resize(8 + padding, 0x2b);
                value.into()
            });
            (vec![*key].into(), value)
        });
        say!(self, "partition {at} change {number} {durability:?} {keys:?}");
        let answer = self.partitions[at].start_change_values(changes, durability);
        self.values[at].submitted(number, &keys);
        self.pending[at].push(Waiting::Change { number, durability, answer: answer.unwrap() });
    }

    fn commit(&mut self) {
        let number = self.next_number;
        self.next_number += 1;
        let partitions = self.partitions.len() as u64;
        let keys: Vec<(u8, Held)> =
            self.keys(number, partitions).iter().map(|(key, _)| (*key, Some(number))).collect();
        let cursors = keys.iter().map(|(key, _)| {
            let partition = self.partitions[usize::from(*key)].name().clone();
            (partition, Cursor::at(Offset(number.cast_signed())))
        });
        let answer = self.engine.as_ref().unwrap().start_commit_cursors(GROUP, cursors);
        say!(self, "commit {number} {keys:?}");
        // The id of a topic may have to be read, from a disk that has died.
        if let Ok(answer) = answer {
            self.values.last_mut().unwrap().submitted(number, &keys);
            self.commits.push((number, answer));
        }
    }

    /// Lets the shards work, and takes the answers that have come.
    fn turn(&mut self) {
        self.engine.as_ref().unwrap().poll();
        self.take_answers();
    }

    fn take_answers(&mut self) {
        for (at, pending) in self.pending.iter_mut().enumerate() {
            // Answers of one partition are looked at in the order of their appends.
            while pending.first().is_some_and(Waiting::is_ready) {
                let (number, count, answer, client) = match pending.remove(0) {
                    Waiting::Append { number, count, answer, client } => {
                        (number, count, answer, client)
                    }
                    Waiting::Change { number, durability, answer } => {
                        let answer = answer.wait();
                        if self.verbose {
                            println!("       partition {at} change {number}: {answer:?}");
                        }
                        if answer.is_ok() {
                            let durable = durability == Durability::Durable;
                            self.values[at].answered(number, durable);
                            if durable {
                                // Every append that was answered before it was handed in, and
                                // more: all before it in this list.
                                let end = self.models[at].log_end();
                                self.models[at].on_durable(end);
                                self.values[at].durable_before(number);
                            }
                        }
                        continue;
                    }
                };
                let (info, client) = match (answer.wait(), client) {
                    (Ok(info), client) => (info, client),
                    (Err(error), Some((which, _))) => {
                        self.clients[at][which].is_lost = true;
                        if matches!(error, crate::Error::Producer { .. }) {
                            self.models[at].refused(number);
                        }
                        continue;
                    }
                    (Err(_), None) => continue,
                };
                if let Some((which, Some(bytes))) = client {
                    self.clients[at][which].answered(bytes, info);
                }
                let durable = info.durability == Durability::Durable;
                let stored = Stored { number, base: info.base_offset.0, count };
                if self.verbose {
                    println!("       partition {at} answered {stored:?} {:?}", info.durability);
                }
                self.models[at].on_written(stored, durable);
                if durable {
                    self.values[at].durable_before(number);
                }
                self.seen.acknowledged += u64::from(durable);
            }
        }
        while self.commits.first().is_some_and(|(_, answer)| answer.is_ready()) {
            let (number, answer) = self.commits.remove(0);
            if answer.wait().is_ok() {
                self.values.last_mut().unwrap().answered(number, true);
            }
        }
    }

    /// Waits for every answer. After a crash some never come as anything but errors.
    pub(super) fn settle(&mut self) {
        if self.engine.is_none() {
            return;
        }
        for _ in 0..10_000 {
            self.turn();
            if self.pending.iter().all(Vec::is_empty) && self.commits.is_empty() {
                return;
            }
        }
        panic!("seed {}: answers never came\n{}", self.plan.seed, self.world.trace());
    }

    fn flush(&mut self, at: usize) {
        self.settle();
        let flushed = self.partitions[at].flush();
        say!(self, "partition {at} flushed: {flushed:?}");
        if let Ok(durable) = flushed {
            self.models[at].on_durable(durable.0);
            self.values[at].durable_before(self.next_number);
        }
    }

    fn delete_records(&mut self, at: usize) {
        self.settle();
        let before = self.rng.below(1 + self.models[at].log_end().cast_unsigned()).cast_signed();
        self.models[at].deleting_before(before);
        let deleted = self.partitions[at].delete_records(Offset(before));
        say!(self, "partition {at} deleted before {before}: {deleted:?}");
    }

    fn compact(&mut self, at: usize) {
        self.settle();
        if self.rng.coin() {
            let _ = self.partitions[at].roll();
        }
        let end = self.models[at].log_end();
        self.models[at].compacting(end);
        let compacted = self.partitions[at].compact();
        say!(self, "partition {at} compacted: {compacted:?}");
        self.seen.compacted += u64::from(compacted.is_ok_and(|run| run.passes > 0));
    }

    fn truncate(&mut self, at: usize) {
        self.settle();
        let end = self.models[at].log_end();
        let start = self.partitions[at].log_start_offset().0;
        let to = self.rng.below(1 + end.cast_unsigned()).cast_signed();
        let Some(to) = self.models[at].boundary_in(&self.partitions[at], to) else { return };
        if to < start || to == end {
            return;
        }
        self.models[at].truncating(to);
        self.clients[at].iter_mut().for_each(|client| client.is_lost = true);
        let truncated = self.partitions[at].truncate(Offset(to));
        say!(self, "partition {at} truncated to {to}: {truncated:?}");
        if truncated.is_ok() {
            self.models[at].truncated(to);
        }
    }
}

/// The change that a value was set by.
fn number_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.get(..8)?.try_into().ok()?))
}
