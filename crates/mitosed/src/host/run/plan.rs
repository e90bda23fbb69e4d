//! Checking a request for a VM, and working the VM out. Nothing is made here.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use api_types::{ErrorKind, ImageFormat, NetRequest, RunRequest};
use disk_layers::DiskFormat;
use vm_spec::{DiskSpec, EngineChoice, MacAddr, NicSpec, SpecError, VmSpec, format_size};
use vmm_protocol::LayerFormat;

use crate::error::{OpError, OpResult};
use crate::host::backends::{ENGINE_KVM, ENGINE_SOFT, open_given};
use crate::host::check::Problems;
use crate::host::datastores::{DELTA_BYTES, Promise};
use crate::host::describe::changed_labels;
use crate::host::guestinfo::guestinfo_of_new;
use crate::host::identity::{mac_taken, new_mac};
use crate::host::{Host, static_net};
use crate::inventory::{BootSource, FIRST_DATASTORE, LayerRow, ObjectId, VmRow};

/// A disk of a new VM: the layers that exist, nearest first, and how the guest sees it.
#[derive(Debug)]
pub(in crate::host) struct Base {
    /// Layers, nearest first.
    pub layers: Vec<LayerRow>,
    /// The guest cannot write.
    pub read_only: bool,
}

/// A checked request.
#[derive(Debug)]
pub(in crate::host) struct Plan {
    /// The VM, without its disks' rows.
    pub row: VmRow,
    /// What its disks stand on.
    pub bases: Vec<Base>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
    /// Space of its deltas.
    pub space: Promise,
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
    /// Checks a request and works out the VM, which has no id yet. All that is in the way is added
    /// to `problems`; there is a plan where nothing is.
    pub(in crate::host) fn plan(
        &self,
        request: &RunRequest,
        problems: &mut Problems,
    ) -> Option<Plan> {
        let folder = problems.take(self.plan_place(request));
        let engine = problems.take(self.choose_engine(request.engine));
        let guest = problems.take(self.plan_guest(request));
        let spec = VmSpec {
            cpus: u8::try_from(request.cpus).unwrap_or(u8::MAX),
            memory_bytes: request.memory_bytes,
            cmdline: match (&request.cmdline, &guest) {
                (Some(cmdline), _) => cmdline.clone(),
                (None, Some(guest)) => guest.cmdline.clone(),
                (None, None) => String::new(),
            },
            entry: request.entry,
            disks: Vec::new(),
            nics: Vec::new(),
            serial_ports: u8::try_from(request.more_serial.len() + 1).unwrap_or(u8::MAX),
        };
        check_spec(&spec, request.cpus, problems);
        problems.take(self.check_limit(request.memory_limit_bytes));
        problems.take(self.check_memory("the VM", spec.memory_bytes));
        let pool = problems.take(self.plan_pool(request.pool.as_deref(), spec.memory_bytes));
        let mut bases = Vec::new();
        for (index, disk) in request.disks.iter().enumerate() {
            let base = self.inspect("disk", &disk.path, disk.format, disk.read_only);
            let base = base.map_err(|error| error.about(&format!("disks[{index}].path")));
            bases.extend(problems.take(base));
        }
        let mut serial = vec![request.serial.clone()];
        serial.extend(request.more_serial.iter().cloned());
        problems.take(self.check_serial(&serial, None));
        let (engine, notes) = engine?;
        let guest = guest?;
        problems.take(check_boot_files(&guest.boot, spec.memory_bytes));
        bases.splice(0..0, guest.disk);
        let writable = bases.iter().filter(|base| !base.read_only).count();
        let space = problems.take(self.plan_space(request.datastore.as_deref(), writable));
        let mut row = VmRow::new(
            String::new(),
            request.name.clone(),
            engine.to_owned(),
            guest.boot,
            spec,
        );
        row.folder = folder;
        row.pool = pool;
        row.has_agent = guest.has_agent;
        row.serial = serial;
        let space = space.map(|(store, space)| {
            row.datastore = store;
            space
        });
        row.memory_limit_bytes = request.memory_limit_bytes;
        problems.take(self.plan_identity(&mut row, request));
        let mut used = self.macs_in_use();
        for (index, net) in request.nets.iter().enumerate() {
            let net = std::slice::from_ref(net);
            let added = add_nics(self, &mut row, net, &mut used);
            problems.take(added.map_err(|error| error.within(&format!("nets[{index}]"))));
        }
        problems.take(static_net::assign(&mut row.nics, &request.addresses, 0));
        problems.take(self.check_addresses(std::slice::from_ref(&row)));
        let values = guestinfo_of_new(&BTreeMap::new(), &request.guestinfo.0, &row.name, 1);
        row.guestinfo = problems.take(values).unwrap_or_default();
        for (index, base) in bases.iter().enumerate() {
            row.spec.disks.push(DiskSpec {
                serial: format!("mitose-disk{index}"),
                read_only: base.read_only,
            });
        }
        add_slots(&mut row.spec.disks, request.spare_disks);
        if let Err(error @ SpecError::Devices(_)) = row.spec.validate() {
            problems.take(Err::<(), _>(invalid_spec(error)));
        }
        let space = space?;
        problems.is_empty().then_some(Plan {
            row,
            bases,
            notes,
            space,
        })
    }

