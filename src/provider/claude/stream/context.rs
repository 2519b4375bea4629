//! Compactions and fresh starts: commands that are typed when no turn runs, and succeed when their
//! effect is told.

use std::time::Duration;

use serde_json::json;

use super::StreamSession;
use super::input::SentLine;
use crate::core::ids::VerbNumber;
use crate::core::session::SessionEvent;
use crate::core::time::{Now, Tick};

/// A summary may take this long.
const CONTEXT_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, PartialEq)]
pub(super) enum ContextCommand {
    Compact { instructions: Option<String> },
    Clear,
}

impl ContextCommand {
    /// What is typed.
    fn text(&self) -> String {
        match self {
            ContextCommand::Compact { instructions: Some(words) } => {
                format!("/compact {}", words.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            ContextCommand::Compact { instructions: None } => "/compact".into(),
            ContextCommand::Clear => "/clear".into(),
        }
    }

    /// Its name in answers.
    fn name(&self) -> &'static str {
        match self {
            ContextCommand::Compact { .. } => "compact",
            ContextCommand::Clear => "clear",
        }
    }

    /// Its beginning on the timeline.
    fn begun(&self) -> &'static str {
        match self {
            ContextCommand::Compact { .. } => "compacting",
            ContextCommand::Clear => "clearing-context",
        }
    }

    /// Its end on the timeline.
    fn done(&self) -> &'static str {
        match self {
            ContextCommand::Compact { .. } => "compacted",
            ContextCommand::Clear => "context-cleared",
        }
    }
}

#[derive(Debug)]
pub(super) struct PendingContext {
    pub verb: VerbNumber,
    pub command: ContextCommand,
    pub deadline: Tick,
    /// It was typed; else it waits for the end of a turn.
    pub has_begun: bool,
}

impl StreamSession {
    pub(super) fn queue_context_command(
        &mut self,
        now: Now,
        verb: VerbNumber,
        command: ContextCommand,
    ) {
        if self.context.is_some() {
            let why = "a compaction or a fresh start is under way already";
            return self.answer(verb, Err(why.into()));
        }
        let deadline = now.tick + CONTEXT_TIMEOUT;
        self.context = Some(PendingContext { verb, command, deadline, has_begun: false });
        self.start_context_command();
    }

    /// Begins when no turn runs.
    pub(super) fn start_context_command(&mut self) {
        let is_free = self.open && self.turn.is_none() && self.sent.is_empty();
        let waiting = self.context.as_mut().filter(|pending| is_free && !pending.has_begun);
        let Some(pending) = waiting else {
            return;
        };
        pending.has_begun = true;
        let (text, moment) = (pending.command.text(), pending.command.begun());
        self.context_result = None;
        let uuid = self.fresh_uuid();
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, SentLine { delivery: None, verb: None, started: false });
        self.begin_turn(moment);
        if let Some(turn) = &mut self.turn {
            turn.is_command = true;
        }
        self.emit(SessionEvent::Timeline(moment));
    }

    /// The turn of the command is over. `said` is what the program said at its end.
    pub(super) fn finish_context_command(&mut self, said: &str) {
        let Some(PendingContext { verb, command, .. }) =
            self.context.take_if(|pending| pending.has_begun)
        else {
            return;
        };
        let name = command.name();
        let result = self.context_result.take().unwrap_or_else(|| {
            Err(if said.is_empty() { format!("the session did not {name}") } else { said.into() })
        });
        if result.is_ok() {
            self.emit(SessionEvent::Timeline(command.done()));
        }
        let done = json!({"method": format!("/{name}"), "session": self.session});
        self.answer(verb, result.map(|()| done));
    }

    pub(super) fn is_clearing(&self) -> bool {
        self.context.as_ref().is_some_and(|pending| pending.command == ContextCommand::Clear)
    }

    pub(super) fn give_up_context_command(&mut self, now: Now) {
        if let Some(late) = self.context.take_if(|pending| pending.deadline <= now.tick) {
            self.answer(late.verb, Err("the session did not come to it in time".into()));
        }
    }
}
