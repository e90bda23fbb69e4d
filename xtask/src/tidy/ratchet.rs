//! Limits that today's tree exceeds: one line `PATH LINES` for each long file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::law::{FILE_LINES_MAX, FILE_LINES_WARN};
use super::{Finding, Report};
use crate::workspace::Workspace;

const FILE: &str = "xtask/ratchet.txt";
const HEADER: &str = "\
# Files that are longer than they should be, with their lines, tests excluded. Numbers only fall:
# `cargo xtask tidy --ratchet` lowers them. New entries are for review to refuse.
";

#[derive(Debug, Default)]
pub struct Ratchet(BTreeMap<PathBuf, usize>);

impl Ratchet {
    pub fn load(workspace: &Workspace) -> anyhow::Result<Self> {
        Self::parse(&workspace.read(Path::new(FILE))?).context(FILE)
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let entries = text.lines().map(str::trim);
        let entries = entries.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries = entries.map(|line| {
            let (path, lines) = line
                .rsplit_once(' ')
                .with_context(|| format!("`{line}` is not `PATH LINES`"))?;
            let lines = lines
                .parse()
                .with_context(|| format!("`{line}` does not end with a number"))?;
            Ok((PathBuf::from(path.trim()), lines))
        });
        Ok(Self(entries.collect::<anyhow::Result<_>>()?))
    }

    pub fn check_length(&self, file: &Path, lines: usize, report: &mut Report) {
        let listed = self.0.get(file).copied();
        let allowed = listed.unwrap_or(FILE_LINES_WARN).min(FILE_LINES_MAX);
        if lines > allowed {
            report.findings.push(Finding::new(
                file,
                0,
                "file-length",
                format!("{lines} lines without tests, {allowed} are allowed: split it"),
            ));
        } else if let Some(listed) = listed
            && lines < listed
        {
            let file = file.display();
            let note = format!("{file} is down to {lines} lines: run `cargo xtask tidy --ratchet`");
            report.notes.push(note);
        }
    }

    /// Finds entries whose file is gone.
    pub fn check_entries(&self, workspace: &Workspace, report: &mut Report) {
        for file in self
            .0
            .keys()
            .filter(|file| !workspace.root.join(file).exists())
        {
            let message = format!("lists {}, which does not exist", file.display());
            let finding = Finding::new(Path::new(FILE), 0, "file-length", message);
            report.findings.push(finding);
        }
    }

    pub fn lower(&mut self, file: &Path, lines: usize) {
        if let Some(listed) = self.0.get_mut(file) {
            *listed = lines.min(*listed);
        }
        self.0.retain(|_, lines| *lines > FILE_LINES_WARN);
    }

    pub fn save(&self, workspace: &Workspace) -> anyhow::Result<()> {
        std::fs::write(workspace.root.join(FILE), self.render()).context(FILE)
    }

    pub fn render(&self) -> String {
        let entry = |(file, lines): (&PathBuf, &usize)| format!("{} {lines}\n", file.display());
        HEADER.to_owned() + &self.0.iter().map(entry).collect::<String>()
    }
}
