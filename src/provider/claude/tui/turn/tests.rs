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

/// A turn that began at zero, while the registry said busy.
fn running() -> Turns {
    begun(RegistryWord::Busy)
}

/// The same with another word of the registry.
fn begun(registry: RegistryWord) -> Turns {
    let mut turns = Turns::new(false);
    turns.begin(after(0), wall(0), false, registry);
    turns
}

fn interrupted() -> Turns {
    let mut turns = running();
    turns.interrupt(after(0));
    turns
}

fn watching() -> Turns {
    let mut turns = running();
    turns.observe(after(0), &Event::RegistryIdle { since: wall(0) });
    turns
}

/// One that a picture has shown.
fn seen() -> Turns {
    let mut turns = begun(RegistryWord::Nothing);
    turns.observe(after(1), &Event::ScreenBusy { at: wall(1), decides: true });
    turns
}

fn seen_and(more: fn(&mut Turns)) -> Turns {
    let mut turns = seen();
    more(&mut turns);
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
    turns.take_text(Taken { batch: BatchNumber(1), first: "x".into(), at: wall(0), joined: false });
    turns
}

/// One that ended at zero, as a hook told.
fn ended() -> Turns {
    let mut turns = Turns::new(false);
    turns.begin(after(0), wall(0) - 100, false, RegistryWord::Busy);
    turns.observe(after(0), &hook_end(0));
    turns.finish(wall(0), TurnEnd::Completed, None);
    turns
}

/// The same, and then a picture was quiet.
fn ended_quietly() -> Turns {
    let mut turns = ended();
    turns.observe(after(10), &screen_idle(10, false));
    turns
}

const QUIET: Seen = Seen {
    registry_is_busy: false,
    screen_is_busy: false,
    screen_is_quiet: true,
    gave_back: false,
};

fn hook_end(at: i64) -> Event {
    Event::HookEnd { at: wall(0) + at, end: TurnEnd::Completed, said: None, evidence: "hook" }
}

fn works(at: i64) -> Event {
    Event::Works { at: wall(0) + at, evidence: "hook" }
}

fn busy(since: i64) -> Event {
    Event::RegistryBusy { since: wall(0) + since, explained: false }
}

fn explained(since: i64) -> Event {
    Event::RegistryBusy { since: wall(0) + since, explained: true }
}

fn registry_idle(since: i64) -> Event {
    Event::RegistryIdle { since: wall(0) + since }
}

fn screen_busy(at: i64, decides: bool) -> Event {
    Event::ScreenBusy { at: wall(0) + at, decides }
}

fn screen_idle(at: i64, decides: bool) -> Event {
    Event::ScreenIdle { at: wall(0) + at, decides, gave_back: false }
}

fn transcript_end(at: i64, decides: bool, since: Option<i64>) -> Event {
    let registry_idle_since = since.map(|since| wall(0) + since);
    Event::TranscriptEnd { at: wall(0) + at, decides, registry_idle_since }
}

#[test]
fn nothing_runs() {
    use Transition::{Quiet, QuietScreen, Stay};
    let begin = |at: i64, evidence| Transition::Begin(wall(0) + at, evidence);
    let hook = Transition::End(wall(5), TurnEnd::Completed, "hook");
    let (registry, screen) = ("the session registry says busy", "the screen shows a running turn");
    let answers = |at: i64| Event::Answers { at: wall(0) + at, evidence: "answer" };
    let took = Event::Took { at: wall(0) - 5, evidence: "proof" };
    let gave_back = Event::ScreenIdle { at: wall(5), decides: true, gave_back: true };
    let idle = || Turns::new(false);
    // Whatever it says, it is read long after: only when it was so counts.
    for (turns, event, want) in [
        (idle(), works(0), begin(0, "hook")),
        (ended(), works(5), begin(5, "hook")),
        (ended(), works(-5), Stay),
        (ended(), took, begin(-5, "proof")),
        (ended(), answers(5), begin(5, "answer")),
        (ended(), answers(-5), Stay),
        (ended(), hook_end(5), hook),
        (idle(), busy(0), begin(0, registry)),
        (ended(), busy(-1), Stay),
        (ended(), busy(0), Stay),
        (ended(), busy(1), begin(1, registry)),
        (ended(), explained(1), Stay),
        (ended(), registry_idle(5), Quiet(wall(5))),
        (idle(), screen_busy(5, true), begin(5, screen)),
        (idle(), screen_busy(5, false), Stay),
        // The last turn may still be shown.
        (ended(), screen_busy(5, true), Stay),
        (ended(), screen_idle(-5, true), Stay),
        (ended(), screen_idle(5, true), QuietScreen(wall(5))),
        (ended(), gave_back, Stay),
        (ended_quietly(), screen_busy(20, true), begin(20, screen)),
        (ended_quietly(), screen_busy(20, false), Stay),
        (ended(), transcript_end(5, true, Some(5)), Stay),
        (ended(), Event::Wake(Seen { registry_is_busy: true, ..QUIET }), Stay),
    ] {
        let mut turns = turns;
        assert_eq!(turns.observe(after(60_000), &event), want, "{event:?}");
    }
}

