//! Static addresses of NICs: checked as they are given, one after the other for several clones; no
//! two NICs of a network have the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use api_types::NicAddressRequest;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::{AddressRow, Network, NicRow, ObjectId, VmRow};

/// Most name servers of one NIC.
const DNS_MAX: usize = 8;

/// A static address that two NICs would have.
pub(super) struct TakenAddress {
    /// The NIC that cannot have it.
    nic: usize,
    /// Who has it, for a message.
    pub told: String,
}

impl Host {
    /// Refuses VMs, listed or to be, whose static addresses another VM of the same network has.
    pub(super) fn check_addresses(&self, rows: &[VmRow]) -> OpResult<()> {
        if rows.iter().all(|row| places(row).next().is_none()) {
            return Ok(());
        }
        self.check_addresses_among(self.listing().all(), rows)
    }

    /// The same, among VMs whose list is held. A VM keeps its addresses while it is powered off.
    pub(super) fn check_addresses_among<'a>(
        &self,
        listed: impl Iterator<Item = &'a Arc<Vm>>,
        rows: &[VmRow],
    ) -> OpResult<()> {
        match self.find_address_taken(listed, rows) {
            Some(taken) => Err(OpError::conflict(format!(
                "addresses: NIC {}: {}; give another address",
                taken.nic, taken.told
            ))),
            None => Ok(()),
        }
    }

    /// A static address of these VMs, listed or to be, that another VM of the same network has.
    pub(super) fn find_address_taken<'a>(
        &self,
        listed: impl Iterator<Item = &'a Arc<Vm>>,
        rows: &[VmRow],
    ) -> Option<TakenAddress> {
        if rows.iter().all(|row| places(row).next().is_none()) {
            return None;
        }
        let mut taken: HashMap<(ObjectId, IpAddr), (String, usize)> = HashMap::new();
        for vm in listed {
            let live = vm.live();
            if rows.iter().any(|row| row.id == live.row.id) {
                continue;
            }
            for (nic, place) in places(&live.row) {
                taken.insert(place, (live.row.name.clone(), nic));
            }
        }
        for row in rows {
            for (nic, place) in places(row) {
                let ip = place.1;
                let network = place.0.clone();
                if let Some((owner, its)) = taken.insert(place, (row.name.clone(), nic)) {
                    let network = self.object::<Network>(&network).map_or(network, |n| n.name);
                    let told =
                        format!("NIC {its} of {owner} has {ip} on the network {network:?} already");
                    return Some(TakenAddress { nic, told });
                }
            }
        }
        None
    }
}

/// Static addresses of a VM's NICs with the networks that they are on.
fn places(row: &VmRow) -> impl Iterator<Item = (usize, (ObjectId, IpAddr))> {
    row.nics.iter().enumerate().filter_map(|(index, nic)| {
        let (ip, _) = parse(&nic.addresses.as_ref()?.address)?;
        Some((index, (nic.network.clone()?, ip)))
    })
}

/// Sets the addresses of a request on the NICs of VM number `index` (from 0) of its call.
pub(super) fn assign(
    nics: &mut [NicRow],
    given: &[NicAddressRequest],
    index: usize,
) -> OpResult<()> {
    let count = nics.len();
    for one in given {
        let nic = usize::try_from(one.nic).ok().and_then(|n| nics.get_mut(n));
        let nic = nic.ok_or_else(|| {
            OpError::invalid(format!(
                "addresses: there is no NIC {}; the VM has {count}, counted from 0",
                one.nic
            ))
        })?;
        if nic.addresses.is_some() {
            return Err(OpError::invalid(format!(
                "addresses: NIC {} has two; give one",
                one.nic
            )));
        }
        nic.addresses = Some(addresses(one, index)?);
    }
    Ok(())
}

fn addresses(given: &NicAddressRequest, index: usize) -> OpResult<AddressRow> {
    let NicAddressRequest {
        nic,
        address,
        gateway,
        dns,
    } = given;
    let bad = |what: String| OpError::invalid(format!("addresses: NIC {nic}: {what}"));
    let (first, prefix) = parse(address).ok_or_else(|| {
        bad(format!(
            "{address:?} is no address with a prefix length such as 192.0.2.7/24"
        ))
    })?;
    let ip = nth(first, prefix, index).ok_or_else(|| {
        bad(format!(
            "{address} has no {} addresses from there on in its network; begin lower or take a \
             larger one",
            index + 1
        ))
    })?;
    if let Some(gateway) = gateway {
        let parsed: Result<IpAddr, _> = gateway.parse();
        if !parsed
            .as_ref()
            .is_ok_and(|gateway| gateway.is_ipv4() == ip.is_ipv4() && *gateway != ip)
        {
            return Err(bad(format!(
                "gateway {gateway:?} is not the address of another machine in the family of {ip}"
            )));
        }
        if let Ok(gateway) = parsed
            && !reaches(ip, prefix, gateway)
        {
            return Err(bad(format!(
                "gateway {gateway} is outside of the network of {ip}/{prefix}, so the guest cannot \
                 reach it; give one inside or another prefix length"
            )));
        }
    }
    if dns.len() > DNS_MAX {
        return Err(bad(format!(
            "{} name servers, {DNS_MAX} at most",
            dns.len()
        )));
    }
    if let Some(server) = dns.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        return Err(bad(format!("name server {server:?} is no address")));
    }
    Ok(AddressRow {
        address: format!("{ip}/{prefix}"),
        gateway: gateway.clone(),
        dns: dns.clone(),
    })
}

