//! Unpacking of compressed clusters. Nothing here writes them.

use std::io::Read;

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use crate::error::LayerError;
use crate::qcow2::header::{Compression, read};
use crate::qcow2::image::CompressedCluster;
use crate::storage::Storage;

/// Reads and unpacks a whole cluster.
pub(crate) fn unpack(
    file: &dyn Storage,
    cluster: &CompressedCluster,
) -> Result<Vec<u8>, LayerError> {
    let offset = cluster.offset;
    let damaged = || LayerError::Compressed { offset };
    // The length field has 70 bits less the cluster's, so it is below two clusters; a hostile
    // one is cut there.
    let length = cluster.length.min(cluster.cluster_bytes * 2);
    let mut packed = vec![0u8; length as usize];
    read(file, offset, &mut packed)?;
    let mut data = vec![0u8; cluster.cluster_bytes as usize];
    match cluster.method {
        Compression::Zlib => {
            let done = decompress_slice_iter_to_slice(
                &mut data,
                std::iter::once(&packed[..]),
                false,
                true,
            )
            .map_err(|_| damaged())?;
            if done != data.len() {
                return Err(damaged());
            }
        }
        Compression::Zstd => {
            ruzstd::decoding::StreamingDecoder::new(&packed[..])
                .map_err(|_| damaged())?
                .read_exact(&mut data)
                .map_err(|_| damaged())?;
        }
    }
    Ok(data)
}
