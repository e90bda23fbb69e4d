//! bare_guests: filled in by its first commit.
