//! Finding the programs under test beside the test itself.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// Returns the path of program `name`, built in the same target directory as the running test.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("cannot find the running program")?;
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps") && !folder.ends_with("examples"))
        .context("the running program has no folder")?;
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is missing: run `cargo build --workspace`",
        path.display()
    );
    Ok(path)
}
