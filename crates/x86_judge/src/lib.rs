//! The host CPU as judge of the software CPU: random instruction sequences on both.
//!
//! [`Generator`] makes [`Case`]s: a few user-mode instructions, registers, memory. [`Native`] runs
//! one on the host CPU, [`Soft`] on `x86_cpu`; [`compare`] tells where the outcomes differ, leaving
//! out what the manual calls undefined. Only tests use this crate.

mod compare;
mod draft;
mod generator;
mod layout;
mod native;
mod random;
mod soft;
mod state;

pub use compare::{Difference, compare};
pub use draft::Draft;
pub use generator::{Generator, allowed_codes, differential_codes};
pub use native::{Native, NativeError};
pub use random::Random;
pub use soft::{Soft, SoftError};
pub use state::{Case, Extended, Outcome, State, Step, Trap};
