//! Changes of a VM's disks while it runs.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use vmm_protocol::{Command, InsertMedium, LayerFd, LayerFormat, Outcome, Rebase};

use super::{Disk, Frame, VmProcess};

impl VmProcess {
    /// Replaces the layers below the top of disk `disk` by `below`, nearest first.
    pub fn rebase(
        &mut self,
        disk: usize,
        below: &[(&Path, LayerFormat)],
        backing: &str,
    ) -> anyhow::Result<()> {
        let mut frame = Frame::default();
        let open = |(path, format): &(&Path, LayerFormat)| {
            let file = File::open(path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            anyhow::Ok(LayerFd {
                fd: frame.add(file),
                format: *format,
            })
        };
        let below = below.iter().map(open).collect::<anyhow::Result<_>>()?;
        let backing = backing.to_owned();
        let order = Rebase {
            disk,
            below,
            backing,
        };
        self.change(Command::Rebase(order), frame)
    }

    /// Puts `medium` into the empty slot `disk`.
    pub fn insert_medium(&mut self, disk: usize, medium: Disk) -> anyhow::Result<()> {
        let mut frame = Frame::default();
        let backend = frame.disks(&[medium])?.remove(0);
        self.change(Command::InsertMedium(InsertMedium { disk, backend }), frame)
    }

    fn change(&mut self, command: Command, frame: Frame) -> anyhow::Result<()> {
        match self.call_with(command, frame.0)?.0 {
            Outcome::Done | Outcome::Rebased { .. } => Ok(()),
            Outcome::Failed { message, .. } => bail!("{message}"),
            other => bail!("a change of a disk gave {other:?}"),
        }
    }
}
