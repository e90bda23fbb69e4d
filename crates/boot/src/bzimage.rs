//! The Linux x86 boot header (Documentation/arch/x86/boot.rst, protocol 2.12 and later).

use std::ops::Range;

use crate::elf::{self, LoadSegment, u16_at, u32_at, u64_at};
use crate::kernel::KernelError;
use crate::layout::LINUX_COMMAND_LINE_BYTES_MAX;
use crate::payload;

/// Offset of the setup header in the file and in `boot_params`.
pub(crate) const HEADER_START: usize = 0x1f1;
/// Offset of the 64-bit entry point in the protected-mode part.
pub(crate) const ENTRY_64_OFFSET: u64 = 0x200;
/// First byte of `boot_params` that belongs to no setup header.
const HEADER_END_MAX: usize = 0x290;
const HEADER_END_MIN: usize = 0x268;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const INITRD_LAST: usize = 0x22c;
const X_LOAD_FLAGS: usize = 0x236;
const COMMAND_LINE_BYTES: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_BYTES: usize = 0x24c;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_BYTES: usize = 0x260;

const VERSION_MIN: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
const SECTOR_BYTES: usize = 512;
/// Setup sectors where the header says 0, as very old kernels do.
const SETUP_SECTORS_DEFAULT: usize = 4;

/// What loading needs of a boot header.
#[derive(Debug)]
pub(crate) struct BzImage {
    /// Setup header in the file.
    pub(crate) setup_header: Range<usize>,
    /// Memory the kernel uses from its start until it knows the memory map.
    pub(crate) init_bytes: u32,
    /// Last address an initial RAM disk may touch.
    pub(crate) initrd_last: u32,
    /// Longest command line, without NUL.
    pub(crate) command_line_bytes_max: usize,
    preferred_address: u64,
    /// First byte of the protected-mode part.
    code: usize,
    payload: Range<usize>,
}

/// Returns whether `file` has the marks of a bzImage.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    file.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && file.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

impl BzImage {
    /// Checks the boot header of a file that [`is_bzimage`].
    pub(crate) fn parse(file: &[u8]) -> Result<Self, KernelError> {
        let cut = |part, needed| KernelError::Truncated {
            format: "bzImage",
            part,
            needed,
            bytes: file.len() as u64,
        };
        if file.len() < HEADER_END_MAX {
            return Err(cut("the setup header", HEADER_END_MAX as u64));
        }
        check_protocol(file)?;
        let sectors = match usize::from(file[SETUP_SECTORS]) {
            0 => SETUP_SECTORS_DEFAULT,
            sectors => sectors,
        };
        let code = (sectors + 1) * SECTOR_BYTES;
        let payload_start = code as u64 + u64::from(u32_at(file, PAYLOAD_OFFSET));
        let payload_end = payload_start + u64::from(u32_at(file, PAYLOAD_BYTES));
        if payload_end > file.len() as u64 {
            return Err(cut("payload_length, the compressed kernel,", payload_end));
        }
        let header_end =
            (MAGIC + usize::from(file[JUMP_LENGTH])).clamp(HEADER_END_MIN, HEADER_END_MAX);
        Ok(Self {
            setup_header: HEADER_START..header_end,
            init_bytes: u32_at(file, INIT_BYTES),
            initrd_last: u32_at(file, INITRD_LAST),
            command_line_bytes_max: LINUX_COMMAND_LINE_BYTES_MAX
                .min(u32_at(file, COMMAND_LINE_BYTES) as usize),
            preferred_address: u64_at(file, PREFERRED_ADDRESS),
            code,
            payload: payload_start as usize..payload_end as usize,
        })
    }

    /// Returns the vmlinux that `file` carries compressed.
    pub(crate) fn extract(&self, file: &[u8]) -> Result<Vec<u8>, KernelError> {
        let payload = &file[self.payload.clone()];
        if elf::is_elf(payload) {
            return Ok(payload.to_vec());
        }
        payload::decompress(payload).map_err(KernelError::Payload)
    }

    /// Returns the protected-mode part as a segment at its preferred address.
    pub(crate) fn protected_mode_segment(&self, file: &[u8]) -> Result<LoadSegment, KernelError> {
        let start = self.preferred_address;
        let file = self.code..file.len();
        let bytes = u64::from(self.init_bytes).max(file.len() as u64);
        if start.checked_add(bytes).is_none() {
            let remedy = "the kernel does not fit into memory there; the file is damaged";
            return Err(field("pref_address", start, remedy));
        }
        Ok(LoadSegment {
            file,
            start,
            bytes,
            virtual_start: start,
        })
    }
}

fn check_protocol(file: &[u8]) -> Result<(), KernelError> {
    let version = u16_at(file, VERSION);
    if version < VERSION_MIN {
        let remedy = "boot protocol 2.12 (Linux 3.8) or later is needed; take a newer kernel";
        return Err(field("version", version.into(), remedy));
    }
    if file[LOAD_FLAGS] & LOADED_HIGH == 0 {
        let remedy = "this is a zImage; build a bzImage";
        return Err(field("loadflags", file[LOAD_FLAGS].into(), remedy));
    }
    let flags = u16_at(file, X_LOAD_FLAGS);
    if flags & KERNEL_64 == 0 {
        let remedy = "the kernel has no 64-bit entry point; take an x86-64 kernel";
        return Err(field("xloadflags", flags.into(), remedy));
    }
    Ok(())
}

fn field(field: &'static str, value: u64, remedy: &'static str) -> KernelError {
    KernelError::Field {
        format: "bzImage",
        field,
        value,
        remedy,
    }
}
