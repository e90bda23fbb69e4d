//! The order in which changed tables reach the file.
//!
//! On disk, a cluster must be counted before a table points to it, and tables must let go of a
//! cluster before its count falls or anybody else uses it. So a commit writes
//!
//! 1. refcounts of new clusters, then the refcount table if it grew;
//! 2. L2 tables that nothing on disk points to yet;
//! 3. *barrier*: then changed L2 tables and the L1 table;
//! 4. *barrier*: then the counts of freed clusters.
//!
//! A barrier is an fdatasync. [`Order::Durable`] has them, so that a host crash at any moment
//! leaves at worst counted clusters that nobody uses. [`Order::Written`] keeps the order without
//! waiting: enough against the death of this process, and what a fork does before its stun (the
//! top becomes read-only there, and readers never look at refcounts).

use std::io;

use crate::qcow2::alloc::AllocError;
use crate::qcow2::cache::Class;
use crate::qcow2::image::Image;
use crate::qcow2::update::Access;

/// Whether a commit waits for the disk between its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Written,
    Durable,
}

/// Why a commit stopped. What was not written stays dirty, so it can be repeated.
#[derive(Debug)]
pub(crate) enum CommitError {
    Write(io::Error),
    Sync(io::Error),
    Alloc(AllocError),
}

impl Image {
    /// Whether memory differs from the file.
    pub fn is_dirty(&self, cache_dirty: bool) -> bool {
        cache_dirty
            || !self.dirty_l1.is_empty()
            || self
                .alloc
                .as_ref()
                .is_some_and(|alloc| alloc.pending() > 0 || alloc.has_new_blocks())
    }

    /// Writes all changes. Does not end with a barrier.
    pub fn commit(&mut self, access: &mut Access<'_>, order: Order) -> Result<(), CommitError> {
        if self.alloc.is_none() || !self.is_dirty(access.cache.has_dirty()) {
            return Ok(());
        }
        let end = self.end_bytes();
        if access.file.len().map_err(CommitError::Write)? < end {
            access.file.set_len(end).map_err(CommitError::Write)?;
        }
        write_slices(access, Class::Refcount, |_| true)?;
        if let Some(alloc) = self.alloc.as_mut().filter(|alloc| alloc.has_new_blocks()) {
            barrier(access, order)?;
            alloc
                .write_reftable(access.file)
                .map_err(CommitError::Write)?;
        }
        let table_bytes = !(self.header.cluster_bytes() - 1);
        let new_tables = &self.new_tables;
        write_slices(access, Class::L2, |offset| {
            new_tables.contains(&(offset & table_bytes))
        })?;
        let tables_changed =
            !self.dirty_l1.is_empty() || !access.cache.dirty_keys(Class::L2).is_empty();
        if tables_changed {
            barrier(access, order)?;
            write_slices(access, Class::L2, |_| true)?;
            self.write_l1(access)?;
        }
        self.commit_freed(access, order)
    }

    fn write_l1(&mut self, access: &mut Access<'_>) -> Result<(), CommitError> {
        while let Some(&index) = self.dirty_l1.first() {
            let entry = self.l1[index];
            let at = self.header.l1_offset + index as u64 * 8;
            access
                .file
                .write_at(at, &entry.to_be_bytes())
                .map_err(CommitError::Write)?;
            self.dirty_l1.remove(&index);
            self.new_tables
                .remove(&(entry & !crate::qcow2::image::COPIED));
        }
        Ok(())
    }

    fn commit_freed(&mut self, access: &mut Access<'_>, order: Order) -> Result<(), CommitError> {
        let bits = self.header.cluster_bits;
        let Some(alloc) = self.alloc.as_mut().filter(|alloc| alloc.pending() > 0) else {
            return Ok(());
        };
        barrier(access, order)?;
        let holes = alloc
            .apply_pending(access.layer, access.file, access.cache)
            .map_err(CommitError::Alloc)?;
        write_slices(access, Class::Refcount, |_| true)?;
        if order == Order::Durable {
            alloc.synced();
        }
        for (cluster, count) in holes {
            // Only gives space back: a file system that cannot is no reason to fail.
            let _ = access.file.punch_hole(cluster << bits, count << bits);
        }
        Ok(())
    }
}

fn barrier(access: &mut Access<'_>, order: Order) -> Result<(), CommitError> {
    match order {
        Order::Written => Ok(()),
        Order::Durable => access.file.sync_data().map_err(CommitError::Sync),
    }
}

fn write_slices(
    access: &mut Access<'_>,
    class: Class,
    wanted: impl Fn(u64) -> bool,
) -> Result<(), CommitError> {
    for key in access.cache.dirty_keys(class) {
        if wanted(key.offset) {
            access
                .cache
                .write_back(key, access.file)
                .map_err(CommitError::Write)?;
        }
    }
    Ok(())
}
