//! Container archives made here: both layouts, compression, whiteouts, and hostile ones.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::builder::hex;

/// An entry of a layer: path, kind, link target or content, mode.
type Item<'a> = (&'a str, EntryType, &'a str, u32);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// Makes a tar stream without any of the checks that a well-behaved writer has.
fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, text, mode) in items {
        let mut header = Header::new_gnu();
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        header.set_mtime(1_000_000);
        let is_link = *kind == LINK || *kind == HARD;
        if is_link {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if is_link { "" } else { text };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/app"],"Cmd":["-v"],"Env":["A=1","B=x y"],"WorkingDir":"/srv","User":"7"}}"#;

fn outer(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn docker_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len())
        .map(|i| format!("{i}/layer.tar"))
        .collect();
    let manifest =
        serde_json::json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": names }]);
    let mut members: Vec<_> = names.into_iter().zip(layers.iter().cloned()).collect();
    members.push(("c.json".into(), CONFIG.into()));
    members.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    outer(&members)
}

fn oci_archive(layers: &[Vec<u8>], break_digest: bool) -> Vec<u8> {
    oci_archive_of(CONFIG, layers, break_digest)
}

/// An archive of stored layers whose configuration names the digests of other bytes.
fn archive_with_diff_ids(stored: &[Vec<u8>], plain: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<_> = plain
        .iter()
        .map(|l| format!("sha256:{}", hex(&Sha256::digest(l))))
        .collect();
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": ids });
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs });
    oci_archive_of(&config.to_string(), stored, false)
}

fn oci_archive_of(config: &str, layers: &[Vec<u8>], break_digest: bool) -> Vec<u8> {
    oci_archive_listing(config, layers, break_digest, |_, mut manifest| {
        manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let arm = json!({ "architecture": "arm64", "os": "linux" });
        vec![json!({ "digest": "sha256:00", "platform": arm }), manifest]
    })
}

/// An archive whose index has the entries that `list` makes of the manifest's; it is also given
/// what adds a document and returns its entry.
fn oci_archive_listing(
    config: &str,
    layers: &[Vec<u8>],
    break_digest: bool,
    list: impl FnOnce(&mut dyn FnMut(Value) -> Value, Value) -> Vec<Value>,
) -> Vec<u8> {
    let mut members = vec![("oci-layout".to_owned(), b"{}".to_vec())];
    let mut add = |content: Vec<u8>| {
        let digest = hex(&Sha256::digest(&content));
        let size = content.len();
        members.push((format!("blobs/sha256/{digest}"), content));
        serde_json::json!({ "digest": format!("sha256:{digest}"), "size": size })
    };
    let config = add(config.into());
    let descriptors: Vec<_> = layers.iter().map(|l| add(l.clone())).collect();
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "config": config, "layers": descriptors });
    let manifest = add(manifest.to_string().into_bytes());
    let entries = list(
        &mut |document| add(document.to_string().into_bytes()),
        manifest,
    );
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    if break_digest {
        members[2].1.push(0);
    }
    members.push(("index.json".into(), index.to_string().into_bytes()));
    outer(&members)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

struct Unpacked {
    root: PathBuf,
    result: Result<ContainerConfig, ImageError>,
    dir: tempfile::TempDir,
}

fn unpack_bytes(archive: &[u8]) -> Unpacked {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/b/root");
    fs::create_dir_all(&root).unwrap();
    let file = dir.path().join("image.tar");
    fs::write(&file, archive).unwrap();
    let result = unpack(&file, &root, dir.path(), &Watch::default());
    Unpacked { root, result, dir }
}

fn check_refused(archive: &[u8], word: &str) {
    let unpacked = unpack_bytes(archive);
    let error = unpacked.result.unwrap_err();
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(text.contains(word), "{word}: {text}");
    assert!(!exists(&unpacked.dir.path().join("escaped")));
    assert!(!exists(&unpacked.dir.path().join("a/escaped")));
}

