//! Values and cursors of a real engine on a real disk, from many threads at once.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should panic")]

mod support;

use loglane::{AppendOptions, Config, Cursor, Durability, Engine, Offset};
use std::sync::Arc;

const THREADS: u32 = 4;
const EACH: u32 = 200;

#[test]
fn puts_and_commits_of_many_threads_are_all_there_after_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.shards = 2;
    config.replay_bytes_max = 16 << 20;
    let engine = Arc::new(Engine::open(config.clone()).unwrap());
    let partitions = engine.create_topic("t", THREADS).unwrap();
    std::thread::scope(|scope| {
        for (thread, partition) in (0..THREADS).zip(&partitions) {
            let engine = Arc::clone(&engine);
            scope.spawn(move || {
                let group = format!("g{}", thread % 2);
                for number in 0..EACH {
                    let durability = match number % 3 {
                        0 => Durability::Durable,
                        _ => Durability::Written,
                    };
                    let (key, value) = ((number % 50).to_le_bytes(), number.to_le_bytes());
                    partition.put_value(key.to_vec(), value.to_vec(), durability).unwrap();
                    let seen = partition.get_value(&key).unwrap().unwrap();
                    assert_eq!(&seen[..], value, "what was answered is seen");
                    if number % 10 == 0 {
                        let options = AppendOptions::durable();
                        partition.append(support::batch(0, 1, 10), options).unwrap();
                        let cursor = Cursor::at(Offset(number.into()));
                        let name = partition.name().clone();
                        engine.commit_cursors(&group, [(name, cursor)]).unwrap();
                    }
                }
            });
        }
    });
    drop(partitions);
    assert!(engine.stat().state_bytes > 0);
    Arc::into_inner(engine).unwrap().close().unwrap();

    let engine = Engine::open(config).unwrap();
    assert!(engine.was_clean());
    for number in 0..THREADS {
        let partition = engine.partition("t", number).unwrap();
        let values = partition.values().unwrap();
        assert_eq!(values.len(), 50);
        for (key, value) in values {
            let key = u32::from_le_bytes(key.as_ref().try_into().unwrap());
            let value = u32::from_le_bytes(value.as_ref().try_into().unwrap());
            assert_eq!(value, EACH - 50 + key);
        }
        let group = format!("g{}", number % 2);
        let cursor = engine.cursor(&group, partition.name()).unwrap().unwrap();
        assert_eq!(cursor.offset, Offset((EACH - 10).into()));
    }
    assert_eq!(engine.groups().unwrap(), ["g0", "g1"]);
    engine.close().unwrap();
}
