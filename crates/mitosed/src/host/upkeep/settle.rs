//! Putting tops on other layers in the record, also after a daemon died in a merge.

use std::fs::File;

use disk_layers::inspect_as;

use crate::error::OpResult;
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, NewEvent};
use crate::layers::{backing_name, disk_format};

/// Name of a merged layer: whose it is, which disk, and a number of the VM's.
pub(super) fn name_of_merged(vm: &str, disk: usize, number: u32) -> String {
    format!("{vm}-{disk}-m{number}")
}

impl Host {
    /// Records, durably, that `top` stands on `parent`, and removes layers that nobody uses any
    /// more.
    pub(super) fn put_on(&self, top: &str, parent: &str, told: Option<NewEvent>) -> OpResult<()> {
        let Some((changed, old)) = self.layers().put_on(top, parent) else {
            return Ok(());
        };
        let changes = Changes {
            layers: vec![changed],
            events: told.into_iter().collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        self.inventory
            .sync()
            .map_err(|error| crate::error::OpError::caused(api_types::ErrorKind::Failed, error))?;
        // Only now: whoever else lets go of them removes them, and no record may name them then.
        self.drop_layers(old.as_slice());
        Ok(())
    }

    /// After the death of a daemon: a top may stand on a merged layer while the record says
    /// otherwise. What the file says is true. Called before layers that nobody uses are removed.
    pub(in crate::host) fn settle_merges(&self) {
        self.all().iter().for_each(|vm| self.settle_merges_of(vm));
    }

    /// The same for one VM.
    pub(in crate::host) fn settle_merges_of(&self, vm: &Vm) {
        let row = vm.row();
        for (disk, of) in row.disks.iter().enumerate() {
            let Some(top) = &of.top else { continue };
            let found = self.merged_below(vm, disk, top);
            let Some(merged) = found else { continue };
            let message = format!("disk {disk}: a merge that the daemon's end interrupted is done");
            let told = vm_event(vm, "disk.merged", message);
            if let Err(error) = self.put_on(top, &merged, Some(told)) {
                tracing::error!("{}", error.message());
            }
        }
    }

    /// The merged layer that a top's header names while its row names another.
    fn merged_below(&self, vm: &Vm, disk: usize, top: &str) -> Option<String> {
        let layers = self.layers();
        let top = layers.get(top)?;
        let parent = top.parent.as_deref()?;
        let prefix = name_of_merged(&vm.id, disk, 0);
        let prefix = prefix.trim_end_matches('0');
        let mut unrecorded = layers
            .rows()
            .filter(|layer| layer.id.starts_with(prefix) && layer.id != parent)
            .peekable();
        unrecorded.peek()?;
        let file = File::open(&top.path).ok()?;
        let header = inspect_as(&file, disk_format(top.format)).ok()?;
        let named = header.backing?.name;
        unrecorded
            .find(|layer| backing_name(&top.path, &layer.path) == named)
            .map(|layer| layer.id.clone())
    }
}
