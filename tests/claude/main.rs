//! Recordings of the real program through the session machines: every pane, every hook, every
//! transcript, and whole orders of events. What each must give stands beside the recordings;
//! `UPDATE_FIXTURES=1` writes it anew, to be read before it is kept.

#[path = "../common/damage.rs"]
mod damage;
mod damaged;
mod orders;
mod recorded;
mod stream;
mod terminal;

use agent_relay::core::ids::Ticket;
use std::path::{Path, PathBuf};

use agent_relay::core::session::{Screen, SessionEvent};
use agent_relay::provider::claude::screen::ScreenState;
use agent_relay::provider::claude::transcript::{self, Entry};
use terminal::Terminal;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/claude")
}

/// Files of a folder with an ending, by name.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(fixtures().join(folder)).expect("fixtures");
    let mut all: Vec<(String, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = name.strip_suffix(ending)?.to_string();
            Some((stem, std::fs::read_to_string(entry.path()).expect("reads")))
        })
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{folder}");
    all
}

/// Compares with what stands beside the recordings.
fn expect(name: &str, found: &str) {
    let path = fixtures().join(name);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&path, found).expect("writes");
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    for (at, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(found, wanted, "line {} of {name}", at + 1);
    }
    assert_eq!(found.lines().count(), wanted.lines().count(), "{name}");
}

fn short(text: &str) -> String {
    text.chars().take(100).collect::<String>().replace('\n', "\\n")
}

/// A signal in one line, without what differs from run to run.
fn line_of(signal: &SessionEvent) -> String {
    match signal {
        SessionEvent::Opened(opened) => {
            format!("opened {} how={:?} model={:?}", opened.agent, opened.how, opened.model)
        }
        SessionEvent::Mirror(m) => format!(
            "mirror {} {:?} turn={} key={} {:?}",
            m.kind,
            m.label,
            m.turn,
            m.key.is_some(),
            short(&m.body)
        ),
        SessionEvent::TurnEnded { batch, end, text } => {
            format!("turn ended batch={batch:?} {end:?} {:?}", short(text))
        }
        SessionEvent::ApprovalOpened(approval) => {
            let keys: Vec<&String> = approval.detail.keys().collect();
            format!(
                "approval {} {:?} {:?} {keys:?}",
                approval.kind, approval.title, approval.options
            )
        }
        SessionEvent::ApprovalClosed { reason, .. } => format!("approval closed: {reason}"),
        SessionEvent::Context(context) => {
            format!("context {} of {}", context["usedTokens"], context["windowTokens"])
        }
        SessionEvent::HookAnswer { ticket, answer } => {
            format!("hook {ticket} answered {}", short(&format!("{answer:?}")))
        }
        SessionEvent::Accepted { batch, evidence, .. } => format!("taken {batch}: {evidence}"),
        other => short(&format!("{other:?}")),
    }
}

#[test]
fn every_pane_is_read() {
    let mut table = String::new();
    for (name, text) in files("panes", ".txt") {
        let look = ScreenState::read(&Screen { text, ..Default::default() });
        let input = look.input.as_ref().map(|input| short(&format!("{input:?}")));
        table.push_str(&format!(
            "{name}: open={} busy={} dialog={:?} stashed={} retrying={:?} input={}\n",
            look.is_open(),
            look.busy,
            look.dialog,
            look.stashed,
            look.retrying.as_deref().map(short),
            input.unwrap_or_default()
        ));
    }
    expect("panes.looks", &table);
}

/// What must never be wrong, whatever the table says: nothing may be typed into a dialog, and a
/// turn is seen.
#[test]
fn panes_are_never_misjudged() {
    for (name, text) in files("panes", ".txt") {
        let look = ScreenState::read(&Screen { text, ..Default::default() });
        let dialog = [
            "dialog",
            "permission-prompt-bash",
            "permission-hook",
            "ask-user-question",
            "model-switch",
            "double-escape",
            "auto-mode",
            "held",
        ];
        let answered = ["answered", "escaped", "denied"];
        if dialog.iter().any(|word| name.contains(word))
            && !answered.iter().any(|word| name.contains(word))
        {
            assert!(!look.is_open(), "{name} is open to typing");
        }
        if name.starts_with("exited") || name.starts_with("startup") {
            assert!(!look.is_open(), "{name} is open to typing");
        }
        if name.starts_with("ready")
            || name.starts_with("after")
            || name.starts_with("idle")
            || name == "resumed"
        {
            assert!(look.is_open() && !look.busy, "{name} is idle");
        }
        if name.starts_with("busy") || name == "compacting" || name == "queued-message" {
            assert!(look.busy, "{name} is busy");
        }
    }
}

