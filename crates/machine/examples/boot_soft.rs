//! Boots a guest on the software engine in this process, with its console on standard output: for
//! finding faults of the engine.
//!
//! `boot_soft KERNEL [--initrd FILE] [--disk RAW] [--cpus N] [--memory MIB] [--cmdline TEXT]`

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use disk_layers::{DiskFormat, LayerFile};
use machine::{Backends, BootFiles, DiskFiles, Machine};
use vm_spec::{DiskSpec, VmSpec};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let kernel = args
        .next()
        .ok_or("usage: boot_soft KERNEL [OPTION VALUE]...")?;
    let mut initrd = None;
    let mut disks = vec![];
    let mut spec = VmSpec {
        cpus: 1,
        memory_bytes: 512 << 20,
        cmdline: "console=ttyS0 reboot=t panic=-1 nokaslr cryptomgr.notests".into(),
        entry: None,
        disks: vec![],
        nics: vec![],
        serial_ports: 1,
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or("an option without a value")?;
        match name.as_str() {
            "--initrd" => initrd = Some(File::open(value)?),
            "--disk" => {
                spec.disks.push(DiskSpec {
                    serial: "disk".into(),
                    read_only: false,
                });
                let file = File::options().read(true).write(true).open(value)?;
                let format = DiskFormat::Raw;
                disks.push(Some(DiskFiles {
                    top: LayerFile { file, format },
                    below: vec![],
                }));
            }
            "--cpus" => spec.cpus = value.parse()?,
            "--memory" => spec.memory_bytes = value.parse::<u64>()? << 20,
            "--cmdline" => spec.cmdline = value,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let socket = std::env::temp_dir().join(format!("boot-soft-{}.vsock", std::process::id()));
    let ram = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&ram, spec.memory_bytes)?;
    let backends = Backends {
        kvm: None,
        disks,
        taps: vec![],
        serial: vec![machine::SerialSink(Box::new(
            File::options().write(true).open("/dev/stdout")?,
        ))],
        vsock: UnixListener::bind(&socket)?,
    };
    let files = BootFiles {
        kernel: File::open(kernel)?,
        initrd,
        uuid: [0; 16],
    };
    let (sender, events) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let on_event = Arc::new(move |event| {
        let sender = sender
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nobody listens after the end.
        let _ = sender.send(event);
    });
    let started = Instant::now();
    let mut machine = Machine::boot(spec, ram.into(), files, backends, on_event)?;
    machine.run();
    loop {
        let event = events.recv()?;
        let text = format!("{event:?}");
        writeln!(std::io::stderr(), "--- {:?}: {text}", started.elapsed())?;
        if !text.contains("Agent") {
            break;
        }
    }
    machine.end();
    std::fs::remove_file(socket)?;
    Ok(())
}
