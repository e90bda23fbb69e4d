//! The guest whose speed is told: one kernel, initrd and disk for the software engine and for QEMU,
//! and what it prints.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Words behind the image's own command line: the first process, no firmware-dependent detours.
const WORDS: &str = "rdinit=/speed mitigations=off random.trust_cpu=on";
const SCRIPT: &str = include_str!("soft_speed.sh");
const POLL: Duration = Duration::from_millis(1);
/// Longest run of the guest.
const TIMEOUT: Duration = Duration::from_secs(90);
const BYTES_MAX: usize = 1 << 20;

/// Files that both engines boot.
#[derive(Debug)]
pub(crate) struct Guest {
    folder: tempfile::TempDir,
    pub(crate) kernel: PathBuf,
    pub(crate) cmdline: String,
    pub(crate) disk: PathBuf,
}

impl Guest {
    /// Makes the guest of the images `tiny` and `debian` in the folder `images`.
    pub(crate) fn make(images: &Path) -> anyhow::Result<Self> {
        let tiny = images.join("tiny");
        let manifest = std::fs::read(tiny.join("manifest.json")).context("no image tiny")?;
        let manifest: Value = serde_json::from_slice(&manifest)?;
        let text = |field: &str| {
            let text = manifest[field].as_str();
            text.with_context(|| format!("the image tiny has no {field}"))
        };
        let mut initrd = std::fs::read(tiny.join(text("initrd")?))?;
        add_file(&mut initrd, "speed", bare_guests::speed_elf());
        add_file(&mut initrd, "speed.sh", SCRIPT.as_bytes());
        add_entry(&mut initrd, "TRAILER!!!", 0, &[]);
        let folder = tempfile::Builder::new().prefix("mitose-speed-").tempdir()?;
        std::fs::write(folder.path().join("initrd"), initrd)?;
        Ok(Self {
            kernel: tiny.join(text("kernel")?),
            cmdline: format!("{} {WORDS}", text("cmdline")?),
            disk: images.join("debian").join("disk.raw"),
            folder,
        })
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.folder.path().join("initrd")
    }

    /// A file of this guest's own, such as a serial log.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Rate of this machine's time-stamp counter, kHz; QEMU hands it to its guest.
    pub(crate) fn host_tsc_khz(&self) -> anyhow::Result<u64> {
        let program = write_program(self.folder.path())?;
        let look = || native(&program, &["now", "now"]);
        let first = look()?;
        std::thread::sleep(Duration::from_millis(300));
        let last = look()?;
        Ok((last.tsc - first.tsc) * 1_000_000 / (last.ns - first.ns).max(1))
    }
}

/// Writes the speed program where this machine can run it.
fn write_program(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = folder.join("speed");
    std::fs::write(&program, bare_guests::speed_elf())?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    Ok(program)
}

/// Runs the speed program on this machine itself.
fn native(program: &Path, words: &[&str]) -> anyhow::Result<Line> {
    let output = Command::new(program).args(words).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Line::parse(text.trim_end(), Duration::ZERO).context("the speed program said nothing")
}

/// Adds a program to an archive in the "newc" form of the kernel's
/// `driver-api/early-userspace/buffer-format`; archives may follow each other in an initrd.
fn add_file(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    add_entry(archive, name, 0o100_755, content);
}

fn add_entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    pad(archive);
    archive.extend(b"070701");
    // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), size of
    // the name with its zero, checksum.
    let (size, name_size) = (content.len(), name.len() + 1);
    let mode = mode as usize;
    for field in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

/// One line of the speed program.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) ns: u64,
    pub(crate) tsc: u64,
    pub(crate) count: u64,
    /// When it was seen from outside, from the start of the VM.
    pub(crate) seen: Duration,
}

impl Line {
    /// Lines of others, such as the kernel's, are nothing.
    fn parse(text: &str, seen: Duration) -> Option<Self> {
        let mut words = text.split_whitespace();
        let name = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        let (ns, tsc, count) = (number()?, number()?, number()?);
        words.next().is_none().then_some(Self {
            name,
            ns,
            tsc,
            count,
            seen,
        })
    }
}

