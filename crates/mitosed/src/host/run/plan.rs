//! Checking a request for a VM, and working the VM out. Nothing is made here.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use api_types::{ErrorKind, ImageFormat, NetRequest, RunRequest, SerialRequest};
use disk_layers::DiskFormat;
use vm_spec::{DiskSpec, EngineChoice, MacAddr, NicSpec, SpecError, VmSpec, format_size};
use vmm_protocol::LayerFormat;

use crate::error::{OpError, OpResult};
use crate::host::Host;
use crate::host::backends::{ENGINE_KVM, ENGINE_SOFT, open_given};
use crate::host::identity::new_mac;
use crate::inventory::{BootSource, LayerRow, NicRow, VmRow};

/// A disk of a new VM: the layers that exist, nearest first, and how the guest sees it.
#[derive(Debug)]
pub(super) struct Base {
    /// Layers, nearest first.
    pub layers: Vec<LayerRow>,
    /// The guest cannot write.
    pub read_only: bool,
}

/// A checked request.
#[derive(Debug)]
pub(super) struct Plan {
    /// The VM, without its disks' rows.
    pub row: VmRow,
    /// What its disks stand on.
    pub bases: Vec<Base>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

/// What a VM boots and boots from.
#[derive(Debug)]
struct Guest {
    boot: BootSource,
    cmdline: String,
    has_agent: bool,
    disk: Option<Base>,
}

impl Host {
    /// Checks a request and works out the VM.
    pub(super) fn plan(&self, request: RunRequest) -> OpResult<Plan> {
        if let Some(problem) = api_types::name_problem(&request.name) {
            return Err(OpError::invalid(problem));
        }
        if self.find(&request.name).is_ok() {
            return Err(OpError::conflict(format!(
                "name: there is a VM {0:?} already; choose another name or remove it with 'mitose rm {0}'",
                request.name
            )));
        }
        let (engine, notes) = self.choose_engine(request.engine)?;
        let Guest {
            boot,
            cmdline,
            has_agent,
            disk,
        } = self.plan_guest(&request)?;
        let cpus = u8::try_from(request.cpus);
        let spec = VmSpec {
            cpus: cpus.map_err(|_| invalid_spec(SpecError::Cpus(request.cpus)))?,
            memory_bytes: request.memory_bytes,
            cmdline: request.cmdline.unwrap_or(cmdline),
            entry: request.entry,
            disks: Vec::new(),
            nics: Vec::new(),
            serial_ports: u8::try_from(request.more_serial.len() + 1).unwrap_or(u8::MAX),
        };
        spec.validate().map_err(invalid_spec)?;
        self.check_limit(request.memory_limit_bytes)?;
        self.check_memory("the VM", spec.memory_bytes)?;
        check_boot_files(&boot, spec.memory_bytes)?;
        let mut bases = Vec::from_iter(disk);
        for disk in &request.disks {
            bases.push(self.inspect("disk", &disk.path, disk.format, disk.read_only)?);
        }
        let mut row = VmRow::new(
            self.new_id("vm")?,
            request.name,
            engine.to_owned(),
            boot,
            spec,
        );
        row.has_agent = has_agent;
        row.serial = vec![request.serial];
        row.serial.extend(request.more_serial);
        row.memory_limit_bytes = request.memory_limit_bytes;
        check_serial(&row.serial)?;
        let mut used = self.macs_in_use();
        add_nics(&mut row, &request.nets, &mut used)?;
        for (index, base) in bases.iter().enumerate() {
            row.spec.disks.push(DiskSpec {
                serial: format!("mitose-disk{index}"),
                read_only: base.read_only,
            });
        }
        row.spec.validate().map_err(invalid_spec)?;
        Ok(Plan { row, bases, notes })
    }

