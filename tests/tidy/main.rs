//! House rules as tests: who may use whom, and what stands only in its room.

mod size;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use agent_relay::provider::acp::presets;

/// All Rust files below these folders, with their paths from the root of the repository.
fn files(folders: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("reads");
            open.extend(entries.map(|entry| entry.expect("entry").path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path.strip_prefix(root).expect("inside").to_string_lossy().into_owned();
            files.push((name, std::fs::read_to_string(&path).expect("reads")));
        }
    }
    files.sort();
    assert!(files.len() > 30);
    files
}

/// The program's own files, with their paths below `src`.
fn sources() -> Vec<(String, String)> {
    let own = files(&["src"]).into_iter();
    own.map(|(name, text)| (name["src/".len()..].to_string(), text)).collect()
}

/// Code without its tests and comments. Tests are an inline module, which ends where its brace
/// closes in the first column, or one line that names a file of theirs.
fn code(text: &str) -> String {
    let mut code = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code.extend((!line.trim_start().starts_with("//")).then_some(line));
            continue;
        }
        match lines.next() {
            Some("mod tests;") => {}
            Some("mod tests {") => {
                assert!(lines.any(|line| line == "}"), "the tests of a file end")
            }
            other => panic!("only a module `tests` stands behind #[cfg(test)], not {other:?}"),
        }
    }
    code.join("\n")
}

#[test]
fn only_tests_and_comments_are_left_out() {
    let module = "use a;\n\n#[cfg(test)]\nmod tests {\n    // b\n    fn c() {}\n}\nfn d() {}\n// e\n    /// f\nfn g() {} // h";
    assert_eq!(code(module), "use a;\n\nfn d() {}\nfn g() {} // h");
    assert_eq!(code("mod a;\n#[cfg(test)]\nmod tests;\nmod b;"), "mod a;\nmod b;");
    // Both machines name their tests at the top, with all of their decisions below.
    for machine in ["core/agent/mod.rs", "core/hub/mod.rs"] {
        let (_, text) = sources()
            .into_iter()
            .find(|(name, _)| name == machine)
            .expect("both machines stand there");
        assert!(code(&text).contains("fn handle(&mut self"), "nothing of {machine} is looked at");
    }
}

#[test]
fn rooms_are_used_in_one_direction_only() {
    let forbidden: &[(&str, &[&str])] = &[
        (
            "wire/",
            &[
                "crate::core",
                "crate::provider",
                "crate::edge",
                "crate::runtime",
                "crate::hub",
                "crate::cli",
                "crate::config",
            ],
        ),
        (
            "core/",
            &[
                "crate::provider",
                "crate::edge",
                "crate::runtime",
                "crate::hub",
                "crate::cli",
                "crate::config",
                "crate::os",
                "crate::log",
            ],
        ),
        (
            "provider/",
            &[
                "crate::edge",
                "crate::runtime",
                "crate::hub",
                "crate::cli",
                "crate::os",
                "crate::config",
            ],
        ),
        ("edge/", &["crate::runtime", "crate::hub::", "crate::cli"]),
        ("runtime/", &["crate::hub::", "crate::cli"]),
        ("hub/", &["crate::cli", "crate::demo"]),
    ];
    for (name, text) in sources() {
        let text = code(&text);
        for (room, words) in forbidden.iter().filter(|(room, _)| name.starts_with(room)) {
            for word in *words {
                assert!(!text.contains(word), "{name} in {room} uses {word}");
            }
        }
    }
}

