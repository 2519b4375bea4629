//! Orders to the session: interrupt, compact, clear. Each succeeds when its effect is seen.

use std::time::Duration;

use serde_json::json;

use super::out::Out;
use crate::core::ids::VerbNumber;
use crate::core::session::SessionEvent;
use crate::core::time::{Now, Tick, sooner};

/// A turn must end this long after an interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A summary may take this long.
const CONTEXT_TIMEOUT: Duration = Duration::from_secs(600);
/// A context command that begins nothing within that time was not taken.
const CONTEXT_START: Duration = Duration::from_secs(10);
/// A context command that left no trace this long after the session went idle has failed.
const CONTEXT_SILENCE: Duration = Duration::from_secs(4);

/// What happens to the context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ContextCommand {
    Compact,
    Clear,
}

impl ContextCommand {
    /// The program's own command.
    fn as_str(self) -> &'static str {
        match self {
            ContextCommand::Compact => "/compact",
            ContextCommand::Clear => "/clear",
        }
    }

    /// Its name where it is not supported.
    fn name(self) -> &'static str {
        match self {
            ContextCommand::Compact => "compact",
            ContextCommand::Clear => "clearContext",
        }
    }

    fn begun(self) -> &'static str {
        match self {
            ContextCommand::Compact => "compacting",
            ContextCommand::Clear => "clearing-context",
        }
    }

    fn done(self) -> &'static str {
        match self {
            ContextCommand::Compact => "compacted",
            ContextCommand::Clear => "context-cleared",
        }
    }
}

/// How far a context command is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Progress {
    /// It waits for the prompt.
    Waits,
    /// It was typed. Idle and without a trace of it by then, it has failed; `None`: it works.
    Submitted { silent_until: Option<Tick> },
}

#[derive(Debug)]
struct PendingContext {
    verb: VerbNumber,
    command: ContextCommand,
    deadline: Tick,
    progress: Progress,
}

#[derive(Debug)]
struct PendingInterrupt {
    verbs: Vec<VerbNumber>,
    deadline: Tick,
}

#[derive(Debug, Default)]
pub(super) struct Commands {
    interrupt: Option<PendingInterrupt>,
    context: Option<PendingContext>,
}

impl Commands {
    // ---- interrupt

    pub fn start_interrupt(&mut self, now: Now, verb: VerbNumber) {
        let deadline = now.tick + INTERRUPT_TIMEOUT;
        let new = || PendingInterrupt { verbs: Vec::new(), deadline };
        self.interrupt.get_or_insert_with(new).verbs.push(verb);
    }

    pub fn is_interrupting(&self) -> bool {
        self.interrupt.is_some()
    }

    /// The turn ended, or none comes any more.
    pub fn finish_interrupt(&mut self, was_running: bool, out: &mut Out) {
        for verb in self.interrupt.take().into_iter().flat_map(|pending| pending.verbs) {
            out.answer(verb, Ok(json!({"wasRunning": was_running})));
        }
    }

    /// True: the turn did not end in time, and that was told.
    pub fn interrupt_timed_out(&mut self, now: Now, out: &mut Out) -> bool {
        let Some(late) = self.interrupt.take_if(|pending| pending.deadline <= now.tick) else {
            return false;
        };
        for verb in late.verbs {
            let seconds = INTERRUPT_TIMEOUT.as_secs();
            out.answer(verb, Err(format!("the session did not end its turn within {seconds} s")));
        }
        true
    }

    // ---- context

    /// Why it cannot be done.
    pub fn start_context(
        &mut self,
        now: Now,
        verb: VerbNumber,
        command: ContextCommand,
        has_terminal: bool,
    ) -> Result<(), String> {
        if !has_terminal {
            let name = command.name();
            let text = "in a terminal that is not the runner's";
            return Err(format!("provider does not support {name} {text}"));
        }
        if self.context.is_some() {
            return Err("a compaction or a fresh start is under way already".into());
        }
        let deadline = now.tick + CONTEXT_TIMEOUT;
        let progress = Progress::Waits;
        self.context = Some(PendingContext { verb, command, deadline, progress });
        Ok(())
    }

    /// The command was typed.
    pub fn context_submitted(&mut self, now: Now, out: &mut Out) {
        if let Some(pending) = &mut self.context {
            let silent_until = Some(now.tick + CONTEXT_START);
            pending.progress = Progress::Submitted { silent_until };
            out.emit(SessionEvent::Timeline(pending.command.begun()));
        }
    }

    pub fn has_context(&self) -> bool {
        self.context.is_some()
    }

    /// The context is being shortened or dropped: what comes now could fall on either side.
    pub fn changes_context(&self) -> bool {
        self.context.as_ref().is_some_and(|pending| pending.progress != Progress::Waits)
    }

    pub fn on_turn_begun(&mut self) {
        if let Some(PendingContext { progress: Progress::Submitted { silent_until }, .. }) =
            &mut self.context
        {
            *silent_until = None;
        }
    }

