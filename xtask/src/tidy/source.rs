//! Rules for single Rust files.

use std::path::Path;

use super::Finding;
use super::documents::machine_paths;
use super::law::{
    BANNED_SUFFIXES, INLINE_TEST_LINES_MAX, NARRATION, QUOTES_THE_LAW, SUFFIX_EXEMPT, UNFINISHED,
};

pub fn check(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    header(file, text, findings);
    inline_tests(file, text, findings);
    let quotes = QUOTES_THE_LAW.iter().any(|path| Path::new(path) == file);
    for (index, line) in text.lines().enumerate().filter(|_| !quotes) {
        let line_number = index + 1;
        let mut report = |rule, message: String| {
            findings.push(Finding::new(file, line_number, rule, message));
        };
        for mark in UNFINISHED.iter().filter(|mark| line.contains(**mark)) {
            report(
                "unfinished",
                format!("`{mark}` in the tree: finish it or file it"),
            );
        }
        if code_of(line).starts_with("#[ignore") {
            let message = "an ignored test proves nothing: fix it or assert what happens";
            report("ignored-test", message.to_owned());
        }
        if let Some(name) = banned_type(code_of(line)) {
            report("name", format!("type `{name}`: its ending says nothing"));
        }
        if let Some(start) = comment_start(line) {
            let comment = line[start..].to_lowercase();
            for words in NARRATION.iter().filter(|words| comment.contains(**words)) {
                let message = format!("`{words}`: say what is, history is in the commits");
                report("narration", message);
            }
        }
        if let Some(path) = machine_paths(line) {
            report(
                "machine-path",
                format!("`{path}` exists only on somebody's machine"),
            );
        }
        if opens_unreasoned_unsafe(text, index, line) {
            let message = "allowing unsafe code needs `reason = \"…\"`";
            report("unsafe", message.to_owned());
        }
    }
}

fn header(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    if !text.starts_with("//!") {
        let message = "open the file with `//!`: what it is and what it is not";
        findings.push(Finding::new(file, 1, "header", message));
    }
}

/// Says whether `line` begins an attribute that lets unsafe code in without a reason.
fn opens_unreasoned_unsafe(text: &str, index: usize, line: &str) -> bool {
    let code = code_of(line);
    let opens = ["#[allow(", "#![allow(", "#[expect(", "#![expect("]
        .iter()
        .any(|form| code.starts_with(form));
    if !opens {
        return false;
    }
    let attribute: Vec<&str> = text.lines().skip(index).take(5).collect();
    let attribute = attribute.join(" ");
    let attribute = attribute.split(']').next().unwrap_or_default();
    attribute.contains("unsafe_code") && !attribute.contains("reason")
}

/// Returns the name of a type whose ending is banned.
fn banned_type(code: &str) -> Option<&str> {
    let code = code.strip_prefix("pub(crate) ").unwrap_or(code);
    let code = code.strip_prefix("pub(super) ").unwrap_or(code);
    let code = code.strip_prefix("pub ").unwrap_or(code);
    let (kind, rest) = code.split_once(' ')?;
    if !matches!(kind, "struct" | "enum" | "trait" | "union" | "type") {
        return None;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
    let name = &rest[..end.unwrap_or(rest.len())];
    let banned = BANNED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    (banned && !SUFFIX_EXEMPT.contains(&name)).then_some(name)
}

fn inline_tests(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    if let Some(start) = inline_tests_start(text) {
        let lines = text.lines().count() - start;
        if lines > INLINE_TEST_LINES_MAX {
            let message = format!("{lines} lines of inline tests: give them a file `tests.rs`");
            findings.push(Finding::new(file, start + 1, "inline-tests", message));
        }
    }
}

/// Index of the line that opens an inline test module.
fn inline_tests_start(text: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let opens = |pair: &[&str]| {
        pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    };
    lines.windows(2).position(opens)
}

/// Number of lines that belong to the product: none in test files, tests excluded elsewhere.
pub fn product_lines(file: &Path, text: &str) -> usize {
    let is_test = file.components().any(|part| {
        matches!(
            part.as_os_str().to_str(),
            Some("tests" | "tests.rs" | "testing" | "examples" | "fuzz")
        )
    });
    match (is_test, inline_tests_start(text)) {
        (true, _) => 0,
        (false, Some(start)) => start,
        (false, None) => text.lines().count(),
    }
}

/// A function and where it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// 1-based line of its `fn`.
    pub line: usize,
    /// Lines from its `fn` to its closing brace.
    pub lines: usize,
}

/// Functions in the first `lines` lines of `text`, which rustfmt has laid out: a body ends with a
/// brace as far to the left as the line of `fn`.
pub fn functions(text: &str, lines: usize) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().take(lines).collect();
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(code_of(line)) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| {
            let rest = line.strip_prefix(indent);
            rest == Some("}")
                || rest.is_some_and(|rest| rest.ends_with(';') && !rest.starts_with(' '))
        };
        let one_line = line.ends_with('}') || line.ends_with(';');
        let more = lines.iter().skip(index + 1).position(ends);
        functions.push(Function {
            name: name.to_owned(),
            line: index + 1,
            lines: if one_line {
                1
            } else {
                more.map_or(1, |more| more + 2)
            },
        });
    }
    functions
}

fn function_name(code: &str) -> Option<&str> {
    let (before, rest) = code.split_once("fn ")?;
    let words = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "async",
        "unsafe",
        "extern",
        "\"C\"",
    ];
    if !before.split_whitespace().all(|word| words.contains(&word)) {
        return None;
    }
    rest.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

/// The line without indentation, or nothing where it is a comment.
pub fn code_of(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") { "" } else { line }
}

/// Where a comment starts in `line`: at the front, or behind code with a space before it.
pub fn comment_start(line: &str) -> Option<usize> {
    if line.trim_start().starts_with("//") {
        return line.find("//");
    }
    line.find(" // ")
}
