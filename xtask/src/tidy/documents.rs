//! Rules for documents: invariants name their tests, dependencies have a line, no paths of a
//! build machine.

use std::collections::BTreeSet;
use std::path::Path;

use super::law::BUILD_MACHINE_PATHS;
use super::{Finding, Report};
use crate::workspace::Workspace;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const DEPENDENCIES: &str = "docs/dependencies.md";
const ARCHITECTURE_LINES_MAX: usize = 400;

pub fn check(workspace: &Workspace, report: &mut Report) -> anyhow::Result<()> {
    let mut tests = BTreeSet::new();
    for file in workspace.files(&["rs"])? {
        tests.extend(test_names(&workspace.read(&file)?));
    }
    let architecture = workspace.read(Path::new(ARCHITECTURE))?;
    invariants(&architecture, &tests, &mut report.findings);
    crate_map(workspace, &architecture, &mut report.findings);
    let listed = workspace.read(Path::new(DEPENDENCIES))?;
    dependencies(workspace, &listed, &mut report.findings);
    Ok(())
}

/// Rules for any text that is not Rust.
pub fn check_text(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    for (index, line) in text.lines().enumerate() {
        if let Some(path) = machine_paths(line) {
            let message = format!("`{path}` exists only on somebody's machine");
            findings.push(Finding::new(file, index + 1, "machine-path", message));
        }
    }
}

/// Returns the beginning of a path of a build machine in `line`.
pub fn machine_paths(line: &str) -> Option<&'static str> {
    BUILD_MACHINE_PATHS.iter().copied().find(|path| {
        line.match_indices(path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '}' | '/' | '-'))
        })
    })
}

/// Names of the functions behind `#[test]`.
pub fn test_names(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut names = Vec::new();
    for (index, _) in lines.iter().enumerate().filter(|(_, line)| {
        matches!(**line, "#[test]" | "#[tokio::test]") || line.starts_with("#[tokio::test(")
    }) {
        let declaration = lines.iter().skip(index + 1).take(6).find_map(|line| {
            let line = line.strip_prefix("async ").unwrap_or(line);
            line.strip_prefix("fn ")
        });
        let name = declaration.and_then(|rest| rest.split('(').next());
        names.extend(name.map(str::to_owned));
    }
    names
}

/// Each bold sentence below "## Invariants" names a test that exists.
pub fn invariants(text: &str, tests: &BTreeSet<String>, findings: &mut Vec<Finding>) {
    let file = Path::new(ARCHITECTURE);
    let lines = text.lines().count();
    if lines > ARCHITECTURE_LINES_MAX {
        let message = format!("{lines} lines, {ARCHITECTURE_LINES_MAX} are allowed");
        findings.push(Finding::new(file, 0, "documents", message));
    }
    let mut item: Option<(usize, String)> = None;
    let mut inside = false;
    for (index, line) in text.lines().chain(["- "]).enumerate() {
        if line.starts_with("- ") || line.starts_with("## ") {
            if let Some((start, item)) = item.take()
                && item.starts_with("- **")
            {
                invariant(file, start, &item, tests, findings);
            }
            inside = (inside && !line.starts_with("## ")) || line == "## Invariants";
            item = (inside && line.starts_with("- ")).then(|| (index + 1, line.to_owned()));
        } else if let Some((_, item)) = &mut item {
            item.push(' ');
            item.push_str(line.trim());
        }
    }
}

fn invariant(
    file: &Path,
    line: usize,
    item: &str,
    tests: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) {
    let Some((_, named)) = item.split_once("Test: ").or(item.split_once("Tests: ")) else {
        let message = "an invariant ends with \"Test: `name`.\"";
        findings.push(Finding::new(file, line, "invariant", message));
        return;
    };
    let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
    if names.is_empty() {
        let message = "the test's name belongs in backquotes";
        findings.push(Finding::new(file, line, "invariant", message));
    }
    for name in names {
        let function = name.rsplit("::").next().unwrap_or(name);
        if !tests.contains(function) {
            let message = format!("no test `{name}` exists");
            findings.push(Finding::new(file, line, "invariant", message));
        }
    }
}

/// Each crate is on the map.
fn crate_map(workspace: &Workspace, text: &str, findings: &mut Vec<Finding>) {
    for name in workspace.packages.keys() {
        if !text.contains(&format!("`{name}`")) {
            let message = format!("crate `{name}` is not on the map");
            findings.push(Finding::new(
                Path::new(ARCHITECTURE),
                0,
                "documents",
                message,
            ));
        }
    }
}

/// Each outside dependency of a package has a line, and each line a dependency.
fn dependencies(workspace: &Workspace, text: &str, findings: &mut Vec<Finding>) {
    let file = Path::new(DEPENDENCIES);
    let row = |line: &str| {
        line.strip_prefix("| `")?
            .split('`')
            .next()
            .map(str::to_owned)
    };
    let listed: BTreeSet<String> = text.lines().filter_map(row).collect();
    let used: BTreeSet<String> = workspace
        .packages
        .values()
        .flat_map(|package| package.needs.iter().map(|(_, name)| name.clone()))
        .filter(|name| !workspace.packages.contains_key(name))
        .collect();
    for name in used.difference(&listed) {
        let message = format!("no line says why `{name}` is needed");
        findings.push(Finding::new(file, 0, "dependency", message));
    }
    for name in listed.difference(&used) {
        let message = format!("`{name}` is listed and nobody uses it");
        findings.push(Finding::new(file, 0, "dependency", message));
    }
}
