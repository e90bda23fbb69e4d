//! Debian's cloud kernel: vmlinux and modules taken out of the package, once for each version.
//!
//! ```text
//! <cache>/kernels/<package file name>/vmlinux
//!                                    /release
//!                                    /modules/lib/modules/<release>/…
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::apt;
use crate::kernel_module::{self, Module};
use crate::tool::Tool;
use crate::{ImageError, Watch};

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Suite {
    /// Debian 12, kernel 6.1.
    Bookworm,
    /// Debian 13, kernel 6.12.
    #[default]
    Trixie,
}

impl Suite {
    /// All that images can be made of.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// Returns the release's code name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

impl std::str::FromStr for Suite {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(" or ");
                ImageError::BadParameter {
                    field: "suite",
                    problem: format!("{text:?} is not supported: use {known}"),
                }
            })
    }
}

/// What every guest needs: disk, network, randomness, memory reporting, vsock, power button.
pub(crate) const GUEST_MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
];

/// What [`KernelFiles::install_modules`] takes of a kernel's modules: networks and packet filters,
/// file systems, block devices, and what those need. Drivers of devices that no guest has stay out.
const MODULE_PARTS: [&str; 11] = [
    "kernel/arch",
    "kernel/block",
    "kernel/crypto",
    "kernel/drivers/block",
    "kernel/drivers/net",
    "kernel/fs",
    "kernel/lib",
    "kernel/net",
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.order",
];

/// A kernel in the cache.
#[derive(Debug)]
pub(crate) struct KernelFiles {
    dir: PathBuf,
    pub(crate) release: String,
    /// File name of the package, which names the version.
    pub(crate) package: String,
}

impl KernelFiles {
    /// Finds the kernel of a downloaded package in the cache, or extracts it.
    pub(crate) fn from_package(
        cache: &Path,
        deb: &Path,
        watch: &Watch,
    ) -> Result<Self, ImageError> {
        let package = deb
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let parent = cache.join("kernels");
        let dir = parent.join(&package);
        if !dir.join("release").exists() {
            fs::create_dir_all(&parent).map_err(ImageError::file("make directory", &parent))?;
            let work = tempfile::Builder::new()
                .prefix(".unpack-")
                .tempdir_in(&parent)
                .map_err(ImageError::file("make a directory in", &parent))?;
            extract(deb, &package, work.path(), watch)?;
            let result = work.path().join("kernel");
            match fs::rename(&result, &dir) {
                // Another build may have been quicker with the same content.
                Err(_) if dir.join("release").exists() => {}
                other => other.map_err(ImageError::file("publish", &dir))?,
            }
        }
        let path = dir.join("release");
        let release = fs::read_to_string(&path).map_err(ImageError::file("read", path))?;
        Ok(Self {
            dir,
            release,
            package,
        })
    }

    /// Path of the extracted kernel.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Puts the modules that programs ask for into a system with `kmod`, and has it index them.
    pub(crate) fn install_modules(&self, root: &Path, watch: &Watch) -> Result<(), ImageError> {
        let from = self.dir.join("modules").join(&self.release);
        let to = root.join("usr/lib/modules").join(&self.release);
        for part in MODULE_PARTS {
            watch.check()?;
            copy_tree(&from.join(part), &to.join(part))
                .map_err(ImageError::file("copy modules from", from.join(part)))?;
        }
        Tool::new("chroot", "coreutils")
            .arg(root)
            .args(["/usr/sbin/depmod", &self.release])
            .output(watch)
            .map(drop)
    }

    /// Returns the named modules and all that they depend on, each after what it needs.
    /// Modules that this kernel has built in, or lacks, are left out.
    pub(crate) fn modules(
        &self,
        wanted: &[&str],
        watch: &Watch,
    ) -> Result<Vec<Module>, ImageError> {
        let tree = self.dir.join("modules");
        let mut files = BTreeMap::new();
        find_modules(&tree, &mut files).map_err(ImageError::file("read", &tree))?;
        let mut chosen = Chosen {
            files,
            seen: BTreeSet::new(),
            ordered: Vec::new(),
        };
        for name in wanted {
            chosen.add(name, watch)?;
        }
        Ok(chosen.ordered)
    }
}

struct Chosen {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Chosen {
    fn add(&mut self, name: &str, watch: &Watch) -> Result<(), ImageError> {
        let name = name.replace('-', "_");
        let Some(path) = self.files.get(&name).cloned() else {
            return Ok(());
        };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let bytes = read_module(&path, watch)?;
        let module = kernel_module::parse(&name, bytes).map_err(|problem| ImageError::Package {
            package: path.display().to_string(),
            problem,
        })?;
        for dependency in &module.depends {
            self.add(dependency, watch)?;
        }
        self.ordered.push(module);
        Ok(())
    }
}

/// Copies a directory or a file; what is not there is left out.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy_tree(&from.join(&name), &to.join(&name))?;
        }
    } else if from.is_file() {
        fs::copy(from, to)?;
    }
    Ok(())
}

fn find_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
            continue;
        }
        let file = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some((name, rest)) = file.split_once(".ko")
            && (rest.is_empty() || rest.starts_with('.'))
        {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read_module(path: &Path, watch: &Watch) -> Result<Vec<u8>, ImageError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Tool::new("xz", "xz-utils")
            .args(["-dc", "--"])
            .arg(path)
            .output(watch),
        Some("zst") => Tool::new("zstd", "zstd")
            .args(["-qdc", "--"])
            .arg(path)
            .output(watch),
        _ => fs::read(path).map_err(ImageError::file("read", path)),
    }
}

/// Fills `work/kernel` from a package.
fn extract(deb: &Path, package: &str, work: &Path, watch: &Watch) -> Result<(), ImageError> {
    let unpacked = work.join("package");
    apt::unpack(deb, &unpacked, watch)?;
    let lacks = |what: &str| ImageError::Package {
        package: package.into(),
        problem: format!("has no {what}"),
    };
    let boot_dir = unpacked.join("boot");
    let image = fs::read_dir(&boot_dir)
        .map_err(ImageError::file("read", &boot_dir))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .ok_or_else(|| lacks("boot/vmlinuz-…"))?;
    let file_name = image.file_name().to_string_lossy().into_owned();
    let release = file_name.trim_start_matches("vmlinuz-").to_owned();
    watch.check()?;
    let bytes = fs::read(image.path()).map_err(ImageError::file("read", image.path()))?;
    let vmlinux = boot::extract_vmlinux(&bytes).map_err(|source| ImageError::Kernel {
        package: package.into(),
        source,
    })?;
    let result = work.join("kernel");
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|dir| unpacked.join(dir))
        .find(|dir| dir.is_dir())
        .ok_or_else(|| lacks("lib/modules"))?;
    fs::create_dir(&result).map_err(ImageError::file("make directory", &result))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = result.join(name);
        fs::write(&path, bytes).map_err(ImageError::file("write", path))
    };
    write("vmlinux", &vmlinux)?;
    fs::rename(&modules, result.join("modules")).map_err(ImageError::file("move", modules))?;
    write("release", release.as_bytes())
}
