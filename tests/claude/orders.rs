//! Whole orders of events, as they were seen, and with pieces lost, late or doubled.

mod approvals;
mod delivery;
mod sessions;
mod subagents;
mod turns;
mod typing;

use agent_relay::core::ids::{BatchNumber, Ticket, VerbNumber};
use agent_relay::core::session::{
    Decision, DeliveryOutcome, Input, OpenMode, Resume, SessionEvent, StartFault, TurnEnd, Verb,
};
use agent_relay::provider::launch::TerminalKeys;
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
