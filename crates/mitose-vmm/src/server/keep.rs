//! A keeper: a shell that holds the two files of a fork point for as long as it lives, so that the
//! fork point outlives the daemon that made it. It maps nothing and never looks into them.

use std::os::fd::OwnedFd;

use anyhow::{Context, ensure};
use rustix::fs::{FileType, fstat};
use vmm_protocol::{Fd, Keep, Outcome, VmState};

use super::{After, Server, failed};
use crate::become_vm::Descriptors;

/// The files of a fork point.
#[derive(Debug)]
pub(super) struct Kept {
    ram: OwnedFd,
    checkpoint: OwnedFd,
}

/// Takes a file that can be part of a fork point.
fn take(fds: &mut Descriptors, fd: Fd, what: &str) -> anyhow::Result<OwnedFd> {
    let file = fds.take(fd).with_context(|| format!("no {what}"))?;
    let stat = fstat(&file).with_context(|| format!("cannot look at the {what}"))?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    ensure!(
        regular && stat.st_size > 0,
        "the {what} is no file with content"
    );
    Ok(file)
}

impl Server {
    /// Makes this shell a keeper.
    pub(super) fn keep(&mut self, order: Keep, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        self.need_shell()?;
        ensure!(
            self.inherited.is_none(),
            "this process was born by fork(): it has an instant of its own"
        );
        let mut fds = Descriptors::new(fds);
        let kept = Kept {
            ram: take(&mut fds, order.ram, "memory layer")?,
            checkpoint: take(&mut fds, order.checkpoint, "checkpoint")?,
        };
        self.kept = Some(kept);
        self.prepared = None;
        self.state = VmState::Keeper;
        Ok(Outcome::Done)
    }

    /// Hands out duplicates of what is kept.
    pub(super) fn recall(&self) -> After {
        let Some(kept) = &self.kept else {
            return failed("this process keeps no fork point".into());
        };
        let fds = [&kept.ram, &kept.checkpoint].map(OwnedFd::try_clone);
        match fds.into_iter().collect() {
            Ok(fds) => {
                let (ram, checkpoint) = (Fd(0), Fd(1));
                After::Reply(Outcome::Kept { ram, checkpoint }, fds)
            }
            Err(error) => failed(format!("cannot duplicate what is kept: {error}")),
        }
    }
}
