//! A disk: a writable top over immutable layers.
//!
//! ```text
//!   open ──► running ──flush──► clean ──push_top──► running on the new top
//!                                 ▲                      │ nothing written yet
//!                                 └───────pop_top────────┘
//! ```

mod below;
mod io;

pub use below::{PreparedBelow, Replaced};
pub(crate) use io::Visible;

use crate::error::{DiskError, LayerError, OpenDiskError, SwapTopError};
use crate::layer::{DiskFormat, Kind, Layer, LayerFile};
use crate::qcow2::alloc::AllocError;
use crate::qcow2::cache::SliceCache;
use crate::qcow2::commit::{CommitError, Order};
use crate::qcow2::image::Image;
use crate::qcow2::update::Access;
use crate::storage::{Storage, is_no_space};
use crate::{MAX_DISK_BYTES, MAX_LAYERS};

/// Size of a cached piece of a table.
const SLICE_BYTES: usize = 4096;
/// Freed clusters that may wait in memory before a commit is forced.
const MAX_PENDING: usize = 1 << 16;

/// How a stack is opened.
#[derive(Clone, Copy, Debug)]
pub struct StackOptions {
    /// Refuse writes; the top's file may be read-only.
    pub read_only: bool,
    /// Memory for table pages, shared by all layers, taken as needed. A page maps 32 MiB of a
    /// layer with 64 KiB clusters.
    pub cache_bytes: usize,
}

impl Default for StackOptions {
    fn default() -> Self {
        StackOptions {
            read_only: false,
            cache_bytes: 4 << 20,
        }
    }
}

type Hook = Box<dyn FnMut() -> std::io::Result<()> + Send>;

/// A disk made of layers. See the crate documentation.
pub struct DiskStack {
    /// The top is the last one. Never empty.
    layers: Vec<Layer>,
    cache: SliceCache,
    unpacked: Option<io::Unpacked>,
    scratch: Vec<u8>,
    read_only: bool,
    next_id: u32,
    before_first_sync: Option<Hook>,
    /// A write-back failed once; see [`DiskError::Sync`].
    sync_failed: bool,
}

impl std::fmt::Debug for DiskStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStack")
            .field("layers", &self.layers.len())
            .field("size", &self.size_bytes())
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// An empty overlay, opened and checked ahead of [`DiskStack::push_top`].
#[derive(Debug)]
pub struct PreparedTop {
    layer: Layer,
}

impl PreparedTop {
    /// Opens and checks an overlay without content of its own. Needs no stack, so it can be done
    /// while the disk is in use.
    pub fn open(top: LayerFile) -> Result<PreparedTop, OpenDiskError> {
        Self::open_storage(Box::new(top.file), top.format)
    }

    pub(crate) fn open_storage(
        storage: Box<dyn Storage>,
        format: DiskFormat,
    ) -> Result<PreparedTop, OpenDiskError> {
        let layer = Layer::open(0, storage, format, true)
            .map_err(|source| OpenDiskError::Layer { layer: 0, source })?;
        match &layer.kind {
            Kind::Raw => Err(OpenDiskError::RawOverlay { layer: 0, below: 1 }),
            Kind::Qcow2(_) if !layer.names_backing() => Err(OpenDiskError::BackingMismatch {
                layer: 0,
                named: false,
            }),
            Kind::Qcow2(image) if !image.is_empty() => Err(OpenDiskError::TopNotEmpty),
            Kind::Qcow2(_) => Ok(PreparedTop { layer }),
        }
    }

    /// Size of the disk it is made for, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layer.size
    }
}

impl DiskStack {
    /// Opens a stack from its files: the top, and what lies below it, nearest first. The chain is
    /// taken as given; names in the files are not followed, only their presence is checked.
    pub fn open(
        top: LayerFile,
        below: Vec<LayerFile>,
        options: StackOptions,
    ) -> Result<DiskStack, OpenDiskError> {
        let files = std::iter::once(top)
            .chain(below)
            .map(|layer| (Box::new(layer.file) as Box<dyn Storage>, layer.format))
            .collect();
        Self::open_storages(files, options)
    }

    /// Top first.
    pub(crate) fn open_storages(
        files: Vec<(Box<dyn Storage>, DiskFormat)>,
        options: StackOptions,
    ) -> Result<DiskStack, OpenDiskError> {
        let count = files.len();
        if count == 0 {
            return Err(OpenDiskError::Empty);
        }
        if count > MAX_LAYERS {
            return Err(OpenDiskError::TooDeep {
                layers: count,
                max: MAX_LAYERS,
            });
        }
        let layers = below::open_layers(files, 0, !options.read_only)?;
        Ok(DiskStack {
            layers,
            cache: SliceCache::new(options.cache_bytes / SLICE_BYTES),
            unpacked: None,
            scratch: Vec::new(),
            read_only: options.read_only,
            next_id: count as u32,
            before_first_sync: None,
            sync_failed: false,
        })
    }

    /// Size of the disk in bytes, whole sectors of 512.
    pub fn size_bytes(&self) -> u64 {
        self.layers.last().map_or(0, |top| top.size)
    }

    /// Number of layers, the top included.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Smallest unit, in bytes, that [`DiskStack::discard`] gives back.
    pub fn discard_granularity(&self) -> u64 {
        match self.layers.last().map(|top| &top.kind) {
            Some(Kind::Qcow2(image)) => image.header.cluster_bytes(),
            _ => 4096,
        }
    }

    /// Sets what has to be done before the next [`DiskStack::sync`] may succeed: after a fork,
    /// the owner makes the new top's directory entry and record durable here. It runs once; when
    /// it fails, so does that `sync`, and the next one runs it again.
    pub fn before_first_sync(&mut self, hook: Hook) {
        self.before_first_sync = Some(hook);
    }

