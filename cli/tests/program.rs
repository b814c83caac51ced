//! The program from outside: what users type, what comes out, and with which exit code.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn loglane(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loglane"));
    command.env("LOGLANE_DIR", dir).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    loglane(dir).args(args).output().unwrap()
}

fn produce(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = loglane(dir)
        .arg("produce")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(says), "{stderr}");
    assert!(stderr.lines().count() >= 2, "no next step: {stderr}");
}

/// Several segments of uncompressed batches, the values 0 to 1999.
fn damaged_at(dir: &Path, change: impl Fn(&Path, &[Value])) -> PathBuf {
    let lines: String = (0..2000).map(|i| format!("value-{i}\n")).collect();
    ok(&produce(
        dir,
        &["--topic", "d", "--batch-bytes", "500", "--segment-bytes", "20000"],
        lines.as_bytes(),
    ));
    let log = dir.join("d-0/00000000000000000000.log");
    let dump = ok(&run(dir, &["dump", "--json", log.to_str().unwrap()]));
    let batches: Vec<Value> = dump.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(batches.len() > 10);
    change(&log, &batches);
    log
}

fn flip(path: &Path, position: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    byte[0] ^= 0x40;
    file.write_all_at(&byte, position).unwrap();
}

#[test]
fn lines_come_back_byte_for_byte_with_every_codec() {
    let mut input = Vec::new();
    for i in 0..300_u32 {
        input.extend_from_slice(format!("key{i}|").as_bytes());
        // Every byte but the newline, and bytes that are not UTF-8.
        input.extend((0..=255).filter(|b| *b != b'\n').cycle().skip(i as usize).take(40));
        input.push(b'\n');
    }
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let dir = tempfile::tempdir().unwrap();
        let args = [
            "--topic",
            "t",
            "--key-separator",
            "|",
            "--compression",
            codec,
            "--header",
            "h=1",
            "--header",
            "h=",
            "--timestamp",
            "1700000000000",
            "--durable",
            "--batch-bytes",
            "4000",
        ];
        assert_eq!(ok(&produce(dir.path(), &args, &input)), "", "a pipe gets no summary");
        let args = ["consume", "--topic", "t", "--format", "key-value", "--key-separator", "|"];
        let output = run(dir.path(), &args);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stdout == input, "{codec}");
        let canonical = ok(&run(dir.path(), &["consume", "--topic", "t", "--format", "canonical"]));
        assert_eq!(canonical.lines().count(), 300);
        let first = canonical.lines().next().unwrap();
        assert!(first.starts_with("0 0 1700000000000 0x6b657930 40:"), "{first}");
        assert!(first.ends_with(" 0x68=0x31,0x68=0x"), "{first}");
        let json = ok(&run(dir.path(), &["consume", "--topic", "t", "--json", "--offset", "200"]));
        let record: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(record["key"], "key200");
        assert!(record["value"]["base64"].is_string());
        assert_eq!(record["headers"][0]["value"], "1");
        let full = ok(&run(
            dir.path(),
            &["consume", "--topic", "t", "--format", "full", "--offset", "299"],
        ));
        assert!(
            full.starts_with("partition=0 offset=299 timestamp=1700000000000 key=key299 value=")
        );
        let dump =
            ok(&run(dir.path(), &["dump", "--records", "--deep", dir.path().to_str().unwrap()]));
        assert!(
            dump.contains(&format!("compresscodec: {codec}")) && dump.contains("isvalid: true")
        );
        assert!(dump.contains("headerKeys: [h,h] key: key0 "));
        ok(&run(dir.path(), &["verify"]));
    }
}

