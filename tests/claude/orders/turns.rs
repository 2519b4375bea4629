//! Where turns begin and end.

use super::*;

/// Asked between Enter and the first sign of the turn.
#[test]
fn an_interrupt_ends_a_turn_that_is_about_to_begin() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    let verb = terminal.verb(Verb::Interrupt);
    let answered = |terminal: &Terminal| {
        terminal.has(
            |signal| matches!(signal, SessionEvent::Answered { verb: found, .. } if *found == verb),
        )
    };
    assert!(!answered(&terminal) && !acts(&terminal).contains("Escape"));
    terminal.event("UserPromptSubmit", json!({"prompt": "[relay message #5 from user]\ndo 5"}));
    assert!(acts(&terminal).ends_with("press Escape"), "{}", acts(&terminal));
    terminal.pass(100);
    terminal.status("idle");
    assert!(
        answered(&terminal) && terminal.ended(Some(5)).is_some_and(|end| end.contains("Cancelled")),
        "{:?}",
        terminal.signals
    );
}

fn turns_begun(terminal: &Terminal) -> usize {
    terminal.signals.iter().filter(|signal| matches!(signal, SessionEvent::TurnStarted)).count()
}

/// Seen under load: 0.2 s and more after a Stop the file still tells of the turn that is over.
#[test]
fn a_registry_that_lags_begins_no_turn() {
    let mut terminal = delivered(true, false);
    terminal.signals.clear();
    let began = terminal.now.wall.0 - 1;
    let busy = json!({"status": "busy", "sessionId": "00000000-0000-4000-8000-000000000000", "statusUpdatedAt": began}).to_string();
    terminal.event("Stop", json!({"last_assistant_message": "x"}));
    for ms in [0, 199, 250, 5000] {
        terminal.pass(ms);
        terminal.registry(&busy);
        terminal.pass(1000);
    }
    assert_eq!(turns_begun(&terminal), 0, "{:?}", terminal.signals);
    // Typed at once all the same.
    terminal.acts.clear();
    terminal.deliver(6, true, false);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste [relay message #6 from user], press Enter");
    // A word that is younger is of another turn, however soon it comes.
    terminal.status("busy");
    assert_eq!(turns_begun(&terminal), 1, "{:?}", terminal.signals);
}

/// The word of the next turn may be read before the hook of this one is heard.
#[test]
fn a_turn_that_follows_at_once_is_seen_although_its_word_came_first() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "one"}));
    terminal.status("busy");
    terminal.shown = BUSY.into();
    terminal.pass(1000);
    let stop = terminal.now.wall;
    terminal.pass(5);
    terminal.status("busy");
    terminal.pass(100);
    let payload = json!({"hook_event_name": "Stop", "last_assistant_message": "x"});
    terminal.hook_at(stop, payload);
    assert!(terminal.ended(None).is_some());
    assert_eq!(turns_begun(&terminal), 2, "{:?}", terminal.signals);
    // The first Stop again, late: it is none of the second turn.
    let payload = json!({"hook_event_name": "Stop", "last_assistant_message": "x"});
    let before = terminal.signals.len();
    terminal.hook_at(stop, payload);
    assert_eq!(terminal.signals.len(), before, "{:?}", terminal.signals);
}

/// Seen in a long run: an idle that is older than our belief, and a prompt hook that comes twice.
#[test]
fn nothing_leaves_a_session_busy_for_ever() {
    let is_busy = |terminal: &Terminal| {
        let last = terminal.signals.iter().rev().find(|signal| {
            matches!(signal, SessionEvent::TurnStarted | SessionEvent::TurnEnded { .. })
        });
        matches!(last, Some(SessionEvent::TurnStarted))
    };
    let mut terminal = delivered(true, true);
    let old = terminal.now.wall.0;
    terminal.pass(300);
    for (status, at) in [("busy", old), ("idle", old + 1)] {
        terminal.registry(&json!({"status": status, "sessionId": "00000000-0000-4000-8000-000000000000", "statusUpdatedAt": at}).to_string());
        terminal.pass(250);
    }
    terminal.pass(1000);
    assert!(!is_busy(&terminal), "{:?}", terminal.signals);
    let doubled = json!({"prompt": "again", "prompt_id": "p"});
    terminal.event("UserPromptSubmit", doubled.clone());
    assert!(is_busy(&terminal));
    terminal.event("Stop", json!({"last_assistant_message": "x", "prompt_id": "p"}));
    terminal.event("UserPromptSubmit", doubled);
    assert!(!is_busy(&terminal), "its prompt is over");
    // Where nothing else can be known of it, it is believed for a while.
    terminal.event("UserPromptSubmit", json!({"prompt": "never"}));
    terminal.pass(10_000);
    assert!(is_busy(&terminal));
    terminal.pass(51_000);
    assert!(!is_busy(&terminal), "{:?}", terminal.signals);
}

