//! The host CPU as judge of the software CPU: random instruction sequences on both.
