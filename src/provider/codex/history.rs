//! The record of a thread: the evidence for what was delivered.

use super::frames::{TurnRecord, TurnStatus};
use crate::core::session::{DeliveryOutcome, MessageFingerprint, RESTART_MARK};

/// Begins the ids of messages of this runner; another client's messages prove nothing.
pub const OURS: &str = "relay-";

/// Turns of a thread as far as they were read.
#[derive(Debug, Default)]
pub struct History {
    /// The newest first, as they come.
    turns: Vec<TurnRecord>,
}

impl History {
    /// A further page, older than those before.
    pub fn push(&mut self, page: Vec<TurnRecord>) {
        self.turns.extend(page);
    }

    /// What it says of each message that was asked for.
    pub fn outcomes(&self, wanted: &[MessageFingerprint]) -> Vec<DeliveryOutcome> {
        wanted.iter().map(|message| self.outcome(message)).collect()
    }

    /// Whether each of the messages was found: older pages need not be read.
    pub fn has_all(&self, wanted: &[MessageFingerprint]) -> bool {
        wanted.iter().all(|message| self.outcome(message) != DeliveryOutcome::Unseen)
    }

    fn outcome(&self, wanted: &MessageFingerprint) -> DeliveryOutcome {
        let is_it = |text: &str| wanted.is_in(&squeeze(text), squeeze);
        let Some(at) = self.turns.iter().position(|turn| said_by_us(turn).any(|text| is_it(&text)))
        else {
            return DeliveryOutcome::Unseen;
        };
        // A word to go on, after a restart, begins a turn that still belongs to it.
        let newer = self.turns[..at].iter().rev();
        let goes_on = newer.take_while(|turn| {
            said_by_us(turn).next().is_some_and(|text| text.contains(RESTART_MARK))
        });
        match std::iter::once(&self.turns[at]).chain(goes_on).last() {
            Some(turn) if turn.status == TurnStatus::Completed => {
                DeliveryOutcome::Answered(answer(turn))
            }
            _ => DeliveryOutcome::Unanswered,
        }
    }
}

/// What this runner said in a turn.
fn said_by_us(turn: &TurnRecord) -> impl Iterator<Item = String> {
    let ours = turn.items.iter().filter(|item| {
        let is_ours =
            item.text("/clientId").starts_with(OURS) || crate::planted::is("anybodys-word");
        item.kind == "userMessage" && is_ours
    });
    ours.map(|item| item.said())
}

/// The last text of the agent in a turn, a final one before all others.
pub fn answer(turn: &TurnRecord) -> String {
    let messages = || turn.items.iter().rev().filter(|item| item.kind == "agentMessage");
    let last = messages().find(|item| item.text("/phase") == "final_answer");
    last.or_else(|| messages().next())
        .map(|item| item.text("/text").trim())
        .unwrap_or_default()
        .into()
}

/// White space differs between what was sent and what a record shows.
fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OURS_7: &str = "[relay message #7 from user]\ndo it\nplease";

    fn turn(status: &str, items: Value) -> TurnRecord {
        TurnRecord::read(&json!({"id": "u", "status": status, "items": items}))
    }

    fn user(client: &str, text: &str) -> Value {
        json!({"type": "userMessage", "id": "i", "clientId": client, "content": [{"type": "text", "text": text}]})
    }

    fn agent(text: &str) -> Value {
        json!({"type": "agentMessage", "id": "m", "text": text, "phase": null})
    }

    fn outcome(turns: Vec<TurnRecord>) -> DeliveryOutcome {
        let mut history = History::default();
        turns.into_iter().rev().for_each(|turn| history.push(vec![turn]));
        let wanted = MessageFingerprint {
            header: "[relay message #7 from user]".into(),
            start: "do  it".into(),
            is_whole: false,
        };
        history.outcomes(&[wanted]).remove(0)
    }

    #[test]
    fn the_record_decides() {
        use DeliveryOutcome::{Answered, Unanswered, Unseen};
        let nudge = "[agent-relay] The session was restarted while";
        let ours = || user("relay-k", OURS_7);
        for (turns, want) in [
            (vec![], Unseen),
            // Another client quotes it.
            (vec![turn("completed", json!([user("tui", OURS_7), agent("x")]))], Unseen),
            (vec![turn("completed", json!([agent(OURS_7)]))], Unseen),
            (vec![turn("interrupted", json!([ours()]))], Unanswered),
            (vec![turn("failed", json!([ours()]))], Unanswered),
            (vec![turn("inProgress", json!([ours(), agent("half")]))], Unanswered),
            (vec![turn("completed", json!([ours(), agent("done ")]))], Answered("done".into())),
            (vec![turn("completed", json!([ours()]))], Answered(String::new())),
            // It was steered into a turn of others.
            (
                vec![turn("completed", json!([user("tui", "x"), agent("a"), ours(), agent("b")]))],
                Answered("b".into()),
            ),
            (
                vec![
                    turn("interrupted", json!([ours()])),
                    turn("completed", json!([user("relay-n", nudge), agent("late")])),
                ],
                Answered("late".into()),
            ),
            (
                vec![
                    turn("interrupted", json!([ours()])),
                    turn("interrupted", json!([user("relay-n", nudge)])),
                ],
                Unanswered,
            ),
            // What others said meanwhile is no answer.
            (
                vec![
                    turn("interrupted", json!([ours()])),
                    turn("completed", json!([user("tui", "hi"), agent("hello")])),
                ],
                Unanswered,
            ),
        ] {
            assert_eq!(outcome(turns.clone()), want, "{turns:?}");
        }
    }
}
