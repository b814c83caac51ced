//! Any bytes as compressed records: an error or at most the limit, no panic, no memory ahead of need.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loglane::format::{Codec, compress, decompress};

const LIMIT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let codec = Codec::ALL[usize::from(*first) % Codec::ALL.len()];
    if let Ok(out) = decompress(codec, rest, LIMIT) {
        assert!(out.len() <= LIMIT);
    }
    let mut packed = Vec::new();
    compress(codec, rest, &mut packed).unwrap();
    assert_eq!(decompress(codec, &packed, rest.len()).unwrap(), rest);
});
