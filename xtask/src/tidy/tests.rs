//! Tests of the rules, each with a text that breaks it; and the tree itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::ratchet::Ratchet;
use super::{Finding, Report, documents, modules, source};
use crate::workspace::Workspace;

#[test]
fn the_tree_is_tidy() {
    let workspace = Workspace::load().expect("cargo metadata");
    let report = super::check(&workspace).expect("check");
    let findings: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Rules that `text` breaks, in order of its lines.
fn rules(text: &str) -> Vec<(usize, &'static str)> {
    let mut findings = Vec::new();
    source::check(Path::new("crates/x/src/a.rs"), text, &mut findings);
    findings.iter().map(|f| (f.line, f.rule)).collect()
}

#[test]
fn each_rule_for_source_finds_its_text() {
    let cases: &[(&str, &[(usize, &str)])] = &[
        ("//! Fine.\nfn f() {}\n", &[]),
        ("fn f() {}\n", &[(1, "header")]),
        ("//! A.\n// TODO: more\n", &[(2, "unfinished")]),
        ("//! A.\nfn f() { todo!() }\n", &[(2, "unfinished")]),
        ("//! A.\n    #[ignore]\n", &[(2, "ignored-test")]),
        ("//! A.\npub struct DiskManager;\n", &[(2, "name")]),
        ("//! A.\npub struct GuestInfo;\n", &[]),
        ("//! A.\n/// Moved from b.rs.\n", &[(2, "narration")]),
        ("//! A.\nlet a = 1; // formerly 2\n", &[(2, "narration")]),
        (
            "//! A.\nconst A: &str = \"/home/me/a\";\n",
            &[(2, "machine-path")],
        ),
        ("//! A.\nconst A: &str = \"/guest/home/me\";\n", &[]),
        (
            "//! A.\n#[allow(unsafe_code)]\nmod b {}\n",
            &[(2, "unsafe")],
        ),
        (
            "//! A.\n#![expect(\n  unsafe_code,\n  reason = \"r\"\n)]\n",
            &[],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(rules(text), *expected, "{text}");
    }
}

#[test]
fn tests_do_not_count_as_lines_of_the_product() {
    let text = "//! A.\nfn f() {}\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
    let lines = |file| source::product_lines(Path::new(file), text);
    assert_eq!(lines("crates/x/src/a.rs"), 2);
    assert_eq!(lines("crates/x/src/a/tests.rs"), 0);
    assert_eq!(lines("crates/x/tests/a.rs"), 0);
}

#[test]
fn functions_are_measured_from_head_to_closing_brace() {
    let text = "impl A {\n    pub fn a(\n        b: u8,\n    ) {\n        c();\n    }\n}\n\
                fn d() {}\ntrait T {\n    fn e(&self);\n}\n";
    let found: Vec<_> = source::functions(text, 100)
        .into_iter()
        .map(|f| (f.name, f.line, f.lines))
        .collect();
    let expected = [("a", 2, 5), ("d", 8, 1), ("e", 10, 1)];
    assert_eq!(
        found,
        expected.map(|(name, line, lines)| (name.to_owned(), line, lines))
    );
}

#[test]
fn the_ratchet_only_turns_one_way() {
    let entry = "# text\na.rs 700\n";
    let check = |file: &str, lines: usize| {
        let mut ratchet = Ratchet::parse(entry).expect("parse");
        let mut report = Report::default();
        ratchet.check(Path::new(file), &"\n".repeat(lines), &mut report);
        ratchet.finish(&mut report);
        let lowered = ratchet.lowered();
        let last = lowered.lines().last().expect("lines").to_owned();
        (report.findings.len(), report.notes.len(), last)
    };
    let kept = |lines: usize| format!("a.rs {lines}");
    assert_eq!(check("a.rs", 701), (1, 0, kept(700)));
    assert_eq!(check("a.rs", 700), (0, 0, kept(700)));
    assert_eq!(check("a.rs", 650), (0, 1, kept(650)));
    assert!(!check("a.rs", 600).2.contains("a.rs"));
    assert_eq!(check("b.rs", 601).0, 1);
    let long = format!("fn f() {{\n{}}}\n", "    a();\n".repeat(69));
    let mut report = Report::default();
    Ratchet::default().check(Path::new("c.rs"), &long, &mut report);
    assert_eq!(report.findings.len(), 1);
}

#[test]
fn modules_are_found_below_their_parent() {
    let text = "mod a;\npub(crate) mod b;\n// mod c;\nmod d {}\n";
    let files = modules::declared_modules(Path::new("src/x.rs"), text);
    for expected in ["src/x/a.rs", "src/x/b.rs", "src/x/a/mod.rs"] {
        assert!(files.contains(&PathBuf::from(expected)), "{expected}");
    }
    let unwanted = |file: &PathBuf| file.ends_with("c.rs") || file.ends_with("d.rs");
    assert!(!files.iter().any(unwanted));
}

#[test]
fn an_invariant_needs_a_test_that_exists() {
    let tests: BTreeSet<String> = ["known".to_owned()].into();
    let lines = |text: &str| {
        let mut findings = Vec::new();
        documents::invariants(text, &tests, &mut findings);
        findings.iter().map(|f| f.line).collect::<Vec<_>>()
    };
    assert_eq!(
        lines("- **Not here.**\n## Invariants\n- **A.** Test: `x::known`.\n"),
        Vec::<usize>::new()
    );
    assert_eq!(
        lines("## Invariants\n- **A.**\n  More. Test:\n  `unknown`.\n"),
        [2]
    );
    assert_eq!(
        lines("## Invariants\n- **A.** No test.\n## Next\n- **B.**\n"),
        [2]
    );
}

#[test]
fn tests_are_known_by_their_attribute() {
    let text = "#[test]\nfn a() {}\nfn b() {}\n#[test]\n#[cfg(x)]\nfn c() {}\n";
    assert_eq!(documents::test_names(text), ["a", "c"]);
}
