//! The four compressions of a batch's records, each through the crate made for it, in the framing
//! Kafka's Java client writes.
//!
//! Decompression is bounded: what comes out is counted as it comes, whatever a header claims.

#![forbid(unsafe_code)]

use super::fault::BatchFault;
use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

/// Most bytes one batch decompresses to. A batch has at most 2 GiB; one that inflates past this from
/// the usual 1 MiB is an attack or a mistake, and would cost a broker its memory.
pub const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// What the snappy framing of Kafka's Java client starts with (xerial's `SnappyOutputStream`).
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
/// Version 1, readable by version 1.
const XERIAL_VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// Input bytes of one xerial block, as Kafka sets it.
const XERIAL_BLOCK: usize = 32 << 10;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Codec {
    /// As they are.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy blocks in xerial's framing; raw Snappy, as librdkafka sends, is read too.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Codec {
    /// All of them, by id.
    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// The codec with this number in the attributes.
    ///
    /// # Errors
    /// [`BatchFault::Codec`] for 5 and above.
    pub fn from_id(id: u8) -> Result<Codec, BatchFault> {
        Codec::ALL.get(usize::from(id)).copied().ok_or(BatchFault::Codec(id))
    }

    /// Its number in the attributes.
    #[must_use]
    pub fn id(self) -> u8 {
        self as u8
    }

    /// Its name in Kafka's `compression.type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(s: &str) -> Result<Codec, String> {
        Codec::ALL
            .into_iter()
            .find(|codec| codec.name() == s)
            .ok_or_else(|| format!("{s:?} is not one of none, gzip, snappy, lz4, zstd"))
    }
}

/// Appends `input`, compressed, to `out`.
///
/// # Errors
/// [`BatchFault::Decompress`] with what the codec said; none of them fails on sound input.
pub fn compress(codec: Codec, input: &[u8], out: &mut Vec<u8>) -> Result<(), BatchFault> {
    match codec {
        Codec::None => out.extend_from_slice(input),
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder
                .write_all(input)
                .and_then(|()| encoder.finish().map(drop))
                .map_err(says(codec))?;
        }
        Codec::Snappy => {
            out.extend_from_slice(XERIAL_MAGIC);
            out.extend_from_slice(&XERIAL_VERSIONS);
            let mut encoder = snap::raw::Encoder::new();
            for block in input.chunks(XERIAL_BLOCK) {
                let block = encoder.compress_vec(block).map_err(says(codec))?;
                let length = u32::try_from(block.len()).map_err(says(codec))?;
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&block);
            }
        }
        Codec::Lz4 => {
            // Kafka's reader takes independent blocks only, and 64 KiB is what it writes.
            let info = lz4_flex::frame::FrameInfo::new()
                .block_mode(lz4_flex::frame::BlockMode::Independent)
                .block_size(lz4_flex::frame::BlockSize::Max64KB);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(input).map_err(says(codec))?;
            encoder.finish().map_err(says(codec))?;
        }
        Codec::Zstd => {
            zstd::stream::copy_encode(input, out, zstd::DEFAULT_COMPRESSION_LEVEL)
                .map_err(says(codec))?;
        }
    }
    Ok(())
}

/// Decompresses `input` to at most `limit` bytes.
///
/// # Errors
/// [`BatchFault::Decompress`] if it is not what the codec writes, [`BatchFault::DecompressedSize`]
/// if more would come out.
pub fn decompress(codec: Codec, input: &[u8], limit: usize) -> Result<Vec<u8>, BatchFault> {
    match codec {
        Codec::None if input.len() > limit => Err(BatchFault::DecompressedSize { max: limit }),
        Codec::None => Ok(input.to_vec()),
        Codec::Gzip => read_bounded(codec, flate2::read::MultiGzDecoder::new(input), limit),
        Codec::Snappy => snappy(input, limit),
        Codec::Lz4 => read_bounded(codec, lz4_flex::frame::FrameDecoder::new(input), limit),
        Codec::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(input).map_err(says(codec))?;
            read_bounded(codec, decoder, limit)
        }
    }
}

