//! `mitose bench` as a user types it.

use harness::{Cli, kvm_present};

#[test]
fn forks_are_measured_and_nothing_is_left() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    // Short, for sockets below it.
    let folder = tempfile::Builder::new()
        .prefix("mb")
        .tempdir_in("/tmp")
        .expect("folder");
    let cli = Cli::new(&folder.path().join("h")).expect("mitose is built");
    let args = [
        "bench",
        "--samples",
        "2",
        "--memory",
        "64M",
        "--engine",
        "kvm",
    ];
    let report = cli.json(&args);
    let left = cli.json(&["ls"]);
    let refused = cli.output(&["bench", "--memory", "20M"]);
    cli.clean_up();
    let report = report.expect("a report");
    assert_eq!(report["engine"], "kvm");
    let rows = report["results"].as_array().expect("rows");
    for wanted in [
        "fork.first.stun_us",
        "clone.first_run_us",
        "fork.repeat.stun_us.dirty10pct",
        "clone.repeat.batch10.wall_us",
        "clone.private_kib",
        "destroy_us",
    ] {
        let row = rows.iter().find(|row| row["name"] == wanted);
        let row = row.unwrap_or_else(|| panic!("no {wanted} in {rows:?}"));
        assert!(row["median"].as_u64() > Some(0), "{row}");
        assert!(row["min"].as_u64() <= row["max"].as_u64(), "{row}");
    }
    assert_eq!(left.expect("ls"), serde_json::json!([]));
    let refused = refused.expect("mitose");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("--memory") && error.contains("64 MiB"),
        "{error}"
    );
}
