//! VMs by id, and by name and folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::vm::{Place, Vm};

/// All VMs.
#[derive(Debug, Default)]
pub(super) struct Listing {
    by_id: BTreeMap<String, Arc<Vm>>,
    /// Ordered by name, then by folder.
    by_place: BTreeMap<Place, Arc<Vm>>,
}

impl Listing {
    /// Puts new VMs in their places, all or none; returns one whose place is taken.
    pub fn insert(&mut self, new: &[Arc<Vm>]) -> Result<(), Arc<Vm>> {
        if let Some(taken) = new
            .iter()
            .find(|vm| self.by_place.contains_key(&vm.place()))
        {
            return Err(Arc::clone(taken));
        }
        for vm in new {
            self.by_id.insert(vm.id.clone(), Arc::clone(vm));
            self.by_place.insert(vm.place(), Arc::clone(vm));
        }
        Ok(())
    }

    /// Takes a VM out.
    pub fn remove(&mut self, vm: &Vm) {
        self.by_id.remove(&vm.id);
        self.by_place.retain(|_, listed| listed.id != vm.id);
    }

    /// Gives a VM another place; says whether that was free.
    pub fn shift(&mut self, vm: &Arc<Vm>, place: Place) -> bool {
        if self
            .by_place
            .get(&place)
            .is_some_and(|there| there.id != vm.id)
        {
            return false;
        }
        self.by_place.remove(&vm.place());
        vm.set_place(place.clone());
        self.by_place.insert(place, Arc::clone(vm));
        true
    }

    /// The VM of an id.
    pub fn get(&self, id: &str) -> Option<&Arc<Vm>> {
        self.by_id.get(id)
    }

    /// VMs of a name, in all folders.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Vm>> {
        let first = Place {
            name: name.into(),
            folder: "".into(),
        };
        self.by_place
            .range(first..)
            .take_while(move |(place, _)| &*place.name == name)
            .map(|(_, vm)| vm)
    }

    /// All VMs, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.by_place.values()
    }
}
