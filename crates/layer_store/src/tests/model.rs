//! Random lives of a store against a plain map of parents.

use std::collections::{HashMap, HashSet};
use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::{Access, LayerId, LayerStore};

#[derive(Clone, Debug)]
enum Step {
    Import,
    /// One delta on a live layer, the layer staying live or not (a fork covers it).
    Create {
        on: usize,
        keep: bool,
    },
    Batch {
        on: usize,
        count: usize,
    },
    Drop(usize),
    Collect,
    /// A crash: half-made files are left, and the store is opened again.
    Crash {
        junk: usize,
    },
    /// The process dies between the removals of a collection.
    CrashInCollect {
        after: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Import),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(on, keep)| Step::Create { on, keep }),
        2 => (any::<usize>(), 0..4usize).prop_map(|(on, count)| Step::Batch { on, count }),
        4 => any::<usize>().prop_map(Step::Drop),
        2 => Just(Step::Collect),
        1 => (0..4usize).prop_map(|junk| Step::Crash { junk }),
        1 => (0..4usize).prop_map(|after| Step::CrashInCollect { after }),
    ]
}

struct World {
    dir: TempDir,
    store: LayerStore,
    /// Every layer ever made, with the one below it.
    below: HashMap<LayerId, Option<LayerId>>,
    live: Vec<LayerId>,
}

impl World {
    fn new() -> World {
        let dir = TempDir::new().expect("temp dir");
        let store = LayerStore::open(dir.path()).expect("store");
        World {
            dir,
            store,
            below: HashMap::new(),
            live: Vec::new(),
        }
    }

    fn chain(&self, id: LayerId) -> Vec<LayerId> {
        std::iter::successors(Some(id), |id| self.below[id]).collect()
    }

    fn needed(&self) -> HashSet<LayerId> {
        self.live.iter().flat_map(|id| self.chain(*id)).collect()
    }

    fn live_set(&self) -> HashSet<LayerId> {
        self.live.iter().copied().collect()
    }

    fn pick(&self, at: usize) -> Option<LayerId> {
        let at = at.checked_rem(self.live.len())?;
        Some(self.live[at]).filter(|id| self.chain(*id).len() < 20)
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Import => {
                let id = LayerId::random();
                self.store.create_empty(id, 1 << 20).expect("import");
                self.below.insert(id, None);
                self.live.push(id);
            }
            Step::Create { on, keep } => {
                let Some(below) = self.pick(on) else { return };
                let id = LayerId::random();
                self.store.create_delta(id, below).expect("delta");
                self.below.insert(id, Some(below));
                self.live.push(id);
                if !keep {
                    self.live.retain(|live| *live != below);
                }
            }
            Step::Batch { on, count } => {
                let Some(below) = self.pick(on) else { return };
                let ids: Vec<_> = (0..count).map(|_| LayerId::random()).collect();
                let made = self.store.create_deltas(&ids, below).expect("batch");
                assert_eq!(made.len(), count);
                self.below.extend(ids.iter().map(|id| (*id, Some(below))));
                self.live.extend(ids);
            }
            Step::Drop(at) => {
                if let Some(at) = at.checked_rem(self.live.len()) {
                    self.live.swap_remove(at);
                }
            }
            Step::Collect => self.collect(),
            Step::Crash { junk } => {
                for at in 0..junk {
                    let id = LayerId::random();
                    let name = match at % 3 {
                        0 => id.temporary_name(),
                        1 => id.file_name(),
                        _ => "notes.txt".to_owned(),
                    };
                    fs::write(self.dir.path().join("layers").join(name), "QF").expect("junk");
                }
                self.store = LayerStore::open(self.dir.path()).expect("store");
                self.collect();
            }
            Step::CrashInCollect { after } => {
                let needed = self.needed();
                let mut dead = self.store.list().expect("list");
                dead.retain(|id| !needed.contains(id));
                for id in dead.into_iter().take(after) {
                    fs::remove_file(self.store.layer_path(id)).expect("remove");
                }
                self.store = LayerStore::open(self.dir.path()).expect("store");
                self.collect();
            }
        }
    }

    /// Exactly what is needed remains.
    fn collect(&self) {
        let survey = self.store.survey().expect("survey");
        let before = self.store.list().expect("list").len();
        let mut live = self.live_set();
        // Recorded, but never made.
        live.insert(LayerId::random());
        let done = self.store.collect(survey, &live).expect("collect");
        let left: HashSet<_> = self.store.list().expect("list").into_iter().collect();
        assert_eq!(left, self.needed());
        assert_eq!(done.removed.len(), before - left.len());
    }

    fn verify(&self) {
        for &id in &self.live {
            let chain = self.store.open_chain(id, Access::ReadOnly).expect("chain");
            let ids: Vec<_> = chain.iter().map(|found| found.id).collect();
            assert_eq!(ids, self.chain(id));
            assert_eq!(self.store.parents(id).expect("parents"), ids[1..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_needed_stays_and_all_else_goes(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new();
        world.run(&Step::Import);
        for step in &steps {
            world.run(step);
            world.verify();
        }
        world.collect();
        world.verify();
    }
}
