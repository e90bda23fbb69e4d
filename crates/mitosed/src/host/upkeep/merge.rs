//! One merge: layers right below a top are written into a new one, and the top put on that.
//!
//! ```text
//! record the new layer ─ write it                         forks go on; what they seal is merged
//!                      └ again for what was sealed since   into further, small layers
//! take the VM's turn ─ the rest ─ put the top on the new layers ─ sync the top ─ record ─ remove
//! ```
//!
//! A daemon that dies leaves new layers that nobody uses, which recovery removes, unless the top
//! stands on them already: then the record follows ([`super::settle`]).

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk_layers::{LayerFile, Pace, Progress, set_backing};
use linux_sys::Background;
use serde::Serialize;
use serde_json::json;
use vmm_protocol::{Command, LayerFd, Outcome, Rebase};

use super::Stack;
use crate::error::{OpError, OpResult};
use crate::host::backends::FdList;
use crate::host::full::stamp_of;
use crate::host::{Host, TaskContext, Vm, vm_event};
use crate::inventory::{Changes, LayerRow, sync_directory};
use crate::layers::{backing_name, disk_format, open_layer, remove_files};
use crate::vmm::LinkError;

/// Longest wait for a VM process to take other layers: it may have a slow request in work.
const REBASE_TIMEOUT: Duration = Duration::from_secs(20);
/// Rounds made without the VM's turn at most.
const ROUNDS_MAX: usize = 8;
/// What was sealed since the last round is merged under the VM's turn when it is this little.
const LAST_ROUND_BYTES: u64 = 8 << 20;

/// What a merge did.
#[derive(Debug, Serialize)]
pub(in crate::host) struct Merged {
    disk: usize,
    layers_before: usize,
    layers_after: usize,
    copied_bytes: u64,
    elapsed_ms: u64,
    /// Time that the disk's queue was held, of a VM that runs.
    held_us: Option<u64>,
}

/// A merge in work. What it has made so far goes with it, unless it is done.
struct Job<'a> {
    host: &'a Arc<Host>,
    vm: &'a Arc<Vm>,
    disk: usize,
    context: &'a TaskContext,
    /// New layers, oldest first; each is in use by this job.
    made: Vec<LayerRow>,
    /// Newest layer whose content is in them.
    covered: String,
    copied_bytes: u64,
    done: bool,
}

impl Host {
    /// Merges layers of a VM's disk, if there are enough.
    pub(super) fn merge_disk(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        disk: usize,
        context: &TaskContext,
    ) -> OpResult<Option<Merged>> {
        let start = Instant::now();
        let stack = self.settled_stack(vm, disk)?;
        let Some(run) = stack.run() else {
            return Ok(None);
        };
        let mut job = Job {
            host: self,
            vm,
            disk,
            context,
            made: Vec::new(),
            covered: run[0].id.clone(),
            copied_bytes: 0,
            done: false,
        };
        let (run, before) = (run.to_vec(), stack.chain.len());
        job.copy(&run, self.config.merge_rate)?;
        for _ in 0..ROUNDS_MAX {
            let fresh = job.sealed_since()?;
            if fresh.iter().map(super::bytes_of).sum::<u64>() <= LAST_ROUND_BYTES {
                break;
            }
            job.copy(&fresh, self.config.merge_rate)?;
        }
        let _turn = self.turn(vm)?;
        let fresh = job.sealed_since()?;
        if !fresh.is_empty() {
            job.copy(&fresh, None)?;
        }
        let (layers_after, held_us) = job.put_below()?;
        let merged = Merged {
            disk,
            layers_before: before + fresh.len(),
            layers_after,
            copied_bytes: job.copied_bytes,
            elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            held_us,
        };
        job.record(&merged)?;
        Ok(Some(merged))
    }

