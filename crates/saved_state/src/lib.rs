//! The container of saved state: what it is, which version, how long, and that it is whole.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "MITOSEST"
//!      8      4  container version, little endian
//!     12      4  kind: four ASCII letters
//!     16      4  version of the kind's schema, little endian
//!     20      4  CRC-32 (IEEE 802.3) of bytes 0..20, 24..32 and the body
//!     24      8  length of the body, little endian
//!     32      …  body: CBOR (RFC 8949) of the kind's plain-data type
//! ```
//!
//! The checksum finds accidents, not attacks: whoever loads a body still checks every value.

#![forbid(unsafe_code)]

mod crc;

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the container.
pub const CONTAINER_VERSION: u32 = 1;
/// Longest body, bytes.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Longest container, bytes.
pub const MAX_BYTES: usize = MAX_BODY_BYTES + HEADER_BYTES;
const MAGIC: [u8; 8] = *b"MITOSEST";
const HEADER_BYTES: usize = 32;

/// A kind of saved state and the version of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Four ASCII letters.
    pub tag: [u8; 4],
    /// Version of the schema: a body with another one is refused.
    pub version: u32,
}

/// Saved state could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The value has no CBOR form.
    #[error("cannot encode saved state")]
    Encode(#[source] ciborium::ser::Error<io::Error>),
    /// The body is longer than the format allows.
    #[error("saved state has {0} bytes, the format takes {MAX_BODY_BYTES}")]
    TooLong(usize),
}

/// Bytes are no saved state of the expected kind.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("saved state is cut: {found} bytes of {wanted}")]
    Cut {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        wanted: usize,
    },
    /// The bytes go on after the end.
    #[error("saved state has {0} bytes after its end")]
    Trailing(usize),
    /// They are something else.
    #[error("not a saved state file (wrong magic number)")]
    Magic,
    /// Written by another version of the format.
    #[error("saved state {field} is {found}, this program reads {wanted}")]
    Version {
        /// "container version", "kind" or "schema version".
        field: &'static str,
        /// What it is.
        found: String,
        /// What is read.
        wanted: String,
    },
    /// The length field is out of range.
    #[error("saved state length {0} is out of range")]
    Length(u64),
    /// The checksum is wrong.
    #[error("saved state is damaged (checksum {found:#x}, expected {wanted:#x})")]
    Damaged {
        /// Of the bytes.
        found: u32,
        /// In the header.
        wanted: u32,
    },
    /// The body is no such value.
    #[error("saved state body is malformed")]
    Body(#[source] ciborium::de::Error<io::Error>),
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    crc::crc32(&[&header[..20], &header[24..HEADER_BYTES], body])
}

/// Returns `value` in its container.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = vec![0; HEADER_BYTES];
    ciborium::into_writer(value, &mut bytes).map_err(EncodeError::Encode)?;
    let body_bytes = bytes.len() - HEADER_BYTES;
    if body_bytes > MAX_BODY_BYTES {
        return Err(EncodeError::TooLong(body_bytes));
    }
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&CONTAINER_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&kind.tag);
    bytes[16..20].copy_from_slice(&kind.version.to_le_bytes());
    bytes[24..32].copy_from_slice(&(body_bytes as u64).to_le_bytes());
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let sum = checksum(header, body);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// Returns the value in `bytes`, a whole container of `kind` and nothing else.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, DecodeError> {
    let body = open(Some(kind), bytes)?;
    ciborium::from_reader(body).map_err(DecodeError::Body)
}

/// Says whether `bytes` are a whole container of any kind, whatever its body means.
pub fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    open(None, bytes).map(drop)
}

/// Returns the body of a whole container, of `kind` where that is given.
fn open(kind: Option<Kind>, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let cut = |wanted| DecodeError::Cut {
        found: bytes.len(),
        wanted,
    };
    let (header, body) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| cut(HEADER_BYTES))?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[..8] != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = |field, found: String, wanted: String| {
        if found == wanted {
            Ok(())
        } else {
            Err(DecodeError::Version {
                field,
                found,
                wanted,
            })
        }
    };
    version(
        "container version",
        word(8).to_string(),
        CONTAINER_VERSION.to_string(),
    )?;
    let tag = |tag: &[u8]| tag.escape_ascii().to_string();
    if let Some(kind) = kind {
        version("kind", tag(&header[12..16]), tag(&kind.tag))?;
        version(
            "schema version",
            word(16).to_string(),
            kind.version.to_string(),
        )?;
    }
    let length = u64::from_le_bytes(header[24..32].try_into().expect("8 bytes"));
    if length > MAX_BODY_BYTES as u64 {
        return Err(DecodeError::Length(length));
    }
    let length = length as usize;
    if body.len() < length {
        return Err(cut(HEADER_BYTES + length));
    }
    if body.len() > length {
        return Err(DecodeError::Trailing(body.len() - length));
    }
    let (found, wanted) = (checksum(header, body), word(20));
    if found != wanted {
        return Err(DecodeError::Damaged { found, wanted });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind {
        tag: *b"TEST",
        version: 3,
    };

    #[test]
    fn a_value_reads_back() {
        let value = (7u32, String::from("seven"), vec![1u8, 2, 3]);
        let bytes = encode(KIND, &value).expect("encode");
        assert_eq!(
            decode::<(u32, String, Vec<u8>)>(KIND, &bytes).expect("decode"),
            value
        );
    }

    #[test]
    fn other_kinds_and_versions_are_named() {
        let bytes = encode(KIND, &1u8).expect("encode");
        for (tag, version, field) in [(*b"ELSE", 3, "kind"), (*b"TEST", 4, "schema version")] {
            let error = decode::<u8>(Kind { tag, version }, &bytes).expect_err("refused");
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_cut_and_every_flip_is_found(
            value in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
        ) {
            let bytes = encode(KIND, &value).expect("encode");
            let at = at.index(bytes.len());
            prop_assert!(decode::<Vec<u8>>(KIND, &bytes[..at]).is_err());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(decode::<Vec<u8>>(KIND, &flipped).is_err());
            let mut longer = bytes;
            longer.push(0);
            prop_assert!(decode::<Vec<u8>>(KIND, &longer).is_err());
        }
    }
}
