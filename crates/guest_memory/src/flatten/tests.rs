//! A flattened view has the bytes that it had, and few private pages. That pages of other processes
//! are told apart is for tests with processes; here every own page is alone.

use std::fs::File;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const BYTES: u64 = 1 << 20;

fn memory_file(bytes: u64) -> File {
    let fd = memfd_create("flatten", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, bytes).expect("size");
    fd.into()
}

fn own_map() -> File {
    File::open("/proc/self/pagemap").expect("page map")
}

fn put(ram: &GuestRam, page: u64, value: u8) {
    ram.memory()
        .write_obj(value, GuestAddress(page * PAGE))
        .expect("in RAM");
}

fn get(ram: &GuestRam, page: u64) -> u8 {
    ram.memory()
        .read_obj(GuestAddress(page * PAGE))
        .expect("in RAM")
}

#[test]
fn own_pages_stay_and_others_come_from_the_new_layer() {
    let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
    let address = ram.host_address();
    put(&ram, 3, 33);
    put(&ram, 200, 44);
    let layer = memory_file(BYTES);
    let other = GuestRam::shared(layer.try_clone().expect("file"), BYTES).expect("map");
    put(&other, 3, 1);
    put(&other, 4, 2);
    let (old, copied) = ram.flatten(layer, &own_map()).expect("flatten");
    assert_eq!(copied, 2);
    old.hide_from_fork().expect("advice");
    old.finish(|| ()).expect("unmap");
    assert_eq!(ram.host_address(), address);
    let seen = [3, 4, 200, 5].map(|page| get(&ram, page));
    assert_eq!(seen, [33, 2, 44, 0]);
    // The view is a private one still.
    put(&ram, 4, 9);
    assert_eq!((get(&ram, 4), get(&other, 4)), (9, 2));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut shared = GuestRam::shared(memory_file(BYTES), BYTES).expect("map");
    let error = shared.flatten(memory_file(BYTES), &own_map());
    assert!(matches!(error, Err(FlattenError::Shared)), "{error:?}");
    let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
    put(&ram, 1, 7);
    let error = ram.flatten(memory_file(BYTES - PAGE), &own_map());
    assert!(
        matches!(error, Err(FlattenError::Short { .. })),
        "{error:?}"
    );
    let nothing = File::open("/dev/null").expect("open");
    let error = ram.flatten(memory_file(BYTES), &nothing);
    let foreign =
        |error: &FlattenError| matches!(error, FlattenError::PageMap(PageMapError::Foreign));
    assert!(error.as_ref().is_err_and(foreign), "{error:?}");
    // A directory has a size, and cannot be mapped.
    let folder = File::open("/proc/self/fd").expect("open");
    ram.flatten(folder, &own_map()).expect_err("no file");
    assert_eq!(get(&ram, 1), 7);
}
