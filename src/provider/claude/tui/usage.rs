//! Which model answers, and how much of its context window is used.

use serde_json::{Value, json};

use super::out::Out;
use crate::core::session::SessionEvent;
use crate::provider::claude::transcript::SYNTHETIC;

/// Tokens of a usual context window, and of a large one.
const WINDOW: u64 = 200_000;
const LARGE_WINDOW: u64 = 1_000_000;

/// Who tells of the tokens. The status line knows the window; beside it nothing is estimated.
#[derive(Debug)]
enum Source {
    /// Tokens by the last answer in the transcript; 0: told already.
    Transcript {
        tokens: u64,
    },
    StatusLine,
}

#[derive(Debug)]
pub(super) struct Usage {
    model: Option<String>,
    source: Source,
}

impl Usage {
    pub fn new() -> Usage {
        Usage { model: None, source: Source::Transcript { tokens: 0 } }
    }

    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The session says at its start which model it has; empty: it does not say.
    pub fn on_session_model(&mut self, model: &str, out: &mut Out) {
        if !model.is_empty() {
            self.model = Some(model.to_string());
            out.fact("model", json!(model));
        }
    }

    /// The model that gave an answer; some answers are made by the program itself.
    pub fn on_answer_model(&mut self, model: &str, out: &mut Out) {
        if model != SYNTHETIC && self.model() != Some(model) {
            self.on_session_model(model, out);
        }
    }

    pub fn on_answer_tokens(&mut self, used: u64) {
        if let Source::Transcript { tokens } = &mut self.source {
            *tokens = used;
        }
    }

    /// After a turn: what the transcript says, where no status line tells more. The window is a
    /// guess.
    pub fn tell_estimate(&mut self, out: &mut Out) {
        let used = match &mut self.source {
            Source::Transcript { tokens } => std::mem::take(tokens),
            Source::StatusLine => 0,
        };
        if used == 0 {
            return;
        }
        let is_large =
            used > WINDOW || self.model.as_deref().is_some_and(|model| model.contains("[1m]"));
        let window = if is_large { LARGE_WINDOW } else { WINDOW };
        out.emit(SessionEvent::Context(json!({
            "utilization": (used as f64 / window as f64).min(1.0), "lifecycleState": "active",
            "source": "estimate", "confidence": "estimated",
            "usedTokens": used, "windowTokens": window, "model": self.model
        })));
    }

    /// What the program tells its status line.
    pub fn on_status_line(&mut self, payload: &Value, out: &mut Out) {
        let number = |at: &str| payload.pointer(at).and_then(Value::as_f64);
        let usage =
            |field: &str| number(&format!("/context_window/current_usage/{field}")).unwrap_or(0.0);
        let kinds = [
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
        ];
        let used = kinds.map(usage).iter().sum::<f64>();
        let window = number("/context_window/context_window_size").filter(|size| *size > 0.0);
        let model = payload.pointer("/model/id").and_then(Value::as_str).unwrap_or_default();
        if let (Some(window), true) = (window, used > 0.0) {
            self.source = Source::StatusLine;
            out.emit(SessionEvent::Context(json!({
                "utilization": used / window, "lifecycleState": "active",
                "source": "statusline", "confidence": "reported",
                "usedTokens": used as u64, "windowTokens": window as u64, "model": model
            })));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::Output;

    #[test]
    fn an_estimate_is_told_once_and_never_beside_the_status_line() {
        let (mut usage, mut out) = (Usage::new(), Out::default());
        let mut estimates = |usage: &mut Usage, tokens: u64| {
            usage.on_answer_tokens(tokens);
            usage.tell_estimate(&mut out);
            usage.tell_estimate(&mut out);
            let windows = out.take().into_iter().filter_map(|output| match output {
                Output::Event(SessionEvent::Context(context)) => context["windowTokens"].as_u64(),
                _ => None,
            });
            windows.collect::<Vec<_>>()
        };
        assert!(estimates(&mut usage, 0).is_empty());
        assert_eq!(estimates(&mut usage, 5), [WINDOW]);
        assert_eq!(estimates(&mut usage, WINDOW + 1), [LARGE_WINDOW]);
        let full = json!({"context_window": {
            "context_window_size": 9, "current_usage": {"input_tokens": 3}
        }});
        usage.on_status_line(&full, &mut Out::default());
        assert!(estimates(&mut usage, 5).is_empty());
    }

    #[test]
    fn the_model_of_an_answer_is_told_when_it_changes() {
        let (mut usage, mut out) = (Usage::new(), Out::default());
        for model in ["a", "a", "", SYNTHETIC, "b", "b"] {
            usage.on_answer_model(model, &mut out);
        }
        assert_eq!(out.take().len(), 2);
        assert_eq!(usage.model(), Some("b"));
    }
}
