//! Whether a machine can be brought to life, as far as files and the host tell: asked before the one
//! that runs is ended for it.

use std::io::Read;
use std::path::Path;

use api_types::SerialRequest;

use super::Host;
use super::backends::{is_dead_socket, open_given};
use super::check::Problems;
use crate::error::{OpError, OpResult};
use crate::inventory::{
    LayerId, MemoryFiles, Network, NicRow, Object, Snapshot, SnapshotMemory, VmRow,
};
use crate::layers::open_layer;

impl Host {
    /// Refuses to boot a VM, or to return it to its fork point, without what that needs.
    pub(super) fn check_boots(&self, row: &VmRow) -> OpResult<()> {
        self.check_stores_of(row)?;
        if row.returns_to_point() {
            let point = self.point_of(row)?;
            self.open_point(&point)?;
            return self.check_layers(point.doc.tops.iter().flatten());
        }
        self.open_engine(&row.engine)?;
        open_given("kernel", &row.boot.kernel)?;
        if let Some(initrd) = &row.boot.initrd {
            open_given("initrd", initrd)?;
        }
        self.check_layers(row.disks.iter().filter_map(|disk| disk.top.as_ref()))
    }

    /// Refuses to return to a snapshot whose files are gone or damaged.
    pub(super) fn check_snapshot_files(&self, snapshot: &Object<Snapshot>) -> OpResult<()> {
        self.check_layers(snapshot.doc.tops.iter().flatten())?;
        match &snapshot.doc.memory {
            SnapshotMemory::Files(files) => {
                check_memory_files(files, snapshot.doc.row.spec.memory_bytes).map_err(|found| {
                    OpError::failed(format!(
                        "snapshot {:?}: its memory cannot be loaded: {found}; revert to another \
                         snapshot, or clone its disks with --mode linked",
                        snapshot.name
                    ))
                })
            }
            _ => Ok(()),
        }
    }

    /// Notes all that the host does not have and the machine `row` goes on with, beside files of the
    /// datastores. What the process of that VM has, whose row is `present`, is free by then.
    pub(super) fn check_host_side(&self, present: &VmRow, row: &VmRow, problems: &mut Problems) {
        problems.take(self.open_engine(&row.engine));
        for index in 0..row.nics.len() {
            problems.take(self.check_nic(present, row, index));
        }
        for port in &row.serial {
            problems.take(self.check_port(present, port));
        }
    }

    fn check_nic(&self, present: &VmRow, row: &VmRow, index: usize) -> OpResult<()> {
        let nic = &row.nics[index];
        if let Some(tap) = &nic.tap {
            let has = |nic: &NicRow| nic.tap.as_ref() == Some(tap);
            if present.state.has_process() && present.nics.iter().any(has) {
                return Ok(());
            }
            // Nobody has it where it can be opened.
            return self.open_nic(row, index).map(drop);
        }
        let Some(id) = &nic.network else {
            return Ok(());
        };
        let network = self.object::<Network>(id).map_err(|_| {
            OpError::conflict(format!(
                "network: NIC {index} was on {id}, which was removed; clone that snapshot with \
                 '--net NETWORK', or take another one"
            ))
        })?;
        match &network.doc.bridge {
            // One of its own is made where it is needed.
            Some(bridge) if !network.doc.isolated => self.check_bridge(bridge),
            _ => Ok(()),
        }
    }

    /// Refuses a back end of a serial port that could not be opened.
    fn check_port(&self, present: &VmRow, port: &SerialRequest) -> OpResult<()> {
        let (SerialRequest::File(path) | SerialRequest::Unix(path)) = port else {
            return Ok(());
        };
        if present.serial.contains(port) {
            return Ok(());
        }
        let refuse = |what: &str| OpError::conflict(format!("serial: {} {what}", path.display()));
        if !path.parent().is_some_and(Path::is_dir) {
            return Err(refuse("is in no directory; make that"));
        }
        let listed = self.all();
        let user = listed.iter().find(|vm| {
            let row = &vm.live().row;
            row.id != present.id && row.serial.contains(port)
        });
        if let Some(user) = user {
            let what = format!("belongs to the VM {}; give that another path", user.name());
            return Err(refuse(&what));
        }
        let Ok(there) = std::fs::symlink_metadata(path) else {
            return Ok(());
        };
        match port {
            SerialRequest::File(_) if !there.is_file() => {
                Err(refuse("is no plain file; put it out of the way"))
            }
            SerialRequest::Unix(_) if !is_dead_socket(path) => {
                Err(refuse("is there already; put it out of the way"))
            }
            _ => Ok(()),
        }
    }

    fn check_layers<'a>(&self, tops: impl Iterator<Item = &'a LayerId>) -> OpResult<()> {
        for top in tops {
            let chain = self.layers().chain(top)?;
            for layer in chain {
                open_layer(&layer, false)?;
            }
        }
        Ok(())
    }
}

/// Says what is wrong with RAM and checkpoint of a machine of `memory_bytes`.
fn check_memory_files(files: &MemoryFiles, memory_bytes: u64) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let ram = std::fs::metadata(&files.ram).map_err(|error| failed(&files.ram, error))?;
    if ram.len() != memory_bytes {
        return Err(format!(
            "{} has {} bytes, not the {memory_bytes} of the machine",
            files.ram.display(),
            ram.len()
        ));
    }
    let path = &files.checkpoint;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(saved_state::MAX_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| failed(path, error))?;
    saved_state::check(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}
