//! From messages with numbered descriptors to what a machine takes.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use disk_layers::{DiskFormat, LayerFile};
use guest_memory::GuestRam;
use machine::{
    Backends, BootFiles, Checkpoint, CloneOrigin, DiskFiles, Machine, OnEvent, Prepared, SerialSink,
};
use vmm_protocol::{Boot, CloneRam, DiskBackend, Fd, LayerFd, LayerFormat, Restore, SerialBackend};

use crate::serial::SerialPeer;
use crate::server::Inherited;

/// Descriptors of one frame, each taken once.
pub(crate) struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    pub(crate) fn take(&mut self, fd: Fd) -> anyhow::Result<OwnedFd> {
        let slot = self.0.get_mut(fd.0 as usize);
        slot.and_then(Option::take)
            .with_context(|| format!("descriptor {} is missing or named twice", fd.0))
    }

    pub(crate) fn file(&mut self, fd: Fd) -> anyhow::Result<File> {
        Ok(self.take(fd)?.into())
    }

    pub(crate) fn layer(&mut self, layer: LayerFd) -> anyhow::Result<LayerFile> {
        let format = match layer.format {
            LayerFormat::Raw => DiskFormat::Raw,
            LayerFormat::Qcow2 => DiskFormat::Qcow2,
        };
        Ok(LayerFile {
            file: self.file(layer.fd)?,
            format,
        })
    }

    /// Returns what takes the output of serial port `port`, and who else is at its other end.
    pub(crate) fn serial(
        &mut self,
        port: usize,
        backend: SerialBackend,
    ) -> anyhow::Result<(SerialSink, SerialPeer)> {
        let log = self.file(backend.log).context("no log")?;
        let peer = match backend.peer {
            None => SerialPeer::nobody(port),
            Some(vmm_protocol::SerialPeer::Listener(fd)) => {
                SerialPeer::listener(port, self.take(fd)?)
            }
            Some(vmm_protocol::SerialPeer::Pty(fd, held)) => {
                SerialPeer::pty(port, self.take(fd)?, self.take(held)?)
            }
        };
        Ok((SerialSink(Box::new(peer.output(log))), peer))
    }

    /// Layers in the order of the message.
    pub(crate) fn layers(&mut self, layers: &[LayerFd]) -> anyhow::Result<Vec<LayerFile>> {
        layers.iter().map(|layer| self.layer(*layer)).collect()
    }

    /// The files of a disk; none for an empty slot.
    pub(crate) fn disk(&mut self, disk: &DiskBackend) -> anyhow::Result<Option<DiskFiles>> {
        let mut layers = self.layers(&disk.layers)?.into_iter();
        let top = layers.next();
        Ok(top.map(|top| DiskFiles {
            top,
            below: layers.collect(),
        }))
    }

    /// Also returns who else is at the other ends of the serial ports.
    fn backends(
        &mut self,
        named: &vmm_protocol::Backends,
    ) -> anyhow::Result<(Backends, Vec<SerialPeer>)> {
        let mut serial = vec![];
        let mut peers: Vec<SerialPeer> = vec![];
        for (port, backend) in named.serial.iter().enumerate() {
            let (sink, peer) = self.serial(port, *backend)?;
            serial.push(sink);
            peers.push(peer);
        }
        let mut disks = vec![];
        for disk in &named.disks {
            disks.push(self.disk(disk)?);
        }
        let mut taps = vec![];
        for nic in &named.nics {
            taps.push(nic.tap.map(|fd| self.take(fd)).transpose()?);
        }
        let backends = Backends {
            kvm: named.kvm.map(|fd| self.take(fd)).transpose()?,
            disks,
            taps,
            serial,
            vsock: UnixListener::from(self.take(named.vsock)?),
        };
        Ok((backends, peers))
    }
}

/// A machine and who else is at the other ends of its serial ports.
pub(crate) type Built = (Machine, Vec<SerialPeer>);

