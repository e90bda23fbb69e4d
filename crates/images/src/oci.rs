//! Container images: archives of `docker save` or of an OCI layout, unpacked into a directory.
//!
//! An archive is somebody else's file: every path in it is resolved inside the directory, every
//! length is bounded, and digests are checked.

mod archive;
mod config;
mod layer;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub(crate) use config::ContainerConfig;
pub(crate) use tree::Tree;

use crate::import::refused;
use crate::{ImageError, Watch};
use archive::Archive;

/// Why a container archive is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Cancelled(ImageError),
}

pub(crate) type OciResult<T> = Result<T, OciError>;

pub(crate) fn refuse<T>(problem: impl Into<String>) -> OciResult<T> {
    Err(OciError::Refused(problem.into()))
}

/// Unpacks all layers of an archive into `root` and returns what its container would run.
/// A compressed archive is decompressed into `scratch` first.
pub(crate) fn unpack(
    file: &Path,
    root: &Path,
    scratch: &Path,
    watch: &Watch,
) -> Result<ContainerConfig, ImageError> {
    try_unpack(file, root, scratch, watch).map_err(|error| match error {
        OciError::Refused(problem) => refused(file, &problem),
        OciError::Io(source) => ImageError::File {
            action: "unpack",
            path: file.to_owned(),
            source,
        },
        OciError::Cancelled(error) => error,
    })
}

fn try_unpack(
    file: &Path,
    root: &Path,
    scratch: &Path,
    watch: &Watch,
) -> OciResult<ContainerConfig> {
    watch
        .stage("read the archive", 0.01)
        .map_err(OciError::Cancelled)?;
    let mut archive = Archive::open(plain_tar(File::open(file)?, scratch, watch)?)?;
    let image = config::find_image(&mut archive)?;
    let tree = Tree::open(root)?;
    for (index, blob) in image.layers.iter().enumerate() {
        let text = format!("unpack layer {} of {}", index + 1, image.layers.len());
        let fraction = 0.02 * index as f32 / image.layers.len() as f32;
        watch.stage(&text, fraction).map_err(OciError::Cancelled)?;
        archive.check_digest(blob, watch)?;
        let reader = archive.reader(blob)?;
        layer::apply(layer::decompress(reader)?, &tree, watch)?;
    }
    Ok(image.config)
}

/// Returns the archive as a plain tar file.
fn plain_tar(mut file: File, scratch: &Path, watch: &Watch) -> OciResult<File> {
    let mut magic = [0u8; 4];
    file.read_exact(&mut magic)
        .or_else(|_| refuse("it is too short"))?;
    file.rewind()?;
    if !layer::is_compressed(&magic) {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile_in(scratch)?;
    let mut reader = layer::Watched::new(layer::decompress(Box::new(file))?, watch.clone());
    io::copy(&mut reader, &mut plain)?;
    plain.seek(SeekFrom::Start(0))?;
    Ok(plain)
}
