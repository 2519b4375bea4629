//! Starts: what the system refuses, in any order with the hub, on a fresh home.

use std::process::{Output, Stdio};

use crate::support::{BIN, Machine};

/// Runs the program behind a line of shell that takes something away from it.
fn deprived(machine: &Machine, before: &str, arguments: &[&str]) -> Output {
    let line = format!("{before}; exec \"$0\" \"$@\"");
    machine.command("/bin/sh").args(["-c", &line, BIN]).args(arguments).stdin(Stdio::null()).output().expect("runs")
}

/// One sentence and 71.
#[track_caller]
fn refused_by_the_system(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    assert_eq!(output.status.code(), Some(71), "{what}: {text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("agent-relay: ")).collect();
    assert_eq!(said.len(), 1, "{what}: one sentence: {text}");
}

fn runner(agent: &str) -> Vec<&str> {
    vec!["run", "acp", "--quiet", "--agent-id", agent, "--", BIN, "demo-agent"]
}

#[test]
fn a_start_that_the_system_refuses_ends_with_71_and_may_be_tried_again() {
    let machine = Machine::new("refused");
    let hub: &[&str] = &["hub", "--port", "0"];
    for (what, before) in [
        ("a full disk", "trap '' XFSZ; ulimit -f 0"),
        ("hardly any descriptors", "ulimit -n 4"),
        ("few descriptors", "ulimit -n 9"),
        ("a home that nobody may make", "export AGENT_RELAY_HOME=/sys/agent-relay"),
        ("a home below a file", "export AGENT_RELAY_HOME=/proc/version/x"),
    ] {
        refused_by_the_system(&deprived(&machine, before, &runner("a")), &format!("run, {what}"));
        refused_by_the_system(&deprived(&machine, before, hub), &format!("hub, {what}"));
    }
    assert!(machine.left_over().is_empty(), "nothing goes on");
    // Nothing of that stands in the way of the next start.
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
}

#[test]
fn a_store_and_a_lock_that_cannot_be_written_end_the_start_with_71() {
    let machine = Machine::new("unwritable");
    for (place, arguments) in [
        ("agents/a/store.sqlite", runner("a")),
        ("agents/b/lock", runner("b")),
        ("hub/hub.sqlite", vec!["hub", "--port", "0"]),
        ("hub/lock", vec!["hub", "--port", "0"]),
    ] {
        // A folder stands where the file should be: that refuses root as well.
        let path = machine.home.join(place);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir_all(&path).expect("a folder in the way");
        refused_by_the_system(&machine.run(&arguments), place);
        std::fs::remove_dir_all(&path).expect("removes");
    }
}

#[test]
fn wrong_settings_stay_2_for_every_command() {
    let machine = Machine::new("wrong-settings");
    std::fs::create_dir_all(&machine.home).expect("home");
    std::fs::write(machine.home.join("config.json"), "{\n  \"token\": oops\n}").expect("config");
    for arguments in [runner("a"), vec!["hub", "--port", "0"], vec!["agents"], vec!["send", "a", "hello"]] {
        let text = machine.fails(2, &arguments);
        assert!(text.contains("config.json:2:"), "{arguments:?}: {text}");
    }
}
