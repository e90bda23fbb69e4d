//! Static addresses of NICs: checked as they are given, one after the other for several clones.

use std::net::IpAddr;

use api_types::NicAddressRequest;

use crate::error::{OpError, OpResult};
use crate::inventory::{AddressRow, NicRow};

/// Most name servers of one NIC.
const DNS_MAX: usize = 8;

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
        if !parsed.is_ok_and(|gateway| gateway.is_ipv4() == ip.is_ipv4() && gateway != ip) {
            return Err(bad(format!(
                "gateway {gateway:?} is not the address of another machine in the family of {ip}"
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
