//! Tokens: who may ask over TCP, and for what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// What a client may do.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    #[default]
    Viewer,
    /// Do everything with VMs, short of naming files of the host.
    Operator,
    /// Everything.
    Admin,
}

/// Make a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Its name, which tasks show as their user.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
}

/// A token; its secret is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A new token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// What its bearer sends as `Authorization: Bearer …`; shown only this once.
    pub secret: String,
}
