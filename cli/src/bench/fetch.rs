//! `loglane bench fetch`.

#![forbid(unsafe_code)]

use super::limit::send_loop;
use super::{Figures, Round, sample_batch, timed, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use clap::{Args, ValueEnum};
use loglane::format::Batches;
use loglane::io::{SplicePipe, splice_file};
use loglane::{AppendOptions, Bytes, Engine, FetchOptions, Lease, Offset, Partition};
use rustix::net::RecvFlags;
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long one round of either side takes.
const ROUND: Duration = Duration::from_millis(250);

/// Fetch, send to a TCP socket on loopback, and hold the figure against a loop of sendfile
#[derive(Args)]
pub(crate) struct Fetch {
    /// How the bytes go from the file to the socket
    #[arg(long, value_enum, default_value_t = Mode::Sendfile)]
    mode: Mode,
    /// Bytes of one send, of the engine and of the limit
    #[arg(long, default_value_t = 65536)]
    chunk_bytes: u64,
    /// Bytes of one fetch: a lease is sent in chunks. The default is that of Kafka's consumers
    #[arg(long, default_value_t = 1 << 20)]
    lease_bytes: u64,
    /// Bytes of a batch in the log
    #[arg(long, default_value_t = 16384)]
    batch_bytes: usize,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// Bytes in the log: read again and again, so hot unless they are more than the memory
    #[arg(long, default_value_t = 256 << 20)]
    log_bytes: u64,
    /// How long the engine is measured; the limit takes as long again
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Mode {
    Sendfile,
    Splice,
    Copy,
}

impl Fetch {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = work_dir(global)?;
        let (batch, records) = sample_batch(self.batch_bytes, self.record_bytes)?;
        let mut config = crate::config(dir.path());
        config.partition.batch_bytes_max = u32::MAX >> 1;
        let engine = Engine::open(config)?;
        let partition = engine.create_topic("bench", 1)?.remove(0);
        let batch = Bytes::from(batch);
        while partition.stat().bytes < self.log_bytes.min(1 << 30) {
            partition.append(batch.clone(), AppendOptions::default())?;
        }
        // Dirty pages would be written back in the middle of a round.
        partition.flush()?;
        let mut sender = Sender::new(&self, records, batch.len() as u64)?;
        let mut figures = Figures::new();
        figures.backend = engine.backend().kind.name();
        let log = dir.path().join("bench-0/00000000000000000000.log");
        let file = File::open(&log).map_err(|e| {
            Failure::new(format!("cannot open {}: {e}", log.display()), "try again")
        })?;
        let length = partition.stat().bytes;
        let start = Instant::now();
        let mut warm = false;
        while figures.engine.is_empty() || start.elapsed().as_secs_f64() < self.seconds * 2.0 {
            let limit =
                timed(|| send_loop(&file, length, sender.socket.as_fd(), self.chunk_bytes, ROUND))?;
            let round = timed(|| sender.round(&partition))?;
            if std::mem::replace(&mut warm, true) {
                figures.limit.push(limit);
                figures.engine.push(round);
                for latency in sender.latencies_ns.drain(..) {
                    figures.latency_ns.saturating_record(latency);
                }
            }
            sender.latencies_ns.clear();
        }
        drop(sender);
        engine.close()?;
        let setup = json!({
            "mode": format!("{:?}", self.mode).to_lowercase(), "chunk_bytes": self.chunk_bytes,
            "lease_bytes": self.lease_bytes, "batch_bytes": batch.len(), "record_bytes": self.record_bytes, "log_bytes": length,
        });
        figures.print(out, "fetch", setup)
    }
}

/// One end of a connection whose other end throws everything away.
struct Sender {
    socket: TcpStream,
    mode: Mode,
    chunk_bytes: u64,
    lease_bytes: u64,
    records: u64,
    batch_bytes: u64,
    pipe: SplicePipe,
    buffer: Vec<u8>,
    offset: Offset,
    latencies_ns: Vec<u64>,
}

impl Sender {
    fn new(args: &Fetch, records: u64, batch_bytes: u64) -> Result<Sender, Failure> {
        let connect = || -> io::Result<(TcpStream, SplicePipe)> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let socket = TcpStream::connect(listener.local_addr()?)?;
            let (other, _) = listener.accept()?;
            std::thread::spawn(move || discard(&other));
            socket.set_nodelay(true)?;
            Ok((socket, SplicePipe::new()?))
        };
        let (socket, pipe) = connect().map_err(|e| {
            Failure::new(format!("cannot connect to myself: {e}"), "is loopback up?")
        })?;
        Ok(Sender {
            socket,
            mode: args.mode,
            chunk_bytes: args.chunk_bytes,
            lease_bytes: args.lease_bytes,
            records,
            batch_bytes,
            pipe,
            buffer: Vec::new(),
            offset: Offset::ZERO,
            latencies_ns: Vec::new(),
        })
    }

    /// Fetches and sends until the round is over, from the start again at the end of the log.
    fn round(&mut self, partition: &Partition) -> Result<Round, Failure> {
        let mut round = Round::default();
        let options = FetchOptions { max_bytes: self.lease_bytes, ..FetchOptions::default() };
        let start = Instant::now();
        while start.elapsed() < ROUND {
            let began = Instant::now();
            let lease = partition.fetch(self.offset, &options)?;
            if lease.is_empty() {
                self.offset = partition.log_start_offset();
                continue;
            }
            self.send(&lease)?;
            self.offset = lease.next_offset();
            let latency = began.elapsed().as_nanos();
            self.latencies_ns.push(u64::try_from(latency).unwrap_or(u64::MAX));
            round.bytes += lease.bytes();
            round.batches += lease.bytes() / self.batch_bytes;
            round.records += lease.bytes() / self.batch_bytes * self.records;
        }
        Ok(round)
    }

    fn send(&mut self, lease: &Lease) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::new(format!("cannot send: {e}"), "try again");
        match self.mode {
            Mode::Sendfile => {
                let mut sent = 0;
                while sent < lease.bytes() {
                    sent += lease.send_part(&self.socket, sent, self.chunk_bytes)?;
                }
            }
            Mode::Splice => {
                for range in lease.ranges() {
                    let Some(fd) = range.fd() else { continue };
                    let (mut position, mut left) = (range.position().0.into(), range.length());
                    while left > 0 {
                        let chunk = self.chunk_bytes.min(left.into());
                        let length = usize::try_from(chunk).unwrap_or(usize::MAX);
                        splice_file(self.socket.as_fd(), fd, position, length, &mut self.pipe)
                            .map_err(failed)?;
                        position += chunk;
                        left -= u32::try_from(chunk).unwrap_or(left);
                    }
                }
            }
            Mode::Copy => {
                self.buffer.resize(usize::try_from(lease.bytes()).unwrap_or_default(), 0);
                lease.copy(0, &mut self.buffer)?;
                // What copies is there to look: a copying consumer checks what it reads.
                if Batches::new(&self.buffer).any(|batch| batch.is_err()) {
                    return Err(Failure::new(
                        "a batch does not hold its CRC",
                        "run loglane verify",
                    ));
                }
                self.socket.write_all(&self.buffer).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Takes bytes off a socket without copying them: the receiver's cost must not hide the sender's.
fn discard(socket: &TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok((_, length)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
        if length == 0 {
            return;
        }
    }
}
