//! What can be changed of a VM while it runs.

use std::os::fd::OwnedFd;

use agent_protocol::ToGuest;
use anyhow::{Context, ensure};
use guest_memory::NewLayer;
use vmm_protocol::{BeginFlatten, FlattenNext, Outcome, SetSerial};

use super::Server;
use crate::become_vm::Descriptors;

impl Server {
    /// Sends a message of the agent's protocol to the agent.
    pub(super) fn tell_agent(&mut self, message: &str) -> anyhow::Result<Outcome> {
        ensure!(self.machine.is_some(), "this process runs no VM yet");
        ToGuest::decode(message.as_bytes()).context("no message to an agent")?;
        let told = self.control.tell_agent(message);
        ensure!(told, "the guest has no agent that is connected");
        Ok(Outcome::Done)
    }

    /// Begins to move guest RAM onto a new layer.
    pub(super) fn begin_flatten(
        &mut self,
        order: BeginFlatten,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<Outcome> {
        let machine = self.machine.as_mut();
        let machine = machine.context("this process runs no VM yet")?;
        let mut fds = Descriptors::new(fds);
        machine.begin_flatten(NewLayer {
            writable: fds.file(order.writable).context("no memory layer")?,
            read_only: fds.file(order.layer).context("no layer to be mapped")?,
            pagemap: fds.file(order.pagemap).context("no page map")?,
        })?;
        Ok(Outcome::Done)
    }

    /// Moves the next piece of it.
    pub(super) fn flatten_next(&mut self, order: FlattenNext) -> anyhow::Result<Outcome> {
        let machine = self.machine.as_mut();
        let machine = machine.context("this process runs no VM yet")?;
        let moved = machine.flatten_next(order.drain_ms_max)?;
        Ok(Outcome::Flattened {
            stun_us: moved.map_or(0, |moved| moved.stun_us),
            moved_kib: moved.map_or(0, |moved| moved.bytes.div_ceil(1 << 10)),
        })
    }

    /// Gives a serial port another back end. Output that the old one has not taken goes to the new
    /// one, and what was typed at the old one still reaches the guest.
    pub(super) fn set_serial(
        &mut self,
        order: SetSerial,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<Outcome> {
        let machine = self.machine.as_ref();
        let machine = machine.context("this process runs no VM yet")?;
        let (port, ports) = (order.port, machine.spec().serial_ports);
        let exists = port < usize::from(ports);
        ensure!(
            exists,
            "there is no serial port {port}: the VM has {ports}, counted from 0"
        );
        let (sink, peer) = Descriptors::new(fds).serial(port, order.backend)?;
        machine.set_serial_output(port, sink);
        self.control.replace_serial(peer, machine);
        Ok(Outcome::Done)
    }
}
