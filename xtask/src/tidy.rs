//! The house rules, each checked over the whole tree.
//!
//! A finding names file, line, rule and what to do. Limits that today's tree exceeds are in
//! `xtask/ratchet.txt`: they may fall, never rise.

mod dependencies;
mod documents;
mod law;
mod modules;
mod ratchet;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;
use ratchet::Ratchet;

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, relative to the root.
    pub file: PathBuf,
    /// 1-based; 0 for the file as a whole.
    pub line: usize,
    /// Short name of the rule.
    pub rule: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Finding {
    fn new(file: &Path, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            rule,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            0 => write!(f, "{file}: [{}] {}", self.rule, self.message),
            line => write!(f, "{file}:{line}: [{}] {}", self.rule, self.message),
        }
    }
}

/// What the check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Broken rules.
    pub findings: Vec<Finding>,
    /// What could be better.
    pub notes: Vec<String>,
    /// Number of Rust files looked at.
    pub files: usize,
}

/// Checks all rules.
pub fn check(workspace: &Workspace) -> anyhow::Result<Report> {
    let mut report = Report::default();
    dependencies::check(workspace, &mut report)?;
    modules::check(workspace, &mut report)?;
    for file in workspace.files(&["rs"])? {
        report.files += 1;
        source::check(&file, &workspace.read(&file)?, &mut report.findings);
    }
    lengths(workspace, &mut report)?.finish(&mut report);
    for file in workspace.files(&["toml", "sh", "md", "yml", "yaml", "svg"])? {
        documents::check_text(&file, &workspace.read(&file)?, &mut report.findings);
    }
    documents::check(workspace, &mut report)?;
    Ok(report)
}

fn lengths(workspace: &Workspace, report: &mut Report) -> anyhow::Result<Ratchet> {
    let mut ratchet = Ratchet::load(workspace)?;
    for file in workspace.files(&["rs"])? {
        ratchet.check(&file, &workspace.read(&file)?, report);
    }
    Ok(ratchet)
}

/// Lowers the limits of the ratchet to what the tree reaches.
pub fn lower_ratchet(workspace: &Workspace) -> anyhow::Result<()> {
    lengths(workspace, &mut Report::default())?.save(workspace)
}