/// What a decision depends on is passed in. One exception is made: every room may ask
/// `crate::planted`, which is the constant `false` but in the build of `make defects`, and there
/// the same answer for the whole life of a process. A defect has to stand where it would be made,
/// and nothing that is decided may have to carry it there.
#[test]
fn pure_rooms_are_pure() {
    let banned = [
        "std::net",
        "std::fs",
        "std::process",
        "std::thread",
        "std::env",
        "Instant",
        "SystemTime",
        "crossbeam",
        "rusqlite",
        "println!",
    ];
    for (name, text) in sources().into_iter().filter(|(name, _)| {
        ["core/", "provider/", "wire/"].iter().any(|room| name.starts_with(room))
    }) {
        let text = code(&text);
        for word in banned {
            assert!(!text.contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn some_words_stand_in_their_room_only() {
    let rules: &[(&str, &[&str])] = &[
        ("unsafe {", &["os.rs"]),
        ("print::trusted(", &["cli/mod.rs", "cli/run.rs", "cli/generate.rs", "cli/hook.rs"]),
        ("unbounded()", &["runtime/threads.rs", "runtime/runner.rs", "cli/run.rs"]),
        (".unwrap()", &[]),
        (
            "thread::sleep",
            &[
                "edge/provider/process.rs",
                "edge/provider/tmux.rs",
                "edge/orchestrator/terminal.rs",
                "cli/run.rs",
                "cli/up.rs",
                "cli/up/chat.rs",
                "cli/messages.rs",
                "cli/client.rs",
            ],
        ),
        ("process::exit", &["main.rs", "cli/print.rs", "demo/run.rs"]),
    ];
    for (name, text) in sources() {
        let text = code(&text);
        for (word, rooms) in rules {
            assert!(!text.contains(word) || rooms.contains(&name.as_str()), "{name} uses {word}");
        }
    }
}

/// How code reaches standard output or standard error by itself, if it does: by a macro, by an open
/// descriptor of that name, or by its path. A pipe of a child is not meant.
fn printing(code: &str) -> Option<&str> {
    let words = [
        "print!",
        "println!",
        "dbg!",
        "io::stdout",
        "io::stderr",
        "stdio::stdout",
        "stdio::stderr",
        "/dev/tty",
        "/dev/std",
        "/dev/fd/",
    ];
    let lists = ["io::{", "stdio::{"]
        .into_iter()
        .flat_map(|list| code.split(list).skip(1))
        .filter_map(|rest| rest.split('}').next());
    let listed = lists
        .flat_map(|list| list.split(','))
        .map(|name| name.split(" as ").next().unwrap_or(name).trim());
    words
        .into_iter()
        .find(|word| code.contains(word))
        .or(listed.into_iter().find(|name| ["stdout", "stderr"].contains(name)))
}

#[test]
fn printing_is_noticed() {
    for (code, want) in [
        ("println!(\"x\")", Some("println!")),
        ("eprint!(\"x\")", Some("print!")),
        ("std::io::stderr().write_all(b)", Some("io::stderr")),
        ("use std::io::stdout;", Some("io::stdout")),
        ("use std::io::{\n    Read, stderr as other,\n};", Some("stderr")),
        ("rustix::io::write(rustix::stdio::stdout(), b)", Some("io::stdout")),
        ("use rustix::stdio::{stdin, stdout};", Some("stdout")),
        ("File::create(\"/dev/tty\")", Some("/dev/tty")),
        (
            "child.stdout.take(); command.stdout(Stdio::piped()).stderr(Stdio::piped()); self.read_stdout();",
            None,
        ),
        ("use std::io::{Read, Write};\nlet stdout = child.stdout;\nprint::line(stdout)", None),
    ] {
        assert_eq!(printing(code), want, "{code}");
    }
}

/// What reaches a terminal goes through a place that makes it harmless: the command line's, and the
/// log's. The demo agent speaks its protocol on standard output.
#[test]
fn nobody_prints_beside_the_printer() {
    let printers = ["cli/print.rs", "log.rs", "demo/run.rs"];
    let found: Vec<(String, bool)> = sources()
        .into_iter()
        .map(|(name, text)| (name, printing(&code(&text)).is_some()))
        .collect();
    for (name, prints) in found {
        assert_eq!(
            prints,
            printers.contains(&name.as_str()),
            "{name}: print by crate::cli::print, or log"
        );
    }
}

/// Names that only `provider/` knows, and words that its programs use of themselves.
const VENDOR_WORDS: [&str; 10] = [
    "claude",
    "codex",
    "gemini",
    "qwen",
    "acp",
    "hook_event_name",
    "transcript_path",
    "stop_hook_active",
    "tool_input",
    "userpromptsubmit",
];

/// The words among [`VENDOR_WORDS`] that stand in code as words of their own.
fn vendor_words(code: &str) -> Vec<&'static str> {
    let code = code.to_lowercase();
    let is_word = |word: &&str| {
        code.match_indices(*word).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            // "acp" is short enough to stand within other words.
            word.len() > 4 || ![before, after].into_iter().flatten().any(char::is_alphanumeric)
        })
    };
    VENDOR_WORDS.into_iter().filter(is_word).collect()
}

#[test]
fn vendors_are_noticed() {
    for (code, want) in [
        ("if provider == \"acp\" {}", vec!["acp"]),
        ("use crate::provider::acp::session;", vec!["acp"]),
        ("const CLAUDE_PID: u32 = 1;", vec!["claude"]),
        ("payload[\"hook_event_name\"]", vec!["hook_event_name"]),
        ("let macpath = teacpot;", vec![]),
    ] {
        assert_eq!(vendor_words(code), want, "{code}");
    }
}

/// Everybody else asks the table of providers (`provider/registry.rs`); tests may name whom they
/// like.
#[test]
fn vendors_are_named_in_their_room_only() {
    let is_meant = |name: &str| {
        !(name.starts_with("provider/") || name.ends_with("tests.rs") || name.contains("/tests/"))
    };
    for (name, text) in sources().into_iter().filter(|(name, _)| is_meant(name)) {
        assert_eq!(
            vendor_words(&code(&text)),
            [""; 0],
            "{name} names a vendor: ask crate::provider::registry"
        );
    }
}

/// Rows of the table of planted defects: name, clause, arguments of the test, and a patch where no
/// switch works.
fn planted() -> Vec<Vec<String>> {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/defects/table.txt");
    let text = std::fs::read_to_string(table).expect("committed");
    let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| row.split('|').map(|cell| cell.trim().to_string()).collect()).collect()
}

