//! guest_memory: filled in by its first commit.
