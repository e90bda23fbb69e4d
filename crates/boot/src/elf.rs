//! The parts of an ELF64 file that loading needs: entry point, loadable segments and notes.
//! Every offset and length is checked against the file before it is used.

mod notes;

use std::ops::Range;

use crate::kernel::KernelError;

pub(crate) use notes::Notes;

const MAGIC: [u8; 4] = *b"\x7fELF";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PROGRAM_HEADERS_MAX: usize = 128;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// Kernels are linked to the top 2 GiB of the address space.
const KERNEL_HALF: u64 = 0xffff_ffff_8000_0000;

/// A segment to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoadSegment {
    /// Its bytes in the file.
    pub(crate) file: Range<usize>,
    /// Guest-physical address.
    pub(crate) start: u64,
    /// Length in memory; what the file does not fill is zero.
    pub(crate) bytes: u64,
    /// Virtual address.
    pub(crate) virtual_start: u64,
}

impl LoadSegment {
    /// Returns the first address after the segment.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// A checked ELF64 file.
#[derive(Debug)]
pub(crate) struct Elf {
    /// Entry point as the header has it.
    pub(crate) entry: u64,
    /// Segments in the order of their addresses, none empty, none overlapping.
    pub(crate) segments: Vec<LoadSegment>,
    /// What the notes say.
    pub(crate) notes: Notes,
}

/// Returns whether `file` starts as an ELF file.
pub(crate) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(&MAGIC)
}

impl Elf {
    /// Checks an ELF64 file for x86-64.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, KernelError> {
        check_identity(file)?;
        let mut elf = Self {
            entry: u64_at(file, 24),
            segments: Vec::new(),
            notes: Notes::default(),
        };
        let table = program_headers(file)?;
        for header in file[table].chunks_exact(PROGRAM_HEADER_BYTES) {
            match u32_at(header, 0) {
                SEGMENT_LOAD => elf.segments.extend(load_segment(file, header)?),
                SEGMENT_NOTE => {
                    let range = file_range(file, header, "p_filesz of a note segment")?;
                    elf.notes.read(&file[range], u64_at(header, 48));
                }
                _ => {}
            }
        }
        elf.check_segments()?;
        Ok(elf)
    }

    /// Returns whether any segment is linked to where Linux lives.
    pub(crate) fn in_kernel_half(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.virtual_start >= KERNEL_HALF)
    }

    /// Returns the guest-physical address of the entry point: the header's own address where a
    /// segment is loaded there, else the place its virtual address is loaded to.
    pub(crate) fn physical_entry(&self) -> Result<u64, KernelError> {
        let within = |start: u64, bytes| self.entry.checked_sub(start).filter(|at| *at < bytes);
        if self
            .segments
            .iter()
            .any(|s| within(s.start, s.bytes).is_some())
        {
            return Ok(self.entry);
        }
        self.segments
            .iter()
            .find_map(|s| within(s.virtual_start, s.bytes).map(|at| s.start + at))
            .ok_or(field(
                "e_entry",
                self.entry,
                "it lies in no segment; link the file with an entry point",
            ))
    }

    fn check_segments(&mut self) -> Result<(), KernelError> {
        if self.segments.is_empty() {
            return Err(field(
                "e_phnum",
                0,
                "no segment is to be loaded; link the file as executable",
            ));
        }
        self.segments.sort_by_key(|segment| segment.start);
        for pair in self.segments.windows(2) {
            if pair[1].start < pair[0].end() {
                let why = "two segments overlap in memory; link them to separate addresses";
                return Err(field("p_paddr", pair[1].start, why));
            }
        }
        Ok(())
    }
}

fn check_identity(file: &[u8]) -> Result<(), KernelError> {
    if file.len() < HEADER_BYTES {
        return Err(truncated("the header", HEADER_BYTES as u64, file));
    }
    let kind = u16_at(file, 16);
    let machine = u16_at(file, 18);
    if file[4] != CLASS_64 {
        return Err(field(
            "EI_CLASS",
            file[4].into(),
            "only 64-bit files boot; build for x86-64",
        ));
    }
    if file[5] != LITTLE_ENDIAN {
        return Err(field(
            "EI_DATA",
            file[5].into(),
            "only little-endian files boot",
        ));
    }
    if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
        return Err(field(
            "e_type",
            kind.into(),
            "only linked executables boot; link the file",
        ));
    }
    if machine != MACHINE_X86_64 {
        return Err(field(
            "e_machine",
            machine.into(),
            "only x86-64 kernels boot",
        ));
    }
    Ok(())
}

fn program_headers(file: &[u8]) -> Result<Range<usize>, KernelError> {
    let entry_bytes = usize::from(u16_at(file, 54));
    let count = usize::from(u16_at(file, 56));
    if count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(field(
            "e_phnum",
            count as u64,
            "an executable has 1 to 128 program headers",
        ));
    }
    if entry_bytes != PROGRAM_HEADER_BYTES {
        return Err(field(
            "e_phentsize",
            entry_bytes as u64,
            "64-bit files have 56-byte entries",
        ));
    }
    let (offset, bytes) = (u64_at(file, 32), (count * PROGRAM_HEADER_BYTES) as u64);
    range(file, offset, bytes).ok_or_else(|| {
        let end = offset.saturating_add(bytes);
        truncated("e_phoff, the program headers,", end, file)
    })
}

fn load_segment(file: &[u8], header: &[u8]) -> Result<Option<LoadSegment>, KernelError> {
    let start = u64_at(header, 24);
    let bytes = u64_at(header, 40);
    if bytes == 0 {
        return Ok(None);
    }
    let range = file_range(file, header, "p_filesz of a loadable segment")?;
    if range.len() as u64 > bytes {
        return Err(field(
            "p_memsz",
            bytes,
            "it is smaller than p_filesz; the file is damaged",
        ));
    }
    if start.checked_add(bytes).is_none() {
        return Err(field(
            "p_paddr",
            start,
            "the segment wraps; link it inside guest memory",
        ));
    }
    let virtual_start = u64_at(header, 16);
    Ok(Some(LoadSegment {
        file: range,
        start,
        bytes,
        virtual_start,
    }))
}

fn file_range(file: &[u8], header: &[u8], name: &'static str) -> Result<Range<usize>, KernelError> {
    let (offset, bytes) = (u64_at(header, 8), u64_at(header, 32));
    range(file, offset, bytes).ok_or_else(|| truncated(name, offset.saturating_add(bytes), file))
}

fn range(file: &[u8], offset: u64, bytes: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    (end <= file.len()).then_some(start..end)
}

fn field(field: &'static str, value: u64, remedy: &'static str) -> KernelError {
    KernelError::Field {
        format: "ELF",
        field,
        value,
        remedy,
    }
}

fn truncated(part: &'static str, needed: u64, file: &[u8]) -> KernelError {
    KernelError::Truncated {
        format: "ELF",
        part,
        needed,
        bytes: file.len() as u64,
    }
}

/// Reads a little-endian number that the caller knows to be inside `bytes`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// Reads a little-endian number that the caller knows to be inside `bytes`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Reads a little-endian number that the caller knows to be inside `bytes`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}