fn two_layers() -> [Vec<u8>; 2] {
    [
        layer(&[
            ("./", DIR, "", 0o755),
            ("etc/", DIR, "", 0o750),
            ("etc/keep", FILE, "keep", 0o640),
            ("etc/gone", FILE, "gone", 0o644),
            ("dir/sub/", DIR, "", 0o755),
            ("dir/sub/old", FILE, "old", 0o644),
            ("bin/tool", FILE, "tool", 0o4755),
            ("bin/same", HARD, "bin/tool", 0o4755),
            ("usr/lib/", DIR, "", 0o755),
            ("lib", LINK, "/usr/lib", 0o777),
            ("becomes", FILE, "file", 0o644),
        ]),
        layer(&[
            ("etc/.wh.gone", FILE, "", 0o644),
            ("dir/sub/new", FILE, "new", 0o644),
            ("dir/sub/.wh..wh..opq", FILE, "", 0o644),
            ("lib/through-link", FILE, "inside", 0o644),
            ("becomes/", DIR, "", 0o755),
            ("becomes/dir", FILE, "x", 0o644),
        ]),
    ]
}

fn check_two_layers(root: &Path) {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(read("etc/keep"), "keep");
    assert!(!exists(&root.join("etc/gone")) && !exists(&root.join("etc/.wh.gone")));
    assert!(
        !exists(&root.join("dir/sub/old")),
        "an opaque mark hides the lower layer"
    );
    assert_eq!(read("dir/sub/new"), "new");
    let tool = fs::metadata(root.join("bin/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);
    assert_eq!((tool.nlink(), tool.mtime()), (2, 1_000_000));
    assert_eq!(
        fs::read_link(root.join("lib")).unwrap(),
        Path::new("/usr/lib")
    );
    assert_eq!(read("usr/lib/through-link"), "inside");
    assert_eq!(read("becomes/dir"), "x");
    assert_eq!(
        fs::metadata(root.join("etc")).unwrap().permissions().mode() & 0o777,
        0o750
    );
}

#[test]
fn docker_archives_are_unpacked() {
    let [first, second] = two_layers();
    let unpacked = unpack_bytes(&docker_archive(&[first, gzip(&second)]));
    let config = unpacked.result.unwrap();
    let start = config.start();
    assert_eq!(start.argv, ["/app", "-v"]);
    assert_eq!(
        (start.cwd.as_deref(), start.user.as_deref()),
        (Some("/srv"), Some("7"))
    );
    assert_eq!(config.environment(), ["A=1", "B=x y"]);
    check_two_layers(&unpacked.root);
}

#[test]
fn oci_layouts_are_unpacked_also_when_compressed_as_a_whole() {
    let [first, second] = two_layers();
    let archive = oci_archive(&[zstd(&first), gzip(&second)], false);
    let unpacked = unpack_bytes(&archive);
    unpacked.result.unwrap();
    check_two_layers(&unpacked.root);
    let unpacked = unpack_bytes(&gzip(&archive));
    unpacked.result.unwrap();
    check_two_layers(&unpacked.root);
}

#[test]
fn hostile_paths_stay_inside() {
    check_refused(
        &docker_archive(&[layer(&[("../escaped", FILE, "x", 0o644)])]),
        "'..'",
    );
    check_refused(
        &docker_archive(&[layer(&[("a/../../escaped", FILE, "x", 0o644)])]),
        "'..'",
    );
    check_refused(
        &docker_archive(&[layer(&[("h", HARD, "../../image.tar", 0o644)])]),
        "'..'",
    );
    check_refused(
        &docker_archive(&[layer(&[(".wh...", FILE, "", 0o644)])]),
        "whiteout",
    );

    // A link that points outside leads to the same place inside.
    let through = [
        ("up", LINK, "../../..", 0o777),
        ("up/escaped", FILE, "x", 0o644),
    ];
    let unpacked = unpack_bytes(&docker_archive(&[layer(&through)]));
    unpacked.result.unwrap();
    assert!(exists(&unpacked.root.join("escaped")));
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let items = [
        ("abs", LINK, target, 0o777),
        ("abs/.wh.victim", FILE, "", 0o644),
    ];
    fs::write(outside.path().join("victim"), "x").unwrap();
    let _ = unpack_bytes(&docker_archive(&[layer(&items)]));
    assert!(outside.path().join("victim").exists());

    // A file takes the place of a link instead of being written through it.
    let items = [
        ("f", LINK, "/etc/hostname-of-host", 0o777),
        ("f", FILE, "own", 0o644),
    ];
    let unpacked = unpack_bytes(&docker_archive(&[layer(&items)]));
    unpacked.result.unwrap();
    assert_eq!(fs::read_to_string(unpacked.root.join("f")).unwrap(), "own");
}

#[test]
fn damaged_archives_are_refused() {
    let [first, _] = two_layers();
    check_refused(
        &outer(&[("hello".into(), b"x".to_vec())]),
        "not a container image",
    );
    check_refused(b"\0\0\0\0", "tar structure");
    check_refused(b"x", "too short");
    check_refused(&oci_archive(&[gzip(&first)], true), "digest");
    check_refused(&docker_archive(&[gzip(&first)[..100].to_vec()]), "");
    check_refused(&docker_archive(&[first[..700].to_vec()]), "");
    let two = serde_json::json!([{ "Config": "a", "Layers": [] }, { "Config": "b", "Layers": [] }]);
    let two = outer(&[("manifest.json".into(), two.to_string().into_bytes())]);
    check_refused(&two, "2 images");
    let missing = serde_json::json!([{ "Config": "a.json", "Layers": ["l"] }]);
    let missing = outer(&[("manifest.json".into(), missing.to_string().into_bytes())]);
    check_refused(&missing, "lacks a.json");
    let archive = docker_archive(&[first]);
    for cut in (0..archive.len()).step_by(997) {
        let _ = unpack_bytes(&archive[..cut]).result;
    }
}

/// The entry of an image that is not in the archive.
fn absent(digit: &str, annotations: Value) -> Value {
    json!({ "digest": format!("sha256:{}", digit.repeat(64)), "annotations": annotations })
}

#[test]
fn of_several_images_in_a_layout_none_is_guessed() {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let [first, _] = two_layers();
    let listing = |list: fn(&mut dyn FnMut(Value) -> Value, Value) -> Vec<Value>| {
        oci_archive_listing(CONFIG, std::slice::from_ref(&first), false, list)
    };
    let named = listing(|_, mut manifest| {
        manifest["annotations"] = json!({ NAME: "mine:1" });
        vec![absent("a", json!({ NAME: "other:1" })), manifest]
    });
    check_refused(&named, r#"it has 2 images ("other:1", "mine:1")"#);
    let nameless = listing(|_, manifest| vec![manifest, absent("a", Value::Null)]);
    check_refused(&nameless, &format!(r#""sha256:{}")"#, "a".repeat(64)));
    let many = listing(|_, manifest| {
        let digits = ["a", "b", "c", "d", "e", "f", "0", "1"].iter();
        let others = digits.map(|digit| absent(digit, json!({ NAME: *digit })));
        others.chain([manifest]).collect()
    });
    check_refused(
        &many,
        r#"it has 9 images ("a", "b", "c", "d", "e", "f", "0", "1", …)"#,
    );
}

#[test]
fn what_is_no_other_image_does_not_make_a_layout_ambiguous() {
    const NAME: &str = "org.opencontainers.image.ref.name";
    const ABOUT: &str = "vnd.docker.reference.type";
    let [first, _] = two_layers();
    let check = |list: fn(&mut dyn FnMut(Value) -> Value, Value) -> Vec<Value>| {
        let layers = std::slice::from_ref(&first);
        let unpacked = unpack_bytes(&oci_archive_listing(CONFIG, layers, false, list));
        unpacked.result.unwrap();
        assert!(exists(&unpacked.root.join("etc/keep")));
    };
    // What buildkit writes beside an image, with and without a platform.
    check(|_, manifest| {
        let mut attestation = absent("a", json!({ ABOUT: "attestation-manifest" }));
        let without = attestation.clone();
        attestation["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
        vec![without, attestation, manifest]
    });
    // One image under two names.
    check(|_, mut manifest| {
        manifest["annotations"] = json!({ NAME: "x:1" });
        let mut latest = manifest.clone();
        latest["annotations"] = json!({ NAME: "x:latest" });
        vec![manifest, latest]
    });
    // One image for several variants of a platform, in an index of its own.
    check(|add, mut manifest| {
        manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let mut variant = absent("a", Value::Null);
        variant["platform"] = json!({ "architecture": "amd64", "os": "linux", "variant": "v3" });
        vec![add(
            json!({ "schemaVersion": 2, "manifests": [manifest, variant] }),
        )]
    });
}

#[test]
fn other_platforms_are_refused() {
    let config = br#"{"architecture":"arm64","os":"linux"}"#.to_vec();
    let manifest = serde_json::json!([{ "Config": "c.json", "Layers": [] }]);
    let manifest = manifest.to_string().into_bytes();
    let archive = outer(&[
        ("c.json".into(), config),
        ("manifest.json".into(), manifest),
    ]);
    check_refused(&archive, "linux/arm64");
}

#[test]
fn long_names_and_attributes_come_in_extension_headers() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(140));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    builder
        .append_data(&mut header, &long, &b"long"[..])
        .unwrap();
    let records = [("path", "named/by-pax".as_bytes()), ("mtime", b"1234.5")];
    builder.append_pax_extensions(records).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_path("short").unwrap();
    header.set_cksum();
    builder.append(&header, &b"pax"[..]).unwrap();
    let unpacked = unpack_bytes(&docker_archive(&[builder.into_inner().unwrap()]));
    unpacked.result.unwrap();
    assert_eq!(
        fs::read_to_string(unpacked.root.join(&long)).unwrap(),
        "long"
    );
    let named = unpacked.root.join("named/by-pax");
    assert_eq!(fs::metadata(&named).unwrap().mtime(), 1234);
    assert_eq!(fs::read_to_string(named).unwrap(), "pax");
}

#[test]
fn layers_of_many_zstd_frames_are_unpacked_whole() {
    let [first, second] = two_layers();
    let skip = [&[0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"12345"].concat();
    // One frame for each 512 bytes, so that frames end at every header.
    let mut frames: Vec<u8> = first.chunks(512).flat_map(zstd).collect();
    frames.extend(&skip);
    let second_frames = [skip, zstd(&second)].concat();
    let plain = [first.clone(), second.clone()];
    let archive = archive_with_diff_ids(&[frames, second_frames], &plain);
    let unpacked = unpack_bytes(&archive);
    unpacked.result.unwrap();
    check_two_layers(&unpacked.root);
    let (head, tail) = archive.split_at(archive.len() / 2);
    let unpacked = unpack_bytes(&[zstd(head), zstd(tail)].concat());
    unpacked.result.unwrap();
    check_two_layers(&unpacked.root);
}

#[test]
fn layers_must_be_what_the_configuration_names() {
    let [first, second] = two_layers();
    let stored = [first.clone(), gzip(&second)];
    let wrong = [first.clone(), first.clone()];
    check_refused(&archive_with_diff_ids(&stored, &wrong), "layer 2 of 2");
    check_refused(
        &archive_with_diff_ids(&stored, &wrong[..1]),
        "names 1 layers",
    );

    // Without the two blocks of zeros at its end only a digest can tell that a layer is whole.
    let open_end = first[..first.len() - 1024].to_vec();
    let plain = [open_end.clone(), second];
    let stored = [zstd(&open_end), stored[1].clone()];
    let unpacked = unpack_bytes(&archive_with_diff_ids(&stored, &plain));
    unpacked.result.unwrap();
    check_two_layers(&unpacked.root);
    check_refused(
        &docker_archive(&stored),
        "layer 1 of 2 (0/layer.tar): it has no end mark",
    );
    check_refused(
        &docker_archive(&[[&gzip(&first)[..], b"JUNK"].concat()]),
        "behind its end",
    );
    check_refused(
        &docker_archive(&[b"\xfd7zXZ\0\0\0".to_vec()]),
        "compressed with xz",
    );
}

#[test]
fn number_fields_may_be_blank_and_errors_name_the_entry() {
    let special = |kind: EntryType, major: &[u8; 8]| {
        let mut header = Header::new_ustar();
        header.set_path("run/special").unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_size(0);
        let ustar = header.as_ustar_mut().unwrap();
        (ustar.uid, ustar.gid) = ([0; 8], [b' '; 8]);
        (ustar.dev_major, ustar.dev_minor) = (*major, [0; 8]);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        docker_archive(&[builder.into_inner().unwrap()])
    };
    for major in [[0; 8], *b"garbage\0"] {
        let unpacked = unpack_bytes(&special(EntryType::Fifo, &major));
        unpacked.result.unwrap();
        let meta = fs::symlink_metadata(unpacked.root.join("run/special")).unwrap();
        assert_eq!(meta.mode(), 0o010640);
    }
    check_refused(
        &special(EntryType::Char, b"garbage\0"),
        "run/special: its device number is malformed",
    );
    let link = layer(&[("etc/nowhere", LINK, "", 0o777)]);
    check_refused(
        &docker_archive(&[link]),
        "etc/nowhere: the link has no target",
    );
}
