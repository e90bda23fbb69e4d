//! layer_store: filled in by its first commit.