fn read_bounded(codec: Codec, from: impl Read, limit: usize) -> Result<Vec<u8>, BatchFault> {
    let mut out = Vec::new();
    // One byte more than allowed tells too much from just enough.
    from.take(limit as u64 + 1).read_to_end(&mut out).map_err(says(codec))?;
    if out.len() > limit {
        return Err(BatchFault::DecompressedSize { max: limit });
    }
    Ok(out)
}

fn snappy(input: &[u8], limit: usize) -> Result<Vec<u8>, BatchFault> {
    let mut out = Vec::new();
    let framed = input.strip_prefix(XERIAL_MAGIC).and_then(|rest| rest.get(8..));
    let Some(mut rest) = framed else {
        snappy_block(input, limit, &mut out)?;
        return Ok(out);
    };
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(|| cut(Codec::Snappy))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(says(Codec::Snappy))?;
        let (block, after) = after.split_at_checked(length).ok_or_else(|| cut(Codec::Snappy))?;
        snappy_block(block, limit, &mut out)?;
        rest = after;
    }
    Ok(out)
}

/// A snappy block says how long it will be; that word is held against the limit, and against the
/// most that so few bytes can make, before memory is taken.
fn snappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), BatchFault> {
    /// A copy element of three bytes makes at most 64.
    const RATIO_MAX: usize = 64;
    let length = snap::raw::decompress_len(block).map_err(says(Codec::Snappy))?;
    if length > block.len().saturating_mul(RATIO_MAX) {
        return Err(cut(Codec::Snappy));
    }
    let from = out.len();
    if length > limit.saturating_sub(from) {
        return Err(BatchFault::DecompressedSize { max: limit });
    }
    out.resize(from + length, 0);
    let room = out.get_mut(from..).unwrap_or_default();
    snap::raw::Decoder::new().decompress(block, room).map_err(says(Codec::Snappy))?;
    Ok(())
}

fn says<E: fmt::Display>(codec: Codec) -> impl FnOnce(E) -> BatchFault {
    move |error| BatchFault::Decompress { codec, reason: error.to_string() }
}

fn cut(codec: Codec) -> BatchFault {
    BatchFault::Decompress { codec, reason: "a block is cut short".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_codec_gives_back_what_it_took(
            input in prop::collection::vec(any::<u8>(), 0..100_000), repeat in 1_usize..4
        ) {
            let input = input.repeat(repeat);
            for codec in Codec::ALL {
                let mut out = Vec::new();
                compress(codec, &input, &mut out).unwrap();
                prop_assert_eq!(&decompress(codec, &out, input.len()).unwrap(), &input);
            }
        }

        #[test]
        fn garbage_is_an_error_or_bounded_never_a_panic(
            input in prop::collection::vec(any::<u8>(), 0..2000)
        ) {
            for codec in Codec::ALL {
                if let Ok(out) = decompress(codec, &input, 10_000) {
                    prop_assert!(out.len() <= 10_000);
                }
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 10 << 20];
        for codec in Codec::ALL {
            let mut out = Vec::new();
            compress(codec, &zeros, &mut out).unwrap();
            let fault = decompress(codec, &out, 1 << 20).unwrap_err();
            assert_eq!(fault, BatchFault::DecompressedSize { max: 1 << 20 }, "{codec}");
        }
        // Five bytes that claim 4 GiB of snappy.
        let claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        assert!(decompress(Codec::Snappy, &claim, usize::MAX).is_err());
    }

    #[test]
    fn raw_snappy_as_librdkafka_sends_it_is_read() {
        let raw = snap::raw::Encoder::new().compress_vec(b"hello hello hello").unwrap();
        assert_eq!(decompress(Codec::Snappy, &raw, 100).unwrap(), b"hello hello hello");
    }
}
