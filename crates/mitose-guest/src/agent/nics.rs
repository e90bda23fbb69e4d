//! Network interfaces: which ones the host means, their MACs, their addresses.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::control::parse_mac;
use agent_protocol::guest_paths::DHCP;
use agent_protocol::guestinfo::NET_PREFIX;
use agent_protocol::{Identity, NicIdentity};
use anyhow::{Context, Result, bail, ensure};

use super::netlink;

const CLASS: &str = "/sys/class/net";

/// Word of the kernel's command line with the meaning of the [`DHCP`] file.
const DHCP_WORD: &str = "mitose.dhcp";
const DHCP_LIMIT: Duration = Duration::from_secs(15);

/// Returns the MAC address of each interface that the host provides, in its order.
pub(super) fn macs() -> Vec<String> {
    interfaces(Path::new(CLASS))
        .iter()
        .filter_map(|name| mac_of(name))
        .collect()
}

/// Gives an interface the MAC address that its device has on the host, and brings it up.
pub(super) fn set_mac(nic: &NicIdentity) -> Result<()> {
    let name = interface(nic)?;
    let mac = parse_mac(&nic.mac).context("bad MAC address")?;
    // The neighbours learn of a changed address at once instead of when their caches run out.
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/arp_notify"), "1");
    if mac_of(&name).as_deref() != Some(nic.mac.to_ascii_lowercase().as_str()) {
        // virtio-net takes a new address while it is up, which keeps its addresses and routes.
        let live = netlink::set_mac(&name, mac);
        if live.is_err() {
            netlink::set_up(&name, false).context("cannot bring it down")?;
            netlink::set_mac(&name, mac).context("cannot set the MAC address")?;
        }
        renew_ipv6(&name);
    }
    netlink::set_up(&name, true).context("cannot bring it up")
}

/// Makes the kernel drop an interface's IPv6 addresses and derive new ones from its MAC address:
/// the old ones are the source's.
fn renew_ipv6(name: &str) {
    let switch = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    if fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "0") {
        let _ = fs::write(&switch, "1");
        let _ = fs::write(&switch, "0");
    }
}

/// Returns the identity's interfaces with static addresses from guestinfo
/// (`guestinfo.mitose.net.N.address`, `.gateway`, `.dns`) where it names none itself.
pub(super) fn with_guestinfo(identity: &Identity) -> Vec<NicIdentity> {
    let value = |nic: &NicIdentity, what: &str| {
        let key = format!("{NET_PREFIX}{}.{what}", nic.index);
        identity
            .guestinfo
            .get(&key)
            .map(|text| text.trim().to_owned())
    };
    let complete = |nic: &NicIdentity| {
        let mut nic = nic.clone();
        if nic.address.is_none() {
            nic.address = value(&nic, "address");
            nic.gateway = value(&nic, "gateway").or(nic.gateway);
        }
        if nic.dns.is_empty() {
            let list = value(&nic, "dns").unwrap_or_default();
            let separators = |c: char| c == ',' || c.is_whitespace();
            let servers = list.split(separators).filter(|word| !word.is_empty());
            nic.dns = servers.map(str::to_owned).collect();
        }
        nic
    };
    identity.nics.iter().map(complete).collect()
}

