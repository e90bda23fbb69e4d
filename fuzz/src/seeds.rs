//! Writes valid inputs, from which the fuzzer starts, to the folder in `FUZZ_SEEDS`, one folder for
//! each target. It is built with instrumentation as the targets are, so it is a target too:
//! `seeds -runs=1`.

#![no_main]

use std::fs::{self, File};
use std::path::Path;

use agent_protocol::{Ready, Request, Signal, ToHost};
use disk_layers::{DiskFormat, DiskStack, LayerFile, StackOptions, create_full, create_overlay};
use virtio_devices::{
    SavedBalloon, SavedBlock, SavedDevice, SavedNet, SavedQueue, SavedRng, SavedTransport,
    SavedVsock,
};
use vmm_protocol::{
    Command, EndReason, Event, FromVmm, Outcome, RamView, Status, VERSION, VmState,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

libfuzzer_sys::fuzz_target!(|_bytes: &[u8]| {
    let folder = std::env::var_os("FUZZ_SEEDS").expect("FUZZ_SEEDS names a folder");
    write_seeds(Path::new(&folder)).expect("seeds can be written");
});

fn write_seeds(folder: &Path) -> Result {
    let put = |target: &str, name: &str, bytes: &[u8]| -> Result {
        let dir = folder.join(target);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join(name), bytes)?)
    };
    put("kernel", "long-mode", bare_guests::guest_elf())?;
    put("kernel", "pvh", bare_guests::guest_pvh_elf())?;
    disks(folder)?;
    let runs = runs();
    put("archive", "whole", &fuzz::archive_of(&runs))?;
    put("archive", "changes", &runs)?;
    let messages = [
        FromVmm::Event(Event::NoSpace { disk: 1 }),
        FromVmm::Event(Event::Ended(EndReason::EngineFault("x".into()))),
        FromVmm::Reply(vmm_protocol::Reply {
            id: 7,
            outcome: Outcome::Status(Status {
                state: VmState::Running,
                ram: Some(RamView::Private),
                ram_range: Some((1, 2)),
                agent_ready: true,
                first_run_at_ns: Some(3),
                ready_at_ns: None,
                engine: Some("kvm".into()),
            }),
        }),
    ];
    for (number, message) in messages.iter().enumerate() {
        put(
            "vmm_messages",
            &number.to_string(),
            &serde_json::to_vec(message)?,
        )?;
    }
    let request = vmm_protocol::Request {
        id: 1,
        version: VERSION,
        command: Command::SetLink { nic: 0, up: true },
    };
    put("vmm_messages", "request", &serde_json::to_vec(&request)?)?;
    put(
        "agent_messages",
        "ready",
        &ToHost::Ready(Ready::default()).encode()?,
    )?;
    put(
        "agent_messages",
        "stdin",
        &Request::Stdin(b"abc".to_vec()).encode()?,
    )?;
    put(
        "agent_messages",
        "signal",
        &Request::Signal(Signal { signal: 9 }).encode()?,
    )?;
    put("saved_state", "one", b"content")?;
    for (name, code) in fuzz::SOFT_SEEDS {
        for mode in 0..8 {
            let head = [
                mode, 0, 4, 1, 2, 0, 0x43, 0x44, 7, 9, 0x60, 0x80, 0xa0, 3, 5, 0x30, 2, 0,
            ];
            let input = [&head[..], code].concat();
            put("soft_cpu", &format!("{name}-{mode}"), &input)?;
            // The same with devices there, RSI and RDI at two of them.
            for (rsi, rdi) in [(0x56, 0x59), (0xc1, 0xc3), (0x58, 0xc7)] {
                let mut input = input.clone();
                (input[7], input[8], input[17]) = (rsi, rdi, 0x10);
                put("soft_cpu", &format!("{name}-{mode}-{rsi:x}"), &input)?;
            }
        }
    }
    for (name, state) in device_states() {
        let mut bytes = Vec::new();
        ciborium::into_writer(&state, &mut bytes)?;
        put("device_state", name, &bytes)?;
    }
    Ok(())
}

/// A state of each kind of device, with its queues set up.
fn device_states() -> Vec<(&'static str, SavedTransport)> {
    let queue = SavedQueue {
        size: 64,
        ready: true,
        desc_gpa: 0x1000,
        avail_gpa: 0x2000,
        used_gpa: 0x3000,
        next_avail: 1,
        next_used: 1,
    };
    let state = |device_id, queues, device| SavedTransport {
        device_id,
        status: 0xf,
        needs_reset: false,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 1 << 32,
        queue_sel: 0,
        interrupt_status: 1,
        config_generation: 0,
        queues: vec![queue.clone(); queues],
        device,
    };
    let block = SavedDevice::Block(SavedBlock {
        capacity_sectors: 2048,
        read_only: false,
    });
    let net = SavedDevice::Net(SavedNet {
        mac: [2, 0, 0, 0, 0, 1],
        link_up: true,
        own_mac_only: false,
    });
    let vsock = SavedDevice::Vsock(SavedVsock {
        next_host_port: 1 << 30,
    });
    let balloon = SavedDevice::Balloon(SavedBalloon {
        target_pages: 0,
        actual_pages: 0,
    });
    vec![
        ("block", state(2, 1, block)),
        ("net", state(1, 2, net)),
        ("vsock", state(19, 3, vsock)),
        ("rng", state(4, 1, SavedDevice::Rng(SavedRng::default()))),
        ("balloon", state(5, 3, balloon)),
    ]
}

/// An image with some data, and an overlay.
fn disks(folder: &Path) -> Result {
    let dir = folder.join("qcow2");
    fs::create_dir_all(&dir)?;
    let open = |name: &str| {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        options.open(dir.join(name))
    };
    let full = open("full")?;
    create_full(&full, 1 << 20)?;
    let top = LayerFile {
        file: full,
        format: DiskFormat::Qcow2,
    };
    let mut disk = DiskStack::open(top, Vec::new(), StackOptions::default())?;
    disk.write_at(4096, &[7; 512])?;
    disk.sync()?;
    create_overlay(&open("overlay")?, 1 << 20, "full", DiskFormat::Qcow2)?;
    Ok(())
}

/// Changes of memory: a page with content, then two of zeros.
fn runs() -> Vec<u8> {
    let run = |first: u64, pages: u32, full: u32| {
        let mut header = first.to_le_bytes().to_vec();
        header.extend(pages.to_le_bytes());
        header.extend(full.to_le_bytes());
        header
    };
    let content = vec![7; archives::PAGE_BYTES as usize];
    [run(3, 1, 1), content, run(9, 2, 0)].concat()
}
