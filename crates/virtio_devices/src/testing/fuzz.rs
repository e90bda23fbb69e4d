//! Entry points for fuzz targets: whatever a guest writes, the host neither panics nor hangs, and
//! a reset brings every device back.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use chipset::BusDevice;
use vm_memory::{Bytes, GuestAddress};
use vm_spec::MacAddr;

use super::bench::Bench;
use super::driver::Driver;
use crate::balloon::{Balloon, ReclaimRam};
use crate::block::{Block, BlockConfig, MemoryBackend};
use crate::net::{Net, NetConfig};
use crate::rng::Rng;
use crate::saved::SavedTransport;
use crate::transport::MMIO_WINDOW_BYTES;
use crate::vsock::{GuestConnectSink, Vsock, VsockConfig};

const DEVICES: usize = 5;
const DISK_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct KeepRam;

impl ReclaimRam for KeepRam {
    fn discard(&self, _gpa: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// One device of each kind.
struct Zoo {
    bench: Bench,
    drivers: Vec<Driver>,
    _wire: UnixDatagram,
}

fn net(tap: OwnedFd) -> Net {
    let mac = MacAddr::local([0; 6]);
    let config = NetConfig {
        mac,
        link_up: true,
        own_mac_only: false,
        tx_offload: true,
    };
    Net::new(tap, config).expect("a socket can be made non-blocking")
}

fn block() -> Block<MemoryBackend> {
    Block::new(
        MemoryBackend::new(vec![0; DISK_BYTES], false),
        BlockConfig::default(),
    )
}

fn vsock() -> Vsock {
    let on_guest_connect = GuestConnectSink::new(|_, _| ());
    let config = VsockConfig {
        listener: None,
        service_ports: vec![1024],
        on_guest_connect,
    };
    Vsock::new(config).expect("a device without a listener needs nothing of the host")
}

impl Zoo {
    fn new() -> Self {
        let (wire, tap) = UnixDatagram::pair().expect("the host has descriptors");
        wire.set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let mut bench = Bench::default();
        let drivers = vec![
            bench.add(block()),
            bench.add(net(tap.into())),
            bench.add(vsock()),
            bench.add(Rng::new()),
            bench.add(Balloon::new(Box::new(KeepRam))),
        ];
        Self {
            bench,
            drivers,
            _wire: wire,
        }
    }

    /// Resets every device and has it do one thing right.
    fn check_alive(&mut self) {
        for driver in &mut self.drivers {
            driver.start();
            assert!(
                !driver.needs_reset(),
                "a reset does not bring the device back"
            );
        }
        self.bench.run();
        let rng = &mut self.drivers[3];
        let room = rng.output(16);
        rng.offer(0, &[room]);
        rng.kick(0);
        self.bench.run();
        assert_eq!(self.drivers[3].used(0).map(|used| used.len), Some(16));
    }
}

/// Devices behind registers that somebody else's guest reaches: one of each kind, with RAM of their own.
pub struct HostileRegisters(Zoo);

impl std::fmt::Debug for HostileRegisters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostileRegisters")
    }
}

impl Default for HostileRegisters {
    fn default() -> Self {
        Self(Zoo::new())
    }
}

impl HostileRegisters {
    /// Returns the registers of each device.
    pub fn transports(&self) -> Vec<Arc<dyn BusDevice>> {
        let drivers = self.0.drivers.iter();
        drivers
            .map(|driver| Arc::clone(driver.transport()) as _)
            .collect()
    }

    /// Has the devices do what they were asked for; resets must bring them back after it.
    pub fn run_and_check(&mut self) {
        self.0.bench.run();
        self.0.check_alive();
    }
}

/// Takes register accesses from `bytes` and makes them.
pub fn fuzz_register_writes(bytes: &[u8]) {
    let mut zoo = Zoo::new();
    let mut rest = bytes;
    while let Some((access, tail)) = rest.split_first_chunk::<12>() {
        rest = tail;
        let [select, width, low, high, data @ ..] = *access;
        let transport = zoo.drivers[usize::from(select) % DEVICES].transport();
        let mut offset = u64::from(u16::from_le_bytes([low, high])) % MMIO_WINDOW_BYTES;
        if select & 0x80 != 0 {
            // Mostly the registers proper, which are few among the window's bytes.
            offset = offset % 0x40 * 4;
        }
        let len = 1 + usize::from(width) % 8;
        let len = if select & 0x80 != 0 { 4 } else { len };
        let mut answer = [0; 8];
        transport.read(offset, &mut answer[..len]);
        transport.write(offset, &data[..len]);
        if width & 0x80 != 0 {
            zoo.bench.run();
        }
    }
    zoo.bench.run();
    zoo.check_alive();
}

