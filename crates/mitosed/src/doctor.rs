//! Checks of the host: what VMs need, what makes them slower, and what to do about it.

use std::fs::{self, File};
use std::path::Path;

use api_types::{Check, CheckLevel, Datastore};
use rustix::process::{Resource, getrlimit};
use vm_spec::format_size;

use crate::config::Config;
use crate::host::{Host, host_memory};

/// Free space below which a datastore is called short, bytes.
const SPACE_SHORT_BYTES: u64 = 2 << 30;
/// Memory below which a host is called short, bytes.
const MEMORY_SHORT_BYTES: u64 = 1 << 30;
/// Open files that 100 VMs need.
const FILES_WANTED: u64 = 4096;

/// Looks at everything.
pub fn examine(host: &Host) -> Vec<Check> {
    let config = &host.config;
    let mut checks = vec![
        kvm(host),
        engine(host),
        programs(config),
        user(),
        memory(config),
        memory_limits(host),
        files(),
        landlock(),
        huge_pages(),
        map_count(),
        tun(),
    ];
    checks.extend(host.datastores().iter().map(space));
    checks
}

fn check(name: &str, level: CheckLevel, found: impl Into<String>, remedy: Option<&str>) -> Check {
    Check {
        name: name.to_owned(),
        level,
        found: found.into(),
        remedy: remedy.map(str::to_owned),
    }
}

fn kvm(host: &Host) -> Check {
    let path = host.config.kvm_device.display();
    let opened = File::options()
        .read(true)
        .write(true)
        .open(&host.config.kvm_device);
    if let Err(error) = opened {
        let remedy =
            "load kvm_intel or kvm_amd, turn virtualization on in the firmware, run as root";
        return check(
            "kvm",
            CheckLevel::Warn,
            format!("{path}: {error}"),
            Some(remedy),
        );
    }
    match host.kvm_speed() {
        Ok(speed) if speed.is_usable() => {
            let found = format!(
                "{path} runs guests, {:.0} M instructions/s in a loop",
                speed.mips
            );
            check("kvm", CheckLevel::Ok, found, None)
        }
        Ok(speed) => {
            let found = format!("{path} emulates guests, {:.1} M instructions/s", speed.mips);
            let remedy = "turn hardware virtualization on in the firmware or the outer hypervisor";
            check("kvm", CheckLevel::Warn, found, Some(remedy))
        }
        Err(error) => {
            let found = format!("{path} does not run a guest: {error:#}");
            check("kvm", CheckLevel::Warn, found, Some("see the daemon's log"))
        }
    }
}

fn engine(host: &Host) -> Check {
    engine_check(host.why_not_kvm(), &x86_fp::missing_on_host())
}

/// What is said of the engine, given why KVM is not used, and what the processor does not have of what
/// the software engine needs.
fn engine_check(why_not_kvm: Option<String>, missing: &[&str]) -> Check {
    match why_not_kvm {
        None => check("engine", CheckLevel::Ok, "kvm for --engine auto", None),
        Some(reason) if !missing.is_empty() => {
            let missing = missing.join(", ");
            let found = format!("none: {reason}; for soft the processor lacks {missing}");
            let remedy = "run on a host with KVM, or on a processor of x86-64-v2";
            check("engine", CheckLevel::Fail, found, Some(remedy))
        }
        Some(reason) => {
            let found = format!("soft for --engine auto, since {reason}");
            let remedy = "guests run, slower than on KVM; --engine kvm insists on it";
            check("engine", CheckLevel::Warn, found, Some(remedy))
        }
    }
}

fn programs(config: &Config) -> Check {
    let path = config.vmm.display();
    if config.vmm.is_file() {
        check("vm process", CheckLevel::Ok, path.to_string(), None)
    } else {
        let remedy = "install mitose-vmm beside mitosed, or set MITOSE_VMM";
        check(
            "vm process",
            CheckLevel::Fail,
            format!("{path} is missing"),
            Some(remedy),
        )
    }
}

fn user() -> Check {
    if rustix::process::geteuid().is_root() {
        check(
            "user",
            CheckLevel::Ok,
            "root: every VM gets a user id of its own",
            None,
        )
    } else {
        let remedy = "run the daemon as root";
        check(
            "user",
            CheckLevel::Fail,
            "not root: VMs cannot be jailed",
            Some(remedy),
        )
    }
}

