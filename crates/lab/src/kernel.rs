//! Picks the kernel and the modules of the initramfs out of the unpacked Debian system.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
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

/// Returns the kernel as QEMU starts it fastest: the ELF image that a bzImage carries compressed.
///
/// Unpacking it here saves the lab from doing so on every boot. An image with a compression that
/// is not known is returned as it is.
pub(crate) fn image(bz_image: &[u8]) -> Result<Vec<u8>, BuildError> {
    let Some((program, payload)) = payload(bz_image) else {
        return Ok(bz_image.to_vec());
    };
    let mut packed = tempfile::NamedTempFile::new()
        .map_err(|e| file_error("create a file in", &std::env::temp_dir(), e))?;
    packed
        .write_all(payload)
        .map_err(|e| file_error("write", packed.path(), e))?;
    tools::capture(program, &["-dcq".as_ref(), packed.path().as_os_str()])
}

/// Returns the program that unpacks a bzImage's payload, and the payload.
///
/// Layout: kernel documentation, `arch/x86/boot`, fields `setup_sects`, `payload_offset`,
/// `payload_length`.
fn payload(bz_image: &[u8]) -> Option<(&'static str, &[u8])> {
    const SECTOR_BYTES: usize = 512;
    const SIZE_BYTES: usize = 4;
    let word = |at: usize| {
        let bytes = bz_image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if bz_image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // Zero means 4, as in the oldest images.
    let setup_sectors = match *bz_image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR_BYTES + word(0x248)?;
    // The unpacked size follows the packed data.
    let end = start.checked_add(word(0x24c)?)?.checked_sub(SIZE_BYTES)?;
    let payload = bz_image.get(start..end)?;
    match payload.get(..4)? {
        [0x28, 0xb5, 0x2f, 0xfd] => Some(("zstd", payload)),
        [0xfd, b'7', b'z', b'X'] => Some(("xz", payload)),
        _ => None,
    }
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
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root"] {
        archive.directory(directory);
    }
    let busybox = root.join("usr/bin/busybox");
    archive.program(
        "bin/busybox",
        &fs::read(&busybox).map_err(|e| file_error("read", &busybox, e))?,
    );
    archive.program("init", INITRAMFS_INIT.as_bytes());
    let mut loaded = Vec::new();
    for (list, wanted) in recipe.modules() {
        let files = load_order(&dep, &builtin, wanted)
            .map_err(|module| incomplete(&format!("kernel module {module}"), recipe))?;
        let mut order = String::new();
        for file in files
            .into_iter()
            .filter(|file| !loaded.contains(file))
            .collect::<Vec<_>>()
        {
            let name = format!("{}.ko", module_name(file));
            archive.program(
                &format!("modules/{name}"),
                &read_module(&modules.join(file))?,
            );
            order.push_str(&name);
            order.push('\n');
            loaded.push(file);
        }
        archive.program(&format!("modules/{list}"), order.as_bytes());
    }
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

    fn bz_image(magic: &[u8; 4]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x10u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&0x20u32.to_le_bytes());
        image[0x410..0x414].copy_from_slice(magic);
        image
    }

    #[test]
    fn payload_is_found_by_the_header() {
        let image = bz_image(b"\x28\xb5\x2f\xfd");
        assert_eq!(payload(&image), Some(("zstd", &image[0x410..0x42c])));
        assert_eq!(payload(&bz_image(b"\xfd7zX")).unwrap().0, "xz");
        assert_eq!(payload(&bz_image(b"none")), None);
    }

    #[test]
    fn cut_image_has_no_payload() {
        let image = bz_image(b"\x28\xb5\x2f\xfd");
        for length in 0..0x42c {
            assert_eq!(payload(&image[..length]), None, "{length}");
        }
    }

    #[test]
    fn unknown_module_is_named() {
        assert_eq!(load_order(DEP, "", &["tun", "nothing"]), Err("nothing"));
    }
}
