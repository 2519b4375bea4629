//! What goes into the program: texts that wait for their turn, the lines that carry them, and
//! interrupts.

use std::time::Duration;

use serde_json::json;

use super::StreamSession;
use crate::core::ids::VerbNumber;
use crate::core::session::Delivery;
use crate::core::time::{Now, Tick};
use crate::provider::claude::sanitize::{escape_mentions, escape_prefix};

/// A turn must end this long after an interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;

/// Leads what others than the user say.
const OTHERS: &str = "[agent-relay] Not from your user: another agent or a system says this.";

/// A text that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    pub delivery: Option<Delivery>,
    /// Who is told that it arrived, where it is no delivery.
    pub verb: Option<VerbNumber>,
    pub text: String,
}

/// A line of ours that is not over yet.
#[derive(Debug)]
pub(super) struct SentLine {
    pub delivery: Option<Delivery>,
    pub verb: Option<VerbNumber>,
    /// The program has begun with it.
    pub started: bool,
}

/// An interrupt that waits for the end of its turn.
#[derive(Debug)]
pub(super) struct PendingInterrupt {
    pub verbs: Vec<VerbNumber>,
    pub deadline: Tick,
}

/// Marks what others than the user say: there is one way in, and it is the user's.
fn of_others(text: &str) -> String {
    format!("{OTHERS}\n\n{}", escape_mentions(text))
}

impl StreamSession {
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        let text = if delivery.person {
            escape_mentions(&delivery.text)
        } else {
            of_others(&delivery.text)
        };
        let urgent = delivery.urgent;
        self.queue.push_back(Waiting { delivery: Some(delivery), verb: None, text });
        if urgent {
            self.next_urgent_line();
        } else {
            self.next_line();
        }
    }

    pub(super) fn inject(&mut self, number: VerbNumber, text: &str, person: bool) {
        let injected = self.queue.iter().filter(|waiting| waiting.verb.is_some()).count();
        if injected >= INJECTED_MAX {
            let why = "too many texts wait for the end of the turn";
            return self.answer(number, Err(why.into()));
        }
        let text = if person { escape_prefix(text) } else { of_others(text) };
        self.queue.push_back(Waiting { delivery: None, verb: Some(number), text });
        self.next_line();
    }

    /// The next text goes in as a new turn, when none runs.
    pub(super) fn next_line(&mut self) {
        let is_free = self.turn.is_none()
            && self.sent.is_empty()
            && self.context.as_ref().is_none_or(|pending| !pending.has_begun);
        if is_free {
            self.send_line(0);
        }
    }

    /// The next urgent text goes in at once.
    fn next_urgent_line(&mut self) {
        let is_urgent =
            |waiting: &Waiting| waiting.delivery.as_ref().is_some_and(|delivery| delivery.urgent);
        if let Some(at) = self.queue.iter().position(is_urgent) {
            self.send_line(at);
        }
    }

    /// Writes a text of the queue.
    fn send_line(&mut self, at: usize) {
        if !self.open || self.over {
            return;
        }
        let Some(Waiting { delivery, verb, text }) = self.queue.remove(at) else {
            return;
        };
        let uuid = match &delivery {
            Some(delivery) => delivery.key.clone(),
            None => self.fresh_uuid(),
        };
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, SentLine { delivery, verb, started: false });
        // Whose turn it is shows when the line is begun: the session may have begun one by itself
        // just now.
        self.begin_turn("line written to the session");
    }

    pub(super) fn user_line(&mut self, uuid: &str, text: &str) {
        self.write(&json!({
            "type": "user",
            "message": {"role": "user", "content": text},
            "parent_tool_use_id": null,
            "uuid": uuid
        }));
    }

    /// For texts of our own, which nobody asks for again: unique within the session.
    pub(super) fn fresh_uuid(&mut self) -> String {
        self.numbers += 1;
        let base = self.start.nonce.get(..24).unwrap_or("00000000-0000-4000-8000-");
        format!("{base}{:012x}", self.numbers)
    }

    // ---- interrupts

    /// Ends the turn that runs, and what the runner itself would have said next.
    pub(super) fn interrupt(&mut self, now: Now, verb: VerbNumber) {
        let dropped: Vec<VerbNumber> =
            self.queue.iter().filter_map(|waiting| waiting.verb).collect();
        self.queue.retain(|waiting| waiting.verb.is_none());
        for dropped in dropped {
            self.answer(dropped, Err("an interrupt came before it".into()));
        }
        self.control(json!({"subtype": "interrupt"}));
        let deadline = now.tick + INTERRUPT_TIMEOUT;
        let new = || PendingInterrupt { verbs: Vec::new(), deadline };
        self.interrupt.get_or_insert_with(new).verbs.push(verb);
    }

    /// The turn is over.
    pub(super) fn finish_interrupt(&mut self) {
        for verb in self.interrupt.take().into_iter().flat_map(|pending| pending.verbs) {
            self.answer(verb, Ok(json!({"wasRunning": true})));
        }
    }

    pub(super) fn give_up_interrupt(&mut self, now: Now) {
        let late = self.interrupt.take_if(|pending| pending.deadline <= now.tick);
        for verb in late.into_iter().flat_map(|pending| pending.verbs) {
            let seconds = INTERRUPT_TIMEOUT.as_secs();
            self.answer(verb, Err(format!("the session did not end its turn within {seconds} s")));
        }
    }
}
