//! vmm_protocol: filled in by its first commit.
