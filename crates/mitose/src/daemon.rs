//! The way to the daemon: its data directory, and starting it where none answers.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Client, ClientError};

/// Longest wait for a daemon that was started: it meets the VMs of the one before first.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two tries.
const TRY_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before a daemon is started again while another one holds the data directory.
const RACE_INTERVAL: Duration = Duration::from_millis(50);

/// Way to the daemon of one data directory.
#[derive(Clone, Debug)]
pub struct Daemon {
    home: Option<PathBuf>,
    remote: Option<Remote>,
}

/// A daemon on the network, as the user gave it.
#[derive(Clone, Debug, clap::Args)]
pub struct RemoteArgs {
    /// Daemon to ask instead of one on this host, such as https://host:8443
    #[arg(long, global = true, env = "MITOSE_URL", value_name = "URL")]
    url: Option<String>,
    /// File with the certificate of the daemon at --url, or of the authority that signed it
    #[arg(long, global = true, env = "MITOSE_CA", value_name = "FILE")]
    ca: Option<OsString>,
    /// Token for the daemon at --url
    #[arg(
        long,
        global = true,
        env = "MITOSE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
}

#[derive(Clone, Debug)]
struct Remote {
    url: String,
    ca: Option<PathBuf>,
    token: String,
}

impl Daemon {
    /// `home` and `remote` as the user gave them; what is empty counts as not given.
    pub fn new(home: Option<&OsStr>, remote: &RemoteArgs) -> Self {
        let path = |given: &OsStr| (!given.is_empty()).then(|| PathBuf::from(given));
        let home = home.and_then(path);
        let url = remote.url.clone().filter(|url| !url.is_empty());
        let remote = url.map(|url| Remote {
            url,
            ca: remote.ca.as_deref().and_then(path),
            token: remote.token.clone().unwrap_or_default(),
        });
        Self { home, remote }
    }

    /// A client of a daemon on the network, where the user named one.
    fn remote(&self) -> Option<anyhow::Result<Client>> {
        let remote = self.remote.as_ref()?;
        Some(Client::remote(&remote.url, &remote.token, remote.ca.as_deref()).map_err(Into::into))
    }

    /// The data directory.
    pub fn home(&self) -> anyhow::Result<PathBuf> {
        match &self.home {
            Some(home) => std::path::absolute(home).context("cannot tell the data directory"),
            None => {
                api_types::default_home().context("cannot tell the data directory: set MITOSE_HOME")
            }
        }
    }

    /// Whether a daemon answers.
    pub fn answers(&self) -> bool {
        matches!(self.running(), Ok(Some(client)) if client.status().is_ok())
    }

    /// A client of a running daemon, or `None`.
    pub fn running(&self) -> anyhow::Result<Option<Client>> {
        if let Some(client) = self.remote() {
            return client.map(Some);
        }
        let home = self.home()?;
        let client = Client::new(&home);
        match client.status() {
            Ok(_) => Ok(Some(client)),
            Err(ClientError::Connect { source, .. }) => match source.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    Err(anyhow::Error::from(source).context(format!(
                        "the daemon at {} belongs to another user",
                        api_types::socket_of(&home).display()
                    )))
                }
                std::io::ErrorKind::InvalidInput => bail!(
                    "data directory {} is too long for Unix sockets in it; set MITOSE_HOME to a shorter path",
                    self.home()?.display()
                ),
                _ => Ok(None),
            },
            // It ends at this moment.
            Err(ClientError::Broken { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A client of the daemon, which is started where none answers.
    pub fn client(&self) -> anyhow::Result<Client> {
        if let Some(client) = self.remote() {
            return client;
        }
        let home = self.home()?;
        let client = Client::new(&home);
        // A socket that takes a connection has a daemon behind it: no question is spent on it.
        if std::os::unix::net::UnixStream::connect(api_types::socket_of(&home)).is_ok() {
            return Ok(client);
        }
        match self.running()? {
            Some(client) => Ok(client),
            None => self.start(&home),
        }
    }

    fn start(&self, home: &Path) -> anyhow::Result<Client> {
        let program = match std::env::var_os("MITOSED") {
            Some(path) => PathBuf::from(path),
            None => std::env::current_exe()
                .context("cannot find mitose's own program file")?
                .with_file_name("mitosed"),
        };
        let logs = home.join("logs");
        // The data directory holds secrets of guests.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&logs)
            .with_context(|| format!("cannot make the directory {}", logs.display()))?;
        let log = logs.join("mitosed.log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let start = output.metadata().map_or(0, |m| m.len());
        eprintln!(
            "starting the daemon for {} (log: {})",
            home.display(),
            log.display()
        );
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let child = spawn(&program, home, &output)?;
            if let Some(client) = self.wait(child, deadline)? {
                return Ok(client);
            }
            let reason = last_line(&log, start);
            // One that lost the race against another, or against one that still ends, tries again.
            if !reason.contains("another mitosed") || Instant::now() > deadline {
                bail!("the daemon does not start: {reason}");
            }
            thread::sleep(RACE_INTERVAL);
        }
    }

    /// Waits until a daemon answers, or the one that was started has ended.
    fn wait(&self, mut child: Child, deadline: Instant) -> anyhow::Result<Option<Client>> {
        loop {
            let ended = child.try_wait().context("cannot watch the daemon")?;
            if let Some(client) = self.running()? {
                return Ok(Some(client));
            }
            if ended.is_some() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                bail!("the daemon was started but does not answer; see its log");
            }
            thread::sleep(TRY_INTERVAL);
        }
    }
}

fn spawn(program: &Path, home: &Path, output: &File) -> anyhow::Result<Child> {
    let share = || output.try_clone().context("cannot share the log file");
    Command::new(program)
        .arg("--home")
        .arg(home)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(share()?)
        .stderr(share()?)
        .spawn()
        .with_context(|| {
            format!(
                "cannot start the daemon {}; install it beside mitose or set MITOSED",
                program.display()
            )
        })
}

fn last_line(log: &Path, start: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let new = text.get(start as usize..).unwrap_or_default();
    let text = String::from_utf8_lossy(new);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    match line {
        Some(line) => line.trim().trim_start_matches("error: ").to_owned(),
        None => format!("it says nothing; see {}", log.display()),
    }
}
