//! Reads a topic back through a TCP socket: `sendfile-reader DIR TOPIC FILE`.
//!
//! One thread sends leases by sendfile; the other receives Kafka's wire format as any client would,
//! checks each batch's CRC, and writes values, each with a newline.

use loglane::format::{Batch, BatchHeader};
use loglane::{FetchOptions, View};
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Bytes of a batch before its records.
const HEADER: usize = loglane::format::HEADER_BYTES;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, topic, file] = arguments.as_slice() else {
        return Err("usage: sendfile-reader DIR TOPIC FILE".into());
    };
    let view = View::open(dir)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    let out = File::create(file)?;
    let reader = std::thread::spawn(move || receive(receiver, out).map_err(|e| e.to_string()));
    for partition in view.partitions().values().filter(|p| p.name().topic() == topic) {
        let mut offset = partition.log_start_offset();
        loop {
            let lease = partition.fetch(offset, &FetchOptions::default())?;
            if lease.is_empty() {
                break;
            }
            lease.send(&socket, 0)?;
            offset = lease.next_offset();
        }
    }
    drop(socket);
    reader.join().map_err(|_| "the receiver panicked")??;
    Ok(())
}

fn receive(socket: TcpStream, out: File) -> Result<(), Box<dyn Error>> {
    let (mut socket, mut out) = (BufReader::with_capacity(1 << 20, socket), BufWriter::new(out));
    let mut bytes = vec![0; HEADER];
    loop {
        bytes.resize(HEADER, 0);
        match socket.read_exact(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let total = BatchHeader::read(&bytes)?.total_bytes();
        bytes.resize(total, 0);
        socket.read_exact(bytes.get_mut(HEADER..).unwrap_or_default())?;
        let decoded = Batch::check(&bytes)?.decode()?;
        for record in decoded.records() {
            out.write_all(record?.value.unwrap_or_default())?;
            out.write_all(b"\n")?;
        }
    }
    Ok(out.flush()?)
}
