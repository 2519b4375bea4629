//! What is said while nobody hears it, for ever, or to others: after it nothing stays as it was.

use super::*;

impl Played {
    /// The connection breaks and is there again; the thread is heard again.
    fn reconnect(&mut self) {
        self.input(Input::Disconnected("gone".into()));
        self.later(Duration::from_millis(250));
        self.input(Input::Connected);
        self.reply("initialize", json!({"userAgent": "x/0.171.0 (y)"}));
        self.reply("thread/resume", json!({"thread": {"id": "t"}}));
    }

    /// The record of the thread: one turn with a text of ours.
    fn record(&mut self, turn: &str, status: &str, key: &str) {
        let said = json!({"type": "userMessage", "clientId": format!("relay-{key}")});
        let turn = json!({"id": turn, "status": status, "items": [said]});
        self.reply("thread/turns/list", json!({"data": [turn]}));
    }

    /// A subagent that works.
    fn child(&mut self, id: &str) {
        let item = json!({
            "type": "collabAgentToolCall", "id": "s", "prompt": "look", "receiverThreadIds": [id]
        });
        self.notify("item/completed", json!({"threadId": "t", "turnId": "u", "item": item}));
        self.notify("turn/started", json!({"threadId": id, "turn": {"id": "c"}}));
    }
}

#[test]
fn a_turn_whose_beginning_was_missed_can_be_interrupted_and_steered() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    played.reconnect();
    played.told();
    played.record("u", "inProgress", "k");
    played.tells(&["taken"]);
    played.deliver("urgent", true);
    played.tells(&["> turn/steer"]);
    played.verb(Verb::Interrupt);
    played.tells(&["> turn/interrupt"]);
    // Asked for while nobody knew of the turn: it is sent as soon as it is known.
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    played.verb(Verb::Interrupt);
    played.reconnect();
    played.told();
    played.record("u", "inProgress", "k");
    played.tells(&["> turn/interrupt"]);
}

#[test]
fn the_probe_ends_a_turn_of_which_nothing_was_heard() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    played.reply("turn/start", json!({"turn": {"id": "u"}}));
    played.verb(Verb::Probe);
    // Of the turn before: its own beginning is still on its way.
    played.record("before", "completed", "j");
    played.tells(&["String(\"busy\")"]);
    played.verb(Verb::Probe);
    played.record("u", "completed", "k");
    played.tells(&["turn ended Some(1) Completed", "String(\"idle\")"]);
}

#[test]
fn what_is_the_agents_own_is_permitted_unasked() {
    let ask = |played: &mut Played, command: &str, more: Value| {
        let mut params = json!({"threadId": "t", "turnId": "u", "itemId": "i", "command": command});
        params["additionalPermissions"] = more;
        let method = "item/commandExecution/requestApproval";
        played.frame(json!({"id": 0, "method": method, "params": params}));
        played.told()
    };
    let own = "/bin/bash -lc 'agent-relay reply 5 --stdin <<'\\''END'\\''\nwell\nEND'";
    let asked = |mode, window, command: &str, more| {
        let mut played = opened(mode, window);
        played.begin("k", "u");
        played.told();
        let told = ask(&mut played, command, more);
        !told.iter().any(|line| line.starts_with("> answer 0 {\"decision\":\"accept\"}"))
    };
    let guarded = ApprovalMode::Guarded;
    assert!(!asked(guarded, false, own, Value::Null));
    assert!(!asked(guarded, false, "/bin/bash -lc 'agent-relay whoami'", Value::Null));
    assert!(asked(guarded, false, "/bin/bash -lc 'agent-relay whoami; rm x'", Value::Null));
    assert!(asked(guarded, false, own, json!({"network": {}})), "it asks for more besides");
    assert!(asked(guarded, true, own, Value::Null), "a person has the window");
    assert!(asked(ApprovalMode::ReadOnly, false, own, Value::Null));
}

/// An answer that is longer than a text may be breaks the connection, each time anew.
#[test]
fn a_record_that_is_too_long_is_asked_for_in_smaller_pieces() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    let mut limits = Vec::new();
    for _ in 0..6 {
        played.reconnect();
        let (_, params) = played.take("thread/turns/list");
        limits.push(params["limit"].as_u64().expect("a number"));
    }
    assert_eq!(limits, [20, 10, 5, 2, 1, 1]);
}

