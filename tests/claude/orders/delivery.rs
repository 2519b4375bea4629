//! How a message reaches the session, and what proves it.

use super::*;

#[test]
fn a_message_is_proven_and_answered_whatever_hook_is_lost() {
    for (hook, stop) in [(true, true), (false, true), (true, false), (false, false)] {
        let terminal = delivered(hook, stop);
        assert_eq!(
            terminal.ended(Some(5)).as_deref(),
            Some("Completed Done."),
            "hook={hook} stop={stop}: {:?}",
            terminal.signals
        );
        let taken = terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::Accepted { .. }))
            .count();
        let ended = terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::TurnEnded { .. }))
            .count();
        assert_eq!((taken, ended), (1, 1), "hook={hook} stop={stop}");
        assert!(
            !terminal.has(|signal| matches!(signal, SessionEvent::Mirror(m) if m.kind == "prompt")),
            "our own text is no echo"
        );
    }
}

#[test]
fn a_proof_that_comes_after_the_end_still_counts() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    terminal.status("busy");
    terminal.pass(20);
    terminal.event("Stop", json!({"last_assistant_message": "Quick."}));
    terminal.status("idle");
    assert!(!terminal.taken(5), "nothing proves it yet");
    terminal.pass(100);
    terminal.prompt_entry("[relay message #5 from user]\ndo 5", "human");
    assert!(terminal.taken(5));
    assert_eq!(terminal.ended(Some(5)).as_deref(), Some("Completed Quick."));
}

/// Seen under load: before the proof is on disk, another turn has begun.
#[test]
fn a_proof_from_before_the_end_is_not_taken_by_the_turn_after_it() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    let stamp = terminal.stamp();
    terminal.status("busy");
    terminal.pass(50);
    terminal.event("Stop", json!({"last_assistant_message": "Quick."}));
    terminal.pass(400);
    terminal.status("busy");
    assert!(
        terminal
            .signals
            .iter()
            .filter(|signal| matches!(signal, SessionEvent::TurnStarted))
            .count()
            == 2,
        "{:?}",
        terminal.signals
    );
    let text = "[relay message #5 from user]\ndo 5";
    let line = json!({"type": "user", "uuid": "u", "timestamp": stamp, "origin": {"kind": "human"}, "message": {"content": text}});
    terminal.grown(&format!("{line}\n"));
    assert_eq!(
        terminal.ended(Some(5)).as_deref(),
        Some("Completed Quick."),
        "{:?}",
        terminal.signals
    );
}

#[test]
fn a_text_that_left_no_trace_is_sent_again_and_one_that_waits_is_not() {
    let mut terminal = Terminal::ready();
    terminal.event("Notification", json!({"notification_type": "idle_prompt"}));
    terminal.deliver(5, true, false);
    terminal.pass(16_000);
    assert_eq!(acts(&terminal).matches("paste").count(), 2, "{}", acts(&terminal));
    // Where nothing ever tells anything, sent again it would be said twice.
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    terminal.status("busy");
    terminal.shown = BUSY.into();
    terminal.pass(2000);
    terminal.shown = EMPTY.into();
    terminal.status("idle");
    terminal.pass(60_000);
    assert_eq!(acts(&terminal).matches("paste").count(), 1, "{}", acts(&terminal));
    assert!(terminal.taken(5) && terminal.ended(Some(5)).is_some(), "{:?}", terminal.signals);
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    let line = json!({"type": "queue-operation", "operation": "enqueue", "content": "[relay message #5 from user]\ndo 5"});
    terminal.grown(&format!("{line}\n"));
    terminal.status("busy");
    terminal.pass(60_000);
    assert_eq!(acts(&terminal).matches("paste").count(), 1, "{}", acts(&terminal));
}

#[test]
fn agents_go_by_the_socket_and_refusals_are_heard() {
    let mut terminal = Terminal::ready();
    let delivery = terminal.deliver(5, false, false);
    assert_eq!(acts(&terminal), "post [relay message #5 from web]");
    terminal.mail(&json!({"type": "control", "action": "peer_message_status", "status": "dropped", "drop_reason": "rate-limited", "orig_msg_id": delivery.key}).to_string());
    terminal.pass(1000);
    assert_eq!(acts(&terminal).matches("post").count(), 1, "it was told to be slower");
    terminal.pass(6000);
    assert_eq!(acts(&terminal).matches("post").count(), 2);
    terminal.mail(
        &json!({"action": "peer_message_status", "status": "expired", "status_detail": "refused", "orig_msg_id": delivery.key}).to_string(),
    );
    terminal.pass(1000);
    assert!(
        acts(&terminal).ends_with("paste [relay message #5 from web], press Enter"),
        "{}",
        acts(&terminal)
    );
}

