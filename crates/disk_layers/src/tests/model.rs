//! Random histories of a tree of disks against plain byte vectors.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::mem::MemFile;
use super::qemu::{assert_clean, guest_bytes};
use super::{cases, judged_cases};
use crate::layer::DiskFormat;
use crate::merge::merge_storages;
use crate::pace::Pace;
use crate::qcow2::create::create;
use crate::stack::{DiskStack, PreparedBelow, PreparedTop, StackOptions};
use crate::storage::Storage;

/// Disk size of the histories: not a multiple of any cluster.
const SIZE: u64 = 700 * 1024 + 512 * 3;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        length: u64,
        seed: u8,
    },
    Zero {
        at: u64,
        length: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        length: u64,
    },
    Flush,
    Sync,
    Read {
        at: u64,
        length: u64,
    },
    /// A clone appears; the source goes on with a new top.
    Fork,
    /// A fork that fails after the swap.
    ForkUndone,
    /// Some layers right below the top become one.
    Merge {
        count: usize,
    },
    /// Closed and opened again after a flush.
    Reopen,
    Drop,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let aligned = (0..SIZE / 512, 1..200u64).prop_map(|(at, n)| (at * 512, n * 512));
    let odd = (0..SIZE, 1..9000u64);
    let wide = (0..SIZE, 1..SIZE);
    prop_oneof![4 => aligned, 2 => odd, 1 => wide]
        .prop_map(|(at, length)| (at, length.min(SIZE - at)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (range(), 1..=255u8).prop_map(|((at, length), seed)| Step::Write { at, length, seed }),
        3 => (range(), any::<bool>()).prop_map(|((at, length), unmap)| Step::Zero { at, length, unmap }),
        3 => range().prop_map(|(at, length)| Step::Discard { at, length }),
        2 => Just(Step::Flush),
        2 => Just(Step::Sync),
        4 => range().prop_map(|(at, length)| Step::Read { at, length }),
        3 => Just(Step::Fork),
        1 => Just(Step::ForkUndone),
        3 => (1..8usize).prop_map(|count| Step::Merge { count }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Drop),
    ]
}

/// Where the files of a history live.
trait Files {
    fn create(&self, name: &str) -> Box<dyn Storage>;
    fn open(&self, name: &str) -> Box<dyn Storage>;
}

#[derive(Default)]
struct InMemory(std::cell::RefCell<std::collections::HashMap<String, MemFile>>);

impl Files for InMemory {
    fn create(&self, name: &str) -> Box<dyn Storage> {
        let file = MemFile::default();
        self.0.borrow_mut().insert(name.to_owned(), file.clone());
        file.boxed()
    }
    fn open(&self, name: &str) -> Box<dyn Storage> {
        self.0.borrow()[name].boxed()
    }
}

struct OnDisk<'a>(&'a Path);

impl Files for OnDisk<'_> {
    fn create(&self, name: &str) -> Box<dyn Storage> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Box::new(options.open(self.0.join(name)).expect("create a layer"))
    }
    fn open(&self, name: &str) -> Box<dyn Storage> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Box::new(options.open(self.0.join(name)).expect("open a layer"))
    }
}

struct Disk {
    stack: DiskStack,
    model: Vec<u8>,
    /// Top first.
    chain: Vec<String>,
}

struct World<'a> {
    files: &'a dyn Files,
    cluster_bits: u32,
    made: usize,
    disks: Vec<Disk>,
}

impl<'a> World<'a> {
    fn new(files: &'a dyn Files, cluster_bits: u32) -> Self {
        let mut world = World {
            files,
            cluster_bits,
            made: 0,
            disks: Vec::new(),
        };
        let name = world.layer(None);
        let stack = world.open(std::slice::from_ref(&name));
        world.disks.push(Disk {
            stack,
            model: vec![0; SIZE as usize],
            chain: vec![name],
        });
        world
    }

    fn layer(&mut self, below: Option<&str>) -> String {
        let name = format!("layer{}.qcow2", self.made);
        self.made += 1;
        let file = self.files.create(&name);
        let below = below.map(|name| (name, DiskFormat::Qcow2));
        create(file.as_ref(), SIZE, below, self.cluster_bits).expect("create");
        name
    }

    fn open(&self, chain: &[String]) -> DiskStack {
        let files = chain
            .iter()
            .map(|name| (self.files.open(name), DiskFormat::Qcow2))
            .collect();
        let options = StackOptions {
            // Few slices, so that histories reach eviction and forced commits.
            cache_bytes: 16 * 4096,
            ..StackOptions::default()
        };
        DiskStack::open_storages(files, options).expect("open")
    }

    fn fork(&mut self, at: usize, undo: bool) {
        let chain = self.disks[at].chain.clone();
        self.disks[at].stack.flush().expect("flush");
        let name = self.layer(Some(&chain[0]));
        let top =
            PreparedTop::open_storage(self.files.open(&name), DiskFormat::Qcow2).expect("top");
        self.disks[at].stack.push_top(top).expect("push");
        if undo {
            self.disks[at].stack.pop_top().expect("pop");
            return;
        }
        self.disks[at].chain.insert(0, name);
        let mut clone = vec![self.layer(Some(&chain[0]))];
        clone.extend(chain);
        self.disks.push(Disk {
            stack: self.open(&clone),
            model: self.disks[at].model.clone(),
            chain: clone,
        });
    }

