//! A view that is moved onto a new layer shows the same bytes at every moment, and has few private
//! pages afterwards.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// More than one block, and not a whole number of pieces.
const BYTES: u64 = BLOCK_BYTES + 3 * PIECE_BYTES + 5 * PAGE;

fn memory_file(bytes: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("flatten", flags).expect("memfd"));
    file.set_len(bytes).expect("size");
    file
}

fn new_layer() -> NewLayer {
    let writable = memory_file(0);
    let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
    NewLayer {
        read_only: File::open(path).expect("reopen"),
        writable,
        pagemap: own_map(),
    }
}

fn own_map() -> File {
    File::open("/proc/self/pagemap").expect("page map")
}

fn put(ram: &GuestRam, page: u64, value: u8) {
    ram.memory()
        .write_obj(value, GuestAddress(page * PAGE + 7))
        .expect("in RAM");
}

fn get(ram: &GuestRam, page: u64) -> u8 {
    ram.memory()
        .read_obj(GuestAddress(page * PAGE + 7))
        .expect("in RAM")
}

fn own_pages(ram: &GuestRam) -> usize {
    let first = ram.host_address() / PAGE;
    let file = own_map();
    let entries = PageMap::trusted(&file).entries(first..first + ram.len() / PAGE);
    let entries = entries.expect("page map").into_iter();
    entries.filter(|entry| entry.is_own()).count()
}

/// Moves all that is to be moved; returns the number of pieces.
fn move_all(ram: &mut GuestRam) -> u64 {
    for pieces in 0.. {
        let Some(piece) = ram.next_piece().expect("copy") else {
            return pieces;
        };
        drop(ram.switch_piece(&piece).expect("switch"));
    }
    unreachable!("the RAM has an end")
}

#[test]
fn blocks_that_were_written_are_moved_and_others_stay() {
    let below = memory_file(BYTES);
    below.write_all_at(&[9; 100], 0).expect("layer");
    let mut ram = GuestRam::private(below, BYTES).expect("map");
    let (address, last) = (ram.host_address(), BYTES / PAGE - 1);
    put(&ram, last, 5);
    put(&ram, last - 3, 6);
    ram.begin_flatten(new_layer()).expect("begin");
    assert_eq!(ram.flatten_progress(), Some((0, BYTES)));
    assert_eq!(move_all(&mut ram), 4);
    assert_eq!(ram.flatten_progress(), None);
    assert_eq!((own_pages(&ram), ram.files().count()), (0, 2));
    assert_eq!(ram.host_address(), address);
    assert_eq!([0, last - 3, last].map(|page| get(&ram, page)), [9, 6, 5]);
    let layer = ram.files().last().expect("the new layer");
    assert_eq!(layer.metadata().expect("stat").blocks(), 16, "two pages");
    assert!(layer.write_all_at(b"x", 0).is_err(), "it is sealed");
    // The view is a private one still.
    put(&ram, last, 8);
    let mut kept = [0];
    ram.files()
        .last()
        .expect("layer")
        .read_exact_at(&mut kept, last * PAGE + 7)
        .expect("read");
    assert_eq!((get(&ram, last), kept), (8, [5]));
}

