//! Secrets stay where they belong: over a whole scenario no argument, no environment of a process
//! that has nothing to do with it, no log, no output and no file that others may read holds one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agent_relay::os;
use serde_json::Value;

use crate::support::*;

/// What people and agents write to each other: it stands in stores and in the session, and nowhere
/// else.
const BODY: &str = "planted-body-4711";
/// A key of the provider, given in its settings.
const KEY: &str = "planted-key-4712";

/// What was seen where it must not be.
#[derive(Default)]
struct Scan {
    secrets: Vec<(&'static str, String)>,
    found: BTreeSet<String>,
}

impl Scan {
    fn add(&mut self, what: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{what} is known: {secret:?}");
        if !self.secrets.iter().any(|(_, known)| known == secret) {
            self.secrets.push((what, secret.to_string()));
        }
    }

    fn look(&mut self, place: &str, bytes: &[u8], only: impl Fn(&str) -> bool) {
        for (what, secret) in &self.secrets {
            if only(what) && bytes.windows(secret.len()).any(|part| part == secret.as_bytes()) {
                self.found.insert(format!("{what} in {place}"));
            }
        }
    }

    /// Arguments of all processes; environments of ours, where a secret belongs only to the
    /// provider and its children.
    fn processes(&mut self, machine: &Machine) {
        let ours = machine.left_over();
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = String::from_utf8_lossy(&arguments).replace('\0', " ");
            // The words of a person who sends something stand in the arguments that he typed.
            self.look(&format!("the arguments of {name:.60}"), &arguments, |what| what != "a body");
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let in_session = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable.starts_with(b"AGENT_RELAY_RUNNER_TOKEN="));
            let of_session = |what: &str| {
                matches!(what, "the agent's token" | "the control token" | "a key of the provider")
            };
            let place = format!("the environment of {name:.60}");
            if pid != std::process::id()
                && (in_session || ours.iter().any(|process| process.pid == pid))
            {
                self.look(&place, &environment, |what| !(in_session && of_session(what)));
            }
        }
    }

    /// Files below a folder: what others may read, and what is no store and no file of secrets.
    fn files(&mut self, folder: &Path, open: bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let mode = meta.permissions().mode();
            if meta.is_dir() {
                self.files(&path, open && mode & 0o005 != 0);
                continue;
            }
            let name = path.display().to_string();
            let is_log = path.extension().is_some_and(|end| end == "log" || end == "old");
            if meta.is_file() && (is_log || (open && mode & 0o044 != 0)) {
                let bytes = fs::read(&path).unwrap_or_default();
                self.look(&name, &bytes, |_| true);
            }
        }
    }

    fn tokens(&mut self, machine: &Machine) {
        let text = |path: &str| fs::read_to_string(machine.home.join(path)).unwrap_or_default();
        self.add("the root token", text("hub/root-token").trim());
        self.add("the operator's token", machine.config()["token"].as_str().unwrap_or_default());
        let info: Value = serde_json::from_str(&text("agents/a/runner.json")).expect("runs");
        self.add("the control token", info["controlToken"].as_str().unwrap_or_default());
        let provider = os::processes_with_env("AGENT_RELAY_ID", "a");
        for process in provider {
            let environment =
                fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            let own = environment
                .split(|byte| *byte == 0)
                .find_map(|variable| variable.strip_prefix(b"AGENT_RELAY_TOKEN="));
            if let Some(own) = own {
                self.add("the agent's token", &String::from_utf8_lossy(own));
            }
        }
    }
}

