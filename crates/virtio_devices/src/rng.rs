//! virtio-rng (virtio 1.2 §5.4): the host's random bytes. It has no state to save: a clone draws
//! other bytes than its source because the host never gives the same ones twice.

mod device;
mod saved;
#[cfg(test)]
mod tests;

pub use device::Rng;
pub use saved::SavedRng;