/// Whether a machine with an address and prefix length reaches `gateway` without another one.
fn reaches(ip: IpAddr, prefix: u8, gateway: IpAddr) -> bool {
    let inside = |bits: u32, a: u128, b: u128| {
        let hosts = bits.saturating_sub(u32::from(prefix));
        (a ^ b).checked_shr(hosts).unwrap_or(0) == 0
    };
    match (ip, gateway) {
        (IpAddr::V4(ip), IpAddr::V4(gateway)) => {
            inside(32, ip.to_bits().into(), gateway.to_bits().into())
        }
        (IpAddr::V6(ip), IpAddr::V6(gateway)) => {
            gateway.is_unicast_link_local() || inside(128, ip.to_bits(), gateway.to_bits())
        }
        _ => false,
    }
}

/// Reads `192.0.2.7/24`.
fn parse(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= most && !ip.is_unspecified() && !ip.is_multicast()).then_some((ip, prefix))
}

/// Returns the address `index` places behind `first`, in the same network and, in IPv4, neither its
/// first nor its last address, which no machine may have.
fn nth(first: IpAddr, prefix: u8, index: usize) -> Option<IpAddr> {
    let (bits, value) = match first {
        IpAddr::V4(ip) => (32u32, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (128, ip.to_bits()),
    };
    let host_bits = bits - u32::from(prefix);
    let hosts = 1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
    let wanted = value.checked_add(index as u128)?;
    let host = wanted & hosts;
    let reserved = first.is_ipv4() && host_bits > 1 && (host == 0 || host == hosts);
    if wanted & !hosts != value & !hosts || reserved {
        return None;
    }
    Some(match first {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(wanted).ok()?.into()),
        IpAddr::V6(_) => IpAddr::V6(wanted.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(address: &str) -> NicAddressRequest {
        NicAddressRequest {
            nic: 0,
            address: address.to_owned(),
            gateway: None,
            dns: Vec::new(),
        }
    }

    fn check(address: &str, index: usize, expect: Option<&str>) {
        let found = addresses(&given(address), index).ok().map(|a| a.address);
        assert_eq!(found.as_deref(), expect, "{address} {index}");
    }

    #[test]
    fn clones_get_one_address_after_the_other() {
        check("192.0.2.7/24", 0, Some("192.0.2.7/24"));
        check("192.0.2.7/24", 3, Some("192.0.2.10/24"));
        check("192.0.2.254/24", 1, None);
        check("10.0.0.250/16", 10, Some("10.0.1.4/16"));
        check("192.0.2.0/24", 0, None);
        check("192.0.2.0/31", 1, Some("192.0.2.1/31"));
        check("192.0.2.9/32", 0, Some("192.0.2.9/32"));
        check("192.0.2.9/32", 1, None);
        check("2001:db8::ff/64", 1, Some("2001:db8::100/64"));
        check("ffff::ffff/0", 1, None);
        check("::1/0", 5, Some("::6/0"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "192.0.2.7",
            "192.0.2.7/33",
            "::1/129",
            "0.0.0.0/8",
            "224.0.0.1/4",
            "a/8",
        ] {
            check(bad, 0, None);
        }
        let with = |gateway: &str, dns: &[&str]| NicAddressRequest {
            gateway: Some(gateway.to_owned()),
            dns: dns.iter().map(|text| (*text).to_owned()).collect(),
            ..given("192.0.2.7/24")
        };
        assert!(addresses(&with("192.0.2.1", &["192.0.2.1", "2001:db8::1"]), 0).is_ok());
        assert!(addresses(&with("192.0.2.7", &[]), 0).is_err());
        assert!(addresses(&with("2001:db8::1", &[]), 0).is_err());
        assert!(addresses(&with("gw", &[]), 0).is_err());
        assert!(addresses(&with("192.0.2.1", &["dns.example"]), 0).is_err());
        assert!(addresses(&with("192.0.2.1", &["192.0.2.1"; DNS_MAX + 1]), 0).is_err());
    }

    #[test]
    fn a_gateway_is_in_the_network_of_the_address() {
        for (address, gateway, reached) in [
            ("10.0.0.3/24", "10.0.0.254", true),
            ("10.0.0.3/24", "10.9.9.9", false),
            ("10.0.0.3/8", "10.9.9.9", true),
            ("10.0.0.3/32", "10.0.0.1", false),
            ("10.0.0.3/0", "192.0.2.1", true),
            ("2001:db8::3/64", "2001:db8::1", true),
            ("2001:db8::3/64", "2001:db9::1", false),
            ("2001:db8::3/64", "fe80::1", true),
        ] {
            let with = NicAddressRequest {
                gateway: Some(gateway.to_owned()),
                ..given(address)
            };
            assert_eq!(addresses(&with, 0).is_ok(), reached, "{address} {gateway}");
        }
    }

    #[test]
    fn nics_are_named_and_get_one_address() {
        let mut nics = vec![NicRow::default(); 2];
        let second = NicAddressRequest {
            nic: 1,
            ..given("192.0.2.7/24")
        };
        assign(&mut nics, std::slice::from_ref(&second), 1).unwrap();
        assert!(nics[0].addresses.is_none());
        let row = nics[1].addresses.as_ref().unwrap();
        assert_eq!(row.address, "192.0.2.8/24");
        let twice = assign(&mut nics, std::slice::from_ref(&second), 0).unwrap_err();
        assert!(twice.message().contains("NIC 1 has two"));
        let beyond = NicAddressRequest { nic: 2, ..second };
        let error = assign(&mut nics, &[beyond], 0).unwrap_err();
        assert!(error.message().contains("no NIC 2"));
    }
}