    pub fn on_turn_ended(&mut self, now: Now) {
        if let Some(PendingContext { progress: Progress::Submitted { silent_until }, .. }) =
            &mut self.context
        {
            silent_until.get_or_insert(now.tick + CONTEXT_SILENCE);
        }
    }

    /// Its effect was seen; what has not been typed had none.
    pub fn context_done(&mut self, command: ContextCommand, session: &str, out: &mut Out) {
        let is_it = |pending: &mut PendingContext| {
            pending.command == command && pending.progress != Progress::Waits
        };
        if let Some(pending) = self.context.take_if(is_it) {
            out.emit(SessionEvent::Timeline(command.done()));
            out.answer(pending.verb, Ok(json!({"method": command.as_str(), "session": session})));
        }
    }

    /// True: it came to nothing, and that was told.
    pub fn context_timed_out(&mut self, now: Now, out: &mut Out) -> bool {
        let Some(pending) = &self.context else { return false };
        let is_silent = match pending.progress {
            Progress::Submitted { silent_until: Some(at) } => at <= now.tick,
            Progress::Submitted { silent_until: None } | Progress::Waits => false,
        };
        if !is_silent && pending.deadline > now.tick {
            return false;
        }
        let why = if is_silent {
            "the session did not do it; the screen may say why (agent-relay attach)"
        } else {
            "the session did not come to it in time"
        };
        out.answer(pending.verb, Err(why.into()));
        self.context = None;
        true
    }

    // ---- end and time

    pub fn on_closed(&mut self, out: &mut Out) {
        let interrupts = self.interrupt.take().into_iter().flat_map(|pending| pending.verbs);
        let context = self.context.take().map(|pending| pending.verb);
        for verb in interrupts.chain(context) {
            out.answer(verb, Err("the provider ended".into()));
        }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        let interrupt = self.interrupt.as_ref().map(|pending| pending.deadline);
        let context = self.context.as_ref().and_then(|pending| match pending.progress {
            Progress::Submitted { silent_until } => sooner(Some(pending.deadline), silent_until),
            Progress::Waits => Some(pending.deadline),
        });
        sooner(interrupt, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::Output;

    const VERB: VerbNumber = VerbNumber(1);

    fn at(seconds: u64) -> Now {
        Now { tick: Tick(seconds * 1_000_000), ..Now::default() }
    }

    fn compacting() -> Commands {
        let (mut commands, mut out) = (Commands::default(), Out::default());
        let started = commands.start_context(at(0), VERB, ContextCommand::Compact, true);
        assert_eq!(started, Ok(()));
        assert!(!commands.changes_context(), "it only waits");
        commands.context_submitted(at(0), &mut out);
        assert!(commands.changes_context());
        commands
    }

    #[test]
    fn one_context_command_is_under_way_at_a_time() {
        let mut commands = compacting();
        assert!(commands.start_context(at(0), VERB, ContextCommand::Clear, true).is_err());
        let mut elsewhere = Commands::default();
        assert!(elsewhere.start_context(at(0), VERB, ContextCommand::Clear, false).is_err());
    }

    #[test]
    fn a_context_command_fails_when_it_leaves_no_trace() {
        // a turn begins, a turn ends -> seconds until it has failed
        for (begins, ends, want) in
            [(None, None, 10), (Some(3), None, 600), (Some(3), Some(20), 24), (None, Some(3), 10)]
        {
            let (mut commands, mut out) = (compacting(), Out::default());
            for second in 0..700 {
                if begins == Some(second) {
                    commands.on_turn_begun();
                }
                if ends == Some(second) {
                    commands.on_turn_ended(at(second));
                }
                if commands.context_timed_out(at(second), &mut out) {
                    assert_eq!(second, want, "{begins:?} {ends:?}");
                    break;
                }
            }
            assert!(!commands.has_context());
            assert_eq!(out.take().len(), 1);
        }
    }

    #[test]
    fn only_its_own_effect_ends_a_context_command() {
        let (mut commands, mut out) = (compacting(), Out::default());
        commands.context_done(ContextCommand::Clear, "s", &mut out);
        assert_eq!(out.take(), []);
        commands.context_done(ContextCommand::Compact, "s", &mut out);
        let answer = json!({"method": "/compact", "session": "s"});
        let want = [
            Output::Event(SessionEvent::Timeline("compacted")),
            Output::Event(SessionEvent::Answered { verb: VERB, result: Ok(answer) }),
        ];
        assert_eq!(out.take(), want);
        assert_eq!(commands.next_deadline(), None);
    }

    #[test]
    fn an_interrupt_has_one_deadline_for_all_who_asked() {
        let (mut commands, mut out) = (Commands::default(), Out::default());
        commands.start_interrupt(at(0), VerbNumber(1));
        commands.start_interrupt(at(5), VerbNumber(2));
        assert_eq!(commands.next_deadline(), Some(at(10).tick));
        assert!(!commands.interrupt_timed_out(at(9), &mut out));
        assert!(commands.interrupt_timed_out(at(10), &mut out));
        assert_eq!(out.take().len(), 2);
        assert!(!commands.is_interrupting());
    }
}
