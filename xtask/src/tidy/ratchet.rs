//! Limits that today's tree exceeds: a line `PATH LINES` for each long file, `PATH::NAME LINES`
//! for each long function.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

use super::law::{FILE_LINES_MAX, FILE_LINES_WARN, FUNCTION_LINES};
use super::{Finding, Report, source};
use crate::workspace::Workspace;

const FILE: &str = "xtask/ratchet.txt";
const HEADER: &str = "\
# Files and functions that are longer than they should be, with their lines, tests excluded. Numbers
# only fall: `cargo xtask tidy --ratchet` lowers them. New entries are for review to refuse.
";

/// The entries, and which of them the tree still needs.
#[derive(Debug, Default)]
pub struct Ratchet {
    allowed: BTreeMap<String, usize>,
    seen: BTreeMap<String, usize>,
}

impl Ratchet {
    /// Reads the file.
    pub fn load(workspace: &Workspace) -> anyhow::Result<Self> {
        Self::parse(&workspace.read(Path::new(FILE))?).context(FILE)
    }

    /// Reads entries; `#` begins a comment.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let entries = text.lines().map(str::trim);
        let entries = entries.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries = entries.map(|line| {
            let (subject, lines) = line
                .rsplit_once(' ')
                .with_context(|| format!("`{line}` is not `PATH LINES`"))?;
            let lines = lines
                .parse()
                .with_context(|| format!("`{line}` does not end with a number"))?;
            Ok((subject.trim().to_owned(), lines))
        });
        Ok(Self {
            allowed: entries.collect::<anyhow::Result<_>>()?,
            seen: BTreeMap::new(),
        })
    }

    /// Checks the lengths of a file and of its functions.
    pub fn check(&mut self, file: &Path, text: &str, report: &mut Report) {
        let subject = file.display().to_string();
        let lines = source::product_lines(file, text);
        let allowed = self
            .allow(&subject, lines, FILE_LINES_WARN)
            .min(FILE_LINES_MAX);
        if lines > allowed {
            let message = format!("{lines} lines without tests, {allowed} are allowed: split it");
            let finding = Finding::new(file, 0, "file-length", message);
            report.findings.push(finding);
        }
        for function in source::functions(text, lines) {
            let subject = format!("{subject}::{}", function.name);
            let allowed = self.allow(&subject, function.lines, FUNCTION_LINES);
            if function.lines > allowed {
                let (name, lines) = (&function.name, function.lines);
                let message = format!("`{name}` has {lines} lines, {allowed} are allowed");
                let finding = Finding::new(file, function.line, "function-length", message);
                report.findings.push(finding);
            }
        }
    }

    /// Returns the limit of `subject` and notes its length where that is above the usual limit.
    fn allow(&mut self, subject: &str, lines: usize, usual: usize) -> usize {
        if lines > usual {
            self.seen.insert(subject.to_owned(), lines);
        }
        self.allowed.get(subject).copied().unwrap_or(usual)
    }

    /// Notes entries that are higher than the tree needs.
    pub fn finish(&self, report: &mut Report) {
        for (subject, allowed) in &self.allowed {
            let lines = self.seen.get(subject).copied().unwrap_or(0);
            if lines < *allowed {
                let note = format!("{subject} improved: run `cargo xtask tidy --ratchet`");
                report.notes.push(note);
            }
        }
    }

    /// Renders the entries that are still needed, each as low as the tree allows.
    pub fn lowered(&self) -> String {
        let entries = self.allowed.iter().filter_map(|(subject, allowed)| {
            let lines = self.seen.get(subject)?.min(allowed);
            Some(format!("{subject} {lines}\n"))
        });
        HEADER.to_owned() + &entries.collect::<String>()
    }

    /// Writes the lowered entries.
    pub fn save(&self, workspace: &Workspace) -> anyhow::Result<()> {
        std::fs::write(workspace.root.join(FILE), self.lowered()).context(FILE)
    }
}