#[test]
fn what_is_written_between_copy_and_switch_is_not_lost() {
    let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
    put(&ram, 1, 1);
    put(&ram, 2, 2);
    ram.begin_flatten(new_layer()).expect("begin");
    ram.next_piece().expect("copy").expect("a piece");
    put(&ram, 2, 0);
    let piece = ram.next_piece().expect("again").expect("the same");
    put(&ram, 3, 3);
    put(&ram, 300, 4);
    drop(ram.switch_piece(&piece).expect("switch"));
    let seen = [1, 2, 3, 300].map(|page| get(&ram, page));
    assert_eq!(seen, [1, 0, 3, 4]);
    assert_eq!(
        ram.flatten_progress(),
        Some((PIECE_BYTES, BYTES - PIECE_BYTES))
    );
    // Another layer takes up what is left, and what was moved.
    ram.begin_flatten(new_layer()).expect("begin");
    put(&ram, 2, 7);
    move_all(&mut ram);
    let seen = [1, 2, 3, 300].map(|page| get(&ram, page));
    assert_eq!(seen, [1, 7, 3, 4]);
    assert_eq!(own_pages(&ram), 0);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut shared = GuestRam::shared(memory_file(PAGE), PAGE).expect("map");
    let error = shared.begin_flatten(new_layer());
    assert!(matches!(error, Err(FlattenError::Shared)), "{error:?}");
    let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
    put(&ram, 1, 7);
    let error = ram.next_piece();
    assert!(matches!(error, Err(FlattenError::NotBegun)), "{error:?}");
    let full = NewLayer {
        writable: memory_file(3),
        ..new_layer()
    };
    let error = ram.begin_flatten(full);
    assert!(matches!(error, Err(FlattenError::NotEmpty(3))), "{error:?}");
    let written = memory_file(BYTES);
    written.write_all_at(b"x", 9).expect("write");
    let written = NewLayer {
        writable: written,
        ..new_layer()
    };
    let error = ram.begin_flatten(written);
    assert!(
        matches!(error, Err(FlattenError::NotEmpty(BYTES))),
        "{error:?}"
    );
    let foreign = NewLayer {
        pagemap: File::open("/dev/null").expect("open"),
        ..new_layer()
    };
    let error = ram.begin_flatten(foreign);
    let is_foreign =
        |error: &FlattenError| matches!(error, FlattenError::PageMap(PageMapError::Foreign));
    assert!(error.as_ref().is_err_and(is_foreign), "{error:?}");
    // A directory cannot be mapped: the piece stays where it is, and the move ends.
    let folder = NewLayer {
        read_only: File::open("/proc/self/fd").expect("open"),
        ..new_layer()
    };
    ram.begin_flatten(folder).expect("begin");
    let piece = ram.next_piece().expect("copy").expect("a piece");
    ram.switch_piece(&piece).expect_err("no file");
    assert_eq!((get(&ram, 1), ram.files().count()), (7, 1));
    assert_eq!(ram.flatten_progress(), None);
}

#[test]
fn layers_do_not_pile_up() {
    let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
    let last = BYTES / PAGE - 1;
    for round in 0..6 {
        // Each block is written in turn, so that the other one could stay for ever.
        put(&ram, if round % 2 == 0 { 0 } else { last }, round + 1);
        ram.begin_flatten(new_layer()).expect("begin");
        ram.next_piece().expect("copy");
        let piece = ram.next_piece().expect("copy").expect("a piece");
        drop(ram.switch_piece(&piece).expect("switch"));
        assert!(ram.layers.count() <= LAYERS_MAX + 1, "round {round}");
        if round == 5 {
            move_all(&mut ram);
        }
    }
    assert_eq!([get(&ram, 0), get(&ram, last)], [5, 6]);
    assert_eq!(ram.layers.count(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8),
    Discard(u64),
    Begin,
    Copy,
    Switch,
    Dump,
}

fn step() -> impl Strategy<Value = Step> {
    let page = prop_oneof![0..20u64, 0..BYTES / PAGE];
    prop_oneof![
        8 => (page.clone(), 0..3u8).prop_map(|(page, value)| Step::Write(page, value)),
        2 => page.prop_map(Step::Discard),
        1 => Just(Step::Begin),
        6 => Just(Step::Copy),
        6 => Just(Step::Switch),
        1 => Just(Step::Dump),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_view_is_that_of_a_plain_memory(steps in proptest::collection::vec(step(), 1..120)) {
        let mut ram = GuestRam::private(memory_file(BYTES), BYTES).expect("map");
        let mut model = std::collections::BTreeMap::new();
        let mut piece = None;
        for step in steps {
            match step {
                Step::Write(page, value) => {
                    put(&ram, page, value);
                    model.insert(page, value);
                }
                Step::Discard(page) => {
                    // What shows then may be any older content: the guest gave it up.
                    ram.discard(page * PAGE, PAGE).expect("discard");
                    model.insert(page, get(&ram, page));
                }
                Step::Begin => {
                    piece = None;
                    ram.begin_flatten(new_layer()).expect("begin");
                }
                Step::Copy if ram.flatten_progress().is_some() => {
                    piece = ram.next_piece().expect("copy");
                }
                Step::Switch => {
                    if let Some(piece) = piece.take() {
                        drop(ram.switch_piece(&piece).expect("switch"));
                    }
                }
                Step::Dump => {
                    let out = memory_file(0);
                    ram.dump(&out, Some(&own_map())).expect("dump");
                    for (page, value) in &model {
                        let mut byte = [0];
                        out.read_exact_at(&mut byte, page * PAGE + 7).expect("read");
                        prop_assert_eq!(byte[0], *value, "dumped page {}", page);
                    }
                }
                Step::Copy => {}
            }
            for (page, value) in &model {
                prop_assert_eq!(get(&ram, *page), *value, "page {}", page);
            }
        }
    }
}
