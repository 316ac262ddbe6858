//! Which part of the program imports which: the directions that `src/lib.rs` promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The parts of the program that a file names: what stands behind `crate::` outside comments.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        // `use crate::{one, two::Three};`
        let (list, separators) = match rest.strip_prefix('{') {
            Some(list) => (list.split(';').next().unwrap_or_default(), [',', '{']),
            None => (rest, ['\0', '\0']),
        };
        for path in list.split(separators) {
            let path = path.trim_start();
            let end = path.find(|c: char| !is_name(c)).unwrap_or(path.len());
            found.insert(path[..end].to_owned());
        }
    }
    found.remove("");
    found
}

/// What each part of the program imports, with the file that does.
fn graph() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut graph: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(&root).expect("it is below the sources");
        let first = below.iter().next().and_then(|part| part.to_str());
        let part = first.expect("a name").trim_end_matches(".rs").to_owned();
        let imports = imports(&fs::read_to_string(&file).expect("a source file"));
        let known = graph.entry(part).or_default();
        known.extend(imports.into_iter().map(|import| (import, file.clone())));
    }
    graph
}

#[test]
fn imports_are_seen_in_every_form() {
    let text = "use crate::store::Store;\nuse crate::{\n    ipc::{self, FromCall},\n    phone,\n};\n\
                // crate::upload\nfn f() { crate::voice::g(crate::tools::h()) }";
    let expected = ["ipc", "phone", "store", "tools", "voice"];
    let found = imports(text);
    for part in expected {
        assert!(found.contains(part), "{part}: {found:?}");
    }
    assert!(!found.contains("upload"), "{found:?}");
}

#[test]
fn parts_import_in_one_direction() {
    let graph = graph();
    let only: [(&str, &[&str]); 3] = [
        ("settings", &[]),
        ("phone", &[]),
        ("session", &["phone", "settings"]),
    ];
    let never: [(&[&str], &[&str]); 2] = [
        (
            &[
                "store",
                "campaign",
                "ledger",
                "rooms",
                "recording",
                "upload",
                "worker",
                "ipc",
                "tools",
                "voice",
                "providers",
            ],
            &["call", "cli", "config"],
        ),
        (
            &["store", "session"],
            &["campaign", "ledger", "upload", "worker"],
        ),
    ];
    let mut wrong = Vec::new();
    let mut check = |part: &str, allowed: &dyn Fn(&str) -> bool| {
        let imports = graph.get(part).unwrap_or_else(|| panic!("no part {part}"));
        for (import, file) in imports {
            if import != part && graph.contains_key(import) && !allowed(import) {
                wrong.push(format!("{} imports {import}", file.display()));
            }
        }
    };
    for (part, allowed) in only {
        check(part, &|import| allowed.contains(&import));
    }
    for (parts, forbidden) in never {
        for part in parts {
            check(part, &|import| !forbidden.contains(&import));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
