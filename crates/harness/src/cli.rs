//! The command line as a user types it: `mitose` with a home of its own, answers read as JSON.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};
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
