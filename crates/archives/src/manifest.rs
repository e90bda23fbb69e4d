//! The manifest: what an archive says about itself. It is not trusted: [`Manifest::check`] looks
//! at every member before anything is made of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vm_spec::VmSpec;

use crate::ArchiveError;
use crate::pages::max_changes_bytes;

/// Newest form of archives. Form 1 has no changes of memory, leaves no boot files
/// out, and has no words on a fork point.
pub const FORMAT: u32 = 2;
/// Largest manifest, bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most layers of an archive.
const MAX_LAYERS: usize = 1024;
/// Largest disk, bytes.
const MAX_DISK_BYTES: u64 = 1 << 46;
/// Largest file of a layer, bytes: tables come beside the content.
const MAX_LAYER_BYTES: u64 = MAX_DISK_BYTES + (MAX_DISK_BYTES >> 8);
/// Largest checkpoint, bytes.
const MAX_CHECKPOINT_BYTES: u64 = 256 << 20;
/// Largest kernel or initial RAM disk, bytes.
const MAX_BOOT_BYTES: u64 = 4 << 30;
/// Longest text of a user, bytes.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Longest id, bytes.
const MAX_ID_BYTES: usize = 128;
/// Disks are whole sectors.
const SECTOR_BYTES: u64 = 512;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A VM as it was.
    Vm,
    /// A snapshot of a VM.
    Snapshot,
    /// A kept fork point.
    ForkPoint,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// SHA-256 of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Its length, bytes, holes included.
    pub bytes: u64,
}

/// Format of a disk layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// Plain bytes.
    Raw,
    /// qcow2.
    Qcow2,
}

/// One disk layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its id where it was exported.
    pub id: String,
    /// Layer that it stands on, which comes before it in the list.
    pub parent: Option<String>,
    /// Its format.
    pub format: LayerFormat,
    /// Size of the disk, bytes.
    pub disk_bytes: u64,
    /// Its file.
    pub file: Blob,
    /// The file is in the archive; otherwise the importing host has it.
    pub included: bool,
}

/// Memory and checkpoint of the instant from which the machine goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Guest RAM, whole.
    pub ram: Blob,
    /// What is in the archive in its place, where only that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<MemoryChanges>,
    /// Checkpoint.
    pub checkpoint: Blob,
}

/// Pages of guest RAM that differ from those of the export that `since` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryChanges {
    /// SHA-256 of the RAM that they start from; it has the same size.
    pub from_sha256: String,
    /// The member that has them.
    pub file: Blob,
}

/// What an archive of a fork point tells of it beside its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Its name where it was exported.
    pub name: String,
    /// The guest had been brought to rest: what was on its way to the disks is there.
    pub quiesced: bool,
}

/// What a serial port was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// A file, or a socket of the host that it came from.
    Log,
    /// A pseudo-terminal.
    Pty,
    /// Nothing.
    None,
}

/// The machine. Nothing in it names a file of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name where it was exported.
    pub name: String,
    /// `kvm` or `soft`.
    pub engine: String,
    /// The machine as its guest sees it.
    pub spec: VmSpec,
    /// Image it was made from.
    pub image: Option<String>,
    /// Kernel.
    pub kernel: Blob,
    /// Initial RAM disk.
    pub initrd: Option<Blob>,
    /// Top layer of each disk; none for an empty slot.
    pub disks: Vec<Option<String>>,
    /// Serial ports, COM1 first.
    pub serial: Vec<Port>,
    /// Instance UUID.
    pub uuid: String,
    /// BIOS UUID, where it is another one.
    pub bios_uuid: Option<String>,
    /// Machine id that the agent was told.
    pub machine_id: String,
    /// Forks between it and a VM that booted.
    pub generation: u32,
    /// Most host memory beside its layers, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// An agent has answered in it.
    pub has_agent: bool,
    /// Kinds of its SSH host keys.
    pub ssh_host_key_kinds: Vec<String>,
    /// It was given SSH host keys.
    pub has_host_keys: bool,
    /// Words of a user.
    pub annotation: String,
    /// Custom attributes.
    pub attributes: BTreeMap<String, String>,
}

/// All that an archive says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`], or the oldest that has all that is told.
    pub format: u32,
    /// Id of this export, 32 hexadecimal digits.
    pub id: String,
    /// Id of the export whose layers and pages are left out.
    pub since: Option<String>,
    /// Kernel and initial RAM disk are left out: that export had the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub boot_left_out: bool,
    /// What was exported.
    pub kind: Kind,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// The machine.
    pub machine: Machine,
    /// Its layers, parents first.
    pub layers: Vec<Layer>,
    /// Its memory, where it goes on from an instant.
    pub memory: Option<Memory>,
    /// Its fork point, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<Point>,
}

/// One member beside the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Kernel.
    Kernel,
    /// Initial RAM disk.
    Initrd,
    /// A disk layer, by its index in the manifest.
    Layer(usize),
    /// Guest RAM.
    Ram,
    /// Pages that differ from other guest RAM.
    Changes,
    /// Checkpoint.
    Checkpoint,
}

