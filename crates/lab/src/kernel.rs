//! Picks the kernel and the modules of the initramfs out of the unpacked Debian system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::build::file_error;
use crate::cpio::Archive;
use crate::error::BuildError;
use crate::recipe::{INITRAMFS_INIT, Recipe};
use crate::tools;

/// Returns the version of the one kernel in `root`.
pub(crate) fn version(root: &Path, recipe: &Recipe) -> Result<String, BuildError> {
    let modules = root.join("lib/modules");
    let entries = fs::read_dir(&modules).map_err(|e| file_error("read", &modules, e))?;
    let mut versions: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|version| {
            root.join("boot")
                .join(format!("vmlinuz-{version}"))
                .is_file()
        })
        .collect();
    versions.sort();
    versions
        .pop()
        .ok_or_else(|| incomplete("a kernel with modules", recipe))
}

/// Builds the initramfs: busybox, the modules in loading order, and the first init.
pub(crate) fn initramfs(
    root: &Path,
    version: &str,
    recipe: &Recipe,
) -> Result<Vec<u8>, BuildError> {
    let modules = root.join("lib/modules").join(version);
    let dep_path = modules.join("modules.dep");
    let dep = fs::read_to_string(&dep_path).map_err(|e| file_error("read", &dep_path, e))?;
    let builtin_path = modules.join("modules.builtin");
    let builtin =
        fs::read_to_string(&builtin_path).map_err(|e| file_error("read", &builtin_path, e))?;
    let files = load_order(&dep, &builtin, recipe.modules())
        .map_err(|module| incomplete(&format!("kernel module {module}"), recipe))?;

    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "root"] {
        archive.directory(directory);
    }
    let busybox = root.join("usr/bin/busybox");
    archive.program(
        "bin/busybox",
        &fs::read(&busybox).map_err(|e| file_error("read", &busybox, e))?,
    );
    archive.program("init", INITRAMFS_INIT.as_bytes());
    let mut order = String::new();
    for file in files {
        let name = format!("{}.ko", module_name(file));
        archive.program(
            &format!("modules/{name}"),
            &read_module(&modules.join(file))?,
        );
        order.push_str(&name);
        order.push('\n');
    }
    archive.program("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// Returns the files of `wanted` modules and of what they need, in loading order.
///
/// Modules that are built into the kernel are left out; `Err` names one that is nowhere.
fn load_order<'a>(
    dep: &'a str,
    builtin: &str,
    wanted: &[&'a str],
) -> Result<Vec<&'a str>, &'a str> {
    let built_in: Vec<String> = builtin.lines().map(module_name).collect();
    let lines: BTreeMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let mut order: Vec<&str> = Vec::new();
    for &module in wanted {
        let name = module_name(module);
        let Some(&(file, needs)) = lines.get(&name) else {
            if built_in.contains(&name) {
                continue;
            }
            return Err(module);
        };
        // modules.dep lists every need, direct or not, the deepest last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// Returns a module's name from its path; `-` and `_` are the same to the kernel.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Reads a module, decompressed: busybox cannot load compressed ones.
fn read_module(path: &Path) -> Result<Vec<u8>, BuildError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => tools::capture("xz", &["-dc".as_ref(), path.as_os_str()]),
        Some("zst") => tools::capture("zstd", &["-qdc".as_ref(), path.as_os_str()]),
        _ => fs::read(path).map_err(|e| file_error("read", path, e)),
    }
}

fn incomplete(what: &str, recipe: &Recipe) -> BuildError {
    BuildError::Incomplete {
        what: what.to_owned(),
        suite: recipe.suite().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/irqbypass.ko.xz\n\
        kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/irqbypass.ko.xz\n\
        kernel/virt/irqbypass.ko.xz:\n\
        kernel/net/tun.ko:\n";

    #[test]
    fn needs_come_before_the_module_and_once() {
        let order = load_order(DEP, "", &["kvm-amd", "kvm", "tun"]).unwrap();
        let names: Vec<String> = order.into_iter().map(module_name).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm_amd", "tun"]);
    }

    #[test]
    fn built_in_modules_are_left_out() {
        let order = load_order(
            DEP,
            "kernel/drivers/virtio/virtio-pci.ko\n",
            &["virtio_pci"],
        );
        assert_eq!(order, Ok(Vec::new()));
    }

    #[test]
    fn unknown_module_is_named() {
        assert_eq!(load_order(DEP, "", &["tun", "nothing"]), Err("nothing"));
    }
}
