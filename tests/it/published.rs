//! What scripts and other programs rely on stays as it is: words, shapes and codes are held as text
//! beside the test, and stores that an older version wrote (08d390c) are read. `UPDATE_FIXTURES=1`
//! writes the texts anew.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Machine, Running, wait_for};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[track_caller]
fn check(name: &str, text: &str) {
    let path = fixture("published").join(name);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture("published")).expect("a folder");
        std::fs::write(&path, text).expect("writes");
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = text.lines().zip(want.lines()).find(|(is, was)| is != was);
    assert!(
        text == want,
        "{name} is not what it was; the first line that differs (is, was): {differs:?}"
    );
}

fn get(machine: &Machine, path: &str) -> String {
    let url = machine.config()["relayUrl"].as_str().expect("a hub was started").to_string();
    let token =
        std::fs::read_to_string(machine.home.join("hub/root-token")).expect("written by the hub");
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    let request = agent.get(url + path).header("X-Agent-Relay-Token", token.trim());
    request.call().expect("answers").body_mut().read_to_string().expect("text")
}

/// The same with all that differs from run to run made equal: numbers, and the names that are
/// drawn.
fn steady(value: &Value) -> Value {
    const DRAWN: [&str; 6] = ["session", "runnerId", "generation", "relayUrl", "id", "approvalId"];
    match value {
        Value::Number(_) => 0.into(),
        Value::Array(all) => all.iter().map(steady).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| match value {
                Value::String(_) if DRAWN.contains(&name.as_str()) => (name.clone(), "*".into()),
                // What the agent did last changes while we look.
                Value::Object(_) if name == "evidence" => (name.clone(), "*".into()),
                value => (name.clone(), steady(value)),
            });
            Value::Object(fields.collect())
        }
        value => value.clone(),
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON") + "\n"
}

#[test]
fn the_description_of_the_api_stays() {
    let machine = Machine::new("spec");
    let _hub = machine.hub();
    let spec: Value = serde_json::from_str(&get(&machine, "/api/spec")).expect("JSON");
    check("spec.json", &pretty(&spec));
}

#[test]
fn the_names_of_metrics_stay() {
    let machine = Machine::new("metrics");
    let _hub = machine.hub();
    let series = |line: &str| line.split([' ', '{']).next().unwrap_or_default().to_string();
    let mut names: Vec<String> = get(&machine, "/metrics")
        .lines()
        .map(|line| match line.strip_prefix("# TYPE ") {
            Some(kind) => kind.to_string(),
            None => series(line),
        })
        .filter(|name| name != "#")
        .collect();
    names.sort();
    names.dedup();
    check("metrics.txt", &(names.join("\n") + "\n"));
}

#[test]
fn the_shape_and_the_words_of_a_status_stay() {
    let machine = Machine::new("statuses");
    let _hub = machine.hub();
    let _runner = machine.runner_with("a", &["--approval", "guarded"], &[]);
    machine.wait_status("a", "idle");
    let mut text = pretty(&steady(&machine.status("a")));
    machine.send("a", "ask");
    let asks = wait_for("the approval", 60, || {
        let status = machine.status("a");
        (status["status"] == "blocked" && !status["evidence"].is_null()).then_some(status)
    });
    text.push_str(&pretty(&steady(&asks)));
    check("status.json", &text);
}

#[test]
fn exit_codes_stay() {
    let machine = Machine::new("codes");
    let lines: &[&[&str]] = &[
        &["version"],
        &["send", "a", "nobody listens"],
        &["status", "a"],
        &["inbox"],
        &["no-such-command"],
        &["send"],
        &["send", "--no-such-option", "a", "b"],
        &["run"],
        &["run", "nothing"],
        &["run", "acp"],
        &["run", "acp", "--agent-id", "x", "--approval", "perhaps", "--", "cat"],
        &["hub", "--port", "none"],
        &["hub", "--listen", "0.0.0.0"],
        &["tasks", "--status", "none"],
        &["generate", "nothing"],
    ];
    let codes = |machine: &Machine| -> String {
        lines
            .iter()
            .map(|words| format!("{:?} {}\n", machine.run(words).status.code(), words.join(" ")))
            .collect()
    };
    let mut text = format!("without a hub\n{}", codes(&machine));
    let _hub = machine.hub();
    text.push_str(&format!("with a hub\n{}", codes(&machine)));
    check("exit-codes.txt", &text);
}

