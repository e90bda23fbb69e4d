//! What a guest reads of its machine, and what is copied between it and the host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::guest::{Place, wait_for};

const PRODUCT_UUID: &str = "cat /sys/class/dmi/id/product_uuid";
/// Names that a shell, a path or a protocol could stumble over.
const ODD_NAMES: &[&str] = &[
    "two words",
    "-rf",
    "a\nb",
    "käse 🧀",
    "q'uo\"te$(id)",
    "c:d",
];

/// Each VM has its own UUID in the SMBIOS tables; a clone's kernel has read its source's at boot.
pub(crate) fn machine_uuid(place: &Place) -> anyhow::Result<()> {
    place.run("u0", &["--memory", "256M"])?;
    let own = uuid_of(place, "u0")?;
    ensure!(
        place.sh("u0", PRODUCT_UUID)? == own,
        "u0 reads another UUID"
    );
    ensure!(
        place.sh("u0", "cat /sys/class/dmi/id/sys_vendor")? == "Mitose",
        "vendor"
    );
    in_table(place, "u0", &own)?;
    place.clone("u0", 2, "u")?;
    for name in ["u1", "u2"] {
        let cloned = uuid_of(place, name)?;
        ensure!(cloned != own, "{name} has its source's UUID");
        ensure!(
            place.sh(name, PRODUCT_UUID)? == own,
            "{name}'s kernel read again what it read at boot"
        );
        in_table(place, name, &cloned)?;
    }
    in_table(place, "u0", &own)?;
    // Later generations are born in another way.
    place.clone("u1", 1, "v")?;
    in_table(place, "v1", &uuid_of(place, "v1")?)?;
    for name in ["u1", "v1"] {
        place.cli.run(&["stop", name, "--force"])?;
        place.cli.run(&["start", name])?;
        wait_for("the clone's agent", Duration::from_secs(120), || {
            Ok(place.sh(name, "true").is_ok())
        })?;
        let cloned = uuid_of(place, name)?;
        let read = place.sh(name, PRODUCT_UUID)?;
        ensure!(
            read == cloned,
            "{name} reads {read} after a power cycle, not {cloned}"
        );
    }
    Ok(())
}

fn uuid_of(place: &Place, name: &str) -> anyhow::Result<String> {
    let info = place.cli.json(&["info", name])?;
    Ok(info["uuid"].as_str().context("a UUID")?.to_owned())
}

/// The table in the guest's memory, which dmidecode reads, has the VM's UUID as a serial number too.
fn in_table(place: &Place, name: &str, uuid: &str) -> anyhow::Result<()> {
    let serial = format!("mitose-{}", uuid.replace('-', ""));
    let count = format!("grep -c {serial} /sys/firmware/dmi/tables/DMI");
    let found = place.sh(name, &count);
    ensure!(found.is_ok(), "{name}'s table does not have {serial}");
    Ok(())
}

/// Into a directory that exists a directory goes under its own name, `/.` is its content, and pipes
/// are named and left out.
fn directories_go_below(place: &Place, tree: &Path, folder: &Path) -> anyhow::Result<()> {
    let tree = tree.to_str().context("path")?;
    let folder = folder.to_str().context("path")?;
    place.sh(
        "c0",
        "mkdir -p /tmp/there /tmp/pipes && mkfifo /tmp/pipes/pipe",
    )?;
    place.cli.run(&["cp", tree, "c0:/tmp/there"])?;
    place.sh(
        "c0",
        "test -f /tmp/there/tree/program && test ! -e /tmp/there/program",
    )?;
    place
        .cli
        .run(&["cp", &format!("{tree}/."), "c0:/tmp/there"])?;
    place.sh("c0", "test -f /tmp/there/program")?;
    place.cli.run(&["cp", "c0:/tmp/there/tree", folder])?;
    place
        .cli
        .run(&["cp", "c0:/tmp/there/tree/.", &format!("{folder}/content")])?;
    for file in ["tree/program", "content/program"] {
        ensure!(Path::new(folder).join(file).is_file(), "{file}");
    }
    let output = place.cli.output(&["cp", "c0:/tmp/pipes", folder])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success() && text.contains("pipe"),
        "{output:?}"
    );
    ensure!(
        !Path::new(folder).join("pipes/pipe").exists(),
        "a pipe became a file"
    );
    Ok(())
}

/// `mitose cp` both ways: files and directories with any content, names and modes.
pub(crate) fn copies(place: &Place) -> anyhow::Result<()> {
    place.run("c0", &["--memory", "256M"])?;
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("deep/er"))?;
    fs::create_dir(tree.join("empty"))?;
    let bytes: Vec<u8> = (0..3_000_017u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(tree.join("deep/er/binary"), &bytes)?;
    fs::write(tree.join("nothing"), b"")?;
    fs::write(tree.join("program"), b"#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::symlink("deep/er/binary", tree.join("link"))?;
    for name in ODD_NAMES {
        fs::write(tree.join(name), name.as_bytes())?;
    }
    let path = |path: &Path| path.to_str().map(str::to_owned).context("path");
    place.cli.run(&["cp", &path(&tree)?, "c0:/tmp/tree"])?;
    ensure!(
        place.sh("c0", "/tmp/tree/program")? == "it runs",
        "its mode"
    );
    ensure!(
        place.sh("c0", "readlink /tmp/tree/link")? == "deep/er/binary",
        "a link"
    );
    let back = folder.path().join("back");
    place.cli.run(&["cp", "c0:/tmp/tree", &path(&back)?])?;
    directories_go_below(place, &tree, folder.path())?;
    let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    ensure!(mode(&back.join("program"))? == 0o755, "a mode comes back");
    ensure!(
        fs::read(back.join("deep/er/binary"))? == bytes,
        "a large file"
    );
    ensure!(fs::read(back.join("nothing"))?.is_empty(), "an empty file");
    ensure!(back.join("empty").is_dir(), "an empty directory");
    ensure!(
        fs::read_link(back.join("link"))? == Path::new("deep/er/binary"),
        "a link comes back"
    );
    for name in ODD_NAMES {
        ensure!(
            fs::read(back.join(name))? == name.as_bytes(),
            "{name:?} in a directory"
        );
        // One by one, into a directory and under its own name.
        place
            .cli
            .run(&["cp", &path(&tree.join(name))?, "c0:/tmp/"])?;
        let one = folder.path().join("one");
        place
            .cli
            .run(&["cp", &format!("c0:/tmp/{name}"), &path(&one)?])?;
        ensure!(fs::read(&one)? == name.as_bytes(), "{name:?} by itself");
    }
    for wrong in [
        ["c0:/tmp/none", "x"],
        ["c0:relative", "x"],
        ["/nowhere/at/all", "c0:/tmp/x"],
    ] {
        let output = place.cli.output(&["cp", wrong[0], wrong[1]])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{wrong:?}: {output:?}");
        ensure!(text.trim_end().lines().count() == 1, "{wrong:?}: {text}");
    }
    ensure!(!Path::new("x").exists(), "a failed copy leaves nothing");
    Ok(())
}