/// A hook of the user's own lets the turn go on after our Stop was told: the record shows it.
#[test]
fn a_turn_that_goes_on_after_its_stop_is_seen_by_its_record() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "one"}));
    terminal.status("busy");
    terminal.shown = BUSY.into();
    terminal.pass(1000);
    let said = |at: &str| {
        let message = json!({"id": "m", "model": "m", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "Done."}]});
        let line = json!({"type": "assistant", "uuid": at, "timestamp": at, "message": message});
        format!("{line}\n")
    };
    let before = terminal.stamp();
    terminal.pass(10);
    terminal.event("Stop", json!({"last_assistant_message": "Done."}));
    terminal.pass(10);
    terminal.grown(&said(&before));
    assert_eq!(turns_begun(&terminal), 1, "it was said before the Stop");
    terminal.grown(&said(&terminal.stamp()));
    assert_eq!(turns_begun(&terminal), 2, "{:?}", terminal.signals);
}

/// All that was said, where that is wanted; and the use of the context without a status line.
#[test]
fn the_whole_turn_is_told_where_it_is_wanted() {
    for (full, want) in [(false, "Completed done"), (true, "Completed first\ndone")] {
        let mut terminal = Terminal::ready();
        terminal.session = agent_relay::provider::claude::tui::TuiSession::new(
            agent_relay::provider::SessionSettings {
                capture_full: full,
                ..crate::terminal::settings()
            },
            start(true),
        );
        terminal.input(Input::ProcessStarted { pid: 7 });
        terminal.verb(Verb::Open { resume: None });
        terminal.status("idle");
        terminal.input(Input::CaughtUp);
        terminal.pass(300);
        terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
        for (id, text, stop) in [("m1", "first", "tool_use"), ("m2", "done", "end_turn")] {
            let line = json!({"type": "assistant", "uuid": id, "message": {"id": id, "model": "m", "stop_reason": stop,
                "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 90_000, "output_tokens": 10_000}}});
            terminal.grown(&format!("{line}\n"));
        }
        terminal.event("Stop", json!({"last_assistant_message": "done"}));
        assert_eq!(terminal.ended(None).as_deref(), Some(want));
        let used = terminal.signals.iter().find_map(|signal| match signal {
            SessionEvent::Context(context) => context["utilization"].as_f64(),
            _ => None,
        });
        assert_eq!(used, Some(0.5));
    }
}

#[test]
fn escape_ends_a_turn_without_any_hook() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.shown = BUSY.into();
    terminal.pass(2000);
    terminal.shown = EMPTY.into();
    terminal.status("idle");
    terminal.pass(2500);
    assert_eq!(terminal.ended(None).as_deref(), Some("Cancelled "), "{:?}", terminal.signals);
}

#[test]
fn an_interrupt_of_ours_is_answered_when_its_effect_is_seen() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.shown = BUSY.into();
    let first = terminal.verb(Verb::Interrupt);
    terminal.verb(Verb::Interrupt);
    assert_eq!(acts(&terminal), "press Escape", "a second one would open a menu");
    assert!(!terminal.has(|signal| matches!(signal, SessionEvent::Answered { .. })));
    terminal.pass(100);
    terminal.status("idle");
    assert!(terminal.has(
        |signal| matches!(signal, SessionEvent::Answered { verb, result: Ok(_) } if *verb == first)
    ));
    let idle = terminal.verb(Verb::Interrupt);
    assert!(terminal.has(
        |signal| matches!(signal, SessionEvent::Answered { verb, result: Ok(result) } if *verb == idle && result["wasRunning"] == false)
    ));
    assert_eq!(acts(&terminal), "press Escape");
}

#[test]
fn the_end_of_the_turn_before_is_not_taken_for_this_one() {
    let mut terminal = delivered(true, true);
    terminal.signals.clear();
    terminal.acts.clear();
    terminal.deliver(6, true, false);
    terminal.pass(100);
    terminal.status("busy");
    terminal.shown = BUSY.into();
    terminal.event("UserPromptSubmit", json!({"prompt": "[relay message #6 from user]\ndo 6"}));
    // What the turn before left comes late, and a registry that lags.
    let old = json!({"type": "assistant", "uuid": "o", "timestamp": "2026-01-01T00:00:00.000Z", "message": {"id": "m", "model": "m", "stop_reason": "end_turn", "content": [{"type": "text", "text": "Old."}]}});
    let over = json!({"type": "system", "subtype": "turn_duration", "timestamp": "2026-01-01T00:00:00.000Z"});
    terminal.grown(&format!("{old}\n{over}\n"));
    terminal.pass(5000);
    assert_eq!(terminal.ended(Some(6)), None, "{:?}", terminal.signals);
    terminal.event("Stop", json!({"last_assistant_message": "New."}));
    assert_eq!(terminal.ended(Some(6)).as_deref(), Some("Completed New."));
}

#[test]
fn a_manual_compaction_has_neither_prompt_nor_stop() {
    let mut terminal = Terminal::ready();
    let verb = terminal.verb(Verb::Compact { instructions: Some("keep\nnames".into()) });
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste /compact keep names, press Enter");
    terminal.event("PreCompact", json!({"trigger": "manual"}));
    terminal.status("busy");
    terminal.pass(500);
    terminal.event("SubagentStop", json!({"agent_id": "x", "agent_type": ""}));
    terminal.event(
        "SessionStart",
        json!({"source": "compact", "session_id": "00000000-0000-4000-8000-000000000000"}),
    );
    assert!(!terminal.has(|signal| matches!(signal, SessionEvent::Answered { .. })));
    terminal.event("PostCompact", json!({"trigger": "manual"}));
    terminal.status("idle");
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::Answered { verb: found, result: Ok(_) } if *found == verb)));
    terminal.pass(3000);
    assert!(terminal.ended(None).is_some_and(|end| end.starts_with("Completed")));
    assert_eq!(
        terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::TurnStarted))
            .count(),
        1
    );
}

