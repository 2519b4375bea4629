//! Turns: the next prompt, its end, and interrupts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{AcpSession, PendingCancel, Request, Stage};
use crate::core::ids::{BatchNumber, VerbNumber};
use crate::core::session::{Mirror, SessionEvent, TurnEnd};
use crate::core::time::Now;
use crate::provider::jsonrpc::{self, RpcError};
use crate::provider::text::one_line;

/// A turn must end this long after `session/cancel`, else the interrupt counts as failed.
pub(super) const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// How a turn ends, in the words of the protocol.
pub(super) const STOP_REASONS: [&str; 5] =
    ["end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled"];

/// A text that waits until no turn runs.
#[derive(Debug)]
pub(super) struct QueuedPrompt {
    /// Batch and key of a delivery; none: a text of the runner.
    pub batch: Option<(BatchNumber, String)>,
    pub text: String,
}

/// A turn: one open `session/prompt`. Nothing else tells reliably that an agent is busy.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub number: u64,
    /// Batch and key of the delivery that started it.
    pub batch: Option<(BatchNumber, String)>,
    /// That the agent has the prompt was told.
    pub taken: bool,
    /// Text of the current message, and of all messages.
    pub message: String,
    pub whole: String,
    pub thought: String,
    pub message_id: Option<String>,
    pub cancelled: bool,
    /// It was cancelled since nobody could answer what the agent asked.
    pub unanswerable: bool,
    /// Calls of tools by the agent's ids.
    pub tools: BTreeMap<String, Tool>,
    /// Whether its messages have ids, and what was said without one since.
    pub identified: bool,
    pub notice: String,
    /// The plan that was shown last.
    pub plan: String,
    /// The agent's engine failed, and what it said.
    pub engine_failed: bool,
    pub engine_error: String,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Tool {
    pub title: String,
    pub kind: String,
    pub shown: bool,
}

impl Tool {
    /// For people to see, with how the call stands.
    pub fn mirror(&self, turn: u64, status: &str) -> SessionEvent {
        SessionEvent::Mirror(Mirror {
            kind: "tool",
            body: self.title.clone(),
            label: Some(self.kind.clone()),
            status: Some(status.into()),
            turn,
            key: None,
        })
    }
}

impl Turn {
    /// A message or a thought has begun and is not shown yet.
    pub fn has_text(&self) -> bool {
        !self.message.is_empty() || !self.thought.is_empty()
    }

    /// How it ended, by the reply to its prompt. `text` is its answer.
    fn end(&self, text: &str, result: Result<Value, RpcError>) -> TurnEnd {
        match result {
            _ if self.unanswerable => {
                let why = "the agent asked for a permission that was unreadable";
                TurnEnd::Failed(why.into())
            }
            // Any reply after our cancel is a cancel: not every agent says so.
            _ if self.cancelled => TurnEnd::Cancelled,
            Ok(_) if self.engine_failed && !crate::planted::is("hidden-engine-error") => {
                TurnEnd::Failed(one_line(self.engine_failure(text), 1000))
            }
            Ok(reply) => match reply.get("stopReason").and_then(Value::as_str) {
                Some("cancelled") => TurnEnd::Cancelled,
                Some("refusal") if text.is_empty() => {
                    TurnEnd::Failed("the model refused to answer".into())
                }
                _ => TurnEnd::Completed,
            },
            Err(error) => TurnEnd::Failed(error.text),
        }
    }

    /// What the engine said of its failure. Without a record of its own the error is the last thing
    /// that was said, behind warnings.
    fn engine_failure<'a>(&'a self, text: &'a str) -> &'a str {
        if !self.engine_error.is_empty() {
            return &self.engine_error;
        }
        let spoken = if self.notice.trim().is_empty() { text } else { &self.notice };
        let mut paragraphs = spoken.rsplit("\n\n");
        paragraphs.find(|part| !part.trim().is_empty()).unwrap_or("the agent's engine failed")
    }
}

impl AcpSession {
    /// Sends the next prompt if none is open: two at once behave differently in every agent.
    pub(super) fn next_turn(&mut self) {
        if self.stage != Stage::Ready || self.turn.is_some() {
            return;
        }
        let Some(QueuedPrompt { batch, text }) = self.queue.pop_front() else {
            return;
        };
        self.turns += 1;
        self.turn = Some(Turn { number: self.turns, batch, ..Default::default() });
        let prompt = json!([{"type": "text", "text": text}]);
        let params = json!({"sessionId": self.session, "prompt": prompt});
        self.request(Request::Prompt, "session/prompt", params);
        self.emit(SessionEvent::TurnStarted);
    }

    pub(super) fn interrupt(&mut self, now: Now, number: VerbNumber) {
        self.queue.retain(|prompt| prompt.batch.is_some());
        if self.turn.is_none() {
            return self.answer(number, Ok(json!({"wasRunning": false})));
        }
        self.cancel_turn(now);
        if let Some(cancel) = &mut self.cancel {
            cancel.verbs.push(number);
        }
    }

    /// Asks the agent to end the turn; open questions are answered first, as some agents wait for
    /// them.
    pub(super) fn cancel_turn(&mut self, now: Now) {
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        turn.cancelled = true;
        self.abort_approvals("the turn was interrupted");
        let params = json!({"sessionId": self.session});
        self.write(&jsonrpc::notification("session/cancel", params));
        let deadline = now.tick + CANCEL_TIMEOUT;
        self.cancel.get_or_insert(PendingCancel { verbs: Vec::new(), deadline });
    }

    /// The reply to the prompt. Thoughts and earlier messages go to the mirror, the last message is
    /// the answer.
    pub(super) fn on_turn_over(&mut self, result: Result<Value, RpcError>) {
        let last =
            self.turn.as_mut().map(|turn| std::mem::take(&mut turn.message)).unwrap_or_default();
        self.flush_text();
        let Some(turn) = self.turn.take() else { return };
        if !turn.notice.trim().is_empty() {
            self.mirror(turn.number, "reasoning", Some("notice"), turn.notice.clone());
        }
        for tool in turn.tools.values().filter(|tool| !tool.shown) {
            self.emit(tool.mirror(turn.number, "ended"));
        }
        self.abort_approvals("the turn is over");
        let text = if self.settings.capture_full { &turn.whole } else { &last };
        let text = text.trim().to_string();
        let end = turn.end(&text, result);
        if !text.is_empty() {
            self.mirror(turn.number, "response", None, text.clone());
        }
        self.emit(SessionEvent::TurnEnded { batch: turn.batch.map(|(batch, _)| batch), end, text });
        for verb in self.cancel.take().into_iter().flat_map(|cancel| cancel.verbs) {
            self.answer(verb, Ok(json!({"wasRunning": true})));
        }
        self.next_turn();
    }
}
