//! vm_spec: filled in by its first commit.
