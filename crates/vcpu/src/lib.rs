//! vcpu: filled in by its first commit.
