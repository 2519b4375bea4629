//! How a status word is known: who says so, in which words, and since when. Evidence belongs to the
//! word that it proves, and goes when the status is another one.

use serde_json::{Value, json};

use super::Publisher;
use crate::core::agent::Agent;
use crate::core::agent::tracker::TURN;
use crate::core::session::{SessionEvent, TurnEnd};
use crate::wire::api::{DetailedStatus, StatusSource as Source};

/// What shows that a status word is true.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::core::agent) struct Evidence {
    /// For people.
    pub text: String,
    pub source: Source,
    /// Wall clock, ms.
    pub since: i64,
}

impl Evidence {
    /// As the relay and the control port are told it.
    pub fn to_json(&self) -> Value {
        json!({"text": self.text, "source": self.source.as_str(), "since": self.since})
    }
}

impl Publisher {
    /// What the session says next is known in this way.
    pub fn note_said(&mut self, text: String) {
        self.said = Some(text);
    }

    /// The status is another one now: what proved the earlier word says nothing about it. A turn
    /// goes on while it is blocked or stuck.
    pub(super) fn part_with_evidence(&mut self, word: DetailedStatus) {
        let in_turn = matches!(word, DetailedStatus::Blocked | DetailedStatus::Stuck);
        self.evidence.retain(|of, _| *of == word || (in_turn && *of == DetailedStatus::Busy));
    }
}

impl Agent {
    /// How the event that is being handled is known, as the session has said just before it. With
    /// an event that begins and ends nothing it stands for the status of now.
    pub(in crate::core::agent) fn take_said(&mut self, event: &SessionEvent) -> Option<String> {
        let said = self.status.said.take()?;
        if matches!(
            event,
            SessionEvent::Opened(_) | SessionEvent::TurnStarted | SessionEvent::TurnEnded { .. }
        ) {
            return Some(said);
        }
        self.note_evidence(self.word(), Source::Session, said);
        None
    }

    pub(in crate::core::agent) fn note_evidence(
        &mut self,
        word: DetailedStatus,
        source: Source,
        text: String,
    ) {
        let since = self.now.wall.0;
        self.status.evidence.insert(word, Evidence { text, source, since });
        self.status.touch();
    }

    /// The turn is over: idle, unless something else runs.
    pub(in crate::core::agent) fn note_turn_end(&mut self, end: &TurnEnd, said: Option<String>) {
        let text = said.unwrap_or_else(|| match end {
            TurnEnd::Completed => "the session ended its turn".into(),
            TurnEnd::Cancelled => "the turn was interrupted".into(),
            TurnEnd::Failed(why) => {
                format!("the turn failed: {}", crate::core::chars::one_line(why))
            }
        });
        self.status.evidence.remove(&DetailedStatus::Busy);
        self.note_evidence(DetailedStatus::Idle, Source::Session, text);
    }

    /// The session proves a turn, so what somebody has posted of an end or an error is over.
    pub(in crate::core::agent) fn end_posted_status(&mut self) {
        let sticks = crate::planted::is("sticky-post");
        if self.supervisor.is_ready() && !sticks && self.tracker.set_terminal(None) {
            self.status.evidence.remove(&DetailedStatus::Error);
            self.status.evidence.remove(&DetailedStatus::Offline);
            self.status.touch();
        }
    }

    /// What shows that the status of now is true, if something does beyond the runner's own word.
    pub(super) fn evidence(&self) -> Option<Evidence> {
        let word = self.word();
        let posted = || {
            let (text, since) = self.tracker.posted()?.clone();
            Some(Evidence { text, source: Source::Posted, since })
        };
        let known = || self.status.evidence.get(&word).cloned();
        if word == DetailedStatus::Busy && self.tracker.count(TURN) == 0 {
            return posted().or_else(known);
        }
        known().or_else(|| posted().filter(|_| word == DetailedStatus::Busy))
    }
}
