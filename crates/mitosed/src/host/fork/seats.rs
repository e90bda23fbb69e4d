//! One clone in the making.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::{IdentityKind, SshHostKey};
use anyhow::Context;
use vm_spec::VmSpec;
use vmm_protocol::{Backends, Command, Fd, Prepare, Restore};

use super::clone_ram;
use crate::clock::random_hex;
use crate::error::OpError;
use crate::host::backends::{FdList, OpenTaps, reopen_read_only};
use crate::host::datastores::Promise;
use crate::host::identity::identity_message;
use crate::host::{Host, Vm};
use crate::inventory::{DiskRow, LayerRow};
use crate::layers::{OpenLayer, make_delta, open_layer};
use crate::nursery;
use crate::vmm::{Link, Pending};
use std::os::fd::AsFd;

/// Longest time until a process born by `fork()` tells that it lives.
const BIRTH_TIMEOUT: Duration = Duration::from_secs(20);

/// One disk of a clone: its top where it has one of its own, and what lies below.
#[derive(Debug)]
struct SeatDisk {
    delta: Option<(LayerRow, LayerRow)>,
    row: DiskRow,
    below: Vec<OpenLayer>,
    top: Option<OpenLayer>,
}

/// One clone in the making.
#[derive(Debug)]
pub(super) struct Seat {
    /// The clone.
    pub vm: Arc<Vm>,
    disks: Vec<SeatDisk>,
    taps: OpenTaps,
    /// Space of the call's deltas, shared by its seats.
    pub space: Option<Arc<Vec<Promise>>>,
    /// SSH host keys of its own, where the source has some.
    pub host_keys: Vec<SshHostKey>,
    /// Listening socket and user id of a process that is to be born by `fork()`.
    pub newborn: Option<(Arc<OwnedFd>, u32)>,
    /// Connection to its process.
    pub link: Option<Arc<Link>>,
    /// The order to run, not yet sent: what the clone is provided with.
    order: Option<(VmSpec, Backends, FdList)>,
    /// The order to run, not yet answered.
    pub pending: Option<Pending>,
    /// When it was first entered.
    pub first_run_at_ns: Option<u64>,
    /// Disk for whose write it found no space at once.
    pub early_no_space: Option<usize>,
    /// It stands still at the fork point until somebody resumes it.
    pub paused: bool,
    /// The VM was there before the call, powered off.
    pub was_there: bool,
    /// Why it does not come to life.
    pub error: Option<String>,
}

impl Seat {
    /// A seat without disks and process.
    pub fn new(vm: Arc<Vm>, taps: OpenTaps) -> Self {
        Self {
            vm,
            disks: Vec::new(),
            taps,
            space: None,
            host_keys: Vec::new(),
            newborn: None,
            link: None,
            order: None,
            pending: None,
            first_run_at_ns: None,
            early_no_space: None,
            paused: false,
            was_there: false,
            error: None,
        }
    }

    /// Notes why the clone does not come to life; the first reason stays.
    pub fn fail(&mut self, message: String) {
        self.error.get_or_insert(message);
        self.pending = None;
    }

    /// Gives the clone its disk `index` on the source's stack `chain`.
    pub fn add_disk(
        &mut self,
        host: &Host,
        index: usize,
        chain: &[LayerRow],
        read_only: bool,
    ) -> anyhow::Result<()> {
        let parent = &chain[0];
        let delta = (!read_only).then(|| {
            let delta = host.next_delta(&mut self.vm.live().row, index, parent);
            (delta, parent.clone())
        });
        let top = delta.as_ref().map_or(&parent.id, |(delta, _)| &delta.id);
        self.disks.push(SeatDisk {
            row: DiskRow {
                top: top.clone(),
                pending: None,
            },
            delta,
            below: Vec::new(),
            top: None,
        });
        Ok(())
    }

