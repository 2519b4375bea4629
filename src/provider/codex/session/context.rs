//! Compactions and fresh threads: they begin when no turn runs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CodexSession, Request};
use crate::core::ids::VerbNumber;
use crate::core::session::{SessionEvent, TurnEnd};
use crate::core::time::{Now, Tick};
use crate::provider::codex::frames::text;
use crate::provider::jsonrpc::RpcError;

/// A summary may take this long.
const CONTEXT_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ContextCommand {
    Compact,
    Clear,
}

/// One that waits for the end of a turn, or is under way.
#[derive(Debug)]
pub(super) struct PendingContext {
    pub verb: VerbNumber,
    command: ContextCommand,
    pub deadline: Tick,
    /// The server was asked.
    pub has_begun: bool,
    /// The server has told that it is done.
    is_done: bool,
}

impl CodexSession {
    pub(super) fn on_context(&mut self, now: Now, verb: VerbNumber, command: ContextCommand) {
        match self.context.as_ref().map(|pending| (pending.command, command)) {
            Some((ContextCommand::Compact, ContextCommand::Compact)) => {
                let why = "Codex compact is already in progress";
                return self.answer(verb, Err(why.into()));
            }
            Some((ContextCommand::Clear, _)) => {
                let why = "a fresh start is under way already";
                return self.answer(verb, Err(why.into()));
            }
            // The thread that is being compacted is left.
            Some((ContextCommand::Compact, ContextCommand::Clear)) => {
                let has_begun = self.context.as_ref().is_some_and(|pending| pending.has_begun);
                self.fail_context("Codex compact canceled by thread reset".into());
                if has_begun {
                    self.send_interrupt();
                }
            }
            None => {}
        }
        let deadline = now.tick + CONTEXT_TIMEOUT;
        let (has_begun, is_done) = (false, false);
        self.context = Some(PendingContext { verb, command, deadline, has_begun, is_done });
        self.next_text();
    }

    /// Begins when no turn runs.
    pub(super) fn begin_context_command(&mut self) {
        if !self.is_free() {
            return;
        }
        let Some(pending) = self.context.as_mut().filter(|pending| !pending.has_begun) else {
            return;
        };
        pending.has_begun = true;
        match pending.command {
            ContextCommand::Compact => {
                let params = json!({"threadId": self.thread});
                self.request(Request::Compact, "thread/compact/start", params);
                self.begin_turn("a compaction was asked for");
                if let Some(turn) = &mut self.turn {
                    turn.is_command = true;
                }
                self.emit(SessionEvent::Timeline("compacting"));
            }
            ContextCommand::Clear => {
                self.emit(SessionEvent::Timeline("clearing-context"));
                self.begin_thread(Request::Fresh);
            }
        }
    }

    /// It was not even begun.
    pub(super) fn on_compact_reply(&mut self, result: Result<Value, RpcError>) {
        let Err(error) = result else { return };
        self.fail_context(error.text);
        if self.turn.take_if(|turn| turn.is_command && !turn.is_told).is_some() {
            let (end, text) = (TurnEnd::Completed, String::new());
            self.emit(SessionEvent::TurnEnded { batch: None, end, text });
        }
        self.next_text();
    }

    /// The thread was compacted: by us, by itself or by somebody at another client.
    pub(super) fn on_compacted(&mut self) {
        match self.context.as_mut().filter(|pending| pending.has_begun) {
            Some(pending) => pending.is_done = true,
            None => self.emit(SessionEvent::Timeline("compacted")),
        }
    }

    /// The turn of the compaction is over.
    pub(super) fn finish_compaction(&mut self, end: &TurnEnd) {
        let is_it = |pending: &mut PendingContext| {
            pending.has_begun && pending.command == ContextCommand::Compact
        };
        let Some(pending) = self.context.take_if(is_it) else { return };
        let result = match end {
            _ if pending.is_done => {
                self.emit(SessionEvent::Timeline("compacted"));
                Ok(json!({"threadId": self.thread}))
            }
            TurnEnd::Failed(error) => Err(error.clone()),
            TurnEnd::Cancelled => Err("the compaction was interrupted".into()),
            TurnEnd::Completed => Err("the server did not compact the thread".into()),
        };
        self.answer(pending.verb, result);
    }

    /// The fresh thread is there: the old one is left.
    pub(super) fn on_fresh(&mut self, result: Result<Value, RpcError>) {
        let reply = match result {
            Ok(reply) if !text(&reply, "/thread/id").is_empty() => reply,
            Ok(_) => return self.fail_context("the server begins no thread".into()),
            Err(error) => {
                self.fail_context(error.text);
                return self.next_text();
            }
        };
        let Some(pending) = self.context.take() else { return };
        let previous = self.thread.clone();
        self.take_thread(&reply);
        self.request(Request::Told, "thread/unsubscribe", json!({"threadId": previous}));
        self.approvals.withdraw_thread(&previous, &mut self.out);
        self.leave_all();
        let session = self.thread.clone();
        self.emit(SessionEvent::ConversationChanged { session });
        self.emit(SessionEvent::Timeline("context-cleared"));
        let done = json!({"previousThreadId": previous, "threadId": self.thread});
        self.answer(pending.verb, Ok(done));
        self.open_window();
        self.next_text();
    }

    pub(super) fn fail_context(&mut self, why: String) {
        if let Some(pending) = self.context.take() {
            self.answer(pending.verb, Err(why));
        }
    }

    pub(super) fn give_up_context(&mut self, now: Now) {
        let Some(late) = self.context.take_if(|pending| pending.deadline <= now.tick) else {
            return;
        };
        let seconds = CONTEXT_TIMEOUT.as_secs();
        let why = match late.command {
            ContextCommand::Compact => format!("Codex compact timed out after {seconds}s"),
            ContextCommand::Clear => "the session did not come to it in time".into(),
        };
        self.answer(late.verb, Err(why));
        if late.has_begun && late.command == ContextCommand::Compact {
            self.send_interrupt(); // what waits for its end shall not wait for ever
        }
    }
}
