//! Images: directories with a kernel, an initramfs and perhaps a disk, ready to be booted.
//!
//! ```text
//! <images>/<name>/manifest.json   what it is and how to boot it
//!                 vmlinux         kernel, extracted from its package
//!                 initrd.cpio     uncompressed initramfs with the agent and the needed modules
//!                 disk.raw        sparse disk; not for images that live in memory
//! ```
//!
//! Three recipes make them: [`Builder::tiny`] (kernel, busybox, agent), [`Builder::debian`] (a
//! Debian system on a disk) and [`Builder::import`] (somebody else's disk or container image).
//! An image appears under its name when it is complete and not before; a failed or cancelled
//! build leaves nothing.
//!
//! The work is done by Debian's own tools (`apt-get`, `dpkg-deb`, `mmdebstrap`, `mkfs.ext4`,
//! `qemu-img`, `xz`); a missing one is reported with its package's name. Calls block: run them on
//! a thread of their own and stop them with a [`CancelToken`].

#![forbid(unsafe_code)]

mod agent;
mod apt;
mod builder;
mod cpio;
mod debian;
mod disk;
mod error;
mod ext4;
mod import;
mod initramfs;
mod kernel;
mod kernel_module;
mod manifest;
mod mirror;
mod oci;
mod store;
mod tiny;
mod tool;
mod watch;

pub use builder::{Builder, BuilderConfig};
pub use debian::{DebianRecipe, InitSystem};
pub use error::ImageError;
pub use import::ImportRequest;
pub use kernel::Suite;
pub use manifest::{DiskFormat, ImageKind, Manifest};
pub use store::{Image, ImageStore};
pub use tiny::TinyRecipe;
pub use watch::{CancelGuard, CancelToken, Watch};
