//! Whether KVM on this host really executes guests, or only emulates them instruction by
//! instruction: a guest counts down, and the time it takes is measured.
//!
//! The guest is a VM like any other in a jailed process, so the probe also shows that VM processes
//! start at all.

use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_spec::VmSpec;
use vmm_protocol::{Backends, Boot, Command, Event, Outcome, SerialBackend};

use super::Host;
use super::backends::{FdList, make_ram};
use crate::clock::monotonic_ns;
use crate::vmm::Notice;

/// Speed above which KVM is usable for any guest, million instructions per second.
const USABLE_MIPS: f64 = 100.0;
/// Speed below which guests are emulated for sure: the short loop takes 0.1 s.
const EMULATED_MIPS: f64 = 5.0;
/// Turns of the loop, two instructions each: less than a millisecond where guests are executed, a
/// third of a second where they are emulated.
const TURNS_SHORT: u32 = 300_000;
/// Turns where the short loop leaves doubt, because start and end of the guest took longer than
/// the loop itself.
const TURNS_LONG: u32 = 30_000_000;
/// Longest wait for the guest's start.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for its end: a guest that takes longer is emulated, whatever its speed is.
const PATIENCE: Duration = Duration::from_secs(3);
const MEMORY_BYTES: u64 = 16 << 20;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvmSpeed {
    /// Million guest instructions per second.
    pub mips: f64,
}

impl KvmSpeed {
    /// Whether guests are executed, not emulated.
    pub fn is_usable(self) -> bool {
        self.mips >= USABLE_MIPS
    }
}

impl Host {
    /// Measures KVM, once in the life of the daemon.
    pub fn kvm_speed(&self) -> anyhow::Result<KvmSpeed> {
        let mut known = self
            .kvm_speed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(speed) = *known {
            return Ok(speed);
        }
        let mut speed = self.measure(TURNS_SHORT)?;
        if !speed.is_usable() && speed.mips > EMULATED_MIPS {
            speed = self.measure(TURNS_LONG)?;
        }
        *known = Some(speed);
        Ok(speed)
    }

    fn measure(&self, turns: u32) -> anyhow::Result<KvmSpeed> {
        let shell = self.pool.take(None)?;
        let (sender, notices) = mpsc::channel();
        shell.watch.redirect(Box::new(move |notice| {
            // Nobody listens once the probe has seen enough.
            let _ = sender.send((monotonic_ns(), notice));
        }));
        let socket = shell.socket.with_extension("vsock");
        let booted = self.boot_probe(&shell, &socket, turns);
        let ended = booted.map(|first_run_at_ns| {
            loop {
                match notices.recv_timeout(PATIENCE) {
                    Ok((at_ns, Notice::Event(Event::Ended(_)) | Notice::Closed(_))) => {
                        return at_ns.saturating_sub(first_run_at_ns);
                    }
                    Ok(_) => {}
                    Err(_) => return monotonic_ns().saturating_sub(first_run_at_ns),
                }
            }
        });
        let _ = std::fs::remove_file(&socket);
        self.pool.discard(shell);
        let instructions = f64::from(turns) * 2.0;
        Ok(KvmSpeed {
            mips: instructions * 1e3 / ended?.max(1) as f64,
        })
    }

    fn boot_probe(
        &self,
        shell: &crate::vmm::Shell,
        socket: &std::path::Path,
        turns: u32,
    ) -> anyhow::Result<u64> {
        let mut fds = FdList::default();
        let failed = |error: crate::error::OpError| anyhow::Error::msg(error.message());
        let kvm = Some(fds.add(self.open_kvm().map_err(failed)?));
        let kernel = fds.add(memory_file("mitose-probe", &guest_elf(turns))?);
        let serial = fds.add(memory_file("mitose-probe-serial", b"")?);
        let listener = UnixListener::bind(socket).context("cannot listen for the probe")?;
        let vsock = fds.add(OwnedFd::from(listener));
        let boot = Boot {
            spec: VmSpec {
                cpus: 1,
                memory_bytes: MEMORY_BYTES,
                cmdline: String::new(),
                entry: None,
                disks: Vec::new(),
                nics: Vec::new(),
                serial_ports: 1,
            },
            ram: fds.add(make_ram(MEMORY_BYTES).map_err(failed)?),
            kernel,
            initrd: None,
            backends: Backends {
                kvm,
                disks: Vec::new(),
                nics: Vec::new(),
                serial: vec![SerialBackend {
                    log: serial,
                    peer: None,
                }],
                vsock,
                agent_identity: "{}".to_owned(),
                system_uuid: None,
            },
        };
        let command = Command::Boot(Box::new(boot));
        match shell.link.call(command, &fds.borrowed(), TIMEOUT)? {
            (Outcome::Running { first_run_at_ns }, _) => Ok(first_run_at_ns),
            _ => bail!("the VM process gave an answer that does not fit"),
        }
    }
}

fn memory_file(name: &str, content: &[u8]) -> anyhow::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).context("cannot make a memory file")?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .context("cannot fill a memory file")?;
    Ok(file.into())
}

/// An ELF64 file of one segment at 1 MiB that counts down and then resets the machine: an invalid
/// instruction without an interrupt table is a triple fault.
fn guest_elf(turns: u32) -> Vec<u8> {
    const BASE: u64 = 1 << 20;
    const HEADERS: u64 = 64 + 56;
    let mut code = vec![0xb9];
    code.extend_from_slice(&turns.to_le_bytes());
    // loop: dec ecx; jnz loop; ud2
    code.extend_from_slice(&[0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x0b]);
    let length = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // e_type EXEC, e_machine x86-64, e_version
    elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    // e_entry, e_phoff, e_shoff
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend_from_slice(&u64::to_le_bytes(word));
    }
    // e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // p_type LOAD, p_flags RWX
    elf.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [0, BASE, BASE, length, length, 4096] {
        elf.extend_from_slice(&u64::to_le_bytes(word));
    }
    elf.extend_from_slice(&code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_guest_is_one_segment_with_its_code_behind_the_headers() {
        let elf = guest_elf(7);
        assert_eq!(elf.len(), 64 + 56 + 11);
        assert_eq!(&elf[24..32], &(0x10_0000u64 + 120).to_le_bytes());
        assert_eq!(elf[120], 0xb9);
    }
}
