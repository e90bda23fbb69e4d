//! What a request says of single clones: place, words of a user, ids, NICs, serial ports.

use std::borrow::Cow;

use api_types::{CloneEdit, ExtraDiskRequest, ForkRequest, NetRequest};

use crate::error::{OpError, OpResult};
use crate::host::Host;
use crate::host::describe::changed_labels;
use crate::host::run::plan::check_uuid;
use crate::inventory::{NicRow, VmRow};

/// The request as it is for clone `index`.
pub(super) fn request_for(request: &ForkRequest, index: usize) -> Cow<'_, ForkRequest> {
    let Some(edit) = request.each.get(index) else {
        return Cow::Borrowed(request);
    };
    let mut own = ForkRequest {
        names: Vec::new(),
        each: Vec::new(),
        ..request.clone()
    };
    if !edit.nets.is_empty() {
        own.nets.clone_from(&edit.nets);
    }
    if !edit.serial.is_empty() {
        own.serial.clone_from(&edit.serial);
    }
    extra_disks_at(request, index).clone_into(&mut own.extra_disks);
    Cow::Owned(own)
}

/// Extra disks of clone `index`: its own, or those of all.
pub(in crate::host) fn extra_disks_at(request: &ForkRequest, index: usize) -> &[ExtraDiskRequest] {
    let own = request.each.get(index).map(|edit| &edit.extra_disks);
    own.filter(|own| !own.is_empty())
        .unwrap_or(&request.extra_disks)
}

/// Refuses edits that fit no clones.
pub(super) fn check_edits(request: &ForkRequest) -> OpResult<()> {
    let (edits, clones) = (request.each.len(), request.names.len());
    if edits != 0 && edits != clones {
        return Err(OpError::invalid(format!(
            "each: {edits} edits were given for {clones} clones; give one for each, or none"
        )));
    }
    let uuids: Vec<_> = request
        .each
        .iter()
        .filter_map(|e| e.uuid.as_ref())
        .collect();
    let twice = |(at, uuid): (usize, &&String)| uuids[..at].contains(uuid);
    if uuids.iter().enumerate().any(twice) {
        return Err(OpError::invalid(
            "uuid: two clones have one instance UUID; give each its own",
        ));
    }
    Ok(())
}

impl Host {
    /// Sets what a request says of a clone beside its hardware.
    pub(super) fn edit_clone(
        &self,
        row: &mut VmRow,
        request: &ForkRequest,
        index: usize,
    ) -> OpResult<()> {
        let none = CloneEdit::default();
        let edit = request.each.get(index).unwrap_or(&none);
        let folder = edit.folder.as_deref().or(request.folder.as_deref());
        if let Some(folder) = folder {
            row.folder = Some(self.folder_id(Some(folder))?);
        }
        if let Some(pool) = &request.pool {
            row.pool = Some(self.pool_id(Some(pool))?);
        }
        let annotation = edit.annotation.as_deref().or(request.annotation.as_deref());
        let attributes = request.attributes.iter().chain(&edit.attributes);
        let attributes = attributes.map(|(key, value)| (key.clone(), Some(value.clone())));
        if let Some(labels) = changed_labels(&row.labels, annotation, &attributes.collect())? {
            row.labels = labels;
        }
        if let Some(uuid) = &edit.uuid {
            row.uuid = check_uuid("uuid", uuid)?;
            self.check_uuid_free(&row.uuid, None)?;
        }
        if let Some(uuid) = &edit.bios_uuid {
            row.bios_uuid = Some(check_uuid("bios_uuid", uuid)?);
        }
        Ok(())
    }

    /// Host side of a clone's NIC: what was given, or the source's network.
    pub(super) fn clone_nic(&self, source: &NicRow, net: Option<&NetRequest>) -> OpResult<NicRow> {
        let inherited = NicRow {
            // Two VMs do not share a TAP interface.
            tap: None,
            network: source.network.clone(),
            disconnected: source.disconnected,
            addresses: None,
        };
        match net {
            None => Ok(inherited),
            Some(net) if net.tap.is_none() && net.network.is_none() => Ok(NicRow {
                disconnected: net.disconnected,
                ..inherited
            }),
            Some(net) => self.nic_of(net),
        }
    }
}
