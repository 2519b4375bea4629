//! Turns that show no sign of life, by the injected clock.

use super::*;
use crate::core::agent::config::STUCK_AFTER;
use crate::core::session::{Approval, Signs};

/// A process that does nothing, with its one child.
fn still() -> Signs {
    Signs {
        output: 100,
        record: 5000,
        computed_ms: 40,
        moved: 9000,
        network: 700,
        processes: vec![(7, "agent".into()), (8, "sleep".into())],
    }
}

fn begun() -> Bench {
    let mut bench = Bench::ready();
    bench.message(1);
    bench.commit();
    bench.session_event(SessionEvent::TurnStarted);
    bench.commit();
    bench
}

impl Bench {
    /// Lets that time pass; whenever the session is probed, this is seen of its process. Gives each
    /// status with the second in which it began, and how often it was probed.
    fn watch(
        &mut self,
        time: Duration,
        mut seen: impl FnMut(Duration) -> Signs,
    ) -> (Vec<(u64, DetailedStatus)>, usize) {
        let begin = self.now.tick;
        let (mut words, mut probes) = (vec![(0, self.agent.word())], 0);
        while let Some(at) = self.agent.next_deadline().filter(|at| *at <= begin + time) {
            self.now.tick = self.now.tick.max(at);
            let mut effects = self.agent.wake(self.now);
            effects.extend(self.commit());
            let is_probe = |effect: &&Effect| {
                matches!(effect, Effect::Provider(ProviderCommand::Verb { verb: Verb::Probe, .. }))
            };
            for effect in effects.iter().filter(is_probe) {
                probes += 1;
                if let (
                    Some(activity),
                    Effect::Provider(ProviderCommand::Verb { number: verb, .. }),
                ) = (self.answers, effect)
                {
                    let result = Ok(json!({"activity": activity}));
                    self.session_event(SessionEvent::Answered { verb: *verb, result });
                }
                let signs = seen(self.now.tick - begin);
                self.tell(Event::Provider(ProviderEvent::Probed(signs)));
            }
            let word = self.agent.word();
            if words.last().is_none_or(|(_, last)| *last != word) {
                words.push(((self.now.tick - begin).as_secs(), word));
            }
        }
        self.now.tick = begin + time;
        (words, probes)
    }
}

#[test]
fn a_turn_without_any_sign_of_life_is_stuck_and_one_with_a_single_sign_is_not() {
    use DetailedStatus::{Busy, Stuck};
    /// What is seen at each look, by its number.
    type Looks = fn(u64) -> Signs;
    let signs: [(&str, Looks, bool); 10] = [
        ("nothing", |_| still(), true),
        ("output", |s| Signs { output: 100 + s, ..still() }, false),
        ("its record grows", |s| Signs { record: 5000 + s, ..still() }, false),
        ("a child computes", |s| Signs { computed_ms: 40 + s * 900, ..still() }, false),
        ("it only keeps its clocks going", |s| Signs { computed_ms: 40 + s, ..still() }, true),
        ("… on a loaded machine", |s| Signs { computed_ms: 40 + s * 15, ..still() }, true),
        ("network", |s| Signs { network: 700 + s, ..still() }, false),
        ("it copies files", |s| Signs { moved: 9000 + s * 100_000, ..still() }, false),
        ("it wakes its own threads", |s| Signs { moved: 9000 + s, ..still() }, true),
        (
            "children come and go",
            |s| Signs { processes: vec![(7, "agent".into()), (s as u32, "sh".into())], ..still() },
            false,
        ),
    ];
    for (what, seen, is_stuck) in signs {
        let mut bench = begun();
        let (words, probes) = bench.watch(Duration::from_secs(3600), |at| seen(at.as_secs()));
        let want = if is_stuck { vec![Busy, Stuck] } else { vec![Busy] };
        let got: Vec<DetailedStatus> = words.iter().map(|(_, word)| *word).collect();
        assert_eq!(got, want, "{what}: {words:?}");
        let stuck_at = words.last().map_or(0, |(second, _)| *second);
        let limit = STUCK_AFTER.as_secs() - 1; // a turn begins a moment before we look
        assert!(!is_stuck || (limit..=limit + 60).contains(&stuck_at), "{what}: {words:?}");
        assert!(probes <= 60, "{what}: {probes} looks in an hour");
    }
}

