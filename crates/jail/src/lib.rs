//! jail: filled in by its first commit.
