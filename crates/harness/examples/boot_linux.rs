//! Boots a Linux guest in a VM process and forks it, printing its console: for trying kernels and
//! images by hand, mostly inside the lab.
//!
//! `boot_linux KERNEL INITRD WAIT-FOR CLONES [CPUS [CMDLINE]]`

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use harness::{ForkOptions, SpawnOptions, VmProcess};
use vm_spec::VmSpec;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, wanted, clones, rest @ ..] = args.as_slice() else {
        anyhow::bail!("usage: boot_linux KERNEL INITRD WAIT-FOR CLONES [CPUS [CMDLINE]]");
    };
    let cpus = rest
        .first()
        .map_or(Ok(1), |text| text.parse())
        .context("CPUS")?;
    let cmdline = rest.get(1).cloned().unwrap_or_else(|| {
        "console=ttyS0 reboot=k panic=-1 nokaslr cryptomgr.notests \
         initcall_blacklist=trace_eval_init,load_system_certificate_list"
            .into()
    });
    let folder = std::env::temp_dir().join(format!("boot-linux-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (disks, nics) = (vec![], vec![]);
    let spec = VmSpec {
        cpus,
        memory_bytes: 512 << 20,
        cmdline,
        entry: None,
        disks,
        nics,
        serial_ports: 1,
    };
    let started = Instant::now();
    let mut vm = VmProcess::boot(
        &folder,
        "linux",
        spec,
        Path::new(kernel),
        Some(Path::new(initrd)),
        SpawnOptions::default(),
    )?;
    let result = vm.wait_serial(|text| text.contains(wanted.as_str()));
    eprintln!("--- {:?} after boot", started.elapsed());
    eprintln!("{}", vm.serial());
    eprintln!("{}", vm.process_log());
    result?;
    let clones = clones.parse().context("CLONES")?;
    let (forked, clones) = vm.fork(ForkOptions {
        clones,
        ..ForkOptions::default()
    })?;
    eprintln!("--- forked: {forked:?}");
    std::thread::sleep(std::time::Duration::from_secs(12));
    for clone in &clones {
        eprintln!(
            "--- clone\n{}\n{}",
            clone.vm.serial(),
            clone.vm.process_log()
        );
    }
    eprintln!("--- source\n{}", vm.serial());
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
