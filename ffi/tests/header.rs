//! include/loglane.h is what cbindgen makes of the documented Rust. `make header` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should panic")]

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_current() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::generate_with_config(crate_dir, config).unwrap();
    let mut generated = Vec::new();
    bindings.write(&mut generated);
    let header = crate_dir.join("../include/loglane.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&header, &generated).unwrap();
    }
    let committed = fs::read(&header).unwrap_or_default();
    assert!(committed == generated, "include/loglane.h is stale: run `make header`");
}
