//! Powering off: the button, and asking whatever process 1 is.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::{linux, log, pid1};

/// Asks process 1 to stop the system.
pub(crate) fn shut_down(reboot: bool) -> Result<()> {
    if Path::new(pid1::MARKER).exists() {
        let signal = if reboot { libc::SIGTERM } else { libc::SIGUSR2 };
        return linux::kill_process(1, signal).context("cannot signal process 1");
    }
    let verb = if reboot { "reboot" } else { "poweroff" };
    let mut command = if Path::new("/run/systemd/system").exists() {
        let mut command = Command::new("systemctl");
        command.arg("--no-block").arg(verb);
        command
    } else {
        Command::new(format!("/sbin/{verb}"))
    };
    let status = command
        .status()
        .with_context(|| format!("cannot run {verb}"))?;
    ensure!(status.success(), "{verb} ended with {status}");
    Ok(())
}

/// Starts a thread for each input device that may be the power button.
pub(super) fn watch_button() {
    let Ok(entries) = fs::read_dir("/dev/input") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("event") {
            continue;
        }
        let Ok(device) = File::open(entry.path()) else {
            continue;
        };
        let watch = move || {
            if wait_for_power_key(device)
                && let Err(error) = shut_down(false)
            {
                log(&format!("power button: {error:#}"));
            }
        };
        let _ = thread::Builder::new()
            .name("button".into())
            .stack_size(64 << 10)
            .spawn(watch);
    }
}

/// Reads input events until the power key goes down; false when the device ends.
fn wait_for_power_key(mut device: impl Read) -> bool {
    /// `struct input_event` on 64-bit machines: 16 bytes of time, u16 type, u16 code, i32 value.
    const EVENT: usize = 24;
    const EV_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    let mut event = [0u8; EVENT];
    while device.read_exact(&mut event).is_ok() {
        let kind = u16::from_ne_bytes([event[16], event[17]]);
        let code = u16::from_ne_bytes([event[18], event[19]]);
        let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
        if (kind, code, value) == (EV_KEY, KEY_POWER, 1) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0u8; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        let other = [event(1, 30, 1), event(1, 116, 0), event(0, 0, 0)].concat();
        assert!(!wait_for_power_key(other.as_slice()));
        let pressed = [other, event(1, 116, 1)].concat();
        assert!(wait_for_power_key(pressed.as_slice()));
    }
}
