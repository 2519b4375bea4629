//! Whose words reach whom: agents that broad targets do not reach, and senders who wait together.

use std::process::Stdio;
use std::time::Duration;

use agent_relay::edge::http::{Base, Http};
use agent_relay::secret::Secret;
use agent_relay::wire::api::USER;
use serde_json::{Value, json};

use crate::support::{BIN, Machine, wait_for};

fn read_by(machine: &Machine, id: u64, agent: &str) -> bool {
    let message: Value =
        serde_json::from_str(&machine.ok(&["get-message", &id.to_string(), "--json"]))
            .expect("JSON");
    message["readBy"].as_array().is_some_and(|all| all.iter().any(|reader| reader == agent))
}

#[test]
fn a_narrow_agent_gets_what_is_meant_for_it_and_no_more() {
    let mut machine = Machine::new("narrow");
    let _hub = machine.hub();
    let _broad = machine.runner("broad");
    machine.set("AGENT_RELAY_AGENT_PROFILE_JSON", r#"{"relay": {"context": false}}"#);
    let _narrow = machine.runner_with("narrow", &["--label", "one", "--tags", "mine"], &[]);
    ["broad", "narrow"].iter().for_each(|agent| machine.wait_status(agent, "idle"));
    let all = machine.send("broadcast", "for everybody");
    let direct = machine.send("narrow", "for you");
    let label = machine.send("label:one", "for whom it may concern");
    machine.settle(&[all, direct, label], 60);
    // One answer: the narrow agent neither got it nor holds it back as unread.
    assert!(read_by(&machine, all, "broad"));
    let waiting = wait_for("nothing unread", 60, || {
        let status = machine.status("narrow");
        (status["queues"]["inboxWaiting"] == 0 && status["queues"]["readsToTell"] == 0)
            .then_some(status)
    });
    assert_eq!(waiting["turn"], Value::Null);
    let inbox = machine.ok(&["inbox", "--all", "--json", "--for", USER]);
    let answers = inbox
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["kind"] == "chat");
    let from: Vec<(u64, String)> = answers
        .map(|m| {
            (m["replyTo"].as_u64().unwrap_or(0), m["from"].as_str().unwrap_or_default().to_string())
        })
        .collect();
    assert!(
        from.contains(&(all, "broad".into())) && !from.contains(&(all, "narrow".into())),
        "{from:?}"
    );
    // What this hub still resolves to it is declined; a target that nobody else has is seen by
    // nobody.
    let tag = machine.send("tag:mine", "for those with that tag");
    let after = machine.send("narrow", "and this");
    machine.settle(&[after], 60);
    assert!(!machine.delivered().contains_key(&tag), "{}", machine.logs());
}

/// What an agent's own tool sends.
fn send_as(machine: &Machine, agent: &str, to: &str, text: &str) {
    let token = machine.ok(&["token", "create", "--agent", agent]);
    let url = machine.config()["relayUrl"].as_str().unwrap_or_default().to_string();
    let mut command = machine.command(BIN);
    command
        .env("AGENT_RELAY_TOKEN", &token)
        .env("AGENT_RELAY_ID", agent)
        .env("AGENT_RELAY_URL", url);
    let sent = command.args(["send", to, text]).stdin(Stdio::null()).output().expect("runs");
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
}

#[test]
fn two_who_ask_at_once_read_only_their_own_words() {
    let machine = Machine::new("senders");
    let _hub = machine.hub();
    let (_a, _b) = (machine.runner("a"), machine.runner("b"));
    ["a", "b"].iter().for_each(|agent| machine.wait_status(agent, "idle"));
    let works = machine.send("a", "work 3600");
    wait_for("the delivery", 60, || machine.delivered().contains_key(&works).then_some(()));
    // Both wait while it works.
    let pin = machine.send("a", "my PIN is purple");
    send_as(&machine, "b", "a", "my colour is green");
    let more = machine.send("a", "my hat is purple too");
    wait_for("all of it to wait", 60, || {
        (machine.status("a")["queues"]["inboxWaiting"] == 3).then_some(())
    });
    machine.ok(&["command", "a", "interrupt"]);
    machine.settle(&[pin, more], 60);
    // What both agents were given, each text a turn: the answers of one stand among the turns of
    // the other.
    let turns = || -> Vec<String> {
        let log = std::fs::read_to_string(machine.home.join("demo/log.jsonl")).unwrap_or_default();
        let text = |line: &str| {
            serde_json::from_str::<Value>(line).ok()?["text"].as_str().map(str::to_string)
        };
        log.lines().filter_map(text).collect()
    };
    let answer = wait_for("the answer of the other agent", 60, || {
        turns().into_iter().find(|text| text.contains(" from a]"))
    });
    assert!(
        answer.contains("You wrote: my colour is green") && !answer.contains("purple"),
        "{answer}"
    );
    assert!(
        !turns().iter().any(|text| text.contains("green") && text.contains("purple")),
        "{:?}",
        turns()
    );
    let of_user: Vec<String> = turns().into_iter().filter(|text| text.contains("purple")).collect();
    assert!(
        of_user.len() == 1
            && of_user[0].contains(&format!("#{pin} "))
            && of_user[0].contains(&format!("#{more} ")),
        "{of_user:?}"
    );
    let inbox = machine.ok(&["inbox", "--all"]);
    assert!(
        inbox.contains("You wrote 2 messages: my PIN is purple | my hat is purple too")
            && !inbox.contains("green"),
        "{inbox}"
    );
}

/// A turn with the words of several senders answers one of them; to the others the runner says so,
/// and that is no answer.
#[test]
fn who_waits_for_an_answer_that_went_to_another_is_told_and_fails() {
    let machine = Machine::new("another");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let url = machine.config()["relayUrl"].as_str().expect("a URL").to_string();
    let http = Http::new(Base::parse(&url).expect("a URL"), Duration::from_secs(10));
    let token = Secret::new(machine.ok(&["token", "create", "--agent", "a"]));
    for (payload, code) in
        [(json!({"answered": false}), 1), (json!({}), 0), (json!({"answered": true}), 0)]
    {
        let known = machine.delivered().len();
        let mut waits = machine.command(BIN);
        let waits = waits
            .args(["send", "a", "--wait", "60", "work 3600"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let id = wait_for("the delivery", 60, || {
            machine.delivered().into_keys().last().filter(|_| machine.delivered().len() > known)
        });
        let line = "[agent-relay] Ask again.";
        let body = json!({"to": USER, "body": line, "replyTo": id, "replyExpected": false, "payload": payload});
        assert_eq!(
            http.call("POST", "/api/messages", Some(&body), &token).expect("answers").0,
            201
        );
        let output = waits.wait_with_output().expect("ends");
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout).trim_end()),
            (Some(code), line),
            "{payload}"
        );
        machine.ok(&["command", "a", "interrupt"]);
        machine.wait_status("a", "idle");
    }
}
