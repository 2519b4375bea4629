//! The table row by row, and what is kept of turns that are over.

use super::*;
use crate::core::time::Wall;
use crate::provider::claude::transcript::Block;

const START_MS: u64 = 100_000;

/// So many ms after the begin of the turn.
fn after(ms: u64) -> Now {
    let ms = START_MS + ms;
    Now { tick: Tick(ms * 1000), wall: Wall(ms as i64) }
}

fn wall(ms: u64) -> i64 {
    after(ms).wall.0
}

fn tick(ms: u64) -> Tick {
    after(ms).tick
}

/// A turn that began at zero, with a registry that was not idle.
fn running() -> Turns {
    let mut turns = Turns::new(false);
    turns.begin(after(0), false, false);
    turns
}

fn interrupted() -> Turns {
    let mut turns = running();
    turns.interrupt();
    turns
}

fn watching() -> Turns {
    let mut turns = running();
    turns.observe(after(0), &Event::RegistryIdle { since: wall(0) });
    turns
}

fn said(text: &str, stop_reason: &str) -> Answer {
    let blocks = vec![Block::Text(text.into())];
    Answer { blocks, stop_reason: stop_reason.into(), ..Answer::default() }
}

fn answered() -> Turns {
    let mut turns = running();
    turns.on_answer(&said("Done.", "end_turn"));
    turns
}

fn ours() -> Turns {
    let mut turns = watching();
    let text = Taken { batch: BatchNumber(1), first: "x".into(), at: wall(0), joined: false };
    turns.take_text(text, false);
    turns
}

/// One that ended at zero.
fn ended() -> Turns {
    let mut turns = running();
    turns.finish(after(0), TurnEnd::Completed, None);
    turns
}

fn rechecking() -> Turns {
    let mut turns = ended();
    turns.recheck_busy(after(0));
    turns
}

const QUIET: Seen = Seen { registry_is_busy: false, screen_is_busy: false, gave_back: false };

fn hook_end() -> Event {
    Event::HookEnd { end: TurnEnd::Completed, said: None, evidence: "hook" }
}

fn transcript_end(at: u64, since: Option<u64>) -> Event {
    Event::TranscriptEnd { at: wall(at), registry_idle_since: since.map(wall) }
}

#[test]
fn nothing_runs() {
    let busy = |expected| Event::RegistryBusy { expected };
    let screen = |has_registry| Event::ScreenBusy { has_registry };
    let seen_busy = Event::Wake(Seen { registry_is_busy: true, ..QUIET });
    let by_registry = Transition::Begin("the session registry says busy");
    let by_screen = Transition::Begin("the screen shows a running turn");
    let hook = Transition::End(TurnEnd::Completed, "hook");
    let recheck = Transition::RecheckBusyAt(tick(299));
    let idle = || Turns::new(false);
    for (turns, ms, event, want) in [
        (idle(), 0, Event::Works("hook"), Transition::Begin("hook")),
        (idle(), 0, hook_end(), hook),
        (idle(), 0, busy(false), by_registry.clone()),
        (ended(), 99, busy(false), recheck),
        (ended(), 99, busy(true), by_registry.clone()),
        (ended(), 200, busy(false), by_registry.clone()),
        (idle(), 0, Event::RegistryIdle { since: 0 }, Transition::Stay),
        (idle(), 0, screen(true), Transition::Stay),
        (idle(), 0, screen(false), by_screen),
        (idle(), 0, Event::ScreenIdle, Transition::Stay),
        (idle(), 0, transcript_end(0, Some(0)), Transition::Stay),
        (idle(), 0, seen_busy.clone(), Transition::Stay),
        (rechecking(), 199, seen_busy.clone(), Transition::Stay),
        (rechecking(), 200, seen_busy, by_registry),
        (rechecking(), 200, Event::Wake(QUIET), Transition::ForgetRecheck),
    ] {
        let mut turns = turns;
        let found = turns.observe(after(ms), &event);
        assert_eq!(found, want, "{event:?} after {ms} ms");
    }
}

