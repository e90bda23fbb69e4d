//! Opening what the host provides to one VM, and numbering the descriptors of a message.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use api_types::SerialRequest;
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};
use vmm_protocol::{Backends, DiskBackend, Fd, LayerFd, NicBackend, SerialBackend, SerialPeer};

use super::identity::port_of;
use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::VmRow;
use crate::layers::{OpenLayer, open_layer};
use crate::nursery;

/// Name of the engine that needs `/dev/kvm`.
pub(super) const ENGINE_KVM: &str = "kvm";
/// Name of the engine that needs nothing.
pub(super) const ENGINE_SOFT: &str = "soft";

/// Descriptors of one message, numbered in the order of adding.
#[derive(Debug, Default)]
pub(super) struct FdList {
    fds: Vec<Arc<OwnedFd>>,
}

impl FdList {
    /// Adds a descriptor and returns its number.
    pub fn add(&mut self, fd: impl Into<Arc<OwnedFd>>) -> Fd {
        self.fds.push(fd.into());
        Fd((self.fds.len() - 1) as u32)
    }

    /// What to send.
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(|fd| fd.as_fd()).collect()
    }
}

/// Open stacks of a VM's disks, each with its top first.
pub(super) type OpenDisks = Vec<Vec<OpenLayer>>;

/// Open TAP interfaces of a VM's NICs, where they have one.
pub(super) type OpenTaps = Vec<Option<Arc<OwnedFd>>>;

impl Host {
    /// Opens what engine `name` needs of the host: the software engine needs nothing.
    pub(super) fn open_engine(&self, name: &str) -> OpResult<Option<Arc<OwnedFd>>> {
        match name {
            ENGINE_SOFT => Ok(None),
            _ => self.open_kvm().map(Some),
        }
    }

