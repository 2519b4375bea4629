//! Lines, hooks, entries and files that are damaged on their way: every recording with each damage.

use agent_relay::core::ids::Ticket;
use agent_relay::core::session::{Decision, Input, SessionEvent, Verb};
use agent_relay::provider::claude::hook_events::HOOKS;
use agent_relay::provider::claude::transcript::{self, Entry};
use agent_relay::provider::hooks::{read_payload, read_request};
use serde_json::{Value, json};

use crate::damage::{CUT, DAMAGES, Damage, Left};
use crate::stream::Stream;
use crate::terminal::{Terminal, start};
use crate::{files, fixtures, line_of};

const SESSION: &str = "00000000-0000-4000-8000-000000000000";

fn all() -> impl Iterator<Item = &'static Damage> {
    DAMAGES.iter().chain([&CUT])
}

/// Title and options of each request for permission that people were asked.
fn asked(signals: &[SessionEvent]) -> Vec<(String, Vec<String>)> {
    let view = |signal: &SessionEvent| match signal {
        SessionEvent::ApprovalOpened(approval) => {
            Some((approval.title.clone(), approval.options.clone()))
        }
        _ => None,
    };
    signals.iter().filter_map(view).collect()
}

fn assert_told(asked: &[(String, Vec<String>)], damage: &Damage, told: &str) {
    for (title, options) in asked {
        let is_whole = damage.left == Left::All;
        assert_eq!(!title.starts_with("unreadable"), is_whole, "{told}: {title}");
        let widens = |option: &String| option == "approve-session" || option == "answer";
        assert_eq!(options.iter().any(widens), is_whole, "{told}: {options:?}");
    }
}

fn stream(damage: Option<&Damage>) -> Stream {
    let text = std::fs::read_to_string(fixtures().join("stream-json/stdout.jsonl")).expect("reads");
    let mut stream = Stream::open();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let matters =
            ["result", "control_request"].contains(&value["type"].as_str().expect("type"));
        match damage.filter(|_| matters) {
            Some(damage) => stream.bytes(&(damage.of)(line)),
            None => stream.bytes(line.as_bytes()),
        }
    }
    stream
}

#[test]
fn no_damage_hides_what_the_stream_says_of_turns_and_permissions() {
    let sound = stream(None);
    assert!(sound.ended().len() > 5 && asked(&sound.signals).len() > 2);
    for damage in all() {
        let told = damage.name;
        let stream = stream(Some(damage));
        assert_eq!(stream.ended().len(), sound.ended().len(), "{told}");
        let asked = asked(&stream.signals);
        assert_eq!(asked.len(), 3, "{told}");
        assert_told(&asked, damage, told);
        let answers = stream.written.iter().filter(|line| line["type"] == "control_response");
        assert_eq!(answers.count(), 0, "nobody has answered: {told}");
        if damage.left != Left::Half {
            let ends = |stream: &Stream| {
                stream.ended().iter().filter(|end| end.contains("Completed")).count()
            };
            assert_eq!(ends(&stream), ends(&sound), "{told}");
        }
    }
}

