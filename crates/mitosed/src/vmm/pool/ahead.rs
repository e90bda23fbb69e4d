//! Shells that build what a clone needs before anybody asks for one.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use vm_spec::VmSpec;
use vmm_protocol::{Command, Fd, Prepare};

use super::{Inner, Pool, Shell};
use crate::vmm::{Link, LinkError, Pending};

/// Shells of the pool that have built a VM without state ahead, at most: each is some hundred KiB of
/// kernel memory.
const BUILT_MAX: u64 = 4;
/// Guest RAM of all of them together at most, where it is more than one, bytes.
const BUILT_BYTES_MAX: u64 = 8 << 30;
/// Longest time for that.
const BUILD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a shell builds of a clone before the clone's state is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// On KVM, else on the software engine.
    pub kvm: bool,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u8,
}

impl Build {
    /// What a machine like `spec` needs.
    pub fn of(spec: &VmSpec, kvm: bool) -> Self {
        Self {
            kvm,
            memory_bytes: spec.memory_bytes,
            cpus: spec.cpus,
        }
    }

    /// How many shells build it ahead: where KVM keeps tables of its own of guest pages, each takes
    /// 1/500 of the guest's RAM.
    fn count_max(self) -> usize {
        (BUILT_BYTES_MAX / self.memory_bytes.max(1)).clamp(1, BUILT_MAX) as usize
    }

    /// Tells a shell to build it, with an open `/dev/kvm` where it is for KVM.
    pub fn order<F: AsFd>(self, link: &Arc<Link>, kvm: Option<&F>) -> Result<Pending, LinkError> {
        let order = Prepare {
            kvm: kvm.map(|_| Fd(0)),
            memory_bytes: self.memory_bytes,
            cpus: self.cpus,
        };
        let fds = Vec::from_iter(kvm.map(AsFd::as_fd));
        link.request(Command::Prepare(order), &fds)
    }
}

impl Inner {
    /// Number of the shell that is to build ahead next, if any: rather one that built something
    /// else before.
    pub(super) fn to_build(&self) -> Option<usize> {
        let expected = self.expected?;
        let built = |shell: &Shell| shell.built == Some(expected);
        if self.ready.iter().filter(|shell| built(shell)).count() >= expected.count_max() {
            return None;
        }
        let other = |shell: &Shell| shell.built.is_some() && !built(shell);
        let old = self.ready.iter().position(other);
        old.or_else(|| self.ready.iter().position(|shell| shell.built.is_none()))
    }
}

impl Pool {
    /// Has shells build ahead what a clone of a VM needs that runs now.
    pub fn expect(&self, build: Build) {
        if build.kvm && !vms_may_wait() {
            return;
        }
        let mut inner = self.lock();
        if inner.expected.replace(build) != Some(build) {
            drop(inner);
            self.changed.notify_all();
        }
    }

    /// Has a shell build ahead what is expected; returns whether there was one to do it.
    pub(super) fn build_one(&self) -> bool {
        let (mut shell, build) = {
            let mut inner = self.lock();
            let (Some(build), Some(index)) = (inner.expected, inner.to_build()) else {
                return false;
            };
            // Nobody else may take it meanwhile.
            match inner.ready.remove(index) {
                Some(shell) => (shell, build),
                None => return false,
            }
        };
        let built = self.have_built(&shell, build);
        shell.built = built.is_ok().then_some(build);
        let usable = !shell.link.is_closed() && !matches!(&built, Err(error) if is_silence(error));
        let mut inner = self.lock();
        if let Err(error) = built {
            // The clone that needs it will tell what is wrong.
            tracing::debug!("a shell cannot build ahead: {error:#}");
            // Somebody may expect something else by now.
            if inner.expected == Some(build) {
                inner.expected = None;
            }
        }
        if usable && !inner.stopped {
            inner.ready.push_front(shell);
            return true;
        }
        inner.failures += u32::from(!usable);
        let stopped = inner.stopped;
        drop(inner);
        self.discard(shell);
        if stopped {
            self.groups.iter().for_each(|groups| groups.remove_root());
        }
        true
    }

    fn have_built(&self, shell: &Shell, build: Build) -> anyhow::Result<()> {
        let device = &self.config.kvm_device;
        let kvm = build
            .kvm
            .then(|| File::options().read(true).write(true).open(device));
        let pending = build.order(&shell.link, kvm.transpose()?.as_ref())?;
        pending.wait(BUILD_TIMEOUT)?;
        Ok(())
    }
}

/// Says whether a shell is of no use any more: it gave no answer, not even that it failed.
fn is_silence(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<LinkError>() {
        Some(LinkError::Refused { .. }) | None => false,
        Some(_) => true,
    }
}

/// Says whether a VM of KVM may wait for its state. Before Linux 6.7 KVM takes a time-stamp counter
/// that is within a second of the one that the new VM has had since it was made for an attempt to make
/// both equal, and keeps its own: the counter of a source that started just before the shell built.
fn vms_may_wait() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        kernel_version(&release).is_some_and(|version| version >= (6, 7))
    })
}

/// Major and minor number of a kernel's release.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(kernel_version("6.1.0-39-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("7"), None);
        assert_eq!(kernel_version(""), None);
    }

    #[test]
    fn large_machines_are_built_once() {
        let count = |memory_bytes| {
            let build = Build {
                kvm: true,
                memory_bytes,
                cpus: 1,
            };
            build.count_max()
        };
        assert_eq!(count(0), 4);
        assert_eq!(count(2 << 30), 4);
        assert_eq!(count(4 << 30), 2);
        assert_eq!(count(64 << 30), 1);
    }
}
