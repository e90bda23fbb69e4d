//! Where the parts of an import come from: the archive, this host, or earlier archives that were given
//! with it. All of it is found before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use api_types::ErrorKind;
use api_types::schema::MAX_EARLIER;
use archives::{Blob, Layer, Manifest, Memory, Part, Reader, Watch};

use super::Host;
use super::known::Found;
use crate::error::{OpError, OpResult};
use crate::host::backends::open_given;
use crate::host::check::Problems;
use crate::inventory::LayerRow;

/// Archives that are open: the one to import, and earlier ones.
#[derive(Debug)]
pub(super) struct Opened {
    /// The one to import.
    pub reader: Reader,
    /// Earlier ones.
    pub earlier: Vec<Reader>,
}

/// Where a disk layer comes from.
#[derive(Debug)]
pub(super) enum LayerOrigin {
    /// The archive.
    Archive,
    /// It is here.
    Here(LayerRow),
    /// An earlier archive, by its number, and the layer's number in it.
    Earlier(usize, usize),
}

/// Where another whole file comes from.
#[derive(Debug)]
pub(super) enum FileOrigin {
    /// A file of this host.
    Here(File),
    /// An earlier archive, by its number.
    Earlier(usize),
}

/// Where the guest RAM comes from of which the archive has changes.
#[derive(Debug)]
pub(super) struct RamOrigin {
    /// The RAM that the first changes start from.
    pub base: FileOrigin,
    /// What it is.
    pub whole: Blob,
    /// Earlier archives whose changes come before those of the archive, in order.
    pub changes: Vec<usize>,
    /// It is what the archive's changes make: they are not needed.
    pub is_result: bool,
}

/// Where everything comes from.
#[derive(Debug)]
pub(super) struct Origins {
    /// Boot files that are left out.
    pub boot: Vec<(Part, Blob, FileOrigin)>,
    /// Each layer of the manifest.
    pub layers: Vec<LayerOrigin>,
    /// The memory, where the archive has changes of it.
    pub ram: Option<RamOrigin>,
}

impl Opened {
    /// Opens archives; notes what is wrong with them.
    pub fn open(path: &Path, earlier: &[PathBuf], problems: &mut Problems) -> Option<Self> {
        if earlier.len() > MAX_EARLIER {
            let problem = format!(
                "earlier: {} archives are more than {MAX_EARLIER}; export the machine whole once",
                earlier.len()
            );
            problems.note(OpError::invalid(problem));
            return None;
        }
        let reader = problems.take(open_archive("path", path));
        let earlier: Vec<_> = earlier
            .iter()
            .map(|path| problems.take(open_archive("earlier", path)))
            .collect();
        Some(Self {
            reader: reader?,
            earlier: earlier.into_iter().collect::<Option<_>>()?,
        })
    }

    /// What the archive to import says about itself.
    pub fn manifest(&self) -> &Manifest {
        self.reader.manifest()
    }

    /// A layer that an earlier archive has: numbers of the archive and of its layer there.
    fn layer(&self, wanted: &Layer) -> Option<(usize, usize)> {
        let same = |layer: &Layer| {
            layer.included
                && layer.file == wanted.file
                && layer.format == wanted.format
                && layer.disk_bytes == wanted.disk_bytes
        };
        let mut archives = self.earlier.iter().enumerate();
        archives.find_map(|(number, reader)| {
            let mut layers = reader.manifest().layers.iter();
            layers.position(same).map(|layer| (number, layer))
        })
    }

    /// An earlier archive that has this boot file.
    fn boot(&self, part: Part, blob: &Blob) -> Option<usize> {
        let mut archives = self.earlier.iter();
        archives.position(|reader| reader.manifest().parts().contains(&(part, blob)))
    }

    /// The memory of an earlier archive that is this RAM.
    fn ram(&self, wanted: &Blob, used: &BTreeSet<usize>) -> Option<(usize, &Memory)> {
        let archives = self.earlier.iter().enumerate();
        let memory = archives.filter_map(|(number, reader)| {
            let memory = reader.manifest().memory.as_ref()?;
            (memory.ram == *wanted && !used.contains(&number)).then_some((number, memory))
        });
        // Whole memory is better than changes of another.
        memory.min_by_key(|(_, memory)| memory.changes.is_some())
    }

    /// The first export on the way back from `manifest` that was not given.
    fn missing_export<'a>(&'a self, manifest: &'a Manifest) -> Option<&'a str> {
        let mut seen = BTreeSet::new();
        let mut next = manifest.since.as_deref();
        while let Some(id) = next.filter(|id| seen.insert(*id)) {
            let mut earlier = self.earlier.iter().map(Reader::manifest);
            match earlier.find(|earlier| earlier.id == id) {
                Some(earlier) => next = earlier.since.as_deref(),
                None => return Some(id),
            }
        }
        None
    }

    /// Refuses an import that lacks a file.
    fn missing(&self, what: &str, blob: &Blob) -> OpError {
        let remedy = match self.missing_export(self.manifest()) {
            Some(id) => remedy_for(id),
            None => "give this host the same image, or export without --without-base".to_owned(),
        };
        OpError::conflict(format!(
            "path: the archive leaves the {what} out, and this host has no file with its SHA-256 {}; \
             {remedy}",
            blob.sha256
        ))
        .about("path")
    }
}

