//! What one input brings out.

use serde_json::Value;

use crate::core::ids::VerbNumber;
use crate::core::session::{Output, SessionEvent};
use crate::wire::control::LogLevel;

/// Outputs of one input, in the order in which they take effect.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<Output>);

impl Out {
    pub fn push(&mut self, output: Output) {
        self.0.push(output);
    }

    pub fn press(&mut self, keys: &[&'static str]) {
        self.0.extend(keys.iter().map(|key| Output::Press(key)));
    }

    pub fn emit(&mut self, event: SessionEvent) {
        self.0.push(Output::Event(event));
    }

    pub fn fact(&mut self, name: &'static str, value: Value) {
        self.emit(SessionEvent::Fact { name, value });
    }

    pub fn answer(&mut self, verb: VerbNumber, result: Result<Value, String>) {
        self.emit(SessionEvent::Answered { verb, result });
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.emit(SessionEvent::Log { level: LogLevel::Warn, text: text.into() });
    }

    pub fn info(&mut self, text: impl Into<String>) {
        self.emit(SessionEvent::Log { level: LogLevel::Info, text: text.into() });
    }

    /// Everything so far; nothing is left.
    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.0)
    }
}
