//! Zigzag variable-length integers, as in Protocol Buffers: seven bits a byte, lowest first.

#![forbid(unsafe_code)]

/// Takes a 32-bit varint from the front of `bytes`; `None` if it does not end within five bytes.
#[inline]
pub(crate) fn read_i32(bytes: &mut &[u8]) -> Option<i32> {
    // Most are lengths and deltas of one byte.
    if let [first @ 0..=0x7f, rest @ ..] = *bytes {
        *bytes = rest;
        return Some(unzigzag32((*first).into()));
    }
    let raw = read_raw(bytes, 5)?;
    u32::try_from(raw).ok().map(unzigzag32)
}

/// Takes a 64-bit varint from the front of `bytes`; `None` if it does not end within ten bytes.
#[inline]
pub(crate) fn read_i64(bytes: &mut &[u8]) -> Option<i64> {
    let raw = read_raw(bytes, 10)?;
    Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

fn unzigzag32(raw: u32) -> i32 {
    (raw >> 1).cast_signed() ^ -(raw & 1).cast_signed()
}

#[inline]
fn read_raw(bytes: &mut &[u8], bytes_max: usize) -> Option<u64> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().enumerate().take(bytes_max) {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * i;
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            *bytes = bytes.get(i + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Appends a 32-bit varint.
pub(crate) fn write_i32(out: &mut Vec<u8>, value: i32) {
    write_raw(out, u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()));
}

/// Appends a 64-bit varint.
pub(crate) fn write_i64(out: &mut Vec<u8>, value: i64) {
    write_raw(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn write_raw(out: &mut Vec<u8>, mut raw: u64) {
    while raw >= 0x80 {
        out.push((raw & 0x7f) as u8 | 0x80);
        raw >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(raw as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_encodings_hold() {
        for (value, bytes) in
            [(0, vec![0]), (-1, vec![1]), (1, vec![2]), (63, vec![0x7e]), (64, vec![0x80, 1])]
        {
            let mut out = Vec::new();
            write_i32(&mut out, value);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn integers_that_do_not_end_or_overflow_are_refused() {
        assert_eq!(read_i32(&mut &[][..]), None);
        assert_eq!(read_i32(&mut &[0x80][..]), None);
        assert_eq!(read_i32(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f][..]), None, "over 32 bits");
        assert_eq!(read_i64(&mut &[0xff; 11][..]), None);
        let mut over = [0xff; 10];
        over[9] = 2;
        assert_eq!(read_i64(&mut &over[..]), None, "over 64 bits");
    }

    proptest! {
        #[test]
        fn every_integer_round_trips(a: i32, b: i64) {
            let mut out = Vec::new();
            write_i32(&mut out, a);
            write_i64(&mut out, b);
            let mut rest = &out[..];
            prop_assert_eq!(read_i32(&mut rest), Some(a));
            prop_assert_eq!(read_i64(&mut rest), Some(b));
            prop_assert!(rest.is_empty());
        }
    }
}
