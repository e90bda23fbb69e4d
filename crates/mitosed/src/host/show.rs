//! Answers about VMs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use api_types::{
    DiskDetail, DiskUse, GuestInfo, NicDetail, SerialDetail, Vm as VmAnswer, VmDetail,
};

use super::describe::pool_of;
use super::vm::Place;
use super::{Host, Vm};
use crate::inventory::{ChildRow, DiskRow, VmRow};
use crate::usage;

impl Host {
    /// A VM as `ls` shows it.
    pub fn show(&self, vm: &Vm) -> VmAnswer {
        let live = vm.live();
        answer(&live.row, live.ready_at_ns.is_some())
    }

    /// A VM as `info` shows it.
    pub fn detail(&self, vm: &Vm) -> VmDetail {
        let (row, ready, ram, link) = {
            let live = vm.live();
            (
                live.row.clone(),
                live.ready_at_ns.is_some(),
                live.ram,
                live.link.clone(),
            )
        };
        let pid = row.pid.filter(|_| link.is_some());
        let mut memory = pid.map_or_else(Default::default, |pid| usage::memory_of(pid, ram));
        memory.configured_bytes = row.spec.memory_bytes;
        memory.limit_kib = self.limit_of(&row, ram).map(|bytes| bytes >> 10);
        VmDetail {
            vm: answer(&row, ready),
            uuid: row.uuid.clone(),
            machine_id: row.machine_id.clone(),
            datastore: row.datastore.clone(),
            pool: pool_of(&row.pool).to_owned(),
            reason: row.reason.clone(),
            image: row.boot.image.clone(),
            kernel: row.boot.kernel.display().to_string(),
            cmdline: row.spec.cmdline.clone(),
            pid,
            uid: row.uid,
            created_at_ms: row.created_at_ms,
            memory,
            disk: self.disk_use(&row),
            disks: self.disk_details(&row),
            nics: row
                .spec
                .nics
                .iter()
                .zip(&row.nics)
                .map(|(spec, nic)| NicDetail {
                    mac: spec.mac,
                    tap: nic.tap.clone(),
                    network: nic.network.clone(),
                    connected: nic.has_tap() && !nic.disconnected,
                    address: nic.addresses.as_ref().map(|given| given.address.clone()),
                })
                .collect(),
            stuns: row.stuns.clone(),
            guest: row.guest.clone(),
            guestinfo: GuestInfo(row.guestinfo.clone()),
            vsock: self.config.home.vm_vsock(&row.id).display().to_string(),
            serial: self.serial_path(&row, 0).map(|p| p.display().to_string()),
            serial_ports: (0..row.serial.len())
                .map(|port| self.serial_detail(&row, port))
                .collect(),
        }
    }

    fn serial_detail(&self, row: &VmRow, port: usize) -> SerialDetail {
        let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        SerialDetail {
            port: format!("COM{}", port + 1),
            backend: row.serial[port].clone(),
            log: text(self.serial_path(row, port)),
            path: text(self.serial_peer_path(row, port)),
        }
    }

    fn disk_use(&self, row: &VmRow) -> DiskUse {
        let layers = self.layers();
        let delta_bytes = row
            .disks
            .iter()
            .filter_map(|disk| layers.get(disk.top.as_ref()?))
            .filter(|layer| layer.owned)
            .filter_map(|layer| fs::metadata(&layer.path).ok())
            .map(|file| file.blocks() * 512)
            .sum();
        DiskUse { delta_bytes }
    }

    fn disk_details(&self, row: &VmRow) -> Vec<DiskDetail> {
        let layers = self.layers();
        let layer_of = |disk: &DiskRow| layers.get(disk.top.as_ref()?);
        row.disks
            .iter()
            .zip(&row.spec.disks)
            .map(|(disk, spec)| DiskDetail {
                serial: spec.serial.clone(),
                read_only: spec.read_only,
                size_bytes: layer_of(disk).map_or(0, |layer| layer.size_bytes),
                layers: layer_of(disk)
                    .and_then(|top| layers.chain(&top.id).ok())
                    .unwrap_or_default()
                    .iter()
                    .map(|layer| layer.path.display().to_string())
                    .collect(),
            })
            .collect()
    }
}

fn answer(row: &VmRow, ready: bool) -> VmAnswer {
    VmAnswer {
        id: row.id.clone(),
        name: row.name.clone(),
        state: row.state.word().to_owned(),
        engine: row.engine.clone(),
        cpus: row.spec.cpus,
        memory_bytes: row.spec.memory_bytes,
        source: row.source.clone(),
        generation: row.generation,
        fork_point: row.child.as_ref().map(|child| child.point.clone()),
        persistence: row.child.as_ref().map(ChildRow::persistence),
        ready,
        template: row.template,
        folder: Place::of(row).folder.to_string(),
        version: row.version,
        annotation: row.labels.annotation.clone(),
        attributes: row.labels.attributes.clone(),
    }
}
