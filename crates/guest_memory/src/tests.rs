//! A private view after a seal shows the layer, keeps its own writes, and never changes the layer.

use std::fs::File;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const BYTES: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn memory_file(bytes: u64) -> File {
    let fd =
        memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
    ftruncate(&fd, bytes).expect("size");
    File::from(fd)
}

fn read_only(file: &File) -> File {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("reopen")
}

fn byte(ram: &GuestRam, gpa: u64) -> u8 {
    ram.memory().read_obj(GuestAddress(gpa)).expect("in RAM")
}

fn put(ram: &GuestRam, gpa: u64, value: u8) {
    ram.memory()
        .write_obj(value, GuestAddress(gpa))
        .expect("in RAM");
}

#[test]
fn source_and_clones_diverge_after_a_seal() {
    let mut source = GuestRam::shared(memory_file(BYTES), BYTES).expect("map");
    put(&source, 5000, 7);
    let address = source.host_address();
    let sealed = source.seal().expect("seal");
    sealed.forbid_new_writers().expect("seal future writes");
    assert_eq!(source.host_address(), address);
    put(&source, 5000, 8);
    sealed.finish(|| ()).expect("seal writes");
    let clone = GuestRam::private(read_only(source.file()), BYTES).expect("map");
    assert_eq!((byte(&source, 5000), byte(&clone, 5000)), (8, 7));
    put(&clone, 5000, 9);
    assert_eq!((byte(&source, 5000), byte(&clone, 5000)), (8, 9));
    let late = GuestRam::private(read_only(source.file()), BYTES).expect("map");
    assert_eq!(byte(&late, 5000), 7);
    assert!(matches!(source.seal(), Err(SealError::NotShared)));
}

#[test]
fn an_undone_seal_leaves_the_shared_view() {
    let mut source = GuestRam::shared(memory_file(BYTES), BYTES).expect("map");
    put(&source, 0, 1);
    let sealed = source.seal().expect("seal");
    source.unseal(sealed).expect("undo");
    assert_eq!(source.view(), View::Shared);
    put(&source, 0, 2);
    let other = GuestRam::private(read_only(source.file()), BYTES).expect("map");
    assert_eq!(byte(&other, 0), 2, "writes reach the file again");
}

#[test]
fn discard_frees_pages_of_either_view() {
    let mut ram = GuestRam::shared(memory_file(BYTES), BYTES).expect("map");
    put(&ram, 2 * PAGE, 3);
    ram.discard(2 * PAGE, PAGE).expect("punch");
    assert_eq!(byte(&ram, 2 * PAGE), 0);
    put(&ram, 2 * PAGE, 4);
    ram.seal().expect("seal").finish(|| ()).expect("finish");
    put(&ram, 2 * PAGE, 5);
    ram.discard(2 * PAGE, PAGE).expect("drop");
    assert_eq!(byte(&ram, 2 * PAGE), 4, "the layer's byte shows");
    for (gpa, len) in [(u64::MAX, 2), (BYTES, PAGE), (BYTES - 1, 2), (10, 100)] {
        ram.discard(gpa, len).expect("ignored");
    }
    assert_eq!(byte(&ram, 2 * PAGE), 4);
}

#[test]
fn a_short_file_is_refused() {
    let error = GuestRam::shared(memory_file(BYTES), 2 * BYTES).expect_err("short");
    assert!(matches!(error, CreateRamError::Short { .. }));
}

#[test]
fn large_memory_leaves_the_device_hole_free() {
    let ranges = ram_ranges(5 << 30);
    assert_eq!(
        ranges[0],
        RamRange {
            gpa: 0,
            offset: 0,
            len: 3 << 30
        }
    );
    assert_eq!(
        ranges[1],
        RamRange {
            gpa: 4 << 30,
            offset: 3 << 30,
            len: 2 << 30
        }
    );
}

#[derive(Clone, Debug)]
enum Step {
    Write { vm: usize, page: u64, value: u8 },
    Clone { vm: usize },
    Drop { vm: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..8usize, 0..BYTES / PAGE, any::<u8>())
            .prop_map(|(vm, page, value)| Step::Write { vm, page, value }),
        2 => (0..8usize).prop_map(|vm| Step::Clone { vm }),
        1 => (0..8usize).prop_map(|vm| Step::Drop { vm }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The first VM is sealed at its first fork; its clones map the layer of that instant. Each VM
    /// must equal a plain array at all times, whoever wrote, forked or ended meanwhile.
    #[test]
    fn views_equal_a_plain_model(steps in proptest::collection::vec(step(), 1..60)) {
        let pages = (BYTES / PAGE) as usize;
        let source = GuestRam::shared(memory_file(BYTES), BYTES).expect("map");
        let mut vms = vec![(source, vec![0u8; pages])];
        let mut layer: Option<(File, Vec<u8>)> = None;
        for step in steps {
            match step {
                Step::Write { vm, page, value } => {
                    let at = vm % vms.len();
                    put(&vms[at].0, page * PAGE, value);
                    vms[at].1[page as usize] = value;
                }
                Step::Clone { vm } => {
                    if vms[0].0.view() == View::Shared {
                        let model = vms[0].1.clone();
                        vms[0].0.seal().expect("seal").finish(|| ()).expect("finish");
                        layer = Some((read_only(vms[0].0.file()), model));
                    }
                    let _ = vm;
                    let (file, model) = layer.as_ref().expect("sealed");
                    let file = file.try_clone().expect("dup");
                    vms.push((GuestRam::private(file, BYTES).expect("map"), model.clone()));
                }
                Step::Drop { vm } => {
                    if vms.len() > 1 {
                        vms.remove(1 + vm % (vms.len() - 1));
                    }
                }
            }
            for (ram, model) in &vms {
                for (page, value) in model.iter().enumerate() {
                    prop_assert_eq!(byte(ram, page as u64 * PAGE), *value);
                }
            }
        }
    }
}
