//! What can be changed of a VM while it runs.

use std::os::fd::OwnedFd;

use agent_protocol::ToGuest;
use anyhow::{Context, ensure};
use machine::FlattenPlan;
use vmm_protocol::{Flatten, Outcome, SetSerial};

use super::Server;
use crate::become_vm::Descriptors;

const PAGE_KIB: u64 = 4;

impl Server {
    /// Sends a message of the agent's protocol to the agent.
    pub(super) fn tell_agent(&mut self, message: &str) -> anyhow::Result<Outcome> {
        ensure!(self.machine.is_some(), "this process runs no VM yet");
        ToGuest::decode(message.as_bytes()).context("no message to an agent")?;
        let told = self.control.tell_agent(message);
        ensure!(told, "the guest has no agent that is connected");
        Ok(Outcome::Done)
    }

    /// Puts guest RAM on another layer.
    pub(super) fn flatten(&mut self, order: Flatten, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        let machine = self.machine.as_mut();
        let machine = machine.context("this process runs no VM yet")?;
        let mut fds = Descriptors::new(fds);
        let plan = FlattenPlan {
            layer: fds.file(order.ram).context("no memory layer")?,
            pagemap: fds.file(order.pagemap).context("no page map")?,
            fork: order.fork,
            drain_ms_max: order.drain_ms_max,
        };
        let flattened = machine.flatten(plan)?;
        Ok(Outcome::Flattened {
            stun_us: flattened.stun_us,
            private_kib: flattened.pages * PAGE_KIB,
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
