//! The store alone, on a disk that tears, loses and fails, against a map.

#![forbid(unsafe_code)]

use super::store::SyncStart;
use super::{Change, Found, Scope, Store, What, open};
use crate::io::Waker;
use crate::io::sim::{CrashKind, Knobs, Rng, SimWorld};
use crate::planted::{Bug, plant};
use crate::{Error, TopicPartition};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/data";

fn world(seed: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    world.make_dir_all(DIR);
    world
}

fn scope() -> Scope {
    Scope::Group("g".into())
}

fn put(key: u8, value: &[u8]) -> Change {
    let (key, value) = (Bytes::from(vec![key]), Bytes::copy_from_slice(value));
    Change { scope: scope(), what: What::Put { key, value } }
}

fn remove(key: u8) -> Change {
    Change { scope: scope(), what: What::Remove { key: Bytes::from(vec![key]) } }
}

fn open_store(world: &SimWorld, found: Found) -> crate::Result<Store> {
    open(world.disk(), Path::new(DIR), found, &[], &|_| true)
}

/// What one step of a store's life is.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, usize),
    Remove(u8),
    Sync,
    /// A sync whose end comes late, and perhaps never.
    Begin,
    End,
    Rewrite,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..400_usize).prop_map(|(key, length)| Step::Put(key, length)),
        2 => (0..6_u8).prop_map(Step::Remove),
        2 => Just(Step::Sync),
        1 => Just(Step::Begin),
        1 => Just(Step::End),
        1 => Just(Step::Rewrite),
        1 => Just(Step::Reopen),
    ]
}

