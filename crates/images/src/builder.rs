//! What all recipes share: where things are, the kernel, the manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::apt::Apt;
use crate::initramfs::Initramfs;
use crate::kernel::{GUEST_MODULES, KernelFiles, Suite};
use crate::manifest::{DISK_FILE, INITRD_FILE, KERNEL_FILE, MANIFEST_VERSION, command_line};
use crate::mirror::Mirror;
use crate::{DiskFormat, Image, ImageError, ImageKind, ImageStore, Manifest, Watch, agent};

/// Changes whenever the recipes themselves do, so that older images are told apart.
const RECIPES: &str = "mitose image recipes 2";

/// Where a builder finds and keeps things.
#[derive(Debug, Clone)]
pub struct BuilderConfig {
    /// Directory of the images.
    pub images: PathBuf,
    /// Directory for downloaded packages and extracted kernels; may be deleted at any time.
    pub cache: PathBuf,
    /// The static `mitose-guest` program.
    pub agent: PathBuf,
    /// Address of a Debian mirror; the host's own when absent.
    pub mirror: Option<String>,
}

/// Makes images.
#[derive(Debug)]
pub struct Builder {
    config: BuilderConfig,
    store: ImageStore,
    pub(crate) watch: Watch,
}

/// What the boot parts of an image are made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) suite: Suite,
    pub(crate) kernel: KernelFiles,
    pub(crate) agent: Vec<u8>,
    /// Other downloaded packages, in the order they were asked for.
    pub(crate) debs: Vec<PathBuf>,
}

/// What a recipe decides about the manifest.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: ImageKind,
    /// Words behind the recommended kernel command line.
    pub(crate) cmdline: String,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) min_memory: u64,
    pub(crate) agent: bool,
    /// Everything besides kernel, agent and suite that decided the content.
    pub(crate) inputs: Vec<String>,
}

impl Builder {
    /// Opens the image directory.
    pub fn new(config: BuilderConfig, watch: Watch) -> Result<Self, ImageError> {
        let store = ImageStore::open(&config.images)?;
        fs::create_dir_all(&config.cache)
            .map_err(ImageError::file("make directory", &config.cache))?;
        Ok(Self {
            config,
            store,
            watch,
        })
    }

    /// The directory that images are published in.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.config.cache
    }

    pub(crate) fn mirror(&self) -> Result<Mirror, ImageError> {
        Mirror::choose(self.config.mirror.as_deref())
    }

    /// Gets agent, kernel and further packages.
    pub(crate) fn parts(&self, suite: Suite, packages: &[&str]) -> Result<Parts, ImageError> {
        let watch = &self.watch;
        let agent = agent::read(&self.config.agent)?;
        watch.stage(&format!("package lists of {}", suite.name()), 0.02)?;
        let apt = Apt::open(self.cache(), suite, &self.mirror()?, watch)?;
        let kernel = apt.resolve("linux-image-cloud-amd64", "linux-image-", watch)?;
        watch.stage(&format!("download {kernel}"), 0.05)?;
        let wanted: Vec<&str> = std::iter::once(kernel.as_str())
            .chain(packages.iter().copied())
            .collect();
        let mut debs = apt.download(&wanted, watch)?;
        watch.stage("extract the kernel", 0.1)?;
        let kernel_deb = debs.remove(0);
        let kernel = KernelFiles::from_package(self.cache(), &kernel_deb, watch)?;
        Ok(Parts {
            suite,
            kernel,
            agent,
            debs,
        })
    }

    /// Puts the kernel, and the initramfs of an image with a disk, into a staging directory.
    pub(crate) fn place_boot_files(
        &self,
        parts: &Parts,
        staging: &TempDir,
        more_modules: &[&str],
    ) -> Result<(), ImageError> {
        self.place_kernel(parts, staging)?;
        let modules = parts
            .kernel
            .modules(&[&GUEST_MODULES, more_modules].concat(), &self.watch)?;
        let path = staging.path().join(INITRD_FILE);
        Initramfs::write_for_disk(&path, &parts.agent, &modules)
    }

    pub(crate) fn place_kernel(&self, parts: &Parts, staging: &TempDir) -> Result<(), ImageError> {
        let (from, to) = (parts.kernel.vmlinux(), staging.path().join(KERNEL_FILE));
        // Images of one kernel share its file where the cache is on the same file system.
        if fs::hard_link(&from, &to).is_ok() {
            return Ok(());
        }
        fs::copy(&from, &to)
            .map(drop)
            .map_err(ImageError::file("copy the kernel to", to))
    }

    /// Writes the manifest and gives the image its name.
    pub(crate) fn publish(
        &self,
        staging: TempDir,
        parts: &Parts,
        outcome: &Outcome<'_>,
    ) -> Result<Image, ImageError> {
        self.watch.stage("publish", 0.98)?;
        let release = parts.kernel.release.clone();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            name: outcome.name.to_owned(),
            kind: outcome.kind,
            suite: parts.suite.name().to_owned(),
            kernel: KERNEL_FILE.to_owned(),
            initrd: Some(INITRD_FILE.to_owned()),
            disk: outcome.disk_bytes.map(|_| DISK_FILE.to_owned()),
            disk_format: DiskFormat::Raw,
            disk_bytes: outcome.disk_bytes.unwrap_or(0),
            cmdline: command_line(&release, &outcome.cmdline),
            arch: "x86_64".to_owned(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            min_memory: outcome.min_memory,
            agent: outcome.agent,
            recipe_hash: recipe_hash(parts, outcome),
            kernel_release: release,
        };
        let image = self.store.publish(staging, &manifest)?;
        self.watch.stage("done", 1.0)?;
        Ok(image)
    }
}

fn recipe_hash(parts: &Parts, outcome: &Outcome<'_>) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(RECIPES.as_bytes());
    add(parts.suite.name().as_bytes());
    add(parts.kernel.package.as_bytes());
    add(&parts.agent);
    for deb in &parts.debs {
        add(deb
            .file_name()
            .map(|n| n.as_encoded_bytes())
            .unwrap_or_default());
    }
    add(outcome.cmdline.as_bytes());
    outcome
        .inputs
        .iter()
        .for_each(|input| add(input.as_bytes()));
    hex(&hash.finalize())
}

/// Returns bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