/// A text of the system is no word of a person: it goes by the socket, and whoever asked is told
/// when it has arrived.
#[test]
fn what_is_injected_is_told_when_it_arrived() {
    let answered = |terminal: &Terminal, verb: VerbNumber| {
        terminal.signals.iter().find_map(|signal| match signal {
            SessionEvent::Answered { verb: found, result } if *found == verb => {
                Some(result.clone())
            }
            _ => None,
        })
    };
    let inject = |person: bool| Verb::Inject {
        text: "[relay message #0 from system]\n@/etc/passwd".into(),
        person,
    };
    let mut terminal = Terminal::ready();
    let verb = terminal.verb(inject(false));
    terminal.pass(100);
    assert_eq!(
        (acts(&terminal).as_str(), answered(&terminal, verb)),
        ("post [relay message #0 from system]", None)
    );
    terminal.prompt_entry("[relay message #0 from system]\n@ /etc/passwd", "peer");
    assert!(matches!(answered(&terminal, verb), Some(Ok(_))));
    // During a turn it waits; an interrupt drops it, and says so.
    terminal.status("busy");
    terminal.shown = BUSY.into();
    let verb = terminal.verb(inject(false));
    terminal.pass(5000);
    assert_eq!(answered(&terminal, verb), None);
    terminal.verb(Verb::Interrupt);
    assert!(matches!(answered(&terminal, verb), Some(Err(why)) if why.contains("interrupt")));
    let mut terminal = Terminal::ready();
    terminal.verb(inject(true));
    terminal.pass(100);
    assert!(acts(&terminal).starts_with("paste"), "{}", acts(&terminal));
}

/// What a person at the terminal refuses is not said in his own name then.
#[test]
fn a_message_that_was_refused_is_not_typed_instead() {
    let mut terminal = Terminal::ready();
    let delivery = terminal.deliver(5, false, false);
    let line = |status: &str| {
        json!({"type": "control", "action": "peer_message_status", "status": status, "orig_msg_id": delivery.key.clone()}).to_string()
    };
    terminal.mail(&line("held"));
    terminal.mail(&line("denied"));
    terminal.pass(30_000);
    assert_eq!(acts(&terminal), "post [relay message #5 from web]");
    assert!(
        !terminal.taken(5)
            && terminal.has(|signal| matches!(
                signal,
                SessionEvent::Refused { batch: BatchNumber(5), .. }
            )),
        "{:?}",
        terminal.signals
    );
}

#[test]
fn without_a_terminal_people_go_by_the_socket_too_and_without_both_a_monitor_names_it() {
    let mut terminal = Terminal::ready_with(start(false), None);
    terminal.deliver(5, true, false);
    assert_eq!(acts(&terminal), "post [relay message #5 from user]");
    let mut bare = start(false);
    (bare.mailbox, bare.socket) = (None, None);
    let mut terminal = Terminal::ready_with(bare, None);
    terminal.deliver(5, true, false);
    assert!(
        terminal.has(|signal| matches!(signal, SessionEvent::Announce { batch: BatchNumber(5) }))
    );
    terminal.hook(Ticket(0), "fetched", json!({"ids": [5]}));
    assert!(terminal.taken(5));
}

#[test]
fn urgent_messages_join_the_turn_and_others_wait() {
    let mut terminal = Terminal::ready();
    terminal.event("UserPromptSubmit", json!({"prompt": "typed"}));
    terminal.status("busy");
    terminal.shown = BUSY.into();
    terminal.deliver(5, true, false);
    terminal.pass(3000);
    assert_eq!(acts(&terminal), "");
    terminal.deliver(6, true, true);
    terminal.pass(200);
    // Never typed: a dialog could open just before our Enter.
    assert_eq!(acts(&terminal), "post [relay message #6 from user]");
    let line = json!({"type": "attachment", "attachment": {"type": "queued_command", "prompt": "[relay message #6 from user]\ndo 6", "source_uuid": "s", "origin": {"kind": "human"}}});
    terminal.grown(&format!("{line}\n"));
    assert!(terminal.taken(6));
}

#[test]
fn the_record_decides_after_a_restart() {
    let fates = |text: &str| {
        let mut start = start(true);
        (start.resumes, start.transcript) = (true, Some("/p/s.jsonl".into()));
        let resume = Resume { session: "s".into(), evidence_for: vec![trace(5), trace(6)] };
        let mut terminal = Terminal::new(start, Some(resume));
        terminal.grown(text);
        terminal.input(agent_relay::core::session::Input::CaughtUp);
        terminal.status("idle");
        terminal.pass(500);
        terminal.signals.iter().find_map(|signal| match signal {
            SessionEvent::Opened(opened) => Some(opened.how.clone()),
            _ => None,
        })
    };
    let line = |id: u64| {
        format!(
            "{}\n",
            json!({"type": "user", "uuid": "u", "message": {"content": format!("[relay message #{id} from user]\ndo {id}")}})
        )
    };
    assert_eq!(
        fates(""),
        Some(OpenMode::Loaded(vec![DeliveryOutcome::Unseen, DeliveryOutcome::Unseen]))
    );
    assert_eq!(
        fates(&line(5)),
        Some(OpenMode::Loaded(vec![DeliveryOutcome::Unanswered, DeliveryOutcome::Unseen]))
    );
    let torn = format!("{}{{\"type\":\"user\",\"mess", line(5));
    assert_eq!(
        fates(&torn),
        Some(OpenMode::Loaded(vec![DeliveryOutcome::Unanswered, DeliveryOutcome::Unseen])),
        "a torn last line is no line"
    );
}