    /// The datastore that a VM is to be on, and the space of its deltas there.
    fn plan_space(&self, store: Option<&str>, deltas: usize) -> OpResult<(ObjectId, Promise)> {
        let store = self.store_for_disks(store.unwrap_or(FIRST_DATASTORE))?;
        let space = self.promise_space(&store, DELTA_BYTES * deltas as u64)?;
        Ok((store.id, space))
    }

    /// The folder that a VM is to lie in, with its name free there.
    fn plan_place(&self, request: &RunRequest) -> OpResult<String> {
        if let Some(problem) = api_types::name_problem(&request.name) {
            return Err(OpError::invalid(problem));
        }
        let folder = self.folder_id(request.folder.as_deref())?;
        self.check_name_free(&request.name, &folder)?;
        Ok(folder)
    }

    /// Refuses a name that a VM of the folder has.
    pub(in crate::host) fn check_name_free(&self, name: &str, folder: &str) -> OpResult<()> {
        let taken = self
            .listing()
            .named(name)
            .any(|vm| *vm.place().folder == *folder);
        if taken {
            return Err(OpError::conflict(format!(
                "name: there is a VM {name:?} already; choose another name or remove it with 'mitose rm {name}'"
            )));
        }
        Ok(())
    }

    fn plan_pool(&self, pool: Option<&str>, memory_bytes: u64) -> OpResult<String> {
        let pool = self.pool_id(pool)?;
        self.check_pool(&pool, 1, memory_bytes)?;
        Ok(pool)
    }

    /// What a user says that a VM is.
    fn plan_identity(&self, row: &mut VmRow, request: &RunRequest) -> OpResult<()> {
        let attributes = request.attributes.iter();
        let attributes = attributes.map(|(key, value)| (key.clone(), Some(value.clone())));
        let labels = changed_labels(
            &row.labels,
            request.annotation.as_deref(),
            &attributes.collect(),
        )?;
        row.labels = labels.unwrap_or_default();
        if let Some(uuid) = &request.uuid {
            row.uuid = check_uuid("uuid", uuid)?;
            self.check_uuid_free(&row.uuid, None)?;
        }
        if let Some(uuid) = &request.bios_uuid {
            row.bios_uuid = Some(check_uuid("bios_uuid", uuid)?);
        }
        Ok(())
    }

