//! The command line as a user types it: `mitose` with a home of its own, answers read as JSON.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use client::Client;
use serde_json::Value;

/// A `mitose` with its home folder.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    home: PathBuf,
    env: Vec<(String, String)>,
}

impl Cli {
    /// Returns the `mitose` built beside the running program, with `home` as its data folder.
    pub fn new(home: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: crate::program("mitose")?,
            home: home.into(),
            env: Vec::new(),
        })
    }

    /// The same with a variable in the environment of every command, and so of the daemon that the
    /// first of them starts.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("MITOSE_HOME", &self.home)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Returns the data folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs `mitose ARGS` and returns whatever it did.
    pub fn output(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.command(args)
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Runs `mitose ARGS`, which must succeed, and returns its standard output.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "mitose {} gave {}: {}",
                args.join(" "),
                output.status,
                stderr.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `mitose ARGS` with its messages on this program's standard error.
    pub fn show(&self, args: &[&str]) -> anyhow::Result<()> {
        let status = self.command(args).stdout(std::io::stderr()).status()?;
        anyhow::ensure!(status.success(), "mitose {} gave {status}", args.join(" "));
        Ok(())
    }

    /// Runs `mitose ARGS -o json` and returns the answer.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let text = self.run(&all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("mitose {} said {text}", args.join(" ")))
    }

    /// Runs a shell script in guest `name` and returns its output.
    pub fn shell(&self, name: &str, script: &str) -> anyhow::Result<String> {
        let text = self.run(&["exec", name, "--", "/bin/sh", "-c", script])?;
        Ok(text.trim_end().to_owned())
    }

    /// Removes every VM and ends the daemon. Failures are left: it cleans up after failures too.
    pub fn clean_up(&self) {
        if let Ok(Value::Array(vms)) = self.json(&["ls"]) {
            for vm in vms {
                if let Some(name) = vm["name"].as_str() {
                    let _ = self.output(&["rm", name, "--force"]);
                }
            }
        }
        let _ = self.output(&["daemon", "stop"]);
    }
}

/// What tests say to a bare-metal guest on COM1, and what it says.
impl Cli {
    /// How often a guest said `line`. Lines that begin with `E` tell what it found wrong: an error.
    pub fn said(&self, name: &str, line: &str) -> anyhow::Result<usize> {
        let text = self.run(&["logs", name]).unwrap_or_default();
        if let Some(failed) = text.lines().find(|line| line.starts_with('E')) {
            bail!("{name} says {failed:?}");
        }
        Ok(text.lines().filter(|said| *said == line).count())
    }

    /// Waits until a guest has said `line` `count` times.
    pub fn wait_said(
        &self,
        name: &str,
        line: &str,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while self.said(name, line)? < count {
            ensure!(Instant::now() < deadline, "{name} does not say {line}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Types a guest's command and waits for its answer.
    pub fn ask(
        &self,
        name: &str,
        byte: u8,
        answer: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let before = self.said(name, answer)?;
        let mut console = Client::new(self.home()).console(name)?;
        console.write_all(&[byte])?;
        self.wait_said(name, answer, before + 1, patience)
    }
}