impl Manifest {
    /// Members that follow the manifest, in order.
    pub fn parts(&self) -> Vec<(Part, &Blob)> {
        let mut parts = self.boot();
        if self.boot_left_out {
            parts.clear();
        }
        let layers = self.layers.iter().enumerate();
        parts.extend(
            layers
                .filter(|(_, layer)| layer.included)
                .map(|(index, layer)| (Part::Layer(index), &layer.file)),
        );
        if let Some(memory) = &self.memory {
            parts.push(match &memory.changes {
                Some(changes) => (Part::Changes, &changes.file),
                None => (Part::Ram, &memory.ram),
            });
            parts.push((Part::Checkpoint, &memory.checkpoint));
        }
        parts
    }

    /// Kernel and initial RAM disk, also where they are left out.
    pub fn boot(&self) -> Vec<(Part, &Blob)> {
        let mut boot = vec![(Part::Kernel, &self.machine.kernel)];
        boot.extend(self.machine.initrd.iter().map(|blob| (Part::Initrd, blob)));
        boot
    }

    /// Name of a member.
    pub fn name_of(&self, part: Part) -> String {
        match part {
            Part::Kernel => "boot/kernel".into(),
            Part::Initrd => "boot/initrd".into(),
            Part::Layer(index) => {
                let ending = match self.layers.get(index).map(|layer| layer.format) {
                    Some(LayerFormat::Raw) => "raw",
                    _ => "qcow2",
                };
                format!("layers/{index}.{ending}")
            }
            Part::Ram => "memory/ram".into(),
            Part::Changes => "memory/changes".into(),
            Part::Checkpoint => "memory/state".into(),
        }
    }

    /// Bytes of all members, holes included.
    pub fn total_bytes(&self) -> u64 {
        let sizes = self.parts().into_iter().map(|(_, blob)| blob.bytes);
        sizes.fold(0, u64::saturating_add)
    }

    /// Refuses what cannot be.
    pub fn check(&self) -> Result<(), ArchiveError> {
        check_format(self.format)?;
        if self.format < self.oldest_format() {
            let problem = format!("{} does not know all that is told", self.format);
            return Err(wrong("format", problem));
        }
        check_hex("id", &self.id, 32)?;
        if let Some(since) = &self.since {
            check_hex("since", since, 32)?;
        }
        self.machine.check()?;
        self.check_layers()?;
        self.check_memory()?;
        for (part, blob) in self.boot().into_iter().chain(self.parts()) {
            check_hex("sha256", &blob.sha256, 64)?;
            self.check_size(part, blob)?;
        }
        Ok(())
    }

    /// The oldest form that has all that is told.
    pub fn oldest_format(&self) -> u32 {
        let memory = self.memory.as_ref();
        let changes = memory.is_some_and(|memory| memory.changes.is_some());
        match self.boot_left_out || self.point.is_some() || changes {
            true => FORMAT,
            false => 1,
        }
    }

    fn check_memory(&self) -> Result<(), ArchiveError> {
        if let Some(point) = &self.point {
            check_id("point", &point.name)?;
            if self.kind != Kind::ForkPoint || self.memory.is_none() {
                return Err(wrong("point", "it is no fork point with memory".into()));
            }
        }
        if self.boot_left_out && self.since.is_none() {
            return Err(wrong(
                "since",
                "boot files are left out for no export".into(),
            ));
        }
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        check_hex("sha256", &memory.ram.sha256, 64)?;
        self.check_size(Part::Ram, &memory.ram)?;
        if let Some(changes) = &memory.changes {
            check_hex("from_sha256", &changes.from_sha256, 64)?;
            if self.since.is_none() {
                let problem = "changes of memory start from no export".into();
                return Err(wrong("since", problem));
            }
        }
        Ok(())
    }

    fn check_size(&self, part: Part, blob: &Blob) -> Result<(), ArchiveError> {
        let ram = self.machine.spec.memory_bytes;
        let fits = match part {
            Part::Kernel => (1..=MAX_BOOT_BYTES).contains(&blob.bytes),
            Part::Initrd => blob.bytes <= MAX_BOOT_BYTES,
            Part::Layer(index) => self.layers.get(index).is_some_and(|layer| {
                let raw = layer.format == LayerFormat::Raw;
                let whole = blob.bytes.abs_diff(layer.disk_bytes) < SECTOR_BYTES;
                blob.bytes <= MAX_LAYER_BYTES && (!raw || whole)
            }),
            Part::Ram => blob.bytes == ram,
            Part::Changes => blob.bytes <= max_changes_bytes(ram),
            Part::Checkpoint => (1..=MAX_CHECKPOINT_BYTES).contains(&blob.bytes),
        };
        if fits {
            return Ok(());
        }
        let problem = format!("{} cannot have {} bytes", self.name_of(part), blob.bytes);
        Err(wrong("bytes", problem))
    }

