//! Refcounts of an image, compared with what its tables use, and corrected.
//!
//! A process that dies leaves at most clusters that are counted and not used; a host crash between
//! a fork and the next guest flush can also leave used clusters uncounted. Reading minds neither.
//! Both are put right here, before a stopped VM's disk is opened for writing again.

use std::fs::File;
use std::io;

use thiserror::Error;

use crate::error::LayerError;
use crate::qcow2::header::{Header, be64, field, read};
use crate::qcow2::image::{Entry, Image, OFFSET_MASK, decode, read_table};
use crate::storage::{Storage, is_no_space};

/// Most clusters of a file that is checked (8 TiB of 64 KiB clusters): two bytes of memory each.
const MAX_CLUSTERS: u64 = 1 << 27;

/// What a check found, and a repair corrected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountReport {
    /// Clusters that are used.
    pub used: u64,
    /// Clusters counted more often than used: wasted space.
    pub leaked: u64,
    /// Clusters used more often than counted: a writer could give them away.
    pub uncounted: u64,
}

impl RefcountReport {
    /// Every count is right.
    pub fn is_clean(&self) -> bool {
        self.leaked == 0 && self.uncounted == 0
    }
}

/// Why an image could not be checked or repaired.
#[derive(Debug, Error)]
pub enum RepairError {
    /// The header or a table is damaged beyond counting.
    #[error("cannot check the image")]
    Damaged(#[source] LayerError),
    /// Two tables point to the same cluster.
    #[error("cluster at byte {offset} is used twice: restore the image from a copy")]
    UsedTwice {
        /// Where.
        offset: u64,
    },
    /// The file has more clusters than are checked.
    #[error("image has {clusters} clusters, more than {max}: check it with `qemu-img check`")]
    TooLarge {
        /// Clusters of the file.
        clusters: u64,
        /// The limit.
        max: u64,
    },
    /// The file system is full.
    #[error("no space left to repair the image")]
    NoSpace,
    /// The host failed a write.
    #[error("cannot write repaired refcounts")]
    Write(#[source] io::Error),
}

impl From<LayerError> for RepairError {
    fn from(err: LayerError) -> Self {
        RepairError::Damaged(err)
    }
}

/// Compares the refcounts of a qcow2 image with its tables; reads all tables, so it also finds
/// truncated files and clusters used twice.
pub fn check_refcounts(file: &File) -> Result<RefcountReport, RepairError> {
    check(file)
}

/// Reads all tables of a qcow2 image that enters from outside and refuses one that is cut off or
/// has a cluster used twice. An image whose counts this crate does not keep (snapshots, other
/// widths, huge ones) is taken as it is.
pub fn check_whole(file: &File) -> Result<(), RepairError> {
    match check(file) {
        Err(
            RepairError::Damaged(LayerError::NotWritable { .. }) | RepairError::TooLarge { .. },
        )
        | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Corrects the refcounts of a qcow2 image that nobody has open; durable on return. The report
/// says what was wrong.
pub fn repair_refcounts(file: &File) -> Result<RefcountReport, RepairError> {
    repair(file)
}

pub(crate) fn check(file: &dyn Storage) -> Result<RefcountReport, RepairError> {
    Audit::new(file)?.report()
}

pub(crate) fn repair(file: &dyn Storage) -> Result<RefcountReport, RepairError> {
    let mut audit = Audit::new(file)?;
    let report = audit.report()?;
    if !report.is_clean() {
        audit.correct()?;
    }
    Ok(report)
}

struct Audit<'a> {
    file: &'a dyn Storage,
    header: Header,
    /// Host offsets of the refcount blocks.
    blocks: Vec<u64>,
    /// How often each cluster of the file is used.
    used: Vec<u16>,
}

impl<'a> Audit<'a> {
    fn new(file: &'a dyn Storage) -> Result<Audit<'a>, RepairError> {
        let image = Image::open(file, false)?;
        let header = image.header.clone();
        if header.refcount_order != 4 || header.snapshots != 0 {
            return Err(RepairError::Damaged(LayerError::NotWritable {
                reason: "only 16-bit refcounts without snapshots are checked here: \
                         use `qemu-img check`",
            }));
        }
        let clusters = header.file_bytes.div_ceil(header.cluster_bytes());
        if clusters > MAX_CLUSTERS {
            return Err(RepairError::TooLarge {
                clusters,
                max: MAX_CLUSTERS,
            });
        }
        let entries = (u64::from(header.reftable_clusters) << header.cluster_bits) / 8;
        let blocks = read_table(file, header.reftable_offset, entries as usize)?;
        let mut audit = Audit {
            file,
            blocks,
            used: vec![0; clusters as usize],
            header,
        };
        audit.count_tables(&image)?;
        Ok(audit)
    }

    fn count_tables(&mut self, image: &Image) -> Result<(), RepairError> {
        let cluster = self.header.cluster_bytes();
        self.take(0, 1)?;
        self.take(
            self.header.reftable_offset,
            u64::from(self.header.reftable_clusters) << self.header.cluster_bits,
        )?;
        self.take(self.header.l1_offset, u64::from(self.header.l1_entries) * 8)?;
        for block in self.blocks.clone() {
            if block % cluster != 0 || block >= self.header.file_bytes {
                return Err(RepairError::Damaged(field(
                    "refcount table entry",
                    block,
                    "misaligned or past the end: repair it with `qemu-img check -r all`",
                )));
            }
            if block != 0 {
                self.take(block, cluster)?;
            }
        }
        let mut table = vec![0u8; cluster as usize];
        for &entry in image.l1.iter().filter(|entry| **entry != 0) {
            let offset = entry & OFFSET_MASK;
            self.take(offset, cluster)?;
            read(self.file, offset, &mut table)?;
            self.count_entries(&table)?;
        }
        Ok(())
    }

    fn count_entries(&mut self, table: &[u8]) -> Result<(), RepairError> {
        let cluster = self.header.cluster_bytes();
        for entry in table.chunks_exact(8) {
            match decode(&self.header, be64(entry, 0), self.header.file_bytes)? {
                Entry::Unallocated | Entry::Zero(None) => {}
                Entry::Zero(Some(host)) | Entry::Data { host, .. } => self.take(host, cluster)?,
                Entry::Compressed { offset, length } => {
                    // Compressed clusters share the clusters of the file.
                    let end = (offset + length).min(self.header.file_bytes);
                    for at in offset / cluster..end.div_ceil(cluster) {
                        let count = &mut self.used[at as usize];
                        *count = count.saturating_add(1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts the clusters of something that shares them with nobody.
    fn take(&mut self, offset: u64, bytes: u64) -> Result<(), RepairError> {
        let cluster = self.header.cluster_bytes();
        for at in offset / cluster..(offset + bytes).div_ceil(cluster) {
            match self.used.get_mut(at as usize) {
                Some(count) if *count == 0 => *count = 1,
                Some(_) => {
                    return Err(RepairError::UsedTwice {
                        offset: at * cluster,
                    });
                }
                None => {
                    return Err(RepairError::Damaged(LayerError::Truncated {
                        what: "a table",
                        needed: offset + bytes,
                        actual: self.header.file_bytes,
                    }));
                }
            }
        }
        Ok(())
    }

    /// Clusters that one block counts.
    fn span(&self) -> u64 {
        self.header.cluster_bytes() / 2
    }

    /// The used counts of the clusters of a block; shorter at the end of the file.
    fn used_in(&self, block: usize) -> &[u16] {
        let span = self.span() as usize;
        let start = (block * span).min(self.used.len());
        &self.used[start..(start + span).min(self.used.len())]
    }

    fn report(&self) -> Result<RefcountReport, RepairError> {
        let mut report = RefcountReport::default();
        let mut bytes = vec![0u8; self.header.cluster_bytes() as usize];
        let blocks = self
            .blocks
            .len()
            .max(self.used.len().div_ceil(self.span() as usize));
        for index in 0..blocks {
            let used = self.used_in(index);
            let block = self.blocks.get(index).copied().unwrap_or(0);
            if block == 0 {
                report.uncounted += used.iter().filter(|count| **count > 0).count() as u64;
                report.used += used.iter().filter(|count| **count > 0).count() as u64;
                continue;
            }
            read(self.file, block, &mut bytes)?;
            for (at, counted) in bytes.chunks_exact(2).enumerate() {
                let counted = u16::from_be_bytes([counted[0], counted[1]]);
                let used = used.get(at).copied().unwrap_or(0);
                report.used += u64::from(used > 0);
                report.leaked += u64::from(counted > used);
                report.uncounted += u64::from(counted < used);
            }
        }
        Ok(report)
    }

    /// Writes the used counts. New blocks go to the end of the file and count themselves.
    fn correct(&mut self) -> Result<(), RepairError> {
        let (cluster, span) = (self.header.cluster_bytes(), self.span());
        let mut added = Vec::new();
        let mut index = 0;
        while index < self.used.len().div_ceil(span as usize) {
            if index >= self.blocks.len() {
                return Err(RepairError::Damaged(LayerError::NotWritable {
                    reason: "its refcount table is full: repair it with `qemu-img check -r all`",
                }));
            }
            if self.blocks[index] == 0 && self.used_in(index).iter().any(|count| *count > 0) {
                self.blocks[index] = self.used.len() as u64 * cluster;
                self.used.push(1);
                added.push(index);
            }
            index += 1;
        }
        self.file
            .set_len(self.used.len() as u64 * cluster)
            .map_err(write_error)?;
        let mut bytes = Vec::with_capacity(cluster as usize);
        for index in 0..self.blocks.len() {
            if self.blocks[index] == 0 {
                continue;
            }
            bytes.clear();
            bytes.extend(
                self.used_in(index)
                    .iter()
                    .flat_map(|used| used.to_be_bytes()),
            );
            bytes.resize(cluster as usize, 0);
            self.file
                .write_at(self.blocks[index], &bytes)
                .map_err(write_error)?;
        }
        self.file.sync_data().map_err(RepairError::Write)?;
        for index in added {
            let at = self.header.reftable_offset + index as u64 * 8;
            self.file
                .write_at(at, &self.blocks[index].to_be_bytes())
                .map_err(write_error)?;
        }
        self.file.sync_data().map_err(RepairError::Write)
    }
}

fn write_error(err: io::Error) -> RepairError {
    if is_no_space(&err) {
        RepairError::NoSpace
    } else {
        RepairError::Write(err)
    }
}
