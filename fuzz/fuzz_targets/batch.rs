//! Any bytes as a record batch, as they are and with a CRC that fits: a fault or records, no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loglane::format::{Batch, BatchHeader, Batches, crc32c};

fn walk(bytes: &[u8]) {
    let _ = BatchHeader::read(bytes);
    for batch in Batches::new(bytes) {
        let Ok((_, batch)) = batch else { break };
        let sound = batch.check_records().is_ok();
        let Ok(decoded) = batch.decode() else {
            assert!(!sound, "records were checked that do not decode");
            continue;
        };
        let mut count = 0;
        for record in decoded.records() {
            match record {
                Ok(record) => {
                    count += 1;
                    let headers = record.headers.filter(|header| header.is_err()).count();
                    assert!(!sound || headers == 0, "headers were checked that do not parse");
                }
                Err(_) => assert!(!sound, "records were checked that do not parse"),
            }
        }
        assert!(!sound || count == batch.header().record_count);
    }
}

fuzz_target!(|bytes: &[u8]| {
    walk(bytes);
    if bytes.len() >= 61 {
        let mut fixed = bytes.to_vec();
        let length = i32::try_from(bytes.len() - 12).unwrap_or(i32::MAX);
        fixed[8..12].copy_from_slice(&length.to_be_bytes());
        fixed[16] = 2;
        let crc = crc32c(&fixed[21..]);
        fixed[17..21].copy_from_slice(&crc.to_be_bytes());
        assert!(Batch::check(&fixed).is_ok());
        walk(&fixed);
    }
});
