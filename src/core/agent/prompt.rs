//! The first prompt of a runner: handed over once, and followed through crashes like a message.

use super::Agent;
use super::store::StoreOp;
use crate::core::ids::MessageRef;
use crate::core::session::{Fate, How, RESTART_MARK, Trace, TurnEnd, Verb};

/// Name of the note that tells how it stands.
const NOTE: &str = "prompt";
/// It is with the provider: its record is asked after a crash.
const HANDED: &str = "handed";
/// Its turn is over.
const DONE: &str = "delivered";
/// Stands for it among the messages that the record is asked for; those have higher numbers.
pub(super) const PROMPT: MessageRef = MessageRef { family: 0, id: 0, generation: 0 };
/// Characters by which it is known again.
const TRACE_CHARS: usize = 100;

/// How it stands.
#[derive(Debug, Default)]
pub(super) struct FirstPrompt {
    handed: bool,
    done: bool,
    /// Our question to the session, until the session has it.
    asked: Option<u64>,
    /// The session has it: the end of a turn is the end of its own.
    taken: bool,
    /// It stands in the record, unanswered.
    seen: bool,
}

impl Agent {
    pub(super) fn restore_prompt(&mut self, notes: &[(String, String)]) {
        let noted = notes.iter().find(|(key, _)| key == NOTE).map(|(_, value)| value.as_str());
        self.prompt = FirstPrompt { handed: noted == Some(HANDED), done: noted == Some(DONE), ..Default::default() };
    }

    fn first_prompt(&self) -> Option<&str> {
        self.config.prompt.as_deref().filter(|text| !text.trim().is_empty() && !self.prompt.done)
    }

    /// Puts it into the session, if it is still due.
    pub(super) fn begin_prompt(&mut self) -> bool {
        let Some(text) = self.first_prompt().map(str::to_string).filter(|_| self.prompt.asked.is_none()) else { return false };
        let text = match std::mem::take(&mut self.prompt.seen) {
            true => {
                format!("{RESTART_MARK} while you worked on your first prompt. It stands in the conversation above; please go on with it.")
            }
            false => text,
        };
        self.note_prompt(HANDED);
        let (number, order) = self.life.verb(Verb::Inject { text, person: true });
        self.prompt.asked = Some(number);
        self.after.push(order);
        true
    }

    /// How it is known again in the provider's record, while nobody knows whether it arrived.
    pub(super) fn prompt_trace(&self) -> Option<Trace> {
        let text = self.first_prompt().filter(|_| self.prompt.handed)?;
        Some(Trace {
            header: String::new(),
            start: text.chars().take(TRACE_CHARS).collect(),
            is_whole: text.chars().count() <= TRACE_CHARS,
        })
    }

    /// A conversation is open: what became of it?
    pub(super) fn judge_prompt(&mut self, how: &How, fate: Option<Fate>) {
        (self.prompt.asked, self.prompt.taken) = (None, false);
        if self.first_prompt().is_none() || !self.prompt.handed {
            return;
        }
        match (how, fate) {
            (_, Some(Fate::Answered(_))) => self.note_prompt(DONE),
            (How::Loaded(_), Some(Fate::Unanswered)) => self.prompt.seen = true,
            // It never arrived, or nobody can say: at least once (D-11).
            _ => {}
        }
    }

    /// The session has it; `Err`: it was taken back, for example by an interrupt.
    pub(super) fn on_prompt_answered(&mut self, verb: u64, result: &Result<serde_json::Value, String>) {
        match (self.prompt.asked == Some(verb), result) {
            (false, _) => {}
            (true, Ok(_)) => self.prompt.taken = true,
            (true, Err(error)) => {
                self.log("warn", "provider", format!("the first prompt went nowhere: {error}"));
                self.note_prompt(DONE);
            }
        }
    }

    /// A turn has ended: its own, perhaps with messages that joined it.
    pub(super) fn on_prompt_turn(&mut self, end: &TurnEnd) {
        let lost = *end == TurnEnd::Cancelled && self.life.is_ending();
        if std::mem::take(&mut self.prompt.taken) && !lost {
            self.note_prompt(DONE);
        }
    }

    fn note_prompt(&mut self, word: &str) {
        (self.prompt.handed, self.prompt.done) = (word == HANDED, word == DONE);
        self.ops.push(StoreOp::Note { key: NOTE.into(), value: Some(word.into()) });
    }
}
