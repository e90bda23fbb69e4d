//! The workspace as `cargo metadata` tells it: packages, levels, dependencies; and its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Platform for which dependencies are resolved: the only one there is.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Folders that hold no source of the project.
const SKIPPED_FOLDERS: &[&str] = &["target", ".git", ".mitose", "corpus", "artifacts"];

/// What a dependency is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The program or library itself, its build script included.
    Build,
    /// Tests and examples.
    Test,
}

/// One package of the workspace.
#[derive(Debug, Default)]
pub struct Package {
    /// Folder relative to the workspace root.
    pub folder: PathBuf,
    /// Level of `[package.metadata.layer]`.
    pub level: Option<u64>,
    /// Names of direct dependencies.
    pub needs: BTreeSet<(Need, String)>,
    /// Source files of libraries and programs, relative to the root.
    pub roots: Vec<PathBuf>,
}

/// The workspace.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Its folder.
    pub root: PathBuf,
    /// Packages of the workspace by name.
    pub packages: BTreeMap<String, Package>,
    /// What each package, also of others, is built with, by package id.
    edges: BTreeMap<String, Vec<String>>,
    /// Names by package id.
    names: BTreeMap<String, String>,
}

impl Workspace {
    /// Asks cargo.
    pub fn load() -> anyhow::Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask has no parent folder")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(root)
            .args([
                "metadata",
                "--format-version=1",
                "--filter-platform",
                TARGET,
            ])
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self::parse(root, &serde_json::from_slice(&output.stdout)?)
    }

    fn parse(root: &Path, metadata: &Value) -> anyhow::Result<Self> {
        let mut workspace = Self {
            root: root.to_owned(),
            ..Self::default()
        };
        let members: BTreeSet<&str> = list(&metadata["workspace_members"])
            .filter_map(Value::as_str)
            .collect();
        for package in list(&metadata["packages"]) {
            let (id, name) = (text(&package["id"])?, text(&package["name"])?);
            workspace.names.insert(id.into(), name.into());
            if members.contains(id) {
                let parsed = parse_package(root, package).with_context(|| name.to_owned())?;
                workspace.packages.insert(name.into(), parsed);
            }
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let built_with = list(&node["deps"]).filter(|dep| {
                list(&dep["dep_kinds"]).any(|kind| kind["kind"].as_str() != Some("dev"))
            });
            let built_with = built_with
                .map(|dep| text(&dep["pkg"]).map(str::to_owned))
                .collect::<anyhow::Result<_>>()?;
            workspace
                .edges
                .insert(text(&node["id"])?.into(), built_with);
        }
        Ok(workspace)
    }

    /// Names of all packages that `name` is built with, directly or not, itself excluded.
    pub fn built_with(&self, name: &str) -> BTreeSet<&str> {
        let id = |(id, known): (&String, &String)| (known == name).then(|| id.clone());
        let mut todo: Vec<String> = self.names.iter().find_map(id).into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = todo.pop() {
            for next in self.edges.get(&id).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    todo.push(next.clone());
                }
            }
        }
        seen.iter()
            .filter_map(|id| self.names.get(id).map(String::as_str))
            .collect()
    }

    /// All files of the project with one of `extensions`, relative to the root, in order.
    pub fn files(&self, extensions: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        walk(&self.root, &mut files)?;
        files.retain(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| extensions.contains(&extension))
        });
        let relative = |file: &PathBuf| file.strip_prefix(&self.root).ok().map(Path::to_owned);
        let mut files: Vec<PathBuf> = files.iter().filter_map(relative).collect();
        files.sort();
        Ok(files)
    }

    /// Reads a file of the project.
    pub fn read(&self, file: &Path) -> anyhow::Result<String> {
        let path = self.root.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let skipped = SKIPPED_FOLDERS
            .iter()
            .any(|name| *name == entry.file_name());
        if kind.is_dir() && !skipped {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value
        .as_str()
        .context("cargo metadata lacks an expected text")
}

fn parse_package(root: &Path, package: &Value) -> anyhow::Result<Package> {
    let relative = |path: &str| {
        let path = Path::new(path);
        path.strip_prefix(root).unwrap_or(path).to_owned()
    };
    let manifest = relative(text(&package["manifest_path"])?);
    let needs = list(&package["dependencies"]).map(|dependency| {
        let need = match dependency["kind"].as_str() {
            Some("dev") => Need::Test,
            _ => Need::Build,
        };
        Ok((need, text(&dependency["name"])?.to_owned()))
    });
    let of_product = |target: &&Value| {
        list(&target["kind"]).any(|kind| matches!(kind.as_str(), Some("lib" | "bin")))
    };
    let roots = list(&package["targets"]).filter(of_product);
    Ok(Package {
        folder: manifest.parent().unwrap_or(Path::new("")).to_owned(),
        level: package["metadata"]["layer"]["level"].as_u64(),
        needs: needs.collect::<anyhow::Result<_>>()?,
        roots: roots
            .map(|target| Ok(relative(text(&target["src_path"])?)))
            .collect::<anyhow::Result<_>>()?,
    })
}
