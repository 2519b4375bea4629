//! Which session it is, and how it starts.

use super::*;

#[test]
fn a_cleared_session_has_another_id_and_file() {
    let mut terminal = Terminal::ready();
    let verb = terminal.verb(Verb::Clear);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste /clear, press Enter");
    terminal.event("SessionEnd", json!({"reason": "clear"}));
    terminal.event("SessionStart", json!({"source": "clear", "session_id": "22222222-0000-4000-8000-000000000000", "transcript_path": "/p/22222222-0000-4000-8000-000000000000.jsonl"}));
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::ConversationChanged { session } if session.starts_with("22222222"))));
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::Answered { verb: found, result: Ok(_) } if *found == verb)));
    assert!(
        acts(&terminal).contains("follow 22222222-0000-4000-8000-000000000000.jsonl whole=true"),
        "{}",
        acts(&terminal)
    );
    terminal.pass(5000);
    assert!(!terminal.has(|signal| matches!(signal, SessionEvent::EndedByUser { .. })));
}

#[test]
fn a_start_that_hangs_in_a_dialog_is_told_with_its_cure() {
    for (name, word) in [
        ("dialog-trust", "trusted"),
        ("dialog-api-key", "ANTHROPIC_API_KEY"),
        ("dialog-bypass-permissions", "bypass"),
    ] {
        let text = std::fs::read_to_string(crate::fixtures().join(format!("panes/{name}.txt")))
            .expect("reads");
        let mut terminal = Terminal::new(start(true), None);
        terminal.shown = text;
        terminal.pass(9000);
        let failed = terminal.signals.iter().find_map(|signal| match signal {
            SessionEvent::OpenFailed { reason, fault } => Some((reason.clone(), *fault)),
            _ => None,
        });
        assert!(
            failed.as_ref().is_some_and(|(reason, fault)| {
                reason.contains(word) && *fault == StartFault::Person
            }),
            "{name}: {failed:?}"
        );
    }
}

#[test]
fn an_old_version_is_refused() {
    let mut terminal = Terminal::new(start(true), None);
    terminal.registry(&json!({"status": "idle", "version": "2.0.1"}).to_string());
    terminal.pass(1000);
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::OpenFailed { reason, fault: StartFault::Person } if reason.contains("update it"))));
    // One that has no registry file says so on its screen; the tested one says nothing wrong.
    let recorded = include_str!("../../fixtures/claude/panes/after-clear.txt");
    for (banner, refused) in
        [(recorded.replace("v2.1.329", "v2.0.14"), true), (recorded.to_string(), false)]
    {
        assert!(banner.contains("Claude Code v2."));
        let mut terminal = Terminal::new(start(true), None);
        terminal.screen(&banner);
        terminal.pass(5000);
        let told = |signal: &SessionEvent| matches!(signal, SessionEvent::OpenFailed { reason, fault: StartFault::Person } if reason.contains("update it"));
        assert_eq!(terminal.has(told), refused);
    }
}

/// Hooks of another session in the same terminal (a `claude` that a tool has started) say nothing
/// of ours.
#[test]
fn hooks_of_another_session_are_not_heard() {
    let mut terminal = Terminal::ready();
    terminal.status("idle");
    terminal.event(
        "UserPromptSubmit",
        json!({"prompt": "typed", "session_id": "00000000-0000-4000-8000-000000000000"}),
    );
    terminal.event("Stop", json!({"last_assistant_message": "x", "session_id": "99999999-0000-4000-8000-000000000000"}));
    assert_eq!(terminal.ended(None), None);
    terminal.event("Stop", json!({"last_assistant_message": "x", "session_id": "00000000-0000-4000-8000-000000000000"}));
    assert!(terminal.ended(None).is_some());
}

const A: &str = "00000000-0000-4000-8000-000000000000";

const B: &str = "22222222-0000-4000-8000-000000000000";

/// The registry file of the process says which session is in it now.
fn names(terminal: &mut Terminal, session: &str) {
    let record = json!({"status": "idle", "sessionId": session, "version": "2.1.329", "statusUpdatedAt": terminal.now.wall.0});
    terminal.registry(&record.to_string());
}

fn moves(terminal: &Terminal) -> Vec<String> {
    let moved = |signal: &SessionEvent| match signal {
        SessionEvent::ConversationChanged { session } => Some(session.clone()),
        _ => None,
    };
    terminal.signals.iter().filter_map(moved).collect()
}