#[test]
fn a_compaction_that_does_nothing_fails_with_a_reason() {
    let mut terminal = Terminal::ready();
    let verb = terminal.verb(Verb::Compact { instructions: None });
    terminal.pass(100);
    terminal.status("busy");
    terminal.pass(50);
    terminal.status("idle");
    terminal.pass(10_000);
    assert!(
        terminal.has(|signal| matches!(signal, SessionEvent::Answered { verb: found, result: Err(_) } if *found == verb)),
        "{:?}",
        terminal.signals
    );
}

#[test]
fn an_automatic_compaction_stands_inside_its_turn() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.event("PreCompact", json!({"trigger": "auto"}));
    terminal.event("PostCompact", json!({"trigger": "auto"}));
    assert_eq!(terminal.ended(None), None);
    terminal.event("Stop", json!({"last_assistant_message": "x"}));
    assert!(terminal.ended(None).is_some());
}

#[test]
fn what_works_beside_the_turn_is_told_until_it_ends() {
    let mut terminal = Terminal::ready();
    let runs = |terminal: &Terminal, wanted: bool| {
        terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::Work { runs, .. } if *runs == wanted))
            .count()
    };
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.event("SubagentStart", json!({"agent_id": "s1", "agent_type": "Explore"}));
    let tasks = json!([{"id": "s1", "type": "subagent", "status": "running", "description": "look"}, {"id": "b1", "type": "shell", "status": "running", "description": "sleep"}, {"id": "m", "type": "monitor", "status": "running"}]);
    terminal.event("Stop", json!({"last_assistant_message": "x", "background_tasks": tasks}));
    assert_eq!((runs(&terminal, true), runs(&terminal, false)), (2, 0));
    terminal.event(
        "SubagentStop",
        json!({"agent_id": "s1", "agent_type": "Explore", "background_tasks": tasks}),
    );
    assert_eq!(runs(&terminal, false), 1);
    terminal.status("idle");
    assert_eq!(runs(&terminal, false), 2, "idle without a shell");
}

