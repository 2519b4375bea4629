//! What goes in: texts that wait for their turn, and those whose arrival is not known yet.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CodexSession, Request, Stage, user_text};
use crate::core::ids::VerbNumber;
use crate::core::session::{Delivery, SessionEvent, TurnEnd};
use crate::core::time::Now;
use crate::provider::codex::frames::{Item, TurnRecord, text};
use crate::provider::codex::history::{self, OURS};
use crate::provider::jsonrpc::RpcError;

/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;
/// A text that the server does not take is tried so often.
const TRIES_MAX: u32 = 5;
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Turns that are searched for a text that a turn did not show.
const SEARCHED_TURNS: u64 = 5;

/// A text that waits for its turn.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// What the server is to call it.
    id: String,
    pub delivery: Option<Delivery>,
    /// Who is told that it arrived, where it is no delivery.
    pub verb: Option<VerbNumber>,
    text: String,
    /// How often it was tried.
    tries: u32,
}

impl Waiting {
    fn is_urgent(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.urgent)
    }
}

/// A text that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub text: Waiting,
    /// It was to join a running turn.
    pub is_steer: bool,
}

impl CodexSession {
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        let (id, text) = (format!("{OURS}{}", delivery.key), delivery.text.clone());
        let delivery = Some(delivery);
        self.queue.push_back(Waiting { id, delivery, verb: None, text, tries: 0 });
        self.next_text();
    }

    pub(super) fn inject(&mut self, number: VerbNumber, text: String) {
        let injected = self.queue.iter().filter(|waiting| waiting.verb.is_some()).count();
        if injected >= INJECTED_MAX {
            let why = "too many texts wait for the end of the turn";
            return self.answer(number, Err(why.into()));
        }
        self.numbers += 1;
        let id = format!("{OURS}{}-{}", self.start.nonce, self.numbers);
        self.queue.push_back(Waiting { id, delivery: None, verb: Some(number), text, tries: 0 });
        self.next_text();
    }

    /// Whether a turn can be begun. One text at a time: begun during a turn, it would join it.
    pub(super) fn is_free(&self) -> bool {
        let commands = self.context.as_ref().is_some_and(|pending| pending.has_begun);
        self.stage == Stage::Ready
            && self.link.is_up
            && self.is_loaded
            && !self.is_stopping
            && self.turn.is_none()
            && self.sent.is_empty()
            && self.retry_at.is_none()
            && !commands
    }

    /// What can be done next: a command about the context, the next text, an urgent one.
    pub(super) fn next_text(&mut self) {
        self.begin_context_command();
        if self.is_free() {
            if let Some(text) = self.queue.pop_front() {
                self.send_turn(text);
            }
            return;
        }
        let turn = self.turn.as_ref().filter(|turn| turn.can_be_steered());
        let Some(turn) = turn.map(|turn| turn.id.clone()).filter(|_| self.link.is_up) else {
            return;
        };
        if let Some(at) = self.queue.iter().position(Waiting::is_urgent) {
            let text = self.queue.remove(at).expect("it was found");
            self.send_steer(text, turn);
        }
    }

    fn send_turn(&mut self, text: Waiting) {
        let id = text.id.clone();
        let params = json!({
            "threadId": self.thread, "input": user_text(&text.text), "clientUserMessageId": id
        });
        self.sent.insert(id.clone(), Sent { text, is_steer: false });
        self.request(Request::Turn(id.clone()), "turn/start", params);
        self.begin_turn("a text was handed to the server");
        if let Some(turn) = &mut self.turn {
            turn.starter = Some(id);
        }
    }

    fn send_steer(&mut self, text: Waiting, turn: String) {
        let id = text.id.clone();
        let params = json!({
            "threadId": self.thread, "expectedTurnId": turn, "input": user_text(&text.text),
            "clientUserMessageId": id
        });
        self.sent.insert(id.clone(), Sent { text, is_steer: true });
        self.request(Request::Steer(id), "turn/steer", params);
    }

    /// The reply to a text that was to begin a turn.
    pub(super) fn on_turn_reply(&mut self, now: Now, id: String, result: Result<Value, RpcError>) {
        match result {
            Ok(reply) => {
                let turn = text(&reply, "/turn/id").to_string();
                let is_open = self.turn.as_ref().is_some_and(|turn| turn.id.is_empty());
                if is_open && !turn.is_empty() {
                    self.name_turn(&turn);
                }
            }
            Err(error) => {
                let Some(sent) = self.sent.remove(&id) else { return };
                self.drop_turn_of(&id);
                if super::opening::is_unknown_thread(&error) {
                    self.is_loaded = false;
                    self.rejoin();
                }
                self.try_again(now, sent.text, &error);
            }
        }
    }

    /// The turn that was to begin with a text never was.
    fn drop_turn_of(&mut self, id: &str) {
        let never =
            |turn: &mut super::Turn| turn.id.is_empty() && turn.starter.as_deref() == Some(id);
        if self.turn.take_if(never).is_some() {
            let (end, text) = (TurnEnd::Completed, String::new());
            self.emit(SessionEvent::TurnEnded { batch: None, end, text });
        }
    }

    /// A turn that cannot be steered, or a server that is busy: it may be different soon.
    fn try_again(&mut self, now: Now, mut text: Waiting, error: &RpcError) {
        text.tries += 1;
        if text.tries < TRIES_MAX {
            self.warn(format!("the server does not take a text now: {}", error.text));
            self.queue.push_front(text);
            self.retry_at = Some(now.tick + TRY_AGAIN);
            return;
        }
        if let Some(delivery) = text.delivery {
            let (batch, key, why) = (delivery.batch, delivery.key, error.text.clone());
            self.emit(SessionEvent::Refused { batch, key, why });
        }
        if let Some(verb) = text.verb {
            self.answer(verb, Err(error.text.clone()));
        }
        self.next_text();
    }

    /// The reply to a text that was to join a turn: a refusal means that the turn is over, or takes
    /// nothing. Only the record shows that it arrived.
    pub(super) fn on_steer_reply(&mut self, id: &str, result: Result<Value, RpcError>) {
        if result.is_ok() {
            return;
        }
        if let Some(sent) = self.sent.remove(id) {
            if let Some(turn) = &mut self.turn {
                turn.takes_nothing = true;
            }
            self.queue.push_front(sent.text);
            self.next_text();
        }
    }

    /// A message of the user is in the thread: one of ours has arrived. False: it is not ours.
    pub(super) fn on_arrived(&mut self, item: &Item, evidence: &str) -> bool {
        let id = item.text("/clientId");
        if let Some(sent) = self.sent.remove(id) {
            self.settle(sent.text, evidence);
            return true;
        }
        id.starts_with(OURS)
    }

    fn settle(&mut self, text: Waiting, evidence: &str) {
        if let Some(verb) = text.verb {
            self.answer(verb, Ok(Value::Null));
        }
        if let Some(Delivery { batch, key, .. }) = text.delivery {
            if let Some(turn) = &mut self.turn {
                turn.batch = Some(batch);
            }
            let evidence = evidence.to_string();
            self.emit(SessionEvent::Accepted { batch, key, evidence });
        }
    }

    /// What was sent and never seen is looked for in the record.
    pub(super) fn look_for_sent(&mut self) {
        self.look(Request::Lookup, SEARCHED_TURNS, "full");
    }

    pub(super) fn on_lookup(&mut self, now: Now, result: Result<Value, RpcError>) {
        match result {
            // A turn that has begun since may still show them.
            Ok(_) if self.turn.is_some() => {}
            Ok(reply) => self.settle_sent(&TurnRecord::page(&reply)),
            Err(_) => return self.look_again(now),
        }
        self.next_text();
    }

    /// By the record: what stands there has arrived, all else goes in again.
    pub(super) fn settle_sent(&mut self, turns: &[TurnRecord]) {
        for (id, sent) in std::mem::take(&mut self.sent).into_iter().rev() {
            let is_it = |item: &Item| item.text("/clientId") == id;
            let Some(turn) = turns.iter().find(|turn| turn.items.iter().any(is_it)) else {
                self.drop_turn_of(&id);
                self.queue.push_front(sent.text);
                continue;
            };
            let batch = sent.text.delivery.as_ref().map(|delivery| delivery.batch);
            self.settle(sent.text, "the thread's record holds the message");
            // Its turn was over before that was known.
            if let (None, Some(_)) = (&self.turn, batch) {
                let (end, text) = (turn.status.end(), history::answer(turn));
                self.emit(SessionEvent::TurnEnded { batch, end, text });
            }
        }
    }
}
