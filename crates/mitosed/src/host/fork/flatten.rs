//! Putting a source on a memory layer of its own when its forks have left it many private pages.
//!
//! A VM that runs on a private view keeps every page that it has written since it came onto its
//! layer, and each fork copies the page-table entries of all of them: the stun grows with a history
//! that nobody needs. Where [`History`] finds that a fork would be shorter without it, a thread has the
//! VM process move its RAM onto a new layer, a piece at a time. A piece stuns the guest for less than
//! a fork does; between two of them the guest runs for most of the time, and forks and all else go
//! first.
//!
//! Nothing of it is recorded: when the daemon ends, what was moved stays on the new layer and the
//! rest on the old one.

mod history;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{SealFlags, fcntl_add_seals};
use serde_json::json;
use vmm_protocol::{BeginFlatten, Command, Fd, FlattenNext, Outcome, RamView};

pub(in crate::host) use self::history::History;
use super::DRAIN_MS_MAX;
use crate::error::OpResult;
use crate::host::backends::{make_ram, reopen_read_only};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::Changes;
use crate::usage;
use crate::vmm::Link;

/// Longest time of moving one piece.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Rest after each piece, in times of what it took, and at least.
const REST: (u32, Duration) = (4, Duration::from_millis(2));

/// Whether a VM's RAM is being moved: one at a time.
#[derive(Debug, Default)]
pub(in crate::host) struct AtWork(AtomicBool);

impl AtWork {
    fn begin(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    fn end(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Lets another VM have its turn, however the work ends.
struct Ending<'a>(&'a AtWork);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What was moved.
#[derive(Debug, Default)]
struct Moved {
    pieces: u64,
    kib: u64,
    stun_us_max: u64,
    stun_us_sum: u64,
}

impl Host {
    /// After a fork: has the source's RAM moved onto a new layer, where that pays.
    pub(in crate::host) fn flatten_where_it_pays(self: &Arc<Self>, source: &Arc<Vm>) {
        let limit_kib = self.config.flatten_from_bytes >> 10;
        let (view, pid) = {
            let live = source.live();
            (live.ram, live.row.pid)
        };
        let Some(own_kib) = pid.and_then(usage::anonymous_kib).filter(|_| limit_kib > 0) else {
            return;
        };
        if view != Some(RamView::Private) {
            return;
        }
        let pays = source.update(|live| live.history.fork(own_kib, limit_kib, Instant::now()));
        // The layer has all of the RAM at most.
        let room = || self.check_memory("a memory layer", source.live().row.spec.memory_bytes);
        if !pays || room().is_err() || !self.flattening.begin() {
            return;
        }
        let (host, vm) = (Arc::clone(self), Arc::clone(source));
        let begun = std::thread::Builder::new()
            .name("flatten".into())
            .spawn(move || {
                let _end = Ending(&host.flattening);
                host.flatten(&vm);
            });
        if let Err(error) = begun {
            tracing::error!(vm = &*source.name(), %error, "cannot start a thread");
            self.flattening.end();
        }
    }

    fn flatten(self: &Arc<Self>, vm: &Arc<Vm>) {
        let start = Instant::now();
        // The layer is charged to the VM until its group is settled again.
        let lodging = self.raise_for_fork(vm, 1);
        let moved = self.move_ram(vm);
        if lodging.is_some() {
            self.settle_after_fork(vm, Some(Vec::new()), lodging);
        }
        let (moved, layer_kib) = match moved {
            Ok(moved) => moved,
            Err(error) => {
                vm.update(|live| live.history.failed(Instant::now()));
                let error = error.message();
                tracing::info!(vm = &*vm.name(), error, "its RAM was not flattened");
                return;
            }
        };
        let took = start.elapsed();
        vm.update(|live| live.history.flattened(took, Instant::now()));
        let message = format!(
            "moved {} KiB of RAM onto a new layer in {} pieces, stun of each at most {} us",
            moved.kib, moved.pieces, moved.stun_us_max
        );
        let event = vm_event(vm, "vm.flattened", message).with(json!({
            "pieces": moved.pieces,
            "moved_kib": moved.kib,
            "layer_kib": layer_kib,
            "stun_us": moved.stun_us_max,
            "stun_us_sum": moved.stun_us_sum,
            "duration_ms": took.as_millis() as u64,
        }));
        let changes = Changes {
            events: vec![event],
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
    }

    /// Moves what is to be moved; also returns what the new layer takes of memory, KiB.
    fn move_ram(&self, vm: &Vm) -> OpResult<(Moved, u64)> {
        let (link, pid) = {
            let live = vm.live();
            (live.link.clone(), live.row.pid)
        };
        let link = link.context("the VM has ended")?;
        let pid = pid.context("the VM has no process")?;
        let layer = Layer(File::from(make_ram(vm.live().row.spec.memory_bytes)?));
        let read_only = reopen_read_only(layer.0.as_fd())?;
        let pagemap = linux_sys::open_pagemap(pid).context("cannot open the VM's page map")?;
        let order = Command::BeginFlatten(BeginFlatten {
            writable: Fd(0),
            layer: Fd(1),
            pagemap: Fd(2),
        });
        let fds = [layer.0.as_fd(), read_only.as_fd(), pagemap.as_fd()];
        {
            let _turn = self.turn(vm)?;
            link.call(order, &fds, TIMEOUT)
                .context("the VM process did not begin")?;
        }
        let mut moved = Moved::default();
        loop {
            let took = {
                let _turn = self.turn(vm)?;
                let begun = Instant::now();
                let Some((stun_us, kib)) = next_piece(&link)? else {
                    let layer = layer.0.metadata();
                    let layer = layer.context("cannot look at the new layer")?;
                    let layer_kib = layer.blocks() / 2;
                    return Ok((moved, layer_kib));
                };
                moved.pieces += 1;
                moved.kib += kib;
                moved.stun_us_sum += stun_us;
                moved.stun_us_max = moved.stun_us_max.max(stun_us);
                begun.elapsed()
            };
            std::thread::sleep((took * REST.0).max(REST.1));
        }
    }
}

/// A new layer; sealed when it is dropped, whatever became of the move: clones may have it.
struct Layer(File);

impl Drop for Layer {
    fn drop(&mut self) {
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
        if let Err(error) = fcntl_add_seals(&self.0, seals) {
            tracing::warn!(%error, "cannot seal a memory layer");
        }
    }
}

/// Moves one piece; returns its stun in microseconds and its size in KiB, or none when all is done.
fn next_piece(link: &Arc<Link>) -> anyhow::Result<Option<(u64, u64)>> {
    let order = Command::FlattenNext(FlattenNext {
        drain_ms_max: DRAIN_MS_MAX,
    });
    match link.call(order, &[], TIMEOUT)? {
        (Outcome::Flattened { moved_kib: 0, .. }, _) => Ok(None),
        (Outcome::Flattened { stun_us, moved_kib }, _) => Ok(Some((stun_us, moved_kib))),
        _ => anyhow::bail!("the VM process gave an answer that does not fit"),
    }
}
