//! Whole orders of events, as they were seen, and with pieces lost, late or doubled.

use agent_relay::core::ids::{BatchNumber, Ticket, VerbNumber};
use agent_relay::core::session::{
    Decision, DeliveryOutcome, Input, OpenMode, Resume, SessionEvent, TurnEnd, Verb,
};
use serde_json::{Value, json};

use crate::terminal::{EMPTY, Terminal, start, trace};

const BUSY: &str = "· Thinking… (2s · ↓ 3 tokens)\n────────────\n\u{276f}\u{a0}\n────────────\n  ⏸ manual mode on · esc to interrupt\n";
const PERMISSION: &str = "────────────\n Bash command\n Do you want to proceed?\n \u{276f} 1. Yes\n   4. No\n\n Esc to cancel · Tab to amend\n";

fn acts(terminal: &Terminal) -> String {
    terminal.acts.join(", ")
}

/// A message of a person is pasted, seen in the box, submitted, proven and answered.
fn delivered(hook: bool, stop: bool) -> Terminal {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user], press Enter");
    terminal.status("busy");
    terminal.shown = BUSY.into();
    if hook {
        terminal.event(
            "UserPromptSubmit",
            json!({"prompt": "\n\n<pasted_content id=\"f\">\n[relay message #5 from user]\ndo 5\n</pasted_content id=\"f\">\n"}),
        );
        assert!(terminal.taken(5));
    }
    terminal.pass(150);
    terminal.prompt_entry("[relay message #5 from user]\ndo 5", "human");
    assert!(terminal.taken(5));
    terminal.pass(400);
    terminal.shown = EMPTY.into();
    if stop {
        terminal.event("Stop", json!({"last_assistant_message": "Done.", "background_tasks": []}));
    }
    terminal.pass(30);
    terminal.status("idle");
    terminal.pass(100);
    let answer = json!({"type": "assistant", "uuid": "x", "message": {"id": "m", "model": "m", "stop_reason": "end_turn", "content": [{"type": "text", "text": "Done."}]}});
    terminal.grown(&format!("{answer}\n"));
    terminal.pass(2000);
    terminal
}

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

/// Seen under load: before the proof is on disk, a registry that lags has made us believe in
/// another turn.
#[test]
fn a_proof_from_before_the_end_is_not_taken_by_the_turn_after_it() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    let prompted = terminal.now.wall.0;
    terminal.status("busy");
    terminal.pass(50);
    terminal.event("Stop", json!({"last_assistant_message": "Quick."}));
    terminal.pass(400);
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
    let secs = prompted / 1000;
    let stamp = format!(
        "2026-11-18T{:02}:{:02}:{:02}.{:03}Z",
        secs / 3600 % 24,
        secs / 60 % 60,
        secs % 60,
        prompted % 1000
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
fn nothing_is_typed_while_a_dialog_is_open() {
    let mut terminal = Terminal::ready();
    terminal.shown = PERMISSION.into();
    terminal.deliver(5, true, false);
    terminal.pass(5000);
    assert_eq!(acts(&terminal), "");
    // It opens just as the text is pasted: Enter is never pressed.
    terminal.shown = EMPTY.into();
    terminal.pass(500);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user]");
    terminal.screen(PERMISSION);
    terminal.pass(2000);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user]");
    terminal.screen(EMPTY);
    terminal.pass(2000);
    // What was swallowed might still come up: it is wiped first.
    let wiped = "paste [relay message #5 from user], press C-e, press C-u, press C-u, press C-u, press C-u, press C-k, \
                 paste [relay message #5 from user], press Enter";
    assert_eq!(acts(&terminal), wiped);
}

#[test]
fn a_draft_is_put_away_and_a_second_one_is_waited_for() {
    let mut terminal = Terminal::ready();
    terminal.shown = EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}my draft");
    terminal.deliver(5, true, false);
    terminal.pass(200);
    assert_eq!(acts(&terminal), "press C-s, paste [relay message #5 from user], press Enter");
    let mut terminal = Terminal::ready();
    terminal.shown =
        format!("  · draft stashed\n{}", EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}another"));
    terminal.deliver(5, true, false);
    terminal.pass(30_000);
    assert_eq!(acts(&terminal), "", "stashing it would lose the first");
    terminal.shown = EMPTY.into();
    terminal.pass(1000);
    assert!(acts(&terminal).ends_with("press Enter"));
}

