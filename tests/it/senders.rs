//! Whose words reach whom: agents that broad targets do not reach, and senders who wait together.

use agent_relay::wire::api::USER;
use serde_json::Value;

use crate::support::{Machine, wait_for};

fn read_by(machine: &Machine, id: u64, agent: &str) -> bool {
    let message: Value = serde_json::from_str(&machine.ok(&["get-message", &id.to_string(), "--json"])).expect("JSON");
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
    machine.settle(&[all, direct, label], 30);
    // One answer: the narrow agent neither got it nor holds it back as unread.
    assert!(read_by(&machine, all, "broad"));
    let waiting = wait_for("nothing unread", 20, || {
        let status = machine.status("narrow");
        (status["queues"]["inboxWaiting"] == 0 && status["queues"]["readsToTell"] == 0).then_some(status)
    });
    assert_eq!(waiting["turn"], Value::Null);
    let inbox = machine.ok(&["inbox", "--all", "--json", "--for", USER]);
    let answers = inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|message| message["kind"] == "chat");
    let from: Vec<(u64, String)> =
        answers.map(|m| (m["replyTo"].as_u64().unwrap_or(0), m["from"].as_str().unwrap_or_default().to_string())).collect();
    assert!(from.contains(&(all, "broad".into())) && !from.contains(&(all, "narrow".into())), "{from:?}");
    // What this hub still resolves to it is declined; a target that nobody else has is seen by nobody.
    let tag = machine.send("tag:mine", "for those with that tag");
    let after = machine.send("narrow", "and this");
    machine.settle(&[after], 30);
    assert!(!machine.delivered().contains_key(&tag), "{}", machine.logs());
}