/// Starts a device and fills its rings and the memory behind them from `bytes`.
pub fn fuzz_rings(bytes: &[u8]) {
    let Some((&select, rest)) = bytes.split_first() else {
        return;
    };
    let mut zoo = Zoo::new();
    let driver = &mut zoo.drivers[usize::from(select) % DEVICES];
    driver.start();
    let mut rest = rest;
    while let Some((op, tail)) = rest.split_first_chunk::<20>() {
        rest = tail;
        let [kind, queue, index, data @ .., d0] = *op;
        let queue = usize::from(queue) % driver.queues();
        let (desc, avail, _) = driver.ring_addresses(queue);
        match kind % 6 {
            0 | 1 => {
                let descriptor = shape_descriptor(data, d0);
                driver.poke(desc + 16 * u64::from(index % 32), &descriptor);
            }
            // Links and heads are small so that they meet.
            2 => driver.offer_head(queue, u16::from(index) % 34),
            3 => driver.poke(u64::from(index) << 12, &data),
            4 => driver.poke(u64::from(index) << 12, &shape_request(select, data)),
            _ => {
                if d0 == 0 {
                    driver.poke(avail + 2, &data[..2]);
                }
                driver.kick(queue);
                zoo.bench.run();
                if driver.needs_reset() {
                    driver.start();
                }
            }
        }
    }
    for queue in 0..driver.queues() {
        driver.kick(queue);
    }
    zoo.bench.run();
    zoo.check_alive();
}

/// Makes most descriptors plausible, so that chains get past the first check.
fn shape_descriptor(data: [u8; 16], odd: u8) -> [u8; 16] {
    let mut descriptor = data;
    if odd & 1 != 0 {
        // The start of a low page, where requests are put.
        descriptor[..8].copy_from_slice(&(u64::from(data[1]) << 12).to_le_bytes());
    }
    if odd & 0xf0 != 0 {
        descriptor[3..8].fill(0);
        descriptor[2] &= 0x3f;
        descriptor[10..12].fill(0);
        descriptor[12] &= if odd & 2 != 0 { 3 } else { 7 };
        descriptor[14] &= 0x1f;
        descriptor[15] = 0;
    }
    descriptor
}

/// Makes a request that the device numbered `select` may understand.
fn shape_request(select: u8, data: [u8; 16]) -> [u8; 44] {
    let mut bytes = [0; 44];
    match usize::from(select) % DEVICES {
        0 => {
            bytes[0] = data[0] % 16;
            bytes[8..10].copy_from_slice(&data[8..10]);
            bytes[9] &= 0xf;
        }
        2 => {
            bytes[0] = 3;
            bytes[8] = 2;
            bytes[16] = data[0] % 4;
            bytes[20..22].copy_from_slice(&1024_u16.to_le_bytes());
            bytes[20] = data[1] & 1;
            bytes[24..26].copy_from_slice(&data[2..4]);
            bytes[28] = 1;
            bytes[30] = data[4] % 9;
            bytes[32] = data[5] % 4;
            bytes[36..44].copy_from_slice(&data[8..16]);
        }
        _ => bytes[..16].copy_from_slice(&data),
    }
    bytes
}

/// Restores each kind of device from a state that someone may have tampered with, and runs what
/// is accepted.
pub fn fuzz_restore(saved: &SavedTransport) {
    let mut bench = Bench::default();
    let filler = vec![0xa5; 0x8000];
    bench
        .mem()
        .write_slice(&filler, GuestAddress(0x1_0000))
        .expect("inside RAM");
    let origin = bench.add(Rng::new());
    let (_wire, tap) = UnixDatagram::pair().expect("the host has descriptors");
    let drivers = [
        bench.add_restored(block(), saved, &origin),
        bench.add_restored(net(tap.into()), saved, &origin),
        bench.add_restored(vsock(), saved, &origin),
        bench.add_restored(Rng::new(), saved, &origin),
        bench.add_restored(Balloon::new(Box::new(KeepRam)), saved, &origin),
    ];
    bench.set_gate(false);
    bench.run();
    for mut driver in drivers.into_iter().flatten() {
        driver.start();
        assert!(
            !driver.needs_reset(),
            "a reset does not bring the device back"
        );
    }
    bench.run();
}
