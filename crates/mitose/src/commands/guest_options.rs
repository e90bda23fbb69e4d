//! Options of `run` and `clone` about what guests are told.

use api_types::{GuestInfo, NicAddressRequest};

/// What a new guest is told.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct GuestOptions {
    /// guestinfo, KEY=VALUE; may be repeated. {name} and {index} (from 1) in VALUE are replaced; an
    /// empty VALUE removes what a clone would inherit
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    guestinfo: Vec<(String, String)>,
    /// Static address, NIC=ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS...]; may be repeated. Of several
    /// clones the first gets it, each further one the next
    #[arg(long, value_name = "SPEC", value_parser = parse_address)]
    net_ip: Vec<NicAddressRequest>,
}

impl GuestOptions {
    /// As the parts of a request.
    pub(super) fn into_parts(self) -> (GuestInfo, Vec<NicAddressRequest>) {
        (GuestInfo(self.guestinfo.into_iter().collect()), self.net_ip)
    }
}

/// Returns the whole key: `guestinfo.` may be left out.
pub(super) fn whole_key(key: &str) -> String {
    if key.starts_with("guestinfo.") {
        key.to_owned()
    } else {
        format!("guestinfo.{key}")
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((whole_key(key), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

fn parse_address(text: &str) -> Result<NicAddressRequest, String> {
    let form = || format!("{text:?} is not NIC=ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS...]");
    let mut parts = text.split(',');
    let (nic, address) = parts
        .next()
        .and_then(|first| first.split_once('='))
        .ok_or_else(form)?;
    let mut request = NicAddressRequest {
        nic: nic.parse().map_err(|_| form())?,
        address: address.to_owned(),
        gateway: None,
        dns: Vec::new(),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("gw", gateway)) => request.gateway = Some(gateway.to_owned()),
            Some(("dns", server)) => request.dns.push(server.to_owned()),
            _ => return Err(form()),
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_keep_what_is_behind_the_first_equals_sign() {
        let pair = parse_pair("role=a=b").unwrap();
        assert_eq!(pair, ("guestinfo.role".to_owned(), "a=b".to_owned()));
        assert_eq!(parse_pair("guestinfo.x=").unwrap().0, "guestinfo.x");
        assert!(parse_pair("role").is_err() && parse_pair("=x").is_err());
    }

    #[test]
    fn addresses_have_parts() {
        let full =
            parse_address("1=192.0.2.7/24,gw=192.0.2.1,dns=192.0.2.2,dns=192.0.2.3").unwrap();
        assert_eq!((full.nic, full.address.as_str()), (1, "192.0.2.7/24"));
        assert_eq!(full.gateway.as_deref(), Some("192.0.2.1"));
        assert_eq!(full.dns, ["192.0.2.2", "192.0.2.3"]);
        for bad in ["", "192.0.2.7/24", "x=192.0.2.7/24", "0=a,b", "0=a,mtu=9"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }
}
