//! What goes on beside and behind turns.

use super::*;
use crate::support::BIN;

impl Codex {
    fn work(&self) -> Vec<Value> {
        self.machine.status("a")["work"].as_array().cloned().unwrap_or_default()
    }
}

/// Messages need not wait for what a turn has left running, and its end is told.
#[test]
fn subagents_and_commands_behind_a_turn_hold_no_message_back() {
    let codex = Codex::start("codex-behind");
    let first = codex.machine.send("a", "child:3000 back:3000 one");
    assert_eq!(codex.answered(first), "done one");
    let kinds: Vec<Value> = wait_for("both at work", 30, || {
        let work = codex.work();
        (work.len() == 2).then(|| work.iter().map(|item| item["kind"].clone()).collect())
    });
    assert!(kinds.contains(&json!("subagent")) && kinds.contains(&json!("shell")), "{kinds:?}");
    let second = codex.machine.send("a", "two");
    assert_eq!(codex.answered(second), "done two");
    assert_eq!(codex.work().len(), 2, "it did not wait for them");
    wait_for("their end", 30, || codex.work().is_empty().then_some(()));
    codex.machine.wait_status("a", "idle");
    assert_eq!(codex.delivered(), [(first, 1), (second, 1)].into());
    // What the subagent said is no answer to anybody.
    assert!(!codex.machine.ok(&["inbox", "--all", "--json"]).contains("found"));
}

/// Pieces of a turn that is over, and a word of work that nobody began.
#[test]
fn what_comes_late_begins_no_turn() {
    let codex = Codex::start("codex-late");
    let mut ids = Vec::new();
    for n in 0..3 {
        let id = codex.machine.send("a", &format!("late n{n}"));
        assert_eq!(codex.answered(id), format!("done n{n}"));
        ids.push(id);
        let sent = codex.machine.home.join(format!("fake/late{n}"));
        wait_for("the stale frames", 30, || sent.exists().then_some(()));
    }
    // Its own frames come behind those.
    let last = codex.machine.send("a", "last");
    assert_eq!(codex.answered(last), "done last");
    ids.push(last);
    codex.machine.wait_status("a", "idle");
    assert_eq!(codex.machine.turns_begun(), ids.len(), "{}", codex.machine.logs());
    assert!(!codex.machine.ok(&["inbox", "--all", "--json"]).contains("late words"));
}

#[test]
fn frames_that_are_half_legal_cost_nothing() {
    let codex = Codex::start("codex-half");
    let pid = codex.pid();
    let id = codex.machine.send("a", "half one");
    assert_eq!(codex.answered(id), "done one");
    let mirror = codex.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
    assert!(mirror.contains("a sign"), "{mirror}");
    assert_eq!(codex.pid(), pid);
    assert!(!codex.machine.logs().contains("connection to the server broke"));
}

/// Whoever asks need not be an agent with a runner: the answer waits for it.
#[test]
fn an_answer_reaches_a_sender_without_a_runner() {
    let codex = Codex::start("codex-visitor");
    let made = codex.machine.ok(&["token", "create", "--agent", "visitor", "--json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let token = made["token"].as_str().expect("a token");
    let as_visitor = |words: &[&str]| {
        let mut command = codex.machine.command(BIN);
        let output = command.args(words).env("AGENT_RELAY_TOKEN", token).output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    as_visitor(&["send", "a", "one"]);
    wait_for("the answer", 60, || {
        as_visitor(&["inbox", "--all", "--json"]).contains("done one").then_some(())
    });
    assert!(!codex.machine.ok(&["inbox", "--all", "--json"]).contains("done one"));
    codex.machine.wait_status("a", "idle");
}
