//! Signs of life of a turn. While one runs the session is probed now and then; one that shows
//! nothing for long is stuck. It stays busy for the relay, and people see the finer word with its
//! evidence until life returns.

use std::time::Duration;

use serde_json::Value;

use super::Agent;
use crate::core::agent::timer::Timer;
use crate::core::ids::VerbNumber;
use crate::core::session::{SessionEvent, Signs, Verb};
use crate::core::time::{Now, Tick};
use crate::wire::api::{DetailedStatus, StatusSource};
use crate::wire::control::LogLevel;

/// A turn is looked at ten times until it counts as stuck, but never less or more often than this.
const PROBES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Whoever computes less than this share of a core, in percent, only keeps its clocks going and
/// answers our looks: Codex's server needs 0.2 for that on a quiet machine, 1.5 on a loaded one.
const COMPUTES_PERCENT: u64 = 3;
/// Bytes that a process moves between two looks without doing anything: it wakes its own threads.
const MOVED_IDLY: u64 = 1024;
/// A pause that the provider has announced is waited for so many times as long as any other.
const ANNOUNCED_TIMES: u32 = 4;
/// Processes that the evidence names.
const NAMED_MAX: usize = 6;

/// The turn under way, as far as it lives.
#[derive(Debug, Default)]
pub(super) struct Life {
    watch: Option<Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    /// When the last sign was seen.
    alive: Tick,
    /// What was seen last, and when.
    seen: Option<(Signs, Tick)>,
    stuck: bool,
    /// The probe that was asked last, and what the session answered to one: whether a turn runs.
    asked: Option<VerbNumber>,
    says: Option<String>,
}

impl Life {
    pub fn is_stuck(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.stuck)
    }
}

/// Whether something was done between two looks.
fn has_moved(before: &Signs, now: &Signs, between: Duration) -> bool {
    let more = |a: u64, b: u64| b.saturating_sub(a);
    let ids = |signs: &Signs| signs.processes.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let computed = more(before.computed_ms, now.computed_ms) * 100;
    let least = between.as_millis() as u64 * COMPUTES_PERCENT;
    before.output != now.output
        || before.record != now.record
        || before.network != now.network
        || ids(before) != ids(now)
        || more(before.moved, now.moved) > MOVED_IDLY
        || (computed >= least.max(1) && !crate::planted::is("deaf-probe"))
}

/// What was looked at in vain.
fn in_words(signs: &Signs, silent: Duration) -> String {
    let minutes = silent.as_secs() / 60;
    let time = match minutes {
        0 => format!("{} s", silent.as_secs()),
        _ => format!("{minutes} m"),
    };
    let named = signs.processes.iter().take(NAMED_MAX);
    let mut names: Vec<String> = named.map(|(id, name)| format!("{name} {id}")).collect();
    if signs.processes.len() > NAMED_MAX {
        names.push(format!("and {} more", signs.processes.len() - NAMED_MAX));
    }
    format!(
        "for {time} no output, no growth of its record, no computing and no network of {}",
        if names.is_empty() { "any process".into() } else { names.join(", ") }
    )
}

impl Agent {
    fn probe_pause(&self) -> Duration {
        (self.config.stuck_after / 10).clamp(PROBES.0, PROBES.1)
    }

    /// A turn that has begun is watched until its end; without one there is no timer.
    pub(super) fn watch_turn(&mut self, now: Now) {
        let runs = self.supervisor.is_ready() && self.is_turn_running();
        match (&self.life.watch, runs) {
            (None, true) => {
                self.life.watch = Some(Watch { alive: now.tick, ..Default::default() });
                self.timers.set(Timer::Probe, now.tick + self.probe_pause());
            }
            (Some(_), false) => {
                self.life.watch = None;
                self.timers.clear(Timer::Probe);
                self.status.touch();
            }
            _ => {}
        }
    }

    pub(super) fn on_probe_due(&mut self, now: Now) {
        self.timers.set(Timer::Probe, now.tick + self.probe_pause());
        let (number, order) = self.supervisor.verb(Verb::Probe);
        if let Some(watch) = &mut self.life.watch {
            watch.asked = Some(number);
        }
        self.commits.defer(order);
    }

    /// The session has answered a probe.
    pub(super) fn on_probe_answered(&mut self, verb: VerbNumber, result: &Result<Value, String>) {
        let Some(watch) = self.life.watch.as_mut().filter(|watch| watch.asked == Some(verb)) else {
            return;
        };
        let answer = result.as_ref().ok().and_then(|it| it.get("activity"));
        watch.says = answer.and_then(Value::as_str).map(str::to_string);
    }

    /// What the provider does in its turn, in its own words.
    fn is_in_state(&self, word: &str) -> bool {
        self.tracker.provider_state().get("state").and_then(Value::as_str) == Some(word)
    }

    /// Silence that is known: a person is asked, or what was handed over waits for something that
    /// is told.
    fn waits_for_somebody(&self) -> bool {
        !self.approvals.is_empty() || self.is_in_state("blocked") || self.status.waits_to_deliver()
    }

    /// What the process shows from outside.
    pub(super) fn on_probed(&mut self, now: Now, signs: Signs) {
        let Some(watch) = self.life.watch.as_ref() else { return };
        let silent = now.tick - watch.alive;
        let seen = watch.seen.as_ref();
        let moved = seen.map(|(before, at)| has_moved(before, &signs, now.tick - *at));
        let times = if self.is_in_state("retrying") { ANNOUNCED_TIMES } else { 1 };
        if moved == Some(true) || self.waits_for_somebody() {
            self.note_life(now);
        } else if moved.is_some() && silent >= self.config.stuck_after * times {
            self.note_stuck(&signs, silent);
        }
        if let Some(watch) = &mut self.life.watch {
            watch.seen = Some((signs, now.tick));
        }
    }

    /// Something that the session tells by itself, not for our asking.
    pub(super) fn note_sign_of_life(&mut self, now: Now, event: &SessionEvent) {
        use SessionEvent::*;
        let is_sign = matches!(
            event,
            Accepted { .. }
                | TurnStarted
                | Work { .. }
                | ProviderState(_)
                | Mirror(_)
                | ApprovalOpened(_)
                | Context(_)
        );
        if is_sign {
            self.note_life(now);
        }
    }

    fn note_life(&mut self, now: Now) {
        let Some(watch) = &mut self.life.watch else { return };
        watch.alive = now.tick;
        if std::mem::take(&mut watch.stuck) {
            self.status.timeline("provider.alive", now);
            self.log(LogLevel::Info, "lifecycle", "the turn shows signs of life again");
        }
    }

    fn note_stuck(&mut self, signs: &Signs, silent: Duration) {
        let mut text = in_words(signs, silent);
        let Some(watch) = self.life.watch.as_mut().filter(|watch| !watch.stuck) else { return };
        watch.stuck = true;
        if watch.says.as_deref().is_some_and(|says| says != "busy") {
            text.push_str("; the session itself knows of no turn");
        }
        self.status.timeline("provider.stuck", self.now);
        self.log(LogLevel::Warn, "lifecycle", format!("the turn is stuck: {text}"));
        self.note_evidence(DetailedStatus::Stuck, StatusSource::Runner, text);
    }
}
