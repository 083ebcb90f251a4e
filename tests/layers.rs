//! The arrows between the folders of `src/`: a folder imports what stands in its row and nothing else, so there are
//! no cycles and only `gpu` knows of CUDA.

use std::path::{Path, PathBuf};

/// Folder, and what it may import.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("media", &["core"]),
    ("text", &["core"]),
    ("weights", &["core"]),
    ("cpu", &["core"]),
    ("gpu", &["core", "weights"]),
    ("ops", &["core", "cpu", "gpu"]),
    ("graph", &["core", "ops"]),
    ("plan", &["core", "ops", "graph"]),
    ("models", &["core", "ops", "graph", "weights"]),
    ("fuse", &["core", "ops", "graph"]),
    ("exec", &["core", "weights", "cpu", "gpu", "ops", "graph", "plan"]),
    (
        "engine",
        &["core", "weights", "models", "fuse", "plan", "exec", "graph", "media", "text", "ops", "gpu"],
    ),
];

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src")
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a readable source folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every `crate::NAME` in the code of a file; comments and the tests' modules may name what they like.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        // Tests at the end of a file may name what they like.
        if line.starts_with("mod tests {") {
            break;
        }
        if line.trim_start().starts_with("//") {
            continue;
        }
        let code = line.split(" // ").next().unwrap_or(line);
        for (at, _) in code.match_indices("crate::") {
            if at > 0 && code[..at].ends_with('$') {
                continue;
            }
            let rest = &code[at + "crate::".len()..];
            for name in first_names(rest) {
                // The crate's macros stand at its root, wherever they are written.
                if !["bail_input", "bail_runtime", "ensure_input"].contains(&name) {
                    found.push((n + 1, name.to_owned()));
                }
            }
        }
    }
    found
}

/// What a path begins with: one name, or those of a group `{a::B, c}` of one line.
fn first_names(path: &str) -> Vec<&str> {
    let name = |s: &'_ str| s.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(s.len());
    let Some(group) = path.strip_prefix('{') else { return vec![&path[..name(path)]] };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && !c.is_whitespace() => {
                names.push(&group[at..at + name(&group[at..])]);
                begins = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn names_of_groups_are_seen() {
    let names = |line: &str| imports(line).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::core::{Desc, Result};"), ["core"]);
    assert_eq!(
        names("use crate::{bail_input, gpu::{launch::Launch, memory}, engine, text as t};"),
        ["gpu", "engine", "text"]
    );
    assert_eq!(names("let x = crate::ops::norm(crate::plan::plan(y)); // crate::models"), ["ops", "plan"]);
    assert_eq!(names("    // crate::engine"), [""; 0]);
}

#[test]
fn groups_stand_on_one_line_and_paths_go_up_within_their_folder() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable source file");
        // Modules between this one and the crate: src/folder/file.rs is two below it, src/folder/mod.rs one.
        let names = file.strip_prefix(root()).expect("a file below src").components().count();
        let mut depth = names - usize::from(file.ends_with("mod.rs") || names == 1);
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            depth += usize::from(line.starts_with("mod tests {"));
            let at = format!("{}:{}", file.display(), n + 1);
            assert!(!line.ends_with("crate::{"), "{at}: imports() reads groups of one line");
            assert!(!line.contains(&"super::".repeat(depth.max(1))), "{at}: super leads out of its folder");
        }
    }
}

#[test]
fn folders_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for (folder, allowed) in ARROWS {
        let mut files = Vec::new();
        rust_files(&root().join(folder), &mut files);
        assert!(!files.is_empty(), "src/{folder} is gone: mend the table");
        for file in files.iter().filter(|f| !f.file_stem().is_some_and(|s| s == "tests" || s == "testing")) {
            let text = std::fs::read_to_string(file).expect("a readable source file");
            for (line, name) in imports(&text) {
                if name != *folder && !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{}:{line}: src/{folder} may not import {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_folder_is_in_the_table() {
    for entry in std::fs::read_dir(root()).expect("a readable source folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && name != "cli" {
            assert!(ARROWS.iter().any(|(f, _)| *f == name), "src/{name} has no row");
        }
    }
}

#[test]
fn cudarc_and_nvml_have_one_home() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable source file");
        let inside = file.strip_prefix(root()).is_ok_and(|p| p.starts_with("gpu"));
        for name in ["cudarc", "nvml_wrapper"] {
            let path = format!("{name}::");
            let mentions = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(&path));
            assert!(inside || !mentions, "{} uses {name}: only src/gpu may", file.display());
        }
    }
}
