//! Builders of small kernel files.

use std::io::Write;

/// A loadable segment.
#[derive(Clone)]
pub struct Segment {
    pub start: u64,
    pub virtual_start: u64,
    pub content: Vec<u8>,
    pub bytes: u64,
}

impl Segment {
    pub fn new(start: u64, content: &[u8]) -> Self {
        let bytes = content.len() as u64;
        Self {
            start,
            virtual_start: start,
            content: content.to_vec(),
            bytes,
        }
    }
}

/// Returns an ELF64 file with the segments and, if any, one note segment.
pub fn elf(entry: u64, segments: &[Segment], notes: &[u8]) -> Vec<u8> {
    let count = segments.len() + usize::from(!notes.is_empty());
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.resize(52, 0);
    for half in [64u16, 56, count as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut content: Vec<u8> = Vec::new();
    let base = 64 + 56 * count;
    let mut header = |kind: u32, segment: &Segment| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        let offset = (base + content.len()) as u64;
        let filled = segment.content.len() as u64;
        for word in [
            offset,
            segment.virtual_start,
            segment.start,
            filled,
            segment.bytes,
            4,
        ] {
            file.extend(word.to_le_bytes());
        }
        content.extend(&segment.content);
    };
    for segment in segments {
        header(1, segment);
    }
    if !notes.is_empty() {
        header(4, &Segment::new(0, notes));
    }
    file.extend(content);
    file
}

/// Returns an ELF note.
pub fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, content.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns a small Linux-like vmlinux: linked to the kernel half, with a Linux note.
pub fn vmlinux(content: &[u8]) -> Vec<u8> {
    let segment = Segment {
        start: 0x100_0000,
        virtual_start: 0xffff_ffff_8100_0000,
        content: content.to_vec(),
        bytes: content.len() as u64 + 0x5000,
    };
    elf(0x100_0000, &[segment], &note(b"Linux\0", 0x100, b"salt"))
}

/// Returns a bzImage around a payload as it stands.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512];
    file[0x1f1] = 4;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x201] = 0x6a;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0x400u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file.resize(5 * 512 + 0x400, 0x90);
    file.extend(payload);
    file
}

fn with_length(mut compressed: Vec<u8>, content: &[u8]) -> Vec<u8> {
    compressed.extend((content.len() as u32).to_le_bytes());
    compressed
}

/// Compresses as `gzip`.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Compresses as `lz4 -l` with the kernel build's length trailer.
pub fn lz4(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in content.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    with_length(out, content)
}

/// Compresses as `zstd` with the kernel build's length trailer.
pub fn zstd(content: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    with_length(ruzstd::encoding::compress_to_vec(content, level), content)
}
