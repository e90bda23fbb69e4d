//! virtio-balloon (virtio 1.2 §5.5) with free page reporting: the guest gives memory back.
//!
//! `PAGE_POISON` is never offered: a page given back by a clone shows the layer's old bytes when
//! it is used again, and a guest that poisons free pages would see them.

mod device;
mod regs;
mod saved;
#[cfg(test)]
mod tests;

pub use device::{Balloon, ReclaimRam};
pub use saved::SavedBalloon;
