//! Writes a guest program to standard output: `bare-guest NAME > FILE.elf`.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: bare-guest guest|guest-pvh|speed > FILE.elf";

fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    let elf = match name.as_deref() {
        Some("guest") => bare_guests::guest_elf(),
        Some("guest-pvh") => bare_guests::guest_pvh_elf(),
        Some("speed") => bare_guests::speed_elf(),
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    match io::stdout()
        .write_all(elf)
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "writing the guest to standard output: {error}"
            );
            ExitCode::FAILURE
        }
    }
}
