//! Jails itself as a VM process does and then behaves like hostile code: tries to leave. Run as
//! root by the test `jail`.
//!
//! ```text
//! escape wait   --uid U [--empty-mounts]
//! escape try    --uid U --disk PATH --victim PID --victim-uid V [--empty-mounts]
//! escape int80  --uid U
//! ```
//!
//! Prints one JSON object per line: `{"jailed":…}` first, then one for each attempt, `denied` with
//! its error number or `reached`, and one for each thing that a VM process must still be able to
//! do, `works` or `broken`.

#![expect(unsafe_code, reason = "hostile code calls the kernel directly")]

mod attempts;
mod permitted;

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use jail::{Barrier, Jail, UidRange};

/// The ids of VM processes in this test.
const RANGE: UidRange = UidRange {
    first: 0x6e00_0000,
    last: 0x6eff_ffff,
};

/// What was opened before the jail was entered, as the daemon passes it.
struct Passed {
    disk: OwnedFd,
    folder: OwnedFd,
    kvm: Option<OwnedFd>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)).cloned()
    };
    let number = |name| {
        let value = value(name).unwrap_or_else(|| panic!("{name} is missing"));
        value.parse::<u32>().expect("a number")
    };
    let passed = Passed {
        disk: tempfile().into(),
        folder: std::fs::File::open("/etc").expect("/etc").into(),
        kvm: std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .ok()
            .map(Into::into),
    };
    let jail = Jail {
        uid: number("--uid"),
        range: RANGE,
    };
    let barrier = if args.iter().any(|arg| arg == "--empty-mounts") {
        let chosen = Barrier::EmptyMounts;
        jail.enter_behind(chosen).expect("enter the jail");
        chosen
    } else {
        jail.enter().expect("enter the jail")
    };
    println!("{{\"jailed\":\"{barrier:?}\"}}");
    match args.get(1).map(String::as_str) {
        Some("wait") => {
            let mut rest = Vec::new();
            std::io::stdin().read_to_end(&mut rest).expect("stdin");
            println!("{{\"alive\":true}}");
        }
        Some("try") => {
            let target = attempts::Target {
                disk_path: CString::new(value("--disk").expect("--disk is missing")).expect("path"),
                victim: number("--victim"),
                victim_uid: number("--victim-uid"),
                folder: passed.folder.as_raw_fd(),
                own_disk: passed.disk.as_raw_fd(),
            };
            let mut born = permitted::run(&passed, jail.uid + 1);
            attempts::run(&target, &born);
            println!("{{\"clone_alive\":{}}}", born.answers());
        }
        Some("int80") => attempts::old_entry(),
        other => panic!("unknown mode {other:?}"),
    }
}

/// An unlinked file that plays the VM's own disk.
fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("mitose-escape-{}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("own disk");
    std::fs::remove_file(path).expect("unlink own disk");
    file
}
