//! What makes a VM different from its siblings: addresses, ids, keys, and the message that tells
//! the guest's agent.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_protocol::{Identity, IdentityKind, NicIdentity, SshHostKey, ToGuest};
use api_types::SerialRequest;
use vm_spec::MacAddr;

use super::{Host, Vm};
use crate::clock::hex;
use crate::error::{OpError, OpResult};
use crate::inventory::VmRow;

/// Prefix of the addresses that are made here: locally administered, and known as a VM's.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

impl Host {
    /// All hardware addresses of the inventory.
    pub(super) fn macs_in_use(&self) -> HashSet<MacAddr> {
        self.all()
            .iter()
            .flat_map(|vm| {
                let live = vm.live();
                live.row
                    .spec
                    .nics
                    .iter()
                    .map(|nic| nic.mac)
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Refuses VMs, listed or to be, whose UUID, hardware address, or file or socket of a serial port
/// another VM has; the list of VMs is held. Hardware addresses that clones keep on purpose may be
/// those of others.
pub(super) fn check_own_among<'a>(
    listed: impl Iterator<Item = &'a Arc<Vm>>,
    rows: &[VmRow],
) -> OpResult<()> {
    let mut uuids: HashMap<&str, &str> = HashMap::new();
    let mut macs: HashMap<MacAddr, usize> = HashMap::new();
    for row in rows {
        if let Some(other) = uuids.insert(&row.uuid, &row.name) {
            return Err(uuid_taken(&row.uuid, other));
        }
        let nics = row.spec.nics.iter().enumerate();
        macs.extend(
            nics.filter(|(_, nic)| !nic.keep_mac)
                .map(|(i, nic)| (nic.mac, i)),
        );
    }
    let ports: Vec<&SerialRequest> = rows.iter().flat_map(|row| &row.serial).collect();
    let own: HashSet<&str> = rows.iter().map(|row| &*row.id).collect();
    for vm in listed {
        let live = vm.live();
        let there = &live.row;
        if own.contains(&*there.id) {
            continue;
        }
        if uuids.contains_key(&*there.uuid) {
            return Err(uuid_taken(&there.uuid, &there.name));
        }
        let nics = &mut there.spec.nics.iter();
        if let Some((mac, index)) = nics.find_map(|nic| macs.get_key_value(&nic.mac)) {
            return Err(mac_taken(*mac).about(&format!("nets[{index}].mac")));
        }
        check_ports(there, &ports)?;
    }
    Ok(())
}

/// The first of the ports' files and sockets that the VM of the row has: no other may have it.
pub(super) fn port_of<'p>(
    there: &VmRow,
    ports: impl IntoIterator<Item = &'p SerialRequest>,
) -> Option<&'p Path> {
    ports.into_iter().find_map(|port| match port {
        SerialRequest::File(path) | SerialRequest::Unix(path) if there.serial.contains(port) => {
            Some(path.as_path())
        }
        _ => None,
    })
}

/// Refuses files and sockets of serial ports that the VM of the row has.
pub(super) fn check_ports(there: &VmRow, ports: &[&SerialRequest]) -> OpResult<()> {
    match port_of(there, ports.iter().copied()) {
        Some(path) => Err(OpError::conflict(format!(
            "serial: {} belongs to the VM {}; give another path",
            path.display(),
            there.name
        ))),
        None => Ok(()),
    }
}

/// The refusal of an instance UUID that a VM has.
pub(super) fn uuid_taken(uuid: &str, owner: &str) -> OpError {
    OpError::conflict(format!(
        "uuid: {uuid} belongs to {owner}; leave it out for a new one"
    ))
}

/// The refusal of a hardware address that a NIC has.
pub(super) fn mac_taken(mac: MacAddr) -> OpError {
    OpError::conflict(format!(
        "mac: {mac} belongs to another NIC; leave it out for a new one"
    ))
}

/// Makes an address that is not in `used`, and puts it there.
pub(super) fn new_mac(used: &mut HashSet<MacAddr>) -> MacAddr {
    loop {
        let [a, b, c] = rand::random::<[u8; 3]>();
        let [x, y, z] = MAC_PREFIX;
        let mac = MacAddr::local([x, y, z, a, b, c]);
        if used.insert(mac) {
            return mac;
        }
    }
}

/// The agent's identity message for a VM that boots, or that is a clone of a fork point.
pub(super) fn identity_message(row: &VmRow, kind: IdentityKind, keys: Vec<SshHostKey>) -> String {
    // The VM process puts the time of delivery in its place; this one is for processes that do not.
    // A message for a guest that boots may wait for long.
    let wall_clock_unix_ns = match kind {
        IdentityKind::Boot => 0,
        IdentityKind::Clone => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64),
    };
    let nics = (0..)
        .zip(&row.spec.nics)
        .map(|(index, nic)| {
            let given = row.nics.get(index as usize);
            let given = given.and_then(|nic| nic.addresses.as_ref());
            NicIdentity {
                index,
                mac: nic.mac.to_string(),
                address: given.map(|given| given.address.clone()),
                gateway: given.and_then(|given| given.gateway.clone()),
                dns: given.map_or_else(Vec::new, |given| given.dns.clone()),
            }
        })
        .collect();
    let identity = Identity {
        kind,
        vm_name: row.name.clone(),
        hostname: host_name(&row.name),
        instance_uuid: row.uuid.clone(),
        machine_id: row.machine_id.clone(),
        nics,
        ssh_host_keys: keys,
        entropy: hex(&rand::random::<[[u8; 32]; 3]>().concat()),
        wall_clock_unix_ns,
        guestinfo: row.guestinfo.clone(),
    };
    serde_json::to_string(&ToGuest::Identity(Box::new(identity)))
        .expect("an identity has only strings and numbers")
}

/// A VM's name as a host name (RFC 1123): names may also hold underscores.
fn host_name(name: &str) -> String {
    name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_unicast_and_unique() {
        let mut used = HashSet::new();
        for _ in 0..1000 {
            let mac = new_mac(&mut used);
            assert!(mac.is_unicast());
            assert_eq!(mac.0[0] & 2, 2);
        }
        assert_eq!(used.len(), 1000);
    }

    #[test]
    fn host_names_have_no_underscores() {
        assert_eq!(host_name("web_1.test"), "web-1.test");
    }
}
