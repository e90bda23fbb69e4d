//! One host mapping that owns its address range.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Alignment of guest RAM in the host: whole page-table pages move at once in `mremap`.
const ALIGN: usize = 1 << 30;

/// Addresses of guest RAM lie between these: far below where the kernel puts mappings by itself (it
/// begins at the top, unless it is told to lay processes out as it once did), above what
/// AddressSanitizer uses.
const PLACES: std::ops::Range<usize> = 0x2000_0000_0000..0x5000_0000_0000;

/// Places that are tried before there is said to be none.
const TRIES: usize = 64;

/// A host call on a mapping failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {len} bytes of guest memory")]
pub struct MapError {
    /// What was tried.
    pub action: &'static str,
    /// Length, bytes.
    pub len: usize,
    /// The host call's error.
    #[source]
    pub source: io::Error,
}

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Shared,
    Private,
}

/// An owned range of host addresses; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: usize,
    len: usize,
}

/// A range of host addresses that nothing is mapped at.
///
/// It is not kept by a mapping: to replace one, the kernel first tells KVM that the range changes, and
/// KVM looks through its tables for all of the guest's pages where it keeps such tables (0.2 ms for
/// each GiB). Nothing else of this process is likely to come there, see [`PLACES`]; where it does, mapping
/// fails.
#[derive(Debug)]
pub(crate) struct Place {
    address: usize,
    len: usize,
}

impl Place {
    /// Finds a place of `len` bytes, aligned to 1 GiB, anywhere among many.
    pub(crate) fn find(len: usize) -> Result<Self, MapError> {
        let none = |source: io::Error| MapError {
            action: "find addresses for",
            len,
            source,
        };
        let last = PLACES
            .end
            .checked_sub(len)
            .filter(|last| *last > PLACES.start);
        let last = last.ok_or_else(|| none(io::ErrorKind::OutOfMemory.into()))?;
        let count = (last - PLACES.start) / ALIGN;
        let mut found = none(io::ErrorKind::AddrInUse.into());
        for _ in 0..TRIES {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .map_err(|errno| none(errno.into()))?;
            let place = Self {
                address: PLACES.start + usize::from_ne_bytes(random) % (count + 1) * ALIGN,
                len,
            };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            match place.take(libc::PROT_NONE, flags, -1) {
                // It was to show that the place is free.
                Ok(mapping) => {
                    drop(mapping);
                    return Ok(place);
                }
                Err(error) => found = error,
            }
        }
        Err(found)
    }

