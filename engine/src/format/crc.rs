//! CRC-32C (Castagnoli), the checksum of record batches and producer snapshots.

#![forbid(unsafe_code)]

/// The CRC-32C of `bytes`. Fastest over one contiguous piece: 19 GB/s at 16 KiB (docs/DESIGN.md).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_the_catalogue_holds() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(super::crc32c(b""), 0);
    }
}
