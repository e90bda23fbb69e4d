//! Crates and modules: names, files that no module reaches, where `unsafe` may be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::law::{BANNED_NAMES, MACROS_MAX, QUOTES_THE_LAW, UNSAFE, UNSAFE_FORMS};
use super::source::{code_of, comment_start};
use super::{Finding, Report};
use crate::workspace::{Package, Workspace};

pub fn check(workspace: &Workspace, report: &mut Report) -> anyhow::Result<()> {
    let files = workspace.files(&["rs"])?;
    for (name, package) in &workspace.packages {
        let folder = package.folder.file_name().unwrap_or_default();
        if folder != name.as_str() {
            let message = format!("crate {name} lives in a folder with another name");
            let finding = Finding::new(&package.folder, 0, "name", message);
            report.findings.push(finding);
        }
        banned(&package.folder, name, &mut report.findings);
        let own = files
            .iter()
            .filter(|file| file.starts_with(&package.folder));
        check_crate(workspace, name, package, own, &mut report.findings)?;
    }
    Ok(())
}

fn banned(file: &Path, name: &str, findings: &mut Vec<Finding>) {
    if BANNED_NAMES.contains(&name) {
        let message = format!("`{name}` says nothing: name what it provides");
        findings.push(Finding::new(file, 0, "name", message));
    }
}

fn check_crate<'a>(
    workspace: &Workspace,
    name: &str,
    package: &Package,
    files: impl Iterator<Item = &'a PathBuf>,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let (mut modules, mut product, mut macros) = (BTreeSet::new(), Vec::new(), 0);
    for file in files {
        let text = workspace.read(file)?;
        modules.extend(declared_modules(file, &text));
        macros += text
            .lines()
            .filter(|line| code_of(line).starts_with("macro_rules!"))
            .count();
        let inside = file.strip_prefix(&package.folder).unwrap_or(file);
        if let Some(stem) = file.file_stem().and_then(|stem| stem.to_str()) {
            banned(file, stem, findings);
        }
        if inside.starts_with("src") {
            product.push(file);
            unsafe_code(file, inside, &text, name, findings);
        }
    }
    if macros > MACROS_MAX {
        let message = format!("{macros} macros, {MACROS_MAX} are allowed");
        findings.push(Finding::new(&package.folder, 0, "macros", message));
    }
    for file in product {
        if !package.roots.contains(file) && !modules.contains(file) {
            let message = "no module declares this file";
            findings.push(Finding::new(file, 0, "orphan", message));
        }
    }
    let may_opt_in = UNSAFE.iter().any(|(opted, _)| *opted == name);
    for root in package.roots.iter().filter(|_| !may_opt_in) {
        if !workspace.read(root)?.contains("#![forbid(unsafe_code)]") {
            let message = "add #![forbid(unsafe_code)] to the crate root";
            findings.push(Finding::new(root, 0, "unsafe", message));
        }
    }
    Ok(())
}

/// Files that the `mod` lines of `file` may mean.
pub fn declared_modules(file: &Path, text: &str) -> Vec<PathBuf> {
    let stem = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("");
    let parent = file.parent().unwrap_or(Path::new(""));
    let folder = match stem {
        "lib" | "main" | "mod" => parent.to_owned(),
        // A program in src/bin/ has its modules beside it, any other file below its own name.
        _ => parent.join(stem),
    };
    let mut files = Vec::new();
    for line in text.lines() {
        let code = code_of(line);
        let code = code.strip_prefix("pub ").unwrap_or(code);
        let code = code.strip_prefix("pub(crate) ").unwrap_or(code);
        let code = code.strip_prefix("pub(super) ").unwrap_or(code);
        let name = code
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(';'));
        for folder in name.iter().flat_map(|_| [folder.as_path(), parent]) {
            let name = name.unwrap_or_default();
            files.push(folder.join(format!("{name}.rs")));
            files.push(folder.join(name).join("mod.rs"));
        }
    }
    files
}

fn unsafe_code(file: &Path, inside: &Path, text: &str, name: &str, findings: &mut Vec<Finding>) {
    let quotes = QUOTES_THE_LAW.iter().any(|path| Path::new(path) == file);
    let allowed = quotes
        || UNSAFE.iter().any(|(opted, files)| {
            *opted == name
                && files
                    .is_none_or(|files| files.iter().any(|allowed| Path::new(allowed) == inside))
        });
    for (index, line) in text.lines().enumerate() {
        let code = match comment_start(line) {
            Some(start) => &line[..start],
            None => line,
        };
        let is_unsafe = UNSAFE_FORMS.iter().any(|form| code.contains(form));
        if is_unsafe && !allowed {
            let message = "`unsafe` is confined to the crates and files that the law names";
            findings.push(Finding::new(file, index + 1, "unsafe", message));
        }
    }
}