/// A hub, a runner, messages, a task, an approval, a restart, a dead hub, and all that can be typed
/// wrongly.
#[test]
fn no_secret_leaves_its_place() {
    let machine = Machine::new("secrets");
    let hub = machine.hub();
    fs::create_dir_all(machine.home.join("providers")).expect("folder");
    let settings = serde_json::json!({"env": {"PROVIDER_API_KEY": KEY}}).to_string();
    os::write_private_file(&machine.home.join("providers/acp.json"), &settings).expect("writes");
    let runner = machine.runner_with("a", &["--approval", "guarded"], &[]);
    machine.wait_status("a", "idle");
    let mut scan = Scan::default();
    scan.add("a body", BODY);
    scan.add("a key of the provider", KEY);
    scan.tokens(&machine);
    let has_token = scan.secrets.iter().any(|(what, _)| *what == "the agent's token");
    assert!(has_token, "the session has its token");

    let child = machine.ok(&["token", "create", "--agent", "other", "--ttl", "60"]);
    scan.add("another token", child.trim());
    let first = machine.send("a", &format!("hello {BODY}"));
    machine.settle(&[first], 60);
    machine.ok(&["send", "a", "--task", &format!("task {BODY}")]);
    let asked = machine.send("a", &format!("ask {BODY}"));
    let open = wait_for("an approval", 60, || {
        serde_json::from_str::<Value>(machine.ok(&["approvals", "--json"]).lines().next()?).ok()
    });
    scan.processes(&machine);
    machine.ok(&["approvals", "approve", open["approvalId"].as_str().expect("id")]);
    machine.settle(&[asked], 60);
    machine.ok(&["command", "a", "restart"]);
    machine.wait_status("a", "idle");
    scan.tokens(&machine);
    scan.processes(&machine);

    // What is said when things go wrong, and what shows how things are.
    let words = words();
    let token = child.trim().to_string();
    let said = |scan: &mut Scan, arguments: &[&str], wrong: bool| {
        let mut command = machine.command(BIN);
        if wrong {
            command.env("AGENT_RELAY_TOKEN", &token);
        }
        let output =
            command.args(arguments).stdin(std::process::Stdio::null()).output().expect("runs");
        scan.look(
            &format!("the output of {:?}", &arguments[..1]),
            &[output.stdout, output.stderr].concat(),
            |what| what != "a body",
        );
    };
    for arguments in &words {
        said(&mut scan, arguments, false);
        said(&mut scan, arguments, true);
    }
    drop(hub);
    for arguments in &words {
        said(&mut scan, arguments, false);
    }
    let broken = format!("{{\"token\": \"{token}\", oops");
    fs::write(machine.home.join("config.json"), broken).expect("writes");
    for arguments in &words {
        said(&mut scan, arguments, false);
    }
    drop(runner);
    let home = machine.home.clone();
    scan.files(&home, true);
    scan.files(&machine.work, true);
    let logs = machine.home.join("logs");
    assert!(fs::read_dir(&logs).expect("logs").count() >= 2, "there are logs to look at");
    assert!(scan.found.is_empty(), "{:#?}", scan.found);
}

/// Commands that say what is wrong, and that show how things are.
fn words() -> Vec<Vec<&'static str>> {
    vec![
        vec!["doctor"],
        vec!["doctor", "--json"],
        vec!["hub", "status"],
        vec!["agents", "--json"],
        vec!["status", "a", "--why"],
        vec!["status", "a", "--json"],
        vec!["whoami", "--json"],
        vec!["token", "list", "--json"],
        vec!["send", "nobody", "x"],
        vec!["send"],
        vec!["reply", "999999", "x"],
        vec!["token", "create", "--scopes", "admin"],
        vec!["token", "revoke", "unknown"],
        vec!["run", "acp", "--bad-option"],
        vec!["attach", "a", "--json"],
        vec!["guide"],
    ]
}

/// The scan is not blind: it sees what it is to see.
#[test]
fn the_scan_finds_what_is_out_of_place() {
    let machine = Machine::new("scan");
    fs::create_dir_all(machine.home.join("logs")).expect("folder");
    let secret = "planted-secret-4713";
    fs::write(machine.home.join("logs/x.log"), format!("a {secret} b")).expect("writes");
    fs::write(machine.home.join("open"), secret).expect("writes");
    os::write_private_file(&machine.home.join("closed"), secret).expect("writes");
    let mut scan = Scan::default();
    scan.add("a secret", secret);
    let mut argument = machine.command("/bin/sh");
    let mut child = argument
        .args(["-c", "read -r line", secret])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    scan.files(&machine.home, true);
    wait_for("the process", 60, || {
        scan.processes(&machine);
        scan.found.iter().any(|found| found.contains("arguments")).then_some(())
    });
    let _ = child.kill();
    let _ = child.wait();
    let files: Vec<&String> = scan.found.iter().filter(|found| found.contains("home")).collect();
    assert!(files.len() == 2 && !files.iter().any(|found| found.contains("closed")), "{files:?}");
}
