//! `mitose-lab`: builds the lab, runs commands in it, and probes this machine's KVM.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use lab::{
    CopyIn, CopyOut, DEFAULT_SUITE, KvmProbe, Lab, Outcome, Recipe, RunError, RunSpec,
    default_directory, parse_size, probe_kvm,
};

/// Exit codes of `run` for failures of the lab itself, as `timeout` and container tools use them.
const EXIT_TIMEOUT: u8 = 124;
const EXIT_LAB: u8 = 125;
const EXIT_INTERRUPTED: u8 = 130;

/// A Debian machine with a real /dev/kvm, on any host.
#[derive(Debug, Parser)]
#[command(name = "mitose-lab", version)]
struct Cli {
    /// Directory of the lab's files.
    #[arg(long, global = true, env = "MITOSE_LAB_DIR", value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Debian suite of the lab.
    #[arg(long, global = true, env = "MITOSE_LAB_SUITE", default_value = DEFAULT_SUITE)]
    suite: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the lab's disk, kernel and initramfs; does nothing where they are there.
    Build {
        /// Build even where they are there.
        #[arg(long)]
        force: bool,
    },
    /// Boot the lab, run a command in it, exit with the command's exit code.
    Run(RunArgs),
    /// Say whether this machine's own KVM can run stock kernels; exit code 0 = usable, 1 = not.
    Probe,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Number of CPUs.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory, such as 512M or 8G.
    #[arg(long, default_value = "8G", value_parser = parse_size, value_name = "SIZE")]
    memory: u64,
    /// File or directory to put into the lab (repeatable).
    #[arg(long, value_name = "HOSTPATH:LABPATH")]
    copy_in: Vec<CopyIn>,
    /// File or directory to take out at the end (repeatable).
    #[arg(long, value_name = "LABPATH:HOSTPATH")]
    copy_out: Vec<CopyOut>,
    /// Limit of the whole run in seconds; exit code 124 when it is reached.
    #[arg(long, value_name = "SECS")]
    timeout: Option<u64>,
    /// Environment variable of the command (repeatable).
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Print how long each part took to standard error.
    #[arg(long, short)]
    verbose: bool,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mitose-lab: {error:#}");
            match error.downcast_ref::<RunError>() {
                Some(RunError::Timeout { .. }) => ExitCode::from(EXIT_TIMEOUT),
                Some(RunError::Cancelled) => ExitCode::from(EXIT_INTERRUPTED),
                _ => ExitCode::from(EXIT_LAB),
            }
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let directory = cli.directory.unwrap_or_else(default_directory);
    let recipe = Recipe::new(&cli.suite)?;
    match cli.command {
        Command::Build { force } => {
            let lab = if force {
                Lab::rebuild_in(&directory, &recipe).context("build the lab")?
            } else {
                ensure(&directory, &recipe)?
            };
            println!("{}", lab.directory().display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => run(&ensure(&directory, &recipe)?, args),
        Command::Probe => Ok(probe()),
    }
}

fn ensure(directory: &Path, recipe: &Recipe) -> anyhow::Result<Lab> {
    if let Some(lab) = Lab::open(directory, recipe) {
        return Ok(lab);
    }
    eprintln!("mitose-lab: building the lab from Debian packages, which takes a minute or two");
    Lab::ensure_in(directory, recipe).context("build the lab")
}

fn run(lab: &Lab, args: RunArgs) -> anyhow::Result<ExitCode> {
    let spec = RunSpec {
        environment: args.env,
        copy_in: args.copy_in,
        copy_out: args.copy_out,
        cpus: args.cpus,
        memory_bytes: args.memory,
        timeout: args.timeout.map(Duration::from_secs),
        cancel: cancel_on_signals()?,
        ..RunSpec::new(args.command)
    };
    let Outcome {
        exit_code, timings, ..
    } = lab.run(&spec)?;
    if args.verbose {
        eprintln!(
            "mitose-lab: prepare {:.2} s, boot {:.2} s, command {:.2} s, collect {:.2} s",
            timings.prepare.as_secs_f64(),
            timings.boot.as_secs_f64(),
            timings.command.as_secs_f64(),
            timings.collect.as_secs_f64()
        );
    }
    Ok(ExitCode::from(u8::try_from(exit_code).unwrap_or(EXIT_LAB)))
}

fn probe() -> ExitCode {
    let (text, usable) = match probe_kvm() {
        KvmProbe::Missing => ("unusable: no /dev/kvm".to_owned(), false),
        KvmProbe::NotPermitted => ("unusable: no permission to open /dev/kvm".to_owned(), false),
        KvmProbe::Broken { reason } => (format!("unusable: {reason}"), false),
        KvmProbe::Emulating { mips } => {
            let text = format!("unusable: only emulates, {mips:.1} million instructions/s");
            (text, false)
        }
        KvmProbe::Usable { mips } => (format!("usable: {mips:.0} million instructions/s"), true),
    };
    println!("{text}");
    if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

static CANCEL: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Returns a flag that becomes true when this process is asked to end.
fn cancel_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = CANCEL.get_or_init(Arc::default);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        vmm_sys_util::signal::register_signal_handler(signal, set_cancel)
            .map_err(|error| anyhow::anyhow!("handle signal {signal}: {error}"))?;
    }
    Ok(Arc::clone(flag))
}

extern "C" fn set_cancel(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(flag) = CANCEL.get() {
        flag.store(true, Ordering::Relaxed);
    }
}

fn parse_variable(text: &str) -> Result<(String, String), lab::SpecError> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| lab::SpecError::Environment {
            text: text.to_owned(),
        })?;
    Ok((name.to_owned(), value.to_owned()))
}
