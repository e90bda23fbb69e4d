//! Media for empty disk slots: what a request names, worked out, and the layers of it.
//!
//! A medium is an empty disk of a size, or what a file shows, with a delta of the VM on it. Whatever
//! it is, its top is a layer of the VM like that of any disk.

use std::path::PathBuf;
use std::sync::Arc;

use api_types::{ErrorKind, ExtraDiskRequest, ImageFormat, MAX_EXTRA_DISK_BYTES};
use vm_spec::format_size;
use vmm_protocol::LayerFormat;

use super::Host;
use super::check::Problems;
use crate::error::{OpError, OpResult};
use crate::inventory::{LayerRow, MediumRow, VmRow};

/// Granule of a disk's size, bytes.
const SECTOR_BYTES: u64 = 512;

/// A medium, worked out.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    /// What it is, for the record of a VM.
    pub row: MediumRow,
    /// Layers below its top, nearest first; none of an empty disk.
    pub below: Vec<LayerRow>,
}

/// Media that clones share: each gets tops of its own.
pub(super) type Media = Arc<Vec<Medium>>;

impl Medium {
    /// Size of the disk, bytes.
    pub fn size_bytes(&self) -> u64 {
        match (&self.row, self.below.first()) {
            (MediumRow::Blank { size_bytes }, _) => *size_bytes,
            (MediumRow::On { .. }, below) => below.map_or(0, |below| below.size_bytes),
        }
    }

    /// What its top stands on.
    pub fn parent(&self) -> Option<&LayerRow> {
        self.below.first()
    }

    /// Names its top as disk `index` of a VM.
    pub fn top(&self, host: &Host, row: &mut VmRow, index: usize) -> LayerRow {
        host.next_top(row, index, self.parent(), self.size_bytes())
    }
}

impl Host {
    /// Works out media for empty slots; `field` is the member of the request that names them.
    pub(super) fn plan_media(&self, field: &str, disks: &[ExtraDiskRequest]) -> OpResult<Media> {
        let media = disks.iter().map(|disk| self.plan_medium(field, disk));
        Ok(Arc::new(media.collect::<OpResult<_>>()?))
    }

    /// As [`Host::plan_media`], with all that is wrong with any of them added to `problems`.
    pub(super) fn try_media(
        &self,
        field: &str,
        disks: &[ExtraDiskRequest],
        problems: &mut Problems,
    ) -> Option<Media> {
        let tried: Vec<_> = disks
            .iter()
            .map(|disk| problems.take(self.plan_medium(field, disk)))
            .collect();
        tried.into_iter().collect::<Option<_>>().map(Arc::new)
    }

    fn plan_medium(&self, field: &str, disk: &ExtraDiskRequest) -> OpResult<Medium> {
        let row = match (disk.size_bytes, &disk.image, &disk.path) {
            (Some(size_bytes), None, None) => {
                check_size(field, size_bytes)?;
                MediumRow::Blank { size_bytes }
            }
            (None, Some(name), None) => {
                let (path, format) = self.disk_of_image(field, name)?;
                return self.medium_on(field, path, Some(format));
            }
            (None, None, Some(path)) => {
                return self.medium_on(field, path.clone(), disk.format);
            }
            _ => {
                return Err(OpError::invalid(format!(
                    "{field}: a disk is empty with a size, or shows an image or a file; give one of \
                     size, image and path"
                )));
            }
        };
        Ok(Medium {
            row,
            below: Vec::new(),
        })
    }

    /// A medium as it was given to a VM at its fork.
    pub(super) fn medium_again(&self, row: &MediumRow) -> OpResult<Medium> {
        match row {
            MediumRow::Blank { .. } => Ok(Medium {
                row: row.clone(),
                below: Vec::new(),
            }),
            MediumRow::On { path, format } => {
                let format = match format {
                    LayerFormat::Raw => ImageFormat::Raw,
                    LayerFormat::Qcow2 => ImageFormat::Qcow2,
                };
                self.medium_on("extra_disks", path.clone(), Some(format))
            }
        }
    }

    fn medium_on(
        &self,
        field: &str,
        path: PathBuf,
        format: Option<ImageFormat>,
    ) -> OpResult<Medium> {
        let below = self.inspect(field, &path, format, false)?.layers;
        let Some(nearest) = below.first() else {
            return Err(OpError::failed(format!("{field}: a disk without layers")));
        };
        check_size(field, nearest.size_bytes)?;
        let row = MediumRow::On {
            path: nearest.path.clone(),
            format: nearest.format,
        };
        Ok(Medium { row, below })
    }

    fn disk_of_image(&self, field: &str, name: &str) -> OpResult<(PathBuf, ImageFormat)> {
        let image = crate::image::resolve(&self.config.home, name).map_err(|error| {
            let message = error.message();
            let plain = message.strip_prefix("image: ").unwrap_or(&message);
            OpError::new(error.kind, format!("{field}: {plain}")).about(field)
        })?;
        image.disk.ok_or_else(|| {
            OpError::new(
                ErrorKind::Invalid,
                format!(
                    "{field}: the image {name} has no disk; name one that has, see 'mitose image ls'"
                ),
            )
        })
    }
}

fn check_size(field: &str, bytes: u64) -> OpResult<()> {
    if bytes == 0 || bytes > MAX_EXTRA_DISK_BYTES || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(OpError::invalid(format!(
            "{field}: {bytes} bytes is no size of a disk; give a multiple of {SECTOR_BYTES} bytes up \
             to {}",
            format_size(MAX_EXTRA_DISK_BYTES)
        )));
    }
    Ok(())
}

/// Refuses more media than a VM has empty slots.
pub(super) fn check_slots(field: &str, row: &VmRow, media: usize) -> OpResult<()> {
    let slots = row.empty_slots();
    if media > slots {
        return Err(OpError::invalid(format!(
            "{field}: {media} disks were given, {} has {slots} spare disk slots; give fewer, or make \
             it with --spare-disks {media}",
            row.name
        )));
    }
    Ok(())
}
