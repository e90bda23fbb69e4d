//! disk_layers: filled in by its first commit.
