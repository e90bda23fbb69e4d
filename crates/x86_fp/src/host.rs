//! What the host's processor must have.

/// Returns the names of what guest instructions are computed with and the host's processor does not
/// have; empty on x86-64-v2 and later.
pub fn missing_on_host() -> Vec<&'static str> {
    let needed = [
        ("SSE4.2", is_x86_feature_detected!("sse4.2")),
        ("POPCNT", is_x86_feature_detected!("popcnt")),
        ("CMPXCHG16B", is_x86_feature_detected!("cmpxchg16b")),
    ];
    let missing = needed.iter().filter(|(_, has)| !has);
    missing.map(|(name, _)| *name).collect()
}
