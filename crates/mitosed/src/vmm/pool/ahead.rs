//! Shells that build what a clone needs before anybody asks for one.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
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
        let kvm = build.kvm.then(|| {
            let device = &self.config.kvm_device;
            File::options().read(true).write(true).open(device)
        });
        let built = kvm
            .transpose()
            .map_err(anyhow::Error::from)
            .and_then(|kvm| {
                let pending = build.order(&shell.link, kvm.as_ref())?;
                Ok(pending.wait(BUILD_TIMEOUT)?)
            });
        shell.built = built.is_ok().then_some(build);
        let mut inner = self.lock();
        if let Err(error) = built {
            // The clone that needs it will tell what is wrong.
            tracing::debug!("a shell cannot build ahead: {error:#}");
            inner.expected = None;
        }
        if inner.stopped {
            drop(inner);
            self.discard(shell);
        } else {
            inner.ready.push_front(shell);
        }
        true
    }
}
