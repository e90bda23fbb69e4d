//! saved_state: filled in by its first commit.
