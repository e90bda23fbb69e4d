//! The process that holds a fork point's memory, and files that do.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use vmm_protocol::{Command, Fd, Keep, Outcome};

use super::super::super::backends::reopen_read_only;
use crate::error::{OpError, OpResult};
use crate::host::{Host, event};
use crate::inventory::{Changes, ForkPoint, Object, PointMemory, sync_directory};
use crate::vmm::{self, Link, Notice};

/// Time that a keeper has for a command.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Takes memory layer and checkpoint from a keeper.
pub(super) fn recall(link: &Arc<Link>) -> OpResult<(Arc<OwnedFd>, Arc<OwnedFd>)> {
    let answer = link.call(Command::Recall, &[], TIMEOUT);
    let (outcome, fds) = answer.context("the keeper of a fork point does not answer")?;
    let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
    let mut take = |fd: Fd| -> anyhow::Result<Arc<OwnedFd>> {
        let found = fds.get_mut(fd.0 as usize).and_then(Option::take);
        found
            .map(Arc::new)
            .context("the keeper of a fork point gave too little")
    };
    match outcome {
        Outcome::Kept { ram, checkpoint } => Ok((take(ram)?, take(checkpoint)?)),
        _ => Err(OpError::failed(
            "the keeper of a fork point gave an answer that does not fit",
        )),
    }
}

impl Host {
    /// Gives a sealed memory layer and a checkpoint to a process that holds them.
    pub(super) fn keep(
        self: &Arc<Self>,
        id: &str,
        ram: Arc<OwnedFd>,
        checkpoint: OwnedFd,
    ) -> OpResult<PointMemory> {
        let shell = self.pool.take(None)?;
        let home = &self.config.home;
        let kept = fs::rename(&shell.socket, home.vm_socket(id))
            .and_then(|()| fs::rename(&shell.log, keeper_log(self, id)))
            .context("cannot give a keeper its name")
            .and_then(|()| {
                let order = Command::Keep(Keep {
                    ram: Fd(0),
                    checkpoint: Fd(1),
                });
                let fds = [ram.as_fd(), checkpoint.as_fd()];
                let answer = shell.link.call(order, &fds, TIMEOUT);
                answer.context("a process cannot keep a fork point")
            })
            .and_then(|_| reopen_read_only(checkpoint.as_fd()));
        let checkpoint = match kept {
            Ok(checkpoint) => Arc::new(checkpoint),
            Err(error) => {
                let _ = fs::remove_file(home.vm_socket(id));
                let _ = fs::remove_file(keeper_log(self, id));
                self.pool.discard(shell);
                return Err(error.into());
            }
        };
        let mut points = self.points.lock();
        let open = points.entry(id.to_owned()).or_default();
        open.link = Some(Arc::clone(&shell.link));
        open.files = Some((ram, checkpoint));
        drop(points);
        shell.watch.redirect(self.keeper_handler(id, &shell.link));
        Ok(PointMemory::Kept {
            pid: shell.pid,
            uid: shell.uid,
            group: shell.group,
        })
    }

    /// What a keeper says: only its end is news.
    pub(super) fn keeper_handler(
        self: &Arc<Self>,
        id: &str,
        link: &Arc<Link>,
    ) -> Box<dyn Fn(Notice) + Send + Sync> {
        let host = Arc::downgrade(self);
        let id = id.to_owned();
        let link = Arc::downgrade(link);
        Box::new(move |notice| {
            let (Some(host), Some(_)) = (host.upgrade(), link.upgrade()) else {
                return;
            };
            if let Notice::Closed(_) = notice {
                let id = id.clone();
                let spawned = std::thread::Builder::new()
                    .name("keeper-ended".into())
                    .spawn(move || {
                        if !host.meet_keeper_again(&id) {
                            host.point_lost(&id);
                        }
                    });
                if let Err(error) = spawned {
                    tracing::error!(%error, "cannot start a thread");
                }
            }
        })
    }

    /// The keeper of a fork point has ended unasked.
    pub(super) fn point_lost(self: &Arc<Self>, id: &str) {
        self.points.lock().remove(id);
        let lost = self.change_object::<ForkPoint>(id, None, |point| {
            if let PointMemory::Kept { pid, uid, group } = &point.doc.memory {
                vmm::wait_gone(*pid, TIMEOUT);
                self.pool.free_uid(*uid);
                self.leave_group(group.clone());
                let _ = fs::remove_file(self.config.home.vm_socket(id));
                point.doc.memory = PointMemory::Lost;
                let message = "the process that kept its memory ended; prepare the VM again";
                let told = event(&point.name, "forkpoint.lost", message).about(id);
                self.commit_logged(
                    &[],
                    Changes {
                        events: vec![told],
                        ..Changes::default()
                    },
                );
            }
            Ok(())
        });
        if let Err(error) = lost {
            // Removed at the same time.
            tracing::debug!("{}", error.message());
        }
    }

    /// Gives the memory of a fork point back, which is no object any more.
    pub(super) fn free_memory(self: &Arc<Self>, point: &Object<ForkPoint>) {
        let open = self.points.lock().remove(&point.id);
        match &point.doc.memory {
            PointMemory::Kept { pid, uid, group } => {
                if let Some(link) = open.and_then(|open| open.link) {
                    let _ = link.call(Command::PowerOff, &[], TIMEOUT);
                    link.shut();
                    vmm::kill(*pid);
                }
                self.pool.free_uid(*uid);
                self.leave_group(group.clone());
            }
            PointMemory::Files { ram, checkpoint } => {
                for path in [ram, checkpoint] {
                    if let Err(error) = fs::remove_file(path) {
                        tracing::warn!(%error, path = %path.display(), "cannot remove a file");
                    }
                }
            }
            PointMemory::Sealing | PointMemory::Lost => {}
        }
        let _ = fs::remove_file(self.config.home.vm_socket(&point.id));
        let _ = fs::remove_file(keeper_log(self, &point.id));
    }
}

/// Log of a keeper.
fn keeper_log(host: &Host, id: &str) -> PathBuf {
    host.config.home.logs().join(format!("{id}.log"))
}

/// Makes a file durable and unchangeable under its final name.
pub(super) fn finish_file(part: &std::path::Path, path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let failed = || format!("cannot finish {}", path.display());
    let file = File::open(part).with_context(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o400))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(part, path))
        .with_context(failed)?;
    let dir = path.parent().unwrap_or(path);
    sync_directory(dir).with_context(failed)
}
