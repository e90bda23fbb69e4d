//! `qemu-img` as the judge.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(args: &[&str], dir: &Path) -> Output {
    Command::new("qemu-img")
        .args(args)
        .current_dir(dir)
        .output()
        .expect("qemu-img must be installed (Debian package qemu-utils)")
}

/// Runs `qemu-img` and returns its standard output; any failure fails the test.
pub fn qemu_img(args: &[&str], dir: &Path) -> String {
    let out = run(args, dir);
    assert!(
        out.status.success(),
        "qemu-img {args:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// No errors and no leaks.
pub fn assert_clean(dir: &Path, name: &str) {
    qemu_img(&["check", "-f", "qcow2", name], dir);
}

/// No errors; clusters that are counted but not used are allowed (a crash leaves them).
pub fn assert_no_errors(dir: &Path, name: &str, context: &str) {
    let out = run(&["check", "-f", "qcow2", name], dir);
    assert!(
        matches!(out.status.code(), Some(0 | 3)),
        "{context}: qemu-img check {name}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The guest's bytes of a chain, as QEMU sees them.
pub fn guest_bytes(dir: &Path, name: &str) -> Vec<u8> {
    let raw = format!("{name}.converted");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, &raw], dir);
    let bytes = fs::read(dir.join(&raw)).expect("converted file");
    fs::remove_file(dir.join(&raw)).expect("remove converted file");
    bytes
}
