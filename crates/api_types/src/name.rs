//! Names of objects.

/// Longest name of an object, bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Returns why `name` cannot name a VM or image, or `None` when it can.
pub fn name_problem(name: &str) -> Option<String> {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = ends(name.bytes().next())
        && ends(name.bytes().last())
        && name.bytes().all(inner)
        && name.len() <= MAX_NAME_BYTES;
    (!good).then(|| {
        let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        format!(
            "name: {shown:?} is not 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.', \
             with a letter or digit at both ends"
        )
    })
}