/// A whole day at the terminal, with a bare status post in between: never idle in the middle, never
/// busy at the end.
#[test]
fn bare_words_are_only_hints() {
    let mut terminal = Terminal::ready();
    terminal.hook(Ticket(0), "busy", Value::Null);
    terminal.shown = BUSY.into();
    terminal.status("busy");
    terminal.hook(Ticket(0), "idle", Value::Null);
    terminal.pass(3000);
    assert_eq!(terminal.ended(None), None, "the screen and the registry say that it works");
    terminal.shown = EMPTY.into();
    terminal.status("idle");
    terminal.pass(2000);
    assert!(
        terminal.has(|signal| matches!(
            signal,
            SessionEvent::TurnEnded { end: TurnEnd::Cancelled, .. }
        ))
    );
}

/// A notice woke the session just before our Enter: the prompt hook says only that our text waits.
#[test]
fn a_turn_that_began_before_our_enter_is_not_ours() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(20);
    terminal.event(
        "UserPromptSubmit",
        json!({"prompt": "<task-notification>done</task-notification>"}),
    );
    terminal.pass(60);
    terminal.event("UserPromptSubmit", json!({"prompt": "[relay message #5 from user]\ndo 5"}));
    assert!(!terminal.taken(5), "{:?}", terminal.signals);
    terminal.event("Stop", json!({"last_assistant_message": "Noted."}));
    assert_eq!(terminal.ended(Some(5)), None);
}

#[test]
fn what_the_session_does_in_its_turn_does_not_stick() {
    let state = |terminal: &Terminal| {
        terminal.signals.iter().rev().find_map(|signal| match signal {
            SessionEvent::ProviderState(state) => {
                Some(state["state"].as_str().unwrap_or_default().to_string())
            }
            _ => None,
        })
    };
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.event("PreCompact", json!({"trigger": "auto"}));
    assert_eq!(state(&terminal).as_deref(), Some("compacting"));
    terminal.event("PostCompact", json!({"trigger": "auto"}));
    assert_eq!(state(&terminal).as_deref(), Some("running"));
    // The notification of a dialog comes seconds after it.
    terminal.status("waiting");
    assert_eq!(state(&terminal).as_deref(), Some("blocked"));
    terminal.status("busy");
    terminal.event("Notification", json!({"notification_type": "permission_prompt"}));
    assert_eq!(state(&terminal).as_deref(), Some("running"));
}

/// Seen with hooks that come late: a Stop of the turn before, in the middle of one that asks for a
/// permission.
#[test]
fn a_late_stop_ends_nothing() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "one", "prompt_id": "p1"}));
    terminal.event("Stop", json!({"last_assistant_message": "x", "prompt_id": "p1"}));
    terminal.pass(300);
    terminal.signals.clear();
    terminal.event("UserPromptSubmit", json!({"prompt": "two", "prompt_id": "p2"}));
    terminal.event("Stop", json!({"last_assistant_message": "x", "prompt_id": "p1"}));
    assert_eq!(terminal.ended(None), None);
    let id = asked(&mut terminal, Ticket(4));
    terminal.shown = PERMISSION.into();
    terminal.pass(20);
    terminal.status("waiting");
    terminal.event("Stop", json!({"last_assistant_message": "x", "prompt_id": "unknown"}));
    assert!(!terminal.has(
        |signal| matches!(signal, SessionEvent::ApprovalClosed { id: found, .. } if *found == id)
    ));
    terminal.shown = EMPTY.into();
    terminal.status("busy");
    terminal.event("Stop", json!({"last_assistant_message": "y", "prompt_id": "p2"}));
    assert_eq!(terminal.ended(None).as_deref(), Some("Completed y"));
}
