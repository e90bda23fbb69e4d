//! What guests may log: no error and no warning.

use anyhow::{bail, ensure};

/// Command that prints a guest's kernel log with a level before each line.
pub const READ_KERNEL_LOG: &str = "dmesg -r";

/// Words that no console may show.
const BAD: &[&str] = &[
    "WARNING: CPU",
    "BUG:",
    "Oops",
    "stall",
    "lockup",
    "I/O error",
    "Call Trace",
    "general protection",
    "EXT4-fs error",
    "hung_task",
    "blocked for more than",
    "Kernel panic",
];

/// Warnings that tell of a host that was busy with other things for some milliseconds, which tests
/// that run beside each other make it.
const OF_A_BUSY_HOST: &[&str] = &["hrtimer: interrupt took", "hogged CPU for >"];

/// Warnings that tell of a host's processor without its maker's latest microcode: guests on KVM see
/// the host's processor, the lab's is a model that knows none, and the host's own kernel says the same.
const OF_OLD_MICROCODE: &[&str] = &[
    "Speculative Return Stack Overflow: IBPB-extending microcode not applied",
    "Speculative Return Stack Overflow: WARNING: See",
];

/// KERN_WARNING; lower is worse.
const WARNING: u32 = 4;

/// Refuses a console's text that has one of the words that tell of a broken guest.
pub fn check_console(text: &str) -> anyhow::Result<()> {
    for line in text.lines() {
        if let Some(word) = BAD.iter().find(|word| line.contains(**word)) {
            bail!("the console shows {word}: {line}");
        }
    }
    Ok(())
}

/// Refuses a kernel log, as [`READ_KERNEL_LOG`] prints it, that has a warning or worse.
pub fn check_kernel_log(text: &str) -> anyhow::Result<()> {
    check_console(text)?;
    let mut lines = 0;
    for line in text.lines() {
        let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let Some(level) = level.and_then(|(level, _)| level.parse::<u32>().ok()) else {
            continue;
        };
        lines += 1;
        // The upper bits say who logged it.
        let is_bad = level % 8 <= WARNING;
        let mut of_the_host = OF_A_BUSY_HOST.iter().chain(OF_OLD_MICROCODE);
        let excused = of_the_host.any(|words| line.contains(words));
        ensure!(!is_bad || excused, "the kernel warned: {line}");
    }
    ensure!(lines > 0, "this is no kernel log: {text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_worse_are_refused() {
        let good = "<6>[    0.0] Linux version\n<5>[    0.1] notice\n<30>[    1.0] systemd[1]: up";
        assert!(check_kernel_log(good).is_ok());
        for bad in [
            "<4>[    0.5] PCI: System does not support PCI",
            "<3>[    0.5] PCI: Fatal: No config space access function found",
            "<28>[    1.0] systemd[1]: something failed",
            "<6>[    1.0] rcu: INFO: rcu_preempt detected stalls",
        ] {
            assert!(
                check_kernel_log(&format!("{good}\n{bad}")).is_err(),
                "{bad}"
            );
        }
        let busy = format!("{good}\n<4>[    2.0] hrtimer: interrupt took 2000000 ns");
        assert!(check_kernel_log(&busy).is_ok());
        let words = "Speculative Return Stack Overflow: IBPB-extending microcode not applied!";
        let old = format!("{good}\n<4>[    0.6] {words}");
        assert!(check_kernel_log(&old).is_ok());
        assert!(check_kernel_log("[    0.0] no levels").is_err());
    }
}
