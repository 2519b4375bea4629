//! The rule by which the sources of a turn are fused: state, word of one source, what follows.
//!
//! Each word says when it was so: a hook when it ran, the registry when its status changed, the
//! transcript when an entry was made, a picture when it was asked for (all by the wall clock, ms).
//! What is older than the state says nothing about it, however late it is read.

use super::{IDLE_TIME, State, Turn, Turns};
use crate::core::session::TurnEnd;
use crate::core::time::{Now, Tick};

/// What a source says.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Event {
    /// A hook or the screen at the start: the session worked at that time. For people: how that is
    /// known.
    Works { at: i64, evidence: &'static str },
    /// It took a text of ours then. Its end may have been told before, in another way.
    Took { at: i64, evidence: &'static str },
    /// The transcript has an answer of then.
    Answers { at: i64, evidence: &'static str },
    /// A hook says that the turn was over then, and perhaps what was said last.
    HookEnd { at: i64, end: TurnEnd, said: Option<String>, evidence: &'static str },
    /// The conversation was left for another one.
    SessionMoved { at: i64 },
    /// The registry says busy since then. `explained`: a subagent in the background keeps it so.
    RegistryBusy { since: i64, explained: bool },
    /// The registry says idle since then.
    RegistryIdle { since: i64 },
    /// A picture shows a running turn. `decides`: the registry says nothing about turns.
    ScreenBusy { at: i64, decides: bool },
    /// A picture shows an empty box and nothing that works, or the prompt of the turn in the box
    /// again.
    ScreenIdle { at: i64, decides: bool, gave_back: bool },
    /// The transcript tells the end of a turn. `decides`: the registry says nothing about turns.
    TranscriptEnd { at: i64, decides: bool, registry_idle_since: Option<i64> },
    /// Time has passed.
    Wake(Seen),
}

/// How registry and screen stand when time has passed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Seen {
    /// Of a turn that is not over yet.
    pub registry_is_busy: bool,
    pub screen_is_busy: bool,
    /// An empty box is shown, or there is no screen to look at.
    pub screen_is_quiet: bool,
    /// The box holds the prompt of the turn again.
    pub gave_back: bool,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Transition {
    Stay,
    /// A turn began then; for people: how that is known.
    Begin(i64, &'static str),
    /// It was over then.
    End(i64, TurnEnd, &'static str),
    /// Nothing ran then.
    Quiet(i64),
    /// Nothing ran then, and a picture shows it.
    QuietScreen(i64),
    /// A picture of the running turn shows that it works.
    SeenBusy,
    /// The transcript tells the end: a picture that is younger decides.
    LookAfter(i64),
    /// The sources have to agree on idle for a while, from then on at the latest.
    WatchIdle(Tick),
    /// They agree no more, or began to anew.
    RestartIdle(Tick),
    ForgetIdle,
    /// They disagreed at the end: a fresh picture decides.
    CaptureAgain(Tick),
    /// A turn that was told of by one source alone has given a sign since.
    StillThere(Tick),
}

/// The rule. What happens at `now` to a state, by the word of one source.
pub(super) fn transition(turns: &Turns, event: &Event, now: Now) -> Transition {
    match &turns.state {
        // Still of the last turn, whose end the transcript has not told.
        State::Idle { .. } if turns.is_unwritten && matches!(event, Event::Answers { .. }) => {
            Transition::Stay
        }
        State::Idle { quiet_screen } => idle(turns.quiet_at, *quiet_screen, event),
        State::Running(turn) => running(turns.quiet_at, turn, event, now),
    }
}

/// Nothing runs, as far as is known. The sources told so last at `quiet_at`.
fn idle(quiet_at: i64, quiet_screen: bool, event: &Event) -> Transition {
    use Transition::*;
    match event {
        // Said of a turn whose begin nobody saw: a proof of delivery may still come for it.
        Event::HookEnd { at, end, evidence, .. } => End(*at, end.clone(), evidence),
        Event::SessionMoved { at } => End(*at, TurnEnd::Completed, "the session was cleared"),
        Event::Works { at, evidence } if *at >= quiet_at => Begin(*at, evidence),
        Event::Answers { at, evidence } if *at > quiet_at => Begin(*at, evidence),
        Event::Took { at, evidence } => Begin(*at, evidence),
        // A word from before the end of the last turn is of that one, and what a subagent in the
        // background keeps busy is no turn.
        Event::RegistryBusy { since, explained }
            if !explained && *since > quiet_at || crate::planted::is("stale-registry") =>
        {
            Begin(*since, "the session registry says busy")
        }
        Event::RegistryIdle { since } => Quiet(*since),
        // At the end of a turn the screen still shows it: only one that was seen quiet since then
        // shows another one.
        Event::ScreenBusy { at, decides: true } if quiet_screen && *at > quiet_at => {
            Begin(*at, "the screen shows a running turn")
        }
        Event::ScreenIdle { at, gave_back: false, .. } if *at >= quiet_at => QuietScreen(*at),
        _ => Stay,
    }
}

fn running(quiet_at: i64, turn: &Turn, event: &Event, now: Now) -> Transition {
    use Transition::*;
    match event {
        // Of the turn before.
        Event::HookEnd { at, .. } if *at < turn.began => Stay,
        Event::HookEnd { at, end, evidence, .. } => End(*at, end.clone(), evidence),
        Event::SessionMoved { at } => End(*at, TurnEnd::Completed, "the session was cleared"),
        Event::RegistryBusy { since, explained } if !explained && *since > quiet_at => ForgetIdle,
        // An idle from before the turn says nothing about it.
        Event::RegistryIdle { since } if *since < turn.began => Stay,
        Event::RegistryIdle { since } if turn.interrupted_at.is_some() => {
            let evidence = "the session registry says idle after an interrupt";
            End(*since, TurnEnd::Cancelled, evidence)
        }
        Event::RegistryIdle { .. } => WatchIdle(now.tick),
        Event::ScreenBusy { at, .. } if *at < turn.began => Stay,
        Event::ScreenBusy { decides: false, .. } if turn.idle_since.is_some() => {
            RestartIdle(now.tick)
        }
        Event::ScreenBusy { .. } => SeenBusy,
        Event::ScreenIdle { at, decides, gave_back } if *at >= turn.began => {
            screen_idle(turn, *at, *decides, *gave_back, now)
        }
        Event::TranscriptEnd { at, decides, registry_idle_since }
            if turn.answered && *at >= turn.began =>
        {
            match registry_idle_since.filter(|since| *since >= turn.began) {
                Some(_) => End(*at, TurnEnd::Completed, "the transcript tells the end of the turn"),
                None if *decides => LookAfter(*at),
                None => Stay,
            }
        }
        Event::Wake(seen) if turn.was_idle_for(IDLE_TIME, now) => {
            if seen.registry_is_busy || seen.screen_is_busy {
                CaptureAgain(now.tick)
            } else {
                let evidence = "the session registry and the screen say idle";
                End(now.wall.0, unseen_end(turn, seen), evidence)
            }
        }
        Event::Wake(seen) if turn.is_lost(now) => {
            if seen.registry_is_busy || seen.screen_is_busy || !seen.screen_is_quiet || turn.signed
            {
                StillThere(now.tick)
            } else {
                End(now.wall.0, unseen_end(turn, seen), "nothing has told of the turn for a minute")
            }
        }
        _ => Stay,
    }
}

/// A picture that was asked for at `at`, after the begin of the turn, shows nothing that works.
fn screen_idle(turn: &Turn, at: i64, decides: bool, gave_back: bool, now: Now) -> Transition {
    use Transition::*;
    if turn.over_at.is_some_and(|over| at > over) {
        let end = turn.interrupted_at.map_or(TurnEnd::Completed, |_| TurnEnd::Cancelled);
        return End(at, end, "the transcript and the screen tell the end of the turn");
    }
    // The registry has to tell; or the turn was never seen: it may not be drawn yet.
    if !decides || !turn.seen_busy && !gave_back {
        return Stay;
    }
    match turn.interrupted_at {
        Some(since) if at > since => {
            End(at, TurnEnd::Cancelled, "the screen shows the prompt after an interrupt")
        }
        _ => WatchIdle(now.tick),
    }
}

/// How a turn ended whose end no hook told.
fn unseen_end(turn: &Turn, seen: &Seen) -> TurnEnd {
    match turn {
        Turn { interrupted_at: Some(_), .. } => TurnEnd::Cancelled,
        Turn { answered: true, .. } | Turn { local: true, .. } => TurnEnd::Completed,
        // Nobody interrupted, and the prompt stands in the box again.
        turn if !turn.ours.is_empty() && seen.gave_back => {
            TurnEnd::Failed("the session gave the prompt back: a hook of its own blocked it".into())
        }
        _ => TurnEnd::Cancelled,
    }
}
