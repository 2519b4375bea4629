//! What skills and guide tell an agent to type is there, and works.

use super::*;

/// The commands of a text: what is indented and begins with our name, with the lines of its input.
fn commands(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut is_input = false;
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(command) if command.starts_with("agent-relay ") => {
                is_input = command.contains("<<");
                found.push(command.to_string());
            }
            Some(input) if is_input => {
                let command = found.last_mut().expect("begun");
                command.push('\n');
                command.push_str(input);
            }
            _ => is_input = false,
        }
    }
    found
}

#[test]
fn what_skills_show_exists_and_runs() {
    let machine = Machine::new("skills");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let number = machine.send("a", "hello").to_string();
    machine.settle(&[number.parse().expect("a number")], 60);
    let bin = std::path::Path::new(BIN).parent().expect("a folder");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut ran = std::collections::BTreeSet::new();
    for provider in ["claude", "codex"] {
        let folder = root.join("plugins").join(provider).join("skills");
        for skill in std::fs::read_dir(folder).expect("skills").flatten() {
            let text = std::fs::read_to_string(skill.path().join("SKILL.md")).expect("reads");
            assert!(text.starts_with("---\nname: ") && text.len() < 800, "{skill:?} is short");
            let all = commands(&text);
            assert!(!all.is_empty(), "{skill:?} shows a command");
            for shown in all {
                let command = shown
                    .replace("<number>", &number)
                    .replace("<emoji>", "ok")
                    .replace("<agent>", "user")
                    .replace("<label>", "ci");
                let output = Command::new("/bin/sh")
                    .args(["-c", &command])
                    .env_clear()
                    .envs(&session.env)
                    .env("PATH", &path)
                    .current_dir(&session.work)
                    .output()
                    .expect("sh");
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{provider} {skill:?}: {command}: {error}");
                ran.insert(shown.split_whitespace().nth(1).unwrap_or_default().to_string());
            }
        }
    }
    let want = ["get-message", "guide", "label", "react", "reply", "send"];
    assert_eq!(ran.into_iter().collect::<Vec<_>>(), want);
}
