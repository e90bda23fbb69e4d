//! `mitose-guest`: the program inside a guest.
//!
//! One static binary, five roles, chosen by how it is started:
//!
//! * process 1: brings a system up (module loading and the way to the real root included), starts
//!   the agent and the image's services, reaps orphans and powers off ([`pid1`]);
//! * `mitose-guest agent`: talks to the host over vsock ([`agent`], [`requests`]);
//! * `mitose-guest guestinfo …`: reads and sets guestinfo from inside the guest;
//! * `mitose-guest freeze`: asks the host to freeze the VM in this call, from which its clones go on;
//! * `poweroff`, `reboot`, `halt` (by the name it is called with): asks process 1.
//!
//! Images need it static and small:
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
//!     cargo build --profile guest -p mitose-guest \
//!     --target x86_64-unknown-linux-gnu --target-dir target/guest
//! ```
//!
//! which gives `target/guest/x86_64-unknown-linux-gnu/guest/mitose-guest`.

mod agent;
mod linux;
mod pid1;
mod requests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use agent::local::Form;

const USAGE: &str = "\
usage: mitose-guest agent
       mitose-guest guestinfo get guestinfo.NAME
       mitose-guest guestinfo set guestinfo.NAME VALUE    (an empty VALUE removes it)
       mitose-guest guestinfo ls
       mitose-guest freeze [--word]
       mitose-guest poweroff | reboot
       mitose-guest version

freeze returns when the VM goes on, and prints where: {\"clone\":true,\"name\":\"web-1\"} in an instant
clone of it, false in the source itself; with --word just `clone` or `source`.";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        pid1::main();
    }
    if let Err(error) = linux::unblock_signals() {
        log(&format!("cannot unblock signals: {error}"));
    }
    let args: Vec<String> = std::env::args().collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mitose-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let called_as = args.first().map(Path::new).and_then(Path::file_name);
    let mut words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if let Some(name @ ("poweroff" | "halt" | "reboot" | "shutdown")) =
        called_as.and_then(|n| n.to_str())
    {
        let restart = name == "reboot" || (name == "shutdown" && words.contains(&"-r"));
        words = vec![if restart { "reboot" } else { "poweroff" }];
    }
    match words.as_slice() {
        ["agent"] => agent::run(),
        ["services"] => {
            pid1::services::run(&Root::system());
            Ok(())
        }
        ["guestinfo", "get", key] => agent::local::print_value(&Root::system(), key),
        ["guestinfo", "set", key, value] => agent::local::set_value(&Root::system(), key, value),
        ["guestinfo", "ls"] => agent::local::print_all(&Root::system()),
        ["freeze"] => agent::local::freeze(&Root::system(), Form::Json),
        ["freeze", "--word"] => agent::local::freeze(&Root::system(), Form::Word),
        ["poweroff"] => agent::power::shut_down(false),
        ["reboot"] => agent::power::shut_down(true),
        ["version" | "--version"] => {
            println!("mitose-guest {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown arguments\n{USAGE}"),
    }
}

/// Directory that stands for `/`, so that everything which only touches files can be tested.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    dir: PathBuf,
    live: bool,
}

impl Root {
    /// The running system.
    pub(crate) fn system() -> Self {
        Self {
            dir: PathBuf::from("/"),
            live: true,
        }
    }

    /// A directory with files only: kernel state is left alone.
    #[cfg(test)]
    pub(crate) fn files(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            live: false,
        }
    }

    /// Returns where an absolute path of the guest is.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.dir.join(absolute.trim_start_matches('/'))
    }

    /// Whether kernel state (host name, addresses, clock) belongs to this root.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }
}

/// Writes one line to standard error, which is the console under process 1.
pub(crate) fn log(text: &str) {
    eprintln!("mitose-guest: {text}");
}
