//! The end of a turn: how it ended, what its answer is, and what goes on after it.

use serde_json::{Value, json};

use super::{StreamSession, Turn};
use crate::core::ids::BatchNumber;
use crate::core::session::{Mirror, SessionEvent, StartFault, TurnEnd};
use crate::provider::claude::refusal::refusal;
use crate::provider::reader::{Damage, whole};

/// Why a turn has failed whose end could not be read.
const UNREADABLE_END: &str = "what the session said of the end of the turn is unreadable";
/// The same, where its question could not be answered.
const UNANSWERABLE: &str = "the session asked for a permission that was unreadable";

/// What the program tells of the end of a turn.
#[derive(Clone, Copy)]
struct TurnResult<'a>(&'a Value, Damage);

impl<'a> TurnResult<'a> {
    fn text(self, at: &str) -> &'a str {
        self.0.pointer(at).and_then(Value::as_str).unwrap_or_default()
    }

    /// How the turn ended.
    fn end(self, turn: &Turn) -> TurnEnd {
        if turn.unanswerable {
            TurnEnd::Failed(UNANSWERABLE.into())
        } else if self.text("/terminal_reason").starts_with("aborted") {
            TurnEnd::Cancelled
        } else if self.0.get("is_error").and_then(Value::as_bool) == Some(true) {
            let error = turn.error.as_deref().filter(|text| !text.is_empty());
            TurnEnd::Failed(error.unwrap_or_else(|| self.text("/result")).to_string())
        } else if self.is_legible(turn) {
            TurnEnd::Completed
        } else {
            TurnEnd::Failed(UNREADABLE_END.into())
        }
    }

    /// Half of it says enough where it says that all went well, and the answer was heard before.
    fn is_legible(self, turn: &Turn) -> bool {
        self.1 != Damage::Broken
            || (self.0.get("is_error") == Some(&Value::Bool(false)) && !turn.last.is_empty())
    }

    /// Size of the context window, in tokens: the largest of the models that were used.
    fn window(self) -> Option<u64> {
        let models = self.0.get("modelUsage").and_then(Value::as_object)?;
        let sizes = models.values().filter_map(|usage| whole(usage.get("contextWindow")?));
        sizes.filter_map(|size| u64::try_from(size).ok()).max()
    }

    /// A command's own end says so.
    fn is_of_command(self) -> bool {
        self.0.get("local_command").is_some()
    }
}

impl StreamSession {
    pub(super) fn on_result(&mut self, frame: &Value, damage: Damage) {
        let result = TurnResult(frame, damage);
        // The same line twice ends one turn: the next one may have begun between.
        let id = result.text("/uuid");
        if !id.is_empty() && std::mem::replace(&mut self.last_result, id.to_string()) == id {
            return;
        }
        let Some(turn) = self.turn.take() else {
            if !self.open {
                let said = frame.pointer("/errors/0").and_then(Value::as_str);
                let reason = said.unwrap_or("the session ended before it began");
                let known = refusal(reason);
                let (reason, fault) = known.unwrap_or((reason.to_string(), StartFault::Passing));
                self.fail_open(reason, fault);
            }
            return;
        };
        self.window = result.window().unwrap_or(self.window);
        // Approvals stay open: the session has withdrawn its own before, so what is left was asked
        // by a subagent that goes on in the background.
        let end = result.end(&turn);
        let answer = self.answer_of(&turn, &end, result);
        // What introduced a tool that was interrupted was shown with it.
        let is_shown = turn.told > 0 && turn.told == turn.last.len();
        if !turn.is_command && !answer.trim().is_empty() && !is_shown {
            self.emit(SessionEvent::Mirror(Mirror {
                kind: "response",
                body: answer.clone(),
                label: None,
                status: None,
                turn: turn.number,
                key: None,
            }));
        }
        self.tell_context();
        self.emit(SessionEvent::Evidence("the session told the end of the turn".into()));
        let text = if matches!(end, TurnEnd::Failed(_)) { String::new() } else { answer };
        let batch = self.batch_of(&turn);
        self.emit(SessionEvent::TurnEnded { batch, end, text });
        if turn.is_command {
            // Another turn may have ended just before that of the command.
            if !result.is_of_command() && self.context_result.is_none() {
                return self.await_command();
            }
            self.finish_context_command(result.text("/result"));
        }
        self.finish_interrupt();
        self.go_on();
    }

    /// The line that the turn began with is over, and nothing that was read said so of the turn.
    pub(super) fn end_unreadable_turn(&mut self, uuid: &str) {
        let is_lost = |turn: &Turn| turn.has_lost_line && turn.opener.as_deref() == Some(uuid);
        if self.turn.as_ref().is_some_and(is_lost) {
            let end = json!({"is_error": true, "result": UNREADABLE_END, "local_command": true});
            self.on_result(&end, Damage::Broken);
        }
    }

    /// What was said last, or all; without any of it what the program names as the result.
    fn answer_of(&self, turn: &Turn, end: &TurnEnd, result: TurnResult<'_>) -> String {
        let said = if self.settings.capture_full { &turn.whole } else { &turn.last };
        if said.trim().is_empty() && *end == TurnEnd::Completed && !turn.is_command {
            result.text("/result").to_string()
        } else {
            said.clone()
        }
    }

    /// The batch that the turn was for.
    fn batch_of(&self, turn: &Turn) -> Option<BatchNumber> {
        if crate::planted::is("stolen-turn") {
            let mut sent = self.sent.values();
            let any = || sent.find_map(|line| line.delivery.as_ref().map(|of| of.batch));
            return turn.batch.or_else(any);
        }
        turn.batch
    }

    /// The command goes on waiting for its own end.
    fn await_command(&mut self) {
        self.begin_turn("the command waits");
        if let Some(turn) = &mut self.turn {
            turn.is_command = true;
        }
    }

    /// Use of the context, once for each count.
    fn tell_context(&mut self) {
        if self.window > 0 && self.tokens > 0 {
            let utilization = self.tokens as f64 / self.window as f64;
            let context = json!({
                "utilization": utilization, "lifecycleState": "active", "source": "api",
                "confidence": "reported", "usedTokens": self.tokens,
                "windowTokens": self.window, "model": self.model
            });
            self.tokens = 0;
            self.emit(SessionEvent::Context(context));
        }
    }
}
