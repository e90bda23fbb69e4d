//! What the demo measured, as a table for people and a file for programs.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// One clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CloneRow {
    pub(crate) name: String,
    pub(crate) first_run_us: u64,
    pub(crate) ready_us: Option<u64>,
    pub(crate) hostname: String,
    pub(crate) mac: String,
    pub(crate) machine_id: String,
    pub(crate) keys: u64,
    pub(crate) private_kib: u64,
    pub(crate) shared_kib: u64,
    pub(crate) delta_bytes: u64,
}

/// The story of the Debian guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Story {
    pub(crate) engine: String,
    pub(crate) boot_ready_us: Option<u64>,
    pub(crate) source_stun_us: u64,
    pub(crate) io_held_us: u64,
    pub(crate) diverged: bool,
    pub(crate) clone_of_clone: bool,
    pub(crate) survives_source: bool,
    pub(crate) clones: Vec<CloneRow>,
}

/// Forks of a bare-metal guest on the machine's own KVM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Native {
    pub(crate) engine: String,
    pub(crate) memory_mib: u64,
    pub(crate) touched_mib: u64,
    pub(crate) clones: u64,
    pub(crate) source_stun_us: u64,
    pub(crate) first_run_us_min: u64,
    pub(crate) first_run_us_median: u64,
    pub(crate) first_run_us_max: u64,
    pub(crate) repeat_stun_us: u64,
    pub(crate) repeat_first_run_us_median: u64,
    pub(crate) private_kib_median: u64,
    pub(crate) shared_kib_median: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    lab: bool,
    #[serde(flatten)]
    story: Story,
    native: Option<Native>,
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

impl Report {
    pub(crate) fn new(story: Story, lab: bool, native: Option<Native>) -> Self {
        Self { lab, story, native }
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let story = &self.story;
        let place = if self.lab {
            " in the lab: for function, not for timing"
        } else {
            ""
        };
        println!(
            "\nDebian guest with redis, forked while it writes ({}{place})",
            story.engine
        );
        println!(
            "source stun {}, disk held {}, boot to ready {}",
            ms(story.source_stun_us),
            ms(story.io_held_us),
            story.boot_ready_us.map_or("-".into(), ms)
        );
        println!(
            "{:<10} {:>11} {:>12} {:<10} {:<17} {:<32} {:>6} {:>11} {:>11} {:>10}",
            "clone",
            "first run",
            "ready",
            "host name",
            "mac",
            "machine-id",
            "keys",
            "private KiB",
            "shared KiB",
            "delta KiB"
        );
        for clone in &story.clones {
            println!(
                "{:<10} {:>11} {:>12} {:<10} {:<17} {:<32} {:>6} {:>11} {:>11} {:>10}",
                clone.name,
                ms(clone.first_run_us),
                clone.ready_us.map_or("-".into(), ms),
                clone.hostname,
                clone.mac,
                clone.machine_id,
                clone.keys,
                clone.private_kib,
                clone.shared_kib,
                clone.delta_bytes / 1024
            );
        }
        let answer = |yes| if yes { "yes" } else { "NO" };
        println!(
            "source and clones go their own way: {}",
            answer(story.diverged)
        );
        println!(
            "a clone of a clone works:           {}",
            answer(story.clone_of_clone)
        );
        println!(
            "clones live without the source:     {}",
            answer(story.survives_source)
        );
        if let Some(native) = &self.native {
            println!(
                "\nBare-metal guest on this machine's KVM, {} MiB ({} MiB touched), {} clones in \
                 one call",
                native.memory_mib, native.touched_mib, native.clones
            );
            println!(
                "source stun {}; first run of a clone {} (min {}, max {}); private {} KiB each",
                ms(native.source_stun_us),
                ms(native.first_run_us_median),
                ms(native.first_run_us_min),
                ms(native.first_run_us_max),
                native.private_kib_median
            );
            println!(
                "second fork of the same source: stun {}, first run of a clone {}",
                ms(native.repeat_stun_us),
                ms(native.repeat_first_run_us_median)
            );
        }
    }

    /// Fails where the demo did not show what it is for.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let story = &self.story;
        ensure!(story.diverged, "source and clones did not go their own way");
        ensure!(story.clone_of_clone, "a clone of a clone does not work");
        ensure!(
            story.survives_source,
            "clones do not live without the source"
        );
        Ok(())
    }
}
