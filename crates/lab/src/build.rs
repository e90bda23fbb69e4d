//! Builds the lab's files from Debian packages and keeps them in a cache.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FlockOperation, flock};

use crate::error::BuildError;
use crate::kernel;
use crate::recipe::{EMULATOR_PACKAGE, EMULATOR_SUITE, LAB_INIT, Recipe, default_directory};
use crate::tools;

const PACK_DISK: &str = include_str!("../guest/pack-disk");

/// Programs that a build needs beyond those of a run.
const BUILD_TOOLS: [&str; 6] = ["mmdebstrap", "mkfs.ext4", "tar", "xz", "zstd", "install"];

/// The lab's files, built and ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lab {
    pub(crate) disk: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) emulator: PathBuf,
    pub(crate) runs: PathBuf,
}

impl Lab {
    /// Opens the lab in the default cache directory, building it first where it is missing.
    pub fn ensure() -> Result<Self, BuildError> {
        let recipe = Recipe::from_environment().map_err(BuildError::Spec)?;
        Self::ensure_in(&default_directory(), &recipe)
    }

    /// Opens the lab in `directory`, building it first where it is missing.
    ///
    /// Callers at the same time wait for one build.
    pub fn ensure_in(directory: &Path, recipe: &Recipe) -> Result<Self, BuildError> {
        let directory = &absolute(directory)?;
        match Self::open(directory, recipe) {
            Some(lab) => Ok(lab),
            None => Self::build_locked(directory, recipe, false),
        }
    }

    /// Builds the lab in `directory` even where it exists.
    pub fn rebuild_in(directory: &Path, recipe: &Recipe) -> Result<Self, BuildError> {
        Self::build_locked(&absolute(directory)?, recipe, true)
    }

    /// Returns the directory with the lab's files.
    pub fn directory(&self) -> &Path {
        self.disk.parent().expect("the disk is in a directory")
    }

    /// Opens the lab in `directory` where it is built.
    pub fn open(directory: &Path, recipe: &Recipe) -> Option<Self> {
        let directory = std::path::absolute(directory).ok()?;
        let home = directory.join(recipe.key());
        let lab = Self::at(&directory, &home);
        home.is_dir().then_some(lab)
    }

    fn at(directory: &Path, home: &Path) -> Self {
        Self {
            disk: home.join("disk.ext4"),
            kernel: home.join("kernel"),
            initramfs: home.join("initramfs"),
            emulator: home.join("emulator"),
            runs: directory.join("runs"),
        }
    }

    fn build_locked(directory: &Path, recipe: &Recipe, force: bool) -> Result<Self, BuildError> {
        for tool in BUILD_TOOLS {
            tools::find(tool)?;
        }
        fs::create_dir_all(directory).map_err(|e| file_error("create", directory, e))?;
        let lock_path = directory.join("build.lock");
        let lock = File::create(&lock_path).map_err(|e| file_error("create", &lock_path, e))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| file_error("lock", &lock_path, e.into()))?;
        if !force && let Some(lab) = Self::open(directory, recipe) {
            return Ok(lab);
        }
        let home = directory.join(recipe.key());
        remove_leftovers(directory);
        let work = tempfile::Builder::new()
            .prefix(LEFTOVER_PREFIX)
            .tempdir_in(directory)
            .map_err(|e| file_error("create a directory in", directory, e))?;
        let files = work.path().join("files");
        fs::create_dir(&files).map_err(|e| file_error("create", &files, e))?;
        build_files(work.path(), &files, recipe)?;
        if home.exists() {
            let old = work.path().join("old");
            fs::rename(&home, &old).map_err(|e| file_error("move away", &home, e))?;
        }
        fs::rename(&files, &home).map_err(|e| file_error("publish", &home, e))?;
        Ok(Self::at(directory, &home))
    }
}

fn absolute(directory: &Path) -> Result<PathBuf, BuildError> {
    std::path::absolute(directory).map_err(|e| file_error("find", directory, e))
}

/// Start of the names of directories that builds work in.
const LEFTOVER_PREFIX: &str = "build-";

