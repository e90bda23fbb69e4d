//! Linux guests on the software engine: time to ready, and the first fork of a running Debian.

use anyhow::Context;
use serde_json::Value;

use crate::Limit;
use crate::soft::Soft;

const NAME: &str = "linux";
const CLONE: &str = "linux-clone";

/// One image: its row, how it is made, how often it boots, whether it is forked.
struct Boot {
    image: &'static str,
    row: &'static str,
    recipe: &'static [&'static str],
    samples: usize,
    forked: bool,
}

const BOOTS: [Boot; 3] = [
    Boot {
        image: "tiny",
        row: "boot.ready_ms.tiny",
        recipe: &["tiny"],
        samples: 3,
        forked: false,
    },
    Boot {
        image: "debian",
        row: "boot.ready_ms.debian",
        recipe: &["debian", "--include", "python3"],
        samples: 3,
        forked: true,
    },
    Boot {
        image: "debian-systemd",
        row: "boot.ready_ms.debian_systemd",
        recipe: &["debian", "--init", "systemd"],
        samples: 2,
        forked: false,
    },
];

/// What forks of one sort gave.
#[derive(Default)]
struct Forks {
    stun_us: Vec<f64>,
    first_run_us: Vec<f64>,
    ready_ms: Vec<f64>,
    resident_mib: f64,
}

/// Makes the images that are not there, before times are taken.
pub(crate) fn make_images(soft: &Soft<'_>) {
    for boot in &BOOTS {
        if let Err(error) = soft.image(boot.image, boot.recipe) {
            eprintln!("    {error:#}");
        }
    }
}

/// Boots each image and forks the Debian guest.
pub(crate) fn run(soft: &mut Soft<'_>, limit: Limit) -> anyhow::Result<()> {
    let mut forks = Forks::default();
    for boot in &BOOTS {
        if let Err(error) = boots(soft, boot, limit, &mut forks) {
            let reason = format!("{error:#}");
            eprintln!("    ended early: {reason}");
            soft.report.skip(boot.row, &reason);
            if boot.forked {
                soft.report.skip_all(&["soft.fork", "soft.clone"], &reason);
            }
        }
    }
    Ok(())
}

fn boots(soft: &mut Soft<'_>, boot: &Boot, limit: Limit, forks: &mut Forks) -> anyhow::Result<()> {
    soft.image(boot.image, boot.recipe)?;
    let mut times = vec![];
    for _ in 0..if soft.quick { 1 } else { boot.samples } {
        if limit.reached() {
            break;
        }
        let told = once(soft, boot, forks);
        for name in [CLONE, NAME] {
            let _ = soft.cli.output(&["rm", name, "--force"]);
        }
        times.push(told?);
    }
    let words = format!(
        "image {}, 512 MiB, 1 vCPU, soft; request to the agent's word",
        boot.image
    );
    soft.report.add(boot.row, "ms", &times, &words);
    if boot.forked {
        let words = format!(
            "first fork of a working Debian guest of 512 MiB with {:.0} MiB resident, 1 vCPU, soft, with a disk, 1 clone",
            forks.resident_mib
        );
        let report = &mut soft.report;
        report.add("soft.fork.first.stun_us", "us", &forks.stun_us, &words);
        report.add(
            "soft.clone.first_run_us.1",
            "us",
            &forks.first_run_us,
            &words,
        );
        report.add("soft.clone.ready_ms", "ms", &forks.ready_ms, &words);
    }
    Ok(())
}

/// Boots a VM; returns the time to ready, ms.
fn once(soft: &Soft<'_>, boot: &Boot, forks: &mut Forks) -> anyhow::Result<f64> {
    soft.settle()?;
    let run = [
        "run", NAME, "--engine", "soft", "--image", boot.image, "--memory", "512M", "--wait", "90",
    ];
    let vm = soft.cli.json(&run)?;
    let ready_us = vm["ready_us"].as_f64();
    let ready_us = ready_us.context("the guest was not ready in time")?;
    if boot.forked {
        // A guest that works now and then, as most do.
        let work = "setsid sh -c 'while :; do date >/run/now; sleep 0.05; done' \
                    </dev/null >/dev/null 2>&1 &";
        soft.cli.shell(NAME, work)?;
        fork(soft, forks)?;
    }
    Ok(ready_us / 1000.0)
}

fn fork(soft: &Soft<'_>, forks: &mut Forks) -> anyhow::Result<()> {
    soft.settle()?;
    let number = |value: &Value, what: &str| {
        let number = value[what].as_f64();
        number.with_context(|| format!("the answer has no {what}"))
    };
    let detail = soft.cli.json(&["info", NAME])?;
    forks.resident_mib = number(&detail["memory"], "private_kib")? / 1024.0;
    let reply = soft
        .cli
        .json(&["clone", NAME, "--name", CLONE, "--wait", "60"])?;
    let clone = &reply["clones"][0];
    forks.stun_us.push(number(&reply, "stun_us")?);
    forks.first_run_us.push(number(clone, "first_run_us")?);
    forks.ready_ms.push(number(clone, "ready_us")? / 1000.0);
    Ok(())
}
