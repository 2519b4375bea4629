//! The other sources: the program's registry file, the transcript, the screen.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Boundary, TuiSession, Turn};
use crate::core::screen::plain;
use crate::core::session::{Output, Screen, TurnEnd};
use crate::core::time::{Now, sooner};
use crate::provider::claude::screen::{InputBox, ScreenState};
use crate::provider::claude::too_old;
use crate::provider::claude::transcript::{self, Entry};

/// What the program writes about itself in `sessions/<pid>.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Registry {
    status: String,
    waiting_for: String,
    pub session: String,
    pub version: String,
    pub socket: Option<String>,
    /// When the status changed, ms.
    at: i64,
}

impl Registry {
    fn read(text: &str) -> Option<Registry> {
        let record: Value = serde_json::from_str(text).ok()?;
        let text = |field: &str| record.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        Some(Registry {
            status: text("status"),
            waiting_for: text("waitingFor"),
            session: text("sessionId"),
            version: text("version"),
            socket: Some(text("messagingSocketPath")).filter(|path| path.starts_with('/')),
            at: record.get("statusUpdatedAt").and_then(Value::as_i64).unwrap_or(0),
        })
    }

    /// The session, as far as it says which.
    pub fn names(&self, session: &str) -> bool {
        self.session.is_empty() || self.session == session
    }

    /// At its prompt; a background shell or a monitor may work.
    pub fn is_idle(&self) -> bool {
        matches!(self.status.as_str(), "idle" | "shell")
    }

    fn is_waiting(&self) -> bool {
        self.status == "waiting"
    }

    /// Somebody must answer a dialog that has opened since that time (ms).
    pub fn waits_since(&self, at: i64) -> bool {
        self.is_waiting() && self.at >= at
    }
}

/// Lines of text at the top of the screen that hold the banner.
const BANNER_LINES: usize = 4;
/// The file's own clock against ours, ms.
const CLOCK_SLACK_MS: i64 = 2000;

/// A registry that still says busy this long after the end of a turn is right.
pub(super) const LAG: Duration = Duration::from_millis(200);

/// A capture of the screen is answered within a millisecond; one that was not by then is asked for again.
const LOOK_TIME: Duration = Duration::from_secs(5);

impl TuiSession {
    pub(super) fn on_registry(&mut self, now: Now, text: Option<&str>) {
        let Some(found) = text.and_then(Registry::read) else {
            if text.is_none() {
                self.registry = None;
            }
            return;
        };
        let before = self.registry.replace(found.clone());
        self.version = found.version.clone();
        if found.is_waiting() {
            self.answered = None;
        } else if before.as_ref().is_some_and(Registry::is_waiting) {
            self.answered_at_terminal(now, found.at);
            if self.sent.is_empty() {
                self.tell_delivery(None);
            }
            self.provider_state("", json!({"state": "running"}));
        }
        // A file that a killed process with the same pid has left says nothing of this one.
        if self.open || found.at == 0 || found.at >= self.born_at - CLOCK_SLACK_MS {
            self.on_session_id(now, &found.session, false);
        }
        if !self.open {
            self.look_soon(now, Duration::from_millis(10));
            return self.open_if_ready(now);
        }
        match found.status.as_str() {
            "idle" | "shell" => {
                if found.status == "idle" {
                    self.no_shells();
                }
                self.on_idle_witness(now, &found);
                self.next_item(now);
            }
            "" => {}
            // A dialog of the program's own, opened by a person: no turn, but nothing can be typed.
            "waiting" if self.turn.is_none() && found.waiting_for.contains("dialog") => {
                self.tell_delivery(Some("a dialog is open in the terminal: `agent-relay attach` shows it"));
            }
            _ => {
                self.idle_since = None;
                // Just after a turn the file may still tell of that one (seen: it is written with a delay).
                let late = self.ended.as_ref().is_some_and(|ended| now.wall.0 - ended.at < LAG.as_millis() as i64);
                if !late || !self.sent.is_empty() {
                    self.begin_turn(now, "the session registry says busy");
                } else if self.turn.is_none() {
                    self.doubt = Some(now.tick + LAG);
                }
                if found.is_waiting() {
                    self.provider_state("waiting", json!({"state": "blocked", "reason": "waitingOnApproval", "detail": found.waiting_for}));
                }
            }
        }
    }

