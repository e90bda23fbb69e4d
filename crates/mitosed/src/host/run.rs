//! Making a VM and booting it.
//!
//! Everything is checked before anything is made; the row `creating` comes first, so that a crash
//! at any point leaves nothing that recovery does not find.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::IdentityKind;
use api_types::{ErrorKind, ImageFormat, NetRequest, RunReply, RunRequest};
use disk_layers::DiskFormat;
use vm_spec::{DiskSpec, EngineChoice, MacAddr, NicSpec, SpecError, VmSpec, format_size};
use vmm_protocol::{Boot, Command, LayerFormat, Outcome, RamView};

use super::backends::{FdList, make_ram, open_given};
use super::events::with_event;
use super::identity::{identity_message, new_mac};
use super::{Host, Vm, event};
use crate::clock::{now_ms, random_hex, random_uuid, us_between};
use crate::error::{OpError, OpResult};
use crate::inventory::{BootSource, Changes, DiskRow, LayerRow, NicRow, PowerState, VmRow};
use crate::layers::{make_delta, remove_files};

/// Longest time from the order to boot to the first entry of the guest.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait for the agent of an image that has one, where the request names none, seconds.
const DEFAULT_READY_WAIT_S: u64 = 180;

/// A disk of a new VM: the layers that exist, nearest first, and how the guest sees it.
#[derive(Debug)]
struct Base {
    layers: Vec<LayerRow>,
    read_only: bool,
}

/// A checked request.
#[derive(Debug)]
struct Plan {
    row: VmRow,
    bases: Vec<Base>,
    notes: Vec<String>,
}

impl Host {
    /// Makes a VM and boots it; `arrived_ns` is when the request came.
    pub fn run(self: &Arc<Self>, request: RunRequest, arrived_ns: u64) -> OpResult<RunReply> {
        let _busy = self.pool.busy();
        let wait_s = request.wait_ready_s;
        let plan = self.plan(request)?;
        let vm = Vm::new(plan.row);
        let _turn = vm.operate();
        self.reserve(std::slice::from_ref(&vm))?;
        let booted = self
            .make_disks(&vm, &plan.bases)
            .and_then(|()| self.make_home(&vm.id).map_err(OpError::from))
            .and_then(|()| self.power_on(&vm));
        let first_run_at_ns = match booted {
            Ok(at) => at,
            Err(error) => {
                self.erase(&vm, None);
                return Err(error);
            }
        };
        self.link_tops(&vm.row());
        drop(_turn);
        let ready_us = self.wait_for_agent(&vm, wait_s, arrived_ns)?;
        Ok(RunReply {
            vm: self.show(&vm),
            first_run_us: us_between(arrived_ns, first_run_at_ns),
            ready_us,
            notes: plan.notes,
        })
    }

    fn wait_for_agent(
        &self,
        vm: &Arc<Vm>,
        wait_s: Option<u64>,
        arrived_ns: u64,
    ) -> OpResult<Option<u64>> {
        let wait_s = match wait_s {
            Some(wait_s) => wait_s,
            None if vm.live().row.has_agent => DEFAULT_READY_WAIT_S,
            None => 0,
        };
        if wait_s == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + Duration::from_secs(wait_s.min(86_400));
        match vm.wait_ready(deadline) {
            Some(at) => Ok(Some(us_between(arrived_ns, at))),
            None if vm.state().has_process() => Err(OpError::new(
                ErrorKind::Timeout,
                format!(
                    "{0} runs, but its agent was not ready within {wait_s} s; see 'mitose logs {0}'",
                    vm.name
                ),
            )),
            None => {
                let reason = vm
                    .row()
                    .reason
                    .unwrap_or_else(|| "it powered off".to_owned());
                Err(OpError::failed(format!(
                    "{0} ended before its agent was ready: {reason}; see 'mitose logs {0}'",
                    vm.name
                )))
            }
        }
    }

