//! Guests of every image boot to their end state, run on several processors, log no warning, and power
//! themselves off. On the engine that the machine has; the Debian images with `MITOSE_TEST_FULL=1`,
//! since each is made for it.

use harness::guest_log::{READ_KERNEL_LOG, check_console, check_kernel_log};
use harness::{Cli, full};

/// Name, recipe, and what waits until the guest has all started.
const IMAGES: [(&str, &[&str], &str); 4] = [
    ("tiny", &["tiny"], "true"),
    ("debian", &["debian"], LOAD_A_MODULE),
    (
        "trixie-systemd",
        &["debian", "--init", "systemd", "--include", SSH_SERVER],
        ALL_STARTED,
    ),
    (
        "bookworm-systemd",
        &[
            "debian",
            "--suite",
            "bookworm",
            "--init",
            "systemd",
            "--include",
            SSH_SERVER,
        ],
        ALL_STARTED,
    ),
];

const SSH_SERVER: &str = "openssh-server";
const ALL_STARTED: &str = "systemctl is-system-running --wait";

/// Waits until the SSH server presents the host keys that are on the disk, of all three usual kinds;
/// prints them.
const READ_HOST_KEYS: &str = "
    own=$(cut -d ' ' -f 1,2 /etc/ssh/ssh_host_*_key.pub | sort)
    for try in $(seq 100); do
        shown=$(ssh-keyscan localhost 2>/dev/null | grep -v '^#' | cut -d ' ' -f 2,3 | sort)
        [ \"$shown\" = \"$own\" ] && [ $(echo \"$own\" | wc -l) = 3 ] && echo \"$own\" && exit
        sleep 0.3
    done
    echo \"on the disk: $own\"; echo \"presented: $shown\"; systemctl status ssh; exit 1";

/// A kernel module that no image loads by itself.
const LOAD_A_MODULE: &str =
    "modprobe dummy && ip link add tried type dummy && ip -br link show tried && ip link del tried";

/// Tells the journal something and waits until it can be read there, with what the kernel said at
/// this boot; a clone's journal takes its time to follow the new machine id. Prints that id.
const READ_JOURNAL: &str = "
    logger --tag harness \"hello from $(hostname)\"
    for try in $(seq 200); do
        if journalctl --boot --quiet --identifier harness | grep -q \"hello from $(hostname)\" &&
            journalctl --boot --quiet --dmesg | grep -q 'Linux version'
        then cat /etc/machine-id; exit; fi
        sleep 0.3
    done
    ls -lR /var/log/journal /run/log/journal; journalctl --boot --lines 20; exit 1";

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
    if settled == ALL_STARTED {
        look_at_systemd(cli, &name)?;
    }
    check_kernel_log(&cli.shell(&name, READ_KERNEL_LOG)?)?;
    cli.run(&["stop", &name])?;
    check_console(&cli.run(&["logs", &name])?)?;
    let state = cli.json(&["info", &name])?["state"].clone();
    anyhow::ensure!(state == "poweredOff", "{state}");
    cli.run(&["rm", &name]).map(|_| ())
}

/// Modules load and the journal is read, in a clone as in its source; the clone's services run on, and
/// its SSH server has keys of its own.
fn look_at_systemd(cli: &Cli, name: &str) -> anyhow::Result<()> {
    cli.shell(name, LOAD_A_MODULE)?;
    let own_id = cli.shell(name, READ_JOURNAL)?;
    let own_keys = cli.shell(name, READ_HOST_KEYS)?;
    let made = cli.json(&["clone", name, "--count", "1", "--wait", "120"])?;
    let clone = made["clones"][0]["name"].as_str().unwrap_or_default();
    let clone_id = cli.shell(clone, READ_JOURNAL)?;
    anyhow::ensure!(own_id != clone_id, "both have machine id {own_id}");
    let clone_keys = cli.shell(clone, READ_HOST_KEYS)?;
    for key in clone_keys.lines() {
        anyhow::ensure!(!own_keys.contains(key), "both have the host key {key}");
    }
    anyhow::ensure!(own_keys == cli.shell(name, READ_HOST_KEYS)?);
    let in_force = cli.shell(clone, "hostname")?;
    anyhow::ensure!(in_force == clone, "{clone} calls itself {in_force}");
    let state = cli.shell(
        clone,
        "systemctl is-system-running; systemctl --failed --plain",
    )?;
    anyhow::ensure!(state.starts_with("running"), "{clone}: {state}");
    cli.shell(clone, LOAD_A_MODULE)?;
    cli.run(&["stop", clone])?;
    cli.run(&["rm", clone]).map(|_| ())
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