#[test]
fn keys_go_where_kafkas_clients_send_them_and_keyless_batches_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let args = ["--topic", "k", "--partitions", "3", "--key-separator", ":", "--json"];
    let summary: Value =
        serde_json::from_str(&ok(&produce(path, &args, b"abc:1\n21:2\nfoobar:3\n"))).unwrap();
    assert_eq!(summary["records"], 3);
    // murmur2 of the keys, made positive, modulo 3.
    for (key, hash) in [("abc", 479_470_107_i32), ("21", -973_932_308), ("foobar", -790_332_482)] {
        let partition = (hash & 0x7fff_ffff) % 3;
        let args = [
            "consume",
            "--topic",
            "k",
            "--partition",
            &partition.to_string(),
            "--format",
            "key-value",
        ];
        assert!(ok(&run(path, &args)).contains(&format!("{key}\t")), "{key}");
    }
    let lines = "x".repeat(99) + "\n";
    ok(&run(path, &["topics", "create", "s", "--partitions", "3"]));
    ok(&produce(path, &["--topic", "s", "--batch-bytes", "1000"], lines.repeat(100).as_bytes()));
    let described = ok(&run(path, &["topics", "describe", "s", "--json"]));
    let counts: Vec<i64> = described
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["log_end_offset"].as_i64().unwrap())
        .collect();
    assert_eq!(counts.len(), 3);
    assert!(counts.iter().sum::<i64>() == 100 && counts.iter().all(|c| *c > 20), "{counts:?}");
    fails(&produce(path, &["--topic", "s", "--partition", "3"], b"x\n"), 1, "no partition 3");
    fails(&produce(path, &["--topic", "s", "--key-separator", ":"], b"a:b\nc\n"), 1, "line 2");
    assert!(ok(&run(path, &["consume", "--topic", "s"])).contains("b\n"), "line 1 was stored");
}

#[test]
fn topics_are_made_listed_described_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    assert!(
        ok(&run(path, &["topics", "create", "a.b-c", "--partitions", "2"]))
            .contains("partitions=2")
    );
    fails(&run(path, &["topics", "create", "a.b-c"]), 1, "exists already");
    assert_eq!(ok(&run(path, &["topics", "list"])), "a.b-c partitions=2 offsets=0 bytes=0\n");
    assert!(
        ok(&run(path, &["topics", "describe", "a.b-c"]))
            .contains("partition 1: offsets=0..0 segments=1")
    );
    ok(&run(path, &["topics", "delete", "a.b-c"]));
    fails(&run(path, &["topics", "delete", "a.b-c"]), 1, "does not exist");
    assert_eq!(ok(&run(path, &["topics", "list"])), "");
}

#[test]
fn settings_are_stored_shown_changed_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let described = || ok(&run(path, &["topics", "describe", "t"]));
    let create =
        ["topics", "create", "t", "--retention-bytes", "5000", "--set", "segment.bytes=2048"];
    ok(&run(path, &create));
    let shown = described();
    for part in ["retention_bytes=5000,", "segment_bytes=2048,", "retention_ms=604800000,"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(shown.contains("segment_ms=604800000 (default)"), "{shown}");
    ok(&run(
        path,
        &["topics", "alter", "t", "--retention-ms", "none", "--unset", "retention_bytes"],
    ));
    let shown = described();
    assert!(shown.contains("retention_ms=none,"), "{shown}");
    assert!(shown.contains("retention_bytes=none (default)"), "{shown}");
    // What a writer is told to do by default does not win over what is stored.
    let lines = "x".repeat(200) + "\n";
    let args = ["--topic", "t", "--batch-bytes", "1000", "--segment-bytes", "1000000"];
    ok(&produce(path, &args, lines.repeat(40).as_bytes()));
    let json: Value =
        serde_json::from_str(&ok(&run(path, &["topics", "describe", "t", "--json"]))).unwrap();
    assert!(json["segments"].as_i64().unwrap() > 3, "{json}");
    assert_eq!(json["settings"]["values"]["segment_bytes"], "2048");
    assert_eq!(json["settings"]["stored"], serde_json::json!(["retention_ms", "segment_bytes"]));
    fails(&run(path, &["topics", "alter", "t", "--segment-bytes", "x"]), 2, "segment_bytes");
    fails(&run(path, &["topics", "alter", "t", "--segment-bytes", "1"]), 1, "segment_bytes");
    fails(&run(path, &["topics", "alter", "t", "--set", "no.such=1"]), 2, "no.such");
    fails(&run(path, &["topics", "alter", "t"]), 2, "nothing to change");
    fails(&run(path, &["topics", "alter", "u", "--segment-bytes", "2048"]), 1, "does not exist");
}