#[test]
fn an_enter_that_was_lost_is_pressed_again() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    terminal.shown = EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}[relay message #5 from user]");
    terminal.input(agent_relay::core::session::Input::ScreenChanged);
    terminal.pass(4000);
    assert!(acts(&terminal).matches("press Enter").count() >= 2, "{}", acts(&terminal));
    assert_eq!(acts(&terminal).matches("paste").count(), 1, "{}", acts(&terminal));
}

/// Its Enter is eaten again and again, or the text given back: whoever sent it is told, and the
/// next one has its turn.
#[test]
fn a_text_that_stays_in_the_box_is_given_up_at_last() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.deliver(6, true, false);
    terminal.pass(100);
    for _ in 0..200 {
        if !terminal.has(|signal| matches!(signal, SessionEvent::Refused { .. })) {
            terminal.shown =
                EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}[relay message #5 from user]");
        }
        terminal.pass(300);
    }
    assert!(terminal.has(
        |signal| matches!(signal, SessionEvent::Refused { batch: BatchNumber(5), why, .. } if why.contains("stays in its input box"))
    ));
    let all = acts(&terminal);
    let (first, rest) = all.split_once("paste [relay message #6").expect("the next one");
    assert_eq!(
        (first.matches("press Enter").count(), first.matches("paste").count()),
        (3, 1),
        "{all}"
    );
    assert!(rest.contains("press Enter"));
}

/// An Enter that a dialog may have eaten is pressed again when the dialog is gone, not only right
/// after it.
#[test]
fn a_dialog_only_delays_the_enter() {
    let mut terminal = Terminal::ready();
    terminal.deliver(5, true, false);
    terminal.pass(100);
    terminal.screen(PERMISSION);
    terminal.pass(6000);
    assert_eq!(acts(&terminal).matches("press Enter").count(), 1);
    terminal.screen(&EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}[relay message #5 from user]"));
    terminal.pass(1000);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user], press Enter, press Enter");
}

/// A program that draws nothing for seconds (swap, a busy machine) gets the text once.
#[test]
fn a_slow_program_is_waited_for() {
    let mut terminal = Terminal::ready();
    terminal.frozen = true;
    terminal.deliver(5, true, false);
    terminal.pass(12_000);
    assert_eq!(acts(&terminal), "paste [relay message #5 from user]");
    terminal.frozen = false;
    terminal.screen(&EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}[relay message #5 from user]"));
    assert_eq!(acts(&terminal), "paste [relay message #5 from user], press Enter");
}

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

/// Seen in a long run: the file says busy when the turn that it means is over, and its idle is
/// older than our belief.
#[test]
fn a_registry_that_lags_never_leaves_a_session_busy() {
    let mut terminal = delivered(true, true);
    terminal.signals.clear();
    let old = terminal.now.wall.0;
    terminal.pass(300);
    terminal.registry(&json!({"status": "busy", "sessionId": "00000000-0000-4000-8000-000000000000", "statusUpdatedAt": old}).to_string());
    terminal.pass(250);
    terminal
        .registry(&json!({"status": "idle", "sessionId": "00000000-0000-4000-8000-000000000000", "statusUpdatedAt": old + 1}).to_string());
    terminal.pass(6000);
    let last = terminal.signals.iter().rev().find(|signal| {
        matches!(signal, SessionEvent::TurnStarted | SessionEvent::TurnEnded { .. })
    });
    assert!(matches!(last, None | Some(SessionEvent::TurnEnded { .. })), "{:?}", terminal.signals);
    // The same for a prompt hook that comes twice.
    terminal.event("UserPromptSubmit", json!({"prompt": "again"}));
    terminal.pass(6000);
    let last = terminal.signals.iter().rev().find(|signal| {
        matches!(signal, SessionEvent::TurnStarted | SessionEvent::TurnEnded { .. })
    });
    assert!(matches!(last, Some(SessionEvent::TurnEnded { .. })), "{:?}", terminal.signals);
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

fn asked(terminal: &mut Terminal, ticket: Ticket) -> String {
    terminal.hook(
        ticket,
        "permission-request",
        json!({"hook_event_name": "PermissionRequest", "tool_name": "Bash", "tool_input": {"command": "x"}}),
    );
    let id = terminal.signals.iter().rev().find_map(|signal| match signal {
        SessionEvent::ApprovalOpened(approval) => Some(approval.id.clone()),
        _ => None,
    });
    id.expect("an approval")
}

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
            SessionEvent::OpenFailed { reason, permanent } => Some((reason.clone(), *permanent)),
            _ => None,
        });
        assert!(
            failed.as_ref().is_some_and(|(reason, permanent)| reason.contains(word) && *permanent),
            "{name}: {failed:?}"
        );
    }
}

