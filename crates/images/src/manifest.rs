//! `manifest.json`: what an image is and how it is booted.

use serde::{Deserialize, Serialize};

/// Version of the manifest's form.
pub(crate) const MANIFEST_VERSION: u32 = 1;

/// Kernel file of every image.
pub(crate) const KERNEL_FILE: &str = "vmlinux";

/// Initramfs file.
pub(crate) const INITRD_FILE: &str = "initrd.cpio";

/// Disk file.
pub(crate) const DISK_FILE: &str = "disk.raw";

/// Words that make a Debian kernel start fast in a virtual machine without legacy devices and PCI.
const FAST_START: &str = "console=ttyS0 quiet reboot=t panic=-1 nokaslr \
                          cryptomgr.notests \
                          initcall_blacklist=amd_pstate_init,trace_eval_init,load_system_certificate_list";

/// Description of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Form of this description.
    pub version: u32,
    /// Name, equal to that of the directory.
    pub name: String,
    /// Which recipe made it.
    pub kind: ImageKind,
    /// Debian suite that kernel and packages are from.
    pub suite: String,
    /// Kernel release (`6.12.107+deb13-cloud-amd64`).
    pub kernel_release: String,
    /// File name of the kernel.
    pub kernel: String,
    /// File name of the initramfs.
    pub initrd: Option<String>,
    /// File name of the disk.
    pub disk: Option<String>,
    /// Format of the disk.
    pub disk_format: DiskFormat,
    /// Size of the disk that a guest sees, in bytes; 0 without a disk.
    pub disk_bytes: u64,
    /// Kernel command line. `{machine_id}` in it is the VM's machine id.
    pub cmdline: String,
    /// Always `x86_64`.
    pub arch: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Least guest memory that it boots with, in bytes.
    pub min_memory: u64,
    /// Whether an agent answers in it.
    pub agent: bool,
    /// SHA-256 of everything that decided its content: equal hashes are equal images.
    pub recipe_hash: String,
}

/// Which recipe an image is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// Kernel, busybox and agent in memory.
    Tiny,
    /// Debian system on a disk.
    Debian,
    /// Disk or container image from elsewhere.
    Imported,
}

/// Format of an image's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The guest's bytes one by one, sparse.
    Raw,
}

/// Returns the recommended kernel command line for a kernel release, with further words.
pub(crate) fn command_line(kernel_release: &str, more: &str) -> String {
    let mut line = FAST_START.split_whitespace().collect::<Vec<_>>().join(" ");
    // From 6.8 on the jitter random source tests itself at start; 6.1 does so on first use.
    if !kernel_release.starts_with("6.1.") {
        line.push_str(",jent_mod_init");
    }
    if !more.is_empty() {
        line.push(' ');
        line.push_str(more);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_fit_the_kernel() {
        let new = command_line("6.12.107+deb13-cloud-amd64", "root=/dev/vda");
        assert!(
            new.ends_with("load_system_certificate_list,jent_mod_init root=/dev/vda"),
            "{new}"
        );
        assert!(!new.contains("  "));
        assert!(command_line("6.1.0-50-cloud-amd64", "").ends_with("certificate_list"));
    }
}
