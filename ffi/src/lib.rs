//! The C ABI: null checks, one call of the engine, a status. No logic of its own.
//!
//! The header include/loglane.h is generated from this crate and reads as the manual.

#![allow(non_camel_case_types, reason = "the names C sees")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test that meets the unexpected should panic"
    )
)]

mod batch;
mod handle;
mod log;
mod status;

pub use batch::*;
pub use log::*;
pub use status::*;

use handle::Table;
use status::Fault;
use std::ffi::{CStr, c_char};

/// The version of this ABI. It rises when a call or a struct changes its meaning.
pub const LOGLANE_ABI_VERSION: u32 = 1;

/// The version of the ABI the library was built with: compare with LOGLANE_ABI_VERSION at start-up.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_abi_version() -> u32 {
    LOGLANE_ABI_VERSION
}

/// A few words on a status, NUL-terminated, valid for ever. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_status_text(status: i32) -> *const c_char {
    /// The engine's table with NULs: built once, never freed.
    static TEXTS: std::sync::OnceLock<Vec<(i32, std::ffi::CString)>> = std::sync::OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        let text = |text: &str| std::ffi::CString::new(text).unwrap_or_default();
        engine::CODES.iter().map(|(code, _, meaning)| (*code, text(meaning))).collect()
    });
    let known = texts.iter().find(|(code, _)| *code == status);
    known.map_or(c"not a status of this library".as_ptr(), |(_, text)| text.as_ptr())
}

/// What `take` says a pointer must be.
fn not_null<T>(pointer: *const T, what: &'static str) -> Result<*const T, Fault> {
    if pointer.is_null() { Err(Fault::Argument(what)) } else { Ok(pointer) }
}

/// Writes an output.
///
/// # Safety
/// `out` is NULL or may be written to, as the header asks.
unsafe fn write<T>(out: *mut T, value: T) -> Result<(), Fault> {
    not_null(out, "an output pointer is NULL")?;
    // SAFETY: not NULL, and the caller of the C function says it may be written to.
    unsafe { out.write(value) };
    Ok(())
}

/// Reads a string.
///
/// # Safety
/// `text` is NULL or NUL-terminated, and does not change while the result lives.
unsafe fn string<'a>(text: *const c_char) -> Result<&'a str, Fault> {
    not_null(text, "a string is NULL")?;
    // SAFETY: not NULL, and NUL-terminated as the caller of the C function says.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Fault::Argument("a string is not UTF-8"))
}

/// Reads bytes; NULL is allowed for none.
///
/// # Safety
/// `bytes` points to `length` bytes that do not change while the result lives, unless `length` is 0.
unsafe fn bytes<'a>(bytes: *const u8, length: usize) -> Result<&'a [u8], Fault> {
    if length == 0 {
        return Ok(&[]);
    }
    not_null(bytes, "bytes are NULL and their length is not 0")?;
    if isize::try_from(length).is_err() {
        return Err(Fault::Argument("a length is over half of the address space"));
    }
    // SAFETY: not NULL, of a length that can be, and readable as the caller of the C function says.
    Ok(unsafe { std::slice::from_raw_parts(bytes, length) })
}

/// Keeps an object and writes its handle.
///
/// # Safety
/// As [`write`].
unsafe fn give<T>(table: &Table<T>, value: T, out: *mut u64) -> Result<(), Fault> {
    not_null(out, "an output pointer is NULL")?;
    let handle = table.insert(value).ok_or(Fault::Argument("2^32 handles are open"))?;
    // SAFETY: as this function's caller says.
    unsafe { write(out, handle) }
}