#[test]
fn an_end_that_cannot_be_read_fails_the_turn_with_the_reason() {
    for (line, said, want) in [
        (r#"{"type":"result","is_error":false,"result":"Do"#, "Done.", "Completed \"Done.\""),
        (r#"{"type":"result","is_error":false,"result":"Do"#, "", "unreadable"),
        (r#"{"type":"result","subty"#, "Done.", "unreadable"),
        (r#"{"type":"res"#, "Done.", "unreadable"),
        ("half a line", "Done.", "unreadable"),
    ] {
        let mut stream = Stream::open();
        stream.deliver(5, "k5");
        stream.lifecycle("k5", "started");
        if !said.is_empty() {
            let content = json!([{"type": "text", "text": said}]);
            stream.line(&json!({"type": "assistant", "message": {"id": "m", "content": content}}));
        }
        stream.bytes(line.as_bytes());
        stream.lifecycle("k5", "completed");
        let ended = stream.ended();
        assert_eq!(ended.len(), 1, "{line}");
        assert!(ended[0].contains("Some(5)") && ended[0].contains(want), "{line}: {}", ended[0]);
    }
    // The same end twice is one, also where the next turn has begun between.
    let mut stream = Stream::open();
    stream.deliver(5, "k5");
    stream.lifecycle("k5", "started");
    stream.deliver(6, "k6");
    let end = json!({"type": "result", "is_error": false, "result": "Done.", "uuid": "u"});
    stream.line(&end);
    stream.lifecycle("k5", "completed");
    stream.line(&end);
    assert_eq!(stream.ended().len(), 1);
}

#[test]
fn a_damaged_permission_of_the_stream_is_allowed_as_it_was_asked() {
    let line = r#"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"touch \ud83d"}}}"#;
    for decision in [Decision::Approve, Decision::ApproveSession] {
        let mut stream = Stream::open();
        stream.bytes(line.as_bytes());
        let approval = stream.signals.iter().find_map(|signal| match signal {
            SessionEvent::ApprovalOpened(approval) => Some(approval.id.clone()),
            _ => None,
        });
        let approval = approval.expect("it is asked");
        stream.verb(Verb::Decide { approval, decision, reason: None, answers: None });
        let answer = stream.written.last().expect("an answer");
        assert_eq!(answer["response"]["response"], json!({"behavior": "allow"}));
    }
    let mut stream = Stream::open();
    stream.deliver(5, "k5");
    stream.lifecycle("k5", "started");
    stream.bytes(line.replace("\"r\"", "1e999").as_bytes());
    let last = stream.written.last().expect("something");
    assert_eq!(last["request"]["subtype"], "interrupt", "nobody can answer it");
}

/// Gives a hook to the session as the hook program and the runner do.
fn report(terminal: &mut Terminal, event: &str, bytes: &[u8]) {
    let (payload, _) = read_payload(bytes, None);
    if (HOOKS.is_for_session)(event, &payload) {
        return terminal.hook(Ticket::NOBODY, event, payload);
    }
    let post = (HOOKS.status_post)(event, &payload);
    if let Some(word) = post["status"].as_str() {
        terminal.hook(Ticket::NOBODY, word, Value::Null);
    }
}

/// A recorded payload as one line, of the session that runs.
fn payload(text: &str) -> String {
    let mut payload: Value = serde_json::from_str(text).expect("JSON");
    payload["session_id"] = json!(SESSION);
    payload["prompt_id"] = json!("p");
    payload.to_string()
}

#[test]
fn no_damage_hides_the_end_of_a_turn_in_a_hook() {
    let mut ends = 0;
    for (name, text) in files("hooks", ".json") {
        let event = match name.split('.').next() {
            Some("Stop") => "stop",
            Some("StopFailure") => "stop-failure",
            _ => continue,
        };
        ends += 1;
        for damage in all() {
            let mut terminal = Terminal::ready();
            terminal.event("UserPromptSubmit", json!({"prompt": "x", "prompt_id": "p"}));
            terminal.status("busy");
            for line in (damage.of)(&payload(&text)).split(|byte| *byte == b'\n') {
                report(&mut terminal, event, line);
            }
            if damage.left == Left::Half {
                // What such a hook says is looked at, and the registry says the same soon.
                terminal.status("idle");
                terminal.pass(5000);
            }
            let ends = terminal
                .signals
                .iter()
                .filter(|signal| matches!(signal, SessionEvent::TurnEnded { .. }));
            assert_eq!(ends.count(), 1, "{} in {name}", damage.name);
        }
    }
    assert!(ends > 5);
}

#[test]
fn no_damage_hides_a_request_for_permission_in_a_hook() {
    for (name, text) in files("hooks", ".json") {
        if !name.starts_with("PermissionRequest") {
            continue;
        }
        for damage in all() {
            let told = format!("{} in {name}", damage.name);
            let mut terminal = Terminal::ready();
            let bytes = (damage.of)(&payload(&text));
            let line = bytes.split(|byte| *byte == b'\n').next().expect("a line");
            terminal.hook(Ticket(9), "permission-request", read_request(line, None));
            let asked = asked(&terminal.signals);
            assert_eq!(asked.len(), 1, "{told}");
            assert_told(&asked, damage, &told);
            let answered =
                |signal: &SessionEvent| matches!(signal, SessionEvent::HookAnswer { .. });
            assert!(!terminal.has(answered), "{told}");
        }
    }
    for nothing in ["", "half", "{\"sess"] {
        let mut terminal = Terminal::ready();
        let request = read_request(nothing.as_bytes(), None);
        terminal.hook(Ticket(9), "permission-request", request);
        let asked = asked(&terminal.signals);
        assert!(asked.len() == 1 && asked[0].0.starts_with("unreadable"), "{nothing}: {asked:?}");
    }
}

#[test]
fn a_damaged_hook_names_no_session_and_no_transcript() {
    let other = "22222222-0000-4000-8000-000000000000";
    for (text, want) in [
        (
            format!(
                r#"{{"hook_event_name":"SessionStart","source":"clear","session_id":"{other}","x":"\ud83d"}}"#
            ),
            true,
        ),
        (
            format!(
                r#"{{"hook_event_name":"SessionStart","source":"clear","session_id":"{other}\ud83d"}}"#
            ),
            false,
        ),
        (
            format!(r#"{{"hook_event_name":"SessionStart","source":"clear","session_id":"{other}"#),
            false,
        ),
    ] {
        let mut terminal = Terminal::ready();
        report(&mut terminal, "session-start", text.as_bytes());
        let changed =
            terminal.has(|signal| matches!(signal, SessionEvent::ConversationChanged { .. }));
        assert_eq!(changed, want, "{text}");
    }
}

#[test]
fn no_damage_hides_the_end_of_a_turn_in_a_transcript() {
    let is_end = |entry: &Entry| matches!(entry, Entry::TurnOver { .. });
    let mut ends = 0;
    for (name, text) in files("transcripts", ".jsonl") {
        for line in text.lines() {
            if transcript::read(line.as_bytes()).iter().filter(|entry| is_end(entry)).count() != 1 {
                continue;
            }
            ends += 1;
            for damage in &DAMAGES {
                let bytes = (damage.of)(line);
                let found: Vec<Entry> =
                    bytes.split(|byte| *byte == b'\n').flat_map(transcript::read).collect();
                assert!(found.iter().any(is_end), "{} in {name}: {line}", damage.name);
            }
        }
    }
    assert!(ends > 5, "{ends}");
}

#[test]
fn half_an_entry_proves_no_message_and_hides_not_the_next() {
    let prompt = r#"{"type":"user","uuid":"u1","message":{"role":"user","content":"one"},"promptSource":"typed"}"#;
    let answer = r#"{"type":"assistant","uuid":"u2","message":{"id":"m","content":[{"type":"text","text":"two"}],"stop_reason":"end_turn"}}"#;
    let kinds = |line: String| {
        let kind = |entry: Entry| match entry {
            Entry::Prompt(prompt) => format!("prompt {}", prompt.text),
            Entry::Answer(answer) => format!("answer {} {}", answer.text(), answer.ends_turn()),
            other => format!("{other:?}"),
        };
        transcript::read(line.as_bytes()).into_iter().map(kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(prompt.into()), ["prompt one"]);
    assert_eq!(kinds(prompt.replace("one", "one \\ud83d")), ["prompt one \u{fffd}"]);
    for at in 1..prompt.len() {
        let found = kinds(prompt[..at].into());
        assert!(!found.iter().any(|kind| kind.starts_with("prompt")), "{at}: {found:?}");
    }
    // A program that died within a line: the next one stands behind its half. Behind a colon it
    // could be a part of it, and what is a part of something is no entry.
    for at in (1..prompt.len()).filter(|at| !prompt[..*at].ends_with(':')) {
        let found = kinds(format!("{}{answer}", &prompt[..at]));
        assert_eq!(found.last().map(String::as_str), Some("answer two true"), "{at}");
    }
    assert_eq!(kinds(answer[..answer.len() - 1].into()), ["answer two false"]);
}

#[test]
fn a_damaged_registry_opens_a_session_and_half_of_one_says_nothing() {
    let text = std::fs::read_to_string(fixtures().join("session-registry.json")).expect("reads");
    let mut record: Value = serde_json::from_str(&text).expect("JSON");
    record["status"] = json!("idle");
    record["sessionId"] = json!(SESSION);
    record["title"] = json!("Greetings");
    for damage in all().filter(|damage| damage.name != "doubled") {
        let mut terminal = Terminal::new(start(true), None);
        record["statusUpdatedAt"] = json!(terminal.now.wall.0);
        terminal.registry(&String::from_utf8_lossy(&(damage.of)(&record.to_string())));
        terminal.input(Input::CaughtUp);
        terminal.pass(300);
        let opened = terminal.has(|signal| matches!(signal, SessionEvent::Opened(_)));
        assert_eq!(opened, damage.left != Left::Half, "{}: {:?}", damage.name, terminal.signals);
    }
}

#[test]
fn a_damaged_status_line_still_tells_the_use_of_the_context() {
    let text = std::fs::read_to_string(fixtures().join("statusline.json")).expect("reads");
    for damage in DAMAGES.iter().filter(|damage| damage.left != Left::Half) {
        let mut terminal = Terminal::ready();
        let bytes = (damage.of)(&payload(&text));
        report(
            &mut terminal,
            "status-line",
            bytes.split(|byte| *byte == b'\n').next().expect("one"),
        );
        let told: Vec<String> = terminal.signals.iter().map(line_of).collect();
        assert!(told.iter().any(|line| line.starts_with("context ")), "{}: {told:?}", damage.name);
    }
}