    /// Rows of the layers that only this clone uses.
    pub fn deltas(&self) -> impl Iterator<Item = &LayerRow> {
        self.disks
            .iter()
            .filter_map(|disk| disk.delta.as_ref().map(|(delta, _)| delta))
    }

    /// Rows of its disks.
    pub fn disk_rows(&self) -> Vec<DiskRow> {
        self.disks.iter().map(|disk| disk.row.clone()).collect()
    }

    /// Takes over the disks that a powered-off VM has.
    pub fn add_present_disks(&mut self, host: &Host) -> anyhow::Result<()> {
        let row = self.vm.row();
        for (disk, spec) in row.disks.iter().zip(&row.spec.disks) {
            let chain = host.layers().chain(&disk.top)?;
            let delta = match &chain[..] {
                [top, parent, ..] if !spec.read_only => Some((top.clone(), parent.clone())),
                _ => None,
            };
            self.disks.push(SeatDisk {
                row: disk.clone(),
                top: match &delta {
                    Some((top, _)) => Some(open_layer(top, true)?),
                    None => None,
                },
                delta,
                below: Vec::new(),
            });
        }
        Ok(())
    }

    /// Makes the files of its deltas.
    pub fn make_tops(&mut self) -> anyhow::Result<()> {
        for disk in self.disks.iter_mut().filter(|disk| disk.top.is_none()) {
            if let Some((delta, parent)) = &disk.delta {
                let file = make_delta(delta, parent)?;
                disk.top = Some(OpenLayer {
                    file: Arc::new(file.into()),
                    format: delta.format,
                });
            }
        }
        Ok(())
    }

    /// Has its process build ahead what it can; what fails there fails again later and is told then.
    pub fn prepare_process(&self, kvm: Option<&Arc<OwnedFd>>) {
        let Some(link) = &self.link else { return };
        let (memory_bytes, cpus) = {
            let spec = &self.vm.live().row.spec;
            (spec.memory_bytes, spec.cpus)
        };
        let order = Command::Prepare(Prepare {
            kvm: kvm.map(|_| Fd(0)),
            memory_bytes,
            cpus,
        });
        let fds = Vec::from_iter(kvm.map(|fd| fd.as_fd()));
        let _ = link.request(order, &fds);
    }

    /// Tells the clone to run, without waiting for its answer.
    pub fn tell_restore(
        &mut self,
        ram: Option<Arc<OwnedFd>>,
        checkpoint: Option<&OwnedFd>,
    ) -> anyhow::Result<()> {
        let link = self.link.as_ref().context("the clone has no process")?;
        let (spec, backends, mut fds) = self.order.take().context("the clone has no back ends")?;
        let restore = Restore {
            spec,
            ram: clone_ram(ram, &mut fds),
            checkpoint: match checkpoint {
                Some(checkpoint) => Some(fds.add(reopen_read_only(checkpoint.as_fd())?)),
                None => None,
            },
            backends,
            generation_id: Some(random_hex::<16>()),
            paused: self.paused,
            durable: false,
        };
        let pending = link.request(Command::Restore(Box::new(restore)), &fds.borrowed())?;
        self.pending = Some(pending);
        Ok(())
    }

    /// Stacks of its disks, tops first.
    fn stacks(&self) -> Vec<Vec<OpenLayer>> {
        self.disks
            .iter()
            .map(|disk| disk.top.iter().chain(&disk.below).cloned().collect())
            .collect()
    }
}

/// As [`for_each`], but a clone for which `work` fails is marked and the others go on.
pub(super) fn for_each_alone(
    seats: &mut [Seat],
    work: impl Fn(&mut Seat) -> anyhow::Result<()> + Sync,
) {
    let marked = |seat: &mut Seat| {
        if seat.error.is_none()
            && let Err(error) = work(seat)
        {
            seat.fail(OpError::from(error).message());
        }
        Ok(())
    };
    // Nothing fails: what could is marked.
    let _ = for_each(seats, marked);
}