    /// The registry says idle although a turn is believed to run.
    fn on_idle_witness(&mut self, now: Now, registry: &Registry) {
        let Some(turn) = &self.turn else { return };
        // An idle from before the turn: the program has not noticed it yet, or there is none.
        let old = registry.at < turn.began;
        if old && crate::planted::is("registry-lag") {
            self.idle_since = None;
            return;
        }
        if turn.interrupted && !old {
            return self.end_turn(now, TurnEnd::Cancelled, None, "the session registry says idle after an interrupt");
        }
        self.idle_since.get_or_insert(if old { now.tick + super::HOOK_LAG } else { now.tick });
        self.look_soon(now, Duration::from_millis(500));
    }

    /// Registry and screen have agreed for long enough: no hook will come.
    pub(super) fn end_by_witness(&mut self, now: Now) {
        self.idle_since = None;
        let agree = self.registry.as_ref().is_none_or(Registry::is_idle) && self.look.as_ref().is_none_or(|look| !look.busy);
        let Some(turn) = &self.turn else { return };
        if !agree {
            self.idle_since = Some(now.tick);
            return self.look_soon(now, Duration::ZERO);
        }
        let end = match turn {
            Turn { interrupted: true, .. } => TurnEnd::Cancelled,
            Turn { answered: true, .. } | Turn { local: true, .. } => TurnEnd::Completed,
            // The prompt stands in the box again although nobody interrupted: a hook of the session's owner blocked it.
            turn if !turn.ours.is_empty() && self.box_holds(&turn.ours) => {
                TurnEnd::Failed("the session gave the prompt back: a hook of its own blocked it".into())
            }
            _ => TurnEnd::Cancelled,
        };
        self.end_turn(now, end, None, "the session registry and the screen say idle");
    }

    fn box_holds(&self, first: &str) -> bool {
        let Some(InputBox::Text(text)) = self.look.as_ref().and_then(|look| look.input.as_ref()) else { return false };
        let text = transcript::squeezed(text);
        text.starts_with("[Pastedtext") || first.starts_with(&text.chars().take(40).collect::<String>()) && !text.is_empty()
    }

    /// The registry said busy just after the end of a turn, and still does.
    pub(super) fn settle_doubt(&mut self, now: Now) {
        if self.doubt.take_if(|at| *at <= now.tick).is_some() && self.registry.as_ref().is_some_and(|registry| !registry.is_idle()) {
            self.begin_turn(now, "the session registry says busy");
        }
    }

    // ---- transcript

    pub(super) fn on_grown(&mut self, now: Now, bytes: &[u8]) {
        self.heard = true;
        let mut entries = Vec::new();
        self.lines.push(bytes, |line| entries.extend(transcript::read(line)));
        for entry in entries {
            match &mut self.evidence {
                Some(evidence) => evidence.take(&entry),
                None => self.on_entry(now, entry),
            }
        }
    }

    fn on_entry(&mut self, now: Now, entry: Entry) {
        match entry {
            Entry::Prompt(prompt) => self.on_prompt_entry(now, &prompt),
            Entry::Answer(answer) => self.on_answer(&answer),
            Entry::Interrupted { at } => {
                // It is written a little late; what began meanwhile is another turn.
                if let Some(turn) = self.turn.as_mut().filter(|turn| at >= turn.began) {
                    turn.interrupted = true;
                    if let Some(registry) = self.registry.clone().filter(Registry::is_idle) {
                        self.on_idle_witness(now, &registry);
                    }
                }
            }
            Entry::Compacted { trigger } if trigger == "manual" => self.crossed(Boundary::Compact, Ok(())),
            Entry::Enqueued(text) => self.on_enqueued(&text),
            Entry::TurnOver { at } if self.turn.as_ref().is_none_or(|turn| at < turn.began) => {}
            Entry::TurnOver { .. } => {
                let idle = self
                    .registry
                    .as_ref()
                    .is_some_and(|registry| registry.is_idle() && self.turn.as_ref().is_some_and(|turn| registry.at >= turn.began));
                if idle && self.turn.as_ref().is_some_and(|turn| turn.answered) {
                    self.end_turn(now, TurnEnd::Completed, None, "the transcript tells the end of the turn");
                }
            }
            Entry::Results { calls, at } => self.on_results(&calls, at),
            Entry::Compacted { .. } => {}
        }
    }

    // ---- screen

    pub(super) fn look_soon(&mut self, now: Now, pause: Duration) {
        if self.start.terminal && !self.over {
            self.look_due = sooner(self.look_due, Some(now.tick + pause));
        }
    }