    /// Works out what boots: the image's parts, or the files given in their place.
    fn plan_guest(&self, request: &RunRequest) -> OpResult<Guest> {
        let mut guest = Guest {
            boot: BootSource {
                image: request.image.clone(),
                kernel: PathBuf::new(),
                initrd: None,
            },
            cmdline: String::new(),
            has_agent: false,
            disk: None,
        };
        if let Some(name) = &request.image {
            let image = crate::image::resolve(&self.config.home, name)?;
            if request.memory_bytes < image.min_memory_bytes {
                return Err(OpError::invalid(format!(
                    "memory: image {name} needs at least {}, {} was given",
                    format_size(image.min_memory_bytes),
                    format_size(request.memory_bytes)
                )));
            }
            guest.has_agent = image.agent;
            guest.boot.kernel = image.kernel;
            guest.boot.initrd = image.initrd;
            guest.cmdline = image.cmdline;
            if let Some((path, format)) = image.disk {
                guest.disk = Some(self.inspect("image", &path, Some(format), false)?);
            }
        }
        if let Some(kernel) = &request.kernel {
            guest.boot.kernel.clone_from(kernel);
            guest.boot.initrd = None;
        }
        if request.initrd.is_some() {
            guest.boot.initrd.clone_from(&request.initrd);
        }
        if guest.boot.kernel.as_os_str().is_empty() {
            return Err(OpError::invalid(
                "kernel: give an image that can boot with --image, or a kernel file with --kernel",
            ));
        }
        Ok(guest)
    }

    /// Chooses the engine of a VM; also returns what an automatic choice has to tell.
    fn choose_engine(&self, choice: EngineChoice) -> OpResult<(&'static str, Vec<String>)> {
        match choice {
            EngineChoice::Kvm => self.open_kvm().map(|_| (ENGINE_KVM, Vec::new())),
            EngineChoice::Soft => Ok((ENGINE_SOFT, Vec::new())),
            EngineChoice::Auto => Ok(match self.why_not_kvm() {
                None => (ENGINE_KVM, Vec::new()),
                Some(reason) => {
                    let note = format!("engine soft, since {reason}");
                    (ENGINE_SOFT, vec![note])
                }
            }),
        }
    }

    /// Returns why KVM is not what an automatic choice takes, or `None` where it is.
    pub fn why_not_kvm(&self) -> Option<String> {
        let device = self.config.kvm_device.display();
        if let Err(error) = self.open_kvm() {
            let message = error.message();
            let plain = message.strip_prefix("engine: ").unwrap_or(&message);
            return Some(plain.split(';').next().unwrap_or(plain).to_owned());
        }
        match self.kvm_speed() {
            Ok(speed) if speed.is_usable() => None,
            Ok(speed) => Some(format!(
                "{device} only emulates guests ({:.1} M instructions/s)",
                speed.mips
            )),
            Err(error) => {
                tracing::warn!("KVM could not be measured: {error:#}");
                Some(format!("{device} does not run a guest"))
            }
        }
    }

    /// Checks a disk file and what lies below it.
    fn inspect(
        &self,
        field: &str,
        path: &Path,
        format: Option<ImageFormat>,
        read_only: bool,
    ) -> OpResult<Base> {
        let refuse = |error: anyhow::Error| {
            OpError::caused(
                ErrorKind::Invalid,
                error.context(format!("{field}: {} cannot be used", path.display())),
            )
        };
        let file = open_given(field, path)?;
        let header = match format {
            None => disk_layers::inspect(&file),
            Some(ImageFormat::Raw) => disk_layers::inspect_as(&file, DiskFormat::Raw),
            Some(ImageFormat::Qcow2) => disk_layers::inspect_as(&file, DiskFormat::Qcow2),
        }
        .map_err(|error| refuse(error.into()))?;
        if header.format == DiskFormat::Qcow2 {
            disk_layers::check_whole(&file).map_err(|error| refuse(error.into()))?;
        }
        let path = fs::canonicalize(path).map_err(|error| refuse(error.into()))?;
        let home = &self.config.home;
        let files: Vec<(PathBuf, DiskFormat, u64)> = if header.backing.is_none() {
            vec![(path, header.format, header.virtual_size_bytes)]
        } else {
            // A backing name makes the host open a file for the guest: only those that are disks
            // already are allowed.
            let root = if path.starts_with(home.images()) {
                home.images()
            } else {
                home.datastore()
            };
            disk_layers::chain::verify_chain(&root, &path, header.format)
                .map_err(|error| refuse(error.into()))?
                .into_iter()
                .map(|l| (l.path, l.header.format, l.header.virtual_size_bytes))
                .collect()
        };
        if let Some((path, ..)) = files.iter().find(|(p, ..)| self.is_writable_top(p)) {
            return Err(OpError::conflict(format!(
                "{field}: {} is written to by a VM; clone that VM instead",
                path.display()
            )));
        }
        Ok(Base {
            layers: base_rows(&files),
            read_only,
        })
    }

