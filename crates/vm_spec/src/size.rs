//! Byte sizes as people write them: `512M`, `2G`, `1.5GiB`, plain bytes.

/// Text is no byte size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("size: {0:?} is not a number with an optional unit K, M, G or T (powers of 1024)")]
pub struct ParseSizeError(String);

/// Returns the bytes that `text` names; units are powers of 1024, as `docker` and `virsh` take them.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let wrong = || ParseSizeError(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let scale = 1u64 << shift;
    match number.split_once('.') {
        None => {
            let whole: u64 = number.parse().map_err(|_| wrong())?;
            whole.checked_mul(scale).ok_or_else(wrong)
        }
        Some(_) => {
            let value: f64 = number.parse().map_err(|_| wrong())?;
            let bytes = value * scale as f64;
            if bytes.is_finite() && (0.0..9.0e18).contains(&bytes) {
                Ok(bytes.round() as u64)
            } else {
                Err(wrong())
            }
        }
    }
}

/// Writes `bytes` with the largest unit of 1024 that keeps at least one whole digit.
pub fn format_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let step = (bytes.max(1).ilog2() / 10).min(5);
    let value = bytes as f64 / (1u64 << (10 * step)) as f64;
    let unit = units[step as usize];
    if step == 0 || value.fract() == 0.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Writes `bytes` with a unit where that is the exact number, otherwise as it is.
pub fn format_exact(bytes: u64) -> String {
    let text = format_size(bytes);
    let is_exact = if text.contains("PiB") {
        bytes.is_multiple_of(1 << 50)
    } else {
        bytes >= 1 << 10 && parse_size(&text) == Ok(bytes)
    };
    if is_exact { text } else { bytes.to_string() }
}
