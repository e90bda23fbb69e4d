//! Networks: what NICs connect to. The daemon makes the TAP interface of each NIC on a network when
//! its VM starts; the kernel removes it when the VM's process ends, whatever becomes of the daemon.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use api_types::{DryRun, ErrorKind, NetRequest, Network as NetworkReply, NetworkRequest};
use linux_sys::{BridgeError, TapError};

use super::check::Problems;
use super::describe::show_object;
use super::{Host, event};
use crate::config::hash_of;
use crate::error::{OpError, OpResult};
use crate::inventory::{Labels, Network, NicRow, Object, VmRow};

/// Folder of networks that every inventory has.
const NETWORK_FOLDER: &str = "folder-4";
/// Network that every inventory has.
const FIRST_NETWORK: &str = "network-1";
/// Length of a name that is common to all interfaces of a data directory.
const HASH_DIGITS: usize = 5;

impl Host {
    /// All networks by id.
    pub fn list_networks(&self) -> Vec<NetworkReply> {
        let networks = self.objects::<Network>();
        networks.iter().map(|n| self.show_network(n)).collect()
    }

    /// A network as it is shown.
    pub fn show_network(&self, network: &Object<Network>) -> NetworkReply {
        NetworkReply {
            object: show_object(network, &network.doc.labels),
            bridge: network.doc.bridge.clone(),
            isolated: network.doc.isolated,
            nics: self.nics_on(&network.id),
        }
    }

    fn nics_on(&self, network: &str) -> usize {
        let on = |nic: &&NicRow| nic.network.as_deref() == Some(network);
        let vms = self.all();
        let counts = vms
            .iter()
            .map(|vm| vm.live().row.nics.iter().filter(on).count());
        counts.sum()
    }

    /// Tries a request for a network out.
    pub fn check_network(&self, request: &NetworkRequest) -> DryRun {
        self.network_problems(request).dry_run()
    }

    fn network_problems(&self, request: &NetworkRequest) -> Problems {
        let mut problems = Problems::default();
        problems.take(self.check_free::<Network>(Some(NETWORK_FOLDER), &request.name));
        if request.isolated && request.bridge.is_some() {
            problems.note(OpError::invalid(
                "bridge: an isolated network has a bridge of its own; leave one of both out",
            ));
        }
        if let Some(bridge) = &request.bridge {
            problems.take(self.check_bridge(bridge));
        }
        problems
    }

    /// Makes a network.
    pub fn make_network(&self, request: &NetworkRequest) -> OpResult<NetworkReply> {
        let _turn = self.objects_turn();
        self.network_problems(request).finish()?;
        let id = self.new_id("network")?;
        let bridge = match request.isolated {
            true => Some(self.bridge_name(&id)),
            false => request.bridge.clone(),
        };
        let network = Object {
            id,
            parent: Some(NETWORK_FOLDER.to_owned()),
            name: request.name.clone(),
            version: 1,
            doc: Network {
                labels: Labels::default(),
                bridge,
                isolated: request.isolated,
            },
        };
        // The record comes first: a bridge that nobody knows would stay for ever.
        let told = event(&request.name, "network.created", "created").about(&network.id);
        let changes = crate::inventory::Changes {
            objects: vec![super::row_of(&network)?],
            events: vec![told],
            ..Default::default()
        };
        self.commit(&[], changes)?;
        if let Err(error) = self.ensure_bridge(&network.doc) {
            self.remove_object::<Network>(&network.id, None)?;
            return Err(error);
        }
        Ok(self.show_network(&network))
    }

    /// Removes a network that no NIC is on.
    pub fn remove_network(&self, reference: &str) -> OpResult<()> {
        let _turn = self.objects_turn();
        let network = self.check_network_removal(reference)?;
        let told = event(&network.name, "network.removed", "removed").about(&network.id);
        self.remove_object::<Network>(&network.id, Some(told))?;
        if let (Some(bridge), true) = (&network.doc.bridge, network.doc.isolated) {
            linux_sys::remove_bridge(bridge).map_err(refused)?;
        }
        Ok(())
    }

    /// The network of a reference, where it may be removed.
    pub fn check_network_removal(&self, reference: &str) -> OpResult<Object<Network>> {
        let network = self.object::<Network>(reference)?;
        if network.id == FIRST_NETWORK {
            return Err(OpError::conflict(
                "network: the first network stays; remove another one",
            ));
        }
        let nics = self.nics_on(&network.id);
        if nics > 0 {
            return Err(OpError::conflict(format!(
                "network: {nics} NICs are on {}; put them on another network or remove their VMs first",
                network.name
            )));
        }
        Ok(network)
    }

    /// Id of the network that a request names.
    pub(super) fn network_id(&self, reference: &str) -> OpResult<String> {
        let found = self.object::<Network>(reference);
        let found = found
            .map_err(|error| OpError::new(error.kind, format!("network: {}", error.message())));
        Ok(found?.id)
    }

