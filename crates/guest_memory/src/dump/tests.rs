//! A dump has the bytes of the view and none of its own; it costs the layer nothing.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// More than two chunks, and not a whole number of them.
const BYTES: u64 = (2 << 20) + 5 * PAGE;

fn memory_file() -> File {
    memfd_create("dump", MemfdFlags::CLOEXEC)
        .expect("memfd")
        .into()
}

/// A layer with data in the pages that `written` tells, and holes elsewhere.
fn layer(file: File, written: impl IntoIterator<Item = u64>) -> File {
    file.set_len(BYTES).expect("size");
    for page in written {
        let text = [page as u8 | 1; PAGE_BYTES];
        file.write_all_at(&text, page * PAGE).expect("layer");
    }
    file
}

fn own_map() -> File {
    File::open("/proc/self/pagemap").expect("page map")
}

fn put(ram: &GuestRam, page: u64, value: u8) {
    let bytes = [value; PAGE_BYTES];
    ram.memory()
        .write_slice(&bytes, GuestAddress(page * PAGE))
        .expect("in RAM");
}

fn kib(file: &File) -> u64 {
    file.metadata().expect("size").blocks() / 2
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    assert_eq!(file.metadata().expect("size").len(), BYTES);
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn own_pages_and_those_of_the_layer_are_there_and_zeros_are_holes() {
    let on_disk = tempfile::tempfile().expect("file");
    for layer in [memory_file(), on_disk].map(|file| layer(file, 0..8)) {
        let ram = GuestRam::private(layer.try_clone().expect("file"), BYTES).expect("map");
        put(&ram, 2, 0);
        put(&ram, 3, 77);
        put(&ram, 300, 78);
        put(&ram, 301, 0);
        // A write fills a hole of the layer as well; reading must not.
        let before = kib(&layer);
        let out = memory_file();
        ram.dump(&out, Some(&own_map())).expect("dump");
        let bytes = content(&out);
        let page = |page: usize| &bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES];
        let expected = [1, 1, 0, 77, 5, 5, 7, 7, 0];
        for (index, value) in expected.into_iter().enumerate() {
            assert_eq!(page(index), [value; PAGE_BYTES], "page {index}");
        }
        assert_eq!(page(300), [78; PAGE_BYTES]);
        assert!(bytes[301 * PAGE_BYTES..].iter().all(|byte| *byte == 0));
        assert_eq!(kib(&out), 8 * 4, "zeros are holes");
        assert_eq!(kib(&layer), before, "the layer's holes stay holes");
    }
}

#[test]
fn without_a_page_map_the_bytes_are_the_same() {
    let ram = GuestRam::private(layer(memory_file(), [0, 9]), BYTES).expect("map");
    put(&ram, 400, 4);
    let (with, without) = (memory_file(), memory_file());
    ram.dump(&with, Some(&own_map())).expect("dump");
    ram.dump(&without, None).expect("dump");
    assert_eq!(content(&with), content(&without));
}

#[test]
fn what_cannot_be_written_is_told() {
    let ram = GuestRam::private(layer(memory_file(), [1]), BYTES).expect("map");
    let mut full = memory_file();
    full.write_all(b"x").expect("write");
    let error = ram.dump(&full, None).expect_err("it has content");
    assert!(matches!(error, DumpError::NotEmpty(1)), "{error}");

    let read_only = File::open("/dev/null").expect("open");
    let error = ram.dump(&read_only, None).expect_err("no regular file");
    assert!(error.to_string().contains("size of the RAM"), "{error}");

    let error = ram.dump(&memory_file(), Some(&read_only));
    assert!(
        matches!(error, Err(DumpError::PageMap(PageMapError::Foreign))),
        "{error:?}"
    );
    let mut other = Command::new("sleep");
    let mut other = other.arg("60").stdin(Stdio::null()).spawn().expect("sleep");
    let map = File::open(format!("/proc/{}/pagemap", other.id())).expect("page map");
    let error = ram.dump(&memory_file(), Some(&map));
    assert!(
        matches!(error, Err(DumpError::PageMap(PageMapError::Foreign))),
        "{error:?}"
    );
    other.kill().and_then(|()| other.wait()).expect("kill");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_dump_restored_is_the_same_ram(
        written in proptest::collection::btree_set(0..BYTES / PAGE, 0..40),
        changes in proptest::collection::vec((0..BYTES / PAGE, 0..3u8), 0..40),
        given_back in proptest::collection::vec(0..BYTES / PAGE, 0..10),
    ) {
        let ram = GuestRam::private(layer(memory_file(), written), BYTES).expect("map");
        for (page, value) in changes {
            put(&ram, page, value);
        }
        for page in given_back {
            ram.discard(page * PAGE, PAGE).expect("discard");
        }
        let out = memory_file();
        ram.dump(&out, Some(&own_map())).expect("dump");
        let again = GuestRam::private(out, BYTES).expect("map");
        let whole = |ram: &GuestRam| {
            let mut bytes = vec![0; BYTES as usize];
            ram.memory().read_slice(&mut bytes, GuestAddress(0)).expect("read");
            bytes
        };
        prop_assert!(whole(&ram) == whole(&again));
    }
}
