//! The record of a conversation while `session/load` is open: the evidence for what was delivered.

use crate::core::session::{DeliveryOutcome, MessageFingerprint, RESTART_MARK};

/// Text of the record while a load is open.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// In order; neighbours of one side are joined.
    pieces: Vec<(Speaker, String)>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Speaker {
    User,
    Agent,
    /// A tool call: an answer that ends with one was cut off.
    Tool,
}

/// Memory for a replay: the newest part decides, so older pieces go first.
const REPLAY_BYTES_MAX: usize = 8 << 20;

impl Replay {
    /// A further piece of the record.
    pub fn push(&mut self, from: Speaker, text: &str) {
        self.bytes += text.len();
        match self.pieces.last_mut() {
            Some((side, piece)) if *side == from => piece.push_str(text),
            _ => self.pieces.push((from, text.to_string())),
        }
        while self.bytes > REPLAY_BYTES_MAX && self.pieces.len() > 1 {
            self.bytes -= self.pieces.remove(0).1.len();
        }
    }

    /// Unseen unless a text of the user holds a message asked for; answered if the record ends with
    /// a text of the agent after it (a turn that was cut off ends with a tool call or with
    /// nothing).
    pub fn outcome(&self, wanted: &[MessageFingerprint]) -> DeliveryOutcome {
        let seen = |text: &str| {
            let squeezed = squeeze(text);
            wanted.iter().any(|message| message.is_in(&squeezed, squeeze))
        };
        let Some(at) =
            self.pieces.iter().rposition(|(side, text)| *side == Speaker::User && seen(text))
        else {
            return DeliveryOutcome::Unseen;
        };
        // Its turn goes up to the next prompt; a nudge after a restart belongs to it.
        let mut last = None;
        for piece in &self.pieces[at + 1..] {
            match piece {
                (Speaker::User, text) if text.contains(RESTART_MARK) => last = None,
                (Speaker::User, _) => break,
                other => last = Some(other),
            }
        }
        match last {
            Some((Speaker::Agent, text)) if !text.trim().is_empty() => {
                DeliveryOutcome::Answered(text.trim().to_string())
            }
            _ => DeliveryOutcome::Unanswered,
        }
    }
}

/// White space differs between what was sent and what a record shows.
fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(pieces: &[(Speaker, &str)]) -> DeliveryOutcome {
        let mut replay = Replay::default();
        pieces.iter().for_each(|(side, text)| replay.push(*side, text));
        replay.outcome(&[MessageFingerprint {
            header: "[relay message #7 from user]".into(),
            start: "do  it".into(),
            is_whole: false,
        }])
    }

    #[test]
    fn the_record_decides() {
        use Speaker::{Agent, Tool, User};
        let ours = "[relay message #7 from user]\ndo it\nplease";
        let nudge = "[agent-relay] The session was restarted while";
        let answered = |text: &str| DeliveryOutcome::Answered(text.into());
        assert_eq!(outcome(&[]), DeliveryOutcome::Unseen);
        assert_eq!(
            outcome(&[(User, "[relay message #7 from user]\nsomething else")]),
            DeliveryOutcome::Unseen
        );
        assert_eq!(outcome(&[(Agent, ours)]), DeliveryOutcome::Unseen);
        assert_eq!(outcome(&[(User, ours)]), DeliveryOutcome::Unanswered);
        assert_eq!(
            outcome(&[(User, ours), (Agent, "on it"), (Tool, "")]),
            DeliveryOutcome::Unanswered
        );
        assert_eq!(outcome(&[(User, ours), (Tool, ""), (Agent, "done")]), answered("done"));
        assert_eq!(
            outcome(&[(User, ours), (Agent, "done"), (User, "more"), (Tool, "")]),
            answered("done")
        );
        assert_eq!(
            outcome(&[(User, ours), (Tool, ""), (User, nudge), (Agent, "done")]),
            answered("done")
        );
        assert_eq!(
            outcome(&[(User, ours), (Agent, "half"), (User, nudge)]),
            DeliveryOutcome::Unanswered
        );
    }
}