/// Sets static addresses, or asks for one where DHCP is wanted.
pub(super) fn set_addresses(nics: &[NicIdentity]) -> Result<()> {
    let mut problems = Vec::new();
    for nic in nics {
        let result = match &nic.address {
            Some(address) => set_static(nic, address),
            None if wants_dhcp() => ask_dhcp(nic),
            None => Ok(()),
        };
        if let Err(error) = result {
            problems.push(format!("interface {}: {error:#}", nic.index));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

fn set_static(nic: &NicIdentity, address: &str) -> Result<()> {
    let name = interface(nic)?;
    let (address, prefix) = parse_cidr(address)?;
    netlink::remove_other_addresses(&name, address, prefix).context("cannot remove old ones")?;
    netlink::add_address(&name, address, prefix).context("cannot set the address")?;
    if let Some(gateway) = &nic.gateway {
        let gateway: IpAddr = gateway.parse().context("bad gateway address")?;
        netlink::set_default_route(&name, gateway).context("cannot set the default route")?;
    }
    Ok(())
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8)> {
    let (address, prefix) = text
        .split_once('/')
        .context("address has no prefix length")?;
    let address: IpAddr = address.parse().context("bad address")?;
    let prefix: u8 = prefix.parse().context("bad prefix length")?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    ensure!(prefix <= max, "prefix length {prefix} is above {max}");
    Ok((address, prefix))
}

fn wants_dhcp() -> bool {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Path::new(DHCP).exists() || words.split_whitespace().any(|word| word == DHCP_WORD)
}

/// Runs the image's own DHCP client once.
fn ask_dhcp(nic: &NicIdentity) -> Result<()> {
    let name = interface(nic)?;
    let clients: [(&str, &[&str]); 4] = [
        (
            "/sbin/udhcpc",
            &["-q", "-n", "-f", "-t", "8", "-T", "1", "-i"],
        ),
        (
            "/bin/udhcpc",
            &["-q", "-n", "-f", "-t", "8", "-T", "1", "-i"],
        ),
        ("/sbin/dhclient", &["-1"]),
        ("/usr/sbin/dhcpcd", &["-1", "-n", "-t", "10"]),
    ];
    let Some((client, args)) = clients.iter().find(|(path, _)| Path::new(path).exists()) else {
        bail!("DHCP is wanted, but the image has neither udhcpc, dhclient nor dhcpcd");
    };
    let mut child = Command::new(client)
        .args(*args)
        .arg(&name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {client}"))?;
    let deadline = Instant::now() + DHCP_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{client} ended with {status}");
            return Ok(());
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("no DHCP answer within {} s", DHCP_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn interface(nic: &NicIdentity) -> Result<String> {
    let names = interfaces(Path::new(CLASS));
    let count = names.len();
    names
        .into_iter()
        .nth(nic.index as usize)
        .with_context(|| format!("the guest has only {count} network interfaces"))
}

/// Lists interfaces that belong to a device, in the order of their virtio devices, which is the
/// order of the slots; others follow by their number.
fn interfaces(class: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(class) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, u32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let device = fs::read_link(entry.path().join("device")).ok()?;
            let device = device.file_name()?.to_str()?;
            let virtio = device.strip_prefix("virtio").and_then(|n| n.parse().ok());
            let index = fs::read_to_string(entry.path().join("ifindex")).unwrap_or_default();
            let index = index.trim().parse().unwrap_or(u32::MAX);
            Some((
                virtio.unwrap_or(u32::MAX),
                index,
                entry.file_name().into_string().ok()?,
            ))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, _, name)| name).collect()
}

fn mac_of(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(CLASS).join(name).join("address")).ok()?;
    parse_mac(text.trim()).map(|_| text.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_come_in_device_order() {
        let dir = tempfile::tempdir().unwrap();
        for (name, device, index) in [
            ("eth0", "virtio10", "2"),
            ("eth1", "virtio9", "3"),
            ("ens1", "0000:00:01.0", "4"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::symlink(format!("../../{device}"), path.join("device")).unwrap();
            fs::write(path.join("ifindex"), index).unwrap();
        }
        fs::create_dir(dir.path().join("lo")).unwrap();
        assert_eq!(interfaces(dir.path()), ["eth1", "eth0", "ens1"]);
    }

    #[test]
    fn guestinfo_gives_addresses_where_the_identity_names_none() {
        let nic = |index, address: Option<&str>| NicIdentity {
            index,
            mac: "02:00:00:00:00:01".into(),
            address: address.map(str::to_owned),
            gateway: None,
            dns: Vec::new(),
        };
        let pairs = [
            ("guestinfo.mitose.net.0.address", "192.0.2.7/24"),
            ("guestinfo.mitose.net.1.address", " 192.0.2.8/24\n"),
            ("guestinfo.mitose.net.1.gateway", "192.0.2.1"),
            ("guestinfo.mitose.net.1.dns", "192.0.2.2, 192.0.2.3"),
        ];
        let identity = Identity {
            kind: agent_protocol::IdentityKind::Clone,
            vm_name: "web".into(),
            hostname: String::new(),
            instance_uuid: "u".into(),
            machine_id: String::new(),
            nics: vec![nic(0, Some("198.51.100.1/24")), nic(1, None), nic(2, None)],
            ssh_host_keys: Vec::new(),
            entropy: String::new(),
            wall_clock_unix_ns: 0,
            guestinfo: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        };
        let nics = with_guestinfo(&identity);
        assert_eq!(nics[0], nic(0, Some("198.51.100.1/24")));
        assert_eq!(nics[1].address.as_deref(), Some("192.0.2.8/24"));
        assert_eq!(nics[1].gateway.as_deref(), Some("192.0.2.1"));
        assert_eq!(nics[1].dns, ["192.0.2.2", "192.0.2.3"]);
        assert_eq!(nics[2], nic(2, None));
    }

    #[test]
    fn addresses_need_a_sensible_prefix() {
        assert_eq!(
            parse_cidr("192.0.2.7/24").unwrap(),
            ("192.0.2.7".parse().unwrap(), 24)
        );
        assert_eq!(parse_cidr("2001:db8::1/64").unwrap().1, 64);
        for bad in ["192.0.2.7", "192.0.2.7/33", "x/8", "::1/129", "192.0.2.7/a"] {
            assert!(parse_cidr(bad).is_err(), "{bad}");
        }
    }
}
