//! Tests of the store, with `qemu-img` as a second reader.

mod model;
mod store;
