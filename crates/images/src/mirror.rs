//! Where Debian packages come from: the mirror that the host itself uses, or a given one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ImageError;
use crate::kernel::Suite;

/// Key ring that signs every Debian suite; part of each Debian system.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Addresses of the main archive and, when known, the one of security updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    main: String,
    security: Option<String>,
}

/// One source of the host's apt configuration.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
}

impl Mirror {
    /// Uses the given address, else the one in the host's apt configuration.
    pub(crate) fn choose(given: Option<&str>) -> Result<Self, ImageError> {
        if let Some(uri) = given {
            return Ok(Self {
                main: check_uri(uri)?,
                security: None,
            });
        }
        Self::of_host(Path::new("/")).ok_or_else(|| ImageError::BadParameter {
            field: "mirror",
            problem:
                "this host's apt configuration names no Debian mirror: give the address of one"
                    .into(),
        })
    }

    fn of_host(root: &Path) -> Option<Self> {
        let release = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
        let field = |name: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        let own = field("VERSION_CODENAME=").filter(|_| field("ID=").as_deref() == Some("debian"));
        let sources = host_sources(root);
        let debian = |source: &&Source| {
            own.as_ref() == Some(&source.suite)
                || Suite::ALL.iter().any(|suite| suite.name() == source.suite)
        };
        let main = sources.iter().find(debian)?;
        let security = sources
            .iter()
            .find(|source| source.suite.ends_with("-security"));
        Some(Self {
            main: resolve(root, &main.uri)?,
            security: security.and_then(|source| resolve(root, &source.uri)),
        })
    }

    /// Returns the sources of a suite in apt's one-line form.
    pub(crate) fn source_lines(&self, suite: Suite) -> Vec<String> {
        let name = suite.name();
        let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main");
        let mut lines = vec![
            line(&self.main, name),
            line(&self.main, &format!("{name}-updates")),
        ];
        lines.extend(
            self.security
                .as_ref()
                .map(|uri| line(uri, &format!("{name}-security"))),
        );
        lines
    }
}

fn check_uri(uri: &str) -> Result<String, ImageError> {
    let known = ["http://", "https://", "file:/"]
        .iter()
        .any(|scheme| uri.starts_with(scheme));
    if known && !uri.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Ok(uri.to_owned());
    }
    Err(ImageError::BadParameter {
        field: "mirror",
        problem: format!("{uri:?} is not an http, https or file address"),
    })
}

/// Follows `mirror+file:` to the first mirror of its list.
fn resolve(root: &Path, uri: &str) -> Option<String> {
    let Some(list) = uri.strip_prefix("mirror+file:") else {
        return check_uri(uri).ok();
    };
    let text = fs::read_to_string(root.join(list.trim_start_matches('/'))).ok()?;
    let first = text
        .lines()
        .find_map(|line| line.split_whitespace().next())?;
    check_uri(first).ok()
}

fn host_sources(root: &Path) -> Vec<Source> {
    let mut files = vec![root.join("etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir(root.join("etc/apt/sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "list" => Some(one_line_sources(&text)),
                "sources" => Some(stanza_sources(&text)),
                _ => None,
            }
        })
        .flatten()
        .collect()
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line_sources(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let rest = match rest.strip_prefix('[') {
                Some(options) => options.split_once(']')?.1,
                None => rest,
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            words.any(|component| component == "main").then(|| Source {
                uri: uri.trim_end_matches('/').to_owned(),
                suite: suite.trim_end_matches('/').to_owned(),
            })
        })
        .collect()
}

/// Stanzas of `Types:`, `URIs:`, `Suites:` and `Components:`.
fn stanza_sources(text: &str) -> Vec<Source> {
    let plain: String =
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .fold(String::new(), |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            });
    let mut sources = Vec::new();
    for stanza in plain.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            let wanted = format!("{name}:");
            let mut words = Vec::new();
            let mut inside = false;
            for line in stanza.lines() {
                let value = if line.starts_with([' ', '\t']) {
                    inside.then_some(line)
                } else {
                    let head = line.get(..wanted.len());
                    inside = head.is_some_and(|h| h.eq_ignore_ascii_case(&wanted));
                    inside.then(|| &line[wanted.len()..])
                };
                words.extend(
                    value
                        .into_iter()
                        .flat_map(str::split_whitespace)
                        .map(str::to_owned),
                );
            }
            words
        };
        let enabled = field("Enabled").first().is_none_or(|v| v != "no");
        let usable = field("Types").iter().any(|t| t == "deb")
            && field("Components").iter().any(|c| c == "main");
        let Some(uri) = field("URIs").into_iter().next() else {
            continue;
        };
        if enabled && usable {
            let uri = uri.trim_end_matches('/').to_owned();
            let suites = field("Suites").into_iter();
            sources.extend(suites.map(|suite| Source {
                uri: uri.clone(),
                suite,
            }));
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn stanzas_of_a_debian_host_are_found() {
        let stanza = "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";
        let host = host(&[
            ("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n"),
            (
                "etc/apt/sources.list.d/a.list",
                "deb https://cloud.example/apt sdk main\n",
            ),
            ("etc/apt/sources.list.d/debian.sources", stanza),
        ]);
        let mirror = Mirror::of_host(host.path()).unwrap();
        assert_eq!(mirror.main, "http://mirror.example/debian");
        let lines = mirror.source_lines(Suite::Trixie);
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].ends_with("http://mirror.example/debian trixie main"),
            "{lines:?}"
        );
        assert!(lines[2].ends_with("http://mirror.example/security trixie-security main"));
    }

    #[test]
    fn one_line_sources_and_mirror_lists_are_understood() {
        let host = host(&[
            ("etc/os-release", "ID=debian\nVERSION_CODENAME=\"trixie\"\n"),
            (
                "etc/apt/sources.list",
                "# deb x\ndeb [arch=amd64 signed-by=/k] mirror+file:/etc/apt/m trixie main contrib\n",
            ),
            (
                "etc/apt/m",
                "http://first.example/debian\tpriority:1\nhttp://second.example\n",
            ),
        ]);
        let mirror = Mirror::of_host(host.path()).unwrap();
        assert_eq!(
            mirror,
            Mirror {
                main: "http://first.example/debian".into(),
                security: None
            }
        );
    }

    #[test]
    fn other_distributions_need_an_address() {
        let host = host(&[
            ("etc/os-release", "ID=ubuntu\nVERSION_CODENAME=noble\n"),
            (
                "etc/apt/sources.list",
                "deb http://mirror.example/other noble main\n",
            ),
        ]);
        assert_eq!(Mirror::of_host(host.path()), None);
        assert!(Mirror::choose(Some("ftp://x")).is_err());
        assert!(Mirror::choose(Some("http://x y")).is_err());
        assert_eq!(
            Mirror::choose(Some("http://x/debian")).unwrap().main,
            "http://x/debian"
        );
    }
}
