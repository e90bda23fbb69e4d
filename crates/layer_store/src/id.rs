//! Names of layers.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Name of a layer: 128 random bits, written as 32 hexadecimal digits. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(u128);

/// A text is not the name of a layer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("layer id {text:?} is not valid: it must have 32 lower-case hexadecimal digits")]
pub struct ParseLayerIdError {
    text: String,
}

impl LayerId {
    /// A new name. Choose and record it before the layer is made, so that a layer on the
    /// datastore is never unknown to the records.
    pub fn random() -> LayerId {
        LayerId(rand::random())
    }

    /// Name of the layer's file in `layers/`.
    pub fn file_name(self) -> String {
        format!("{self}.qcow2")
    }

    pub(crate) fn temporary_name(self) -> String {
        format!(".{self}.tmp")
    }

    /// The layer that a file of `layers/` holds.
    pub(crate) fn from_file_name(name: &str) -> Option<LayerId> {
        name.strip_suffix(".qcow2")?.parse().ok()
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerId({self})")
    }
}

impl FromStr for LayerId {
    type Err = ParseLayerIdError;

    fn from_str(text: &str) -> Result<LayerId, ParseLayerIdError> {
        let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 32
            && text.bytes().all(digits)
            && let Ok(value) = u128::from_str_radix(text, 16)
        {
            return Ok(LayerId(value));
        }
        Err(ParseLayerIdError {
            text: text.chars().take(64).collect(),
        })
    }
}