#[test]
fn explain_says_why_segments_are_here_and_retain_deletes_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    ok(&run(path, &["topics", "create", "t", "--segment-bytes", "2048"]));
    let lines = "x".repeat(200) + "\n";
    ok(&produce(path, &["--topic", "t", "--batch-bytes", "1000"], lines.repeat(40).as_bytes()));
    let explained = || -> Value {
        serde_json::from_str(&ok(&run(path, &["explain", "t:0", "--json"]))).unwrap()
    };
    let before = explained();
    assert_eq!(before["segments"][0]["kept_by"][0]["why"], "not-yet-old");
    // By the earlier of timestamp and last append, whose clock ticks every few milliseconds.
    let due = before["segments"][0]["largest_timestamp"].as_i64().unwrap() + 604_800_001;
    let goes_at = before["segments"][0]["goes_at_ms"].as_i64().unwrap();
    assert!((due - 1000..=due).contains(&goes_at), "{goes_at}, not {due}");
    assert!(ok(&run(path, &["explain", "t"])).contains("retention_ms keeps it until 20"));
    ok(&run(
        path,
        &["topics", "alter", "t", "--retention-ms", "none", "--retention-records", "10"],
    ));
    let due = explained();
    let next = |json: &Value| {
        let segments = json["segments"].as_array().unwrap();
        segments.iter().filter(|s| s["kept_by"][0]["why"] == "next-round").count()
    };
    let doomed = next(&due);
    assert!(doomed > 0, "{due}");
    let retained = ok(&run(path, &["retain"]));
    assert!(retained.starts_with(&format!("deleted segments={doomed} ")), "{retained}");
    let after = explained();
    assert_eq!(next(&after), 0);
    assert_eq!(
        after["segments"].as_array().unwrap().len() + doomed,
        due["segments"].as_array().unwrap().len()
    );
    fails(&run(path, &["explain", "u"]), 1, "topic u does not exist");
    fails(&run(path, &["explain", "t:9"]), 1, "partition t-9 does not exist");
    fails(&run(path, &["explain", "t:x"]), 2, "invalid value");
}

#[test]
fn names_that_could_leave_the_directory_are_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(250);
    for name in ["a/b", "..", ".", "", "../x", "a b", "a\\b", "ä", &long] {
        for args in
            [["topics", "create", name], ["topics", "delete", name], ["consume", "--topic", name]]
        {
            let output = run(dir.path(), &args);
            fails(&output, 2, "invalid value");
        }
        assert_eq!(produce(dir.path(), &["--topic", name], b"x\n").status.code(), Some(2));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let output = Command::new(env!("CARGO_BIN_EXE_loglane"))
        .args(["topics", "list"])
        .env_remove("LOGLANE_DIR")
        .output()
        .unwrap();
    fails(&output, 2, "--dir");
    fails(&run(dir.path(), &["consume", "--topic", "nix"]), 1, "topic nix does not exist");
    fails(&run(Path::new("/nonexistent/x"), &["verify"]), 1, "does not exist");
}