    fn check_layers(&self) -> Result<(), ArchiveError> {
        if self.layers.len() > MAX_LAYERS {
            let problem = format!("{} are more than {MAX_LAYERS}", self.layers.len());
            return Err(wrong("layers", problem));
        }
        let mut sizes = BTreeMap::new();
        let mut used: BTreeSet<&str> = self.machine.disks.iter().flatten().map(|d| &**d).collect();
        for layer in &self.layers {
            check_id("layers", &layer.id)?;
            let problem = match &layer.parent {
                Some(_) if layer.format == LayerFormat::Raw => Some("is raw and has a parent"),
                Some(parent) if !sizes.contains_key(parent.as_str()) => {
                    Some("stands on a layer that does not come before it")
                }
                _ if layer.disk_bytes == 0
                    || layer.disk_bytes > MAX_DISK_BYTES
                    || !layer.disk_bytes.is_multiple_of(SECTOR_BYTES) =>
                {
                    Some("has an impossible disk size")
                }
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(wrong("layers", format!("{} {problem}", layer.id)));
            }
            if sizes.insert(layer.id.as_str(), layer.disk_bytes).is_some() {
                return Err(wrong("layers", format!("{} is there twice", layer.id)));
            }
            used.extend(layer.parent.as_deref());
        }
        if let Some(missing) = used.iter().find(|id| !sizes.contains_key(**id)) {
            return Err(wrong("disks", format!("there is no layer {missing:?}")));
        }
        match sizes.keys().find(|id| !used.contains(**id)) {
            Some(idle) => Err(wrong("layers", format!("no disk uses {idle}"))),
            None => Ok(()),
        }
    }
}

impl Machine {
    fn check(&self) -> Result<(), ArchiveError> {
        self.spec
            .validate()
            .map_err(|error| wrong("spec", error.to_string()))?;
        if !matches!(self.engine.as_str(), "kvm" | "soft") {
            return Err(wrong(
                "engine",
                format!("{:?} is not kvm or soft", cut(&self.engine)),
            ));
        }
        if self.disks.len() != self.spec.disks.len() {
            let problem = format!("{} of {} are told", self.disks.len(), self.spec.disks.len());
            return Err(wrong("disks", problem));
        }
        if self.serial.len() != usize::from(self.spec.serial_ports) {
            let problem = format!(
                "{} of {} are told",
                self.serial.len(),
                self.spec.serial_ports
            );
            return Err(wrong("serial", problem));
        }
        if let Some(nic) = self.spec.nics.iter().find(|nic| !nic.mac.is_unicast()) {
            return Err(wrong(
                "nics",
                format!("{} is not a unicast address", nic.mac),
            ));
        }
        check_id("name", &self.name)?;
        self.image
            .iter()
            .try_for_each(|name| check_id("image", name))?;
        check_hex("machine_id", &self.machine_id, 32)?;
        check_uuid(&self.uuid)?;
        self.bios_uuid
            .iter()
            .try_for_each(|uuid| check_uuid(uuid))?;
        let known = |kind: &String| matches!(kind.as_str(), "rsa" | "ecdsa" | "ed25519");
        if self.ssh_host_key_kinds.len() > 3 || !self.ssh_host_key_kinds.iter().all(known) {
            return Err(wrong("ssh_host_key_kinds", "an unknown kind of key".into()));
        }
        let words = self
            .attributes
            .iter()
            .map(|(key, value)| key.len() + value.len());
        if words.sum::<usize>() > MAX_TEXT_BYTES || self.annotation.len() > MAX_TEXT_BYTES {
            return Err(wrong(
                "annotation",
                format!("more than {MAX_TEXT_BYTES} bytes"),
            ));
        }
        Ok(())
    }
}

/// Refuses a form that this program does not know.
pub(crate) fn check_format(format: u32) -> Result<(), ArchiveError> {
    if (1..=FORMAT).contains(&format) {
        return Ok(());
    }
    let problem = format!(
        "{format} is not one of 1 to {FORMAT}, which this program reads; use the program that wrote \
         it, or a newer one"
    );
    Err(wrong("format", problem))
}

fn wrong(field: &'static str, problem: String) -> ArchiveError {
    ArchiveError::Manifest { field, problem }
}

fn check_hex(field: &'static str, text: &str, digits: usize) -> Result<(), ArchiveError> {
    let good = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == digits && text.bytes().all(good) {
        return Ok(());
    }
    let problem = format!("{:?} is not {digits} hexadecimal digits", cut(text));
    Err(wrong(field, problem))
}

fn check_uuid(text: &str) -> Result<(), ArchiveError> {
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    check_hex("uuid", &text.replace('-', "").to_ascii_lowercase(), 32)?;
    if groups == [8, 4, 4, 4, 12] {
        return Ok(());
    }
    Err(wrong("uuid", format!("{:?} is no UUID", cut(text))))
}

fn check_id(field: &'static str, text: &str) -> Result<(), ArchiveError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let plain = text.bytes().all(good) && !text.starts_with('.');
    if plain && (1..=MAX_ID_BYTES).contains(&text.len()) {
        return Ok(());
    }
    let problem = format!(
        "{:?} is no name of letters, digits, '-', '_' and '.'",
        cut(text)
    );
    Err(wrong(field, problem))
}

/// The beginning of a text, for a message.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}
