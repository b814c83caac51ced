//! A shard's mailbox: a bounded queue that many threads fill and one empties, without a lock.
//!
//! ```text
//!   slot:   sequence · value            tail (next to fill) ─▶  …  ─▶ head (next to take)
//!   empty for turn t:   sequence == t
//!   filled in turn t:   sequence == t + 1     (stored with release ordering, after the value)
//!   taken in turn t:    sequence == t + capacity
//! ```
//!
//! The queue is Dmitry Vyukov's bounded MPMC queue with its one consumer's side kept plain. Beside
//! it stands the rule that loses no wake-up: the consumer says it will sleep, *then* looks once more;
//! a producer fills its slot, *then* asks whether the consumer sleeps. With a full fence between the
//! two steps on both sides at least one of them sees the other.
//!
//! Values are boxed and travel as pointers in atomics, so a slot is never torn, whatever the order.

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::marker::PhantomData;
use std::sync::Arc;

/// Why a value could not be queued; it comes back.
pub(crate) struct Full<T>(pub(crate) T);

/// What a test breaks in a send.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(test, loom)), allow(dead_code, reason = "loom tests plant the bugs"))]
enum Planted {
    Nothing,
    /// The slot says it is full before it is.
    SlotBeforeValue,
    /// Nothing keeps the look at the sleeper behind the filling of the slot.
    NoFence,
}

struct Slot {
    sequence: AtomicUsize,
    /// `Box::into_raw` of the value; 0 when empty.
    value: AtomicU64,
}

struct Shared<T> {
    slots: Box<[Slot]>,
    mask: usize,
    tail: AtomicUsize,
    sleeping: AtomicBool,
    values: PhantomData<T>,
}

/// The filling side; any number of clones.
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { shared: Arc::clone(&self.shared) }
    }
}

/// The emptying side; one.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    head: usize,
}

/// A mailbox of `capacity` values, a power of two.
pub(crate) fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity.is_power_of_two(), "a mailbox of {capacity} is no power of two");
    let slot = |turn| Slot { sequence: AtomicUsize::new(turn), value: AtomicU64::new(0) };
    let shared = Arc::new(Shared {
        slots: (0..capacity).map(slot).collect(),
        mask: capacity - 1,
        tail: AtomicUsize::new(0),
        sleeping: AtomicBool::new(false),
        values: PhantomData,
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared, head: 0 })
}

// SAFETY: values move from senders to the receiver by pointer, each owned by one side at a time
// (the slot's sequence says by which), so sending the values is all that is asked for.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; all shared state is atomic.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Send> Sender<T> {
    /// Queues a value. True if the receiver sleeps and must be woken.
    pub(crate) fn send(&self, value: T) -> Result<bool, Full<T>> {
        match self.claim() {
            Some(turn) => Ok(self.fill(turn, value, Planted::Nothing)),
            None => Err(Full(value)),
        }
    }

    /// Takes the next turn, if its slot is empty.
    fn claim(&self) -> Option<usize> {
        let shared = &*self.shared;
        let mut turn = shared.tail.load(Ordering::Relaxed);
        loop {
            let sequence = shared.slot(turn).sequence.load(Ordering::Acquire);
            let ahead = sequence.wrapping_sub(turn).cast_signed();
            if ahead < 0 {
                return None;
            }
            if ahead > 0 {
                // Another sender has taken this turn meanwhile.
                turn = shared.tail.load(Ordering::Relaxed);
                continue;
            }
            let next = turn.wrapping_add(1);
            let relaxed = Ordering::Relaxed;
            match shared.tail.compare_exchange_weak(turn, next, relaxed, relaxed) {
                Ok(_) => return Some(turn),
                Err(now) => turn = now,
            }
        }
    }

    /// Fills the slot of a claimed turn. True if the receiver sleeps and must be woken.
    ///
    /// The bug is a parameter so that loom tests can plant it; it is a constant everywhere else.
    #[inline]
    fn fill(&self, turn: usize, value: T, planted: Planted) -> bool {
        let shared = &*self.shared;
        let slot = shared.slot(turn);
        let pointer = Box::into_raw(Box::new(value)).expose_provenance();
        if planted == Planted::SlotBeforeValue {
            slot.sequence.store(turn.wrapping_add(1), Ordering::Release);
        }
        slot.value.store(pointer as u64, Ordering::Relaxed);
        slot.sequence.store(turn.wrapping_add(1), Ordering::Release);
        if planted != Planted::NoFence {
            fence(Ordering::SeqCst);
        }
        shared.sleeping.load(Ordering::Relaxed) && shared.sleeping.swap(false, Ordering::AcqRel)
    }

    /// Values it holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.shared.mask + 1
    }
}

impl<T: Send> Receiver<T> {
    /// Takes the oldest value.
    pub(crate) fn take(&mut self) -> Option<T> {
        let slot = self.shared.slot(self.head);
        if slot.sequence.load(Ordering::Acquire) != self.head.wrapping_add(1) {
            return None;
        }
        let pointer = slot.value.swap(0, Ordering::Relaxed);
        slot.sequence.store(self.head.wrapping_add(self.shared.mask + 1), Ordering::Release);
        self.head = self.head.wrapping_add(1);
        Some(*from_pointer(pointer))
    }

    /// Says that the receiver will sleep. False if a value came in meanwhile: then do not.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.shared.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slot = self.shared.slot(self.head);
        let empty = slot.sequence.load(Ordering::Relaxed) != self.head.wrapping_add(1);
        if !empty {
            self.awake();
        }
        empty
    }

    /// Says that the receiver is awake, so that nobody pays for waking it.
    pub(crate) fn awake(&self) {
        self.shared.sleeping.store(false, Ordering::Relaxed);
    }
}