/// Removes what interrupted builds left; the caller holds the build lock.
fn remove_leftovers(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(LEFTOVER_PREFIX) && entry.path().is_dir() {
            // What cannot be removed is only in the way of nobody.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes the lab's files in `files`, with `work` as scratch space.
fn build_files(work: &Path, files: &Path, recipe: &Recipe) -> Result<(), BuildError> {
    let emulator = files.join("emulator");
    thread::scope(|scope| {
        let fetch = scope.spawn(|| fetch_emulator(work, &emulator));
        let root = make_disk(work, &files.join("disk.ext4"), recipe)?;
        pick_kernel(&root, files, recipe)?;
        fetch.join().expect("fetching does not panic")
    })
}

/// Makes the root disk and returns the directory of its unpacked system.
fn make_disk(work: &Path, disk: &Path, recipe: &Recipe) -> Result<PathBuf, BuildError> {
    let tar = work.join("system.tar");
    bootstrap(
        work,
        "system.tar",
        "minbase",
        recipe.suite(),
        recipe.packages(),
    )?;
    for (name, content) in [("pack-disk", PACK_DISK), ("lab-init", LAB_INIT)] {
        let path = work.join(name);
        fs::write(&path, content).map_err(|e| file_error("write", &path, e))?;
    }
    let root = work.join("root");
    let pack: [OsString; 7] = [
        "sh".into(),
        work.join("pack-disk").into(),
        tar.clone().into(),
        root.clone().into(),
        work.join("lab-init").into(),
        disk.into(),
        recipe.disk_bytes().to_string().into(),
    ];
    if rustix::process::geteuid().is_root() {
        tools::run("sh", &pack[1..], work)?;
    } else {
        tools::run("fakeroot", &pack, work)?;
    }
    fs::remove_file(&tar).map_err(|e| file_error("remove", &tar, e))?;
    Ok(root)
}

/// Writes the kernel and the initramfs, taken from the unpacked system `root`.
fn pick_kernel(root: &Path, files: &Path, recipe: &Recipe) -> Result<(), BuildError> {
    let version = kernel::version(root, recipe)?;
    let image = root.join("boot").join(format!("vmlinuz-{version}"));
    let bz_image = fs::read(&image).map_err(|e| file_error("read", &image, e))?;
    let initramfs = kernel::initramfs(root, &version, recipe)?;
    for (name, content) in [
        ("kernel", kernel::image(&bz_image)?),
        ("initramfs", initramfs),
    ] {
        let path = files.join(name);
        fs::write(&path, content).map_err(|e| file_error("write", &path, e))?;
    }
    Ok(())
}

/// Unpacks QEMU with its libraries and firmware into `emulator`; it is run in place.
fn fetch_emulator(work: &Path, emulator: &Path) -> Result<(), BuildError> {
    bootstrap(
        work,
        "emulator.tar",
        "extract",
        EMULATOR_SUITE,
        &[EMULATOR_PACKAGE],
    )?;
    fs::create_dir(emulator).map_err(|e| file_error("create", emulator, e))?;
    let options = [
        "-xf",
        "../../emulator.tar",
        "--no-same-owner",
        "--wildcards",
    ];
    let parts = [
        "./usr/bin/qemu-system-x86_64",
        "./usr/lib/x86_64-linux-gnu/*.so*",
        "./usr/lib64/*",
        "./usr/share/qemu/*.bin",
        "./usr/share/seabios/*.bin",
    ];
    tools::run("tar", &[&options[..], &parts[..]].concat(), emulator)?;
    let tar = work.join("emulator.tar");
    fs::remove_file(&tar).map_err(|e| file_error("remove", &tar, e))
}

/// Has mmdebstrap make the archive `tar` in `work` of packages and what they need.
fn bootstrap(
    work: &Path,
    tar: &str,
    variant: &str,
    suite: &str,
    packages: &[&str],
) -> Result<(), BuildError> {
    let include = format!("--include={}", packages.join(","));
    let variant = format!("--variant={variant}");
    let excluded = ["doc", "man", "locale", "info"]
        .map(|directory| format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
    let mut arguments = vec!["--quiet", "--format=tar", &variant, &include];
    arguments.extend(excluded.iter().map(String::as_str));
    // The lab's own initramfs replaces Debian's, which takes long to make.
    arguments.push("--dpkgopt=path-exclude=/etc/kernel/postinst.d/initramfs-tools");
    arguments.extend(["--aptopt=Apt::Install-Recommends \"false\"", suite, tar]);
    tools::run("mmdebstrap", &arguments, work)?;
    Ok(())
}

/// Makes an error of a failed file operation.
pub(crate) fn file_error(action: &'static str, path: &Path, source: io::Error) -> BuildError {
    BuildError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
