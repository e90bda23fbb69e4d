//! From a [`Start`] message to a command that is ready to be spawned.

use std::fs;
use std::path::Path;
use std::process::Command;

use agent_protocol::Start;
use agent_protocol::guest_paths::ENVIRONMENT;
use anyhow::{Context, Result, bail, ensure};

use super::users::User;
use crate::Root;
use crate::linux::{self, Attachment};

/// Search path of commands that are given none.
pub(crate) const BASE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the command; its standard streams are left to the caller.
pub(crate) fn build(root: &Root, start: &Start) -> Result<Command> {
    let Some((program, args)) = start.argv.split_first() else {
        bail!("the command is empty")
    };
    let texts = start
        .argv
        .iter()
        .chain(start.env.iter().flat_map(|(k, v)| [k, v]));
    for text in texts {
        ensure!(!text.contains('\0'), "{text:?} has a zero byte");
    }
    let user = User::find(root, start.user.as_deref().unwrap_or("root"))?;
    let mut command = Command::new(program);
    command.args(args).env_clear();
    command.env("PATH", BASE_PATH);
    command
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name);
    command.env("SHELL", &user.shell);
    if start.tty.is_some() {
        command.env("TERM", "xterm");
    }
    let image_env = fs::read_to_string(root.path(ENVIRONMENT)).unwrap_or_default();
    command.envs(image_env.lines().filter_map(|line| line.split_once('=')));
    for (name, value) in &start.env {
        ensure!(
            !name.is_empty() && !name.contains('='),
            "{name:?} is not a variable name"
        );
        command.env(name, value);
    }
    command.current_dir(working_directory(root, start, &user)?);
    // Changing to the ids one already has needs no privilege in the tests and none in a guest.
    let same = user.uid == rustix::process::getuid().as_raw() && start.user.is_none();
    let ids = (!same && root.is_live()).then(|| user.ids());
    linux::attach(
        &mut command,
        Attachment {
            ids,
            terminal: start.tty.is_some(),
        },
    );
    Ok(command)
}

fn working_directory(root: &Root, start: &Start, user: &User) -> Result<std::path::PathBuf> {
    if let Some(cwd) = &start.cwd {
        ensure!(
            cwd.starts_with('/'),
            "working directory {cwd:?} is not absolute"
        );
        let path = root.path(cwd);
        let meta = fs::metadata(&path).with_context(|| format!("working directory {cwd}"))?;
        ensure!(meta.is_dir(), "working directory {cwd} is not a directory");
        return Ok(path);
    }
    let home = root.path(&user.home);
    Ok(if home.is_dir() {
        home
    } else {
        Path::new("/").to_owned()
    })
}
