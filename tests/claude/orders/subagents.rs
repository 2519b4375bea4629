//! A subagent works in the background: the registry stays busy until its end, and the box is open.

use super::*;

const AT_ITS_PROMPT: &str = "────────────\n\u{276f}\u{a0}\n────────────\n  ⏸ manual mode on · ↓ to manage\n  ● main\n  ◯ general-purpose  Look around\n";
const AT_WORK: &str = "────────────\n\u{276f}\u{a0}\n────────────\n  ⏸ manual mode on · esc to interrupt · ↓ to manage\n  ● main\n  ◯ general-purpose  Look around\n";

/// A turn has started one and is over.
fn behind_a_subagent() -> Terminal {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "look around", "prompt_id": "p0"}));
    terminal.status("busy");
    terminal.event("SubagentStart", json!({"agent_id": "s", "agent_type": "general-purpose"}));
    terminal.screen(AT_WORK);
    let tasks = json!([{"id": "s", "type": "subagent", "status": "running"}]);
    let stop =
        json!({"last_assistant_message": "started", "prompt_id": "p0", "background_tasks": tasks});
    terminal.event("Stop", stop);
    terminal.screen(AT_ITS_PROMPT);
    terminal.pass(1000);
    assert!(terminal.ended(None).is_some(), "{:?}", terminal.signals);
    terminal.signals.clear();
    terminal.acts.clear();
    terminal
}

fn is_busy(terminal: &Terminal) -> bool {
    let turn = |signal: &&SessionEvent| {
        matches!(signal, SessionEvent::TurnStarted | SessionEvent::TurnEnded { .. })
    };
    matches!(terminal.signals.iter().rev().find(turn), Some(SessionEvent::TurnStarted))
}

fn answer_to(terminal: &Terminal, verb: VerbNumber) -> Option<Result<Value, String>> {
    terminal.signals.iter().find_map(|signal| match signal {
        SessionEvent::Answered { verb: found, result } if *found == verb => Some(result.clone()),
        _ => None,
    })
}

#[test]
fn a_message_of_a_person_is_typed_at_once() {
    let mut terminal = behind_a_subagent();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user], press Enter");
    terminal.event("UserPromptSubmit", json!({"prompt": "[relay message #5 from user]\ndo 5"}));
    assert!(terminal.taken(5));
    terminal.event("Stop", json!({"last_assistant_message": "Done."}));
    assert_eq!(terminal.ended(Some(5)).as_deref(), Some("Completed Done."));
    // So is what an agent says, by the socket.
    terminal.acts.clear();
    terminal.screen(AT_ITS_PROMPT);
    terminal.deliver(6, false, false);
    assert_eq!(acts(&terminal), "post [relay message #6 from web]");
}

#[test]
fn nothing_is_typed_into_a_turn_that_only_the_screen_shows() {
    let mut terminal = behind_a_subagent();
    terminal.screen(AT_WORK);
    assert!(is_busy(&terminal), "{:?}", terminal.signals);
    terminal.deliver(5, true, false);
    terminal.pass(5000);
    assert_eq!(acts(&terminal), "");
    terminal.screen(AT_ITS_PROMPT);
    terminal.pass(2000);
    assert!(acts(&terminal).starts_with("paste"), "{} {:?}", acts(&terminal), terminal.signals);
}

/// Neither a hook nor the registry tells of the end: only the screen does.
#[test]
fn an_interrupt_is_answered_when_the_screen_shows_its_effect() {
    let mut terminal = behind_a_subagent();
    let idle = terminal.verb(Verb::Interrupt);
    assert_eq!(answer_to(&terminal, idle), Some(Ok(json!({"wasRunning": false}))));
    assert_eq!(acts(&terminal), "", "no key is pressed at an idle prompt");
    terminal.event("UserPromptSubmit", json!({"prompt": "hang", "prompt_id": "p1"}));
    terminal.screen(AT_WORK);
    let verb = terminal.verb(Verb::Interrupt);
    terminal.pass(1000);
    assert_eq!((acts(&terminal).as_str(), answer_to(&terminal, verb)), ("press Escape", None));
    terminal.screen(AT_ITS_PROMPT);
    assert_eq!(answer_to(&terminal, verb), Some(Ok(json!({"wasRunning": true}))));
    assert!(!is_busy(&terminal));
    // Before the first word the program gives the prompt back.
    terminal.event("UserPromptSubmit", json!({"prompt": "hang", "prompt_id": "p2"}));
    terminal.screen(AT_WORK);
    terminal.screen(&AT_ITS_PROMPT.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}hang"));
    terminal.pass(2000);
    assert!(!is_busy(&terminal), "{:?}", terminal.signals);
}

#[test]
fn the_context_is_compacted_and_cleared() {
    let mut terminal = behind_a_subagent();
    let verb = terminal.verb(Verb::Compact { instructions: None });
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste /compact, press Enter");
    terminal.event("PreCompact", json!({"trigger": "manual"}));
    terminal.event("PostCompact", json!({"trigger": "manual"}));
    assert!(matches!(answer_to(&terminal, verb), Some(Ok(_))));
    assert!(!is_busy(&terminal));
    terminal.acts.clear();
    let verb = terminal.verb(Verb::Clear);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste /clear, press Enter");
    // As recorded: the file names another session, with the old word.
    let id = "00000000-0000-4000-8000-0000000000aa";
    let old = terminal.now.wall.0 - 5000;
    terminal
        .registry(&json!({"status": "busy", "sessionId": id, "statusUpdatedAt": old}).to_string());
    assert!(matches!(answer_to(&terminal, verb), Some(Ok(_))), "{:?}", terminal.signals);
    terminal.pass(1000);
    assert!(!is_busy(&terminal), "{:?}", terminal.signals);
}

/// Its end wakes the session by itself.
#[test]
fn the_turn_that_its_end_begins_is_seen() {
    let mut terminal = behind_a_subagent();
    let end = json!({"agent_id": "s", "agent_type": "general-purpose"});
    terminal.event("SubagentStop", end);
    assert!(!is_busy(&terminal));
    terminal.pass(10);
    terminal.status("busy");
    assert!(is_busy(&terminal), "{:?}", terminal.signals);
}

/// A dialog of a subagent is no turn of the session, and nothing is typed into it.
#[test]
fn a_question_of_a_subagent_begins_no_turn() {
    let mut terminal = behind_a_subagent();
    terminal.status("waiting");
    terminal.screen(PERMISSION);
    terminal.deliver(5, true, false);
    terminal.pass(5000);
    assert_eq!((acts(&terminal).as_str(), is_busy(&terminal)), ("", false));
    let told = |signal: &SessionEvent| matches!(signal, SessionEvent::Fact { name: "delivery", value } if value.is_string());
    assert!(terminal.has(told), "{:?}", terminal.signals);
    terminal.status("busy");
    terminal.screen(AT_ITS_PROMPT);
    terminal.pass(1000);
    assert_eq!((acts(&terminal).contains("press Enter"), is_busy(&terminal)), (true, false));
}