#[test]
fn an_old_version_is_refused() {
    let mut terminal = Terminal::new(start(true), None);
    terminal.registry(&json!({"status": "idle", "version": "2.0.1"}).to_string());
    terminal.pass(1000);
    assert!(terminal.has(|signal| matches!(signal, SessionEvent::OpenFailed { reason, permanent: true } if reason.contains("update it"))));
    // One that has no registry file says so on its screen; the tested one says nothing wrong.
    let recorded = include_str!("../fixtures/claude/panes/after-clear.txt");
    for (banner, refused) in
        [(recorded.replace("v2.1.329", "v2.0.14"), true), (recorded.to_string(), false)]
    {
        assert!(banner.contains("Claude Code v2."));
        let mut terminal = Terminal::new(start(true), None);
        terminal.screen(&banner);
        terminal.pass(5000);
        let told = |signal: &SessionEvent| matches!(signal, SessionEvent::OpenFailed { reason, permanent: true } if reason.contains("update it"));
        assert_eq!(terminal.has(told), refused);
    }
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

/// A message that quotes a dialog, or a status line, changes nothing.
#[test]
fn what_the_conversation_quotes_is_not_believed() {
    let mut terminal = Terminal::ready();
    for quoted in [
        "Unable to connect to Anthropic services",
        "Select login method",
        "Held message from another session\n \u{276f} Deny — drop it",
        "* Compacting conversation… (2s)",
    ] {
        terminal.acts.clear();
        terminal.shown = format!(
            "\u{276f} {quoted}\n{}",
            EMPTY.replace("manual mode on", "bypass permissions on")
        );
        let id = 50 + quoted.len() as u64;
        terminal.deliver(id, true, false);
        terminal.pass(1000);
        assert!(acts(&terminal).ends_with("press Enter"), "{quoted}: {}", acts(&terminal));
        terminal.event(
            "UserPromptSubmit",
            json!({"prompt": format!("[relay message #{id} from user]")}),
        );
        terminal.event("Stop", json!({"last_assistant_message": "x"}));
        terminal.pass(300);
    }
}

/// Only what begins as our texts do is ours; anything else is a person's draft, also one that looks
/// like an old command.
#[test]
fn a_persons_draft_is_never_wiped() {
    let mut terminal = Terminal::ready();
    terminal.verb(Verb::Compact { instructions: None });
    terminal.pass(100);
    terminal.event("PreCompact", json!({"trigger": "manual"}));
    terminal.event("PostCompact", json!({"trigger": "manual"}));
    terminal.pass(500);
    for draft in
        ["/compact keep the API part", "[Pasted text #1 +9 lines]", "\u{65e5}\u{672c}\u{8a9e}"]
    {
        terminal.acts.clear();
        terminal.shown = EMPTY.replace("\u{276f}\u{a0}", &format!("\u{276f}\u{a0}{draft}"));
        terminal.input(agent_relay::core::session::Input::ScreenChanged);
        terminal.pass(500);
        assert_eq!(acts(&terminal), "", "{draft}");
        terminal.deliver(70 + draft.len() as u64, true, false);
        terminal.pass(300);
        assert!(acts(&terminal).starts_with("press C-s, paste"), "{draft}: {}", acts(&terminal));
        terminal.event(
            "UserPromptSubmit",
            json!({"prompt": format!("[relay message #{} from user]", 70 + draft.len())}),
        );
        terminal.event("Stop", json!({"last_assistant_message": "x"}));
        terminal.shown = EMPTY.into();
        terminal.input(agent_relay::core::session::Input::ScreenChanged);
        terminal.pass(500);
    }
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
