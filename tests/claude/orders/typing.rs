//! What is typed at the terminal, and when it is not.

use super::*;

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

const SHELL_MODE: &str = "────────────\n!\u{a0}\n────────────\n  ! for shell mode\n";

fn waits_for(terminal: &Terminal) -> Option<String> {
    terminal.signals.iter().rev().find_map(|signal| match signal {
        SessionEvent::Fact { name: "delivery", value } => {
            Some(value.as_str().unwrap_or_default().to_string())
        }
        _ => None,
    })
}

/// A person has left the box in its shell mode, where our text would run as a command.
#[test]
fn the_shell_mode_of_an_empty_box_is_left() {
    let mut terminal = Terminal::ready();
    terminal.screen(SHELL_MODE);
    terminal.deliver(5, true, false);
    terminal.pass(10);
    assert_eq!(acts(&terminal), "press BSpace");
    terminal.screen(EMPTY);
    terminal.pass(200);
    assert!(
        acts(&terminal).ends_with("paste [relay message #5 from user], press Enter"),
        "{}",
        acts(&terminal)
    );
}

#[test]
fn a_shell_command_of_a_person_is_left_alone_and_told_of() {
    let mut terminal = Terminal::ready();
    terminal.screen(&SHELL_MODE.replace("!\u{a0}", "!\u{a0}ls -la"));
    terminal.deliver(5, true, false);
    terminal.pass(5000);
    assert_eq!(acts(&terminal), "");
    assert!(waits_for(&terminal).is_some_and(|why| why.contains("shell command")));
    terminal.screen(EMPTY);
    terminal.pass(1000);
    assert!(acts(&terminal).ends_with("press Enter"), "{}", acts(&terminal));
    assert_eq!(waits_for(&terminal).as_deref(), Some(""));
    // It comes between our look and our paste: then no Enter, and our text is taken out again.
    let mut terminal = Terminal::ready();
    terminal.frozen = true;
    terminal.deliver(6, true, false);
    terminal.pass(50);
    let shown = "!\u{a0}[relay message #6 from user] do 6";
    terminal.screen(&SHELL_MODE.replace("!\u{a0}", shown));
    terminal.pass(10_000);
    assert!(!acts(&terminal).contains("Enter"), "{}", acts(&terminal));
    assert!(acts(&terminal).contains("press C-u"), "{}", acts(&terminal));
}

#[test]
fn keys_that_the_user_has_bound_are_the_ones_that_are_pressed() {
    let mut start = start(true);
    start.keys = TerminalKeys { submit: "C-g", cancel: "C-q", stash: "C-t" };
    let mut terminal = Terminal::ready_with(start, None);
    terminal.screen(&EMPTY.replace("\u{276f}\u{a0}", "\u{276f}\u{a0}a draft"));
    terminal.deliver(5, true, false);
    terminal.pass(10);
    terminal.screen(EMPTY);
    terminal.pass(100);
    assert_eq!(acts(&terminal), "press C-t, paste [relay message #5 from user], press C-g");
    terminal.event("UserPromptSubmit", json!({"prompt": "[relay message #5 from user]\ndo 5"}));
    terminal.verb(Verb::Interrupt);
    assert!(acts(&terminal).ends_with("press C-q"), "{}", acts(&terminal));
}

#[test]
fn a_paste_that_the_terminal_refuses_is_told() {
    let mut terminal = Terminal::ready();
    terminal.frozen = true;
    terminal.deliver(5, true, false);
    terminal.pass(10);
    terminal.input(Input::TerminalFailed("No such file: /x".into()));
    assert!(waits_for(&terminal).is_some_and(|why| why.contains("No such file: /x")));
}
