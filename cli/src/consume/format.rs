//! How records are printed.

#![forbid(unsafe_code)]

use crate::output::{Output, bytes_json, bytes_text};
use loglane::format::{Record, crc32c};
use serde_json::json;
use std::io::{self, Write};

/// The forms of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    /// The value and a newline; null is `null`
    Value,
    /// Key, separator, value
    KeyValue,
    /// One JSON object a line; bytes that are not UTF-8 as {"base64": ...}
    Json,
    /// Everything, for people
    Full,
    /// partition offset timestamp key value-length:value-crc headers, as the tests compare with Kafka
    Canonical,
}

/// Prints records in one form.
pub(crate) struct Printer<'a> {
    format: Format,
    separator: Vec<u8>,
    pub(crate) out: &'a mut Output,
}

impl<'a> Printer<'a> {
    pub(crate) fn new(format: Format, separator: &[u8], out: &'a mut Output) -> Printer<'a> {
        Printer { format, separator: separator.to_owned(), out }
    }

    pub(crate) fn record(&mut self, partition: u32, record: &Record<'_>) -> io::Result<()> {
        match self.format {
            Format::Value => self.raw(record.value)?,
            Format::KeyValue => {
                self.raw(record.key)?;
                self.out.write_all(&self.separator)?;
                self.raw(record.value)?;
            }
            Format::Json => return self.json(partition, record),
            Format::Full => self.full(partition, record)?,
            Format::Canonical => self.canonical(partition, record)?,
        }
        self.out.write_all(b"\n")
    }

    fn raw(&mut self, bytes: Option<&[u8]>) -> io::Result<()> {
        self.out.write_all(bytes.unwrap_or(b"null"))
    }

    fn json(&mut self, partition: u32, record: &Record<'_>) -> io::Result<()> {
        let mut headers = Vec::new();
        for header in record.headers {
            let header = header.map_err(io::Error::other)?;
            headers.push(json!({ "key": header.key, "value": bytes_json(header.value) }));
        }
        self.out.object(&json!({
            "partition": partition, "offset": record.offset, "timestamp": record.timestamp,
            "key": bytes_json(record.key), "value": bytes_json(record.value), "headers": headers,
        }))
    }

    fn full(&mut self, partition: u32, record: &Record<'_>) -> io::Result<()> {
        let (offset, timestamp) = (record.offset, record.timestamp);
        let (key, value) = (bytes_text(record.key), bytes_text(record.value));
        write!(
            self.out,
            "partition={partition} offset={offset} timestamp={timestamp} key={key} value={value} headers="
        )?;
        for (number, header) in record.headers.enumerate() {
            let header = header.map_err(io::Error::other)?;
            let comma = if number == 0 { "" } else { "," };
            write!(self.out, "{comma}{}:{}", header.key.escape_debug(), bytes_text(header.value))?;
        }
        Ok(())
    }

    /// tests/kafka/README.md, "Canonical record line".
    fn canonical(&mut self, partition: u32, record: &Record<'_>) -> io::Result<()> {
        write!(self.out, "{partition} {} {} ", record.offset, record.timestamp)?;
        self.hex(record.key)?;
        match record.value {
            None => self.out.write_all(b" null ")?,
            Some(value) => write!(self.out, " {}:{:08x} ", value.len(), crc32c(value))?,
        }
        if record.headers.count() == 0 {
            return self.out.write_all(b"-");
        }
        for (number, header) in record.headers.enumerate() {
            let header = header.map_err(io::Error::other)?;
            if number > 0 {
                self.out.write_all(b",")?;
            }
            self.hex(Some(header.key.as_bytes()))?;
            self.out.write_all(b"=")?;
            self.hex(header.value)?;
        }
        Ok(())
    }

    fn hex(&mut self, bytes: Option<&[u8]>) -> io::Result<()> {
        let Some(bytes) = bytes else { return self.out.write_all(b"null") };
        self.out.write_all(b"0x")?;
        bytes.iter().try_for_each(|byte| write!(self.out, "{byte:02x}"))
    }
}