#[test]
fn a_turn_runs() {
    use Transition::{CaptureAgain, ForgetIdle, LookAfter, RestartIdle, SeenBusy, Stay, WatchIdle};
    let end = |at: i64, end, evidence| Transition::End(wall(0) + at, end, evidence);
    let seen_busy = Event::Wake(Seen { screen_is_busy: true, ..QUIET });
    let unseen = "the session registry and the screen say idle";
    let by_interrupt = "the session registry says idle after an interrupt";
    let by_transcript = "the transcript tells the end of the turn";
    let (completed, cancelled) = (TurnEnd::Completed, TurnEnd::Cancelled);
    for (turns, ms, event, want) in [
        (running(), 5, works(5), Stay),
        (running(), 5, hook_end(5), end(5, completed.clone(), "hook")),
        // The Stop of the turn before, heard late.
        (running(), 5, hook_end(-5), Stay),
        (watching(), 5, busy(1), ForgetIdle),
        (watching(), 5, explained(1), Stay),
        (running(), 5, registry_idle(5), WatchIdle(tick(5))),
        (running(), 5, registry_idle(-5), Stay),
        (interrupted(), 5, registry_idle(-5), Stay),
        (interrupted(), 5, registry_idle(5), end(5, cancelled.clone(), by_interrupt)),
        (running(), 5, screen_busy(5, false), SeenBusy),
        (running(), 5, screen_busy(-5, false), Stay),
        (watching(), 5, screen_busy(5, false), RestartIdle(tick(5))),
        (
            answered(),
            5,
            transcript_end(5, false, Some(5)),
            end(5, completed.clone(), by_transcript),
        ),
        (answered(), 5, transcript_end(5, false, None), Stay),
        (answered(), 5, transcript_end(5, true, None), LookAfter(wall(5))),
        (running(), 5, transcript_end(5, false, Some(5)), Stay),
        (running(), 5000, Event::Wake(QUIET), Stay),
        (watching(), 999, Event::Wake(QUIET), Stay),
        (watching(), 1000, Event::Wake(QUIET), end(1000, cancelled, unseen)),
        (watching(), 1000, seen_busy, CaptureAgain(tick(1000))),
    ] {
        let mut turns = turns;
        assert_eq!(turns.observe(after(ms), &event), want, "{event:?} after {ms} ms");
    }
}

/// Where a subagent in the background keeps the registry busy.
#[test]
fn the_screen_decides_where_the_registry_says_nothing() {
    use Transition::{Stay, WatchIdle};
    let end = |at: i64, end, evidence| Transition::End(wall(0) + at, end, evidence);
    let gave_back = Event::ScreenIdle { at: wall(5), decides: true, gave_back: true };
    let by_both = "the transcript and the screen tell the end of the turn";
    let by_screen = "the screen shows the prompt after an interrupt";
    let escaped = || seen_and(|turns| assert!(turns.interrupt(after(4))));
    let interrupted = || seen_and(|turns| assert!(turns.interrupted_at(wall(4))));
    let over = seen_and(|turns| {
        turns.on_answer(&said("Done.", "end_turn"));
        turns.observe(after(4), &transcript_end(4, true, None));
    });
    for (turns, event, want) in [
        // What was never seen may not be drawn yet.
        (begun(RegistryWord::Nothing), screen_idle(5, true), Stay),
        (begun(RegistryWord::Nothing), gave_back, WatchIdle(tick(9))),
        (seen(), screen_idle(-5, true), Stay),
        (seen(), screen_idle(5, false), Stay),
        (seen(), screen_idle(5, true), WatchIdle(tick(9))),
        (escaped(), screen_idle(4, true), WatchIdle(tick(9))),
        (escaped(), screen_idle(5, true), end(5, TurnEnd::Cancelled, by_screen)),
        (interrupted(), screen_idle(5, true), end(5, TurnEnd::Cancelled, by_both)),
        (over, screen_idle(5, true), end(5, TurnEnd::Completed, by_both)),
    ] {
        let mut turns = turns;
        assert_eq!(turns.observe(after(9), &event), want, "{event:?}");
    }
}