    /// Writes changed tables to the top's file, without waiting for the disk. Afterwards another
    /// process can open the file and sees all that was written.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.commit(Order::Written)
    }

    /// Makes everything written so far durable, in all layers: a guest's FLUSH.
    pub fn sync(&mut self) -> Result<(), DiskError> {
        if self.sync_failed {
            return Err(DiskError::Sync {
                layer: 0,
                source: std::io::Error::other("an earlier write-back failed"),
            });
        }
        if !self.read_only {
            self.commit(Order::Durable)?;
            let count = self.layers.len();
            for (at, layer) in self.layers.iter_mut().enumerate() {
                if !layer.unsynced {
                    continue;
                }
                if let Err(source) = layer.storage.sync_data() {
                    self.sync_failed = true;
                    let layer = count - 1 - at;
                    return Err(DiskError::Sync { layer, source });
                }
                layer.unsynced = false;
            }
            if let Some(alloc) = self.top_image().and_then(|image| image.alloc.as_mut()) {
                alloc.synced();
            }
            for layer in self.layers.iter_mut().rev().skip(1) {
                layer.seal();
            }
        }
        if let Some(mut hook) = self.before_first_sync.take()
            && let Err(err) = hook()
        {
            self.before_first_sync = Some(hook);
            return Err(DiskError::BeforeFirstSync(err));
        }
        Ok(())
    }

    /// Makes the top immutable and continues on `top`. The stack must be flushed. Touches memory
    /// only.
    pub fn push_top(&mut self, top: PreparedTop) -> Result<(), SwapTopError> {
        if self.read_only {
            return Err(SwapTopError::ReadOnly);
        }
        if self.layers.len() >= MAX_LAYERS {
            return Err(SwapTopError::TooDeep { max: MAX_LAYERS });
        }
        let cache_dirty = self.cache.has_dirty();
        if self
            .top_image()
            .is_some_and(|image| image.is_dirty(cache_dirty))
        {
            return Err(SwapTopError::NotFlushed);
        }
        if top.layer.size != self.size_bytes() {
            return Err(SwapTopError::SizeMismatch {
                top_bytes: top.layer.size,
                disk_bytes: self.size_bytes(),
            });
        }
        let mut layer = top.layer;
        layer.id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.layers.push(layer);
        Ok(())
    }

    /// Takes away a top that was pushed, and neither written to nor synced since: the layer below
    /// is the writable top again.
    pub fn pop_top(&mut self) -> Result<PreparedTop, SwapTopError> {
        if self.read_only {
            return Err(SwapTopError::ReadOnly);
        }
        let cache_dirty = self.cache.has_dirty();
        match self.top_image() {
            Some(image) if !image.is_empty() || image.is_dirty(cache_dirty) => {
                return Err(SwapTopError::TopUsed);
            }
            _ => {}
        }
        let below = self.layers.len().checked_sub(2);
        if !below.is_some_and(|at| self.layers[at].writable) {
            return Err(SwapTopError::NoLayerBelow);
        }
        let Some(layer) = self.layers.pop() else {
            return Err(SwapTopError::NoLayerBelow);
        };
        self.cache.forget(layer.id);
        Ok(PreparedTop { layer })
    }

    fn commit(&mut self, order: Order) -> Result<(), DiskError> {
        let Some(layer) = self.layers.last_mut().filter(|_| !self.read_only) else {
            return Ok(());
        };
        let Kind::Qcow2(image) = &mut layer.kind else {
            return Ok(());
        };
        if !image.is_dirty(self.cache.has_dirty()) {
            return Ok(());
        }
        layer.unsynced = true;
        let mut access = Access {
            layer: layer.id,
            file: layer.storage.as_ref(),
            cache: &mut self.cache,
        };
        image.commit(&mut access, order).map_err(|err| match err {
            CommitError::Write(source) => io_error("write tables of", 0, source),
            CommitError::Sync(source) => {
                self.sync_failed = true;
                DiskError::Sync { layer: 0, source }
            }
            CommitError::Alloc(err) => alloc_error(err),
        })
    }

    /// Writes tables out when too many are changed in memory.
    fn make_room(&mut self) -> Result<(), DiskError> {
        let pending = self
            .top_image()
            .and_then(|image| image.alloc.as_ref())
            .is_some_and(|alloc| alloc.pending() > MAX_PENDING);
        if pending || self.cache.is_crowded() {
            self.commit(Order::Durable)?;
        }
        Ok(())
    }

    fn top_image(&mut self) -> Option<&mut Image> {
        match self.layers.last_mut().map(|layer| &mut layer.kind) {
            Some(Kind::Qcow2(image)) => Some(image),
            _ => None,
        }
    }

    fn check_bounds(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let size = self.size_bytes();
        debug_assert!(size <= MAX_DISK_BYTES);
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(DiskError::OutOfBounds {
                offset,
                length,
                size,
            }),
        }
    }
}

fn io_error(action: &'static str, layer: usize, source: std::io::Error) -> DiskError {
    if is_no_space(&source) {
        DiskError::NoSpace
    } else {
        DiskError::Io {
            action,
            layer,
            source,
        }
    }
}

fn damaged(layer: usize) -> impl Fn(LayerError) -> DiskError {
    move |source| DiskError::Damaged { layer, source }
}

fn alloc_error(err: AllocError) -> DiskError {
    match err {
        AllocError::Io(source) => io_error("read tables of", 0, source),
        AllocError::Damaged(source) => DiskError::Damaged { layer: 0, source },
    }
}