#[test]
fn a_compaction_that_takes_too_long_is_interrupted() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.verb(Verb::Compact { instructions: None });
    played.reply("thread/compact/start", json!({}));
    played.started("c");
    played.deliver("k", false);
    played.told();
    played.later(Duration::from_secs(600));
    played.tells(&["answered Err(\"Codex compact timed out after 600s\")", "> turn/interrupt"]);
    played.ended("c", "interrupted");
    played.tells(&["turn ended None", "> turn/start"]);
}

#[test]
fn what_a_guest_is_asked_is_left_to_the_guest() {
    let request = json!({"id": 1, "method": "item/tool/call", "params": {"threadId": "t"}});
    let mut played = opened(ApprovalMode::Guarded, false);
    played.verb(Verb::Guest);
    played.frame(request.clone());
    played.tells(&["note warn=true: left to the window"]);
    assert!(played.told().is_empty());
    // With nobody else there the turn would wait for ever.
    let mut played = opened(ApprovalMode::Guarded, false);
    played.frame(request);
    played.tells(&["note warn=true: refused", "> answer 1"]);
}

#[test]
fn subagents_are_heard_again_with_their_questions() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    for child in ["one", "two"] {
        played.child(child);
    }
    let ask = |played: &mut Played| {
        let params = json!({"threadId": "one", "turnId": "c", "itemId": "i", "command": "rm x"});
        let method = "item/commandExecution/requestApproval";
        played.frame(json!({"id": 0, "method": method, "params": params}));
    };
    ask(&mut played);
    played.ended("u", "completed");
    played.reconnect();
    played.told();
    let (id, params) = played.take("thread/resume");
    assert_eq!(params["threadId"], "one");
    let thread = json!({"id": "one", "status": {"type": "active", "activeFlags": []}});
    played.frame(json!({"id": id, "result": {"thread": thread}}));
    ask(&mut played);
    played.reply("thread/resume", json!({"thread": {"id": "two", "status": {"type": "idle"}}}));
    played.tells(&["work subagent runs=false"]);
    played.later(Duration::from_secs(5));
    let told = played.told();
    assert!(told.iter().all(|line| !line.contains("approval closed")), "{told:?}");
}

#[test]
fn a_subagent_may_work_before_it_is_named() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    let active = json!({"type": "active", "activeFlags": []});
    for thread in ["foreign", "early"] {
        let status = json!({"threadId": thread, "status": active});
        played.notify("thread/status/changed", status);
        played.notify("turn/started", json!({"threadId": thread, "turn": {"id": "c"}}));
    }
    played.told();
    let item = json!({"type": "subAgentActivity", "id": "s", "agentPath": "/root/x", "agentThreadId": "early"});
    played.notify("item/completed", json!({"threadId": "t", "turnId": "u", "item": item}));
    played.tells(&["work subagent runs=true \"/root/x\""]);
    played.notify("thread/closed", json!({"threadId": "foreign"}));
    played.notify("thread/closed", json!({"threadId": "early"}));
    let told = played.told();
    assert_eq!(told, ["work subagent runs=false \"/root/x\""]);
}

#[test]
fn many_subagents_are_known_one_after_the_other() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    for n in 0..200 {
        let child = format!("child{n}");
        played.child(&child);
        played.tells(&["work subagent runs=true"]);
        let turn = json!({"id": "c", "status": "completed"});
        played.notify("turn/completed", json!({"threadId": child, "turn": turn}));
        played.tells(&["work subagent runs=false"]);
    }
}

#[test]
fn the_end_of_a_command_that_was_missed_is_asked_for() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    for id in ["one", "two"] {
        let item = json!({
            "type": "commandExecution", "id": id, "command": id, "processId": "7"
        });
        played.notify("item/started", json!({"threadId": "t", "turnId": "u", "item": item}));
    }
    played.ended("u", "completed");
    played.tells(&["work shell runs=true \"one\"", "work shell runs=true \"two\""]);
    let running = json!({"data": [{"itemId": "one"}, {"itemId": "two"}], "nextCursor": null});
    played.reply("thread/backgroundTerminals/list", running);
    assert!(played.told().iter().all(|line| !line.contains("runs=false")));
    played.reconnect();
    let running = json!({"data": [{"itemId": "two"}], "nextCursor": null});
    played.reply("thread/backgroundTerminals/list", running);
    played.tells(&["work shell runs=false \"one\""]);
    played.reply("thread/turns/list", json!({"data": []}));
    // Put away, a thread leaves nothing running.
    played.notify("thread/closed", json!({"threadId": "t"}));
    played.tells(&["work shell runs=false \"two\""]);
}
