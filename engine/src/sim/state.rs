//! Values and cursors of an engine with its journal, over power cuts and clean closes.

#![forbid(unsafe_code)]

use crate::config::{Config, PartitionConfig};
use crate::engine::{Engine, Threads};
use crate::format::{BatchBuilder, Codec};
use crate::io::sim::{CrashKind, SimWorld};
use crate::planted::{Bug, plant};
use crate::{AppendOptions, Cursor, Durability, Error, Offset, Partition, TopicPartition};
use std::path::Path;

const DIR: &str = "/data";

fn world(seed: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    world.make_dir_all(DIR);
    world
}

fn config(world: &SimWorld) -> Config {
    let mut config = Config::new(DIR);
    config.shards = 1;
    config.replay_bytes_max = 4 * 8 * 32_768;
    config.reserve_bytes = 0;
    config.partition = PartitionConfig { segment_bytes: 1 << 20, ..PartitionConfig::default() };
    config.clock = world.clock();
    config
}

fn engine(world: &SimWorld) -> Engine {
    Engine::open_on(config(world), world.disk(), None, Threads::Caller).unwrap()
}

fn append(partition: &Partition, options: AppendOptions) {
    let mut batch = BatchBuilder::new(Codec::None);
    batch.append(1, None, Some(b"record"), &[]).unwrap();
    partition.append(batch.build().unwrap(), options).unwrap();
}

/// Goes round all files of a journal, with changes in each; true if a power cut then lost the first.
fn loses_by_recycling(seed: u64) -> bool {
    let world = world(seed);
    let running = engine(&world);
    let partition = running.create_topic("t", 1).unwrap().remove(0);
    for number in 0..120_u8 {
        partition.put_value(vec![number], vec![number], Durability::Durable).unwrap();
        append(&partition, AppendOptions::durable());
    }
    drop(partition);
    running.abandon();
    world.crash(CrashKind::Power);
    let values = engine(&world).partition("t", 0).unwrap().values().unwrap();
    values.len() < 120
}

#[test]
fn a_journal_file_is_not_begun_again_before_the_changes_in_it_are_synced() {
    assert!(!(1..40).any(loses_by_recycling));
    plant(Some(Bug::StateRecycledEarly));
    let caught = (1..40).find(|seed| loses_by_recycling(*seed));
    plant(None);
    assert!(caught.is_some(), "the twin was not caught");
}

#[test]
fn values_stay_over_a_truncation_and_a_clean_close_and_go_with_the_partition() {
    let world = world(3);
    let running = engine(&world);
    let partition = running.create_topic("t", 2).unwrap().remove(0);
    append(&partition, AppendOptions::durable());
    partition.put_value("vote", "7", Durability::Written).unwrap();
    partition.change_values([("term".into(), Some("3".into()))], Durability::Durable).unwrap();
    partition.truncate(Offset(0)).unwrap();
    let name = partition.name().clone();
    running.commit_cursor("g", &name, Offset(4), "m").unwrap();
    assert!(running.stat().state_bytes > running.stat().state_live_bytes);
    running.close().unwrap();
    let names = world.disk().list(Path::new(DIR)).unwrap();
    let ours: Vec<_> = names.iter().filter(|e| e.name.starts_with("loglane")).collect();
    assert_eq!(ours.len(), 1, "{ours:?}");

    let running = engine(&world);
    let partition = running.partition("t", 0).unwrap();
    assert_eq!(partition.get_value(b"vote").unwrap().as_deref(), Some(&b"7"[..]));
    assert_eq!(partition.values().unwrap().len(), 2);
    assert_eq!(running.partition("t", 1).unwrap().values().unwrap().len(), 0);
    let cursor = running.cursor("g", &name).unwrap().unwrap();
    assert_eq!((cursor.offset, cursor.metadata.as_str()), (Offset(4), "m"));
    partition.remove_value("vote", Durability::Durable).unwrap();
    assert_eq!(partition.get_value(b"vote").unwrap(), None);
    running.delete_topic("t").unwrap();
    assert!(running.groups().unwrap().is_empty());
    let partition = running.create_topic("t", 1).unwrap().remove(0);
    assert!(partition.values().unwrap().is_empty());
    running.close().unwrap();
    // Nothing is left of it, so the directory is a plain one.
    let names = world.disk().list(Path::new(DIR)).unwrap();
    assert!(!names.iter().any(|entry| entry.name.starts_with("loglane")), "{names:?}");
}

#[test]
fn a_commit_of_many_partitions_is_one_device_write_and_survives_a_power_cut_whole() {
    let world = world(4);
    let running = engine(&world);
    let partitions = running.create_topic("t", 30).unwrap();
    let names: Vec<TopicPartition> = partitions.iter().map(|p| p.name().clone()).collect();
    append(&partitions[0], AppendOptions::durable());
    let before = running.stat().journal_writes;
    let all = names.iter().map(|name| (name.clone(), Cursor::at(Offset(9))));
    running.commit_cursors("g", all).unwrap();
    assert_eq!(running.stat().journal_writes, before + 1);
    drop(partitions);
    running.abandon();
    world.crash(CrashKind::Power);
    let running = engine(&world);
    assert_eq!(running.cursors("g").unwrap().len(), 30);
    assert_eq!(running.groups().unwrap(), ["g"]);
    running.remove_group("g").unwrap();
    assert!(matches!(running.remove_group("g"), Err(Error::NotFound { .. })));
}

#[test]
fn changes_that_nobody_waits_for_are_bound_and_all_answered() {
    let world = world(6);
    let mut config = config(&world);
    config.inflight_bytes_max = 64 << 10;
    let running = Engine::open_on(config, world.disk(), None, Threads::Caller).unwrap();
    let partition = running.create_topic("t", 1).unwrap().remove(0);
    let mut answers = Vec::new();
    for number in 0..40_u8 {
        let durability = if number % 2 == 0 { Durability::Durable } else { Durability::Written };
        let change = (vec![number].into(), Some(vec![number; 20_000].into()));
        answers.push(partition.start_change_values([change], durability).unwrap());
        assert!(answers.len() - partition.values().unwrap().len() < 5, "more than 64 KiB wait");
    }
    for answer in answers {
        while !answer.is_ready() {
            running.poll();
        }
        answer.wait().unwrap();
    }
    append(&partition, AppendOptions::durable());
    assert_eq!(partition.values().unwrap().len(), 40);
}

#[test]
fn calls_out_of_range_are_refused_before_anything_is_written() {
    let world = world(5);
    let running = engine(&world);
    let partition = running.create_topic("t", 1).unwrap().remove(0);
    let durable = Durability::Durable;
    assert!(matches!(partition.put_value("", "", durable), Err(Error::Config { key: "key", .. })));
    assert!(partition.put_value(vec![1; 256], "", durable).is_err());
    let large = partition.put_value("k", vec![0; crate::VALUE_BYTES_MAX + 1], durable);
    assert!(matches!(large, Err(Error::TooLarge { .. })));
    // Larger than a frame of this journal: a sync of the file makes it durable.
    partition.put_value(vec![1; 255], vec![0; crate::VALUE_BYTES_MAX], durable).unwrap();
    let (name, missing) = (partition.name().clone(), TopicPartition::new("u", 0).unwrap());
    assert!(running.commit_cursor("", &name, Offset(1), "").is_err());
    assert!(running.commit_cursor("g", &name, Offset(-1), "").is_err());
    let gone = running.commit_cursor("g", &missing, Offset(1), "");
    assert!(matches!(gone, Err(Error::NotFound { .. })));
    assert!(running.groups().unwrap().is_empty());
}
