//! What fuzz targets call: each takes bytes that somebody hostile may have made. A target fails by
//! a panic, an overflow, a hang or too much memory.
//!
//! `scripts/fuzz.sh` builds and runs them on the stable compiler; `cargo fuzz` finds them too.

#![forbid(unsafe_code)]

mod archives;
mod disks;
mod messages;
mod platform;
mod soft;

use boot::Kernel;
use machine::{CHECKPOINT_BYTES_MAX, Checkpoint};
use saved_state::Kind;
use virtio_devices::{SavedTransport, testing};
use vm_spec::VmSpec;

pub use archives::{archive, archive_of};
pub use disks::qcow2;
pub use messages::{agent_messages, vmm_messages};
pub use soft::{SOFT_SEEDS, soft_cpu};

/// Register accesses of a guest.
pub fn register_writes(bytes: &[u8]) {
    testing::fuzz_register_writes(bytes);
}

/// Rings of a guest.
pub fn rings(bytes: &[u8]) {
    testing::fuzz_rings(bytes);
}

/// A device's saved state, without its container.
pub fn device_state(bytes: &[u8]) {
    if let Ok(saved) = ciborium::from_reader::<SavedTransport, _>(bytes) {
        testing::fuzz_restore(&saved);
    }
}

/// A kernel file.
pub fn kernel(bytes: &[u8]) {
    if let Ok(kernel) = Kernel::from_bytes(bytes.to_vec()) {
        let _ = (
            kernel.kind(),
            kernel.entry(),
            kernel.command_line_bytes_max(),
        );
    }
    let _ = boot::extract_vmlinux(bytes);
}

/// A checkpoint: as a file, and as the document in one.
pub fn checkpoint(bytes: &[u8]) {
    assert!((bytes.len() as u64) < CHECKPOINT_BYTES_MAX);
    let _ = Checkpoint::decode(bytes);
    let Ok(checkpoint) = ciborium::from_reader::<Checkpoint, _>(bytes) else {
        return;
    };
    let spec = serde_json::json!({
        "cpus": checkpoint.cpus,
        "memory_bytes": checkpoint.memory_bytes,
        "cmdline": "",
        "disks": [],
        "nics": [],
    });
    let spec: VmSpec = serde_json::from_value(spec).expect("a description");
    let _ = (checkpoint.fits(&spec), checkpoint.is_of_soft());
    let file = checkpoint.encode().expect("what was read can be written");
    let again = Checkpoint::decode(&file).expect("what was written can be read");
    assert_eq!(again, checkpoint);
    cut_and_flip(&file, bytes, |file| Checkpoint::decode(file).is_ok());
}

/// A value in the container of saved states.
pub fn saved_state(bytes: &[u8]) {
    let kind = Kind {
        tag: *b"FUZZ",
        version: 1,
    };
    let _ = saved_state::decode::<Vec<u8>>(kind, bytes);
    let file = saved_state::encode(kind, &bytes).expect("bytes can be written");
    let read = |file: &[u8]| saved_state::decode::<Vec<u8>>(kind, file).ok();
    assert_eq!(read(&file).as_deref(), Some(bytes));
    cut_and_flip(&file, bytes, |file| read(file).is_some());
}

/// Cuts `file` and flips a bit of it where `choice` says; `accepts` must refuse both.
fn cut_and_flip(file: &[u8], choice: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    let number = choice.iter().fold(7usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add((*byte).into())
    });
    let at = number % file.len();
    assert!(!accepts(&file[..at]), "a file cut at {at} was accepted");
    let mut flipped = file.to_vec();
    flipped[at] ^= 1 << (number / file.len() % 8);
    assert!(!accepts(&flipped), "a flip at {at} was not found");
}