/// A `claude` that a tool has started says that it begins; a hostile one says whatever it likes.
#[test]
fn no_other_session_is_taken_for_ours() {
    for (source, session, path) in [
        ("startup", B, format!("/p/{B}.jsonl")),
        ("resume", B, format!("/p/{B}.jsonl")),
        ("clear", "../../etc/x", "/p/x.jsonl".into()),
        ("clear", "--version", "/p/x.jsonl".into()),
        ("clear", "", "/etc/shadow".into()),
    ] {
        let mut terminal = Terminal::ready();
        terminal.event(
            "SessionStart",
            json!({"source": source, "session_id": session, "transcript_path": path}),
        );
        terminal.pass(3000);
        assert!(
            moves(&terminal).is_empty() && acts(&terminal).is_empty(),
            "{session}: {}",
            acts(&terminal)
        );
        terminal.event("SessionEnd", json!({"reason": "prompt_input_exit", "session_id": B}));
        terminal.input(Input::Closed);
        assert!(!terminal.has(|signal| matches!(signal, SessionEvent::EndedByUser { .. })));
    }
    let mut terminal = Terminal::ready();
    terminal.event("Stop", json!({"session_id": A, "transcript_path": "/etc/shadow"}));
    terminal.event("Stop", json!({"session_id": A, "transcript_path": format!("/p/../{A}.jsonl")}));
    assert_eq!(acts(&terminal), "");
}

/// `/clear` by a person, then `/resume` of what was left: its hooks count again, and its history is
/// not mirrored.
#[test]
fn a_person_goes_back_to_the_session_before() {
    for hooked in [true, false] {
        let mut terminal = Terminal::ready();
        if hooked {
            terminal.event("SessionStart", json!({"source": "clear", "session_id": B, "transcript_path": format!("/p/{B}.jsonl")}));
        }
        names(&mut terminal, A); // still
        names(&mut terminal, B);
        terminal.pass(5000);
        if hooked {
            terminal.event("SessionStart", json!({"source": "resume", "session_id": A, "transcript_path": format!("/p/{A}.jsonl")}));
        }
        names(&mut terminal, A);
        assert_eq!(moves(&terminal), [B, A]);
        if hooked {
            assert!(
                acts(&terminal).contains(&format!("follow {A}.jsonl whole=false")),
                "{}",
                acts(&terminal)
            );
        }
        terminal.event("UserPromptSubmit", json!({"prompt": "typed", "session_id": A}));
        terminal.event("Stop", json!({"last_assistant_message": "x", "session_id": A}));
        assert!(terminal.ended(None).is_some());
    }
}

/// A prompt among its arguments: it works before it was ever idle.
#[test]
fn a_session_that_works_from_the_start_is_ready() {
    let mut terminal = Terminal::new(start(true), None);
    terminal.input(Input::CaughtUp);
    terminal.shown = BUSY.into();
    terminal.status("busy");
    terminal.pass(2000);
    assert!(
        terminal.has(|signal| matches!(signal, SessionEvent::Opened(_)))
            && terminal.has(|signal| *signal == SessionEvent::TurnStarted)
    );
    terminal.deliver(1, true, false);
    terminal.pass(2000);
    assert_eq!(acts(&terminal), "follow  whole=true", "nothing is typed into it");
}

/// With hooks that are switched off nobody at the relay is asked: that is told, until one reports.
#[test]
fn hooks_that_are_switched_off_are_noticed() {
    let told = |terminal: &Terminal| {
        let fact = |signal: &SessionEvent| match signal {
            SessionEvent::Fact { name: "hooks", value } => Some(value.is_string()),
            _ => None,
        };
        terminal.signals.iter().filter_map(fact).collect::<Vec<bool>>()
    };
    let mut terminal = Terminal::ready();
    assert!(told(&terminal).is_empty());
    terminal.status("busy");
    terminal.pass(10_000);
    assert_eq!(told(&terminal), [true]);
    terminal.event("Stop", json!({"last_assistant_message": "x"}));
    assert_eq!(told(&terminal), [true, false]);
    let mut terminal = Terminal::ready();
    terminal.event("SessionStart", json!({"source": "startup"}));
    terminal.status("busy");
    assert!(told(&terminal).is_empty());
}
