//! SIGINT and SIGTERM: a flag that long commands look at, so that they end in order.

#![forbid(unsafe_code)]

use crate::failure::Failure;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on signals set the flag instead of killing the process; the second one kills.
pub(crate) fn listen() -> Result<(), Failure> {
    let on_signal = || {
        if STOP.swap(true, Ordering::AcqRel) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(on_signal)
        .map_err(|e| Failure::new(format!("cannot handle signals: {e}"), "run the command again"))
}

/// True once a signal came.
pub(crate) fn requested() -> bool {
    STOP.load(Ordering::Acquire)
}
