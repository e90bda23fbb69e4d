//! Writing the instant that this process was born with to two files.
//!
//! It takes as long as the disk takes, so a thread does it: the process answers meanwhile, and ends
//! when its daemon leaves. The instant stays as it is; the process can still become a clone.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use guest_memory::GuestRam;
use machine::Checkpoint;
use rustix::fs::fstat;
use vmm_protocol::{Dump, FromVmm, Outcome, Reply};

use super::{After, Server, failed};
use crate::become_vm::Descriptors;
use crate::control::{Dumped, Message};

const STACK_BYTES: usize = 128 << 10;

/// All that the thread works with.
struct Work {
    ram: Arc<Mutex<GuestRam>>,
    state: Checkpoint,
    ram_file: File,
    checkpoint_file: File,
    pagemap: Option<File>,
}

impl Work {
    fn carry_out(&self) -> anyhow::Result<()> {
        // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
        let stat = fstat(&self.checkpoint_file).context("cannot look at the checkpoint file")?;
        ensure!(
            stat.st_size == 0,
            "the file for the checkpoint is not empty"
        );
        let ram = self.ram.lock().unwrap_or_else(PoisonError::into_inner);
        ram.dump(&self.ram_file, self.pagemap.as_ref())?;
        let bytes = self.state.encode()?;
        self.checkpoint_file
            .write_all_at(&bytes, 0)
            .context("cannot write the checkpoint")
    }
}

impl Server {
    /// Starts to write the inherited instant; the reply follows when it is written.
    pub(super) fn dump(
        &mut self,
        order: Dump,
        fds: Vec<OwnedFd>,
        id: u64,
        connection: &Arc<UnixStream>,
    ) -> After {
        match self.start_dump(order, fds, id, connection) {
            Ok(()) => After::Later,
            Err(error) => failed(format!("{error:#}")),
        }
    }

    fn start_dump(
        &mut self,
        order: Dump,
        fds: Vec<OwnedFd>,
        id: u64,
        connection: &Arc<UnixStream>,
    ) -> anyhow::Result<()> {
        self.need_shell()?;
        let inherited = self.inherited.as_ref();
        let inherited =
            inherited.context("this process was not born by fork(): it has no instant")?;
        let mut fds = Descriptors::new(fds);
        let work = Work {
            ram: Arc::clone(&inherited.ram),
            state: inherited.checkpoint.clone(),
            ram_file: fds.file(order.ram).context("no file for guest RAM")?,
            checkpoint_file: fds
                .file(order.checkpoint)
                .context("no file for the checkpoint")?,
            pagemap: order
                .pagemap
                .map(|fd| fds.file(fd).context("no page map"))
                .transpose()?,
        };
        let (tell, connection) = (self.control.messenger(), Arc::clone(connection));
        let carry_out = move || {
            linux_sys::take_usual_slices();
            let result = work.carry_out().map_err(|error| format!("{error:#}"));
            // The files are closed before anybody hears of it.
            drop(work);
            tell(Message::Dumped(Dumped {
                result,
                id,
                connection,
            }));
        };
        std::thread::Builder::new()
            .name("dump".into())
            .stack_size(STACK_BYTES)
            .spawn(carry_out)
            .context("cannot start a thread")?;
        // What was built ahead for a clone only takes memory now.
        self.prepared = None;
        self.dumping = true;
        Ok(())
    }

    /// Tells the daemon how it ended.
    pub(super) fn dumped(&mut self, dumped: Dumped) {
        self.dumping = false;
        let outcome = match dumped.result {
            Ok(()) => Outcome::Done,
            Err(message) => Outcome::Failed {
                message,
                step: None,
            },
        };
        let id = dumped.id;
        let reply = FromVmm::Reply(Reply { id, outcome });
        self.send_to(&dumped.connection, &reply, &[]);
    }
}
