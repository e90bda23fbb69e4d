//! Manifests of machines, and machines of manifests.

use std::collections::HashMap;

use api_types::SerialRequest;
use archives::{Blob, LayerFormat as Format, Machine, Port};
use vmm_protocol::LayerFormat;

use super::subject::Subject;
use crate::inventory::{BootSource, Labels, LayerId, NicRow, VmRow};

/// Names of layers in an archive: files of users are not called by their paths.
pub(super) struct Names(HashMap<LayerId, String>);

impl Names {
    /// Names of a subject's layers.
    pub fn of_subject(subject: &Subject) -> Self {
        let names = subject.layers.iter().enumerate().map(|(index, layer)| {
            let name = match layer.row.owned {
                true => layer.row.id.clone(),
                false => format!("base-{index}"),
            };
            (layer.row.id.clone(), name)
        });
        Self(names.collect())
    }

    /// Name of the layer with this id; a stack has all of them.
    pub fn of(&self, id: &str) -> String {
        self.0.get(id).cloned().unwrap_or_default()
    }

    /// Names of the tops of a subject's disks.
    pub fn tops(&self, subject: &Subject) -> Vec<Option<String>> {
        let tops = subject.tops.iter();
        tops.map(|top| top.as_ref().map(|top| self.of(top)))
            .collect()
    }
}

/// What an archive tells of the machine. Nothing of it names a file of this host.
pub(super) fn machine_of(
    subject: &Subject,
    disks: Vec<Option<String>>,
    kernel: Blob,
    initrd: Option<Blob>,
) -> Machine {
    let row = &subject.row;
    Machine {
        name: row.name.clone(),
        engine: row.engine.clone(),
        spec: row.spec.clone(),
        image: row.boot.image.clone(),
        kernel,
        initrd,
        disks,
        serial: row.serial.iter().map(port_of).collect(),
        uuid: row.uuid.clone(),
        bios_uuid: row.bios_uuid.clone(),
        machine_id: row.machine_id.clone(),
        generation: row.generation,
        memory_limit_bytes: row.memory_limit_bytes,
        has_agent: row.has_agent,
        ssh_host_key_kinds: row.ssh_host_key_kinds.clone(),
        has_host_keys: row.has_host_keys,
        annotation: row.labels.annotation.clone(),
        attributes: row.labels.attributes.clone(),
    }
}

fn port_of(port: &SerialRequest) -> Port {
    match port {
        SerialRequest::None => Port::None,
        SerialRequest::Pty => Port::Pty,
        SerialRequest::Log | SerialRequest::File(_) | SerialRequest::Unix(_) => Port::Log,
    }
}

/// The row of an imported machine, without disks.
pub(super) fn row_of(machine: &Machine, id: String, name: String, boot: BootSource) -> VmRow {
    let serial = machine.serial.iter().map(|port| match port {
        Port::Log => SerialRequest::Log,
        Port::Pty => SerialRequest::Pty,
        Port::None => SerialRequest::None,
    });
    VmRow {
        labels: Labels {
            annotation: machine.annotation.clone(),
            attributes: machine.attributes.clone(),
        },
        // NICs are connected here by hand: a TAP of the other host says nothing.
        nics: machine
            .spec
            .nics
            .iter()
            .map(|_| NicRow::default())
            .collect(),
        serial: serial.collect(),
        uuid: machine.uuid.clone(),
        bios_uuid: machine.bios_uuid.clone(),
        machine_id: machine.machine_id.clone(),
        generation: machine.generation,
        memory_limit_bytes: machine.memory_limit_bytes,
        has_agent: machine.has_agent,
        ssh_host_key_kinds: machine.ssh_host_key_kinds.clone(),
        has_host_keys: machine.has_host_keys,
        ..VmRow::new(id, name, machine.engine.clone(), boot, machine.spec.clone())
    }
}

/// Format in the words of archives.
pub(super) fn format_of(format: LayerFormat) -> Format {
    match format {
        LayerFormat::Raw => Format::Raw,
        LayerFormat::Qcow2 => Format::Qcow2,
    }
}

/// Format in the words of the inventory.
pub(super) fn format_from(format: Format) -> LayerFormat {
    match format {
        Format::Raw => LayerFormat::Raw,
        Format::Qcow2 => LayerFormat::Qcow2,
    }
}
