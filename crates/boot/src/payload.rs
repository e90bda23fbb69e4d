//! Decompression of the kernel inside a bzImage, with the output bounded by what the payload
//! itself declares and by [`KERNEL_BYTES_MAX`].
//!
//! The kernel build appends the uncompressed length, 4 bytes little-endian, to the payload
//! (gzip brings it by itself).

use std::io::Read;

use flate2::read::GzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::elf::u32_at;
use crate::kernel::KERNEL_BYTES_MAX;

const TRAILER_BYTES: usize = 4;
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_CHUNK_BYTES_MAX: usize = 8 << 20;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];
/// No compression of the kernel build makes a kernel smaller than this part of its length.
const RATIO_MAX: u64 = 256;

/// Why a payload cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The payload starts with the mark of no known compression.
    #[error(
        "compression with magic {magic:02x?} is not known (known: gzip, LZ4, zstd); \
         give the vmlinux instead"
    )]
    UnknownCompression {
        /// First bytes of the payload.
        magic: [u8; 4],
    },
    /// The payload is shorter than its own frame.
    #[error("the compressed kernel is cut off; copy the file again")]
    Truncated,
    /// The declared length cannot be right.
    #[error(
        "{compressed_bytes} compressed bytes declare {bytes} uncompressed bytes, which no kernel \
         has; the file is damaged"
    )]
    DeclaredLength {
        /// Length of the payload.
        compressed_bytes: u64,
        /// Declared uncompressed length.
        bytes: u64,
    },
    /// The output is not as long as declared.
    #[error("the kernel has {actual} bytes where {declared} are declared; the file is damaged")]
    Length {
        /// Bytes that came out, at most one more than declared.
        actual: u64,
        /// Declared length.
        declared: u64,
    },
    /// The compressed stream is damaged.
    #[error("decompressing {compression}")]
    Stream {
        /// Name of the compression.
        compression: &'static str,
        /// What the decoder met.
        #[source]
        source: std::io::Error,
    },
}

/// Decompresses the payload of a bzImage.
pub(crate) fn decompress(payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
    let magic = payload.first_chunk::<4>().ok_or(PayloadError::Truncated)?;
    let compression = Compression::of(*magic)?;
    let content_bytes = payload
        .len()
        .checked_sub(TRAILER_BYTES)
        .ok_or(PayloadError::Truncated)?;
    let declared = u64::from(u32_at(payload, content_bytes));
    let compressed_bytes = content_bytes as u64;
    if declared > KERNEL_BYTES_MAX || declared / RATIO_MAX > compressed_bytes {
        return Err(PayloadError::DeclaredLength {
            compressed_bytes,
            bytes: declared,
        });
    }
    let content = &payload[..content_bytes];
    let output = match compression {
        // The gzip trailer is the length itself.
        Compression::Gzip => stream("gzip", GzDecoder::new(payload), declared),
        Compression::Zstd => {
            let decoder = StreamingDecoder::new(content)
                .map_err(|error| broken("zstd", std::io::Error::other(error)))?;
            stream("zstd", decoder, declared)
        }
        Compression::Lz4 => lz4_legacy(content, declared),
    }?;
    let actual = output.len() as u64;
    if actual != declared {
        return Err(PayloadError::Length { actual, declared });
    }
    Ok(output)
}

#[derive(Clone, Copy)]
enum Compression {
    Gzip,
    Lz4,
    Zstd,
}

impl Compression {
    fn of(magic: [u8; 4]) -> Result<Self, PayloadError> {
        match magic {
            LZ4_LEGACY => Ok(Self::Lz4),
            ZSTD => Ok(Self::Zstd),
            _ if magic.starts_with(&GZIP) => Ok(Self::Gzip),
            _ => Err(PayloadError::UnknownCompression { magic }),
        }
    }
}

fn stream(
    compression: &'static str,
    decoder: impl Read,
    declared: u64,
) -> Result<Vec<u8>, PayloadError> {
    let mut output = Vec::with_capacity(declared as usize);
    decoder
        .take(declared + 1)
        .read_to_end(&mut output)
        .map_err(|source| broken(compression, source))?;
    Ok(output)
}

/// Decodes LZ4's legacy frame: chunks of at most 8 MiB, each after its compressed length.
fn lz4_legacy(content: &[u8], declared: u64) -> Result<Vec<u8>, PayloadError> {
    let mut output = Vec::with_capacity(declared as usize);
    let mut chunk = vec![0; LZ4_CHUNK_BYTES_MAX];
    let mut rest = content
        .get(LZ4_LEGACY.len()..)
        .ok_or(PayloadError::Truncated)?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let compressed = after.get(..length).ok_or(PayloadError::Truncated)?;
        let room = chunk.len().min(declared as usize - output.len());
        let filled = lz4_flex::block::decompress_into(compressed, &mut chunk[..room])
            .map_err(|error| broken("LZ4", std::io::Error::other(error)))?;
        output.extend_from_slice(&chunk[..filled]);
        rest = &after[length..];
    }
    Ok(output)
}

fn broken(compression: &'static str, source: std::io::Error) -> PayloadError {
    PayloadError::Stream {
        compression,
        source,
    }
}
