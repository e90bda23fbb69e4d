//! Making a fork point: one stun, no clones.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use vmm_protocol::{Command, Dump, Event, Fd, Forked, Outcome, RamView};

use super::super::fail_at::FailAt;
use super::super::{Ground, OpenLayer, make_delta, tell_durable};
use super::keeper::finish_file;
use crate::error::{OpError, OpResult};
use crate::host::full::is_no_space;
use crate::host::limits::Lodging;
use crate::host::memory_files::MemoryPlace;
use crate::host::states::Operation;
use crate::host::{Host, Vm};
use crate::inventory::{LayerId, PointMemory};
use crate::vmm::{self, Link, Notice};

/// Longest time until a process born by `fork()` tells that it lives.
const BIRTH_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time in which memory is written to files.
const DUMP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// An instant of a VM that runs on.
#[derive(Debug)]
pub(in crate::host) struct Sealed {
    /// The source's figures.
    pub forked: Forked,
    /// Immutable top layer of each disk, none of an empty slot. The caller holds them before the call: the source's
    /// next tops stand on them, which may be removed.
    pub tops: Vec<Option<LayerId>>,
    /// Where its memory is.
    pub memory: SealedMemory,
}

/// Where the memory of an instant is.
#[derive(Debug)]
pub(in crate::host) enum SealedMemory {
    /// A sealed layer and a checkpoint.
    Layer {
        /// Memory layer.
        ram: Arc<OwnedFd>,
        /// Checkpoint.
        checkpoint: OwnedFd,
    },
    /// A process that inherited it.
    Process(Dumper),
    /// Nowhere: it was not wanted.
    None,
}

/// A process that inherited an instant and writes it to files.
#[derive(Debug)]
pub(in crate::host) struct Dumper {
    link: Arc<Link>,
    listener: Option<(Arc<OwnedFd>, u32)>,
    notices: mpsc::Receiver<Notice>,
    socket: PathBuf,
    uid: u32,
    source: Arc<Vm>,
    lodging: Option<Lodging>,
}

impl Host {
    /// Seals an instant of a VM: its disks, and its memory where `memory` is wanted; without it the
    /// VM is not stunned. The caller has the VM's turn.
    pub(in crate::host) fn seal(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        memory: bool,
        drain_ms_max: Option<u32>,
    ) -> OpResult<Sealed> {
        self.allow(source, Operation::Fork)?;
        let Some(link) = source.link() else {
            return Err(OpError::conflict(format!("{} is ending", source.name())));
        };
        let _busy = self.pool.busy();
        let splits = source.live().ram == Some(RamView::Private);
        let tops = source.row().tops();
        if !memory {
            return self.seal_disks(source, &link, tops, drain_ms_max);
        }
        let lodging = self.raise_for_fork(source, usize::from(splits));
        let mut dumper = match splits.then(|| self.lay_dumper(source)).transpose() {
            Ok(dumper) => dumper,
            Err(error) => {
                self.settle_after_fork(source, None, lodging);
                return Err(error.into());
            }
        };
        let newborns: Vec<_> = dumper.iter().filter_map(|d| d.listener.as_ref()).collect();
        let forked = self.seal_now(source, &link, Some(&newborns), drain_ms_max);
        let (forked, layer, checkpoint) = match forked {
            Ok(forked) => forked,
            Err(error) => {
                if let Some(dumper) = dumper.take() {
                    self.end_dumper(dumper);
                }
                self.settle_after_fork(source, None, lodging);
                return Err(error);
            }
        };
        let memory = match (dumper, layer) {
            (Some(mut dumper), _) => {
                dumper.listener = None;
                dumper.lodging = lodging;
                SealedMemory::Process(dumper)
            }
            (None, layer) => {
                self.settle_after_fork(source, Some(Vec::new()), lodging);
                match layer {
                    Some(ram) => SealedMemory::Layer { ram, checkpoint },
                    None => SealedMemory::None,
                }
            }
        };
        Ok(Sealed {
            forked,
            tops,
            memory,
        })
    }