/// The words in the first column below a heading of a help text.
fn column(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| line.starts_with("  "));
    let words = lines
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    words.map(|word| word.trim_end_matches(',').to_string()).collect()
}

#[test]
fn the_words_of_help_stay() {
    let machine = Machine::new("help");
    let help = machine.ok(&["--help"]);
    let commands = column(&help, "Commands:");
    assert!(commands.len() > 20, "{help}");
    let mut text = String::new();
    for command in &commands {
        let help = machine.ok(&[command, "--help"]);
        let words = [column(&help, "Positional Arguments:"), column(&help, "Options:")].concat();
        text.push_str(&format!("{command}: {}\n", words.join(" ")));
    }
    check("help.txt", &text);
}

/// A machine with the stores that an older version left when it was killed: a turn ran, two
/// messages waited, and so did a command; a task was open for whoever can do it.
fn older(name: &str) -> (Machine, Running) {
    let machine = Machine::new(name);
    let files = [
        ("hub-08d390c.sqlite", "hub/hub.sqlite"),
        // What the hub calls its data is made of it, and by that name the runner knows whose
        // message ids it has.
        ("root-token-08d390c", "hub/root-token"),
        ("runner-08d390c.sqlite", "agents/writer/store.sqlite"),
    ];
    for (from, to) in files {
        let to = machine.home.join(to);
        std::fs::create_dir_all(to.parent().expect("below the home")).expect("a folder");
        std::fs::copy(fixture("stores").join(from), to).expect("copies");
    }
    let hub = machine.hub();
    (machine, hub)
}

#[test]
fn an_older_store_of_a_hub_is_read() {
    let (machine, _hub) = older("older-hub");
    let mut text = String::new();
    for words in [
        &["inbox", "--all", "--json", "--limit", "50"][..],
        &["thread", "1", "--json"],
        &["tasks", "--json"],
    ] {
        for line in machine.ok(words).lines() {
            let mut value: Value = serde_json::from_str(line).expect("JSON");
            assert!(
                value["generation"].as_str().is_some_and(|name| name.starts_with("hub-")),
                "{line}"
            );
            value["generation"] = "*".into();
            text.push_str(&format!("{value}\n"));
        }
    }
    let cards = machine.ok(&["agents", "--json"]);
    let card: Value = serde_json::from_str(&cards).expect("one agent");
    let kept = ["id", "label", "tags", "capabilities", "queued", "status", "role"]
        .map(|name| (name, &card[name]));
    text.push_str(&format!("{}\n", serde_json::json!(std::collections::BTreeMap::from(kept))));
    check("older.jsonl", &text);
}

#[test]
fn an_older_store_of_a_runner_is_gone_on_with() {
    let (machine, _hub) = older("older-runner");
    let _runner = machine.runner_with("writer", &["--caps", "rust"], &[]);
    machine.wait_status("writer", "idle");
    machine.settle(&[11, 12], 60);
    let claimed = wait_for("the open task", 60, || {
        let task: Value =
            serde_json::from_str(&machine.ok(&["tasks", "show", "2", "--json"])).ok()?;
        (task["status"] == "done").then_some(task["agentId"].clone())
    });
    assert_eq!(claimed, "writer");
    // What was settled long ago is not delivered again.
    let delivered = machine.delivered();
    assert!([1, 4, 8].iter().all(|id| !delivered.contains_key(id)), "{delivered:?}");
}
