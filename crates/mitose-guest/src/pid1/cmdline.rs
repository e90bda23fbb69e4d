//! The kernel command line: words, `key=value`, and quotes around values with spaces.

use std::fs;

/// The parsed words in their order.
#[derive(Debug, Default)]
pub(crate) struct Cmdline {
    words: Vec<(String, Option<String>)>,
}

impl Cmdline {
    /// Reads the running kernel's command line; empty when /proc is missing.
    pub(crate) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quoted = false;
        for c in text.trim_end().chars() {
            match c {
                '"' => quoted = !quoted,
                c if c.is_whitespace() && !quoted => {
                    if !word.is_empty() {
                        words.push(split(&word));
                        word.clear();
                    }
                }
                c => word.push(c),
            }
        }
        if !word.is_empty() {
            words.push(split(&word));
        }
        Self { words }
    }

    /// Returns the last value given for a key.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find(|(name, _)| name == key)?
            .1
            .as_deref()
    }

    /// Whether a word was given, with or without a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.words.iter().any(|(name, _)| name == key)
    }
}

fn split(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_values_and_quotes_are_told_apart() {
        let line = Cmdline::parse("ro root=/dev/vda mitose.cmd=\"sh -c 'a b'\" x=1 x=2 quiet\n");
        assert_eq!(line.value("root"), Some("/dev/vda"));
        assert_eq!(line.value("mitose.cmd"), Some("sh -c 'a b'"));
        assert_eq!(line.value("x"), Some("2"));
        assert!(line.has("quiet") && line.has("ro") && !line.has("rw"));
        assert_eq!(line.value("quiet"), None);
    }

    #[test]
    fn unbalanced_quotes_keep_the_rest() {
        assert_eq!(Cmdline::parse("a=\"b c").value("a"), Some("b c"));
        assert!(!Cmdline::parse("").has(""));
    }
}
