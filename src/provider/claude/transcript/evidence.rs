//! What a transcript says about messages that were unsettled when the program ended.

use super::{Entry, SYNTHETIC, squeezed, unwrapped};
use crate::core::session::{DeliveryOutcome, MessageFingerprint, RESTART_MARK};

/// What became of messages, gathered while a transcript is read from its beginning.
#[derive(Debug)]
pub struct Evidence {
    wanted: Vec<MessageFingerprint>,
    /// Whether each was seen.
    seen: Vec<bool>,
    /// The end of the answer after the newest of them.
    answer: Option<String>,
    /// The turn of the newest of them is the last one.
    open: bool,
}

impl Evidence {
    /// Looks for these messages.
    pub fn new(messages: &[MessageFingerprint]) -> Evidence {
        Evidence {
            seen: vec![false; messages.len()],
            wanted: messages.to_vec(),
            answer: None,
            open: false,
        }
    }

    /// Takes the next entry.
    pub fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Prompt(prompt) => {
                let text = squeezed(unwrapped(&prompt.text));
                let mut mine = false;
                for (wanted, seen) in self.wanted.iter().zip(&mut self.seen) {
                    if wanted.is_in(&text, squeezed) {
                        (*seen, mine) = (true, true);
                    }
                }
                if mine {
                    (self.open, self.answer) = (true, None);
                } else if prompt.text.contains(RESTART_MARK) {
                    self.answer = None; // a nudge belongs to the turn before it
                } else if !prompt.joined {
                    self.open = false;
                }
            }
            Entry::Answer(answer) if self.open => {
                let ended = answer.ends_turn() && !answer.is_error && answer.model != SYNTHETIC;
                self.answer = ended
                    .then(|| answer.text())
                    .filter(|text| !text.trim().is_empty())
                    .or(if ended {
                        // The text of a message may stand in an entry before its last one.
                        self.answer.take()
                    } else {
                        None
                    });
            }
            Entry::Results { .. } if self.open => self.answer = None,
            _ => {}
        }
    }

    /// One for each message, in order.
    pub fn outcomes(&self) -> Vec<DeliveryOutcome> {
        let outcome = |seen: &bool| match (seen, &self.answer) {
            (false, _) => DeliveryOutcome::Unseen,
            (true, Some(text)) => DeliveryOutcome::Answered(text.clone()),
            (true, None) => DeliveryOutcome::Unanswered,
        };
        self.seen.iter().map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::claude::transcript::{Answer, Block, Prompt};

    #[test]
    fn the_record_decides_about_each_message() {
        let messages: Vec<MessageFingerprint> = [7, 8]
            .iter()
            .map(|id| MessageFingerprint {
                header: format!("[relay message #{id} from user]"),
                start: "do it".into(),
                is_whole: false,
            })
            .collect();
        let prompt = |text: &str, joined: bool| {
            Entry::Prompt(Prompt { text: text.into(), human: true, joined, ..Default::default() })
        };
        let answer = |text: &str, stop: &str| {
            Entry::Answer(Answer {
                blocks: vec![Block::Text(text.into())],
                stop_reason: stop.into(),
                ..Default::default()
            })
        };
        let seven = || prompt("[relay message #7 from user]\ndo  it", false);
        let outcomes = |entries: &[Entry]| {
            let mut evidence = Evidence::new(&messages);
            entries.iter().for_each(|entry| evidence.take(entry));
            evidence.outcomes()
        };
        use DeliveryOutcome::{Answered, Unanswered, Unseen};
        assert_eq!(
            outcomes(&[prompt("[relay message #7 from user]\nelse", false)]),
            [Unseen, Unseen]
        );
        assert_eq!(outcomes(&[seven()]), [Unanswered, Unseen]);
        assert_eq!(outcomes(&[seven(), answer("half", "tool_use")]), [Unanswered, Unseen]);
        assert_eq!(
            outcomes(&[seven(), answer("done", "end_turn")]),
            [Answered("done".into()), Unseen]
        );
        assert_eq!(
            outcomes(&[
                seven(),
                answer("done", "end_turn"),
                prompt("other", false),
                answer("x", "end_turn")
            ])[0],
            Answered("done".into())
        );
        assert_eq!(
            outcomes(&[
                seven(),
                prompt("[relay message #8 from user]\ndo it", true),
                answer("both", "end_turn")
            ]),
            [Answered("both".into()), Answered("both".into())]
        );
        assert_eq!(
            outcomes(&[
                seven(),
                answer("half", "end_turn"),
                prompt(&format!("{RESTART_MARK} x"), false)
            ])[0],
            Unanswered
        );
    }
}