    /// Opens the device of the KVM engine.
    pub(super) fn open_kvm(&self) -> OpResult<Arc<OwnedFd>> {
        let path = &self.config.kvm_device;
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Ok(Arc::new(file.into())),
            Err(error) => {
                let remedy = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        "is missing; load the module kvm_intel or kvm_amd, or turn hardware \
                         virtualization on in the firmware"
                    }
                    std::io::ErrorKind::PermissionDenied => {
                        "is not permitted; run mitosed as root or as a member of the group kvm"
                    }
                    _ => "cannot be opened",
                };
                Err(OpError::unavailable(format!(
                    "engine: {} {remedy} ({error})",
                    path.display()
                )))
            }
        }
    }

    /// Opens all layers of a VM's disks; tops of writable disks for writing.
    pub(super) fn open_disks(&self, row: &VmRow) -> anyhow::Result<OpenDisks> {
        let mut disks = Vec::new();
        for (disk, spec) in row.disks.iter().zip(&row.spec.disks) {
            let chain = match &disk.top {
                Some(top) => self.layers().chain(top)?,
                None => Vec::new(),
            };
            let mut stack = Vec::new();
            for (depth, layer) in chain.iter().enumerate() {
                stack.push(open_layer(layer, depth == 0 && !spec.read_only)?);
            }
            disks.push(stack);
        }
        Ok(disks)
    }

    /// Opens the TAP interfaces of a VM's NICs.
    pub(super) fn open_taps(&self, row: &VmRow) -> OpResult<OpenTaps> {
        (0..row.nics.len())
            .map(|index| self.open_nic(row, index))
            .collect()
    }

    /// Opens the rest of what a VM is provided with and numbers all of it. Sockets and logs that
    /// are made stay when the call fails: the VM's home is removed as a whole.
    pub(super) fn backends(
        &self,
        row: &VmRow,
        kvm: Option<&Arc<OwnedFd>>,
        disks: &[Vec<OpenLayer>],
        taps: &[Option<Arc<OwnedFd>>],
        agent_identity: String,
        fds: &mut FdList,
    ) -> anyhow::Result<Backends> {
        let kvm = kvm.map(|fd| fds.add(Arc::clone(fd)));
        let disks = disks
            .iter()
            .map(|stack| DiskBackend {
                layers: stack
                    .iter()
                    .map(|layer| LayerFd {
                        fd: fds.add(Arc::clone(&layer.file)),
                        format: layer.format,
                    })
                    .collect(),
            })
            .collect();
        let nics = taps
            .iter()
            .map(|tap| NicBackend {
                tap: tap.as_ref().map(|tap| fds.add(Arc::clone(tap))),
            })
            .collect();
        let serial = (0..row.serial.len())
            .map(|port| self.open_serial(row, port, fds))
            .collect::<anyhow::Result<_>>()?;
        let vsock = fds.add(OwnedFd::from(self.listen_vsock(&row.id)?));
        Ok(Backends {
            kvm,
            disks,
            nics,
            serial,
            vsock,
            agent_identity,
            system_uuid: Some(row.bios_uuid.as_ref().unwrap_or(&row.uuid).clone()),
        })
    }

    /// Refuses back ends of serial ports that cannot be, or that are not the VM's alone: `own` is the
    /// VM where it is there already.
    pub(super) fn check_serial(
        &self,
        ports: &[SerialRequest],
        own: Option<&VmRow>,
    ) -> OpResult<()> {
        for (index, port) in ports.iter().enumerate() {
            let (SerialRequest::File(path) | SerialRequest::Unix(path)) = port else {
                continue;
            };
            let refuse =
                |what: &str| OpError::invalid(format!("serial: {} {what}", path.display()));
            let parent = path.parent().filter(|p| p.is_dir());
            if !path.is_absolute() || parent.is_none() {
                return Err(refuse("is not a file in an existing directory"));
            }
            if ports[..index].contains(port) {
                return Err(refuse("is given for two ports; give each its own"));
            }
            if own.is_some_and(|row| row.serial.contains(port)) {
                continue;
            }
            let all = self.all();
            let user = all.iter().find(|vm| {
                let row = &vm.live().row;
                own.is_none_or(|own| own.id != row.id) && port_of(row, [port]).is_some()
            });
            if let Some(user) = user {
                let what = format!("belongs to the VM {}; give another path", user.name());
                return Err(refuse(&what));
            }
            if matches!(port, SerialRequest::File(_)) && fs::symlink_metadata(path).is_ok() {
                return Err(refuse(
                    "is there already, and a VM writes only to a file of its own; remove it, or \
                     give the path of a new file",
                ));
            }
        }
        Ok(())
    }

    /// File that the output of serial port `port` (0 is COM1) goes to, where it is one.
    pub fn serial_path(&self, row: &VmRow, port: usize) -> Option<PathBuf> {
        let name = match port {
            0 => "serial.log".to_owned(),
            _ => format!("serial{}.log", port + 1),
        };
        match row.serial.get(port)? {
            SerialRequest::Log | SerialRequest::Pty | SerialRequest::Unix(_) => {
                Some(self.vm_home(row).join(name))
            }
            SerialRequest::File(path) => Some(path.clone()),
            SerialRequest::None => None,
        }
    }

    /// Where others reach serial port `port`: its socket, or its pseudo-terminal.
    pub(super) fn serial_peer_path(&self, row: &VmRow, port: usize) -> Option<PathBuf> {
        match row.serial.get(port)? {
            SerialRequest::Unix(path) => Some(path.clone()),
            SerialRequest::Pty => fs::read_link(self.pty_link(row, port)).ok(),
            _ => None,
        }
    }

    /// Link to the pseudo-terminal of serial port `port`.
    fn pty_link(&self, row: &VmRow, port: usize) -> PathBuf {
        self.vm_home(row).join(format!("serial{}.pty", port + 1))
    }

    pub(super) fn open_serial(
        &self,
        row: &VmRow,
        port: usize,
        fds: &mut FdList,
    ) -> anyhow::Result<SerialBackend> {
        let path = self
            .serial_path(row, port)
            .unwrap_or_else(|| PathBuf::from("/dev/null"));
        let mut options = File::options();
        options.create(true).append(true);
        if matches!(row.serial[port], SerialRequest::File(_)) {
            // Nobody leads the daemon to another file, or has it wait for a pipe.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            options.custom_flags(flags.bits() as i32);
        }
        let log = options
            .open(&path)
            .with_context(|| format!("serial: cannot open {}", path.display()))?;
        if matches!(row.serial[port], SerialRequest::File(_)) && !log.metadata()?.is_file() {
            anyhow::bail!(
                "serial: {} is no plain file; give another path",
                path.display()
            );
        }
        let log = fds.add(OwnedFd::from(log));
        let peer = match &row.serial[port] {
            SerialRequest::Unix(path) => {
                let listener = listen_serial(path)?;
                Some(SerialPeer::Listener(fds.add(OwnedFd::from(listener))))
            }
            SerialRequest::Pty => {
                let pty = linux_sys::open_pty().context("serial: cannot open a pseudo-terminal")?;
                let link = self.pty_link(row, port);
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(&pty.path, &link)
                    .with_context(|| format!("serial: cannot make the link {}", link.display()))?;
                let controller = fds.add(pty.controller);
                Some(SerialPeer::Pty(controller, fds.add(pty.terminal)))
            }
            _ => None,
        };
        Ok(SerialBackend { log, peer })
    }

    fn listen_vsock(&self, id: &str) -> anyhow::Result<UnixListener> {
        let path = self.config.home.vm_vsock(id);
        let _ = fs::remove_file(&path);
        nursery::bear(&path, |path| UnixListener::bind(path))
            .with_context(|| format!("cannot listen on {}", path.display()))
    }

    /// Makes the home folder of a VM.
    pub(super) fn make_home(&self, vm: &Vm) -> anyhow::Result<()> {
        let path = self.vm_home(&vm.row());
        nursery::bear_dir(&path)
            .with_context(|| format!("cannot make the home folder {}", path.display()))
    }

    /// Puts links to a VM's tops into its home folder.
    pub(super) fn link_tops(&self, row: &VmRow) {
        for (index, disk) in row.disks.iter().enumerate() {
            let store = self.store(&row.datastore);
            let link = store.vm(&row.id).join(format!("disk{index}"));
            let top = disk.top.as_ref();
            let Some(layer) = top.and_then(|top| self.layers().get(top).cloned()) else {
                // A child may have given its medium back.
                let _ = fs::remove_file(&link);
                continue;
            };
            let target = match layer.path.strip_prefix(store.root()) {
                Ok(rest) => Path::new("../..").join(rest),
                Err(_) => layer.path,
            };
            let _ = fs::remove_file(&link);
            if let Err(error) = std::os::unix::fs::symlink(&target, &link) {
                tracing::debug!(%error, link = %link.display(), "cannot link a disk");
            }
        }
    }
}

