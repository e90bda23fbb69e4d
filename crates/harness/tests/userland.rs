//! What people run in guests gives the right answers on the engine that the machine has: Python's own
//! tests, digests, numpy, a compiler and what it makes, stress-ng with verification; on one processor
//! and on four, with no warning in the guest's log. With `MITOSE_TEST_FULL=1`: it takes ten minutes.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use harness::guest_log::{READ_KERNEL_LOG, check_kernel_log};
use harness::{Cli, full};

/// Packages of the image.
const PACKAGES: &str =
    "python3,libpython3.13-testsuite,python3-numpy,gcc,libc6-dev,stress-ng,openssl";

const PYTHON_TESTS: &str = "python3 -m test test_math test_float test_hashlib test_zlib test_json \
                            test_threading test_struct test_decimal";

/// Solves a system and transforms there and back; each is judged by the other way round.
const NUMPY: &str = "
import numpy as np
r = np.random.default_rng(7)
a, b = r.random((120, 120)), r.random(120)
assert np.allclose(a @ np.linalg.solve(a, b), b)
assert np.allclose(np.fft.ifft(np.fft.fft(b)).real, b)
i = np.arange(100_000, dtype=np.int64)
assert int((i * i).sum()) == 99_999 * 100_000 * 199_999 // 6
print('right')";

/// Each processor method is run some times by both workers.
const STRESS_CPU: &str = "stress-ng --cpu 2 --cpu-method all --cpu-ops 400 --verify";
const STRESS_MEMORY: &str = "stress-ng --vm 2 --vm-bytes 64M --vm-ops 2000 --verify";

/// Digests by name in the guest's `openssl` and program on the host.
const DIGESTS: [(&str, &str); 5] = [
    ("md5", "md5sum"),
    ("sha1", "sha1sum"),
    ("sha256", "sha256sum"),
    ("sha512", "sha512sum"),
    ("blake2b512", "b2sum"),
];

/// Functions of the compiled program; each has four lines.
const FUNCTIONS: u64 = 2500;

struct Home(Cli);

impl Drop for Home {
    fn drop(&mut self) {
        self.0.clean_up();
    }
}

/// A C program of ten thousand lines and what it prints.
fn program() -> (String, String) {
    let mut text = String::from("#include <stdint.h>\n#include <stdio.h>\n");
    let mut expected = 1_u64;
    for index in 0..FUNCTIONS {
        let factor = 2 * index + 3;
        let _ = write!(
            text,
            "static uint64_t f{index}(uint64_t x) {{\n  x = x * {factor}u + {index}u;\n  \
             return x ^ x >> {};\n}}\n",
            index % 31 + 1
        );
        expected = expected.wrapping_mul(factor).wrapping_add(index);
        expected ^= expected >> (index % 31 + 1);
    }
    text.push_str("int main(void) {\n  uint64_t x = 1;\n");
    for index in 0..FUNCTIONS {
        let _ = writeln!(text, "  x = f{index}(x);");
    }
    text.push_str("  printf(\"%llu\\n\", (unsigned long long)x);\n  return 0;\n}\n");
    (text, expected.to_string())
}

fn digests_agree(cli: &Cli, name: &str, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("data");
    let bytes: Vec<u8> = (0..3_000_001_u64).map(|i| ((i * i) >> 7) as u8).collect();
    std::fs::write(&file, bytes)?;
    let source = file.to_str().context("a name in UTF-8")?;
    cli.run(&["cp", source, &format!("{name}:/root/data")])?;
    for (digest, on_host) in DIGESTS {
        let output = Command::new(on_host).arg(&file).output()?;
        let host = String::from_utf8(output.stdout)?;
        let host = host.split_whitespace().next().unwrap_or_default();
        ensure!(!host.is_empty(), "{on_host} printed nothing");
        let guest = cli.shell(name, &format!("openssl dgst -{digest} -r /root/data"))?;
        ensure!(
            guest.split_whitespace().next() == Some(host),
            "{digest}: {guest}, not {host}"
        );
    }
    Ok(())
}

fn compiles(cli: &Cli, name: &str, folder: &Path) -> anyhow::Result<()> {
    let (text, expected) = program();
    ensure!(text.lines().count() >= 10_000, "too short");
    let file = folder.join("long.c");
    std::fs::write(&file, text)?;
    let source = file.to_str().context("a name in UTF-8")?;
    cli.run(&["cp", source, &format!("{name}:/root/long.c")])?;
    for level in ["-O0", "-O2"] {
        let script = format!("cd /root && gcc {level} -o long long.c && ./long");
        let printed = cli.shell(name, &script)?;
        ensure!(printed == expected, "{level}: {printed}, not {expected}");
    }
    Ok(())
}

fn try_all(cli: &Cli, name: &str, cpus: &str, folder: &Path) -> anyhow::Result<()> {
    cli.run(&[
        "run", name, "--image", "userland", "--cpus", cpus, "--memory", "1G", "--wait", "240",
    ])?;
    digests_agree(cli, name, folder).context("digests")?;
    compiles(cli, name, folder).context("gcc")?;
    let numpy = cli.run(&["exec", name, "--", "python3", "-c", NUMPY])?;
    ensure!(numpy.trim_end() == "right", "numpy: {numpy}");
    for script in [STRESS_CPU, STRESS_MEMORY, PYTHON_TESTS] {
        cli.shell(
            name,
            &format!("{script} >/root/out 2>&1 || {{ tail -n 40 /root/out; exit 1; }}"),
        )
        .with_context(|| script.to_owned())?;
    }
    check_kernel_log(&cli.shell(name, READ_KERNEL_LOG)?)?;
    cli.run(&["rm", name, "--force"]).map(|_| ())
}

#[test]
fn programs_give_the_right_answers() {
    if !full() {
        eprintln!("skipped: MITOSE_TEST_FULL is not set");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let home = Home(Cli::new(&folder.path().join("home")).expect("mitose is built"));
    let build = [
        "image",
        "build",
        "debian",
        "--name",
        "userland",
        "--include",
        PACKAGES,
    ];
    home.0.show(&build).expect("an image");
    for cpus in ["1", "4"] {
        try_all(&home.0, &format!("cpus-{cpus}"), cpus, folder.path())
            .unwrap_or_else(|error| panic!("on {cpus} CPUs: {error:#}"));
    }
}

#[test]
fn the_compiled_program_is_long_and_its_result_moves() {
    let (text, expected) = program();
    assert!(text.lines().count() >= 10_000);
    assert_ne!(expected, "1");
}