fn memory(config: &Config) -> Check {
    let Ok(memory) = host_memory() else {
        return check(
            "memory",
            CheckLevel::Warn,
            "/proc/meminfo cannot be read",
            None,
        );
    };
    let found = format!(
        "{} of {} available, {} kept in reserve",
        format_size(memory.available_bytes),
        format_size(memory.total_bytes),
        format_size(config.memory_reserve_bytes)
    );
    if memory.available_bytes < MEMORY_SHORT_BYTES {
        return check(
            "memory",
            CheckLevel::Warn,
            found,
            Some("stop other programs or VMs"),
        );
    }
    check("memory", CheckLevel::Ok, found, None)
}

fn memory_limits(host: &Host) -> Check {
    match host.limits() {
        Ok(groups) => {
            let found = format!("cgroup {} in {}", groups.version(), groups.root().display());
            check("memory limits", CheckLevel::Ok, found, None)
        }
        Err(reason) => {
            let remedy = "VMs run without a limit: give the daemon a directory below the memory \
                          controller with --cgroup";
            check(
                "memory limits",
                CheckLevel::Warn,
                format!("none: {reason}"),
                Some(remedy),
            )
        }
    }
}

fn space(store: &Datastore) -> Check {
    let name = format!("disk {}", store.name);
    if let Some(reason) = &store.reason {
        let remedy = "mount it again, or remove its VMs: they cannot start";
        return check(&name, CheckLevel::Warn, reason, Some(remedy));
    }
    let free = format_size(store.free_bytes);
    let found = format!("{free} free in {}", store.path);
    if store.free_bytes < SPACE_SHORT_BYTES {
        let remedy = "make space: guests that write pause when there is none";
        return check(&name, CheckLevel::Warn, found, Some(remedy));
    }
    check(&name, CheckLevel::Ok, found, None)
}

fn files() -> Check {
    let limit = getrlimit(Resource::Nofile).current;
    let found = limit.map_or("no limit".to_owned(), |limit| format!("{limit} open files"));
    if limit.is_some_and(|limit| limit < FILES_WANTED) {
        let remedy = "raise it with 'ulimit -n 65536' before the daemon starts";
        return check("limits", CheckLevel::Warn, found, Some(remedy));
    }
    check("limits", CheckLevel::Ok, found, None)
}

fn landlock() -> Check {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if modules.split(',').any(|name| name.trim() == "landlock") {
        return check("landlock", CheckLevel::Ok, "active", None);
    }
    let remedy =
        "not needed, but a second wall: boot with lsm=landlock,... where the kernel has it";
    let found = if modules.is_empty() {
        "unknown: /sys/kernel/security is not mounted"
    } else {
        "not active"
    };
    check("landlock", CheckLevel::Warn, found, Some(remedy))
}

fn huge_pages() -> Check {
    let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let text = fs::read_to_string(path).unwrap_or_default();
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or("unknown");
    if matches!(chosen, "advise" | "always" | "within_size" | "force") {
        return check(
            "huge pages",
            CheckLevel::Ok,
            format!("shmem_enabled={chosen}"),
            None,
        );
    }
    let remedy =
        "for shorter stuns: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled";
    check(
        "huge pages",
        CheckLevel::Warn,
        format!("shmem_enabled={chosen}"),
        Some(remedy),
    )
}

fn map_count() -> Check {
    let path = "/proc/sys/vm/max_map_count";
    let count = fs::read_to_string(path)
        .ok()
        .and_then(|t| t.trim().parse::<u64>().ok());
    match count {
        Some(count) if count < 65_530 => check(
            "max_map_count",
            CheckLevel::Warn,
            count.to_string(),
            Some("sysctl vm.max_map_count=65530"),
        ),
        Some(count) => check("max_map_count", CheckLevel::Ok, count.to_string(), None),
        None => check("max_map_count", CheckLevel::Warn, "unknown", None),
    }
}

fn tun() -> Check {
    if Path::new("/dev/net/tun").exists() {
        check("network", CheckLevel::Ok, "/dev/net/tun is there", None)
    } else {
        let remedy = "needed only for --net tap=NAME: modprobe tun";
        check(
            "network",
            CheckLevel::Warn,
            "/dev/net/tun is missing",
            Some(remedy),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_no_engine_runs_on_fails() {
        let level = |kvm: Option<&str>, missing: &[&str]| {
            engine_check(kvm.map(str::to_owned), missing).level
        };
        assert_eq!(level(None, &["SSE4.2"]), CheckLevel::Ok);
        assert_eq!(level(Some("no /dev/kvm"), &[]), CheckLevel::Warn);
        assert_eq!(level(Some("no /dev/kvm"), &["SSE4.2"]), CheckLevel::Fail);
        let found = engine_check(Some("no /dev/kvm".into()), &["SSE4.2", "POPCNT"]).found;
        assert!(found.contains("no /dev/kvm") && found.contains("SSE4.2, POPCNT"));
    }
}
