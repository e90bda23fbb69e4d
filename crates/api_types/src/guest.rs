//! What a guest is told and tells: guestinfo, static addresses, waiting for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::schema;

/// Values by key; keys begin with `guestinfo.`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestInfo(pub BTreeMap<String, String>);

/// Changes of guestinfo: new values by key; null or an empty value removes the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestInfoPatch(pub BTreeMap<String, Option<String>>);

impl PartialSchema for GuestInfo {
    fn schema() -> RefOr<Schema> {
        schema::guestinfo("Values of guestinfo by key.", json!("string"))
    }
}

impl ToSchema for GuestInfo {}

impl PartialSchema for GuestInfoPatch {
    fn schema() -> RefOr<Schema> {
        let text = "New values of guestinfo by key; null or an empty value removes the key.";
        schema::guestinfo(text, json!(["string", "null"]))
    }
}

impl ToSchema for GuestInfoPatch {}

/// Static addresses of one NIC, set by the guest's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicAddressRequest {
    /// Number of the NIC, from 0.
    #[schema(minimum = 0, maximum = 15)]
    pub nic: u32,
    /// IPv4 or IPv6 address with prefix length, such as `192.0.2.7/24`. Of several clones the first
    /// gets it, each further one the next.
    #[schema(schema_with = schema::network_address)]
    pub address: String,
    /// Default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::optional_address)]
    pub gateway: Option<String>,
    /// Name servers.
    #[serde(default)]
    #[schema(schema_with = schema::name_servers)]
    pub dns: Vec<String>,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// The guest asked to be frozen, and is.
    Frozen,
    /// The guest's agent said that it is ready.
    Ready,
    /// The vCPUs run.
    Running,
    /// It has no process.
    Off,
}