    /// Maps `file` here, from offset 0.
    pub(crate) fn map(self, file: impl AsFd, sharing: Sharing) -> Result<Mapping, MapError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_NORESERVE | sharing.flag();
        self.take(prot, flags, file.as_fd().as_raw_fd())
    }

    fn take(&self, prot: i32, flags: i32, fd: i32) -> Result<Mapping, MapError> {
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        let start = self.address as *mut libc::c_void;
        // SAFETY: the call replaces nothing that is mapped; a descriptor given is open.
        let at = unsafe { libc::mmap(start, self.len, prot, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(last_error("map", self.len));
        }
        let mapping = Mapping {
            address: at as usize,
            len: self.len,
        };
        // Before Linux 4.17 the address is a mere wish.
        match mapping.address == self.address {
            true => Ok(mapping),
            false => Err(MapError {
                action: "map",
                len: self.len,
                source: io::ErrorKind::AddrInUse.into(),
            }),
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Sharing {
    fn flag(self) -> i32 {
        match self {
            Self::Shared => libc::MAP_SHARED,
            Self::Private => libc::MAP_PRIVATE,
        }
    }
}

fn last_error(action: &'static str, len: usize) -> MapError {
    MapError {
        action,
        len,
        source: io::Error::last_os_error(),
    }
}

impl Mapping {
    /// Reserves `len` bytes of addresses, aligned to 1 GiB, without memory behind them.
    pub(crate) fn reserve(len: usize) -> Result<Self, MapError> {
        let total = len.checked_add(ALIGN).ok_or_else(|| MapError {
            action: "reserve",
            len,
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_error("reserve addresses for", len));
        }
        let start = start as usize;
        let address = start.next_multiple_of(ALIGN);
        let head = Self {
            address: start,
            len: address - start,
        };
        let tail = Self {
            address: address + len,
            len: start + total - (address + len),
        };
        drop((head, tail));
        Ok(Self { address, len })
    }

    /// Maps `file` over this range, from offset 0.
    pub(crate) fn map(&self, file: impl AsFd, sharing: Sharing) -> Result<(), MapError> {
        self.map_at(file, sharing, 0, self.len)
    }

    /// Maps `len` bytes of `file` privately over this range, both from `offset` on.
    pub(crate) fn map_part(
        &self,
        file: impl AsFd,
        offset: u64,
        len: usize,
    ) -> Result<(), MapError> {
        self.map_at(file, Sharing::Private, offset as usize, len)
    }

    fn map_at(
        &self,
        file: impl AsFd,
        sharing: Sharing,
        offset: usize,
        len: usize,
    ) -> Result<(), MapError> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "mapping in range"
        );
        let flags = libc::MAP_FIXED | libc::MAP_NORESERVE | sharing.flag();
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_fd().as_raw_fd();
        let start = (self.address + offset) as *mut libc::c_void;
        // SAFETY: the range is owned by `self`, so MAP_FIXED replaces only our own mapping; the
        // descriptor is open. Pointers into the range stay valid, their content becomes the file's.
        let at = unsafe { libc::mmap(start, len, prot, flags, fd, offset as libc::off_t) };
        if at == libc::MAP_FAILED {
            Err(last_error("map", len))
        } else {
            Ok(())
        }
    }

    /// Moves what is mapped here into `target` (of equal length); this range is then empty and
    /// must be mapped again before anything uses it.
    pub(crate) fn move_to(&self, target: &Self) -> Result<(), MapError> {
        debug_assert_eq!(self.len, target.len);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let to = target.address as *mut libc::c_void;
        // SAFETY: both ranges are owned by the caller and equal in length; what was at the target
        // is replaced on purpose.
        let at = unsafe { libc::mremap(self.address as *mut _, self.len, self.len, flags, to) };
        if at == libc::MAP_FAILED {
            Err(last_error("move", self.len))
        } else {
            Ok(())
        }
    }

    /// Gives advice on part of the range.
    pub(crate) fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), MapError> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "advice in range"
        );
        // SAFETY: the range lies inside the mapping that `self` owns; the advice used by this crate
        // (DONTNEED on private views, DONTFORK) changes content only as its callers document.
        let result = unsafe { libc::madvise((self.address + offset) as *mut _, len, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(last_error("advise on", len))
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Unmaps the first `len` bytes, or what is left; returns whether anything is left.
    pub(crate) fn unmap_front(&mut self, len: usize) -> bool {
        let len = len.min(self.len);
        drop(Self {
            address: self.address,
            len,
        });
        self.address += len;
        self.len -= len;
        self.len > 0
    }

    /// Gives the range up without unmapping it.
    pub(crate) fn forget(mut self) {
        self.len = 0;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is owned by `self` and nothing refers to it any longer.
            unsafe { libc::munmap(self.address as *mut _, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LEN: usize = 3 << 20;

    #[test]
    fn a_place_is_free_and_takes_one_mapping() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; LEN]).unwrap();
        let place = Place::find(LEN).unwrap();
        let again = Place {
            address: place.address(),
            len: place.len(),
        };
        assert_eq!(place.address() % ALIGN, 0);
        let mapping = place.map(&file, Sharing::Private).unwrap();
        assert_eq!(mapping.address(), again.address());
        // What is mapped is not replaced.
        let error = again.map(&file, Sharing::Shared).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EEXIST));
        // SAFETY: the mapping is readable and lives until the end of the test.
        let byte = unsafe { *(mapping.address() as *const u8) };
        assert_eq!(byte, 7);
    }

    #[test]
    fn places_differ_and_sizes_that_do_not_fit_are_refused() {
        let places: std::collections::HashSet<_> = (0..8)
            .map(|_| Place::find(LEN).unwrap().address())
            .collect();
        assert!(places.len() > 1);
        assert!(Place::find(usize::MAX).is_err());
        assert!(Place::find(PLACES.end).is_err());
    }
}
