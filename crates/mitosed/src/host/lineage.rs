//! Where VMs come from, and what they and their families cost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use api_types::{FamilyUse, Lineage, LineageVm};
use vmm_protocol::RamView;

use super::{Host, Vm};
use crate::inventory::{ChildRow, VmRow};
use crate::usage;

impl Host {
    /// Family of a VM, with figures of the host's memory.
    pub fn lineage(&self, vm: &Arc<Vm>) -> Lineage {
        let all = self.all();
        let rows: BTreeMap<String, VmRow> =
            all.iter().map(|vm| (vm.id.clone(), vm.row())).collect();
        let row = vm.row();
        let mut parents = Vec::new();
        let mut seen = BTreeSet::from([row.id.clone()]);
        let mut next = source_of(&row);
        while let Some((id, name)) = next.filter(|(id, _)| seen.insert(id.clone())) {
            next = rows.get(&id).and_then(source_of);
            parents.push(match all.iter().find(|vm| vm.id == id) {
                Some(vm) => self.lineage_of(vm, true),
                None => removed(id, name),
            });
        }
        let children = all.iter().filter(|vm| {
            let of = &rows.get(&vm.id).and_then(|row| row.source_id.clone());
            of.as_deref() == Some(&*row.id)
        });
        let root = root_of(&rows, &row.id);
        let family: Vec<_> = all
            .iter()
            .filter(|vm| root_of(&rows, &vm.id) == root)
            .cloned()
            .collect();
        Lineage {
            vm: self.lineage_of(vm, true),
            parents,
            children: children.map(|vm| self.lineage_of(vm, true)).collect(),
            family: self.family_use(&family),
        }
    }

    /// All VMs among their families; figures of the host's memory are costly and come where they
    /// are asked for.
    pub fn lineages(&self, memory: bool) -> Vec<LineageVm> {
        let all = self.all();
        all.iter().map(|vm| self.lineage_of(vm, memory)).collect()
    }

    fn lineage_of(&self, vm: &Vm, memory: bool) -> LineageVm {
        let (row, ram, link) = {
            let live = vm.live();
            (live.row.clone(), live.ram, live.link.is_some())
        };
        let ram = ram.filter(|_| link);
        let disk_depths = {
            let layers = self.layers();
            let depth = |top: &str| layers.chain(top).map_or(0, |chain| chain.len());
            let tops = row.disks.iter().map(|disk| disk.top.as_deref());
            tops.map(|top| top.map_or(0, depth)).collect()
        };
        let pid = row.pid.filter(|_| link);
        LineageVm {
            folder: self.shown_path(&vm.place().folder),
            state: Some(row.state.word().to_owned()),
            disk_depths,
            memory_depth: match ram {
                None => 0,
                Some(RamView::Shared) => 1,
                Some(RamView::Private) => 2,
            },
            disk_bytes: self
                .own_layers(&row)
                .iter()
                .map(|path| allocated(path))
                .sum(),
            memory: memory.then(|| {
                let mut used = pid.map_or_else(Default::default, |p| usage::memory_of(p, ram));
                used.configured_bytes = row.spec.memory_bytes;
                used
            }),
            id: row.id,
            name: row.name,
            source: row.source_id,
            source_name: row.source,
            generation: row.generation,
            persistence: row.child.as_ref().map(ChildRow::persistence),
            fork_point: row.child.map(|child| child.point),
            forks: row.stuns,
        }
    }

    /// Files of a VM's own tops.
    fn own_layers(&self, row: &VmRow) -> Vec<PathBuf> {
        let layers = self.layers();
        let tops = row
            .disks
            .iter()
            .filter_map(|disk| layers.get(disk.top.as_ref()?));
        tops.filter(|layer| layer.owned)
            .map(|layer| layer.path.clone())
            .collect()
    }

    fn family_use(&self, family: &[Arc<Vm>]) -> FamilyUse {
        let mut used = FamilyUse {
            vms: family.len(),
            ..FamilyUse::default()
        };
        let mut layers: HashMap<PathBuf, usize> = HashMap::new();
        for vm in family {
            let one = self.lineage_of(vm, true);
            used.running += usize::from(vm.state().has_process());
            let memory = one.memory.unwrap_or_default();
            used.private_kib += memory.private_kib;
            used.pss_kib += memory.pss_kib;
            let row = vm.row();
            for top in row.disks.iter().filter_map(|disk| disk.top.as_ref()) {
                let chain = self.layers().chain(top).unwrap_or_default();
                for layer in chain.into_iter().filter(|layer| layer.owned) {
                    *layers.entry(layer.path).or_default() += 1;
                }
            }
        }
        for (path, users) in layers {
            let bytes = allocated(&path);
            used.disk_bytes += bytes;
            if users > 1 {
                used.shared_disk_bytes += bytes;
            }
        }
        used
    }
}

/// Id and name of the VM that a VM was cloned from.
fn source_of(row: &VmRow) -> Option<(String, String)> {
    let id = row.source_id.clone()?;
    let name = row.source.clone().unwrap_or_else(|| id.clone());
    Some((id, name))
}

/// A VM that is only known as the source of others.
fn removed(id: String, name: String) -> LineageVm {
    LineageVm {
        id,
        name,
        folder: "/".to_owned(),
        state: None,
        source: None,
        source_name: None,
        generation: 0,
        fork_point: None,
        persistence: None,
        disk_depths: Vec::new(),
        memory_depth: 0,
        disk_bytes: 0,
        memory: None,
        forks: Vec::new(),
    }
}

/// Id of the first VM that a VM comes from, as far as is known.
fn root_of(rows: &BTreeMap<String, VmRow>, id: &str) -> String {
    let mut root = id.to_owned();
    let mut seen = BTreeSet::new();
    while seen.insert(root.clone()) {
        match rows.get(&root).and_then(|row| row.source_id.clone()) {
            Some(source) => root = source,
            None => break,
        }
    }
    root
}

fn allocated(path: &std::path::Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.blocks() * 512)
}
