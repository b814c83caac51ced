//! The C programs compile as C11 and C++17 without a warning, against the shared and the static
//! library, and run clean under AddressSanitizer and valgrind.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
}

fn missing(program: &str) -> bool {
    let missing = Command::new(program).arg("--version").output().is_err();
    if missing {
        eprintln!("SKIPPED: {program} is not installed (Debian: gcc, g++, valgrind)");
    }
    missing
}

/// Builds the libraries and says where they are.
fn libraries() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c");
    run(Command::new(env!("CARGO")).current_dir(root()).args([
        "build",
        "--quiet",
        "--package",
        "loglane-ffi",
        "--target-dir",
        target.to_str().unwrap(),
    ]));
    target.join("debug")
}

#[test]
fn c_and_cpp_programs_compile_without_a_warning_and_run_clean() {
    let libraries = libraries();
    let out = tempfile::tempdir().unwrap();
    let compilers = [("gcc", "-std=c11", "c"), ("g++", "-std=c++17", "c++")];
    for (compiler, standard, language) in compilers {
        if missing(compiler) {
            continue;
        }
        for name in ["hello", "misuse"] {
            let source = root().join(format!("tests/c/{name}.c"));
            for (kind, sanitizer) in [("shared", "-fsanitize=address"), ("static", "-O1")] {
                let program = out.path().join(format!("{name}-{compiler}-{kind}"));
                let mut compile = Command::new(compiler);
                compile.args(["-x", language, standard, "-g", sanitizer]).args(WARNINGS);
                compile.arg("-I").arg(root().join("include")).arg(&source).args(["-x", "none"]);
                compile.arg("-o").arg(&program);
                match kind {
                    "shared" => compile
                        .arg("-L")
                        .arg(&libraries)
                        .arg("-lloglane")
                        .arg(format!("-Wl,-rpath,{}", libraries.display())),
                    _ => compile.arg(libraries.join("libloglane.a")).args([
                        "-lpthread",
                        "-ldl",
                        "-lm",
                    ]),
                };
                run(&mut compile);
                let data = out.path().join(format!("data-{name}-{compiler}-{kind}"));
                run(Command::new(&program).arg(&data));
                if kind == "static" && compiler == "gcc" && !missing("valgrind") {
                    let data = out.path().join(format!("valgrind-{name}"));
                    // valgrind knows no io_uring.
                    run(Command::new("valgrind")
                        .env("LOGLANE_BACKEND", "plain")
                        .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
                        .args(["--errors-for-leak-kinds=definite", "--num-callers=30"])
                        .arg(&program)
                        .arg(&data));
                }
            }
        }
    }
}