#[test]
fn reading_starts_at_an_offset_or_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    for (time, value) in [("1000", "a"), ("2000", "b"), ("3000", "c")] {
        ok(&produce(
            path,
            &["--topic", "t", "--timestamp", time],
            format!("{value}1\n{value}2\n").as_bytes(),
        ));
    }
    let consume = |args: &[&str]| ok(&run(path, &[&["consume", "--topic", "t"], args].concat()));
    assert_eq!(consume(&[]), "a1\na2\nb1\nb2\nc1\nc2\n");
    assert_eq!(consume(&["--from-beginning"]), consume(&[]));
    assert_eq!(consume(&["--offset", "3"]), "b2\nc1\nc2\n");
    assert_eq!(consume(&["--offset", "3", "--max-records", "2"]), "b2\nc1\n");
    assert_eq!(consume(&["--offset", "6"]), "");
    assert_eq!(consume(&["--timestamp", "1500"]), "b1\nb2\nc1\nc2\n");
    assert_eq!(consume(&["--timestamp", "3001"]), "");
    fails(&run(path, &["consume", "--topic", "t", "--offset", "7"]), 1, "out of range");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn live_producer(dir: &Path) -> Killed {
    let child = loglane(dir)
        .args(["produce", "--topic", "t", "--segment-bytes", "2000"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    // The topic is there when the directory is open.
    writeln!(child.0.stdin.as_mut().unwrap(), "first").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while run(dir, &["consume", "--topic", "t"]).stdout != b"first\n" {
        assert!(Instant::now() < deadline, "the producer does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_follower_sees_what_another_process_writes_across_rolls() {
    let dir = tempfile::tempdir().unwrap();
    let mut producer = live_producer(dir.path());
    let follower = loglane(dir.path())
        .args(["consume", "--topic", "t", "--follow", "--from-beginning"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut follower = Killed(follower);
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    for round in 0..20 {
        let text: String = (0..30).map(|i| format!("round {round} line {i}\n")).collect();
        producer.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        for expected in text.lines() {
            assert_eq!(lines.next().unwrap().unwrap(), expected);
        }
    }
    assert!(fs::read_dir(dir.path().join("t-0")).unwrap().count() > 8, "it never rolled");
    // Everything but writing works beside a live writer.
    assert!(
        ok(&run(dir.path(), &["topics", "describe", "t"])).contains("another process is writing")
    );
    ok(&run(dir.path(), &["verify"]));
    assert!(ok(&run(dir.path(), &["doctor", "--json"])).contains("\"live\""));
    fails(&produce(dir.path(), &["--topic", "t"], b"x\n"), 1, "in use by another process");
    fails(&run(dir.path(), &["topics", "create", "u"]), 1, "in use by another process");
}

#[test]
fn a_signal_ends_a_producer_in_order_and_a_follower_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let mut producer = live_producer(dir.path());
    let follower =
        loglane(dir.path()).args(["consume", "--topic", "t", "--follow"]).spawn().unwrap();
    let mut follower = Killed(follower);
    writeln!(producer.0.stdin.as_mut().unwrap(), "second").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    for child in [&mut producer, &mut follower] {
        let pid = child.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = child.0.wait().unwrap();
        assert_eq!(status.code(), Some(0));
    }
    assert_eq!(ok(&run(dir.path(), &["consume", "--topic", "t"])), "first\nsecond\n");
    assert!(dir.path().join(".kafka_cleanshutdown").exists());
    ok(&run(dir.path(), &["verify"]));
}

#[test]
fn damage_is_named_and_the_rest_still_read() {
    let position = |batch: &Value| batch["position"].as_u64().unwrap();
    // A flipped byte among the records, in the length, and in the magic of the sixth batch.
    for at in [70, 9, 11, 16, 18] {
        let dir = tempfile::tempdir().unwrap();
        let mut hurt = (0, 0, 0);
        let log = {
            let hurt = std::cell::RefCell::new(&mut hurt);
            damaged_at(dir.path(), |log, batches| {
                let bad = &batches[5];
                let offset = |key: &str| bad[key].as_i64().unwrap();
                **hurt.borrow_mut() = (position(bad), offset("baseOffset"), offset("lastOffset"));
                flip(log, position(bad) + at);
            })
        };
        let (position, first, last) = hurt;
        let log = log.to_str().unwrap();
        let output = run(dir.path(), &["dump", log]);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(3), "{shown}");
        assert!(shown.contains(&format!("DAMAGE: {log} at byte {position}: ")), "{shown}");
        assert!(shown.contains(&format!("baseOffset: {} ", last + 1)), "the next batch is shown");

        let output = run(dir.path(), &["verify"]);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(3), "{shown}");
        let place = format!(
            "damage: {log} partition=d-0 position={position} offsets={first}..{}",
            last + 1
        );
        assert!(shown.contains(&place), "{at}: {place} is not in {shown}");
        assert_eq!(shown.matches("damage: ").count(), 1, "{shown}");

        let output = run(dir.path(), &["consume", "--topic", "d"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(&format!("at byte {position}: ")), "{at}: {stderr}");
        let expected: String = (0..2000)
            .filter(|i| !(first..=last).contains(i))
            .map(|i| format!("value-{i}\n"))
            .collect();
        let got = String::from_utf8_lossy(&output.stdout);
        assert!(
            got == expected,
            "{at}: {} lines of {}",
            got.lines().count(),
            expected.lines().count()
        );

        // Right behind the damage, where no index entry leads past it.
        let offset = (last + 1).to_string();
        let got = ok(&run(dir.path(), &["consume", "--topic", "d", "--offset", &offset]));
        assert_eq!(got.lines().count() as i64, 1999 - last, "{at}");
        let offset = first.to_string();
        let output = run(dir.path(), &["consume", "--topic", "d", "--offset", &offset]);
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count() as i64, 1999 - last);
    }
}

#[test]
fn faults_of_index_and_text_files_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    damaged_at(path, |_, _| {});
    assert!(ok(&run(path, &["verify"])).starts_with("ok: partitions=1"));
    let partition = path.join("d-0");
    let check = |file: PathBuf, position: u64, says: &str| {
        let whole = fs::read(&file).unwrap();
        flip(&file, position);
        for command in ["verify", "dump"] {
            let target =
                if command == "dump" { file.to_str().unwrap() } else { path.to_str().unwrap() };
            let output = run(path, &[command, target]);
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(3), "{command}: {shown}");
            assert!(
                shown.contains(file.to_str().unwrap()) && shown.contains(says),
                "{command}: {shown}"
            );
        }
        fs::write(&file, whole).unwrap();
    };
    check(partition.join("00000000000000000000.index"), 7, "between two batches");
    check(partition.join("00000000000000000000.index"), 3, "entry 0");
    check(partition.join("00000000000000000000.timeindex"), 7, "entry 0");
    check(partition.join("leader-epoch-checkpoint"), 0, "version 0");
    check(partition.join("partition.metadata"), 0, "version: 0");
    check(path.join("recovery-point-offset-checkpoint"), 2, "number of its entries");
    assert_eq!(run(path, &["verify"]).status.code(), Some(0));
    // What a kill leaves: no mark of a clean close, half a batch at the end.
    fs::remove_file(path.join(".kafka_cleanshutdown")).unwrap();
    let last = fs::read_dir(&partition).unwrap().map(|e| e.unwrap().path());
    let last = last.filter(|p| p.extension().is_some_and(|e| e == "log")).max().unwrap();
    let mut file = fs::File::options().append(true).open(last).unwrap();
    file.write_all(&[7; 50]).unwrap();
    assert!(ok(&run(path, &["verify"])).starts_with("note: "));
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..100_000).map(|i| format!("value-{i}\n")).collect();
    ok(&produce(dir.path(), &["--topic", "t"], lines.as_bytes()));
    for extra in ["", " --follow --from-beginning"] {
        let program = env!("CARGO_BIN_EXE_loglane");
        let script =
            format!("{program} consume --topic t{extra} | head -1; exit ${{PIPESTATUS[0]}}");
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("LOGLANE_DIR", dir.path())
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"value-0\n");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn a_directory_that_takes_no_writes_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    ok(&produce(dir.path(), &["--topic", "t"], b"x\n"));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        eprintln!("skipped: this user (root) writes whatever the mode says");
        return;
    }
    let output = produce(dir.path(), &["--topic", "t"], b"y\n");
    assert_eq!(ok(&run(dir.path(), &["consume", "--topic", "t"])), "x\n");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fails(&output, 1, "cannot");
}