    /// The stack of a disk whose lower layers nobody writes to.
    fn settled_stack(&self, vm: &Vm, disk: usize) -> OpResult<Stack> {
        let (top, pid) = {
            let live = vm.live();
            let row = live.row.disks.get(disk);
            let top = row.and_then(|row| row.top.clone());
            let top = top.ok_or_else(|| OpError::conflict(format!("disk {disk} is gone")))?;
            (top, live.link.is_some().then_some(live.row.pid))
        };
        let stack = self.stack_of(&self.layers(), &vm.id, disk, &top)?;
        // After a fork that came to nobody knows what, a process may still write to a layer that
        // the record has as sealed.
        if let Some(pid) = pid
            && !pid.is_some_and(|pid| has_open(pid, &stack.chain[0].path))
        {
            return Err(OpError::conflict(format!(
                "{} has not taken up the latest top of disk {disk}; its next fork settles that",
                vm.name()
            )));
        }
        Ok(stack)
    }
}

impl Job<'_> {
    /// Layers that forks sealed since the last round, newest first.
    fn sealed_since(&self) -> OpResult<Vec<LayerRow>> {
        let stack = self.host.settled_stack(self.vm, self.disk)?;
        let below = &stack.chain[1..];
        match below.iter().position(|layer| layer.id == self.covered) {
            Some(at) => Ok(below[..at].to_vec()),
            None => Err(OpError::conflict(format!(
                "disk {} of {} was changed while its layers were merged",
                self.disk,
                self.vm.name()
            ))),
        }
    }

    /// Merges `run`, newest first, into a new layer on top of those made before.
    fn copy(&mut self, run: &[LayerRow], rate: Option<NonZeroU64>) -> OpResult<()> {
        let (Some(newest), Some(oldest)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let below = match self.made.last() {
            Some(made) => Some(made.id.clone()),
            None => oldest.parent.clone(),
        };
        let (layer, parent) = self.intend(newest, below.as_deref())?;
        let background = rate.is_some().then(Background::begin);
        let target = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&layer.path)
            .with_context(|| format!("cannot make {}", layer.path.display()))?;
        let files = run.iter().map(|layer| {
            let file = File::open(&layer.path)
                .with_context(|| format!("cannot open {}", layer.path.display()))?;
            let format = disk_format(layer.format);
            anyhow::Ok(LayerFile { file, format })
        });
        let files = files.collect::<anyhow::Result<_>>()?;
        let (upkeep, cancel) = (&self.host.upkeep, self.context.cancel_token());
        let mut progress = |progress: Progress| {
            let fraction = progress.done_bytes as f32 / progress.total_bytes.max(1) as f32;
            self.context.progress(fraction, "merging layers");
            if cancel.is_cancelled() || upkeep.has_ended() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let mut pace = match rate {
            Some(rate) => Pace::limited(&mut progress, rate),
            None => Pace::free(&mut progress),
        };
        let name = backing_name(&layer.path, &parent.path);
        let format = disk_format(parent.format);
        let report = disk_layers::merge(files, target, &name, format, &mut pace)
            .with_context(|| format!("cannot merge layers of disk {}", self.disk))?;
        drop(background);
        if let Some(directory) = layer.path.parent() {
            sync_directory(directory).context("cannot sync the datastore")?;
        }
        self.copied_bytes += report.copied_bytes;
        newest.id.clone_into(&mut self.covered);
        Ok(())
    }

    /// Records a new layer, which only this job uses; returns it and its parent.
    fn intend(&mut self, like: &LayerRow, below: Option<&str>) -> OpResult<(LayerRow, LayerRow)> {
        let number = self.vm.update(|live| {
            live.row.next_layer += 1;
            live.row.next_layer - 1
        });
        let id = super::settle::name_of_merged(&self.vm.id, self.disk, number);
        let (layer, parent) = {
            // Sealed layers do not change, so what they show is told before they are copied.
            let shown = self.host.layers().chain(&like.id)?;
            let content = stamp_of(&shown).ok();
            let mut layers = self.host.layers();
            let parent = below.and_then(|id| layers.get(id)).cloned();
            let parent = parent.context("the layer below is gone")?;
            let layer = LayerRow {
                path: like.path.with_file_name(format!("{id}.qcow2")),
                id,
                parent: Some(parent.id.clone()),
                content,
                ..like.clone()
            };
            layers.insert([layer.clone()]);
            layers.hold(&layer.id);
            (layer, parent)
        };
        self.made.push(layer.clone());
        let changes = Changes {
            layers: vec![layer.clone()],
            ..Changes::default()
        };
        // With the VM's row, so that no number is given twice.
        self.host.commit(&[self.vm], changes)?;
        Ok((layer, parent))
    }

    /// Puts the top on the new layers, durably; returns how many layers the disk has then, and
    /// how long a running VM's was held. The caller has the VM's turn.
    fn put_below(&mut self) -> OpResult<(usize, Option<u64>)> {
        let newest = self.made.last().context("nothing was merged")?;
        let (top, below) = {
            let layers = self.host.layers();
            let row = self.vm.row();
            let top = row.disks[self.disk].top.as_ref();
            let top = top.and_then(|top| layers.get(top)).cloned();
            (top.context("the top is gone")?, layers.chain(&newest.id)?)
        };
        let name = backing_name(&top.path, &newest.path);
        let held_us = match self.vm.link() {
            Some(link) => {
                let mut fds = FdList::default();
                let mut named = Vec::new();
                for layer in &below {
                    let open = open_layer(layer, false)?;
                    named.push(LayerFd {
                        fd: fds.add(open.file),
                        format: open.format,
                    });
                }
                let order = Command::Rebase(Rebase {
                    disk: self.disk,
                    below: named,
                    backing: name,
                });
                match link.call(order, &fds.borrowed(), REBASE_TIMEOUT) {
                    // Processes of earlier versions do not tell.
                    Ok((Outcome::Rebased { held_us }, _)) => Some(held_us),
                    Ok(_) => None,
                    Err(error @ LinkError::Refused { .. }) => {
                        return Err(OpError::conflict(format!("{}: {error}", self.vm.name())));
                    }
                    Err(error) => return self.unknown_end(error),
                }
            }
            None => {
                let open = open_layer(&top, true)?;
                let file = open.file.try_clone();
                let file = File::from(file.context("cannot share a descriptor")?);
                let written = file.metadata().and_then(|file| file.modified());
                set_backing(&file, &name, disk_format(newest.format))
                    .context("cannot put the top on the merged layer")?;
                // The disk shows what it did: the time of the last write tells its content.
                let kept = written.and_then(|written| file.set_modified(written));
                kept.context("cannot set the time of the top")?;
                None
            }
        };
        let synced = File::open(&top.path).and_then(|file| file.sync_data());
        synced.context("cannot sync the top")?;
        Ok((below.len() + 1, held_us))
    }

    /// The process did not answer: it may have taken the layers, or may still. They stay until the
    /// next start of the daemon, which looks at the top.
    fn unknown_end(&mut self, error: LinkError) -> OpResult<(usize, Option<u64>)> {
        self.done = true;
        Err(self
            .host
            .explain(self.vm, "cannot put merged layers below a disk of", error)
            .into())
    }

    /// Records what the top stands on, and removes what nobody uses any more.
    fn record(&mut self, merged: &Merged) -> OpResult<()> {
        let Some(newest) = self.made.last() else {
            return Ok(());
        };
        let top = self.vm.row().disks[self.disk].top.clone();
        let top = top.context("the disk is gone")?;
        let message = format!(
            "disk {}: {} layers merged into {}, {} MiB copied",
            merged.disk,
            merged.layers_before,
            merged.layers_after,
            merged.copied_bytes >> 20
        );
        let told = vm_event(self.vm, "disk.merged", message).with(json!(merged));
        let told = told.of_task(self.context.id());
        self.host.put_on(&top, &newest.id.clone(), Some(told))?;
        self.done = true;
        {
            let mut layers = self.host.layers();
            for layer in &self.made {
                let left = layers.release(&layer.id);
                debug_assert!(
                    left.is_empty(),
                    "the top uses the newest, that the one below"
                );
            }
        }
        Ok(())
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut gone = Vec::new();
        for layer in self.made.iter().rev() {
            gone.extend(self.host.layers().release(&layer.id));
        }
        let changes = Changes {
            removed_layers: gone.iter().map(|layer| layer.id.clone()).collect(),
            ..Changes::default()
        };
        self.host.commit_logged(&[], changes);
        remove_files(&gone);
    }
}

/// Whether a process has a file open.
fn has_open(pid: i32, path: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(path) else {
        return false;
    };
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().flatten().any(|entry| {
        // Through the link, to the file itself.
        std::fs::metadata(entry.path())
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    })
}
