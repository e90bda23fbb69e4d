//! Long lists of small records as one byte string each: a vCPU has hundreds of registers and CPUID
//! leaves, and a clone reads them all before it runs.

use crate::{CpuidLeaf, Msr};

/// A record of fixed length, little endian.
pub(crate) trait Packed: Sized {
    /// Its length, bytes.
    const BYTES: usize;
    /// Appends it.
    fn put(&self, to: &mut Vec<u8>);
    /// Reads it from exactly [`BYTES`](Self::BYTES) bytes; `None` where they are no such record.
    fn take(from: &[u8]) -> Option<Self>;
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.get(index).map(|word| u32::from_le_bytes(*word))
}

/// Index, then value.
impl Packed for Msr {
    const BYTES: usize = 12;

    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.index.to_le_bytes());
        to.extend_from_slice(&self.value.to_le_bytes());
    }

    fn take(from: &[u8]) -> Option<Self> {
        let (low, high) = (word(from, 1)?, word(from, 2)?);
        Some(Self {
            index: word(from, 0)?,
            value: u64::from(low) | u64::from(high) << 32,
        })
    }
}

/// Function, index, whether the index matters (0 or 1), EAX, EBX, ECX, EDX.
impl Packed for CpuidLeaf {
    const BYTES: usize = 28;

    fn put(&self, to: &mut Vec<u8>) {
        let head = [self.function, self.index, self.indexed.into()];
        for word in head.iter().chain(&self.result) {
            to.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn take(from: &[u8]) -> Option<Self> {
        let indexed = match word(from, 2)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self {
            function: word(from, 0)?,
            index: word(from, 1)?,
            indexed,
            result: [
                word(from, 3)?,
                word(from, 4)?,
                word(from, 5)?,
                word(from, 6)?,
            ],
        })
    }
}

/// For `#[serde(with = …)]`.
pub(crate) mod list {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};
    use serde_bytes::ByteBuf;

    use super::Packed;

    pub(crate) fn serialize<T: Packed, S: Serializer>(
        list: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(list.len() * T::BYTES);
        list.iter().for_each(|record| record.put(&mut bytes));
        serde_bytes::serialize(&bytes, to)
    }

    pub(crate) fn deserialize<'de, T: Packed, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let bytes: ByteBuf = serde_bytes::deserialize(from)?;
        if !bytes.len().is_multiple_of(T::BYTES) {
            let message = format!("{} bytes are no list of {}", bytes.len(), T::BYTES);
            return Err(D::Error::custom(message));
        }
        let records = bytes.chunks_exact(T::BYTES).map(T::take);
        records
            .collect::<Option<_>>()
            .ok_or_else(|| D::Error::custom("a flag is neither 0 nor 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Packed + PartialEq + std::fmt::Debug>(record: T) {
        let mut bytes = vec![];
        record.put(&mut bytes);
        assert_eq!(bytes.len(), T::BYTES);
        assert_eq!(T::take(&bytes), Some(record));
        assert_eq!(T::take(&bytes[..T::BYTES - 1]), None);
    }

    #[test]
    fn records_read_back() {
        check(Msr {
            index: 0xc000_0080,
            value: 0x0123_4567_89ab_cdef,
        });
        check(CpuidLeaf {
            function: 0x8000_0001,
            index: 3,
            indexed: true,
            result: [1, 2, 3, u32::MAX],
        });
    }

    #[test]
    fn a_flag_is_zero_or_one() {
        let mut bytes = [0; CpuidLeaf::BYTES];
        assert!(CpuidLeaf::take(&bytes).is_some());
        bytes[8] = 2;
        assert_eq!(CpuidLeaf::take(&bytes), None);
    }
}
