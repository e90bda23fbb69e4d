//! Guests of every image boot to their end state, run on several processors, log no warning, and power
//! themselves off. On the engine that the machine has; the Debian images with `MITOSE_TEST_FULL=1`,
//! since each is made for it.

use harness::guest_log::{READ_KERNEL_LOG, check_console, check_kernel_log};
use harness::{Cli, full};

/// Name, recipe, and what waits until the guest has all started.
const IMAGES: [(&str, &[&str], &str); 3] = [
    ("tiny", &["tiny"], "true"),
    ("debian", &["debian"], "true"),
    (
        "debian-systemd",
        &["debian", "--init", "systemd"],
        "systemctl is-system-running --wait",
    ),
];

struct Home(Cli);

impl Drop for Home {
    fn drop(&mut self) {
        self.0.clean_up();
    }
}

fn boot_and_look(cli: &Cli, image: &str, settled: &str, cpus: &str) -> anyhow::Result<()> {
    let name = format!("{image}-{cpus}");
    let run = [
        "run", &name, "--image", image, "--cpus", cpus, "--memory", "512M", "--wait", "240",
    ];
    cli.run(&run)?;
    cli.shell(&name, settled)?;
    check_kernel_log(&cli.shell(&name, READ_KERNEL_LOG)?)?;
    cli.run(&["stop", &name])?;
    check_console(&cli.run(&["logs", &name])?)?;
    let state = cli.json(&["info", &name])?["state"].clone();
    anyhow::ensure!(state == "poweredOff", "{state}");
    cli.run(&["rm", &name]).map(|_| ())
}

#[test]
fn no_guest_logs_a_warning() {
    let folder = tempfile::tempdir().expect("folder");
    let home = Home(Cli::new(folder.path()).expect("mitose is built"));
    let images = if full() { &IMAGES[..] } else { &IMAGES[..1] };
    for (image, recipe, settled) in images {
        let build = [&["image", "build"], *recipe, &["--name", image]].concat();
        home.0.show(&build).expect("an image");
        for cpus in ["1", "4"] {
            boot_and_look(&home.0, image, settled, cpus)
                .unwrap_or_else(|error| panic!("{image} on {cpus} CPUs: {error:#}"));
        }
    }
}