/// A picture that is quiet may be older than the next turn, which is not drawn yet.
#[test]
fn what_a_picture_ends_hides_no_turn_that_began_before_it_was_drawn() {
    let mut turns = seen_and(|turns| assert!(turns.interrupt(after(4))));
    turns.observe(after(9), &screen_idle(7, true));
    turns.finish(wall(7), TurnEnd::Cancelled, None);
    let begin = Transition::Begin(wall(6), "hook");
    assert_eq!(turns.observe(after(9), &works(6)), begin);
}

#[test]
fn a_turn_that_one_source_alone_has_told_of_is_given_up_after_a_minute_without_a_sign() {
    let stale = RegistryWord::Idle { since: wall(0) - 5 };
    let lost = "nothing has told of the turn for a minute";
    let lost = Transition::End(wall(60_000), TurnEnd::Cancelled, lost);
    let draft = Seen { screen_is_quiet: false, ..QUIET };
    let busy = Seen { screen_is_busy: true, ..QUIET };
    let there = Transition::StillThere(tick(60_000));
    for (turns, ms, seen, want) in [
        (begun(stale), 59_999, QUIET, Transition::Stay),
        (begun(stale), 60_000, QUIET, lost),
        (begun(stale), 60_000, draft, there.clone()),
        (begun(stale), 60_000, busy, there.clone()),
        (self::seen(), 60_000, QUIET, there),
        (running(), 600_000, QUIET, Transition::Stay),
    ] {
        let mut turns = turns;
        assert_eq!(turns.observe(after(ms), &Event::Wake(seen)), want, "{seen:?} after {ms} ms");
    }
}

#[test]
fn an_end_that_nobody_told_is_judged_by_what_was_seen() {
    let mut done = answered();
    done.observe(after(0), &registry_idle(0));
    let gave_back = Seen { gave_back: true, ..QUIET };
    for (turns, seen, want) in [
        (done, QUIET, "Completed"),
        (watching(), gave_back, "Cancelled"),
        (ours(), QUIET, "Cancelled"),
        (ours(), gave_back, "Failed"),
    ] {
        let mut turns = turns;
        match turns.observe(after(1000), &Event::Wake(seen)) {
            Transition::End(_, end, _) => assert!(format!("{end:?}").starts_with(want), "{end:?}"),
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
        turns.begin(after(0), wall(0), false, RegistryWord::Busy);
        turns.on_answer(&said("one", "tool_use"));
        turns.on_answer(&said("two", "end_turn"));
        let finished = turns.finish(wall(5), TurnEnd::Completed, hook).expect("a turn ran");
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
        turns.begin(after(0), wall(0), false, RegistryWord::Busy);
        turns.set_prompt(&format!("p{number}"), String::new(), true);
        turns.finish(wall(0), TurnEnd::Completed, None);
    }
    assert!(!turns.is_over("p5"), "without a turn nothing is late");
    turns.begin(after(0), wall(0), false, RegistryWord::Busy);
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

/// Behind a subagent in the background the screen alone tells the end of an interrupted turn; what
/// was said in it is written later, and its times may be younger than the picture.
#[test]
fn what_an_interrupted_turn_said_begins_no_other() {
    let answers = |at: i64| Event::Answers { at: wall(0) + at, evidence: "answer" };
    let begins = |turns: &mut Turns, event: &Event| {
        matches!(turns.observe(after(60), event), Transition::Begin(..))
    };
    let over = || {
        let mut turns = seen_and(|turns| assert!(turns.interrupt(after(4))));
        let end = turns.observe(after(30), &screen_idle(5, true));
        assert!(matches!(end, Transition::End(_, TurnEnd::Cancelled, _)), "{end:?}");
        turns.finish(wall(5), TurnEnd::Cancelled, None);
        turns
    };
    let mut turns = over();
    assert!(!begins(&mut turns, &answers(3)) && !begins(&mut turns, &answers(20)));
    assert!(!turns.interrupted_at(wall(21)), "no turn is marked");
    // Then all of it is written: an answer is of another turn.
    assert!(begins(&mut turns, &answers(40)));
    // Whoever else tells of another turn is heard at once.
    for event in [works(6), busy(7), Event::Took { at: wall(6), evidence: "proof" }] {
        assert!(begins(&mut over(), &event), "{event:?}");
    }
}
