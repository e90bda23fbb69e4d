//! The loader from outside: kernel files in, guest RAM and registers out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kernel;
mod kernel_files;
mod load;