/// A store's life up to a crash at some call, and what it holds then: one of the states since the
/// last one that was synced.
fn live(seed: u64, steps: &[Step], cut_at: u64, fails: Option<u64>) -> Result<(), String> {
    let world = world(seed);
    world.set_knobs(Knobs { short_writes: 50_000, ..Knobs::default() });
    let waker = Arc::new(Waker::new().unwrap());
    let mut store = open_store(&world, Found::Clean).unwrap();
    world.cut_at(cut_at, CrashKind::Power);
    if let Some(at) = fails {
        world.fail_at(at, libc::EIO);
    }
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    // Every state that may be found: the first is the last that was synced.
    let mut states = vec![model.clone()];
    let mut begun: Option<(super::Ticket, crate::io::FileRef, usize)> = None;
    for (number, step) in steps.iter().enumerate() {
        if world.died().is_some() {
            break;
        }
        let change = match step {
            Step::Put(key, length) => put(*key, &vec![u8::try_from(number).unwrap(); *length]),
            Step::Remove(key) => remove(*key),
            Step::Sync => {
                let before = states.len();
                if store.sync_now().is_ok() {
                    states.drain(..before - 1);
                    begun = begun.map(|(ticket, file, _)| (ticket, file, 0));
                }
                continue;
            }
            Step::Begin => {
                if begun.is_none()
                    && let Ok(SyncStart::Started(file, ticket)) = store.begin_sync(&waker)
                {
                    begun = Some((ticket, file, states.len() - 1));
                }
                continue;
            }
            Step::End => {
                if let Some((ticket, file, at)) = begun.take() {
                    let result = file.sync_data();
                    let synced = result.is_ok();
                    if store.on_synced(ticket, result).is_ok() && synced {
                        states.drain(..at.min(states.len() - 1));
                    }
                }
                continue;
            }
            Step::Rewrite => {
                let _ = store.rewrite_if_grown();
                continue;
            }
            Step::Reopen => {
                let closed = store.close();
                let found = if closed.is_ok() { Found::Clean } else { Found::Crashed };
                match open_store(&world, found) {
                    Ok(opened) => store = opened,
                    Err(_) => break,
                }
                begun = None;
                let held = store.of(&scope()).map_err(|e| e.to_string())?;
                if world.died().is_none() && !states.contains(&held) {
                    return Err(format!("reopened with {held:?}"));
                }
                if closed.is_ok() && held != model {
                    return Err(format!("closed with {model:?}, opened with {held:?}"));
                }
                model = held.clone();
                states = vec![held];
                continue;
            }
        };
        let mut next = model.clone();
        match &change.what {
            What::Put { key, value } => drop(next.insert(key.clone(), value.clone())),
            What::Remove { key } => drop(next.remove(key)),
            What::RemoveAll => {}
        }
        // A crash may bring back a change that failed, until another one takes its place.
        states.push(next.clone());
        if store.write(&[change]).is_ok() {
            model = next;
        } else {
            states.push(model.clone());
        }
        if store.of(&scope()).ok().as_ref() != Some(&model) {
            return Err("memory is not what was written".into());
        }
    }
    drop(store);
    world.crash(CrashKind::Power);
    world.clear_faults();
    let store = open_store(&world, Found::Crashed).map_err(|e| e.to_string())?;
    if !store.damage().is_empty() {
        return Err(format!("damage without a fault: {:?}", store.damage()));
    }
    let held = store.of(&scope()).map_err(|e| e.to_string())?;
    match states.contains(&held) {
        true => Ok(()),
        false => Err(format!("{held:?} is none of {states:?}\n{}", world.trace())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
    #[test]
    fn a_power_cut_leaves_what_was_synced_or_a_later_state(
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(), 1..40),
        cut_at in 0..150_u64,
        fails in proptest::option::of(0..100_u64),
    ) {
        if let Err(what) = live(seed, &steps, cut_at, fails) {
            return Err(TestCaseError::fail(what));
        }
    }
}

/// Random lives until one goes wrong; how many that took.
fn lives_until_caught(bug: Bug) -> Option<u64> {
    plant(Some(bug));
    let caught = (1..2000).find(|seed| {
        let mut rng = Rng::new(*seed);
        let steps: Vec<Step> = (0..30)
            .map(|_| match rng.below(8) {
                0..=4 => Step::Put(u8::try_from(rng.below(4)).unwrap(), rng.index(400)),
                5 => Step::Sync,
                6 => Step::Rewrite,
                _ => Step::Remove(u8::try_from(rng.below(4)).unwrap()),
            })
            .collect();
        live(*seed, &steps, 10 + rng.below(80), None).is_err()
    });
    plant(None);
    caught
}

#[test]
fn a_twin_that_renames_before_the_bytes_are_synced_is_caught() {
    assert!(lives_until_caught(Bug::StateRenamedUnsynced).is_some());
}

#[test]
fn a_file_that_grows_past_what_it_holds_is_written_anew() {
    let world = world(1);
    let store = open_store(&world, Found::Clean).unwrap();
    for number in 0..2000_u32 {
        store.write(&[put(1, &number.to_le_bytes())]).unwrap();
        store.rewrite_if_grown().unwrap();
    }
    assert!(store.file_bytes() < 4096, "{} bytes", store.file_bytes());
    store.close().unwrap();
    let store = open_store(&world, Found::Clean).unwrap();
    assert_eq!(store.get(&scope(), &[1]).unwrap().as_deref(), Some(&1999_u32.to_le_bytes()[..]));
}

#[test]
fn damage_of_a_closed_file_is_reported_and_nothing_is_given_out_until_it_is_accepted() {
    let world = world(1);
    let store = open_store(&world, Found::Clean).unwrap();
    store.write(&[put(1, b"first")]).unwrap();
    store.write(&[put(2, b"second")]).unwrap();
    store.close().unwrap();
    let path = Path::new(DIR).join(super::store::STATE_FILE);
    let file = world.disk().open(&path, crate::io::OpenMode::ReadWrite).unwrap();
    let bytes = world.peek(&path).unwrap();
    let at = bytes.windows(5).position(|window| window == b"first").unwrap();
    file.write_all_at(b"F", at as u64).unwrap();
    for found in [Found::Clean, Found::Crashed] {
        let store = open_store(&world, found).unwrap();
        assert_eq!(store.damage().len(), 1);
        assert!(matches!(store.get(&scope(), &[2]), Err(Error::Format { .. })));
        assert!(matches!(store.write(&[put(3, b"x")]), Err(Error::Format { .. })));
    }
    // What only a journal has is kept beside the damage.
    let record = super::format::encode(77, 0, 0, &[put(4, b"journal")]);
    let lives = |_: &TopicPartition| true;
    open(world.disk(), Path::new(DIR), Found::Crashed, &[record], &lives).unwrap();
    let store = open_store(&world, Found::Crashed).unwrap();
    let kept = store.accept_damage().unwrap().unwrap();
    assert!(world.peek(&kept).is_some());
    let held = store.of(&scope()).unwrap();
    let held: Vec<&[u8]> = held.values().map(AsRef::as_ref).collect();
    assert_eq!(held, [&b"second"[..], b"journal"]);
    let store = open_store(&world, Found::Crashed).unwrap();
    assert_eq!((store.damage().len(), store.of(&scope()).unwrap().len()), (0, 2));
}