    fn seal_disks(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        link: &Arc<Link>,
        tops: Vec<Option<LayerId>>,
        drain_ms_max: Option<u32>,
    ) -> OpResult<Sealed> {
        let (forked, ..) = self.seal_now(source, link, None, drain_ms_max)?;
        Ok(Sealed {
            forked,
            tops,
            memory: SealedMemory::None,
        })
    }

    /// The fork itself; of the disks alone where nobody could get the memory.
    fn seal_now(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        link: &Arc<Link>,
        newborns: Option<&[&(Arc<OwnedFd>, u32)]>,
        drain_ms_max: Option<u32>,
    ) -> OpResult<(Forked, Option<Arc<OwnedFd>>, OwnedFd)> {
        let (deltas, mut recording) = self.record_intent(source, &mut [], None)?;
        let mut tops = Vec::new();
        let made = deltas.iter().try_for_each(|(delta, parent)| {
            let file = make_delta(delta, parent)?;
            tops.push(OpenLayer {
                file: Arc::new(file.into()),
                format: delta.format,
            });
            anyhow::Ok(())
        });
        recording.files_made();
        let ready = made
            .map_err(OpError::from)
            .and_then(|()| recording.wait_recorded());
        let ground = Ground {
            tops,
            kvm: None,
            disks_only: newborns.is_none(),
            recording,
        };
        let sealed = ready.map_err(|error| (error, false)).and_then(|()| {
            let never = FailAt::parse(None).map_err(|error| (error, false))?;
            let newborns = newborns.unwrap_or_default();
            self.fork_source(source, link, newborns, &ground, drain_ms_max, never)
        });
        let point = match sealed {
            Ok(point) => point,
            Err((error, swapped)) => {
                self.fork_failed(source, ground.disks_only, swapped);
                return Err(error);
            }
        };
        self.adopt_tops(source, &point.forked, 0);
        ground.recording.wait_durable()?;
        tell_durable(&source.name(), link);
        self.commit(&[source], crate::inventory::Changes::default())?;
        self.link_tops(&source.row());
        Ok((point.forked, point.layer, point.checkpoint))
    }

    fn lay_dumper(self: &Arc<Self>, source: &Arc<Vm>) -> anyhow::Result<Dumper> {
        // No longer than the names that `config` makes room for.
        let name = format!("dump-{}", crate::clock::random_hex::<4>());
        let socket = self.config.home.vm_socket(&name);
        let uid = self.pool.take_uid()?;
        let laid = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))
            .and_then(|listener| {
                let link = Link::connect(&socket)?;
                let (tell, notices) = mpsc::channel();
                let told = move |notice| {
                    // Nobody listens any more once it has served.
                    let _ = tell.send(notice);
                };
                self.reactor.watch(&link, Box::new(told))?;
                Ok((link, notices, listener))
            });
        match laid {
            Ok((link, notices, listener)) => Ok(Dumper {
                link,
                listener: Some((Arc::new(listener.into()), uid)),
                notices,
                socket,
                uid,
                source: Arc::clone(source),
                lodging: None,
            }),
            Err(error) => {
                let _ = fs::remove_file(&socket);
                self.pool.free_uid(uid);
                Err(error)
            }
        }
    }

    /// Ends a dumper's process and frees what it had.
    fn end_dumper(self: &Arc<Self>, dumper: Dumper) {
        let pid = dumper.link.peer_pid();
        let _ = dumper
            .link
            .call(Command::PowerOff, &[], Duration::from_secs(2));
        dumper.link.shut();
        // Until it is born, the socket's peer is the daemon.
        if let Some(pid) = pid.filter(|pid| pid.unsigned_abs() != std::process::id()) {
            vmm::kill(pid);
        }
        let _ = fs::remove_file(&dumper.socket);
        self.pool.free_uid(dumper.uid);
        if dumper.lodging.is_some() {
            self.settle_after_fork(&dumper.source, Some(Vec::new()), dumper.lodging);
        }
    }

    /// Gives the memory of an instant up.
    pub(in crate::host) fn discard_sealed(self: &Arc<Self>, memory: SealedMemory) {
        if let SealedMemory::Process(dumper) = memory {
            self.end_dumper(dumper);
        }
    }

    /// Puts the memory of an instant where it stays: with a keeper, or in files at `place` where it
    /// cannot be kept or is to outlive the host.
    pub(in crate::host) fn store_memory(
        self: &Arc<Self>,
        id: &str,
        memory: SealedMemory,
        durable: bool,
        place: Option<&MemoryPlace>,
    ) -> OpResult<PointMemory> {
        match memory {
            SealedMemory::Layer { ram, checkpoint } if !durable => self.keep(id, ram, checkpoint),
            SealedMemory::Layer { ram, checkpoint } => {
                self.write_files(id, place, |to_ram, to_state| {
                    let ram = File::from(ram.try_clone().context("cannot share a memory file")?);
                    copy_sparse(&ram, to_ram)?;
                    copy_sparse(&File::from(checkpoint), to_state)
                })
            }
            SealedMemory::Process(dumper) => {
                let written = self.write_files(id, place, |ram, state| dump(&dumper, ram, state));
                self.end_dumper(dumper);
                written
            }
            SealedMemory::None => Err(OpError::failed("the instant has no memory")),
        }
    }

    /// Writes both files of an instant; half-made ones are removed.
    fn write_files(
        &self,
        id: &str,
        place: Option<&MemoryPlace>,
        write: impl FnOnce(&File, &File) -> anyhow::Result<()>,
    ) -> OpResult<PointMemory> {
        let place = place.context("there is no place for memory in files")?;
        let (ram, checkpoint) = self.memory_paths(&self.store(&place.store.id), id)?;
        let part = |path: &PathBuf| path.with_added_extension("part");
        let create = |path: &PathBuf| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(part(path))
                .with_context(|| format!("cannot make {}", part(path).display()))
        };
        let written = (|| {
            let (to_ram, to_state) = (create(&ram)?, create(&checkpoint)?);
            write(&to_ram, &to_state)?;
            finish_file(&part(&ram), &ram)?;
            finish_file(&part(&checkpoint), &checkpoint)
        })();
        if let Err(error) = written {
            for path in [&ram, &checkpoint] {
                let _ = fs::remove_file(part(path));
                let _ = fs::remove_file(path);
            }
            return Err(match error.chain().any(is_no_space) {
                true => self.ran_out_of_space(&place.store, place.bytes),
                false => error.into(),
            });
        }
        Ok(PointMemory::Files { ram, checkpoint })
    }
}

