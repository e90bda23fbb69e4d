//! api_types: filled in by its first commit.
