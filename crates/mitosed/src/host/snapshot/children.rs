//! The tree of a VM's snapshots.

use std::collections::BTreeSet;

use crate::inventory::{Object, ObjectId, Snapshot};

/// Ids of a snapshot and of all below it. A loop, which nothing makes, ends the walk.
pub(super) fn subtree(all: &[Object<Snapshot>], root: &str) -> BTreeSet<ObjectId> {
    let mut found = BTreeSet::from([root.to_owned()]);
    loop {
        let below = all
            .iter()
            .filter(|s| {
                s.doc
                    .tree_parent
                    .as_ref()
                    .is_some_and(|p| found.contains(p))
            })
            .map(|s| s.id.clone())
            .collect::<Vec<_>>();
        let before = found.len();
        found.extend(below);
        if found.len() == before {
            return found;
        }
    }
}

/// The nearest snapshot above `from`, itself included, that stays when `gone` go.
pub(super) fn nearest_left(
    all: &[Object<Snapshot>],
    gone: &BTreeSet<ObjectId>,
    from: Option<ObjectId>,
) -> Option<ObjectId> {
    let mut next = from;
    for _ in 0..=all.len() {
        match &next {
            Some(id) if gone.contains(id) => {
                next = all
                    .iter()
                    .find(|s| s.id == *id)
                    .and_then(|s| s.doc.tree_parent.clone());
            }
            _ => return next,
        }
    }
    None
}