    /// Starts the process of a VM that has none and boots it; returns when the guest was entered.
    /// The caller has the VM's turn.
    pub(super) fn power_on(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<u64> {
        let row = vm.row();
        let kvm = self.open_kvm()?;
        let mut fds = FdList::default();
        let kernel = fds.add(std::os::fd::OwnedFd::from(open_given(
            "kernel",
            &row.boot.kernel,
        )?));
        let initrd = match &row.boot.initrd {
            Some(path) => Some(fds.add(std::os::fd::OwnedFd::from(open_given("initrd", path)?))),
            None => None,
        };
        let ram = fds.add(make_ram(row.spec.memory_bytes)?);
        let taps = self.open_taps(&row)?;
        let disks = self.open_disks(&row)?;
        let shell = self.pool.take()?;
        let link = self.assign(vm, shell)?;
        // The process is on record before it runs a guest, so that recovery finds it.
        let booted = self.commit(&[vm], Changes::default()).and_then(|()| {
            let identity = identity_message(&row, IdentityKind::Boot, Vec::new());
            let backends = self.backends(&row, &kvm, &disks, &taps, identity, &mut fds)?;
            let boot = Boot {
                spec: row.spec.clone(),
                ram,
                kernel,
                initrd,
                backends,
            };
            let answer = link.call(Command::Boot(Box::new(boot)), &fds.borrowed(), BOOT_TIMEOUT);
            match answer {
                Ok((Outcome::Running { first_run_at_ns }, _)) => Ok(first_run_at_ns),
                Ok(_) => Err(OpError::failed(
                    "the VM process gave an answer that does not fit",
                )),
                Err(error) => Err(self.explain(vm, "cannot boot", error).into()),
            }
        });
        match booted {
            Ok(first_run_at_ns) => {
                let (no_space, alive) =
                    vm.update(|live| (live.came_to_life(RamView::Shared), !link.is_closed()));
                self.commit(&[vm], with_event(event(&vm.name, "vm.started", "running")))?;
                if let Some(disk) = no_space {
                    self.no_space(vm, disk);
                }
                if !alive {
                    // It ended before its state was set: what its end means is decided now.
                    (self.handler(vm, &link))(crate::vmm::Notice::Closed(None));
                }
                Ok(first_run_at_ns)
            }
            Err(error) => {
                self.abandon_process(vm);
                Err(error)
            }
        }
    }

    /// Checks a request and works out the VM.
    fn plan(&self, request: RunRequest) -> OpResult<Plan> {
        if let Some(problem) = api_types::name_problem(&request.name) {
            return Err(OpError::invalid(problem));
        }
        if self.find(&request.name).is_ok() {
            return Err(OpError::conflict(format!(
                "name: there is a VM {0:?} already; choose another name or remove it with 'mitose rm {0}'",
                request.name
            )));
        }
        let engine = choose_engine(request.engine)?;
        let mut bases = Vec::new();
        let mut has_agent = false;
        let mut boot = BootSource {
            image: request.image.clone(),
            kernel: PathBuf::new(),
            initrd: None,
        };
        let mut cmdline = String::new();
        if let Some(name) = &request.image {
            let image = crate::image::resolve(&self.config.home, name)?;
            if request.memory_bytes < image.min_memory_bytes {
                return Err(OpError::invalid(format!(
                    "memory: image {name} needs at least {}, {} was given",
                    format_size(image.min_memory_bytes),
                    format_size(request.memory_bytes)
                )));
            }
            has_agent = image.agent;
            boot.kernel = image.kernel;
            boot.initrd = image.initrd;
            cmdline = image.cmdline;
            if let Some((path, format)) = image.disk {
                bases.push(self.inspect("image", &path, Some(format), false)?);
            }
        }
        if let Some(kernel) = request.kernel {
            boot.kernel = kernel;
            boot.initrd = None;
        }
        if request.initrd.is_some() {
            boot.initrd = request.initrd;
        }
        if boot.kernel.as_os_str().is_empty() {
            return Err(OpError::invalid(
                "kernel: give an image that can boot with --image, or a kernel file with --kernel",
            ));
        }
        let spec = VmSpec {
            cpus: u8::try_from(request.cpus)
                .map_err(|_| invalid_spec(SpecError::Cpus(request.cpus)))?,
            memory_bytes: request.memory_bytes,
            cmdline: request.cmdline.unwrap_or(cmdline),
            entry: request.entry,
            disks: Vec::new(),
            nics: Vec::new(),
        };
        spec.validate().map_err(invalid_spec)?;
        self.check_memory("the VM", spec.memory_bytes)?;
        open_given("kernel", &boot.kernel)?;
        if let Some(initrd) = &boot.initrd {
            let bytes = open_given("initrd", initrd)?
                .metadata()
                .map_or(0, |m| m.len());
            if bytes >= spec.memory_bytes {
                return Err(OpError::invalid(format!(
                    "memory: {} does not hold an initrd of {}; give more with --memory",
                    format_size(spec.memory_bytes),
                    format_size(bytes)
                )));
            }
        }
        for disk in &request.disks {
            bases.push(self.inspect("disk", &disk.path, disk.format, disk.read_only)?);
        }
        self.open_kvm()?;
        let notes = self.engine_notes(request.engine, request.image.is_some())?;
        let mut row = VmRow {
            id: random_hex::<6>(),
            name: request.name,
            state: PowerState::Creating,
            reason: None,
            created_at_ms: now_ms(),
            engine,
            boot,
            spec,
            disks: Vec::new(),
            nics: Vec::new(),
            serial: request.serial,
            uuid: random_uuid(),
            machine_id: random_hex::<16>(),
            source: None,
            generation: 0,
            uid: None,
            pid: None,
            has_agent,
            ssh_host_key_kinds: Vec::new(),
            has_host_keys: false,
            guest: None,
            stuns: Vec::new(),
            next_layer: 0,
        };
        self.check_serial(&row)?;
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

    /// What an automatic choice of the engine is to tell; refuses it where KVM only emulates guests
    /// and the guest is a whole system.
    fn engine_notes(&self, engine: EngineChoice, is_system: bool) -> OpResult<Vec<String>> {
        if engine != EngineChoice::Auto {
            return Ok(Vec::new());
        }
        let speed = match self.kvm_speed() {
            Ok(speed) if speed.is_usable() => return Ok(Vec::new()),
            Ok(speed) => speed,
            // What is wrong shows when the VM itself is to boot.
            Err(error) => {
                tracing::warn!("KVM could not be measured: {error:#}");
                return Ok(Vec::new());
            }
        };
        let found = format!(
            "{} only emulates guests ({:.1} M instructions/s)",
            self.config.kvm_device.display(),
            speed.mips
        );
        if is_system {
            return Err(OpError::unavailable(format!(
                "engine: {found}, too slow for a Linux system; use a host with hardware \
                 virtualization, or --engine kvm to try it all the same"
            )));
        }
        Ok(vec![format!("{found}; --engine kvm leaves this note out")])
    }

    fn check_serial(&self, row: &VmRow) -> OpResult<()> {
        if let api_types::SerialRequest::File(path) = &row.serial {
            let parent = path.parent().filter(|p| p.is_dir());
            if !path.is_absolute() || parent.is_none() {
                return Err(OpError::invalid(format!(
                    "serial: {} is not a file in an existing directory",
                    path.display()
                )));
            }
        }
        Ok(())
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

    /// Records a new VM with its disks, then makes the files of their deltas.
    fn make_disks(&self, vm: &Arc<Vm>, bases: &[Base]) -> OpResult<()> {
        let mut changes = Changes::default();
        let mut deltas = Vec::new();
        vm.update(|live| {
            for (index, base) in bases.iter().enumerate() {
                let below = &base.layers[0];
                changes.layers.extend(base.layers.iter().cloned());
                let top = if base.read_only {
                    below.id.clone()
                } else {
                    let delta = self.next_delta(&mut live.row, index, below);
                    changes.layers.push(delta.clone());
                    deltas.push((delta.clone(), below.clone()));
                    delta.id
                };
                live.row.disks.push(DiskRow { top, pending: None });
            }
            let mut layers = self.layers();
            layers.insert(changes.layers.iter().cloned());
            live.row
                .disks
                .iter()
                .for_each(|disk| layers.hold(&disk.top));
        });
        self.commit(&[vm], changes)?;
        for (delta, below) in &deltas {
            make_delta(delta, below)?;
        }
        if deltas.is_empty() {
            return Ok(());
        }
        crate::inventory::sync_directory(&self.config.home.layers())
            .map_err(|error| OpError::failed(format!("cannot sync the datastore: {error}")))
    }

    /// Names the next delta of disk `index` on `parent`.
    pub(super) fn next_delta(&self, row: &mut VmRow, index: usize, parent: &LayerRow) -> LayerRow {
        let id = format!("{}-{index}-{}", row.id, row.next_layer);
        row.next_layer += 1;
        LayerRow {
            path: self.config.home.layers().join(format!("{id}.qcow2")),
            id,
            parent: Some(parent.id.clone()),
            format: LayerFormat::Qcow2,
            size_bytes: parent.size_bytes,
            owned: true,
        }
    }

    /// Removes a VM without a process, its disks, its home folder and its row.
    pub(super) fn erase(&self, vm: &Arc<Vm>, told: Option<crate::inventory::NewEvent>) {
        let row = vm.update(|live| {
            live.removed = true;
            live.row.clone()
        });
        let mut gone = Vec::new();
        {
            let mut layers = self.layers();
            for disk in &row.disks {
                gone.extend(layers.release(&disk.top));
                if let Some(pending) = &disk.pending {
                    gone.extend(layers.release(pending));
                }
            }
        }
        let changes = Changes {
            removed_vms: vec![row.id.clone()],
            removed_layers: gone.iter().map(|layer| layer.id.clone()).collect(),
            events: told.into_iter().collect(),
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
        remove_files(&gone);
        self.forget_sockets(vm);
        let home = self.config.home.vm(&row.id);
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, home = %home.display(), "cannot remove a home folder");
            }
            _ => {}
        }
        self.unlist(vm);
    }
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
pub(super) fn add_nics(
    row: &mut VmRow,
    nets: &[NetRequest],
    used: &mut HashSet<MacAddr>,
) -> OpResult<()> {
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

fn choose_engine(choice: EngineChoice) -> OpResult<String> {
    match choice {
        EngineChoice::Auto | EngineChoice::Kvm => Ok("kvm".to_owned()),
        EngineChoice::Soft => Err(OpError::invalid(
            "engine: the software engine is not part of this build; use --engine kvm",
        )),
    }
}

fn invalid_spec(error: SpecError) -> OpError {
    OpError::caused(ErrorKind::Invalid, error)
}
