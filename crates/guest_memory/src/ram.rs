//! [`GuestRam`]: the RAM of one VM, its view (shared or private) and the switch between them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::flatten::Flattening;
use crate::layers::Layers;
use crate::mapping::{MapError, Mapping, Place, Sharing};

/// End of the lower range of guest RAM; device addresses follow up to 4 GiB.
const LOW_END: u64 = 3 << 30;
/// Start of the upper range of guest RAM.
const HIGH_START: u64 = 4 << 30;
pub(crate) const PAGE: u64 = 4096;
/// What is unmapped at a time, bytes.
const PIECE_BYTES: usize = 16 << 20;

/// A range of guest-physical addresses that is RAM, and where it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical start.
    pub gpa: u64,
    /// Offset in the file and in the host mapping, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub len: u64,
}

/// Returns where `bytes` of RAM lie in the guest-physical address space.
pub fn ram_ranges(bytes: u64) -> Vec<RamRange> {
    let low = bytes.min(LOW_END);
    let mut ranges = vec![RamRange {
        gpa: 0,
        offset: 0,
        len: low,
    }];
    if bytes > low {
        ranges.push(RamRange {
            gpa: HIGH_START,
            offset: low,
            len: bytes - low,
        });
    }
    ranges
}

/// How the RAM is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All writes are in the file.
    Shared,
    /// Writes go to private pages on top of the file.
    Private,
}

/// Guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CreateRamError {
    /// A mapping failed.
    #[error("cannot map guest RAM")]
    Map(#[from] MapError),
    /// The file is shorter than the RAM: reading past its end would kill the process.
    #[error("memory file has {found} bytes, the machine needs {wanted}")]
    Short {
        /// Size of the file, bytes.
        found: u64,
        /// Size of the RAM, bytes.
        wanted: u64,
    },
    /// The file's size could not be read.
    #[error("cannot read the size of the memory file")]
    Stat(#[source] io::Error),
    /// The ranges do not make a guest memory.
    #[error("guest RAM of {0} bytes cannot be described")]
    Describe(u64),
}

/// The switch to a private view failed; the RAM is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The RAM is a private view already: only `fork()` holds its instant.
    #[error("guest RAM is a private view already")]
    NotShared,
    /// A mapping failed.
    #[error("cannot switch the view of guest RAM")]
    Map(#[source] MapError),
}

/// The RAM of one VM at a fixed host address.
#[derive(Debug)]
pub struct GuestRam {
    pub(crate) mapping: Mapping,
    view: View,
    pub(crate) layers: Layers,
    memory: GuestMemoryMmap,
    spare: Option<Mapping>,
    pub(crate) flattening: Option<Flattening>,
}

/// Addresses of guest RAM whose content is not there yet: an engine can be given them ahead.
#[derive(Debug)]
pub struct ReservedRam {
    place: Place,
}

/// What is left of the view before [`GuestRam::seal`]; [`SealedView::finish`] frees it.
#[derive(Debug)]
#[must_use = "the moved mapping keeps the layer writable until it is finished"]
pub struct SealedView {
    moved: Mapping,
    /// The file to seal.
    file: OwnedFd,
}

impl GuestRam {
    /// Maps `file` (at least `bytes` long) shared: the RAM of a VM that was never forked.
    pub fn shared(file: File, bytes: u64) -> Result<Self, CreateRamError> {
        Self::map(file, bytes, View::Shared)
    }

    /// Maps the sealed layer `file` privately: the RAM of a clone.
    pub fn private(file: File, bytes: u64) -> Result<Self, CreateRamError> {
        Self::map(file, bytes, View::Private)
    }

    fn map(file: File, bytes: u64, view: View) -> Result<Self, CreateRamError> {
        ReservedRam::new(bytes)?.fill(file, view)
    }

    /// Returns the guest-physical view for devices and loaders.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Returns how the RAM is mapped.
    pub fn view(&self) -> View {
        self.view
    }

    /// Returns the file behind the RAM: the memory layer once it is sealed. One that is flattened
    /// may have [more](Self::files); this is the first.
    pub fn file(&self) -> &File {
        self.layers.at(0).0
    }

    /// Returns all files behind the RAM, some of them more than once.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.layers.files()
    }

    /// Copies RAM from `offset` of the host mapping on into `bytes`.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        let mut at = offset;
        for range in ram_ranges(self.len()) {
            let end = range.offset + range.len;
            if at < range.offset || at >= end || rest.is_empty() {
                continue;
            }
            let (now, later) = rest.split_at_mut(rest.len().min((end - at) as usize));
            let gpa = GuestAddress(range.gpa + (at - range.offset));
            let read = self.memory.read_slice(now, gpa);
            read.map_err(io::Error::other)?;
            at += now.len() as u64;
            rest = later;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Returns the host address of the first byte.
    pub fn host_address(&self) -> u64 {
        self.mapping.address() as u64
    }

    /// Returns the size of the RAM, bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Returns whether the RAM has no bytes; it never does.
    pub fn is_empty(&self) -> bool {
        self.mapping.len() == 0
    }

    /// Reserves the addresses that [`seal`](Self::seal) moves the shared view to, ahead of the
    /// stun.
    pub fn prepare_seal(&mut self) -> Result<(), MapError> {
        if self.spare.is_none() {
            self.spare = Some(Mapping::reserve(self.mapping.len())?);
        }
        Ok(())
    }

    /// Turns what was written so far into an immutable layer: the shared mapping moves away and a
    /// private one of the same file takes its address. Nothing may access the RAM meanwhile.
    pub fn seal(&mut self) -> Result<SealedView, SealError> {
        if self.view != View::Shared {
            return Err(SealError::NotShared);
        }
        let file = self.file().try_clone().map_err(|source| {
            SealError::Map(MapError {
                action: "duplicate the file of",
                len: 0,
                source,
            })
        })?;
        self.prepare_seal().map_err(SealError::Map)?;
        let spare = self.spare.take().expect("prepared above");
        self.mapping.move_to(&spare).map_err(SealError::Map)?;
        if let Err(error) = self.mapping.map(self.file(), Sharing::Private) {
            spare
                .move_to(&self.mapping)
                .expect("moving a mapping back to its own free range");
            spare.forget();
            return Err(SealError::Map(error));
        }
        self.view = View::Private;
        Ok(SealedView {
            moved: spare,
            file: file.into(),
        })
    }

    /// Undoes [`seal`](Self::seal) while nothing ran since.
    pub fn unseal(&mut self, sealed: SealedView) -> Result<(), MapError> {
        sealed.moved.move_to(&self.mapping)?;
        sealed.moved.forget();
        self.view = View::Shared;
        Ok(())
    }

    /// Gives `len` bytes at `gpa` back to the host; the guest promised not to need them. On a
    /// shared view the file loses them (they read as zero), on a private view only the private
    /// pages go and the layer's older bytes show. Ranges that are not whole RAM pages are ignored.
    pub fn discard(&self, gpa: u64, len: u64) -> Result<(), MapError> {
        let Some(range) = ram_ranges(self.len())
            .into_iter()
            .find(|r| gpa >= r.gpa && gpa.checked_add(len).is_some_and(|end| end <= r.gpa + r.len))
        else {
            return Ok(());
        };
        let offset = range.offset + (gpa - range.gpa);
        let start = offset.next_multiple_of(PAGE);
        let end = (offset + len) / PAGE * PAGE;
        if end <= start {
            return Ok(());
        }
        match self.view {
            View::Private => {
                self.mapping
                    .advise(start as usize, (end - start) as usize, libc::MADV_DONTNEED)
            }
            View::Shared => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(self.file(), flags, start, end - start).map_err(|errno| MapError {
                    action: "punch a hole into",
                    len: (end - start) as usize,
                    source: errno.into(),
                })
            }
        }
    }
}

