//! Tests of the command line's form.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::{Cli, Command};

fn parses(line: &str) -> bool {
    Cli::try_parse_from(line.split(' ')).is_ok()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_daemon_refuses_is_told_by_the_option_that_was_given() {
    let told = |line: &str, told: &str| {
        let line = line.split(' ').map(Into::into);
        let cli = super::parse(line).expect("it parses");
        super::in_options(cli.options(), told).unwrap_or_else(|| told.to_owned())
    };
    let run = "mitose run a --image tiny --memory 1T";
    let detail = "memory_bytes: 1 TiB is not between 16 MiB and 512 GiB";
    assert_eq!(
        told(run, detail),
        "--memory: 1 TiB is not between 16 MiB and 512 GiB"
    );
    let limit = "mitose clone s --count 2 --prefix c --memory-limit 0";
    let detail = "memory_limit_bytes: 0 is below 1";
    assert_eq!(told(limit, detail), "--memory-limit: 0 is below 1");
    for detail in ["name: there is a VM \"c1\" already", "it is ending"] {
        assert_eq!(told(limit, detail), detail);
    }
}

#[test]
fn every_command_has_help_with_examples() {
    for command in Cli::command().get_subcommands_mut() {
        let name = command.get_name().to_owned();
        if name == "help" {
            continue;
        }
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "{name} has no example");
    }
}

#[test]
fn documented_lines_are_taken() {
    for line in [
        "mitose run t1 --kernel PATH.elf --memory 2G --engine kvm",
        "mitose clone t1 --count 20 --prefix c -o json",
        "mitose clone t1 --name c1 --mode linked",
        "mitose run a --image debian --net tap=t0 --net none --disk d.raw --disk e,format=raw,ro",
        "mitose exec a -it -- sh -c ls",
        "mitose exec a -- ls -l",
        "mitose cp a:/x .",
        "mitose image build debian --suite bookworm --include a,b --init systemd --name n",
        "mitose image import FILE --name N",
        "mitose stop a --force",
        "mitose rm a b --force",
        "mitose ls -o json",
        "mitose info a",
        "mitose tree",
        "mitose logs a",
        "mitose console a",
        "mitose doctor",
        "mitose bench",
        "mitose exec a --wait 300 -- true",
        "mitose fork a --count 2 --prefix w-",
        "mitose clone a --name b --mode linked --quiesce",
        "mitose task ls --state running --kind vm.fork --limit 5 -o json",
        "mitose task show 12",
        "mitose task wait 12 --timeout 60",
        "mitose task cancel 12 13",
        "mitose run a --image tiny --spare-disks 2",
        "mitose clone a --count 2 --extra-disk size=10G --extra-disk d.raw,format=raw",
        "mitose fork a --count 2 --extra-disk image=data --check",
        "mitose set a --insert-disk size=512M",
        "mitose set a --spare-disks 3",
        "mitose bench --memory 2G --samples 9 --engine kvm -o json",
    ] {
        assert!(parses(line), "{line}");
    }
}

#[test]
fn contradictions_are_usage_errors() {
    for line in [
        "mitose run a",
        "mitose clone t1",
        "mitose clone t1 --name a --count 1 --prefix c",
        "mitose clone t1 --prefix a",
        "mitose clone t1 --count 0 --prefix c",
        "mitose run a --kernel k --memory lots",
        "mitose run a --kernel k --net wifi=1",
        "mitose exec a",
        "mitose rm",
        "mitose task",
        "mitose task show",
        "mitose task cancel",
        "mitose task ls --state odd",
        "mitose exec a --wait -1 -- true",
        "mitose bench --samples 0",
        "mitose run a --image tiny --spare-disks 12",
        "mitose clone a --count 2 --extra-disk size=lots",
        "mitose clone a --count 2 --extra-disk d.raw,ro",
        "mitose fork a --count 2 --extra-disk image=",
        "mitose set a --insert-disk ",
    ] {
        assert!(!parses(line), "{line}");
    }
}

#[test]
fn clones_are_named_one_by_one_or_by_a_prefix() {
    let names = |line: &str| {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Clone(args) = cli.command else {
            panic!("{line}")
        };
        super::clone::clone_names(&args)
    };
    assert_eq!(names("mitose clone t1 --name a --count 1").unwrap(), ["a"]);
    assert_eq!(
        names("mitose clone t1 --count 2").unwrap(),
        ["t1-1", "t1-2"]
    );
    let prefixed = "mitose clone t1 --count 1 --prefix c";
    assert_eq!(names(prefixed).unwrap(), ["c1"]);
    let several = names("mitose clone t1 --name a --count 2").unwrap_err();
    assert_eq!(several.kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn a_wrong_value_is_told_in_one_line_that_names_its_option() {
    for (line, option, value) in [
        ("mitose clone a --count -1 --prefix p", "--count", "-1"),
        ("mitose clone a --count x --prefix p", "--count", "\"x\""),
        ("mitose run a --image tiny --memory -1", "--memory", "-1"),
        ("mitose run a --image tiny --memory -1G", "negative", "-1"),
        ("mitose run a --image tiny --memory=-1G", "--memory", "-1G"),
        (
            "mitose run a --image t --net none,mac=02:00:00:00:00:01",
            "--net",
            "alone",
        ),
        (
            "mitose datastore add d --path /x --reserve -1",
            "--reserve",
            "-1",
        ),
    ] {
        let error = super::parse(line.split(' ').map(Into::into)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let told = super::one_line(&error).unwrap_or_else(|| error.to_string());
        assert!(told.contains(option) && told.contains(value), "{told}");
        assert!(!told.contains('\n'), "{told}");
    }
    let other = super::parse("mitose run a --imgae x".split(' ').map(Into::into)).unwrap_err();
    assert!(super::one_line(&other).is_none());
    let exec = "mitose exec a -- echo -1 --count"
        .split(' ')
        .map(Into::into);
    assert!(super::parse(exec).is_ok());
}

#[test]
fn what_the_environment_sets_is_not_told_to_be_required() {
    const TEST: &str = "commands::tests::what_the_environment_sets_is_not_told_to_be_required";
    if std::env::var_os("MITOSE_HOME").is_none_or(|home| home != "/h") {
        // Variables are those of the process.
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST])
            .env("MITOSE_HOME", "/h")
            .env("MITOSE_TOKEN", "secret")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&again.stdout);
        assert!(
            again.status.success() && told.contains("1 passed"),
            "{told}"
        );
        return;
    }
    let told = |line: &str| {
        let error = super::parse(line.split(' ').map(Into::into)).unwrap_err();
        error.to_string()
    };
    for line in ["mitose run a --imgae x", "mitose clone a b", "mitose rm"] {
        let usage = told(line);
        assert!(usage.contains("Usage: mitose "), "{usage}");
        assert!(!usage.contains("--home"), "{usage}");
        assert!(!usage.contains("--token"), "{usage}");
    }
    let help = told("mitose --help");
    assert!(help.contains("[env: MITOSE_HOME=/h]"), "{help}");
    let error = told("mitose set a --serial 0=disk");
    assert!(
        error.contains("log, none, file:PATH, pty or unix:PATH"),
        "{error}"
    );
}
