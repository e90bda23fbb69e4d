//! machine: filled in by its first commit.