/// Removes the sockets of a VM's serial ports, whose process has ended.
pub(super) fn forget_serial_sockets(row: &VmRow) {
    for port in &row.serial {
        if let SerialRequest::Unix(path) = port {
            remove_dead_socket(path);
        }
    }
}

/// Whether there is a socket that nobody serves.
pub(super) fn is_dead_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    socket && UnixStream::connect(path).is_err()
}

/// Removes a socket that nobody serves.
fn remove_dead_socket(path: &Path) {
    if is_dead_socket(path) {
        let _ = fs::remove_file(path);
    }
}

/// Listens at `path` for the peer of a serial port; a socket that nobody serves is replaced.
fn listen_serial(path: &Path) -> anyhow::Result<UnixListener> {
    remove_dead_socket(path);
    UnixListener::bind(path).with_context(|| format!("serial: cannot listen on {}", path.display()))
}

/// Makes the memory file of a guest's RAM; it can be sealed.
pub(super) fn make_ram(bytes: u64) -> OpResult<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = memfd_create("mitose-ram", flags).and_then(|fd| {
        ftruncate(&fd, bytes)?;
        Ok(fd)
    });
    made.map_err(|errno| {
        OpError::unavailable(format!("memory: cannot make the guest's RAM: {errno}"))
    })
}

/// Makes the memory file that takes a checkpoint.
pub(super) fn make_checkpoint() -> anyhow::Result<OwnedFd> {
    memfd_create(
        "mitose-checkpoint",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .context("cannot make a memory file for the checkpoint")
}

/// Opens the file behind a descriptor again, for reading alone and with a position of its own.
pub(super) fn reopen_read_only(fd: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open a memory file again")
}

/// Opens a file that the user gave.
pub(super) fn open_given(what: &str, path: &Path) -> OpResult<File> {
    // A pipe in place of a file must not make the open wait.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| {
        OpError::invalid(format!("{what}: cannot open {}: {error}", path.display()))
    })?;
    let regular = file.metadata().is_ok_and(|m| m.is_file());
    if !regular {
        return Err(OpError::invalid(format!(
            "{what}: {} is not a file",
            path.display()
        )));
    }
    Ok(file)
}
