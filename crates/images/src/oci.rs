//! Container images: archives of `docker save` or of an OCI layout, unpacked into a directory.
//!
//! An archive is somebody else's file: every path in it is resolved inside the directory, every
//! length is bounded, and digests are checked.

mod archive;
mod compressed;
mod config;
mod layer;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub(crate) use compressed::is_compressed;
pub(crate) use config::ContainerConfig;
pub(crate) use tree::Tree;

use crate::import::refused;
use crate::{ImageError, Watch};
use archive::{Archive, Blob};

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
        let diff_id = image.diff_ids.get(index).map(String::as_str);
        unpack_layer(&mut archive, blob, diff_id, &tree, watch).map_err(|error| match error {
            OciError::Refused(problem) => OciError::Refused(format!(
                "layer {} of {} ({}): {problem}",
                index + 1,
                image.layers.len(),
                blob.name
            )),
            other => other,
        })?;
    }
    Ok(image.config)
}

fn unpack_layer(
    archive: &mut Archive,
    blob: &Blob,
    diff_id: Option<&str>,
    tree: &Tree,
    watch: &Watch,
) -> OciResult<()> {
    archive.check_digest(blob, watch)?;
    let layer = compressed::decompress(archive.reader(blob)?)?;
    layer::apply(layer, diff_id, tree, watch)
}

/// Returns the archive as a plain tar file.
fn plain_tar(mut file: File, scratch: &Path, watch: &Watch) -> OciResult<File> {
    let mut magic = [0u8; 4];
    file.read_exact(&mut magic)
        .or_else(|_| refuse("it is too short"))?;
    file.rewind()?;
    if !is_compressed(&magic) {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile_in(scratch)?;
    let mut reader =
        compressed::Watched::new(compressed::decompress(Box::new(file))?, watch.clone());
    io::copy(&mut reader, &mut plain).map_err(|error| match watch.check() {
        Err(cancelled) => OciError::Cancelled(cancelled),
        Ok(()) if error.raw_os_error().is_some() => OciError::Io(error),
        Ok(()) => OciError::Refused(error.to_string()),
    })?;
    plain.seek(SeekFrom::Start(0))?;
    Ok(plain)
}
