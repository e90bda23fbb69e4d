//! Images as the daemon uses them: what a VM made of one boots.

use std::path::PathBuf;

use api_types::{ErrorKind, Image as ImageAnswer, ImageFormat};
use images::{DiskFormat, Image, ImageError, ImageStore};

use crate::config::Home;
use crate::error::{OpError, OpResult};

/// Files of an image.
#[derive(Debug)]
pub struct ImageParts {
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disk and its format.
    pub disk: Option<(PathBuf, ImageFormat)>,
    /// It has a guest agent.
    pub agent: bool,
    /// Least guest memory, bytes.
    pub min_memory_bytes: u64,
}

/// Opens the directory of images.
pub fn store(home: &Home) -> OpResult<ImageStore> {
    ImageStore::open(home.images()).map_err(refuse)
}

/// Finds an image.
pub fn resolve(home: &Home, name: &str) -> OpResult<ImageParts> {
    let image = store(home)?.get(name).map_err(|error| match error {
        ImageError::Missing { .. } => OpError::new(
            ErrorKind::NotFound,
            format!(
                "image: there is no image {name:?}; 'mitose image ls' lists them, \
                 'mitose image build' makes one"
            ),
        ),
        other => refuse(other),
    })?;
    Ok(ImageParts {
        kernel: image.kernel(),
        initrd: image.initrd(),
        cmdline: image.manifest.cmdline.clone(),
        disk: image.disk().map(|path| (path, format_of(&image))),
        agent: image.manifest.agent,
        min_memory_bytes: image.manifest.min_memory,
    })
}

fn format_of(image: &Image) -> ImageFormat {
    match image.manifest.disk_format {
        DiskFormat::Raw => ImageFormat::Raw,
    }
}

/// An image as `image ls` shows it.
pub fn show(image: &Image) -> ImageAnswer {
    let manifest = &image.manifest;
    let kind = serde_json::to_value(manifest.kind).ok();
    let kind = kind.as_ref().and_then(|k| k.as_str()).unwrap_or("image");
    ImageAnswer {
        name: manifest.name.clone(),
        description: format!(
            "{kind}, {}, kernel {}",
            manifest.suite, manifest.kernel_release
        ),
        disk_bytes: Some(manifest.disk_bytes).filter(|bytes| *bytes > 0),
        allocated_bytes: allocated_bytes(&image.dir),
        agent: manifest.agent,
        bootable: true,
    }
}

fn allocated_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

/// An error of the image store as an answer.
pub fn refuse(error: ImageError) -> OpError {
    let kind = match &error {
        ImageError::Missing { .. } => ErrorKind::NotFound,
        ImageError::Exists { .. } => ErrorKind::Conflict,
        ImageError::BadName { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    };
    OpError::caused(kind, error)
}
