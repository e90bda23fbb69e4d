//! Walking chains on a datastore.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use crate::chain::{ChainError, verify_chain};
use crate::layer::DiskFormat;
use crate::{MAX_LAYERS, create_full, create_overlay};

const SIZE: u64 = 1 << 20;

fn new_file(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options.open(path).expect("create")
}

fn overlay(dir: &Path, name: &str, below: &str) {
    create_overlay(&new_file(&dir.join(name)), SIZE, below, DiskFormat::Qcow2).expect("overlay");
}

fn walk(root: &Path, path: &Path) -> Result<Vec<String>, ChainError> {
    let layers = verify_chain(root, path, DiskFormat::Qcow2)?;
    let root = root.canonicalize().expect("root");
    Ok(layers
        .iter()
        .map(|layer| {
            let inside = layer.path.strip_prefix(&root).expect("inside");
            inside.to_str().expect("utf-8").to_owned()
        })
        .collect())
}

fn store() -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().expect("temp dir");
    let root = dir.path().join("store");
    fs::create_dir_all(root.join("layers")).expect("layers");
    fs::create_dir_all(root.join("vms/web1")).expect("vms");
    (dir, root)
}

#[test]
fn chain_is_listed_top_first_also_through_a_link_in_a_home_folder() {
    let (_dir, root) = store();
    let layers = root.join("layers");
    create_full(&new_file(&layers.join("base")), SIZE).expect("base");
    overlay(&layers, "middle", "base");
    overlay(&layers, "top", "middle");
    symlink("../../layers/top", root.join("vms/web1/disk0")).expect("link");
    let expected = ["layers/top", "layers/middle", "layers/base"];
    assert_eq!(walk(&root, &layers.join("top")).expect("chain"), expected);
    assert_eq!(
        walk(&root, &root.join("vms/web1/disk0")).expect("chain"),
        expected
    );
}

#[test]
fn raw_base_is_taken_by_its_recorded_format() {
    let (_dir, root) = store();
    fs::write(root.join("base"), vec![0; SIZE as usize]).expect("raw");
    create_overlay(&new_file(&root.join("top")), SIZE, "base", DiskFormat::Raw).expect("top");
    let chain = verify_chain(&root, &root.join("top"), DiskFormat::Qcow2).expect("chain");
    assert_eq!(chain[1].header.format, DiskFormat::Raw);
}

#[test]
fn loops_are_refused() {
    let (_dir, root) = store();
    overlay(&root, "self", "self");
    overlay(&root, "a", "b");
    overlay(&root, "b", "layers/../a");
    for name in ["self", "a"] {
        let err = walk(&root, &root.join(name)).expect_err("loop");
        assert!(matches!(err, ChainError::Loop { .. }), "{err}");
        assert!(err.to_string().contains("backing_file_name"), "{err}");
    }
}

#[test]
fn missing_files_are_named_with_their_overlay() {
    let (_dir, root) = store();
    overlay(&root, "top", "gone");
    let err = walk(&root, &root.join("top"))
        .expect_err("missing")
        .to_string();
    assert!(
        err.contains("gone is missing, named as backing file by"),
        "{err}"
    );
    let err = walk(&root, &root.join("nothing"))
        .expect_err("missing")
        .to_string();
    assert!(err.ends_with("nothing is missing"), "{err}");
}

#[test]
fn nothing_outside_of_the_datastore_is_opened() {
    let (dir, root) = store();
    create_full(&new_file(&dir.path().join("secret")), SIZE).expect("secret");
    overlay(&root, "dots", "../secret");
    overlay(&root, "deep", "layers/../../secret");
    symlink(dir.path().join("secret"), root.join("link")).expect("link");
    overlay(&root, "linked", "link");
    symlink("../..", root.join("layers/up")).expect("link");
    overlay(&root, "through", "layers/up/secret");
    for name in ["dots", "deep", "linked", "through", "link"] {
        let err = walk(&root, &root.join(name)).expect_err(name);
        assert!(matches!(err, ChainError::Outside { .. }), "{name}: {err}");
    }
    let outside = walk(&root, &dir.path().join("secret")).expect_err("outside");
    assert!(matches!(outside, ChainError::Outside { .. }), "{outside}");
}

#[test]
fn names_that_are_no_relative_paths_are_refused() {
    let (_dir, root) = store();
    create_full(&new_file(&root.join("base")), SIZE).expect("base");
    let absolute = root.join("base").to_str().expect("utf-8").to_owned();
    let names = [
        "/etc/passwd",
        &absolute,
        "nbd://host/x",
        "json:{}",
        "nbd:x:1",
    ];
    for (at, name) in names.iter().enumerate() {
        let top = format!("top{at}");
        overlay(&root, &top, name);
        let err = walk(&root, &root.join(top)).expect_err(name);
        assert!(
            matches!(err, ChainError::BackingName { .. }),
            "{name}: {err}"
        );
    }
}

#[test]
fn directories_and_pipes_are_no_layers() {
    let (_dir, root) = store();
    overlay(&root, "top", "layers");
    let err = walk(&root, &root.join("top")).expect_err("directory");
    assert!(matches!(err, ChainError::NotAFile { .. }), "{err}");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), mode).expect("pipe");
    overlay(&root, "top2", "pipe");
    let err = walk(&root, &root.join("top2")).expect_err("pipe");
    assert!(matches!(err, ChainError::NotAFile { .. }), "{err}");
}

#[test]
fn chains_have_a_longest_length() {
    let (_dir, root) = store();
    create_full(&new_file(&root.join("0")), SIZE).expect("base");
    for at in 1..=MAX_LAYERS {
        overlay(&root, &at.to_string(), &(at - 1).to_string());
    }
    let longest = (MAX_LAYERS - 1).to_string();
    assert_eq!(
        walk(&root, &root.join(longest)).expect("chain").len(),
        MAX_LAYERS
    );
    let err = walk(&root, &root.join(MAX_LAYERS.to_string())).expect_err("too deep");
    assert!(matches!(err, ChainError::TooDeep { .. }), "{err}");
}
