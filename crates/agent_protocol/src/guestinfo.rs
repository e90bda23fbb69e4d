//! guestinfo: key-value pairs that the host and the guest set, with the bounds that both keep.
//!
//! Setting an empty value removes the key, on either side.

use std::collections::BTreeMap;

/// What every key starts with.
pub const PREFIX: &str = "guestinfo.";

/// Longest key in bytes.
pub const KEY_MAX: usize = 256;

/// Longest value in bytes.
pub const VALUE_MAX: usize = 64 << 10;

/// Most keys of one guest.
pub const COUNT_MAX: usize = 256;

/// Most bytes of all keys and values of one guest: an identity message with all of them fits a
/// frame, whatever has to be escaped in it.
pub const TOTAL_MAX: usize = 128 << 10;

/// Keys of static addresses: `guestinfo.mitose.net.0.address`, `.gateway` and `.dns` (separated by
/// commas) for the first network interface. They belong to one VM: clones do not inherit them.
pub const NET_PREFIX: &str = "guestinfo.mitose.net.";

/// Why a key or a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestInfoError {
    /// The key has the wrong form.
    #[error(
        "key {key:?} is not guestinfo.NAME with letters, digits and . _ - in the name, {KEY_MAX} bytes at most"
    )]
    Key {
        /// Its beginning.
        key: String,
    },
    /// The value is too long.
    #[error("value of {key} has {len} bytes; give {VALUE_MAX} at most")]
    Long {
        /// Whose value.
        key: String,
        /// Its length in bytes.
        len: usize,
    },
    /// The value is not text.
    #[error(
        "value of {key} has control characters other than tab, newline and carriage return; encode it, \
         for example as base64"
    )]
    Control {
        /// Whose value.
        key: String,
    },
    /// There would be too many keys.
    #[error("there are {COUNT_MAX} keys already; remove one by setting it to the empty string")]
    Count,
    /// All of it would be too much.
    #[error("all keys and values would have {len} bytes, {TOTAL_MAX} fit; shorten or remove some")]
    Total {
        /// What it would be.
        len: usize,
    },
}

impl GuestInfoError {
    /// Returns which half of the pair is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Key { .. } => "key",
            Self::Long { .. } | Self::Control { .. } => "value",
            Self::Count | Self::Total { .. } => "guestinfo",
        }
    }
}

/// Returns true for a key that begins with [`PREFIX`] and has only letters, digits and `._-` behind
/// it.
pub fn is_key(key: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let name = key
        .strip_prefix(PREFIX)
        .filter(|_| key.len() <= KEY_MAX)
        .unwrap_or("");
    !name.is_empty() && name.bytes().all(plain)
}

/// Checks one pair by itself.
pub fn check(key: &str, value: &str) -> Result<(), GuestInfoError> {
    if !is_key(key) {
        let key = key[..key.floor_char_boundary(64)].to_owned();
        return Err(GuestInfoError::Key { key });
    }
    let key = || key.to_owned();
    if value.len() > VALUE_MAX {
        let len = value.len();
        return Err(GuestInfoError::Long { key: key(), len });
    }
    let foreign = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if value.chars().any(foreign) {
        return Err(GuestInfoError::Control { key: key() });
    }
    Ok(())
}

/// Checks a whole set.
pub fn check_all(values: &BTreeMap<String, String>) -> Result<(), GuestInfoError> {
    values
        .iter()
        .try_for_each(|(key, value)| check(key, value))?;
    if values.len() > COUNT_MAX {
        return Err(GuestInfoError::Count);
    }
    match total(values) {
        len if len > TOTAL_MAX => Err(GuestInfoError::Total { len }),
        _ => Ok(()),
    }
}

/// Sets or removes one value where all bounds allow it; returns whether anything changed.
pub fn set(
    values: &mut BTreeMap<String, String>,
    key: &str,
    value: &str,
) -> Result<bool, GuestInfoError> {
    check(key, value)?;
    let old = values.get(key);
    if value.is_empty() {
        return Ok(values.remove(key).is_some());
    }
    if old.is_some_and(|old| old == value) {
        return Ok(false);
    }
    if old.is_none() && values.len() >= COUNT_MAX {
        return Err(GuestInfoError::Count);
    }
    let freed = old.map_or(0, |old| key.len() + old.len());
    let len = total(values) - freed + key.len() + value.len();
    if len > TOTAL_MAX {
        return Err(GuestInfoError::Total { len });
    }
    values.insert(key.to_owned(), value.to_owned());
    Ok(true)
}

fn total(values: &BTreeMap<String, String>) -> usize {
    values.iter().map(|(k, v)| k.len() + v.len()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_out_of_form_are_refused_by_name() {
        for key in [
            "",
            "guestinfo.",
            "guestinfo",
            "other.a",
            "guestinfo.a b",
            "guestinfo.ä",
        ] {
            assert_eq!(check(key, "v").unwrap_err().field(), "key", "{key}");
        }
        let long = format!("guestinfo.{}", "k".repeat(KEY_MAX));
        assert_eq!(check(&long, "v").unwrap_err().field(), "key");
        let value = "v".repeat(VALUE_MAX + 1);
        assert_eq!(check("guestinfo.a", &value).unwrap_err().field(), "value");
        assert_eq!(check("guestinfo.a", "\0").unwrap_err().field(), "value");
        check("guestinfo.a.B-c_1", "two\nlines\t\u{1f600}").unwrap();
    }

    #[test]
    fn the_empty_string_removes() {
        let mut values = BTreeMap::new();
        assert_eq!(set(&mut values, "guestinfo.a", "1"), Ok(true));
        assert_eq!(set(&mut values, "guestinfo.a", "1"), Ok(false));
        assert_eq!(set(&mut values, "guestinfo.a", ""), Ok(true));
        assert_eq!(set(&mut values, "guestinfo.a", ""), Ok(false));
        assert!(values.is_empty());
    }

    #[test]
    fn count_and_total_are_bounded_and_a_full_set_can_still_change() {
        let mut values = BTreeMap::new();
        for index in 0..COUNT_MAX {
            set(&mut values, &format!("guestinfo.{index}"), "v").unwrap();
        }
        assert_eq!(
            set(&mut values, "guestinfo.more", "v"),
            Err(GuestInfoError::Count)
        );
        set(&mut values, "guestinfo.0", "other").unwrap();
        let big = "v".repeat(VALUE_MAX);
        set(&mut values, "guestinfo.1", &big).unwrap();
        let refused = set(&mut values, "guestinfo.2", &big);
        assert!(matches!(refused, Err(GuestInfoError::Total { .. })));
        set(&mut values, "guestinfo.1", "short").unwrap();
        set(&mut values, "guestinfo.2", &big).unwrap();
        check_all(&values).unwrap();
    }

    proptest! {
        #[test]
        fn no_history_of_changes_leaves_the_bounds(
            changes in prop::collection::vec(("guestinfo[.][a-c]{0,2}", 0usize..70_000), 0..40)
        ) {
            let mut values = BTreeMap::new();
            for (key, len) in changes {
                let _ = set(&mut values, &key, &"\"".repeat(len));
                prop_assert_eq!(check_all(&values), Ok(()));
            }
        }
    }
}