impl Host {
    /// Finds everything that an archive leaves out. Files of this host are read to compare them, and
    /// layers of it are held from here on.
    pub(super) fn origins(
        &self,
        opened: &Opened,
        held: &mut Found<'_>,
        report: &mut Watch<'_>,
        problems: &mut Problems,
    ) -> Option<Origins> {
        let manifest = opened.manifest();
        let mut all = true;
        let mut boot = Vec::new();
        for (part, blob) in manifest.boot() {
            if manifest.boot_left_out {
                let origin = self.boot_origin(opened, part, blob, report);
                match problems.take(origin) {
                    Some(origin) => boot.push((part, blob.clone(), origin)),
                    None => all = false,
                }
            }
        }
        let mut layers = Vec::new();
        let mut here: BTreeMap<&str, Vec<LayerRow>> = BTreeMap::new();
        for layer in &manifest.layers {
            let parents = layer.parent.as_deref().and_then(|id| here.get(id));
            let parents = parents.map(Vec::as_slice).unwrap_or_default();
            let found = self.find_layers(layer, parents, held, report);
            let origin = found.and_then(|found| {
                let origin = layer_origin(opened, layer, found.first());
                here.insert(&layer.id, found);
                origin
            });
            layers.extend(problems.take(origin));
        }
        let mut ram = None;
        if let Some(memory) = &manifest.memory
            && let Some(changes) = &memory.changes
        {
            let from = Blob {
                sha256: changes.from_sha256.clone(),
                bytes: memory.ram.bytes,
            };
            ram = problems.take(self.ram_origin(opened, from, &memory.ram, report));
            all &= ram.is_some();
        }
        all &= layers.len() == manifest.layers.len();
        all.then_some(Origins { boot, layers, ram })
    }

    fn boot_origin(
        &self,
        opened: &Opened,
        part: Part,
        blob: &Blob,
        report: &mut Watch<'_>,
    ) -> OpResult<FileOrigin> {
        if let Some(file) = self.find_boot(blob, report)? {
            return Ok(FileOrigin::Here(file));
        }
        let what = match part {
            Part::Initrd => "initial RAM disk",
            _ => "kernel",
        };
        let earlier = opened.boot(part, blob);
        let number = earlier.ok_or_else(|| opened.missing(what, blob))?;
        Ok(FileOrigin::Earlier(number))
    }

    fn ram_origin(
        &self,
        opened: &Opened,
        from: Blob,
        result: &Blob,
        report: &mut Watch<'_>,
    ) -> OpResult<RamOrigin> {
        // The same instant may have been imported before, and what it started from be gone.
        if let Some(file) = self.find_ram(result, report)? {
            return Ok(RamOrigin {
                base: FileOrigin::Here(file),
                whole: result.clone(),
                changes: Vec::new(),
                is_result: true,
            });
        }
        let mut whole = from;
        let mut used = BTreeSet::new();
        let mut changes = Vec::new();
        let mut manifest = opened.manifest();
        loop {
            let here = self.find_ram(&whole, report)?.map(FileOrigin::Here);
            let base = match (here, opened.ram(&whole, &used)) {
                (Some(here), _) => here,
                (None, Some((number, memory))) => match &memory.changes {
                    None => FileOrigin::Earlier(number),
                    Some(earlier) => {
                        used.insert(number);
                        changes.push(number);
                        whole.sha256.clone_from(&earlier.from_sha256);
                        manifest = opened.earlier[number].manifest();
                        continue;
                    }
                },
                (None, None) => {
                    let since = manifest.since.as_deref().unwrap_or_default();
                    return Err(OpError::conflict(format!(
                        "path: the archive has only the memory that changed since the export {since}, \
                         and this host has no file with the memory of that, SHA-256 {}; {}",
                        whole.sha256,
                        remedy_for(since)
                    ))
                    .about("path"));
                }
            };
            changes.reverse();
            return Ok(RamOrigin {
                base,
                whole,
                changes,
                is_result: false,
            });
        }
    }
}

/// Where a layer comes from of which `here` is on this host.
fn layer_origin(opened: &Opened, layer: &Layer, here: Option<&LayerRow>) -> OpResult<LayerOrigin> {
    if layer.included {
        return Ok(LayerOrigin::Archive);
    }
    if let Some(row) = here {
        return Ok(LayerOrigin::Here(row.clone()));
    }
    let earlier = opened.layer(layer);
    let (archive, number) = earlier.ok_or_else(|| {
        let what = format!("layer {}", layer.id);
        opened.missing(&what, &layer.file)
    })?;
    Ok(LayerOrigin::Earlier(archive, number))
}

fn remedy_for(export: &str) -> String {
    format!("import the export {export} first, or give its archive with --earlier")
}

fn open_archive(field: &str, path: &Path) -> OpResult<Reader> {
    let file = open_given(field, path)?;
    Reader::open(file).map_err(|error| {
        let place = format!("{field}: {}", path.display());
        OpError::caused(
            ErrorKind::Conflict,
            anyhow::Error::from(error).context(place),
        )
        .about(field)
    })
}
