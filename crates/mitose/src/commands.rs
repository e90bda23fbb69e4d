//! The commands, one file each. The doc of a command's `Args` is its help.

mod archive;
mod bench;
mod clone;
mod completion;
mod console;
mod cp;
mod create;
mod daemon;
mod datastore;
mod description;
mod doctor;
mod events;
mod exec;
mod folder;
mod guest_options;
mod guestinfo;
mod image;
mod info;
mod logs;
mod ls;
mod network;
mod object;
mod parent;
mod pool;
mod power;
mod respool;
mod rm;
mod run;
mod set;
mod snapshot;
mod task;
mod token;
mod tree;
mod wait;

use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::daemon::{Daemon, RemoteArgs};
use crate::output::Format;

/// Runs virtual machines and forks them while they run.
///
/// A daemon does the work; it is started when none answers.
#[derive(Debug, Parser)]
#[command(name = "mitose", version, max_term_width = 100)]
#[command(after_help = "Examples:
  mitose image build tiny                     make a small image
  mitose run web1 --image tiny                boot a VM
  mitose clone web1 --count 10 --prefix w-    fork it ten times while it runs
  mitose exec w-3 -- hostname                 run a command in a clone
  mitose rm --force web1 w-1                  remove VMs")]
pub struct Cli {
    /// How data is printed
    #[arg(short, long, global = true, value_enum, default_value_t = FormatArg::Table)]
    output: FormatArg,
    /// Data directory of the daemon [default: /var/lib/mitose for root, ~/.local/share/mitose otherwise]
    #[arg(long, global = true, env = "MITOSE_HOME", value_name = "DIR")]
    home: Option<OsString>,
    /// Daemon on another host
    #[command(flatten)]
    remote: RemoteArgs,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Long options that were given to the command
    #[arg(skip)]
    options: Vec<String>,
}

/// Reads a command line. A negative number is the value of the option before it, so that the option
/// tells what is wrong with it.
pub fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let line: Vec<OsString> = line.into_iter().collect();
    let command = takes_negatives(Cli::command());
    let matches = command.clone().try_get_matches_from(&line);
    let mut matches = matches.map_err(|error| {
        let plain = without_variables(command.clone()).try_get_matches_from(&line);
        // The usage of an error names all options that are set, as if they had to be.
        match plain {
            Err(plain) if plain.kind() == error.kind() && !is_help(error.kind()) => plain,
            _ => error,
        }
    })?;
    let options = options_of(&command, &matches);
    let cli = Cli::from_arg_matches_mut(&mut matches)?;
    Ok(Cli { options, ..cli })
}

/// Long options that a command line gives to the subcommand that it names.
fn options_of(command: &clap::Command, matches: &clap::ArgMatches) -> Vec<String> {
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        return options_of(command, matches);
    }
    let given = |arg: &&clap::Arg| {
        matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let given = command.get_arguments().filter(given);
    let long = given.filter_map(clap::Arg::get_long);
    long.map(str::to_owned).collect()
}

impl Cli {
    /// Long options that were given to the command.
    pub fn options(&self) -> &[String] {
        &self.options
    }
}

/// What the daemon told of a request, with the option in the place of the member that was made of it.
pub fn in_options(options: &[String], told: &str) -> Option<String> {
    let (member, rest) = told.split_once(": ")?;
    let name = member.strip_suffix("_bytes").unwrap_or(member);
    let name = name.replace('_', "-");
    let given = options.contains(&name);
    given.then(|| format!("--{name}: {rest}"))
}

fn is_help(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    )
}

/// The same command, which reads no variables of the environment.
fn without_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| arg.env(None::<&'static str>));
    command.mut_subcommands(without_variables)
}

fn takes_negatives(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_option = arg.get_long().is_some() && arg.get_action().takes_values();
        arg.allow_negative_numbers(is_option)
    });
    command.mut_subcommands(takes_negatives)
}

/// A wrong value in one line, where an error is about one.
pub fn one_line(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if error.kind() == ErrorKind::InvalidUtf8 {
        return Some("an argument is not UTF-8; give the file another name".to_owned());
    }
    let option = text(ContextKind::InvalidArg)?;
    match error.kind() {
        ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue)?;
            let why = std::error::Error::source(error).map(ToString::to_string);
            let why = why.unwrap_or_else(|| "it is not possible here".to_owned());
            Some(format!("{option}: {value:?} cannot be taken: {why}"))
        }
        // A negative size is no number.
        ErrorKind::UnknownArgument => {
            let digits = option.strip_prefix('-')?;
            let negative = digits.starts_with(|c: char| c.is_ascii_digit());
            negative.then(|| format!("{option:?}: a negative value cannot be; give 0 or more"))
        }
        _ => None,
    }
}

/// Form of printed data.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What commands share.
#[derive(Debug)]
pub struct Context {
    /// How data is printed.
    pub format: Format,
    /// Way to the daemon.
    pub daemon: Daemon,
}