#[test]
fn a_turn_runs() {
    let idle = |since| Event::RegistryIdle { since: wall(since) };
    let old_idle = Event::RegistryIdle { since: wall(0) - 1 };
    let screen = |has_registry| Event::ScreenBusy { has_registry };
    let seen_busy = Event::Wake(Seen { screen_is_busy: true, ..QUIET });
    let unseen = |end| Transition::End(end, "the session registry and the screen say idle");
    let by_interrupt = "the session registry says idle after an interrupt";
    let by_interrupt = Transition::End(TurnEnd::Cancelled, by_interrupt);
    let by_transcript = "the transcript tells the end of the turn";
    let by_transcript = Transition::End(TurnEnd::Completed, by_transcript);
    for (turns, ms, event, want) in [
        (running(), 5, Event::Works("hook"), Transition::Stay),
        (running(), 5, hook_end(), Transition::End(TurnEnd::Completed, "hook")),
        (watching(), 5, Event::RegistryBusy { expected: false }, Transition::ForgetIdle),
        (running(), 5, idle(5), Transition::WatchIdle(tick(5))),
        (running(), 5, old_idle.clone(), Transition::WatchIdle(tick(2005))),
        (interrupted(), 5, old_idle, Transition::WatchIdle(tick(2005))),
        (interrupted(), 5, idle(5), by_interrupt),
        (running(), 5, Event::ScreenIdle, Transition::WatchIdle(tick(5))),
        (running(), 5, screen(true), Transition::Stay),
        (watching(), 5, screen(true), Transition::RestartIdle(tick(5))),
        (watching(), 5, screen(false), Transition::Stay),
        (answered(), 5, transcript_end(5, Some(5)), by_transcript),
        (answered(), 5, transcript_end(5, None), Transition::Stay),
        (running(), 5, transcript_end(5, Some(5)), Transition::Stay),
        (running(), 5000, Event::Wake(QUIET), Transition::Stay),
        (watching(), 999, Event::Wake(QUIET), Transition::Stay),
        (watching(), 1000, Event::Wake(QUIET), unseen(TurnEnd::Cancelled)),
        (watching(), 1000, seen_busy, Transition::CaptureAgain(tick(1000))),
    ] {
        let mut turns = turns;
        let found = turns.observe(after(ms), &event);
        assert_eq!(found, want, "{event:?} after {ms} ms");
    }
}

#[test]
fn an_end_that_nobody_told_is_judged_by_what_was_seen() {
    let mut done = answered();
    done.observe(after(0), &Event::ScreenIdle);
    let gave_back = Seen { gave_back: true, ..QUIET };
    for (turns, seen, want) in [
        (done, QUIET, "Completed"),
        (watching(), gave_back, "Cancelled"),
        (ours(), QUIET, "Cancelled"),
        (ours(), gave_back, "Failed"),
    ] {
        let mut turns = turns;
        match turns.observe(after(1000), &Event::Wake(seen)) {
            Transition::End(end, _) => assert!(format!("{end:?}").starts_with(want), "{end:?}"),
            other => panic!("{other:?} instead of {want}"),
        }
    }
}

#[test]
fn the_answer_is_the_last_message_or_all_of_them() {
    // all is wanted, what the hook says -> answer
    for (full, hook, want) in [
        (false, None, "two"),
        (false, Some("three"), "three"),
        (false, Some("  "), "two"),
        (true, None, "one\ntwo"),
        (true, Some("two"), "one\ntwo"),
        (true, Some("three"), "one\ntwo\nthree"),
    ] {
        let mut turns = Turns::new(full);
        turns.begin(after(0), false, false);
        turns.on_answer(&said("one", "tool_use"));
        turns.on_answer(&said("two", "end_turn"));
        let finished = turns.finish(after(5), TurnEnd::Completed, hook).expect("a turn ran");
        assert_eq!(finished.text, want, "full={full} {hook:?}");
        assert_eq!(turns.last_end().map(|last| last.text.as_str()), Some(want));
    }
}

#[test]
fn what_was_written_late_belongs_to_the_turn_before() {
    let mut turns = running();
    let early = Answer { at: wall(0) - 1, ..said("x", "end_turn") };
    assert_eq!(turns.on_answer(&early), AnswerPlace { turn: 0, is_current: false });
    let current = Answer { at: wall(1), ..said("x", "end_turn") };
    assert_eq!(turns.on_answer(&current), AnswerPlace { turn: 1, is_current: true });
}

#[test]
fn late_hooks_of_prompts_that_are_over_are_known() {
    let mut turns = Turns::new(false);
    for number in 0..PROMPTS_MAX + 2 {
        turns.begin(after(0), false, false);
        turns.set_prompt(&format!("p{number}"), true);
        turns.finish(after(0), TurnEnd::Completed, None);
    }
    assert!(!turns.is_over("p5"), "without a turn nothing is late");
    turns.begin(after(0), false, false);
    for (prompt, is_over) in [("p1", false), ("p2", true), ("p9", true), ("new", false)] {
        assert_eq!(turns.is_over(prompt), is_over, "{prompt}");
    }
}

#[test]
fn another_attempt_is_another_activity() {
    let mut turns = running();
    let retrying = |attempt: &str| Activity::Retrying(attempt.into());
    for (activity, is_news) in [
        (Activity::Running, false),
        (retrying("1"), true),
        (retrying("1"), false),
        (retrying("2"), true),
        (Activity::Waiting, true),
    ] {
        assert_eq!(turns.set_activity(activity.clone()), is_news, "{activity:?}");
    }
}
