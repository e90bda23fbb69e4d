//! Disk images in memory files.

use std::fs::File;
use std::os::unix::fs::FileExt;

use disk_layers::{
    DiskFormat, DiskStack, LayerFile, PreparedTop, StackOptions, check_refcounts, check_whole,
    create_overlay, inspect, repair_refcounts,
};
use rustix::fs::{MemfdFlags, memfd_create};

/// Longest image of interest, bytes.
const IMAGE_BYTES_MAX: usize = 1 << 20;
/// Size of the disk below an image that names one, bytes.
const BELOW_BYTES: u64 = 1 << 20;

fn file_of(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all_at(bytes, 0).expect("memory takes bytes");
    file
}

fn share(file: &File, format: DiskFormat) -> LayerFile {
    let file = file.try_clone().expect("a descriptor can be copied");
    LayerFile { file, format }
}

/// An image that a user gives, or that a broken host left.
pub fn qcow2(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(IMAGE_BYTES_MAX)];
    let file = file_of(bytes);
    let _ = check_whole(&file);
    let _ = check_refcounts(&file);
    let _ = PreparedTop::open(share(&file, DiskFormat::Qcow2));
    if let Ok(header) = inspect(&file) {
        use_as_top(&file, header.backing.is_some());
        use_as_lower(&file, header.virtual_size_bytes, header.backing.is_some());
    }
    let _ = repair_refcounts(&file);
}

fn below(wanted: bool) -> Vec<LayerFile> {
    let raw = File::from(memfd_create("below", MemfdFlags::CLOEXEC).expect("a memory file"));
    raw.set_len(BELOW_BYTES).expect("memory has room");
    let layer = LayerFile {
        file: raw,
        format: DiskFormat::Raw,
    };
    wanted.then_some(layer).into_iter().collect()
}

/// Writes and reads at both ends and in the middle, as a guest does.
fn use_as_top(file: &File, names_backing: bool) {
    let top = share(file, DiskFormat::Qcow2);
    let Ok(mut disk) = DiskStack::open(top, below(names_backing), StackOptions::default()) else {
        return;
    };
    let size = disk.size_bytes();
    let mut block = [0; 4096];
    for offset in [0, size / 2 / 512 * 512, size.saturating_sub(4096)] {
        if disk.read_at(offset, &mut block).is_ok() {
            let _ = disk.write_at(offset, &[0xa5; 4096]);
            let _ = disk.read_at(offset, &mut block);
        }
    }
    let _ = disk.discard(0, size.min(1 << 20));
    let _ = disk.write_zeroes(0, size.min(1 << 16), false);
    let _ = disk.flush();
}

/// Reads it through an overlay.
fn use_as_lower(file: &File, size: u64, names_backing: bool) {
    let overlay = File::from(memfd_create("overlay", MemfdFlags::CLOEXEC).expect("a memory file"));
    if create_overlay(&overlay, size, "x", DiskFormat::Qcow2).is_err() {
        return;
    }
    let top = LayerFile {
        file: overlay,
        format: DiskFormat::Qcow2,
    };
    let mut layers = vec![share(file, DiskFormat::Qcow2)];
    layers.extend(below(names_backing));
    if let Ok(mut disk) = DiskStack::open(top, layers, StackOptions::default()) {
        let mut block = [0; 4096];
        let _ = disk.read_at(0, &mut block);
        let _ = disk.write_at(512, &[1; 512]);
        let _ = disk.flush();
    }
}
