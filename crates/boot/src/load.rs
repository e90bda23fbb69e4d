//! Puts everything a kernel needs into guest RAM.

use std::io::Read;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::elf::LoadSegment;
use crate::kernel::{Kernel, KernelKind};
use crate::layout::{self, BadRamSize, PAGE_BYTES, RamRegion, ram_regions};
use crate::memory_map::memory_map;
use crate::smbios::MachineFacts;
use crate::state::{BootState, EntryMode};
use crate::{acpi, cpu, linux, pvh, smbios};

/// Bytes of an initial RAM disk copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Real-mode code at the reset vector: MOV AL, FEh; OUT 64h, AL; then HLT for good.
///
/// With hardware-reduced ACPI, Linux on x86 expects an EFI reset; without EFI it ends in the
/// firmware's reset vector and never tries the ACPI reset register.
const RESET_CODE: [u8; 7] = [
    0xb0,
    0xfe,
    0xe6,
    layout::KEYBOARD_PORT as u8,
    0xf4,
    0xeb,
    0xfd,
];
/// Ranges below 1 MiB that hold the loader's own structures.
const LOADER_RANGES: [(u64, u64); 2] = [
    (
        0,
        layout::COMMAND_LINE + layout::COMMAND_LINE_BYTES_MAX as u64 + 1,
    ),
    (layout::ACPI_START, layout::SMBIOS_START),
];

/// What the guest finds out about its machine from tables.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Size of guest RAM, bytes.
    pub ram_bytes: u64,
    /// Number of CPUs; APIC ids count from 0.
    pub vcpus: u8,
    /// Which of COM1 to COM4 exist.
    pub serial_ports: [bool; 4],
    /// virtio-mmio slots with a device.
    pub virtio_slots: Vec<u8>,
    /// First VM generation id.
    pub generation_id: [u8; 16],
    /// UUID that the SMBIOS tables tell, bytes in the order in which they are written.
    pub uuid: [u8; 16],
}

/// An initial RAM disk (or PVH module) to be read.
pub struct Initrd<'a> {
    /// Where it is read from.
    pub source: &'a mut dyn Read,
    /// Its length.
    pub bytes: u64,
}

impl std::fmt::Debug for Initrd<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Initrd {{ {} bytes }}", self.bytes)
    }
}

/// What to boot.
#[derive(Debug)]
pub struct BootRequest<'a> {
    /// The machine.
    pub platform: &'a Platform,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Kernel command line.
    pub command_line: &'a str,
    /// Initial RAM disk.
    pub initrd: Option<Initrd<'a>>,
    /// Physical address to enter instead of the kernel's own entry point, in the same mode.
    pub entry: Option<u64>,
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The RAM size is impossible.
    #[error(transparent)]
    RamSize(BadRamSize),
    /// The memory given does not have the RAM that the platform promises.
    #[error("guest memory does not cover RAM at {start:#x}+{bytes:#x}")]
    RamMissing {
        /// Start of the promised range.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// The number of CPUs is impossible.
    #[error("{vcpus} CPUs are not possible: give 1 to {}", layout::VCPUS_MAX)]
    Cpus {
        /// The refused number.
        vcpus: u8,
    },
    /// A virtio-mmio slot does not exist or is named twice.
    #[error("virtio slot {slot} does not exist or is used twice: slots are 0 to 13")]
    VirtioSlot {
        /// The refused slot.
        slot: u8,
    },
    /// A kernel segment does not fit.
    #[error(
        "the kernel's segment at {start:#x}..{end:#x} is not inside guest RAM of {ram_bytes} \
         bytes: give the machine more memory or link the kernel elsewhere"
    )]
    SegmentOutsideRam {
        /// First address of the segment.
        start: u64,
        /// First address after it.
        end: u64,
        /// Size of guest RAM.
        ram_bytes: u64,
    },
    /// A kernel segment lies where boot structures go.
    #[error(
        "the kernel's segment at {start:#x}..{end:#x} covers the boot data below 1 MiB: link \
         the kernel at 1 MiB or above"
    )]
    SegmentReserved {
        /// First address of the segment.
        start: u64,
        /// First address after it.
        end: u64,
    },
    /// The entry point is not in RAM below 4 GiB.
    #[error("entry point {entry:#x} is not in guest RAM below 4 GiB: give another entry")]
    Entry {
        /// The refused address.
        entry: u64,
    },
    /// The command line is too long.
    #[error("the command line has {bytes} bytes, this kernel takes {max}: shorten it")]
    CommandLineLength {
        /// Its length.
        bytes: usize,
        /// The longest possible.
        max: usize,
    },
    /// The command line has a NUL inside.
    #[error("the command line has a NUL byte at {at}: remove it")]
    CommandLineNul {
        /// Where it is.
        at: usize,
    },
    /// There is no room for the initial RAM disk.
    #[error(
        "the initial RAM disk of {bytes} bytes does not fit between the kernel's end at \
         {kernel_end:#x} and {last:#x}: give the machine more memory"
    )]
    InitrdRoom {
        /// Length of the initial RAM disk.
        bytes: u64,
        /// First address after the kernel.
        kernel_end: u64,
        /// Last address the disk may touch.
        last: u64,
    },
    /// The initial RAM disk cannot be read to its end.
    #[error("reading the initial RAM disk at byte {at} of {bytes}")]
    InitrdRead {
        /// Where reading failed.
        at: u64,
        /// Length of the initial RAM disk.
        bytes: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Guest RAM cannot be written.
    #[error("writing the {what} to guest memory at {gpa:#x}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Guest address.
        gpa: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Where things went that tables point to.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) rsdp: u64,
    /// Initial RAM disk, `bytes` 0 without one.
    pub(crate) initrd: RamRegion,
}