    /// Whether a file is a disk that some VM writes to.
    fn is_writable_top(&self, path: &Path) -> bool {
        let vms = self.all();
        let tops: HashSet<String> = vms
            .iter()
            .flat_map(|vm| {
                let live = vm.live();
                let disks = live.row.disks.iter().zip(&live.row.spec.disks);
                disks
                    .filter(|(_, spec)| !spec.read_only)
                    .flat_map(|(disk, _)| [Some(disk.top.clone()), disk.pending.clone()])
                    .flatten()
                    .collect::<Vec<_>>()
            })
            .collect();
        let layers = self.layers();
        tops.iter()
            .filter_map(|top| layers.get(top))
            .any(|row| row.path == path)
    }
}

/// Checks that kernel and initrd can be read and fit the memory.
fn check_boot_files(boot: &BootSource, memory_bytes: u64) -> OpResult<()> {
    open_given("kernel", &boot.kernel)?;
    let Some(initrd) = &boot.initrd else {
        return Ok(());
    };
    let file = open_given("initrd", initrd)?;
    let bytes = file.metadata().map_or(0, |m| m.len());
    if bytes >= memory_bytes {
        return Err(OpError::invalid(format!(
            "memory: {} does not hold an initrd of {}; give more with --memory",
            format_size(memory_bytes),
            format_size(bytes)
        )));
    }
    Ok(())
}

/// Rows of files that the daemon did not make, nearest first.
fn base_rows(files: &[(PathBuf, DiskFormat, u64)]) -> Vec<LayerRow> {
    let id_of = |path: &Path| format!("base:{}", path.display());
    files
        .iter()
        .enumerate()
        .map(|(n, (path, format, size_bytes))| LayerRow {
            id: id_of(path),
            parent: files.get(n + 1).map(|(below, ..)| id_of(below)),
            path: path.clone(),
            format: match format {
                DiskFormat::Raw => LayerFormat::Raw,
                DiskFormat::Qcow2 => LayerFormat::Qcow2,
            },
            size_bytes: *size_bytes,
            owned: false,
        })
        .collect()
}

/// Gives a VM its NICs.
fn add_nics(row: &mut VmRow, nets: &[NetRequest], used: &mut HashSet<MacAddr>) -> OpResult<()> {
    for net in nets {
        let mac = match net.mac {
            None => new_mac(used),
            Some(mac) if !mac.is_unicast() => {
                return Err(OpError::invalid(format!(
                    "mac: {mac} is not a unicast address"
                )));
            }
            Some(mac) if !used.insert(mac) => {
                return Err(OpError::conflict(format!(
                    "mac: {mac} belongs to another NIC; leave it out for a new one"
                )));
            }
            Some(mac) => mac,
        };
        row.spec.nics.push(NicSpec {
            mac,
            keep_mac: false,
        });
        row.nics.push(NicRow {
            tap: net.tap.clone(),
        });
    }
    Ok(())
}

fn invalid_spec(error: SpecError) -> OpError {
    OpError::caused(ErrorKind::Invalid, error)
}

/// Checks the paths of serial ports' back ends.
pub(in crate::host) fn check_serial(ports: &[SerialRequest]) -> OpResult<()> {
    for (index, port) in ports.iter().enumerate() {
        let (SerialRequest::File(path) | SerialRequest::Unix(path)) = port else {
            continue;
        };
        let parent = path.parent().filter(|p| p.is_dir());
        if !path.is_absolute() || parent.is_none() {
            return Err(OpError::invalid(format!(
                "serial: {} is not a file in an existing directory",
                path.display()
            )));
        }
        if ports[..index].contains(port) {
            return Err(OpError::invalid(format!(
                "serial: {} is given for two ports",
                path.display()
            )));
        }
    }
    Ok(())
}
