//! `CONFORMANCE.md` and the tests of `tests/interop/python` name each other: every rule has its
//! test, every test its rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const HEADER: [&str; 4] = ["rule", "source", "test", "confirmed by 1.13.5"];
/// Allowed values of the last column.
const CONFIRMED: [&str; 2] = ["yes", "no"];

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of all tables with the list's columns.
fn rules() -> Vec<[String; 4]> {
    let text = read(&crate_dir().join("CONFORMANCE.md"));
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let cells = rows.map(|line| {
        let cells: Vec<String> = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect();
        <[String; 4]>::try_from(cells)
            .unwrap_or_else(|cells| panic!("a row has {} columns: {line}", cells.len()))
    });
    cells
        .filter(|row| *row != HEADER && !row.iter().all(|cell| cell.starts_with("---")))
        .collect()
}

fn interop_dir() -> PathBuf {
    crate_dir().join("../../tests/interop/python")
}

/// `file.py::test` of every test in a file that is marked as conformance.
fn marked_tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for entry in fs::read_dir(interop_dir()).expect("the folder of the tests") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let text = read(&path);
        if !text.contains("\npytestmark = pytest.mark.conformance\n") {
            assert!(
                !text.contains("mark.conformance"),
                "{} marks single tests; the list knows whole files only",
                path.display()
            );
            continue;
        }
        let file = path.file_name().expect("a name").to_string_lossy();
        let names = text.lines().filter_map(|line| {
            let rest = line
                .strip_prefix("async def ")
                .or_else(|| line.strip_prefix("def "))?;
            let name = rest.split('(').next()?;
            name.starts_with("test_").then(|| format!("{file}::{name}"))
        });
        for name in names {
            assert!(tests.insert(name.clone()), "{name} is there twice");
        }
    }
    tests
}

#[test]
fn every_rule_has_its_test_and_every_test_its_rule() {
    let rules = rules();
    let marked = marked_tests();
    assert!(!rules.is_empty() && !marked.is_empty());
    let mut seen = BTreeSet::new();
    let mut named = BTreeSet::new();
    for [rule, source, test, confirmed] in &rules {
        assert!(seen.insert(rule), "the rule is there twice: {rule}");
        assert!(
            !rule.is_empty() && !source.is_empty(),
            "{rule:?} {source:?}"
        );
        let test = test.trim_matches('`');
        assert!(
            marked.contains(test),
            "{rule}: {test} is no test that is marked as conformance"
        );
        assert!(
            CONFIRMED.contains(&confirmed.as_str()),
            "{rule}: confirmed {confirmed:?}"
        );
        named.insert(test.to_owned());
    }
    let unlisted: Vec<_> = marked.difference(&named).collect();
    assert!(unlisted.is_empty(), "no rule names {unlisted:?}");
}
