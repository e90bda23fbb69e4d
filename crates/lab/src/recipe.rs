//! What the lab is made of, and where its files are kept.

use std::env;
use std::path::PathBuf;

use crate::error::SpecError;

/// The Debian suite used unless another is asked for.
///
/// Its 6.12 kernel has everything that the system can make use of (`PAGEMAP_SCAN`, Landlock
/// scopes); bookworm's 6.1 works too.
pub const DEFAULT_SUITE: &str = "trixie";

/// First program in the lab, in the initramfs.
pub(crate) const INITRAMFS_INIT: &str = include_str!("../guest/initramfs-init");
/// PID 1 on the lab's root disk.
pub(crate) const LAB_INIT: &str = include_str!("../guest/lab-init");

/// Room of the root disk, most of it free; the file is sparse.
const DISK_BYTES: u64 = 24 << 30;
/// Changes whenever the code around the recipe produces different files from the same recipe.
const BUILDER_VERSION: u32 = 3;

const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "busybox-static",
    "ca-certificates",
    "curl",
    "dnsmasq-base",
    "e2fsprogs",
    "fio",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "openssh-client",
    "procps",
    "python3",
    "qemu-utils",
    "redis-tools",
    "strace",
    "xz-utils",
    "zstd",
];

/// Debian suite of the emulator, whatever the lab's own suite.
///
/// QEMU before 8.1 runs stale code now and then after a guest kernel with several CPUs has patched
/// itself, which ends in an "int3" oops in one boot of twenty-five.
pub(crate) const EMULATOR_SUITE: &str = "trixie";
pub(crate) const EMULATOR_PACKAGE: &str = "qemu-system-x86";

/// Modules that the root disk and the ports need, by name; what they need is in `modules.dep`.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];
/// Modules that are loaded while the rest of the boot goes on.
const KVM_MODULES: &[&str] = &["kvm-amd", "tun"];

/// Everything that decides the content of the lab's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    suite: String,
}

impl Recipe {
    /// Makes the recipe for a Debian suite, such as `trixie`.
    pub fn new(suite: &str) -> Result<Self, SpecError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if suite.is_empty() || suite.starts_with('-') || !suite.bytes().all(plain) {
            return Err(SpecError::Suite {
                suite: suite.to_owned(),
            });
        }
        Ok(Self {
            suite: suite.to_owned(),
        })
    }

    /// Makes the recipe named by `MITOSE_LAB_SUITE`, else the default.
    pub fn from_environment() -> Result<Self, SpecError> {
        Self::new(&env::var("MITOSE_LAB_SUITE").unwrap_or_else(|_| DEFAULT_SUITE.to_owned()))
    }

    /// Returns the Debian suite.
    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// Returns the packages of the root disk.
    pub(crate) fn packages(&self) -> &'static [&'static str] {
        PACKAGES
    }

    /// Returns the modules that the initramfs loads, in groups named by their list's file.
    pub(crate) fn modules(&self) -> [(&'static str, &'static [&'static str]); 2] {
        [("disk-order", DISK_MODULES), ("kvm-order", KVM_MODULES)]
    }

    /// Returns the size of the root disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        DISK_BYTES
    }

    /// Returns the name of the directory that holds the built files: suite and recipe's hash.
    pub fn key(&self) -> String {
        let text = format!(
            "{BUILDER_VERSION}\0{EMULATOR_SUITE}\0{EMULATOR_PACKAGE}\0{}\0{}\0{:?}\0{DISK_BYTES}\0{INITRAMFS_INIT}\0{LAB_INIT}",
            self.suite,
            PACKAGES.join(" "),
            self.modules(),
        );
        format!("{}-{:016x}", self.suite, fnv1a(text.as_bytes()))
    }
}

/// Returns the cache directory: `$MITOSE_LAB_DIR`, else `mitose/lab` in the user's cache.
pub fn default_directory() -> PathBuf {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = set("MITOSE_LAB_DIR") {
        return directory;
    }
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir);
    cache.join("mitose").join("lab")
}

/// FNV-1a with 64 bits: stable across compilers, which the standard hasher is not.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_the_suite_and_is_stable() {
        let key = |suite| Recipe::new(suite).unwrap().key();
        assert_eq!(key("trixie"), key("trixie"));
        assert_ne!(
            key("trixie")["trixie".len()..],
            key("bookworm")["bookworm".len()..]
        );
    }

    #[test]
    fn suite_cannot_leave_the_cache_directory() {
        for bad in ["", "../x", "a/b", "-x", "A B"] {
            assert!(
                matches!(Recipe::new(bad), Err(SpecError::Suite { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn hash_matches_the_published_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