/// The value behind a pointer that a slot held.
fn from_pointer<T>(pointer: u64) -> Box<T> {
    let pointer = usize::try_from(pointer).expect("it was a pointer of this machine");
    // SAFETY: the pointer came from `Box::into_raw` in `send_with`; the receiver swapped it out of
    // its slot, so nobody else has it.
    unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut(pointer)) }
}

impl<T> Shared<T> {
    fn slot(&self, turn: usize) -> &Slot {
        #[expect(clippy::indexing_slicing, reason = "the mask is the length less one")]
        &self.slots[turn & self.mask]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let pointer = slot.value.swap(0, Ordering::Acquire);
            if pointer != 0 {
                drop(from_pointer::<T>(pointer));
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_in_order_and_a_full_mailbox_gives_them_back() {
        let (sender, mut receiver) = mailbox::<u32>(4);
        for round in 0..10 {
            for i in 0..4 {
                assert!(!sender.send(round * 4 + i).ok().unwrap());
            }
            assert_eq!(sender.send(99).err().unwrap().0, 99);
            for i in 0..4 {
                assert_eq!(receiver.take(), Some(round * 4 + i));
            }
            assert_eq!(receiver.take(), None);
        }
    }

    #[test]
    fn values_left_behind_are_dropped_with_the_mailbox() {
        let value = Arc::new(());
        let (sender, receiver) = mailbox(8);
        for _ in 0..3 {
            sender.send(Arc::clone(&value)).ok().unwrap();
        }
        assert_eq!(Arc::strong_count(&value), 4);
        drop((sender, receiver));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn many_threads_lose_no_value_and_a_sleeper_is_woken() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let (sender, mut receiver) = mailbox::<u64>(64);
        let sleeper = std::thread::current();
        let handles: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (sender, sleeper) = (sender.clone(), sleeper.clone());
                std::thread::spawn(move || {
                    for i in 0..EACH {
                        let mut value = thread * EACH + i;
                        loop {
                            match sender.send(value) {
                                Ok(wake) => {
                                    if wake {
                                        sleeper.unpark();
                                    }
                                    break;
                                }
                                Err(Full(back)) => value = back,
                            }
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut last = [None::<u64>; THREADS as usize];
        let mut count = 0;
        while count < THREADS * EACH {
            match receiver.take() {
                Some(value) => {
                    let from = &mut last[usize::try_from(value / EACH).unwrap()];
                    assert!(from.is_none_or(|before| before < value), "order within a thread");
                    *from = Some(value);
                    count += 1;
                }
                None if receiver.prepare_sleep() => std::thread::park(),
                None => {}
            }
        }
        for handle in handles {
            handle.join().unwrap();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicU64 as LoomU64;

    /// Every value sent is taken once, in every interleaving of two senders and the receiver.
    #[test]
    fn loom_mailbox_loses_no_value() {
        loom::model(|| {
            let (sender, mut receiver) = mailbox::<u64>(2);
            let other = sender.clone();
            let thread = loom::thread::spawn(move || assert!(other.send(1).is_ok()));
            assert!(sender.send(2).is_ok());
            let mut sum: u64 = (0..2).filter_map(|_| take_checked(&mut receiver)).sum();
            thread.join().unwrap();
            sum += std::iter::from_fn(|| take_checked(&mut receiver)).sum::<u64>();
            assert_eq!(sum, 3, "a value is missing");
        });
    }

    /// A receiver that finds a slot full finds its value.
    fn values_come_before_their_slots(planted: Planted) {
        loom::model(move || {
            let (sender, mut receiver) = mailbox::<u64>(2);
            let thread = loom::thread::spawn(move || {
                // Not through `claim`: loom explores less of an atomic that its writer also loads.
                sender.fill(0, 1, planted);
                sender.fill(1, 2, planted);
            });
            for _ in 0..2 {
                take_checked(&mut receiver);
            }
            thread.join().unwrap();
        });
    }

    /// As `take`, but says when the slot it was told is full holds nothing.
    fn take_checked(receiver: &mut Receiver<u64>) -> Option<u64> {
        let slot = receiver.shared.slot(receiver.head);
        if slot.sequence.load(Ordering::Acquire) != receiver.head.wrapping_add(1) {
            return None;
        }
        assert_ne!(slot.value.load(Ordering::Relaxed), 0, "a slot was published before its value");
        receiver.take()
    }

    #[test]
    fn loom_mailbox_publishes_a_slot_after_its_value() {
        values_come_before_their_slots(Planted::Nothing);
    }

    #[test]
    #[should_panic(expected = "published before its value")]
    fn loom_mailbox_twin_that_publishes_too_soon_is_caught() {
        values_come_before_their_slots(Planted::SlotBeforeValue);
    }

    /// A sender that does not wake and a receiver that sleeps over its value cannot both be.
    fn no_wake_up_is_lost(planted: Planted) {
        loom::model(move || {
            let (sender, mut receiver) = mailbox::<u64>(2);
            let woken = Arc::new(LoomU64::new(0));
            let sees = Arc::clone(&woken);
            let thread = loom::thread::spawn(move || {
                if sender.fill(0, 7, planted) {
                    sees.store(1, Ordering::SeqCst);
                }
            });
            let sleeps = receiver.take().is_none() && receiver.prepare_sleep();
            thread.join().unwrap();
            if sleeps {
                assert_eq!(woken.load(Ordering::SeqCst), 1, "the receiver sleeps over a value");
            }
        });
    }

    #[test]
    fn loom_mailbox_loses_no_wake_up() {
        no_wake_up_is_lost(Planted::Nothing);
    }

    #[test]
    #[should_panic(expected = "sleeps over a value")]
    fn loom_mailbox_twin_without_the_fence_is_caught() {
        no_wake_up_is_lost(Planted::NoFence);
    }
}