#[test]
fn a_stuck_turn_says_what_was_looked_at_and_lives_again_with_the_next_sign() {
    use DetailedStatus::{Busy, Idle, Stuck};
    let mut bench = begun();
    let (words, _) = bench.watch(Duration::from_secs(7200), |at| {
        let computed = if (3000..3120).contains(&at.as_secs()) { at.as_secs() * 1000 } else { 40 };
        Signs { computed_ms: computed, ..still() }
    });
    let got: Vec<DetailedStatus> = words.iter().map(|(_, word)| *word).collect();
    assert_eq!(got, [Busy, Stuck, Busy, Stuck], "{words:?}");
    let truth = bench.agent.truth(bench.now);
    let why = truth["why"].as_str().expect("text");
    for part in ["no output", "no network", "agent 7", "sleep 8", "interrupt"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!((&truth["status"], &truth["agentStatus"]), (&json!("stuck"), &json!("busy")));
    assert_eq!(truth["source"], "runner");
    assert!(!why.contains("knows of no turn"), "the session was not asked: {why}");
    // What it says by itself is a sign at once.
    bench.session_event(SessionEvent::ProviderState(json!({"state": "running"})));
    assert_eq!(bench.agent.word(), Busy);
    bench.session_event(SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Completed,
        text: String::new(),
    });
    bench.commit();
    // Without a turn nobody looks.
    let (words, probes) = bench.watch(Duration::from_secs(7200), |_| still());
    assert_eq!((words.as_slice(), probes), ([(0, Idle)].as_slice(), 0));
}

/// The runner waits for a turn of which its session does not know.
#[test]
fn what_the_session_answers_to_a_probe_is_part_of_the_evidence() {
    for (activity, says) in [("idle", true), ("busy", false)] {
        let mut bench = begun();
        bench.answers = Some(activity);
        bench.watch(STUCK_AFTER * 2, |_| still());
        let (_, _, text) = bench.known();
        assert_eq!(bench.agent.word(), DetailedStatus::Stuck);
        assert_eq!(text.contains("knows of no turn"), says, "{activity}: {text}");
    }
}

#[test]
fn known_silence_is_not_stuck() {
    let approval = Approval {
        id: "1".into(),
        title: "t".into(),
        kind: "execute".into(),
        input: json!({}),
        options: Vec::new(),
        detail: Default::default(),
    };
    let delivery = |value| SessionEvent::Fact { name: "delivery", value };
    let state = |word: &str| SessionEvent::ProviderState(json!({"state": word}));
    let hours = |n: u64| Duration::from_secs(3600 * n);
    let cases = [
        ("an approval", SessionEvent::ApprovalOpened(approval), hours(9), DetailedStatus::Blocked),
        ("a person types", delivery(json!("a person types")), hours(9), DetailedStatus::Busy),
        ("a dialog", state("blocked"), hours(9), DetailedStatus::Busy),
        ("an announced pause", state("retrying"), STUCK_AFTER * 3, DetailedStatus::Busy),
        ("a pause without end", state("retrying"), STUCK_AFTER * 5, DetailedStatus::Stuck),
        ("a pause that is over", delivery(json!(null)), STUCK_AFTER * 2, DetailedStatus::Stuck),
    ];
    for (what, event, time, want) in cases {
        let mut bench = begun();
        bench.session_event(event);
        let (words, _) = bench.watch(time, |_| still());
        assert_eq!(words.last().map(|(_, word)| *word), Some(want), "{what}: {words:?}");
    }
}
