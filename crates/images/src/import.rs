//! `import`: an image out of somebody else's disk or container archive.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agent_protocol::guest_paths;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::builder::{Outcome, Parts};
use crate::debian::{SYSTEMD_MACHINE_ID, SYSTEMD_MODULES, install_agent, require_root};
use crate::disk::{self, FileKind, RootPlace};
use crate::kernel::Suite;
use crate::manifest::DISK_FILE;
use crate::oci::{self, ContainerConfig};
use crate::tool::Tool;
use crate::{Builder, Image, ImageError, ImageKind, ext4};

/// Least memory that an imported image is expected to boot with, in bytes.
const MIN_MEMORY: u64 = 256 << 20;

/// What stock cloud images mount while they start, besides their ext root: the EFI partition, with
/// the character sets that FAT asks for; cloud-init's seed, which is FAT or ISO 9660; the snaps
/// that Ubuntu's first start waits for. The disk has no modules of this kernel, so what is not
/// loaded before the root file system never is, and systemd stops in emergency mode when a mount
/// of /etc/fstab fails. About 900 KB in all. xfs and btrfs, 5 MB each, stay out, as does what no
/// start needs.
const STOCK_MODULES: [&str; 8] = [
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "nls_utf8",
    "isofs",
    "squashfs",
    "loop",
];

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Disk in raw or qcow2 form, or archive of a container image (`docker save`, OCI layout).
    pub file: PathBuf,
    /// Name of the image.
    pub name: String,
    /// Suite that the kernel is from.
    pub suite: Suite,
    /// Size of a container image's disk in bytes; chosen by its content when absent.
    pub disk_bytes: Option<u64>,
    /// Partition with the root file system of a disk, counted from 1 as Linux does; found by its
    /// content when absent.
    pub root_partition: Option<u32>,
}

impl Builder {
    /// Imports a file. Container images need root, since file owners are kept.
    pub fn import(&self, request: &ImportRequest) -> Result<Image, ImageError> {
        self.store().check_free(&request.name)?;
        let file = &request.file;
        let open = File::open(file).map_err(ImageError::file("open", file))?;
        let meta = open.metadata().map_err(ImageError::file("read", file))?;
        let refuse = |problem: &str| refused(file, problem);
        if !meta.is_file() {
            return Err(refuse("it is not a regular file"));
        }
        let kind = disk::detect(&open).map_err(ImageError::file("read", file))?;
        // Everything that can be refused is refused before packages are downloaded.
        if kind == FileKind::Archive && request.root_partition.is_some() {
            return Err(refuse(
                "it is a container archive, which has no partitions: leave out the root partition",
            ));
        }
        match kind {
            FileKind::Foreign(name) => Err(refuse(&format!(
                "it is a {name} file: convert it first with qemu-img convert -O qcow2"
            ))),
            FileKind::Packed(name) => Err(refuse(&format!(
                "it is compressed with {name}: unpack it first; container archives may be \
                 compressed with gzip or zstd, disks not"
            ))),
            FileKind::Raw if meta.len() == 0 => Err(refuse("it is empty")),
            FileKind::Raw if meta.len() % 512 != 0 => Err(refuse(
                "it is neither qcow2, a container archive nor a raw disk, whose size would be a \
                 multiple of 512 bytes",
            )),
            FileKind::Raw => self.import_disk(request, "raw"),
            FileKind::Qcow2 => {
                disk::check_qcow2(&open).map_err(|problem| refuse(&problem))?;
                disk_layers::check_whole(&open).map_err(|error| refuse(&reason_of(&error)))?;
                self.import_disk(request, "qcow2")
            }
            FileKind::Archive => self.import_archive(request),
        }
    }

    fn import_disk(&self, request: &ImportRequest, format: &str) -> Result<Image, ImageError> {
        let staging = self.store().staging()?;
        let disk_path = staging.path().join(DISK_FILE);
        self.watch.stage("copy the disk", 0.02)?;
        // The format is named, so that a raw disk whose guest wrote a qcow2 header stays raw.
        Tool::new("qemu-img", "qemu-utils")
            .args(["convert", "-f", format, "-O", "raw", "--"])
            .arg(absolute(&request.file)?)
            .arg(&disk_path)
            .output(&self.watch)?;
        let disk = File::open(&disk_path).map_err(ImageError::file("open", &disk_path))?;
        let bytes = disk
            .metadata()
            .map_err(ImageError::file("read", &disk_path))?
            .len();
        let root = disk::find_root(&disk, request.root_partition);
        let root = match root.map_err(ImageError::file("read", &disk_path))? {
            RootPlace::WholeDisk => "/dev/vda".to_owned(),
            RootPlace::Partition(number) => format!("/dev/vda{number}"),
            RootPlace::Nowhere(problem) => return Err(refused(&request.file, &problem)),
        };
        let parts = self.parts(request.suite, &[])?;
        self.place_boot_files(&parts, &staging, &disk_modules())?;
        let cmdline =
            format!("root={root} rw systemd.show_status=0 net.ifnames=0 {SYSTEMD_MACHINE_ID}");
        self.publish_import(staging, &parts, request, cmdline, bytes)
    }

