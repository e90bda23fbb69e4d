//! The dependency law: levels, sideways and forbidden edges, ceilings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::law::{
    CONFINED, CONTROL_PLANE_ONLY, CRATES_MAX, DATA_PLANE_PROGRAMS, DEPTH_MAX, FAN_OUT_MAX,
    FORBIDDEN, GUEST_AGENT_MAY_USE, LOCKFILE_PACKAGES_MAX, PROGRAM_PACKAGES_MAX, SIDEWAYS,
};
use super::{Finding, Report};
use crate::workspace::{Need, Package, Workspace};

pub fn check(workspace: &Workspace, report: &mut Report) -> anyhow::Result<()> {
    let findings = &mut report.findings;
    for (name, package) in &workspace.packages {
        levels(workspace, name, package, findings);
        data_plane(workspace, name, package, findings);
    }
    forbidden(workspace, findings);
    confined(workspace, findings);
    unused(workspace, findings)?;
    guest_agent(workspace, findings);
    ceilings(workspace, findings)
}

fn manifest(package: &Package) -> PathBuf {
    package.folder.join("Cargo.toml")
}

fn levels(workspace: &Workspace, name: &str, package: &Package, findings: &mut Vec<Finding>) {
    let file = manifest(package);
    let Some(level) = package.level else {
        let message = "say where it belongs: [package.metadata.layer] level = N";
        findings.push(Finding::new(&file, 0, "level", message));
        return;
    };
    for (need, on) in &package.needs {
        let Some(below) = workspace.packages.get(on).and_then(|other| other.level) else {
            continue;
        };
        let allowed = match need {
            Need::Build => below < level || SIDEWAYS.contains(&(name, on)),
            Need::Test => below <= level,
        };
        if !allowed {
            let message = format!(
                "{name} (level {level}) depends on {on} (level {below}): dependencies point down"
            );
            findings.push(Finding::new(&file, 0, "level", message));
        }
    }
    let fan_out = in_repo(workspace, package).count();
    if level < 3 && fan_out > FAN_OUT_MAX {
        let message = format!("depends on {fan_out} crates of the project, limit {FAN_OUT_MAX}");
        findings.push(Finding::new(&file, 0, "fan-out", message));
    }
    let depth = depth(workspace, name);
    if depth > DEPTH_MAX {
        let message = format!("ends a chain of {depth} crates, limit {DEPTH_MAX}");
        findings.push(Finding::new(&file, 0, "depth", message));
    }
}

fn in_repo<'a>(
    workspace: &'a Workspace,
    package: &'a Package,
) -> impl Iterator<Item = &'a str> + 'a {
    let built_with = package
        .needs
        .iter()
        .filter(|(need, _)| *need == Need::Build);
    built_with
        .map(|(_, name)| name.as_str())
        .filter(|name| workspace.packages.contains_key(*name))
}

/// Length of the longest chain of crates of the project below `name`, itself included.
fn depth(workspace: &Workspace, name: &str) -> usize {
    let below = workspace.packages.get(name).map(|package| {
        let depths = in_repo(workspace, package).map(|on| depth(workspace, on));
        depths.max().unwrap_or(0)
    });
    below.unwrap_or(0) + 1
}

fn data_plane(workspace: &Workspace, name: &str, package: &Package, findings: &mut Vec<Finding>) {
    let low = package.level.is_some_and(|level| level <= 3);
    if !low && !DATA_PLANE_PROGRAMS.contains(&name) {
        return;
    }
    let built_with = workspace.built_with(name);
    for banned in CONTROL_PLANE_ONLY
        .iter()
        .filter(|on| built_with.contains(**on))
    {
        let message = format!("{name} is built with {banned}, which belongs to the control plane");
        findings.push(Finding::new(
            &manifest(package),
            0,
            "forbidden-edge",
            message,
        ));
    }
}

fn forbidden(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for (name, on, why) in FORBIDDEN {
        let Some(package) = workspace.packages.get(*name) else {
            continue;
        };
        if workspace.built_with(name).contains(on) {
            let message = format!("{name} is built with {on}: {why}");
            findings.push(Finding::new(
                &manifest(package),
                0,
                "forbidden-edge",
                message,
            ));
        }
    }
}

fn confined(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for (package, users) in CONFINED {
        for (name, crate_) in &workspace.packages {
            let uses = crate_.needs.contains(&(Need::Build, (*package).to_owned()));
            if uses && !users.contains(&name.as_str()) {
                let message = format!("{package} is for {} alone", users.join(", "));
                findings.push(Finding::new(
                    &manifest(crate_),
                    0,
                    "forbidden-edge",
                    message,
                ));
            }
        }
    }
}

/// Finds versions in the root manifest that no crate takes.
fn unused(workspace: &Workspace, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let file = Path::new("Cargo.toml");
    let text = workspace.read(file)?;
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        }
        let name = line.split(['=', '.']).next().unwrap_or_default().trim();
        if !inside || name.is_empty() || name.starts_with(['#', '[']) {
            continue;
        }
        let is_used = workspace
            .packages
            .values()
            .any(|package| package.needs.iter().any(|(_, needed)| needed == name));
        if !is_used && !workspace.packages.contains_key(name) {
            let message = format!("nobody uses `{name}`");
            findings.push(Finding::new(file, index + 1, "dependency", message));
        }
    }
    Ok(())
}

fn guest_agent(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let Some(package) = workspace.packages.get("mitose-guest") else {
        return;
    };
    for on in in_repo(workspace, package).filter(|on| !GUEST_AGENT_MAY_USE.contains(on)) {
        let message = format!("the guest agent uses {on}: it shares no code with the host");
        findings.push(Finding::new(
            &manifest(package),
            0,
            "forbidden-edge",
            message,
        ));
    }
}

fn ceilings(workspace: &Workspace, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let lock = Path::new("Cargo.lock");
    let text = workspace.read(lock)?;
    let packages = text.lines().filter(|line| *line == "[[package]]").count();
    if packages > LOCKFILE_PACKAGES_MAX {
        let message = format!("{packages} packages, ceiling {LOCKFILE_PACKAGES_MAX}");
        findings.push(Finding::new(lock, 0, "ceiling", message));
    }
    for (name, ceiling) in PROGRAM_PACKAGES_MAX {
        let built_with: BTreeSet<&str> = workspace.built_with(name);
        if built_with.len() > *ceiling {
            let count = built_with.len();
            let message = format!("{name} is built with {count} packages, ceiling {ceiling}");
            findings.push(Finding::new(lock, 0, "ceiling", message));
        }
    }
    let crates = workspace.packages.len();
    if crates > CRATES_MAX {
        let message = format!("{crates} crates, ceiling {CRATES_MAX}");
        findings.push(Finding::new(Path::new("Cargo.toml"), 0, "ceiling", message));
    }
    Ok(())
}
