//! The same guest on QEMU's software CPU: the measure to compare with, and the judge that counts
//! instructions.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use lab::{Lab, Recipe};

use crate::soft_guest::{Guest, Told};

/// The instructions of x86-64-v2 and RDRAND, as the software engine has them.
const CPU: &str = "qemu64,-svm,+hypervisor,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand";
/// Devices by ACPI and virtio-mmio alone, as in a VM of Mitose.
const MACHINE: &str = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,pcie=off,usb=off";

/// How QEMU counts time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// By this machine's clock.
    Real,
    /// Each instruction takes 2 to the power of so many nanoseconds, waiting takes none.
    Counted(u32),
}

/// A QEMU for x86-64: the words that start it.
#[derive(Debug)]
pub(crate) struct Qemu {
    words: Vec<OsString>,
    /// Its own word on its version.
    pub(crate) version: String,
}

impl Qemu {
    /// Takes the lab's QEMU, or the one in the path.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let recipe = Recipe::from_environment()?;
        let words = Lab::open(&lab::default_directory(), &recipe)
            .map(|lab| lab.emulator())
            .or_else(|| Some(vec![in_path("qemu-system-x86_64")?.into()]))
            .context("no QEMU: the lab is not built and qemu-system-x86_64 is not in the path")?;
        let mut qemu = Self {
            words,
            version: String::new(),
        };
        let output = qemu.command().arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().next().context("QEMU does not start")?;
        let version = line.trim_start_matches("QEMU emulator version ");
        let version = version.split_whitespace().next().unwrap_or(version);
        qemu.version = version.to_owned();
        Ok(qemu)
    }

    /// The kernel ends it when this process dies, however it dies.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.words)
            .stdin(Stdio::null());
        command
    }

    /// Boots `guest` and returns what it told up to the line `last`.
    pub(crate) fn run(&self, guest: &Guest, pace: Pace, last: &str) -> anyhow::Result<Told> {
        let khz = match pace {
            Pace::Real => guest.host_tsc_khz()?,
            Pace::Counted(_) => 1_000_000,
        };
        let serial = guest.file("qemu-serial.log");
        File::create(&serial)?;
        let messages = guest.file("qemu.log");
        let mut command = self.command();
        command
            .args(["-machine", MACHINE, "-cpu", CPU, "-smp", "1", "-m", "512M"])
            .args(["-accel", "tcg,thread=single", "-display", "none"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-device", "virtio-blk-device,drive=disk", "-drive"])
            .arg(drive(&guest.disk))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(guest.initrd())
            // Without a timer that Linux could measure it with, the rate of the counter is told.
            .arg("-append")
            .arg(format!(
                "{} tsc_early_khz={khz} tsc=reliable",
                guest.cmdline
            ))
            .stdout(Stdio::null())
            .stderr(File::create(&messages)?);
        if let Pace::Counted(shift) = pace {
            command.args(["-icount", &format!("shift={shift},sleep=off")]);
        }
        let start = Instant::now();
        let mut machine = Machine(command.spawn().context("cannot run setpriv (util-linux)")?);
        Told::follow(&serial, start, last, || {
            if let Some(status) = machine.0.try_wait()? {
                let said = std::fs::read_to_string(&messages).unwrap_or_default();
                bail!("QEMU ended with {status}: {}", said.trim());
            }
            Ok(())
        })
    }
}

/// A running QEMU that ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drive(disk: &Path) -> String {
    // A comma in a file's name is written twice in QEMU's options.
    let file = disk.to_string_lossy().replace(',', ",,");
    format!("file={file},format=raw,if=none,id=disk,readonly=on")
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
