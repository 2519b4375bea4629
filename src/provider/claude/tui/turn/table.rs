//! The rule by which the sources of a turn are fused: state, word of one source, what follows.

use super::{HOOK_LAG, IDLE_TIME, LastEnd, REGISTRY_LAG, State, Turn};
use crate::core::session::TurnEnd;
use crate::core::time::{Now, Tick};

const REGISTRY_BUSY: &str = "the session registry says busy";

/// What a source says.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Event {
    /// A hook, a proof of delivery or the screen at the start: the session works. For people: how
    /// that is known.
    Works(&'static str),
    /// A hook says that the turn is over, and perhaps what was said last.
    HookEnd { end: TurnEnd, said: Option<String>, evidence: &'static str },
    /// The conversation was left for another one.
    SessionMoved,
    /// The registry says busy. `expected`: a text was submitted that is not proven yet.
    RegistryBusy { expected: bool },
    /// The registry says idle, since that time (ms).
    RegistryIdle { since: i64 },
    /// Without a registry the screen is the only source beside the hooks.
    ScreenBusy { has_registry: bool },
    /// An input box is shown and nothing that works; only where there is no registry.
    ScreenIdle,
    /// The transcript tells the end of a turn, at that time (ms).
    TranscriptEnd { at: i64, registry_idle_since: Option<i64> },
    /// Time has passed.
    Wake(Seen),
}

/// How registry and screen stand when time has passed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Seen {
    pub registry_is_busy: bool,
    pub screen_is_busy: bool,
    /// The box holds the prompt of the turn again.
    pub gave_back: bool,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Transition {
    Stay,
    /// A turn begins; for people: how that is known.
    Begin(&'static str),
    End(TurnEnd, &'static str),
    /// Nothing runs, and the registry says busy, perhaps only late: it is asked again then.
    RecheckBusyAt(Tick),
    ForgetRecheck,
    /// Registry and screen have to agree on idle for a while, from then on at the latest.
    WatchIdle(Tick),
    /// They agree no more, or began to anew.
    RestartIdle(Tick),
    ForgetIdle,
    /// They disagreed at the end: a fresh picture decides.
    CaptureAgain(Tick),
}

/// The rule. What happens at `now` to a state, by the word of one source.
pub(super) fn transition(
    state: &State,
    last_end: Option<&LastEnd>,
    event: &Event,
    now: Now,
) -> Transition {
    use Transition::*;
    match (state, event) {
        // Said of a turn whose begin nobody saw, too: a proof of delivery may still come for it.
        (_, Event::HookEnd { end, evidence, .. }) => End(end.clone(), evidence),
        (_, Event::SessionMoved) => End(TurnEnd::Completed, "the session was cleared"),

        // Nothing runs.
        (State::Idle { .. }, Event::Works(evidence)) => Begin(evidence),
        // Just after a turn the file may still tell of that one: it is written with a delay.
        (State::Idle { .. }, Event::RegistryBusy { expected: false })
            if has_just_ended(last_end, now) =>
        {
            RecheckBusyAt(now.tick + REGISTRY_LAG)
        }
        (State::Idle { .. }, Event::RegistryBusy { .. }) => Begin(REGISTRY_BUSY),
        (State::Idle { .. }, Event::ScreenBusy { has_registry: false }) => {
            Begin("the screen shows a running turn")
        }
        (State::Idle { recheck_busy_at: Some(at) }, Event::Wake(seen)) if *at <= now.tick => {
            if seen.registry_is_busy { Begin(REGISTRY_BUSY) } else { ForgetRecheck }
        }
        (State::Idle { .. }, _) => Stay,

        // A turn runs.
        (State::Running(_), Event::RegistryBusy { .. }) => ForgetIdle,
        // An idle from before the turn: the program has not noticed it yet, or there is none.
        (State::Running(turn), Event::RegistryIdle { since }) if *since < turn.began => {
            let is_planted = crate::planted::is("registry-lag");
            if is_planted { ForgetIdle } else { WatchIdle(now.tick + HOOK_LAG) }
        }
        (State::Running(turn), Event::RegistryIdle { .. }) if turn.interrupted => {
            End(TurnEnd::Cancelled, "the session registry says idle after an interrupt")
        }
        (State::Running(_), Event::RegistryIdle { .. } | Event::ScreenIdle) => WatchIdle(now.tick),
        (State::Running(turn), Event::ScreenBusy { has_registry: true })
            if turn.idle_since.is_some() =>
        {
            RestartIdle(now.tick)
        }
        (State::Running(turn), Event::TranscriptEnd { at, registry_idle_since })
            if turn.answered
                && *at >= turn.began
                && registry_idle_since.is_some_and(|since| since >= turn.began) =>
        {
            End(TurnEnd::Completed, "the transcript tells the end of the turn")
        }
        (State::Running(turn), Event::Wake(seen)) if turn.was_idle_for(IDLE_TIME, now) => {
            if seen.registry_is_busy || seen.screen_is_busy {
                CaptureAgain(now.tick)
            } else {
                End(unseen_end(turn, seen), "the session registry and the screen say idle")
            }
        }
        (State::Running(_), _) => Stay,
    }
}

fn has_just_ended(last_end: Option<&LastEnd>, now: Now) -> bool {
    let lag = REGISTRY_LAG.as_millis() as i64;
    last_end.is_some_and(|last| now.wall.0 - last.at < lag)
}

/// How a turn ended whose end no hook told.
fn unseen_end(turn: &Turn, seen: &Seen) -> TurnEnd {
    match turn {
        Turn { interrupted: true, .. } => TurnEnd::Cancelled,
        Turn { answered: true, .. } | Turn { local: true, .. } => TurnEnd::Completed,
        // Nobody interrupted, and the prompt stands in the box again.
        turn if !turn.ours.is_empty() && seen.gave_back => {
            TurnEnd::Failed("the session gave the prompt back: a hook of its own blocked it".into())
        }
        _ => TurnEnd::Cancelled,
    }
}
