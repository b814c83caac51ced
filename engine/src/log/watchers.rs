//! Who is told when a partition has more to read, or less.
//!
//! No call is lost: a watcher is in the list before it looks at the offsets for itself, and the
//! offsets move before the list is looked at, each with a full fence in between.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, PoisonError, Weak};

/// Looks at the offsets when they have moved. On the thread that moved them: it must not wait.
pub(crate) trait Watcher: Send + Sync {
    /// False when it need not be called again.
    fn look(&self) -> bool;
}

/// The watchers of one partition.
#[derive(Default)]
pub(crate) struct Watchers {
    any: AtomicBool,
    list: Mutex<Vec<Weak<dyn Watcher>>>,
}

impl Watchers {
    /// The offsets have moved.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|watcher| watcher.upgrade().is_some_and(|watcher| watcher.look()));
        self.any.store(!list.is_empty(), Ordering::Relaxed);
    }

    /// The watcher is called from now on. It looks for itself once, after this.
    pub(crate) fn add(&self, watcher: Weak<dyn Watcher>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(watcher);
        self.any.store(true, Ordering::Relaxed);
        drop(list);
        fence(Ordering::SeqCst);
    }
}