impl ReservedRam {
    /// Finds addresses for `bytes` of RAM, without anything behind them.
    pub fn new(bytes: u64) -> Result<Self, CreateRamError> {
        let len = usize::try_from(bytes).map_err(|_| CreateRamError::Describe(bytes))?;
        if len == 0 {
            return Err(CreateRamError::Describe(bytes));
        }
        Ok(Self {
            place: Place::find(len)?,
        })
    }

    /// Returns the host address of the first byte.
    pub fn host_address(&self) -> u64 {
        self.place.address() as u64
    }

    /// Returns the size of the RAM, bytes.
    pub fn bytes(&self) -> u64 {
        self.place.len() as u64
    }

    /// Maps the sealed layer `file` privately: the RAM of a clone.
    pub fn private(self, file: File) -> Result<GuestRam, CreateRamError> {
        self.fill(file, View::Private)
    }

    fn fill(self, file: File, view: View) -> Result<GuestRam, CreateRamError> {
        let Self { place } = self;
        let bytes = place.len() as u64;
        // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
        let stat = rustix::fs::fstat(&file).map_err(|errno| CreateRamError::Stat(errno.into()))?;
        let found = stat.st_size.cast_unsigned();
        if found < bytes {
            return Err(CreateRamError::Short {
                found,
                wanted: bytes,
            });
        }
        let sharing = match view {
            View::Shared => Sharing::Shared,
            View::Private => Sharing::Private,
        };
        let mapping = place.map(&file, sharing)?;
        let memory = describe(&mapping, bytes)?;
        Ok(GuestRam {
            mapping,
            view,
            layers: Layers::one(file, bytes),
            memory,
            spare: None,
            flattening: None,
        })
    }
}

impl SealedView {
    /// Forbids new writable mappings of the layer; cheap, done inside the stun.
    pub fn forbid_new_writers(&self) -> io::Result<()> {
        self.add_seals(SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK)
    }

    fn add_seals(&self, seals: SealFlags) -> io::Result<()> {
        fcntl_add_seals(&self.file, seals).map_err(Into::into)
    }

    /// Keeps the moved mapping from a child process, which could not finish it.
    pub fn hide_from_fork(&self) -> Result<(), MapError> {
        self.moved.advise(0, self.moved.len(), libc::MADV_DONTFORK)
    }

    /// Unmaps the moved mapping and seals the layer for good. Takes time in proportion to the RAM,
    /// some 15 µs for each MiB that was touched: belongs after the stun, in a thread of its own.
    /// Goes on after each piece when `between` returns.
    pub fn finish(mut self, mut between: impl FnMut()) -> io::Result<()> {
        while self.moved.unmap_front(PIECE_BYTES) {
            between();
        }
        self.add_seals(SealFlags::WRITE)
    }
}

fn describe(mapping: &Mapping, bytes: u64) -> Result<GuestMemoryMmap, CreateRamError> {
    let refused = || CreateRamError::Describe(bytes);
    let regions = ram_ranges(bytes)
        .into_iter()
        .map(|range| {
            let host = (mapping.address() as u64 + range.offset) as *mut u8;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let builder: MmapRegionBuilder<()> = MmapRegionBuilder::new(range.len as usize)
                .with_mmap_prot(prot)
                .with_mmap_flags(libc::MAP_NORESERVE);
            // SAFETY: the range lies inside `mapping`, which the same `GuestRam` owns for as long
            // as the view exists, and stays mapped readable and writable at this address for life.
            let builder = unsafe { builder.with_raw_mmap_pointer(host) };
            let region: MmapRegion<()> = builder.build().map_err(|_| refused())?;
            GuestRegionMmap::new(region, GuestAddress(range.gpa)).ok_or_else(refused)
        })
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(|_| refused())
}