    fn import_archive(&self, request: &ImportRequest) -> Result<Image, ImageError> {
        require_root()?;
        let staging = self.store().staging()?;
        let root = tempfile::tempdir_in(staging.path())
            .map_err(ImageError::file("make a directory in", staging.path()))?;
        let set = fs::set_permissions(root.path(), Permissions::from_mode(0o755));
        set.map_err(ImageError::file("open up", root.path()))?;
        let config = oci::unpack(&request.file, root.path(), staging.path(), &self.watch)?;
        let parts = self.parts(request.suite, &[])?;
        self.place_boot_files(&parts, &staging, &[])?;
        self.watch.stage("set the system up", 0.8)?;
        set_up_container(root.path(), &request.name, &config, &parts.agent)
            .map_err(|error| set_up_error(&request.file, error))?;
        let bytes = ext4::disk_size(root.path(), request.disk_bytes)?;
        self.watch.stage("write the disk", 0.85)?;
        ext4::make(
            root.path(),
            &staging.path().join(DISK_FILE),
            bytes,
            &self.watch,
        )?;
        root.close()
            .map_err(ImageError::file("remove", staging.path()))?;
        let cmdline = format!(
            "root=/dev/vda rw rootflags=noatime init={}",
            guest_paths::AGENT
        );
        self.publish_import(staging, &parts, request, cmdline, bytes)
    }

    fn publish_import(
        &self,
        staging: TempDir,
        parts: &Parts,
        request: &ImportRequest,
        cmdline: String,
        bytes: u64,
    ) -> Result<Image, ImageError> {
        let meta = fs::metadata(&request.file).map_err(ImageError::file("read", &request.file))?;
        let changed = meta
            .modified()
            .ok()
            .and_then(|t| t.elapsed().ok())
            .unwrap_or_default();
        let outcome = Outcome {
            name: &request.name,
            kind: ImageKind::Imported,
            cmdline,
            disk_bytes: Some(bytes),
            min_memory: MIN_MEMORY,
            agent: true,
            inputs: vec![format!(
                "import {} {} {changed:?}",
                request.file.display(),
                meta.len()
            )],
        };
        self.publish(staging, parts, &outcome)
    }
}

/// Modules for the initramfs of an imported disk; those that a kernel lacks or has built in do not
/// matter.
fn disk_modules() -> Vec<&'static str> {
    [&SYSTEMD_MODULES[..], &STOCK_MODULES].concat()
}

pub(crate) fn refused(file: &Path, problem: &str) -> ImageError {
    ImageError::Refused {
        path: file.to_owned(),
        problem: problem.to_owned(),
    }
}

/// qemu-img takes `driver:` prefixes and leading dashes in names; an absolute path has neither.
fn absolute(file: &Path) -> Result<PathBuf, ImageError> {
    fs::canonicalize(file).map_err(ImageError::file("find", file))
}

