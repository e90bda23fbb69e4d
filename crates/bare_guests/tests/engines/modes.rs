//! One test per mode and entry.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use virtio_devices::{Block, BlockConfig, MemoryBackend, Net, NetConfig};
use vm_spec::MacAddr;

use crate::pc::Pc;

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn counts(elf: &[u8]) {
    let Some(pc) = Pc::start(elf, "touch=8 every=500", 1) else {
        return;
    };
    pc.wait_for("M");
    let first = hex(&pc.wait_for("c="));
    let second = hex(&pc.wait_for("c="));
    assert_eq!((first % 500, second), (0, first + 500));
    pc.send(b"g");
    let gap: u64 = pc.wait_for("gap=").parse().unwrap();
    assert!(gap > 0);
    pc.send(b"Tv");
    pc.wait_for("D");
    pc.wait_for("V");
}

#[test]
fn counter_runs_after_a_long_mode_entry() {
    counts(bare_guests::guest_elf());
}

#[test]
fn counter_runs_after_a_pvh_entry() {
    counts(bare_guests::guest_pvh_elf());
}

#[test]
fn dirty_answers_each_byte() {
    let line = "mode=dirty touch=16 percent=50 scatter=1 thre=1";
    let Some(pc) = Pc::start(bare_guests::guest_elf(), line, 1) else {
        return;
    };
    pc.wait_for("M");
    for _ in 0..3 {
        pc.send(b"x");
        pc.wait_for("D");
    }
    pc.send(b"v");
    pc.wait_for("V");
}

#[test]
fn idle_guest_wakes_for_serial_input() {
    let line = "mode=dirty touch=1 idle=1";
    let Some(pc) = Pc::start(bare_guests::guest_elf(), line, 1) else {
        return;
    };
    pc.wait_for("M");
    for _ in 0..3 {
        pc.send(b"c");
        pc.wait_for("c=");
        pc.send(b"g");
        pc.wait_for("gap=");
    }
}

#[test]
fn every_cpu_of_the_tables_counts() {
    let Some(pc) = Pc::start(bare_guests::guest_elf(), "mode=smp", 3) else {
        return;
    };
    assert_eq!(pc.wait_for("s="), "3");
    let counters = || -> Vec<u64> {
        pc.wait_for("p=")
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let before = counters();
    assert_eq!(before.len(), 3);
    loop {
        let after = counters();
        if after
            .iter()
            .zip(&before)
            .all(|(after, before)| after > before)
        {
            break;
        }
    }
}

#[test]
fn too_much_memory_to_touch_is_an_error_line() {
    let Some(pc) = Pc::start(bare_guests::guest_elf(), "touch=64", 1) else {
        return;
    };
    assert_eq!(pc.wait_for("E "), "touch=64");
}

#[test]
fn disk_verifies_what_it_wrote() {
    let disk = MemoryBackend::new(vec![0; 1 << 20], false);
    let disk = Box::new(Block::new(disk, BlockConfig::default()));
    let line = "mode=disk blocks=8 flush=4";
    let Some(pc) = Pc::start_with(bare_guests::guest_elf(), line, 1, Some(disk)) else {
        return;
    };
    assert_eq!(pc.wait_for("d="), "1");
    assert_eq!(pc.wait_for("d="), "2");
}

#[test]
fn missing_disk_is_an_error_line() {
    let Some(pc) = Pc::start(bare_guests::guest_elf(), "mode=disk", 1) else {
        return;
    };
    assert_eq!(pc.wait_for("E "), "no device in slot=0");
    pc.send(b"g");
    pc.wait_for("gap=");
}

/// Bytes of the virtio header in front of each frame.
const NET_HEADER_BYTES: usize = 12;

/// Returns a frame of type 88B5h or 88B6h with its header.
fn frame(to: [u8; 6], from: [u8; 6], kind: u8, number: u64) -> Vec<u8> {
    let mut frame = vec![0; NET_HEADER_BYTES];
    frame.extend(
        to.into_iter()
            .chain(from)
            .chain([0x88, kind])
            .chain(number.to_le_bytes()),
    );
    frame.resize(NET_HEADER_BYTES + 60, 0);
    frame
}

#[test]
fn net_sends_numbered_frames_and_echoes() {
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let config = NetConfig {
        mac: MacAddr(mac),
        link_up: true,
        own_mac_only: true,
        tx_offload: false,
    };
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    let net = Box::new(Net::new(tap.into(), config).unwrap());
    let line = "mode=net echo=1";
    let Some(pc) = Pc::start_with(bare_guests::guest_elf(), line, 1, Some(net)) else {
        return;
    };
    pc.wait_for("n=1 r=0");
    let host = [0x02, 0, 0, 0, 0, 1];
    wire.send(&frame([0xff; 6], host, 0xb5, 77)).unwrap();
    let mut bytes = [0; 2048];
    let mut next_number = 0;
    loop {
        let count = wire.recv(&mut bytes).unwrap();
        if bytes[..count] == frame(host, mac, 0xb6, 77) {
            break;
        }
        assert_eq!(bytes[..count], frame([0xff; 6], mac, 0xb5, next_number));
        next_number += 1;
    }
    assert!(next_number > 0);
}
