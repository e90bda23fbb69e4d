//! Packages of any Debian suite on any Debian host: apt with a configuration and a cache of its
//! own, so that the host's package state is neither read nor changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::kernel::Suite;
use crate::mirror::{KEYRING, Mirror};
use crate::tool::Tool;
use crate::{ImageError, Watch};

/// Package lists older than this are fetched again.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// File that is written after the lists were fetched.
const STAMP: &str = "fetched";

/// apt for one suite.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    suite: Suite,
}

impl Apt {
    /// Prepares the directories below `cache` and fetches package lists when they are missing or
    /// old. Without a network, old lists do.
    pub(crate) fn open(
        cache: &Path,
        suite: Suite,
        mirror: &Mirror,
        watch: &Watch,
    ) -> Result<Self, ImageError> {
        if !Path::new(KEYRING).exists() {
            return Err(ImageError::ToolMissing {
                program: "debian-archive-keyring.gpg",
                package: "debian-archive-keyring",
            });
        }
        let apt = Self {
            dir: cache.join("apt").join(suite.name()),
            suite,
        };
        for sub in ["lists/partial", "archives/partial", "debs", "answers"] {
            let dir = apt.dir.join(sub);
            fs::create_dir_all(&dir).map_err(ImageError::file("make directory", dir))?;
        }
        apt.write("status", "")?;
        let lines = mirror.source_lines(suite).join("\n") + "\n";
        let changed = fs::read_to_string(apt.dir.join("sources.list")).ok() != Some(lines.clone());
        apt.write("sources.list", &lines)?;
        if changed || !apt.lists_are_fresh() {
            let fetched = apt.fetch_lists(watch);
            // A build without a network goes on with what is there.
            let usable = !changed && apt.dir.join(STAMP).exists();
            match fetched {
                Err(ImageError::ToolFailed { .. }) if usable => {}
                other => other?,
            }
        }
        Ok(apt)
    }

    /// Downloads the newest versions of packages, or finds them in the cache; the files come in the
    /// order of the names.
    pub(crate) fn download(
        &self,
        packages: &[&str],
        watch: &Watch,
    ) -> Result<Vec<PathBuf>, ImageError> {
        let debs = self.dir.join("debs");
        if let Some(files) = self.cached(packages, watch)? {
            return Ok(files);
        }
        let get = || {
            let tool = self.tool("apt-get").current_dir(&debs).arg("download");
            tool.args(packages).output(watch)
        };
        // The mirror may have replaced a version since the lists were fetched.
        if let Err(ImageError::ToolFailed { .. }) = get() {
            self.fetch_lists(watch)?;
            get()?;
        }
        self.cached(packages, watch)?
            .ok_or_else(|| ImageError::Package {
                package: packages.join(", "),
                problem: "was downloaded under another name".into(),
            })
    }

    /// Returns the files of the packages' newest versions when all are there.
    fn cached(&self, packages: &[&str], watch: &Watch) -> Result<Option<Vec<PathBuf>>, ImageError> {
        // Each line: 'URI' FILE SIZE HASH
        let uris = self.remembered("uris", packages, |tool| {
            tool("apt-get")
                .args(["download", "--print-uris"])
                .args(packages)
                .output(watch)
        })?;
        let names: Vec<&str> = uris
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|file| !file.contains('/'))
            .collect();
        let mut files = Vec::new();
        for package in packages {
            let found = names.iter().find(|n| n.split('_').next() == Some(package));
            let Some(name) = found else {
                let problem = format!("is not in {}", self.suite.name());
                return Err(ImageError::Package {
                    package: (*package).into(),
                    problem,
                });
            };
            files.push(self.dir.join("debs").join(name));
        }
        Ok(files.iter().all(|file| file.is_file()).then_some(files))
    }

    /// Returns what apt answered since the lists were last fetched, or asks it: reading the lists
    /// takes apt longer than all the rest of a small image.
    fn remembered(
        &self,
        what: &str,
        about: &[&str],
        ask: impl FnOnce(&dyn Fn(&'static str) -> Tool) -> Result<Vec<u8>, ImageError>,
    ) -> Result<String, ImageError> {
        let name = format!("{what} {}", about.join(" "));
        let path = self.dir.join("answers").join(name);
        if let Ok(text) = fs::read_to_string(&path) {
            return Ok(text);
        }
        let text = String::from_utf8_lossy(&ask(&|program| self.tool(program))?).into_owned();
        if !text.is_empty() {
            fs::write(&path, &text).map_err(ImageError::file("write", path))?;
        }
        Ok(text)
    }

    /// Returns the package that a meta package stands for: its dependency that begins with
    /// `prefix`.
    pub(crate) fn resolve(
        &self,
        meta: &str,
        prefix: &str,
        watch: &Watch,
    ) -> Result<String, ImageError> {
        let show = self
            .tool("apt-cache")
            .args(["show", "--no-all-versions", meta])
            .output(watch)?;
        let text = String::from_utf8_lossy(&show);
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: "));
        let found = depends.and_then(|list| {
            list.split(',').find_map(|item| {
                let name = item.split_whitespace().next()?;
                name.starts_with(prefix).then(|| name.to_owned())
            })
        });
        found.ok_or_else(|| ImageError::Package {
            package: meta.into(),
            problem: format!("depends on no {prefix}…"),
        })
    }

    fn fetch_lists(&self, watch: &Watch) -> Result<(), ImageError> {
        // Without "any" a mirror that cannot be reached is only a warning.
        self.tool("apt-get")
            .args(["update", "-o", "APT::Update::Error-Mode=any"])
            .output(watch)?;
        let answers = self.dir.join("answers");
        let _ = fs::remove_dir_all(&answers);
        fs::create_dir_all(&answers).map_err(ImageError::file("make directory", answers))?;
        self.write(STAMP, "")
    }

    fn lists_are_fresh(&self) -> bool {
        let time = fs::metadata(self.dir.join(STAMP)).and_then(|m| m.modified());
        time.is_ok_and(|t| SystemTime::now().duration_since(t).unwrap_or_default() < LISTS_MAX_AGE)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(ImageError::file("write", path))
    }

    /// The host's settings for proxies and the like stay in force; sources, state and cache are
    /// this directory's.
    fn tool(&self, program: &'static str) -> Tool {
        let path = |sub: &str| self.dir.join(sub).display().to_string();
        let options = [
            ("Dir::Etc::SourceList", path("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State", path("")),
            ("Dir::State::Lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("")),
            ("Dir::Cache::Archives", path("archives")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Architectures", "amd64".into()),
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ];
        let options = options
            .into_iter()
            .flat_map(|(k, v)| ["-o".to_owned(), format!("{k}={v}")]);
        Tool::new(program, "apt").args(options)
    }
}

/// Unpacks a package's files into a directory.
pub(crate) fn unpack(deb: &Path, into: &Path, watch: &Watch) -> Result<(), ImageError> {
    Tool::new("dpkg-deb", "dpkg")
        .arg("-x")
        .arg(deb)
        .arg(into)
        .output(watch)
        .map(drop)
}