/// Loads a guest into RAM that reads as zero and returns the boot CPU's state.
pub fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    request: BootRequest<'_>,
) -> Result<BootState, BootError> {
    let BootRequest {
        platform,
        kernel,
        command_line,
        initrd,
        entry,
    } = request;
    let ram = check_platform(memory, platform)?;
    for segment in &kernel.segments {
        check_segment(segment, &ram, platform.ram_bytes)?;
    }
    check_command_line(command_line, kernel.command_line_bytes_max)?;
    let entry = entry.unwrap_or(kernel.entry);
    if !ram[..1]
        .iter()
        .any(|region| (region.start..region.end()).contains(&entry))
    {
        return Err(BootError::Entry { entry });
    }
    let initrd_bytes = initrd.as_ref().map_or(0, |initrd| initrd.bytes);
    let placed = Placed {
        rsdp: layout::ACPI_START,
        initrd: place_initrd(initrd_bytes, kernel, ram[0])?,
    };

    let writer = Writer { memory };
    for segment in &kernel.segments {
        writer.put("kernel", segment.start, &kernel.file[segment.file.clone()])?;
    }
    if let Some(initrd) = initrd {
        writer.copy_initrd(placed.initrd.start, initrd)?;
    }
    writer.put(
        "command line",
        layout::COMMAND_LINE,
        command_line.as_bytes(),
    )?;
    let end = layout::COMMAND_LINE + command_line.len() as u64;
    writer.put("command line", end, &[0])?;
    writer.put("ACPI tables", layout::ACPI_START, &acpi::tables(platform))?;
    writer.put(
        "generation id",
        layout::GENERATION_ID,
        &platform.generation_id,
    )?;
    writer.firmware(kernel, platform)?;
    writer.entry_structures(kernel, &ram, &placed)?;

    let mode = entry_mode(kernel);
    let registers = cpu::registers(mode, entry);
    writer.put("descriptor table", layout::GDT_START, &cpu::gdt(&registers))?;
    let generation_id = layout::GENERATION_ID;
    Ok(BootState {
        entry: mode,
        registers,
        rsdp: placed.rsdp,
        generation_id,
    })
}

fn entry_mode(kernel: &Kernel) -> EntryMode {
    match kernel.kind {
        KernelKind::Linux | KernelKind::Elf => EntryMode::Long64,
        KernelKind::Pvh => EntryMode::Pvh32,
    }
}

fn check_platform<M: GuestMemory + ?Sized>(
    memory: &M,
    platform: &Platform,
) -> Result<Vec<RamRegion>, BootError> {
    let vcpus = platform.vcpus;
    if vcpus == 0 || vcpus > layout::VCPUS_MAX {
        return Err(BootError::Cpus { vcpus });
    }
    for (index, &slot) in platform.virtio_slots.iter().enumerate() {
        if slot >= layout::VIRTIO_SLOTS || platform.virtio_slots[..index].contains(&slot) {
            return Err(BootError::VirtioSlot { slot });
        }
    }
    let ram = ram_regions(platform.ram_bytes).map_err(BootError::RamSize)?;
    for region in &ram {
        let RamRegion { start, bytes } = *region;
        if !memory.check_range(GuestAddress(start), bytes as usize, Permissions::Write) {
            return Err(BootError::RamMissing { start, bytes });
        }
    }
    Ok(ram)
}

