//! What no lint sees: module docs, the arrows between modules, where unsafe code may be, names that
//! say nothing, leftovers, and documents that agree with the code. Each rule has a planted violation.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should panic"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Files that may hold unsafe code, or are the root of a module that has such a file.
const MAY_BE_UNSAFE: [&str; 14] = [
    "engine/src/lib.rs",
    "engine/src/sync.rs",
    "engine/src/io/mod.rs",
    "engine/src/io/buffer.rs",
    "engine/src/io/ring/mod.rs",
    "engine/src/io/ring/tests.rs",
    "engine/src/io/writeback.rs",
    "engine/src/io/lock.rs",
    "engine/src/shard/mod.rs",
    "engine/src/shard/mailbox.rs",
    "ffi/src/lib.rs",
    "ffi/src/log.rs",
    "ffi/src/batch.rs",
    "ffi/src/status.rs",
];

/// Modules of the engine and those they must not know.
const ARROWS: [(&str, &[&str]); 11] = [
    ("engine/src/format/", &["io", "segment", "log", "shard", "engine", "recovery", "checkpoint"]),
    (
        "engine/src/segment/",
        &[
            "producers",
            "log",
            "state",
            "shard",
            "engine",
            "recovery",
            "partition",
            "view",
            "keeper",
        ],
    ),
    (
        "engine/src/state/",
        &[
            "log",
            "journal",
            "segment",
            "shard",
            "engine",
            "recovery",
            "partition",
            "view",
            "keeper",
        ],
    ),
    ("engine/src/producers/", &["io", "log", "shard", "engine", "recovery", "partition", "view"]),
    (
        "engine/src/log/",
        &[
            "shard",
            "engine",
            "recovery",
            "compaction",
            "partition",
            "view",
            "keeper",
            "retention",
            "settings",
        ],
    ),
    ("engine/src/compaction/", &["shard", "engine", "recovery", "partition", "view", "keeper"]),
    ("engine/src/io/", &["segment", "log", "shard", "engine", "recovery", "format", "checkpoint"]),
    ("engine/src/shard/", &["engine", "recovery", "partition", "view", "keeper", "retention"]),
    ("engine/src/retention/", &["engine", "recovery", "view", "keeper", "shard", "journal"]),
    // What decides knows neither clock nor disk nor log.
    ("engine/src/retention/policy.rs", &["io", "log", "segment", "partition", "registry"]),
    ("engine/src/settings/", &["engine", "recovery", "view", "keeper", "shard", "log", "segment"]),
];

const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> =
        ["engine/src", "ffi/src", "cli/src", "tests/src"].iter().map(|d| root().join(d)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// What is wrong with one source file.
fn violations(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |what: String| found.push(format!("{name}: {what}"));
    if !text.starts_with("//!") {
        say("does not begin with module docs".into());
    }
    let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
    if ["util", "utils", "common", "types", "manager", "helpers", "misc"].contains(&stem) {
        say("a name that says nothing".into());
    }
    if text.lines().count() > FILE_LINES_MAX {
        say(format!("over {FILE_LINES_MAX} lines: look for the second idea"));
    }
    let forbids = text.contains("#![forbid(unsafe_code)]");
    let library = name.starts_with("engine/") || name.starts_with("ffi/");
    if library && !forbids && !MAY_BE_UNSAFE.contains(&name) {
        say("does not forbid unsafe code".into());
    }
    for (module, others) in ARROWS.iter().filter(|(module, _)| name.starts_with(module)) {
        // Tests at the foot of a file, or in one of their own, may use what they like.
        let code = if stem == "tests" { "" } else { text.split("#[cfg(test)]").next().unwrap() };
        for other in others.iter().filter(|other| code.contains(&format!("crate::{other}::"))) {
            say(format!("{module} must not know {other}"));
        }
    }
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!("]
            .iter()
            .any(|w| line.contains(w))
        {
            say(format!("line {}: a leftover", i + 1));
        }
        if line.starts_with("matches!(") && line.ends_with(");") {
            say(format!("line {}: asserts nothing", i + 1));
        }
    }
    found
}

#[test]
fn the_tree_is_tidy() {
    let found: Vec<String> =
        sources().iter().flat_map(|(name, text)| violations(name, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_rule_catches_what_it_is_for() {
    let good = "//! Docs.\n#![forbid(unsafe_code)]\n";
    assert!(violations("engine/src/log/new.rs", good).is_empty());
    let planted = [
        ("engine/src/log/new.rs", "#![forbid(unsafe_code)]\n".to_owned(), "module docs"),
        ("engine/src/log/utils.rs", good.to_owned(), "says nothing"),
        ("engine/src/log/new.rs", good.to_owned() + &"\n".repeat(801), "second idea"),
        ("engine/src/log/new.rs", "//! Docs.\n".to_owned(), "forbid unsafe"),
        (
            "engine/src/log/new.rs",
            format!("{good}use crate::shard::Slot;\n"),
            "must not know shard",
        ),
        ("engine/src/format/new.rs", format!("{good}use crate::io::File;\n"), "must not know io"),
        ("cli/src/new.rs", format!("{good}// {}: later\n", "TO".to_owned() + "DO"), "leftover"),
        ("cli/src/new.rs", format!("{good}matches!(a, b);\n"), "asserts nothing"),
    ];
    for (name, text, expected) in planted {
        let found = violations(name, &text);
        assert!(found.iter().any(|v| v.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_readme_shows_the_programs_that_are_tested() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let hello = fs::read_to_string(root().join("tests/c/hello.c")).unwrap();
    assert!(readme.contains(&hello), "README.md does not show tests/c/hello.c as it is");
    let lib = fs::read_to_string(root().join("engine/src/lib.rs")).unwrap();
    let doc_test: Vec<&str> = lib
        .lines()
        .skip_while(|line| *line != "//! ```")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .filter(|line| !line.starts_with("//! # "))
        .map(|line| line.strip_prefix("//! ").unwrap_or(""))
        .collect();
    assert!(doc_test.len() > 10);
    let doc_test = doc_test.join("\n").replace("\n\n\n", "\n\n");
    assert!(
        readme.contains(&doc_test),
        "README.md does not show the doc test of lib.rs:\n{doc_test}"
    );
}

#[test]
fn the_header_has_every_code_of_the_one_table() {
    let header = fs::read_to_string(root().join("include/loglane.h")).unwrap();
    for (code, name, _) in loglane::CODES {
        let line = format!("#define LOGLANE_{name} {code}\n");
        assert!(header.contains(&line), "{line} is missing");
    }
}