impl Context {
    /// Takes the global options over.
    pub fn new(cli: &Cli) -> Self {
        Self {
            format: match cli.output {
                FormatArg::Table => Format::Table,
                FormatArg::Json => Format::Json,
            },
            daemon: Daemon::new(cli.home.as_deref(), &cli.remote),
        }
    }

    /// A client of the daemon, which is started where none answers.
    pub fn client(&self) -> anyhow::Result<client::Client> {
        self.daemon.client()
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(run::Args),
    Create(create::Args),
    Clone(clone::Args),
    Prepare(parent::PrepareArgs),
    Fork(parent::ForkArgs),
    Unprepare(parent::UnprepareArgs),
    Forkpoints(parent::ListArgs),
    Persist(parent::PersistArgs),
    Ls(ls::Args),
    Info(info::Args),
    Exec(exec::Args),
    Cp(cp::Args),
    Logs(logs::Args),
    Console(console::Args),
    Stop(power::StopArgs),
    Start(power::StartArgs),
    Pause(power::PauseArgs),
    Suspend(power::SuspendArgs),
    Resume(power::ResumeArgs),
    Reset(power::ResetArgs),
    Set(set::Args),
    Rename(set::RenameArgs),
    Template(set::TemplateArgs),
    Wait(wait::Args),
    Guestinfo(guestinfo::Args),
    Rm(rm::Args),
    Folder(folder::Args),
    Network(network::Args),
    Respool(respool::Args),
    Object(object::Args),
    Snapshot(snapshot::Args),
    Export(archive::ExportArgs),
    Import(archive::ImportArgs),
    Tree(tree::Args),
    Events(events::Args),
    Task(task::Args),
    Image(image::Args),
    Datastore(datastore::Args),
    #[command(visible_alias = "diskpool")]
    Pool(pool::Args),
    Token(token::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Daemon(daemon::Args),
    Completion(completion::Args),
}

impl Command {
    /// Runs the command; returns the exit code.
    pub fn run(self, context: &Context) -> anyhow::Result<u8> {
        match self {
            Self::Run(args) => run::run(args, context),
            Self::Create(args) => create::run(args, context),
            Self::Clone(args) => clone::run(args, context),
            Self::Prepare(args) => parent::prepare(args, context),
            Self::Fork(args) => parent::fork(args, context),
            Self::Unprepare(args) => parent::unprepare(&args, context),
            Self::Forkpoints(args) => parent::list(&args, context),
            Self::Persist(args) => parent::persist(&args, context),
            Self::Ls(args) => ls::run(&args, context),
            Self::Info(args) => info::run(&args, context),
            Self::Exec(args) => exec::run(args, context),
            Self::Cp(args) => cp::run(&args, context),
            Self::Logs(args) => logs::run(&args, context),
            Self::Console(args) => console::run(&args, context),
            Self::Stop(args) => power::stop(&args, context),
            Self::Start(args) => power::start(&args, context),
            Self::Pause(args) => power::pause(&args, context),
            Self::Suspend(args) => power::suspend(&args, context),
            Self::Resume(args) => power::resume(&args, context),
            Self::Reset(args) => power::reset(&args, context),
            Self::Set(args) => set::run(args, context),
            Self::Rename(args) => set::rename(args, context),
            Self::Template(args) => set::template(&args, context),
            Self::Wait(args) => wait::run(&args, context),
            Self::Guestinfo(args) => guestinfo::run(args, context),
            Self::Rm(args) => rm::run(&args, context),
            Self::Folder(args) => folder::run(&args, context),
            Self::Network(args) => network::run(&args, context),
            Self::Respool(args) => respool::run(&args, context),
            Self::Object(args) => object::run(args, context),
            Self::Snapshot(args) => snapshot::run(args, context),
            Self::Export(args) => archive::export(args, context),
            Self::Import(args) => archive::import(args, context),
            Self::Tree(args) => tree::run(&args, context),
            Self::Events(args) => events::run(&args, context),
            Self::Task(args) => task::run(args, context),
            Self::Image(args) => image::run(args, context),
            Self::Pool(args) => pool::run(args, context),
            Self::Datastore(args) => datastore::run(args, context),
            Self::Bench(args) => bench::run(&args, context),
            Self::Token(args) => token::run(args, context),
            Self::Doctor(args) => doctor::run(&args, context),
            Self::Daemon(args) => daemon::run(&args, context),
            Self::Completion(args) => completion::run(&args),
        }
    }
}

/// Calls of one command that are under way at a time.
const MAX_SIDE_BY_SIDE: usize = 16;

/// Does `act` to each name, several at a time; results come in the order of the names.
fn side_by_side<T: Send>(names: &[String], act: impl Fn(&str) -> T + Sync) -> Vec<(&String, T)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(MAX_SIDE_BY_SIDE) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(index) else { break };
                    let result = act(name);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((index, name, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, ..)| *index);
    results
        .into_iter()
        .map(|(_, name, result)| (name, result))
        .collect()
}

#[cfg(test)]
mod tests;
