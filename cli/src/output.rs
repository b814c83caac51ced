//! Buffered stdout, as text or as JSON lines.

#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{self, BufWriter, Stdout, Write};

/// Large enough that a record costs a copy, not a system call.
const BUFFER_BYTES: usize = 256 << 10;

/// Where results go.
pub(crate) struct Output {
    /// One JSON object a line.
    pub(crate) json: bool,
    out: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output { json, out: BufWriter::with_capacity(BUFFER_BYTES, io::stdout()) }
    }

    /// A line of text, or the object, whichever was asked for.
    pub(crate) fn item(
        &mut self,
        text: impl FnOnce() -> String,
        value: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        if self.json { self.object(&value()) } else { writeln!(self.out, "{}", text()) }
    }

    /// One JSON object on its line.
    pub(crate) fn object(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        self.out.write_all(b"\n")
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Bytes in JSON: a string if they are UTF-8, else `{"base64": …}`; null stays null.
pub(crate) fn bytes_json(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => Value::String(text.to_owned()),
        Some((bytes, Err(_))) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// Bytes for people: printable as they are, the rest as `\xNN`; null as `null`.
pub(crate) fn bytes_text(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "null".into() };
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// A size for people.
pub(crate) fn bytes_human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