    /// Refuses memory that an image cannot do with.
    pub(in crate::host) fn check_image_memory(
        &self,
        image: Option<&str>,
        bytes: u64,
    ) -> OpResult<()> {
        let Some(name) = image else { return Ok(()) };
        // An image may have been removed since its VMs were made.
        let Ok(image) = crate::image::resolve(&self.config.home, name) else {
            return Ok(());
        };
        check_image_memory(name, image.min_memory_bytes, bytes)
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
            check_image_memory(name, image.min_memory_bytes, request.memory_bytes)?;
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
    pub(in crate::host) fn choose_engine(
        &self,
        choice: EngineChoice,
    ) -> OpResult<(&'static str, Vec<String>)> {
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

    /// The layers of an image's disk, nearest first.
    pub(in crate::host) fn layers_at(&self, path: &Path) -> OpResult<Vec<LayerRow>> {
        let base = self.inspect("image", path, Some(ImageFormat::Raw), true)?;
        Ok(base.layers)
    }

    /// Checks a disk file and what lies below it.
    pub(in crate::host) fn inspect(
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
            let stores = self.stores.all_dirs();
            let holds = |root: &PathBuf| path.starts_with(root);
            let root = stores
                .into_iter()
                .map(|(_, dir)| dir.root().to_owned())
                .chain([home.images(), home.datastore()])
                .find(holds)
                .ok_or_else(|| {
                    OpError::invalid(format!(
                        "{field}: {} has a backing file and lies in no datastore; merge it with \
                         its backing file: qemu-img convert -O qcow2 {} NEW.qcow2",
                        path.display(),
                        path.display()
                    ))
                })?;
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
                    .flat_map(|(disk, _)| disk.held().cloned())
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
            content: None,
        })
        .collect()
}

/// Refuses what the machine cannot be, field by field.
fn check_spec(spec: &VmSpec, cpus: u32, problems: &mut Problems) {
    let least = VmSpec {
        cpus: 1,
        memory_bytes: vm_spec::MIN_MEMORY_BYTES,
        cmdline: String::new(),
        entry: None,
        disks: Vec::new(),
        nics: Vec::new(),
        serial_ports: 1,
    };
    let each = [
        VmSpec {
            memory_bytes: spec.memory_bytes,
            ..least.clone()
        },
        VmSpec {
            cmdline: spec.cmdline.clone(),
            ..least.clone()
        },
        VmSpec {
            serial_ports: spec.serial_ports,
            ..least.clone()
        },
    ];
    if cpus == 0 || cpus > vm_spec::MAX_CPUS.into() {
        problems.take(Err::<(), _>(invalid_spec(SpecError::Cpus(cpus))));
    }
    for spec in each {
        problems.take(spec.validate().map_err(invalid_spec));
    }
}

fn check_image_memory(name: &str, least: u64, bytes: u64) -> OpResult<()> {
    if bytes >= least {
        return Ok(());
    }
    Err(OpError::invalid(format!(
        "memory: image {name} needs at least {}, {} was given",
        format_size(least),
        format_size(bytes)
    )))
}

/// Gives a machine further disk slots, more than it can have at the most.
pub(in crate::host) fn add_slots(disks: &mut Vec<DiskSpec>, count: u32) {
    for _ in 0..count.min(vm_spec::MAX_VIRTIO_DEVICES as u32 + 1) {
        disks.push(DiskSpec {
            serial: free_serial(disks),
            read_only: false,
        });
    }
}

/// A serial number that no disk of the VM has.
pub(in crate::host) fn free_serial(disks: &[DiskSpec]) -> String {
    (0..)
        .map(|number| format!("mitose-disk{number}"))
        .find(|serial| disks.iter().all(|disk| disk.serial != *serial))
        .unwrap_or_default()
}

/// Gives a VM further NICs.
pub(in crate::host) fn add_nics(
    host: &Host,
    row: &mut VmRow,
    nets: &[NetRequest],
    used: &mut HashSet<MacAddr>,
) -> OpResult<()> {
    for net in nets {
        let nic = host.nic_of(net)?;
        let mac = match net.mac {
            None => new_mac(used),
            Some(mac) => claim_mac(mac, used)?,
        };
        row.spec.nics.push(NicSpec {
            mac,
            keep_mac: false,
        });
        row.nics.push(nic);
    }
    Ok(())
}

/// Takes a hardware address that a user gave.
pub(in crate::host) fn claim_mac(mac: MacAddr, used: &mut HashSet<MacAddr>) -> OpResult<MacAddr> {
    if !mac.is_unicast() {
        return Err(OpError::invalid(format!(
            "mac: {mac} is not a unicast address; leave it out for a new one"
        )));
    }
    if !used.insert(mac) {
        return Err(mac_taken(mac));
    }
    Ok(mac)
}

/// A UUID in the one form that is stored.
pub(in crate::host) fn check_uuid(field: &str, text: &str) -> OpResult<String> {
    let dashes = [8, 13, 18, 23];
    let good = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match byte {
            b'-' => dashes.contains(&at),
            byte => byte.is_ascii_hexdigit() && !dashes.contains(&at),
        });
    if good {
        return Ok(text.to_ascii_lowercase());
    }
    let shown: String = text.chars().take(40).collect();
    Err(OpError::invalid(format!(
        "{field}: {shown:?} is no UUID; write 8-4-4-4-12 hexadecimal digits"
    )))
}

pub(in crate::host) fn invalid_spec(error: SpecError) -> OpError {
    OpError::caused(ErrorKind::Invalid, error)
}
