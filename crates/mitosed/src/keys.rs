//! SSH host keys for clones, made ahead of time: an RSA key takes a second to find.
//!
//! Nothing is made before a guest has told that it has host keys. The work is `ssh-keygen`'s; a
//! host without it gives no keys, and says so once.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use agent_protocol::SshHostKey;
use anyhow::{Context, bail};

/// Keys of each wanted kind that wait.
const SPARE: usize = 8;

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeSet<String>,
    ready: HashMap<String, Vec<SshHostKey>>,
    broken: bool,
}

/// Keys that wait for their guests.
#[derive(Debug)]
pub struct HostKeys {
    dir: PathBuf,
    next: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl HostKeys {
    /// Makes keys in the directory `dir`, which is its own.
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            dir,
            next: AtomicU64::new(0),
            inner: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Keeps keys of these kinds ready from here on.
    pub fn want(self: &Arc<Self>, kinds: &[String]) {
        let mut inner = self.lock();
        let first = inner.wanted.is_empty() && !kinds.is_empty();
        inner.wanted.extend(kinds.iter().cloned());
        drop(inner);
        self.changed.notify_all();
        if first {
            let keys = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name("host-keys".into())
                .spawn(move || keys.fill());
            if let Err(error) = started {
                tracing::warn!(%error, "cannot start the thread that makes SSH host keys");
            }
        }
    }

    /// Takes one key of each kind; those that are not ready are made at once.
    pub fn take(&self, kinds: &[String]) -> Vec<SshHostKey> {
        let mut taken = Vec::new();
        for kind in kinds {
            let ready = self.lock().ready.get_mut(kind).and_then(Vec::pop);
            self.changed.notify_all();
            let key = match ready {
                Some(key) => Ok(key),
                None if self.lock().broken => continue,
                None => self.make(kind, false),
            };
            match key {
                Ok(key) => taken.push(key),
                Err(error) => self.give_up(&error),
            }
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, error: &anyhow::Error) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.broken, true) {
            tracing::warn!("clones get no SSH host keys of their own: {error:#}");
        }
    }

    fn fill(&self) {
        loop {
            let kind = {
                let mut inner = self.lock();
                loop {
                    if inner.broken {
                        return;
                    }
                    let count = |kind: &String| inner.ready.get(kind).map_or(0, Vec::len);
                    let short = inner.wanted.iter().filter(|kind| count(kind) < SPARE);
                    if let Some(kind) = short.min_by_key(|kind| count(kind)) {
                        break kind.clone();
                    }
                    let waited = self.changed.wait(inner);
                    inner = waited.unwrap_or_else(PoisonError::into_inner);
                }
            };
            match self.make(&kind, true) {
                Ok(key) => self.lock().ready.entry(kind).or_default().push(key),
                Err(error) => self.give_up(&error),
            }
        }
    }

    /// Makes a key; `idle` leaves the processor to everybody else.
    fn make(&self, kind: &str, idle: bool) -> anyhow::Result<SshHostKey> {
        make_private_dir(&self.dir)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("key-{number}"));
        let mut command = if idle {
            let mut nice = Command::new("nice");
            nice.args(["-n", "19", "ssh-keygen"]);
            nice
        } else {
            Command::new("ssh-keygen")
        };
        let output = command
            .args(["-q", "-N", "", "-C", "", "-t", kind, "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ssh-keygen; install openssh-client")?;
        let public = path.with_extension("pub");
        let key = if output.status.success() {
            read_key(kind, &path, &public)
        } else {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(anyhow::anyhow!(
                "ssh-keygen failed: {}; install openssh-client",
                words.trim()
            ))
        };
        let _ = fs::remove_file(&path);
        let _ = fs::remove_file(&public);
        key
    }
}

fn read_key(kind: &str, private: &Path, public: &Path) -> anyhow::Result<SshHostKey> {
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(SshHostKey {
        kind: kind.to_owned(),
        private: read(private)?,
        public: read(public)?,
    })
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().mode(0o700).create(path);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            bail!("cannot make the directory {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_wanted_kinds_are_given_once_each() {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            // A host without the program gives no keys, and goes on.
            let dir = tempfile::tempdir().unwrap();
            let keys = HostKeys::new(dir.path().join("k"));
            assert!(keys.take(&["ed25519".to_owned()]).is_empty());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let keys = HostKeys::new(dir.path().join("k"));
        let kinds = ["ed25519".to_owned(), "ecdsa".to_owned()];
        let first = keys.take(&kinds);
        let second = keys.take(&kinds);
        assert_eq!(first.len(), 2);
        assert!(first[0].private.contains("OPENSSH PRIVATE KEY"));
        assert!(first[0].public.starts_with("ssh-ed25519 "));
        assert_ne!(first[0].public, second[0].public);
        assert_eq!(fs::read_dir(dir.path().join("k")).unwrap().count(), 0);
    }
}
