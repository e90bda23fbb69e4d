//! One clone in the making.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::{IdentityKind, SshHostKey};
use anyhow::Context;
use vm_spec::VmSpec;
use vmm_protocol::{Backends, Command, Restore};

use super::clone_ram;
use crate::clock::random_hex;
use crate::error::OpError;
use crate::host::backends::{ENGINE_SOFT, FdList, OpenTaps, reopen_read_only};
use crate::host::datastores::Promise;
use crate::host::identity::identity_message;
use crate::host::media::Media;
use crate::host::{Host, Vm};
use crate::inventory::{DiskRow, LayerId, LayerRow};
use crate::layers::{OpenLayer, make_top, open_layer};
use crate::nursery;
use crate::vmm::{Build, Link, Pending};
use std::os::fd::AsFd;

/// Longest time until a process born by `fork()` tells that it lives.
const BIRTH_TIMEOUT: Duration = Duration::from_secs(20);

/// One disk of a clone: its top where it has one of its own, and what lies below.
#[derive(Debug)]
struct SeatDisk {
    /// The top and what it stands on, if anything.
    delta: Option<(LayerRow, Option<LayerRow>)>,
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
    /// Media for its empty slots, in their order. A VM that was there before keeps those that it
    /// has where none are named.
    pub media: Option<Media>,
    /// Layers of disks that it had before and has no more.
    pub outdated: Vec<LayerId>,
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
            media: None,
            outdated: Vec::new(),
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
    pub fn add_disk(&mut self, host: &Host, index: usize, chain: &[LayerRow], read_only: bool) {
        let parent = &chain[0];
        let delta = (!read_only).then(|| {
            let delta = host.next_delta(&mut self.vm.live().row, index, parent);
            (delta, Some(parent.clone()))
        });
        let top = delta.as_ref().map_or(&parent.id, |(delta, _)| &delta.id);
        self.disks.push(SeatDisk {
            row: DiskRow::of(Some(top.clone())),
            delta,
            below: Vec::new(),
            top: None,
        });
    }

    /// Gives the clone its disk `index`, which is an empty slot of the source: the next of its media
    /// goes there.
    pub fn add_slot(&mut self, host: &Host, index: usize) {
        let disk = self.slot(host, index, self.slots_filled());
        self.disks.push(disk);
    }

    /// Puts the media of the call into the slots that are empty at the fork point with these `tops`,
    /// in the place of those that a VM that was there before has.
    pub fn renew_slots(&mut self, host: &Host, tops: &[Option<LayerId>]) {
        if self.media.is_none() {
            return;
        }
        let empty = tops.iter().enumerate().filter(|(_, top)| top.is_none());
        for (number, (index, _)) in empty.enumerate() {
            let disk = self.slot(host, index, number);
            let Some(present) = self.disks.get_mut(index) else {
                continue;
            };
            self.outdated.extend(present.row.held().cloned());
            *present = disk;
        }
    }

    /// Slot `index` with medium `number` of the call, or empty.
    fn slot(&self, host: &Host, index: usize, number: usize) -> SeatDisk {
        let medium = self.media.as_ref().and_then(|media| media.get(number));
        let delta = medium.map(|medium| {
            let top = medium.top(host, &mut self.vm.live().row, index);
            (top, medium.parent().cloned())
        });
        SeatDisk {
            row: DiskRow {
                extra: medium.map(|medium| medium.row.clone()),
                ..DiskRow::of(delta.as_ref().map(|(top, _)| top.id.clone()))
            },
            delta,
            below: Vec::new(),
            top: None,
        }
    }

    /// Disks that got a medium of the call so far.
    fn slots_filled(&self) -> usize {
        let extra = self.disks.iter().filter(|disk| disk.row.extra.is_some());
        extra.count()
    }

    /// Rows of the layers that its media stand on.
    pub fn below_media(&self) -> impl Iterator<Item = &LayerRow> {
        let media = self.media.iter().flat_map(|media| media.iter());
        media.flat_map(|medium| &medium.below)
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
            let chain = match &disk.top {
                Some(top) => host.layers().chain(top)?,
                None => Vec::new(),
            };
            let delta = match &chain[..] {
                [top, below @ ..] if !spec.read_only && top.owned => {
                    Some((top.clone(), below.first().cloned()))
                }
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
                let file = make_top(delta, parent.as_ref())?;
                disk.top = Some(OpenLayer {
                    file: Arc::new(file.into()),
                    format: delta.format,
                });
            }
        }
        Ok(())
    }

    /// Takes the media whose files were not made out of the VM's slots: the next start makes them.
    /// Returns their layers.
    pub fn give_up_unmade(&self) -> Vec<LayerId> {
        let unmade = self.disks.iter().enumerate();
        let unmade = unmade.filter(|(_, disk)| disk.row.extra.is_some() && disk.top.is_none());
        let indices: Vec<_> = unmade.map(|(index, _)| index).collect();
        self.vm.update(|live| {
            let slots = indices.into_iter();
            slots
                .filter_map(|index| live.row.disks.get_mut(index)?.top.take())
                .collect()
        })
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
    /// Gives the clone a process, which builds what it can before the state is there: `ahead` only
    /// where a processor is free for that. What fails there fails again later and is told then.
    pub(super) fn lay_process(
        self: &Arc<Self>,
        seat: &mut Seat,
        kvm: Option<&Arc<OwnedFd>>,
        ahead: bool,
    ) -> anyhow::Result<()> {
        let build = Build::of(&seat.vm.live().row.spec, kvm.is_some());
        self.pool.expect(build);
        let shell = self.pool.take(Some(build))?;
        let to_build = ahead && shell.built != Some(build);
        let link = self.assign(&seat.vm, shell)?;
        if to_build {
            let _ = build.order(&link, kvm);
        }
        seat.link = Some(link);
        Ok(())
    }

    /// Has the pool build ahead for clones of a VM that was never forked: they will need shells.
    pub(in crate::host) fn expect_clones(&self, vm: &Vm) {
        let live = vm.live();
        let build = Build::of(&live.row.spec, live.row.engine != ENGINE_SOFT);
        drop(live);
        self.pool.expect(build);
    }

    /// Opens what lies below the clones' tops, each stack once for all of them.
    pub(super) fn open_below(&self, seats: &mut [Seat]) -> anyhow::Result<()> {
        let mut stacks: HashMap<LayerId, Vec<OpenLayer>> = HashMap::new();
        for disk in seats.iter_mut().flat_map(|seat| &mut seat.disks) {
            let from = match &disk.delta {
                Some((_, parent)) => parent.as_ref().map(|parent| &parent.id),
                None => disk.row.top.as_ref(),
            };
            let Some(from) = from else { continue };
            if let Some(open) = stacks.get(from) {
                disk.below.clone_from(open);
                continue;
            }
            let chain = self.layers().chain(from)?;
            let open = chain.iter().map(|layer| open_layer(layer, false));
            let open: Vec<OpenLayer> = open.collect::<anyhow::Result<_>>()?;
            disk.below.clone_from(&open);
            stacks.insert(from.clone(), open);
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