    /// Merges up to `count` layers below the top; the lowest of the chain stays.
    fn merge(&mut self, at: usize, count: usize) {
        let chain = self.disks[at].chain.clone();
        let Some(most) = chain.len().checked_sub(2).filter(|most| *most > 0) else {
            return;
        };
        let (run, rest) = chain[1..].split_at(count.min(most));
        let name = format!("layer{}.qcow2", self.made);
        self.made += 1;
        let files = |names: &[String]| {
            let open = |name: &String| (self.files.open(name), DiskFormat::Qcow2);
            names.iter().map(open).collect::<Vec<_>>()
        };
        let mut go_on = |_| ControlFlow::Continue(());
        merge_storages(
            files(run),
            self.files.create(&name),
            (&rest[0], DiskFormat::Qcow2),
            &mut Pace::free(&mut go_on),
        )
        .expect("merge");
        let below = [std::slice::from_ref(&name), rest].concat();
        let prepared = PreparedBelow::open_storages(files(&below)).expect("prepare");
        let disk = &mut self.disks[at];
        disk.stack.replace_below(prepared, &name).expect("replace");
        disk.chain.splice(1.., below);
        assert_eq!(disk.stack.depth(), disk.chain.len());
    }

    fn run(&mut self, which: usize, step: &Step) {
        let at = which % self.disks.len();
        let may_fork = self.disks.len() < 6 && self.disks[at].chain.len() < 10;
        let disk = &mut self.disks[at];
        match *step {
            Step::Write { at, length, seed } => {
                let data: Vec<u8> = (0..length)
                    .map(|i| (at + i).wrapping_mul(31).to_le_bytes()[0] ^ seed)
                    .collect();
                disk.stack.write_at(at, &data).expect("write");
                disk.model[at as usize..(at + length) as usize].copy_from_slice(&data);
            }
            Step::Zero { at, length, unmap } => {
                disk.stack.write_zeroes(at, length, unmap).expect("zero");
                disk.model[at as usize..(at + length) as usize].fill(0);
            }
            Step::Discard { at, length } => {
                disk.stack.discard(at, length).expect("discard");
                let unit = disk.stack.discard_granularity();
                let first = at.next_multiple_of(unit);
                let last = match at + length {
                    SIZE => SIZE,
                    end => end / unit * unit,
                };
                if first < last {
                    disk.model[first as usize..last as usize].fill(0);
                }
            }
            Step::Flush => disk.stack.flush().expect("flush"),
            Step::Sync => disk.stack.sync().expect("sync"),
            Step::Read { at, length } => {
                let mut buf = vec![0xee; length as usize];
                disk.stack.read_at(at, &mut buf).expect("read");
                assert!(
                    buf == disk.model[at as usize..(at + length) as usize],
                    "read of {length} at {at} differs"
                );
            }
            Step::Fork if may_fork => self.fork(at, false),
            Step::ForkUndone => self.fork(at, true),
            Step::Fork => {}
            Step::Merge { count } => self.merge(at, count),
            Step::Reopen => {
                disk.stack.flush().expect("flush");
                let chain = disk.chain.clone();
                self.disks[at].stack = self.open(&chain);
            }
            Step::Drop => {
                if self.disks.len() > 1 {
                    self.disks.swap_remove(at);
                }
            }
        }
    }

    fn verify(&mut self) {
        for disk in &mut self.disks {
            let mut buf = vec![0xee; SIZE as usize];
            disk.stack.read_at(0, &mut buf).expect("read");
            assert!(buf == disk.model, "disk {:?} differs", disk.chain);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(128), ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_like_plain_vectors(
        bits in prop_oneof![Just(9u32), Just(12), Just(14), Just(16)],
        steps in prop::collection::vec((0..8usize, step()), 1..60),
    ) {
        let files = InMemory::default();
        let mut world = World::new(&files, bits);
        for (which, step) in &steps {
            world.run(*which, step);
        }
        world.verify();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: judged_cases(24), ..ProptestConfig::default() })]

    #[test]
    fn qemu_agrees_with_any_history(
        bits in prop_oneof![Just(9u32), Just(12), Just(16)],
        sync_last in any::<bool>(),
        steps in prop::collection::vec((0..8usize, step()), 1..40),
    ) {
        let dir = TempDir::new().expect("temp dir");
        let files = OnDisk(dir.path());
        let mut world = World::new(&files, bits);
        for (which, step) in &steps {
            world.run(*which, step);
        }
        world.verify();
        for disk in &mut world.disks {
            if sync_last {
                disk.stack.sync().expect("sync");
            } else {
                disk.stack.flush().expect("flush");
            }
        }
        for disk in &world.disks {
            for name in &disk.chain {
                assert_clean(dir.path(), name);
            }
            prop_assert!(guest_bytes(dir.path(), &disk.chain[0]) == disk.model);
        }
    }
}