    pub(super) fn look_now(&mut self, now: Now) {
        // A capture that was lost must not be the last one.
        let lost = self.looked_at.is_some_and(|at| now.tick - at >= LOOK_TIME);
        if self.start.terminal && (!self.looking || lost) && !self.over {
            self.looking = true;
            self.looked_at = Some(now.tick);
            self.out.push(Output::Look);
        }
    }

    pub(super) fn on_screen(&mut self, now: Now, screen: &Screen) {
        self.looking = false;
        self.last_text = plain(&screen.text);
        if screen.dead {
            return;
        }
        let look = ScreenState::read(screen);
        if !self.open {
            // Versions before the registry file say who they are in their banner.
            let banner = self.registry.is_none().then(|| banner_version(&self.last_text)).flatten();
            if let Some(reason) = banner.and_then(too_old) {
                return self.fail_open(reason, true);
            }
            let known = self.dialog_since.map(|(dialog, _)| dialog);
            if look.dialog != known {
                self.dialog_since = look.dialog.map(|dialog| (dialog, now.tick));
            }
        }
        if let Some(line) = look.retrying.as_ref().filter(|_| look.busy) {
            let detail: String = line.chars().take(200).collect();
            // The seconds count down; only another attempt is news.
            let attempt = detail.split("attempt").nth(1).unwrap_or_default().trim().to_string();
            if self.attempt != attempt {
                self.turn.iter_mut().for_each(|turn| turn.state = "");
                self.attempt = attempt;
            }
            self.provider_state("retrying", json!({"state": "retrying", "detail": detail}));
        } else if self.turn.as_ref().is_some_and(|turn| turn.state == "retrying") {
            self.provider_state("", json!({"state": "running"}));
        }
        let busy = look.busy;
        let shown = look.is_open();
        if look.input == Some(InputBox::Empty) {
            (self.left_ours, self.given_back) = (false, None);
        }
        self.look = Some(look);
        if !self.open {
            return self.open_if_ready(now);
        }
        // Without its registry the screen is the only source beside the hooks.
        if self.registry.is_none() {
            if busy {
                self.begin_turn(now, "the screen shows a running turn");
            } else if self.turn.is_some() && shown {
                self.idle_since.get_or_insert(now.tick);
            }
        } else if busy && self.idle_since.is_some() {
            self.idle_since = Some(now.tick);
        }
        self.tidy_box(now);
        self.enter_again(now);
        self.step_sending(now);
        self.next_item(now);
    }
}

/// The version in the banner at the top of the screen.
fn banner_version(text: &str) -> Option<&str> {
    const BANNER: &str = "Claude Code v";
    let head = text.lines().filter(|line| !line.trim().is_empty()).take(BANNER_LINES);
    head.filter_map(|line| line.split_once(BANNER)).find_map(|(_, rest)| rest.split_whitespace().next())
}

/// The sentence that helps, for last words that tell a refused start.
pub(super) fn refusal(text: &str) -> Option<(String, bool)> {
    let known: [(&str, &str, bool); 6] = [
        (
            "cannot be used with root/sudo",
            "bypass mode is not possible as root: run as another user, choose --approval guarded, or set IS_SANDBOX=1 in a container",
            true,
        ),
        ("No conversation found with session ID", "the conversation is gone", false),
        ("is already in use", "the session id is in use by another Claude Code; end that one", false),
        ("Unable to connect to Anthropic services", "it cannot reach its vendor: check the network, proxies and ANTHROPIC_BASE_URL", false),
        ("Invalid session ID", "it refuses the session id", true),
        ("unknown option", "it does not know an option; its version may be too old (`claude --version`)", true),
    ];
    let (_, cure, permanent) = known.iter().find(|(mark, ..)| text.contains(mark))?;
    Some((format!("Claude Code refused to start: {cure}"), *permanent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_read_leniently() {
        let text = r#"{"status":"shell","sessionId":"s","version":"2.1.329","messagingSocketPath":"/t/1.sock","statusUpdatedAt":5}"#;
        let registry = Registry::read(text).expect("reads");
        assert!(registry.is_idle() && registry.at == 5 && registry.socket.as_deref() == Some("/t/1.sock"));
        assert_eq!(Registry::read("{\"status\":7}"), Some(Registry::default()));
        assert_eq!(Registry::read("half"), None);
    }
}
