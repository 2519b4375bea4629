//! What the session asks, and who answers.

use super::*;

#[test]
fn a_permission_is_answered_by_whoever_is_first() {
    let closed = |terminal: &Terminal, id: &str| {
        terminal.has(|signal| matches!(signal, SessionEvent::ApprovalClosed { id: found, .. } if found == id))
    };
    let answer = |terminal: &Terminal, ticket: Ticket| {
        terminal.signals.iter().find_map(|signal| match signal {
            SessionEvent::HookAnswer { ticket: found, answer } if *found == ticket => {
                Some(answer.clone())
            }
            _ => None,
        })
    };
    // Decided at the relay.
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    let id = asked(&mut terminal, Ticket(4));
    terminal.verb(Verb::Decide {
        approval: id.clone(),
        decision: Decision::Deny,
        reason: Some("no".into()),
        answers: None,
    });
    let said: Value = answer(&terminal, Ticket(4)).flatten().expect("an answer");
    assert_eq!(said["hookSpecificOutput"]["decision"]["message"], "no");
    assert!(closed(&terminal, &id));
    terminal.verb(Verb::Decide {
        approval: id,
        decision: Decision::Approve,
        reason: None,
        answers: None,
    });
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::Answered { result: Err(error), .. } if error.contains("no approval"))));
    // At the terminal: the registry no longer waits.
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    let id = asked(&mut terminal, Ticket(4));
    terminal.status("waiting");
    terminal.pass(100);
    terminal.status("busy");
    assert!(closed(&terminal, &id) && answer(&terminal, Ticket(4)) == Some(None));
    // By nobody.
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    let id = asked(&mut terminal, Ticket(4));
    terminal.shown = PERMISSION.into();
    terminal.status("waiting");
    terminal.pass(601_000);
    assert!(
        closed(&terminal, &id)
            && answer(&terminal, Ticket(4))
                .flatten()
                .is_some_and(|said| said.to_string().contains("Nobody answered"))
    );
    // The hook is gone.
    let mut terminal = Terminal::ready();
    let id = asked(&mut terminal, Ticket(4));
    terminal.verb(Verb::HookGone { ticket: Ticket(4) });
    assert!(closed(&terminal, &id) && answer(&terminal, Ticket(4)).is_none());
}

/// Two subagents ask; a person answers both at the terminal. While one dialog follows the other
/// nobody can say whose it is.
#[test]
fn several_questions_are_over_when_the_session_waits_for_no_key() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    for (ticket, agent) in [(Ticket(4), "s1"), (Ticket(5), "s2")] {
        terminal.hook(
            ticket,
            "permission-request",
            json!({"hook_event_name": "PermissionRequest", "tool_name": "Bash", "agent_id": agent, "tool_input": {"command": agent}}),
        );
    }
    let closed = |terminal: &Terminal| {
        terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::ApprovalClosed { .. }))
            .count()
    };
    terminal.pass(100);
    for status in ["waiting", "busy", "waiting"] {
        terminal.status(status);
        terminal.pass(500);
    }
    assert_eq!(closed(&terminal), 0, "the second dialog stands");
    terminal.status("busy");
    terminal.pass(1500);
    assert_eq!(closed(&terminal), 2);
}

/// With two calls in one reply, the result of the one that needed no permission answers nothing.
#[test]
fn a_result_withdraws_only_its_own_question() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    let block = |id: &str, command: &str| json!({"type": "tool_use", "id": id, "name": "Bash", "input": {"command": command}});
    let answer = json!({"type": "assistant", "uuid": "x", "message": {"id": "m", "model": "m", "stop_reason": "tool_use", "content": [block("t1", "y"), block("t2", "x")]}});
    terminal.grown(&format!("{answer}\n"));
    let id = asked(&mut terminal, Ticket(4));
    terminal.pass(1000);
    let result = |id: &str| {
        let line = json!({"type": "user", "timestamp": "2030-01-01T00:00:00.000Z", "message": {"content": [{"type": "tool_result", "tool_use_id": id, "content": "ok"}]}});
        format!("{line}\n")
    };
    let closed = |terminal: &Terminal| {
        terminal.has(|signal| matches!(signal, SessionEvent::ApprovalClosed { id: found, .. } if *found == id))
    };
    terminal.grown(&result("t1"));
    assert!(!closed(&terminal));
    terminal.grown(&result("t2"));
    assert!(closed(&terminal));
}