/// Builds a machine for a cold boot.
pub(crate) fn boot(boot: &Boot, fds: Vec<OwnedFd>, on_event: OnEvent) -> anyhow::Result<Built> {
    let mut fds = Descriptors::new(fds);
    let ram = fds.file(boot.ram)?;
    let files = BootFiles {
        kernel: fds.file(boot.kernel)?,
        initrd: boot.initrd.map(|fd| fds.file(fd)).transpose()?,
        uuid: system_uuid(&boot.backends)?.unwrap_or_default(),
    };
    let (backends, peers) = fds.backends(&boot.backends)?;
    let machine = Machine::boot(boot.spec.clone(), ram, files, backends, on_event)?;
    Ok((machine, peers))
}

/// Builds a clone.
pub(crate) fn restore(
    restore: &Restore,
    fds: Vec<OwnedFd>,
    inherited: Option<Inherited>,
    prepared: Option<Prepared>,
    on_event: OnEvent,
) -> anyhow::Result<Built> {
    let mut fds = Descriptors::new(fds);
    let kvm = restore.backends.kvm.is_some();
    let mut prepared = prepared.filter(|prepared| prepared.fits(&restore.spec, kvm));
    let (ram, checkpoint) = match (restore.ram, inherited) {
        (CloneRam::Layer(fd), None) => {
            let layer = fds.file(fd)?;
            let ram = match prepared.as_mut().and_then(Prepared::take_ram) {
                Some(reserved) => reserved.private(layer)?,
                None => GuestRam::private(layer, restore.spec.memory_bytes)?,
            };
            let file = restore.checkpoint.context("no checkpoint was given")?;
            (Arc::new(Mutex::new(ram)), read_checkpoint(fds.file(file)?)?)
        }
        (CloneRam::Inherited, Some(inherited)) => (inherited.ram, inherited.checkpoint),
        (CloneRam::Layer(_), Some(_)) => bail!("this process has inherited its RAM already"),
        (CloneRam::Inherited, None) => bail!("this process was not born by fork()"),
    };
    let origin = CloneOrigin {
        ram,
        checkpoint,
        prepared,
        generation_id: restore
            .generation_id
            .as_deref()
            .map(generation_id)
            .transpose()?,
        uuid: system_uuid(&restore.backends)?,
        durable: restore.durable,
    };
    let (backends, peers) = fds.backends(&restore.backends)?;
    let spec = restore.spec.clone();
    let machine = Machine::restore(spec, origin, backends, on_event)?;
    Ok((machine, peers))
}

fn read_checkpoint(mut file: File) -> anyhow::Result<Checkpoint> {
    file.rewind().context("cannot rewind the checkpoint")?;
    let limit = saved_state_limit();
    // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
    let found = rustix::fs::fstat(&file).map_or(0, |stat| stat.st_size.cast_unsigned());
    let mut bytes = Vec::with_capacity(found.min(limit) as usize + 32);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the checkpoint")?;
    if bytes.len() as u64 > limit {
        bail!("the checkpoint is longer than {limit} bytes");
    }
    Ok(Checkpoint::decode(&bytes)?)
}

/// Longest checkpoint file that is read, bytes.
fn saved_state_limit() -> u64 {
    machine::CHECKPOINT_BYTES_MAX
}

fn generation_id(text: &str) -> anyhow::Result<[u8; 16]> {
    sixteen_bytes(text).context("generation_id is not 32 hexadecimal digits")
}

fn system_uuid(backends: &vmm_protocol::Backends) -> anyhow::Result<Option<[u8; 16]>> {
    let read = |text: &String| {
        sixteen_bytes(&text.replace('-', "")).with_context(|| format!("{text:?} is no UUID"))
    };
    backends.system_uuid.as_ref().map(read).transpose()
}

fn sixteen_bytes(hex: &str) -> Option<[u8; 16]> {
    let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(hex, 16).ok().filter(|_| digits);
    number.map(u128::to_be_bytes)
}
