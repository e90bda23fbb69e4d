//! Tokens: random 256 bits each, of which only a hash is kept.

use api_types::{NewToken, Role, Token, TokenRequest};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Host, event};
use crate::clock::{hex, now_ms};
use crate::error::{OpError, OpResult};
use crate::inventory::{Kind, Object};

/// What every secret begins with, so that it is known where it is found.
const SECRET_PREFIX: &str = "mitose_";

/// What is kept of a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenRecord {
    /// SHA-256 of the secret, hexadecimal. The secret has 256 random bits, so no salt or slow hash
    /// is needed.
    hash: String,
    role: Role,
    created_at_ms: i64,
}

impl Kind for TokenRecord {
    const KIND: &'static str = "token";
    const NOUN: &'static str = "token";
    const PREFIX: &'static str = "token";
}

impl Host {
    /// All tokens.
    pub fn tokens(&self) -> Vec<Token> {
        self.objects::<TokenRecord>().iter().map(show).collect()
    }

    /// Refuses a token that cannot be made.
    pub fn check_token(&self, request: &TokenRequest) -> OpResult<()> {
        self.check_free::<TokenRecord>(None, &request.name)
            .map_err(|error| error.about("name"))
    }

    /// Makes a token.
    pub fn make_token(&self, request: &TokenRequest) -> OpResult<NewToken> {
        self.check_token(request)?;
        let secret = format!("{SECRET_PREFIX}{}", hex(&rand::random::<[u8; 32]>()));
        let record = TokenRecord {
            hash: hash(&secret),
            role: request.role,
            created_at_ms: now_ms(),
        };
        let told = event(&request.name, "token.made", "made");
        let object = self.make_object(None, &request.name, record, Some(told))?;
        let token = show(&object);
        Ok(NewToken { token, secret })
    }

    /// Removes a token, given by id or name. `own` is the id of the caller's: who removes the way in
    /// does it from elsewhere.
    pub fn remove_token(&self, reference: &str, own: Option<&str>) -> OpResult<()> {
        let object = self.check_token_removal(reference, own)?;
        let told = event(&object.name, "token.removed", "removed").about(&object.id);
        self.remove_object::<TokenRecord>(&object.id, Some(told))
    }

    /// The token of a reference, where the bearer of `own` may remove it.
    pub fn check_token_removal(
        &self,
        reference: &str,
        own: Option<&str>,
    ) -> OpResult<Object<TokenRecord>> {
        let object = self.object::<TokenRecord>(reference)?;
        if own == Some(object.id.as_str()) {
            return Err(OpError::conflict(format!(
                "{} is the token of this request; remove it on the daemon's host or with another one",
                object.name
            )));
        }
        Ok(object)
    }

    /// Whether there still is a token of an id.
    pub fn knows_token(&self, id: &str) -> bool {
        self.object::<TokenRecord>(id).is_ok()
    }

    /// The token of a secret.
    pub fn bearer(&self, secret: &str) -> Option<Token> {
        if !secret.starts_with(SECRET_PREFIX) {
            return None;
        }
        // Hashes are compared, so the time tells nothing about a secret.
        let wanted = hash(secret);
        let tokens = self.objects::<TokenRecord>();
        tokens
            .iter()
            .find(|token| token.doc.hash == wanted)
            .map(show)
    }
}

/// A token by its id, as it is shown.
fn show(object: &Object<TokenRecord>) -> Token {
    Token {
        id: object.id.clone(),
        name: object.name.clone(),
        role: object.doc.role,
        created_at_ms: object.doc.created_at_ms,
    }
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}