/// With fewer clones a second thread costs more than it gives.
const SHARED_FROM: usize = 8;

/// Does `work` for each clone; for many of them on two threads, since the kernel makes files,
/// sockets and processes one by one for each.
pub(super) fn for_each(
    seats: &mut [Seat],
    work: impl Fn(&mut Seat) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    if seats.len() < SHARED_FROM {
        return seats.iter_mut().try_for_each(work);
    }
    let (ours, theirs) = seats.split_at_mut(seats.len() / 2);
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| theirs.iter_mut().try_for_each(&work));
        let done = ours.iter_mut().try_for_each(&work);
        let helped = match helper.join() {
            Ok(helped) => helped,
            Err(_) => Err(anyhow::anyhow!("a thread that makes clones ended")),
        };
        done.and(helped)
    })
}

impl Host {
    /// Opens what lies below the clones' tops once for all of them.
    pub(super) fn open_below(&self, seats: &mut [Seat]) -> anyhow::Result<()> {
        let Some(first) = seats.first() else {
            return Ok(());
        };
        let mut stacks = Vec::new();
        for disk in &first.disks {
            let from = disk
                .delta
                .as_ref()
                .map_or(&disk.row.top, |(_, parent)| &parent.id);
            let chain = self.layers().chain(from)?;
            let open: Vec<OpenLayer> = chain
                .iter()
                .map(|layer| open_layer(layer, false))
                .collect::<anyhow::Result<_>>()?;
            stacks.push(open);
        }
        for seat in seats {
            for (disk, below) in seat.disks.iter_mut().zip(&stacks) {
                disk.below.clone_from(below);
            }
        }
        Ok(())
    }

    /// Makes the socket of a process that is to be born by `fork()` and connects to it: the
    /// connection waits until the process serves it.
    pub(super) fn lay_newborn(self: &Arc<Self>, seat: &mut Seat) -> anyhow::Result<()> {
        let path = self.config.home.vm_socket(&seat.vm.id);
        let uid = self.pool.take_uid()?;
        seat.vm.update(|live| live.row.uid = Some(uid));
        let listener = nursery::bear(&path, |path| UnixListener::bind(path))
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        let link = Link::connect(&path)?;
        seat.vm.update(|live| {
            live.link = Some(Arc::clone(&link));
            live.begin();
        });
        self.reactor.watch(&link, self.handler(&seat.vm, &link))?;
        seat.newborn = Some((Arc::new(listener.into()), uid));
        seat.link = Some(link);
        Ok(())
    }

    /// Waits until the process born for the seat says that it lives.
    pub(super) fn meet_newborn(&self, seat: &mut Seat) -> anyhow::Result<()> {
        // The daemon's copy of the listener must not keep a dead process's socket alive.
        seat.newborn = None;
        let link = seat.link.as_ref().context("the clone has no connection")?;
        let deadline = Instant::now() + BIRTH_TIMEOUT;
        let born = seat.vm.wait(deadline, |live| {
            (live.newborn || link.is_closed()).then_some(live.newborn)
        });
        if born != Some(true) {
            anyhow::bail!("the process of {} was not born", seat.vm.name());
        }
        let pid = link.peer_pid();
        seat.vm.update(|live| live.row.pid = pid);
        Ok(())
    }

    /// Opens and numbers what the clone is provided with.
    pub(super) fn lay_backends(
        &self,
        seat: &mut Seat,
        kvm: Option<&Arc<OwnedFd>>,
    ) -> anyhow::Result<()> {
        let row = seat.vm.row();
        let mut fds = FdList::default();
        let keys = std::mem::take(&mut seat.host_keys);
        let identity = identity_message(&row, IdentityKind::Clone, keys);
        let backends = self.backends(&row, kvm, &seat.stacks(), &seat.taps, identity, &mut fds)?;
        seat.order = Some((row.spec, backends, fds));
        Ok(())
    }
}