    /// What a request for a NIC says, host side.
    pub(super) fn nic_of(&self, net: &NetRequest) -> OpResult<NicRow> {
        if net.tap.is_some() && net.network.is_some() {
            return Err(OpError::invalid(
                "network: a NIC is on a network or on a TAP interface; leave one of both out",
            ));
        }
        if let Some(tap) = &net.tap {
            linux_sys::check_tap(tap)
                .map_err(|error| OpError::caused(ErrorKind::Invalid, error))?;
        }
        let network = net.network.as_deref().map(|name| self.network_id(name));
        Ok(NicRow {
            tap: net.tap.clone(),
            network: network.transpose()?,
            disconnected: net.disconnected,
            addresses: None,
        })
    }

    /// Opens the TAP interface of a VM's NIC, where it is to have one.
    pub(super) fn open_nic(&self, row: &VmRow, index: usize) -> OpResult<Option<Arc<OwnedFd>>> {
        let nic = &row.nics[index];
        if let Some(tap) = &nic.tap {
            let opened = linux_sys::open_tap(tap);
            let opened = opened.map_err(|error| match (&error, self.user_of_tap(row, tap)) {
                (TapError::Busy(_), Some(user)) => OpError::conflict(format!(
                    "tap: {tap:?} is in use by the VM {user}; stop that, or give another interface"
                )),
                (TapError::Busy(_), None) => OpError::caused(ErrorKind::Conflict, error),
                _ => OpError::caused(ErrorKind::Invalid, error),
            })?;
            return Ok(Some(Arc::new(opened)));
        }
        let Some(network) = &nic.network else {
            return Ok(None);
        };
        let network = self.object::<Network>(network)?;
        let Some(bridge) = &network.doc.bridge else {
            return Ok(None);
        };
        self.ensure_bridge(&network.doc)?;
        let tap = linux_sys::make_tap(&self.tap_name(&row.id, index), bridge);
        Ok(Some(Arc::new(tap.map_err(refused)?)))
    }

    /// The VM besides that of `row` whose process has a TAP interface that a user made.
    fn user_of_tap(&self, row: &VmRow, tap: &str) -> Option<String> {
        self.all().iter().find_map(|vm| {
            let other = &vm.live().row;
            let has = |nic: &NicRow| nic.tap.as_deref() == Some(tap);
            let uses =
                other.id != row.id && other.state.has_process() && other.nics.iter().any(has);
            uses.then(|| other.name.clone())
        })
    }

    /// Refuses a bridge that is not there.
    pub(super) fn check_bridge(&self, bridge: &str) -> OpResult<()> {
        linux_sys::find_bridge(bridge).map_err(refused)
    }

    /// Makes the bridge of an isolated network where it is not there, as after the host's start.
    fn ensure_bridge(&self, network: &Network) -> OpResult<()> {
        match (&network.bridge, network.isolated) {
            (Some(bridge), true) => linux_sys::make_bridge(bridge).map_err(refused),
            _ => Ok(()),
        }
    }

    /// Removes bridges of this data directory that no network has.
    pub(super) fn sweep_bridges(&self) {
        let prefix = format!("mb{}.", self.interface_hash());
        let networks = self.objects::<Network>();
        let known = |name: &str| {
            networks
                .iter()
                .any(|network| network.doc.bridge.as_deref() == Some(name))
        };
        for entry in std::fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else {
                continue;
            };
            if !known(name)
                && let Err(error) = linux_sys::remove_bridge(name)
            {
                tracing::warn!("{}", crate::error::chain_line(&error.into()));
            }
        }
    }

    /// Name of the TAP interface that is made for a NIC, such as `mt3fa07.2a.0`: the number of the
    /// VM is written in base 16, at most 15 bytes in all for 2^20 VMs.
    pub(super) fn tap_name(&self, vm: &str, nic: usize) -> String {
        format!("mt{}.{}.{nic:x}", self.interface_hash(), number_of(vm))
    }

    fn bridge_name(&self, network: &str) -> String {
        format!("mb{}.{}", self.interface_hash(), number_of(network))
    }

    /// What tells the interfaces of data directories apart.
    fn interface_hash(&self) -> String {
        let hash = format!("{:016x}", hash_of(self.config.home.root()));
        hash[..HASH_DIGITS].to_owned()
    }
}

/// The number of an id, base 16.
fn number_of(id: &str) -> String {
    let number = id.rsplit('-').next().and_then(|n| n.parse::<u64>().ok());
    format!("{:x}", number.unwrap_or(0))
}

fn refused(error: BridgeError) -> OpError {
    let kind = match error {
        BridgeError::Refused { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Conflict,
    };
    OpError::caused(kind, error)
}
