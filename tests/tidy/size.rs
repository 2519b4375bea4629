//! What a reader can take in at once: functions fit a screen, files a sitting, comments the width
//! of the code, and no comment leads out of the repository.

use std::path::Path;

use crate::files;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;

/// Functions that may be longer: file, name, and why. The list may only become shorter.
const LONG_FUNCTIONS: &[(&str, &str, &str)] =
    &[("tests/rights/calls.rs", "request", "one match, a request for each call of the table")];

/// Files that may be longer: which, and why. The list may only become shorter.
const LONG_FILES: &[(&str, &str)] = &[];

/// Names and lengths of the functions of a file, in lines from `fn` to the closing brace.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let mut words = line.trim_start().split(' ').skip_while(|word| {
            word.starts_with("pub") || ["const", "unsafe", "crate)", "super)"].contains(word)
        });
        let Some(name) = (words.next() == Some("fn")).then(|| words.next()).flatten() else {
            continue;
        };
        let name = name.split(['(', '<']).next().unwrap_or_default();
        let head = lines[start..].iter().position(|line| line.ends_with([';', '{', '}']));
        let Some(head) = head.map(|size| start + size) else { continue };
        if !lines[head].ends_with('{') {
            continue;
        }
        let is_end = |line: &&str| line.strip_prefix(indent) == Some("}");
        let size = lines[head..].iter().position(is_end).expect("a function ends");
        found.push((name, head + size + 1 - start));
    }
    found
}

#[test]
fn functions_are_measured() {
    let text = "fn short() {}\n\nimpl X {\n    pub fn long(\n        a: u8,\n    ) -> u8 {\n        \
                if a > 1 {\n        }\n        a\n    }\n    fn declared(&self);\n}\n\
                pub(super) fn last<T>() {\n    // }\n}\n";
    assert_eq!(functions(text), [("long", 7), ("last", 3)]);
}

#[test]
fn functions_fit_a_screen() {
    let (mut long, mut excused) = (Vec::new(), Vec::new());
    for (file, text) in files(&["src", "tests"]) {
        let functions = functions(&text).into_iter();
        for (name, lines) in functions.filter(|(_, lines)| *lines > FUNCTION_LINES_MAX) {
            match LONG_FUNCTIONS.iter().find(|row| row.0 == file && row.1 == name) {
                Some(row) => excused.push(*row),
                None => long.push(format!("{name} in {file}: {lines} lines")),
            }
        }
    }
    assert!(long.is_empty(), "more than {FUNCTION_LINES_MAX} lines: {long:#?}");
    assert_eq!(excused.len(), LONG_FUNCTIONS.len(), "some fit a screen: take them off the list");
}

#[test]
fn files_are_read_at_one_sitting() {
    let (mut long, mut excused) = (Vec::new(), Vec::new());
    for (file, text) in files(&["src", "tests"]) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            match LONG_FILES.iter().find(|row| row.0 == file) {
                Some(row) => excused.push(*row),
                None => long.push(format!("{file}: {lines} lines")),
            }
        }
    }
    assert!(long.is_empty(), "more than {FILE_LINES_MAX} lines: {long:#?}");
    assert_eq!(excused.len(), LONG_FILES.len(), "some are short: take them off the list");
}

/// `rustfmt` sets code to that width and leaves comments alone.
#[test]
fn comments_are_as_wide_as_code() {
    for (file, text) in files(&["src", "tests"]) {
        let is_comment = |line: &str| line.trim_start().starts_with("//");
        // A row of a table and an address cannot be broken.
        let is_whole =
            |line: &str| line.contains("//! |") || line.contains("/// |") || line.contains("://");
        let wide = text
            .lines()
            .find(|line| is_comment(line) && !is_whole(line) && line.chars().count() > COLUMNS_MAX);
        assert_eq!(wide, None, "{file}: comments have {COLUMNS_MAX} columns");
    }
}

/// Whether a word is a number of a requirement in some other document: a letter, a hyphen, digits.
fn is_code(word: &str) -> bool {
    let rest = ["R-", "D-", "P-", "O-"].iter().find_map(|start| word.strip_prefix(start));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whoever reads a comment has the repository and nothing else.
#[test]
fn no_comment_leads_out_of_the_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = files(&["src", "tests"]);
    for script in ["hooks/relay-hook.sh", "tests/faults.sh", "tests/all.sh", "tests/defects/run.sh"]
    {
        all.push((script.into(), std::fs::read_to_string(root.join(script)).expect("reads")));
    }
    for (file, text) in all {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        let code = words.into_iter().find(|word| is_code(word));
        assert_eq!(code, None, "{file}: say the rule itself");
    }
    // Put together here, so that this file has none either.
    let code = |letter: &str, number: &str| is_code(&format!("{letter}-{number}"));
    assert!(code("D", "33") && code("R", "123a") && !code("R", "x") && !code("SHA", "256"));
}
