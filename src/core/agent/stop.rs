//! The end of a runner, in phases with one deadline.

use std::fmt;
use std::time::Duration;

use super::Agent;
use super::effect::{BusCommand, Effect};
use super::event::StopReason;
use crate::core::agent::timer::Timer;
use crate::core::agent::tracker::Status;
use crate::core::time::{Now, Tick};
use crate::wire::control::LogLevel;

/// Why the runner ends.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Why {
    /// Signal or `--replace`.
    Asked(StopReason),
    /// `agent.shutdown`, `agent.kill`; with the words of whoever gave it.
    Command { hard: bool, patience: Duration, words: String },
    /// Another instance registered this agent, or it was deleted.
    Displaced(String),
    /// The relay refuses this agent at its start.
    Refused(String),
    /// The provider failed for good before it ever worked.
    ProviderFailed(String),
    /// The store is damaged or gone.
    StoreBroken(String),
    /// A thread of ours ended.
    Bug(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Why::Asked(reason) => write!(f, "Asked({})", reason.name()),
            Why::Command { patience, words, .. } => {
                write!(f, "Command {words} patience={} ms", patience.as_millis())
            }
            Why::Displaced(text) => write!(f, "Displaced: {text}"),
            Why::Refused(text) => write!(f, "Refused: {text}"),
            Why::ProviderFailed(text) => write!(f, "ProviderFailed: {text}"),
            Why::StoreBroken(text) => write!(f, "StoreBroken: {text}"),
            Why::Bug(text) => write!(f, "Bug: {text}"),
        }
    }
}

impl Why {
    /// For people, who read it for as long as the agent is away.
    fn in_words(&self) -> String {
        match self {
            Why::Asked(StopReason::Terminated) => "stopped by a signal (SIGTERM)".into(),
            Why::Asked(StopReason::Interrupted) => "stopped by Ctrl-C".into(),
            Why::Asked(StopReason::HungUp) => "stopped since its terminal went away".into(),
            Why::Asked(StopReason::Left) => "its session was ended at its own terminal".into(),
            Why::Asked(StopReason::Replaced) => "stopped for a runner with --replace".into(),
            Why::Command { words, .. } => format!("stopped by {words}"),
            Why::Displaced(reason) => format!("stopped: {reason}"),
            Why::Refused(reason)
            | Why::ProviderFailed(reason)
            | Why::StoreBroken(reason)
            | Why::Bug(reason) => reason.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The provider ends.
    Provider,
    /// What must still be said is sent.
    Flush,
    Done,
}

/// An end that is under way.
#[derive(Debug)]
pub(super) struct Stop {
    why: Why,
    phase: Phase,
    deadline: Tick,
    flush_by: Option<Tick>,
}

/// After the provider's patience: force, reaping, flush and goodbye.
const AFTER_PROVIDER: Duration = Duration::from_secs(8);
/// What is left in the outbox gets this long; the rest goes out next time.
const FLUSH: Duration = Duration::from_secs(2);

impl Stop {
    pub fn deadline(&self) -> Tick {
        self.flush_by.map_or(self.deadline, |flush| flush.min(self.deadline))
    }

    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub fn lifecycle_action(&self) -> Option<&'static str> {
        match &self.why {
            Why::Command { hard: true, .. } => Some("killing"),
            _ if self.failure().is_some() => None,
            _ => Some("shutting-down"),
        }
    }

    /// Why it ends although nobody asked for it: that stays visible as an error.
    pub fn failure(&self) -> Option<&str> {
        match &self.why {
            Why::Refused(reason)
            | Why::ProviderFailed(reason)
            | Why::StoreBroken(reason)
            | Why::Bug(reason) => Some(reason),
            Why::Asked(_) | Why::Command { .. } | Why::Displaced(_) => None,
        }
    }
}

impl Agent {
    pub(super) fn begin_stop(&mut self, now: Now, why: Why) {
        if let Some(stop) = &mut self.stop {
            // A second wish while stopping changes nothing, but for a bug, which must be reported.
            if matches!(why, Why::Bug(_)) {
                stop.why = why;
            }
            return;
        }
        let patience = match &why {
            Why::Command { hard: true, .. } => Duration::ZERO,
            Why::Command { patience, .. } => *patience,
            _ => self.config.shutdown_timeout,
        };
        self.log(LogLevel::Info, "lifecycle", format!("stopping: {why}"));
        self.supervisor.why = why.in_words();
        self.stop = Some(Stop {
            why,
            phase: Phase::Provider,
            deadline: now.tick + patience + AFTER_PROVIDER,
            flush_by: None,
        });
        self.status.touch();
        self.stop_provider(patience.as_millis() as u64);
    }

    /// Goes through the phases as far as possible; called at the end of every event.
    pub(super) fn advance_stop(&mut self, now: Now) {
        loop {
            let Some(stop) = &self.stop else { return };
            let late = stop.deadline <= now.tick;
            let flush_over = stop.flush_by.is_some_and(|by| by <= now.tick);
            let phase = stop.phase;
            match phase {
                Phase::Provider if self.supervisor.is_gone() || late => {
                    self.tracker.set_terminal(Some(Status::Offline));
                    self.end_stop_command(now);
                    if !matches!(self.stop.as_ref().map(|stop| &stop.why), Some(Why::Bug(_))) {
                        self.note_orderly_end();
                    }
                    self.set_phase(Phase::Flush, Some(now.tick + FLUSH));
                }
                Phase::Flush if self.commands.has_ending() => self.end_stop_command(now),
                Phase::Flush if late || flush_over || self.is_flushed() => {
                    // The relay keeps the agent as offline, with the reason, whoever stopped it:
                    // what is sent to it waits for its next runner.
                    self.status.fall_silent();
                    self.set_phase(Phase::Done, None);
                }
                Phase::Done => {
                    self.end_now();
                    return;
                }
                Phase::Provider | Phase::Flush => return,
            }
        }
    }

    fn set_phase(&mut self, phase: Phase, flush_by: Option<Tick>) {
        if let Some(stop) = &mut self.stop {
            stop.phase = phase;
            stop.flush_by = flush_by;
        }
    }

    /// Nothing durable is under way, and what the relay should hear has been heard or cannot be
    /// now.
    fn is_flushed(&self) -> bool {
        // A failure is told if the relay is there at all: nobody else will tell it.
        let failed = self
            .stop
            .as_ref()
            .is_some_and(|stop| stop.failure().is_some() && !matches!(stop.why, Why::Refused(_)));
        if failed && !self.relay_link.is_reached() && !self.relay_link.is_off() {
            return false;
        }
        let quiet = self.commits.is_durable();
        let heard = self.outbox.is_empty()
            && self.commands.all_reported()
            && self.http_calls.is_quiet()
            && self.turn.is_quiet();
        quiet && (heard || !self.relay_link.is_reached())
    }

    fn end_now(&mut self) {
        let (code, message) = match self.stop.as_ref().map(|stop| stop.why.clone()) {
            Some(Why::Refused(message)) => (2, message),
            Some(Why::ProviderFailed(message) | Why::StoreBroken(message)) => (1, message),
            Some(Why::Bug(message)) => (70, message),
            Some(Why::Displaced(message)) => (0, format!("stopped: {message}")),
            Some(Why::Asked(_) | Why::Command { .. }) | None => (0, String::new()),
        };
        if !self.relay_link.is_off() {
            self.out.push(Effect::Bus(BusCommand::Disconnect { reason: "runner stopped".into() }));
            self.relay_link.switch_off();
            self.timers.clear(Timer::LivenessRound);
            self.timers.clear(Timer::TellStatus);
        }
        self.finish(code, message);
    }
}