/// What a guest has told.
#[derive(Debug)]
pub(crate) struct Told(Vec<Line>);

impl Told {
    /// Reads the serial log `path` of a VM that was started at `start` until the line `last`.
    /// `alive` fails where the VM has ended.
    pub(crate) fn follow(
        path: &Path,
        start: Instant,
        last: &str,
        mut alive: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut file = File::open(path).with_context(|| format!("no log {}", path.display()))?;
        let (mut bytes, mut whole) = (vec![], 0);
        let mut lines: Vec<Line> = vec![];
        loop {
            file.read_to_end(&mut bytes)?;
            let seen = start.elapsed();
            while let Some(end) = bytes[whole..].iter().position(|byte| *byte == b'\n') {
                let text = String::from_utf8_lossy(&bytes[whole..whole + end]).into_owned();
                lines.extend(Line::parse(text.trim(), seen));
                whole += end + 1;
            }
            if lines.iter().any(|line| line.name == last) {
                return Ok(Self(lines));
            }
            let tail = String::from_utf8_lossy(&bytes);
            let tail = tail.lines().last().unwrap_or_default();
            ensure!(
                seen < TIMEOUT && bytes.len() < BYTES_MAX,
                "the guest did not say {last}; its last line: {tail}"
            );
            alive()?;
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn line(&self, name: &str) -> anyhow::Result<&Line> {
        let line = self.0.iter().find(|line| line.name == name);
        let line = line.with_context(|| format!("the guest said nothing of {name}"))?;
        ensure!(line.ns > 0, "{name} failed in the guest");
        Ok(line)
    }

    /// Fails where the guest's clock does not agree with this machine's.
    pub(crate) fn check_clock(&self) -> anyhow::Result<()> {
        let (boot, done) = (self.line("boot")?, self.line("done")?);
        let guest = (done.ns - boot.ns) as f64;
        let host = (done.seen - boot.seen).as_nanos() as f64;
        ensure!(
            (guest - host).abs() < host * 0.03 + 50e6,
            "the guest counted {:.3} s where {:.3} s went by",
            guest / 1e9,
            host / 1e9
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_the_program_count() {
        let seen = Duration::from_secs(1);
        let line = Line::parse("int 5 6 7", seen).expect("a line");
        assert_eq!((line.ns, line.tsc, line.count), (5, 6, 7));
        assert_eq!(Line::parse("int 5 6", seen), None);
        assert_eq!(Line::parse("[ 1.2] mce: 5 6 7", seen), None);
        assert_eq!(Line::parse("", seen), None);
    }

    #[test]
    fn loops_tell_their_number_of_instructions() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = write_program(folder.path()).expect("the program");
        for (name, each) in [("int", 12), ("mem", 10), ("branch", 12), ("call", 11)] {
            let line = native(&program, &[name, "1000"]).expect("a line");
            assert_eq!((line.name.as_str(), line.count), (name, 1000 * each));
        }
        let failed = native(&program, &["run", "x", "/bin/false"]).expect("a line");
        assert_eq!(failed.ns, 0);
    }

    #[test]
    fn archive_entries_are_aligned() {
        let mut archive = vec![1];
        add_file(&mut archive, "a", b"12345");
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(&archive[4..10], b"070701");
        assert_eq!(&archive[4 + 110..4 + 112], b"a\0");
        assert_eq!(&archive[4 + 112..4 + 117], b"12345");
    }

    #[test]
    fn a_clock_that_runs_off_is_told() {
        let line = |name: &str, ns, seconds| Line {
            name: name.into(),
            ns,
            tsc: 1,
            count: 0,
            seen: Duration::from_secs(seconds),
        };
        let told = |ns| Told(vec![line("boot", 1, 1), line("done", ns, 11)]);
        assert!(told(10_000_000_000).check_clock().is_ok());
        assert!(told(9_000_000_000).check_clock().is_err());
    }
}
