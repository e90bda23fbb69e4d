//! The loader from outside: kernel files in, guest RAM and registers out.

mod kernel;
mod kernel_files;
mod load;