/// Gives a container's files what a machine needs: the agent as process 1, which starts what the
/// container would have run.
fn set_up_container(
    root: &Path,
    name: &str,
    config: &ContainerConfig,
    agent: &[u8],
) -> io::Result<()> {
    let tree = oci::Tree::open(root)?;
    let write = |path: &str, bytes: &[u8], mode: u32| {
        tree.write(path, bytes, mode).map_err(|e| named(path, e))
    };
    for (dir, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("etc", 0o755),
        ("root", 0o700),
        ("var/tmp", 0o1777),
        ("usr/local/sbin", 0o755),
        ("etc/mitose", 0o755),
    ] {
        let made = tree.make_dir(Path::new(dir), mode);
        made.map_err(|e| named(&format!("/{dir}"), e))?;
    }
    let service = guest_paths::SERVICE;
    let start = config.start();
    if !start.argv.is_empty() {
        write(service, &serde_json::to_vec(&start)?, 0o644)?;
    }
    let env: String = config
        .environment()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    write(guest_paths::ENVIRONMENT, env.as_bytes(), 0o644)?;
    write("/etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
    write(
        "/etc/hosts",
        b"127.0.0.1\tlocalhost\n::1\tlocalhost\n",
        0o644,
    )?;
    write("/etc/resolv.conf", b"", 0o644)?;
    write("/etc/machine-id", b"", 0o644)?;
    write(guest_paths::AGENT, agent, 0o755)?;
    install_links(root, agent)
}

/// Adds a path in the image to an error; what is in the way of a directory is the image's fault.
fn named(path: &str, error: io::Error) -> io::Error {
    let loops = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    if !loops && error.kind() != ErrorKind::NotADirectory {
        return io::Error::new(error.kind(), format!("{path}: {error}"));
    }
    let problem = format!(
        "{path} cannot be made: the image has a file or a loop of links where a directory must be"
    );
    io::Error::new(ErrorKind::NotADirectory, problem)
}

fn set_up_error(file: &Path, error: io::Error) -> ImageError {
    match error.kind() {
        ErrorKind::NotADirectory => refused(file, &error.to_string()),
        _ => ImageError::file("set up the system of", file)(error),
    }
}

/// Uses the general installation only where the directories are real ones: a container may have
/// put links to the host's directories there.
fn install_links(root: &Path, agent: &[u8]) -> io::Result<()> {
    let real = |path: &str| fs::symlink_metadata(root.join(path)).is_ok_and(|m| m.is_dir());
    if [
        "usr",
        "usr/sbin",
        "usr/local",
        "usr/local/sbin",
        "etc",
        "etc/mitose",
    ]
    .into_iter()
    .all(real)
    {
        return install_agent(root, agent);
    }
    Ok(())
}

/// The causes of an error in one line.
fn reason_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::process::Uid;
    use rustix::thread::{
        CapabilitiesSecureBits, set_capabilities_secure_bits, set_thread_res_uid,
    };

    use super::*;
    use crate::kernel::KernelFiles;
    use crate::kernel_module::tests::elf;
    use crate::{BuilderConfig, Watch};

    #[test]
    fn an_imported_disk_has_the_modules_that_stock_images_mount_with() {
        let cache = tempfile::tempdir().unwrap();
        let kernel = cache.path().join("kernels/kernel.deb");
        let modules = kernel.join("modules/6.1/kernel/fs");
        fs::create_dir_all(&modules).unwrap();
        fs::write(kernel.join("release"), "6.1").unwrap();
        // Named as Debian's files are; the others of the list are not in this kernel.
        for (name, info) in [
            ("vfat", &b"depends=fat\0"[..]),
            ("fat", b""),
            ("nls_iso8859-1", b""),
            ("isofs", b""),
            ("xfs", b""),
        ] {
            fs::write(modules.join(format!("{name}.ko")), elf(info)).unwrap();
        }
        let watch = Watch::default();
        let kernel = KernelFiles::from_package(cache.path(), Path::new("kernel.deb"), &watch);
        let loaded = kernel.unwrap().modules(&disk_modules(), &watch).unwrap();
        let names: Vec<_> = loaded.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["fat", "vfat", "nls_iso8859_1", "isofs"]);
    }

    #[test]
    fn a_container_image_is_not_imported_without_root() {
        let dir = tempfile::tempdir().unwrap();
        let config = BuilderConfig {
            images: dir.path().join("images"),
            cache: dir.path().join("cache"),
            agent: dir.path().join("agent"),
            mirror: None,
        };
        let builder = Builder::new(config, Watch::default()).unwrap();
        let file = dir.path().join("image.tar");
        fs::write(&file, [&[b'x'; 257][..], b"ustar", &[0; 250]].concat()).unwrap();
        let request = ImportRequest {
            file,
            name: "container".into(),
            suite: Suite::default(),
            disk_bytes: None,
            root_partition: None,
        };
        let import = move || {
            // Only this thread becomes another user, who may still read the test's files.
            if rustix::process::geteuid().is_root() {
                let rights = CapabilitiesSecureBits::NO_SETUID_FIXUP;
                set_capabilities_secure_bits(rights).unwrap();
                set_thread_res_uid(None, Uid::from_raw(65534), None).unwrap();
            }
            builder.import(&request).unwrap_err().to_string()
        };
        let problem = std::thread::spawn(import).join().unwrap();
        assert!(problem.contains("needs root"), "{problem}");
    }

    #[test]
    fn files_and_loops_in_the_place_of_directories_are_named_by_the_archive() {
        let config = ContainerConfig::default();
        let set_up = |make: &dyn Fn(&Path)| {
            let root = tempfile::tempdir().unwrap();
            make(root.path());
            let set = set_up_container(root.path(), "x", &config, b"agent");
            let error = set.map_err(|e| set_up_error(Path::new("/tmp/image.tar"), e));
            (error.map_err(|e| e.to_string()), root)
        };
        for make in [
            (&|root: &Path| fs::write(root.join("etc"), "file").unwrap()) as &dyn Fn(&Path),
            &|root: &Path| symlink("etc", root.join("etc")).unwrap(),
        ] {
            let (result, root) = set_up(make);
            let problem = result.unwrap_err();
            for word in ["/tmp/image.tar", "/etc cannot be made", "loop of links"] {
                assert!(problem.contains(word), "{problem}");
            }
            assert!(
                !problem.contains(root.path().to_str().unwrap()),
                "{problem}"
            );
        }
        let (result, root) = set_up(&|_| {});
        result.unwrap();
        assert_eq!(fs::read(root.path().join("etc/hostname")).unwrap(), b"x\n");
    }
}
