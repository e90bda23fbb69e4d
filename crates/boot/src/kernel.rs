//! A kernel file, checked and ready to be loaded: recognises bzImage and ELF64 and decides how
//! the kernel is entered.

use std::io::Read;

use crate::bzimage::{self, BzImage};
use crate::elf::{self, Elf, LoadSegment};
use crate::layout::{COMMAND_LINE_BYTES_MAX, HIGH_RAM_START, LINUX_COMMAND_LINE_BYTES_MAX};
use crate::payload::PayloadError;

/// Longest kernel file, also after decompression: 512 MiB.
pub const KERNEL_BYTES_MAX: u64 = 512 << 20;
/// Last address at which Linux takes an initial RAM disk when no boot header says otherwise.
const LINUX_INITRD_LAST: u64 = 0x7fff_ffff;
const LINUX_BANNER: &[u8] = b"Linux version ";

/// Why a file is not a kernel that boots.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("reading the kernel file")]
    Read(#[source] std::io::Error),
    /// The file is longer than any kernel.
    #[error("the kernel file is longer than 512 MiB: give a kernel, not a disk image")]
    TooLong,
    /// The file is of no known format.
    #[error(
        "the kernel file is neither a bzImage nor an ELF file: give a Linux bzImage (vmlinuz), \
         a vmlinux or any 64-bit ELF executable"
    )]
    UnknownFormat,
    /// The file ends too early.
    #[error(
        "the {format} file is cut off: {part} reaches to byte {needed:#x}, the file has \
         {bytes:#x}; copy the file again"
    )]
    Truncated {
        /// File format.
        format: &'static str,
        /// What does not fit.
        part: &'static str,
        /// First byte after it.
        needed: u64,
        /// Length of the file.
        bytes: u64,
    },
    /// A header field has a value that cannot be loaded.
    #[error("{format} field {field} has the value {value:#x}: {remedy}")]
    Field {
        /// File format.
        format: &'static str,
        /// Name of the field in the format's specification.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong and what helps.
        remedy: &'static str,
    },
    /// The compressed kernel inside a bzImage is damaged.
    #[error("extracting the kernel of the bzImage")]
    Payload(#[source] PayloadError),
}

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// Linux: 64-bit boot protocol.
    Linux,
    /// Another ELF file with a PVH note: 32-bit PVH entry.
    Pvh,
    /// Another ELF file: long mode at its entry point.
    Elf,
}

/// A kernel that can be loaded.
pub struct Kernel {
    pub(crate) kind: KernelKind,
    pub(crate) file: Vec<u8>,
    pub(crate) segments: Vec<LoadSegment>,
    pub(crate) entry: u64,
    /// First address after all memory the kernel uses before it knows the memory map.
    pub(crate) end: u64,
    /// Last address an initial RAM disk may touch.
    pub(crate) initrd_last: u64,
    /// Setup header of a bzImage as it goes into `boot_params` at [`bzimage::HEADER_START`].
    pub(crate) setup_header: Vec<u8>,
    pub(crate) command_line_bytes_max: usize,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            segments,
            entry,
            ..
        } = self;
        write!(
            f,
            "Kernel {{ {kind:?}, entry {entry:#x}, {} segments }}",
            segments.len()
        )
    }
}

impl Kernel {
    /// Reads and checks a kernel file; a bzImage is extracted.
    pub fn read(source: &mut dyn Read) -> Result<Self, KernelError> {
        let mut file = Vec::new();
        source
            .take(KERNEL_BYTES_MAX + 1)
            .read_to_end(&mut file)
            .map_err(KernelError::Read)?;
        Self::from_bytes(file)
    }

    /// Checks the bytes of a kernel file; a bzImage is extracted.
    pub fn from_bytes(file: Vec<u8>) -> Result<Self, KernelError> {
        if file.len() as u64 > KERNEL_BYTES_MAX {
            return Err(KernelError::TooLong);
        }
        if elf::is_elf(&file) {
            return Self::from_elf(file);
        }
        if !bzimage::is_bzimage(&file) {
            return Err(KernelError::UnknownFormat);
        }
        let header = BzImage::parse(&file)?;
        match header.extract(&file) {
            Ok(vmlinux) => Self::from_elf(vmlinux).map(|kernel| kernel.with_header(&header, &file)),
            // The kernel brings a decompressor of its own, slower than the host's.
            Err(KernelError::Payload(PayloadError::UnknownCompression { .. })) => {
                Self::self_extracting(&header, file)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns how the kernel is entered.
    pub fn kind(&self) -> KernelKind {
        self.kind
    }

    /// Returns the physical address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Returns the longest command line the kernel takes, bytes without NUL.
    pub fn command_line_bytes_max(&self) -> usize {
        self.command_line_bytes_max
    }

    fn from_elf(file: Vec<u8>) -> Result<Self, KernelError> {
        let elf = Elf::parse(&file)?;
        let linux = elf.notes.linux || elf.in_kernel_half() && contains(&file, LINUX_BANNER);
        let (kind, entry) = match elf.notes.pvh_entry {
            _ if linux => (KernelKind::Linux, elf.physical_entry()?),
            Some(entry) => (KernelKind::Pvh, entry),
            None => (KernelKind::Elf, elf.physical_entry()?),
        };
        let end = elf.segments.last().map_or(0, LoadSegment::end);
        let (initrd_last, command_line_bytes_max) = match kind {
            KernelKind::Linux => (LINUX_INITRD_LAST, LINUX_COMMAND_LINE_BYTES_MAX),
            _ => (HIGH_RAM_START - 1, COMMAND_LINE_BYTES_MAX),
        };
        Ok(Self {
            kind,
            file,
            segments: elf.segments,
            entry,
            end,
            initrd_last,
            setup_header: Vec::new(),
            command_line_bytes_max,
        })
    }

    fn with_header(mut self, header: &BzImage, file: &[u8]) -> Self {
        if self.kind == KernelKind::Linux {
            let start = self.segments.first().map_or(0, |segment| segment.start);
            self.end = self.end.max(start.saturating_add(header.init_bytes.into()));
            self.initrd_last = header.initrd_last.into();
            self.command_line_bytes_max = header.command_line_bytes_max;
            self.setup_header = file[header.setup_header.clone()].to_vec();
        }
        self
    }

    fn self_extracting(header: &BzImage, file: Vec<u8>) -> Result<Self, KernelError> {
        let segment = header.protected_mode_segment(&file)?;
        Ok(Self {
            kind: KernelKind::Linux,
            entry: segment.start + bzimage::ENTRY_64_OFFSET,
            end: segment.end(),
            initrd_last: header.initrd_last.into(),
            setup_header: file[header.setup_header.clone()].to_vec(),
            command_line_bytes_max: header.command_line_bytes_max,
            segments: vec![segment],
            file,
        })
    }
}

/// Returns whether `needle` occurs in `file`; steps from one first byte to the next.
fn contains(file: &[u8], needle: &[u8]) -> bool {
    let mut rest = file;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}
