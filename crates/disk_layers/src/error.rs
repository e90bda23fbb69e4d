//! Errors of disk layers, one enum per operation family.

use std::io;

use thiserror::Error;

use crate::qcow2::backing::SetBackingError;

/// Why a chain of layers could not be opened.
#[derive(Debug, Error)]
pub enum OpenDiskError {
    /// One layer's file is not usable; `layer` counts from the top (0).
    #[error("cannot open disk layer {layer} (0 is the top)")]
    Layer {
        /// Position, counted from the top.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// No layer was given.
    #[error("disk chain is empty")]
    Empty,
    /// More layers than [`crate::MAX_LAYERS`].
    #[error(
        "disk chain has {layers} layers, more than {max}: flatten it into a standalone image first"
    )]
    TooDeep {
        /// Layers given.
        layers: usize,
        /// The limit.
        max: usize,
    },
    /// A raw file has layers below it, which no raw file can refer to.
    #[error("disk layer {layer} is raw but has {below} layers below it: only the last may be raw")]
    RawOverlay {
        /// Position, counted from the top.
        layer: usize,
        /// Layers given below it.
        below: usize,
    },
    /// The header of a layer and the chain given disagree about a backing file.
    #[error("disk layer {layer} {}", if *.named {
        "names a backing file, but the chain ends there"
    } else {
        "names no backing file, but the chain goes on below it"
    })]
    BackingMismatch {
        /// Position, counted from the top.
        layer: usize,
        /// Whether the header names a backing file.
        named: bool,
    },
    /// A new top does not have the size of the stack.
    #[error("new top has {top_bytes} bytes, the disk has {disk_bytes}")]
    SizeMismatch {
        /// Virtual size of the new top.
        top_bytes: u64,
        /// Virtual size of the disk.
        disk_bytes: u64,
    },
    /// A new top already holds content.
    #[error("new top is not empty: a fork needs an overlay made for it")]
    TopNotEmpty,
}

/// Why a guest request on a disk failed.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file system (or quota) of the top layer is full. Nothing was changed that a retry of
    /// the same request would not repair: pause the VM, make space, send the request again.
    #[error("no space left for the top disk layer")]
    NoSpace,
    /// The request goes past the end of the disk.
    #[error("request of {length} bytes at {offset} ends past the disk's {size} bytes")]
    OutOfBounds {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the disk.
        size: u64,
    },
    /// A write to a stack that was opened read-only.
    #[error("disk is read-only")]
    ReadOnly,
    /// A layer's tables are damaged.
    #[error("disk layer {layer} (0 is the top) is damaged")]
    Damaged {
        /// Position, counted from the top.
        layer: usize,
        /// What is wrong.
        #[source]
        source: LayerError,
    },
    /// The host failed a read, write or fallocate.
    #[error("cannot {action} disk layer {layer} (0 is the top)")]
    Io {
        /// "read", "write", "zero", "resize".
        action: &'static str,
        /// Position, counted from the top.
        layer: usize,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A write-back failed, so what was written since the last flush may be lost. Sticky: the
    /// kernel reports such a failure once and drops the pages, so a later success proves nothing.
    #[error("cannot make disk layer {layer} (0 is the top) durable")]
    Sync {
        /// Position, counted from the top.
        layer: usize,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// What the owner does before the first flush is acknowledged failed.
    #[error("cannot make the record of a new top durable")]
    BeforeFirstSync(#[source] io::Error),
}

/// Why the writable top could not be replaced.
#[derive(Debug, Error)]
pub enum SwapTopError {
    /// The top still has table changes in memory.
    #[error("top has unwritten tables: flush the disk before swapping its top")]
    NotFlushed,
    /// The stack is read-only, so that it has no writable top.
    #[error("disk is read-only: it has no top to swap")]
    ReadOnly,
    /// The prepared top was made for a disk of another size.
    #[error("prepared top has {top_bytes} bytes, the disk has {disk_bytes}")]
    SizeMismatch {
        /// Virtual size of the new top.
        top_bytes: u64,
        /// Virtual size of the disk.
        disk_bytes: u64,
    },
    /// The chain would exceed [`crate::MAX_LAYERS`].
    #[error("disk chain already has {max} layers: flatten it first")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// The top that was to be taken away again has been written to.
    #[error("top was written to since it was pushed: it can no longer be taken away")]
    TopUsed,
    /// There is only one layer.
    #[error("disk has a single layer: there is nothing to go back to")]
    NoLayerBelow,
}

/// Why the layers below a top could not be replaced; nothing has changed.
#[derive(Debug, Error)]
pub enum ReplaceBelowError {
    /// The stack is read-only, so that it has no writable top.
    #[error("disk is read-only: it has no top that could stay")]
    ReadOnly,
    /// There is only one layer.
    #[error("disk has a single layer: there is nothing below it to replace")]
    NoLayerBelow,
    /// The new layers make a disk of another size.
    #[error("new layers have {new_bytes} bytes, those below the top have {old_bytes}")]
    SizeMismatch {
        /// Virtual size of the nearest new layer.
        new_bytes: u64,
        /// Virtual size of the nearest old layer.
        old_bytes: u64,
    },
    /// The top's header cannot name them.
    #[error("cannot name the new layers in the top")]
    Header(#[source] SetBackingError),
}

/// What is wrong with one layer's file.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The host failed a read.
    #[error("cannot read it at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// It has no qcow2 magic, but qcow2 was asked for.
    #[error("not a qcow2 file: magic is {magic:#010x}, expected 0x514649fb")]
    NotQcow2 {
        /// The first four bytes.
        magic: u32,
    },
    /// It is an image in a format that is not read here.
    #[error("{name} images are not supported: convert it with `qemu-img convert -O qcow2`")]
    ForeignFormat {
        /// The format found.
        name: &'static str,
    },
    /// The file ends before something that its header or tables promise.
    #[error("truncated: {what} ends at byte {needed}, the file at {actual}: copy it again")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it ends.
        needed: u64,
        /// Length of the file.
        actual: u64,
    },
    /// A field holds a value outside of what the format or Mitose allows.
    #[error("field {field} is {value:#x}: {reason}")]
    Field {
        /// Name of the field, as in the qcow2 specification.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it and how to get rid of it.
        reason: &'static str,
    },
    /// A name in the header is not usable.
    #[error("field {field} is not usable: {reason}")]
    Name {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it and how to get rid of it.
        reason: &'static str,
    },
    /// The file can be read, but not written to.
    #[error("cannot be opened for writing: {reason}")]
    NotWritable {
        /// What prevents it and how to get rid of it.
        reason: &'static str,
    },
    /// A compressed cluster does not decompress to a cluster.
    #[error("compressed cluster at byte {offset} is damaged")]
    Compressed {
        /// Where.
        offset: u64,
    },
}