fn check_segment(
    segment: &LoadSegment,
    ram: &[RamRegion],
    ram_bytes: u64,
) -> Result<(), BootError> {
    let (start, end) = (segment.start, segment.end());
    if !ram
        .iter()
        .any(|region| region.start <= start && end <= region.end())
    {
        return Err(BootError::SegmentOutsideRam {
            start,
            end,
            ram_bytes,
        });
    }
    if LOADER_RANGES
        .iter()
        .any(|(from, to)| start < *to && *from < end)
    {
        return Err(BootError::SegmentReserved { start, end });
    }
    Ok(())
}

fn check_command_line(command_line: &str, max: usize) -> Result<(), BootError> {
    let bytes = command_line.len();
    if bytes > max {
        return Err(BootError::CommandLineLength { bytes, max });
    }
    match command_line.bytes().position(|byte| byte == 0) {
        Some(at) => Err(BootError::CommandLineNul { at }),
        None => Ok(()),
    }
}

/// Returns the highest place for the initial RAM disk, page-aligned, above the kernel.
fn place_initrd(bytes: u64, kernel: &Kernel, low: RamRegion) -> Result<RamRegion, BootError> {
    if bytes == 0 {
        return Ok(RamRegion { start: 0, bytes: 0 });
    }
    let end = low.end().min(kernel.initrd_last.saturating_add(1));
    let kernel_end = kernel
        .segments
        .iter()
        .map(LoadSegment::end)
        .filter(|segment_end| *segment_end <= low.end())
        .fold(kernel.end.min(low.end()), u64::max)
        .max(layout::KERNEL_START_MIN);
    end.checked_sub(bytes)
        .map(|start| start & !(PAGE_BYTES - 1))
        .filter(|start| *start >= kernel_end)
        .map(|start| RamRegion { start, bytes })
        .ok_or(BootError::InitrdRoom {
            bytes,
            kernel_end,
            last: end.saturating_sub(1),
        })
}

struct Writer<'a, M: ?Sized> {
    memory: &'a M,
}

impl<M: GuestMemory + ?Sized> Writer<'_, M> {
    fn put(&self, what: &'static str, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|source| BootError::Write { what, gpa, source })
    }

    fn copy_initrd(&self, start: u64, initrd: Initrd<'_>) -> Result<(), BootError> {
        let bytes = initrd.bytes;
        let mut buffer = vec![0; COPY_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(buffer.len() as u64) as usize;
            let chunk = &mut buffer[..length];
            initrd
                .source
                .read_exact(chunk)
                .map_err(|source| BootError::InitrdRead { at, bytes, source })?;
            self.put("initial RAM disk", start + at, chunk)?;
            at += length as u64;
        }
        Ok(())
    }

    /// What a firmware leaves in its segment, where the kernel has nothing of its own there.
    fn firmware(&self, kernel: &Kernel, platform: &Platform) -> Result<(), BootError> {
        let taken = |start: u64, bytes: usize| {
            let covers = |s: &LoadSegment| s.start < start + bytes as u64 && s.end() > start;
            kernel.segments.iter().any(covers)
        };
        if !taken(layout::RESET_VECTOR, RESET_CODE.len()) {
            self.put("reset code", layout::RESET_VECTOR, &RESET_CODE)?;
        }
        let table = smbios::table(&MachineFacts {
            uuid: platform.uuid,
            vcpus: platform.vcpus,
            ram_bytes: platform.ram_bytes,
        });
        if !taken(layout::SMBIOS_START, smbios::ENTRY_BYTES) {
            let entry = smbios::entry_point(&table);
            self.put("SMBIOS entry point", layout::SMBIOS_START, &entry)?;
        }
        self.put("SMBIOS table", layout::SMBIOS_TABLE, &table)
    }

    fn entry_structures(
        &self,
        kernel: &Kernel,
        ram: &[RamRegion],
        placed: &Placed,
    ) -> Result<(), BootError> {
        let map = memory_map(ram);
        if entry_mode(kernel) == EntryMode::Pvh32 {
            return self.put(
                "start info",
                layout::PVH_START_INFO,
                &pvh::start_info(&map, placed),
            );
        }
        let max = kernel.command_line_bytes_max;
        let boot_params = linux::boot_params(&kernel.setup_header, &map, placed, max);
        self.put("boot parameters", layout::BOOT_PARAMS, &boot_params)?;
        self.put("page tables", layout::PAGE_TABLES, &cpu::identity_map())
    }
}
