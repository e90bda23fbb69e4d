//! Guest RAM of the stand-in: dumps, layers that it is moved onto, and what a keeper keeps.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use vmm_protocol::{BeginFlatten, Dump, Fd, Keep, Outcome};

use super::{Server, checkpoint_bytes, refused, take};

/// Pieces in which its RAM is moved onto a new layer.
const FLATTEN_PIECES: u32 = 3;

impl Server {
    pub fn dump(&self, order: Dump, fds: &mut [Option<OwnedFd>]) -> Outcome {
        let Some(inherited) = &self.inherited else {
            return refused("this process was not born by fork()");
        };
        let words = || inherited.cmdline.split(' ');
        if words().any(|word| word == "fail=dump") {
            return refused("made to fail");
        }
        let delay = words().find_map(|word| word.strip_prefix("dump_ms="));
        let delay = delay.map_or(0, |delay| delay.parse().expect("a number"));
        std::thread::sleep(Duration::from_millis(delay));
        let mut ram = File::from(take(fds, order.ram));
        let mut checkpoint = File::from(take(fds, order.checkpoint));
        let written = rustix::fs::ftruncate(&ram, inherited.memory_bytes)
            .map_err(std::io::Error::from)
            .and_then(|()| ram.write_all(b"ram"))
            .and_then(|()| match words().any(|word| word == "writes") {
                true => write_pages(&ram, inherited.fork),
                false => Ok(()),
            })
            .and_then(|()| checkpoint.write_all(&checkpoint_bytes()));
        match written {
            Ok(()) => Outcome::Done,
            Err(error) => refused(&format!("cannot write guest RAM: {error}")),
        }
    }

    pub fn begin_flatten(&mut self, order: BeginFlatten, fds: &mut [Option<OwnedFd>]) -> Outcome {
        take(fds, order.writable);
        let layer = take(fds, order.layer);
        take(fds, order.pagemap);
        match &mut self.machine {
            Some(machine) if machine.forks > 0 => {
                machine.flattening = Some((layer, FLATTEN_PIECES));
                Outcome::Done
            }
            _ => refused("guest RAM is a shared view: it has no layer"),
        }
    }

    pub fn flatten_next(&mut self) -> Outcome {
        if self.word("fail=flatten") {
            return refused("made to fail");
        }
        let Some(machine) = &mut self.machine else {
            return refused("this process runs no VM yet");
        };
        match machine.flattening.take() {
            None => refused("guest RAM is not being moved onto a layer"),
            Some((layer, 0)) => {
                machine.ram = Some(layer);
                machine.written.clear();
                Outcome::Flattened {
                    stun_us: 0,
                    moved_kib: 0,
                }
            }
            Some((layer, left)) => {
                machine.flattening = Some((layer, left - 1));
                Outcome::Flattened {
                    stun_us: if machine.paused { 0 } else { 3 },
                    moved_kib: 1024,
                }
            }
        }
    }

    pub fn keep(&mut self, order: Keep, fds: &mut [Option<OwnedFd>]) -> Outcome {
        if self.machine.is_some() || self.inherited.is_some() || self.kept.is_some() {
            return refused("this process is no shell");
        }
        self.kept = Some([order.ram, order.checkpoint].map(|fd| take(fds, fd)));
        Outcome::Done
    }

    pub fn recall(&self) -> (Outcome, Vec<OwnedFd>) {
        let Some(kept) = &self.kept else {
            return (refused("this process keeps no fork point"), vec![]);
        };
        let fds = kept
            .iter()
            .map(|fd| fd.try_clone().expect("a descriptor can be copied"));
        let outcome = Outcome::Kept {
            ram: Fd(0),
            checkpoint: Fd(1),
        };
        (outcome, fds.collect())
    }
}

/// What a guest has in its RAM when it is forked for the `fork`th time: the page after the last one is
/// written, and the one before is zeros again.
fn write_pages(ram: &File, fork: u8) -> std::io::Result<()> {
    let page = |at: u64, byte: u8| ram.write_all_at(&[byte; 4096], at * 4096);
    (256..320).try_for_each(|at| page(at, 7))?;
    page(320, fork)?;
    page(1000 + u64::from(fork), 9)
}