#[test]
fn every_hook_is_heard() {
    let mut table = String::new();
    for (name, text) in files("hooks", ".json") {
        let mut payload: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        if !name.starts_with("SessionStart") {
            // They were recorded in several sessions; another session's hooks are not heard.
            payload["session_id"] = serde_json::json!("00000000-0000-4000-8000-000000000000");
        }
        for during_turn in [false, true] {
            let mut terminal = Terminal::ready();
            if during_turn {
                terminal.hook(
                    Ticket(0),
                    "user-prompt-submit",
                    serde_json::json!({"hook_event_name": "UserPromptSubmit", "prompt": "x"}),
                );
                if name.starts_with("Notification") {
                    // Where the registry file says it too, it is nothing new.
                    terminal.input(agent_relay::core::session::Input::FileChanged {
                        path: "/home/user/.claude/sessions/7.json".into(),
                        text: None,
                    });
                }
                terminal.signals.clear();
            }
            let ticket =
                if name.starts_with("PermissionRequest") { Ticket(9) } else { Ticket::NOBODY };
            terminal.hook(ticket, "event", payload.clone());
            let lines: Vec<String> = terminal.signals.iter().map(line_of).collect();
            table.push_str(&format!(
                "{name} {}: {}\n",
                if during_turn { "busy" } else { "idle" },
                lines.join(" | ")
            ));
        }
    }
    expect("hooks.signals", &table);
}

#[test]
fn every_transcript_is_read() {
    let mut table = String::new();
    let mut all = files("transcripts", ".jsonl");
    all.extend(
        files("socket", ".jsonl").into_iter().map(|(name, text)| (format!("socket-{name}"), text)),
    );
    for (name, text) in all.into_iter().filter(|(name, _)| name != "print-stream-json") {
        for entry in text.lines().flat_map(|line| transcript::read(line.as_bytes())) {
            let line = match entry {
                Entry::Prompt(prompt) => {
                    format!(
                        "prompt human={} joined={} uuid={} {:?}",
                        prompt.human,
                        prompt.joined,
                        prompt.uuid.len(),
                        short(&prompt.text)
                    )
                }
                Entry::Answer(answer) => format!(
                    "answer {} ends={} error={} tokens={} {}",
                    answer.model,
                    answer.ends_turn(),
                    answer.is_error,
                    answer.tokens,
                    short(&format!("{:?}", answer.blocks))
                ),
                other => short(&format!("{other:?}")),
            };
            table.push_str(&format!("{name}: {line}\n"));
        }
    }
    expect("transcripts.entries", &table);
}

#[test]
fn hostile_bytes_are_an_ordinary_branch() {
    let mut rng = agent_relay::core::rng::Rng::new(7);
    for _ in 0..3000 {
        let bytes: Vec<u8> = (0..rng.below(120)).map(|_| rng.below(256) as u8).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        transcript::read(&bytes);
        ScreenState::read(&Screen { text: text.clone(), ..Default::default() });
        let mut terminal = Terminal::ready();
        terminal.grown(&format!(
            "{text}\n{{\"type\":\"user\",\"message\":5}}\n{{\"type\":\"assistant\",\"message\":{{\"content\":[{{\"type\":\"text\"}}]}}}}\n"
        ));
        terminal.registry(&text);
        terminal.mail(&text);
        terminal.screen(&text);
        terminal.hook(
            Ticket(3),
            &text,
            serde_json::json!({"hook_event_name": text, "tool_input": 5, "background_tasks": [5, {"type": "shell"}]}),
        );
    }
}