/// Has a dumper write its instant.
fn dump(dumper: &Dumper, ram: &File, state: &File) -> anyhow::Result<()> {
    let born = dumper.notices.recv_timeout(BIRTH_TIMEOUT);
    if !matches!(born, Ok(Notice::Event(Event::Newborn { .. }))) {
        anyhow::bail!("the process that holds the instant was not born");
    }
    // Without it the process reads all of its RAM.
    let pagemap = dumper
        .link
        .peer_pid()
        .and_then(|pid| linux_sys::open_pagemap(pid).ok());
    let order = Command::Dump(Dump {
        ram: Fd(0),
        checkpoint: Fd(1),
        pagemap: pagemap.as_ref().map(|_| Fd(2)),
    });
    let mut fds = vec![ram.as_fd(), state.as_fd()];
    fds.extend(pagemap.as_ref().map(AsFd::as_fd));
    let answer = dumper.link.call(order, &fds, DUMP_TIMEOUT);
    match answer.context("cannot write the VM's memory")? {
        (Outcome::Done, _) => Ok(()),
        _ => anyhow::bail!("the process that holds the instant gave an answer that does not fit"),
    }
}

/// Copies a file, leaving its holes out.
fn copy_sparse(from: &File, to: &File) -> anyhow::Result<()> {
    use rustix::fs::{SeekFrom, ftruncate, seek};
    use std::os::unix::fs::FileExt;
    let length = from.metadata().context("cannot read memory")?.len();
    ftruncate(to, length).context("cannot size a file")?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while let Ok(start) = seek(from, SeekFrom::Data(at)) {
        let end = seek(from, SeekFrom::Hole(start)).unwrap_or(length);
        at = start;
        while at < end {
            let count = COPY_BYTES.min((end - at) as usize);
            from.read_exact_at(&mut buffer[..count], at)
                .context("cannot read memory")?;
            to.write_all_at(&buffer[..count], at)
                .context("cannot write memory to a file")?;
            at += count as u64;
        }
    }
    Ok(())
}