#[test]
fn planted_defects_stand_in_the_table_and_in_the_source() {
    let (mut switches, mut patches, mut rows) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for row in planted() {
        assert!(
            (3..=4).contains(&row.len()) && row.iter().all(|cell| !cell.is_empty()),
            "name | clause | test [| patch]: {row:?}"
        );
        let is_plain = row[0].chars().all(|c| c.is_ascii_lowercase() || c == '-');
        assert!(is_plain, "a name has small letters and hyphens only: {row:?}");
        let target: Vec<&str> = row[2].split(' ').collect();
        assert!(
            matches!(target[..], ["--lib", _] | ["--test", _, _]),
            "`--lib NAME` or `--test BINARY NAME`: {row:?}"
        );
        let names = if row.len() == 4 { &mut patches } else { &mut switches };
        // Several tests may have to catch one defect.
        assert!(rows.insert((row[0].clone(), row[2].clone())), "{row:?} stands twice in the table");
        names.insert(row[0].clone());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/defects");
        assert!(
            row.get(3).is_none_or(|patch| folder.join(patch).is_file()),
            "the patch is missing: {row:?}"
        );
    }
    assert!(switches.is_disjoint(&patches), "a defect is a switch or a patch");
    let mut found = BTreeSet::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| name != "planted.rs") {
        let text = code(&text);
        assert!(
            !text.contains("cfg(planted)"),
            "{name}: only planted.rs knows how it is built; ask planted::is"
        );
        for rest in text.split("planted::is(").skip(1) {
            let asked = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
            found.insert(
                asked
                    .unwrap_or_else(|| panic!("{name}: planted::is takes a name in quotes"))
                    .0
                    .to_string(),
            );
        }
    }
    assert_eq!(
        found, switches,
        "what the source asks (left) and tests/defects/table.txt (right) differ"
    );
}

#[test]
fn no_async_runtime_is_in_the_tree() {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"))
        .expect("committed");
    for name in ["tokio", "async-std", "smol", "async-executor", "futures-executor", "actix-rt"] {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} is in Cargo.lock");
    }
}

/// ARCHITECTURE.md names files and functions; a map that names what is not there is worse than
/// none.
#[test]
fn the_map_names_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("reads");
    let source: String = sources().into_iter().map(|(_, text)| text).collect();
    let code = map.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
    let (mut files, mut functions) = (0, 0);
    for name in code {
        let is_path = name.contains('/') && !name.contains(['<', '*', ' ', ':']);
        if is_path && name.ends_with(".rs") {
            let there = ["", "src"].iter().any(|folder| root.join(folder).join(name).is_file());
            assert!(there, "ARCHITECTURE.md names {name}, which is not there");
            files += 1;
        }
        let function =
            ["Agent::", "Hub::", "Machine::"].iter().find_map(|kind| name.strip_prefix(kind));
        if let Some(function) = function {
            assert!(
                source.contains(&format!("fn {function}(")),
                "ARCHITECTURE.md names {name}, which is not there"
            );
            functions += 1;
        }
    }
    assert!(files > 20 && functions > 10, "{files} files and {functions} functions found");
}

/// What is tested with real agents is what the code calls tested.
#[test]
fn real_agents_are_installed_in_the_tested_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = std::process::Command::new("sh")
        .args(["tests/interop/install.sh", "versions"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(root)
        .output()
        .expect("sh");
    let told = String::from_utf8(told.stdout).expect("text");
    let preset = |name: &str| {
        let found = presets::all().find(|preset| preset.name == name).expect(name);
        format!("{name} {}", found.version)
    };
    let tested = [
        preset("opencode"),
        preset("claude-agent"),
        format!("claude {}", agent_relay::provider::claude::TESTED),
        format!("codex {}", agent_relay::provider::codex::TESTED),
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), tested);
}
