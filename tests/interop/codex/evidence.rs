//! The status is judged by when the model was asked, on a quiet machine and beside busy loops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::loops::{BusyLoops, LOOPS};

/// Turns of each.
const TURNS: usize = 100;
/// No word may be wrong for longer.
const WRONG_MAX: Duration = Duration::from_secs(3);

impl Session {
    /// The longest time for which a word stood that the model's requests contradict.
    fn longest_wrong(&self, samples: &[(Instant, String)]) -> Duration {
        let (mut longest, mut since) = (Duration::ZERO, None);
        for (at, word) in samples {
            let is_wrong = (word == "busy") != self.model.works_at(*at);
            let begun = is_wrong.then(|| *since.get_or_insert(*at));
            since = begun;
            longest = longest.max(begun.map_or(Duration::ZERO, |begun| *at - begun));
        }
        longest
    }
}

fn turns(session: &Session) -> Vec<Duration> {
    let one = |n: usize| {
        let word = if n.is_multiple_of(10) { "SLOW " } else { "" };
        let began = Instant::now();
        let id = session.send(&format!("{word}n{n}."));
        assert_eq!(session.answered(id), format!("Heard: {word}n{n}."));
        session.once(id);
        began.elapsed()
    };
    (0..TURNS).map(one).collect()
}

#[test]
#[ignore = "make interop runs it"]
fn codex_tells_its_status_as_it_is() {
    let session = Session::start("codex-status", "guarded");
    let is_over = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut samples = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let word = session.machine.status("a")["status"].as_str().map(String::from);
                samples.extend(word.map(|word| (Instant::now(), word)));
                pause(50);
            }
            samples
        });
        turns(&session);
        is_over.store(true, Ordering::Relaxed);
        watcher.join().expect("a watcher")
    });
    session.wait("idle");
    let (wrong, seen) = (session.longest_wrong(&samples), samples.len());
    println!("interop: codex: {TURNS} turns, {seen} looks, wrong for {} ms", wrong.as_millis());
    let limit = session.machine.within(WRONG_MAX);
    assert!(wrong < limit, "wrong for {wrong:?}\n{}", session.machine.logs());
    assert!(samples.iter().any(|(_, word)| word == "busy"));
    assert_eq!(session.machine.turns_begun(), TURNS);
    session.end();
}

/// Each message is one turn, at the model and for the runner: none begins that nobody began, and
/// none waits for one that never was.
#[test]
#[ignore = "make interop runs it"]
fn codex_has_no_phantom_turns_beside_busy_loops() {
    let session = Session::start("codex-loops", "guarded");
    let loops = BusyLoops::start();
    let took = turns(&session);
    session.wait("idle");
    drop(loops);
    let most = took.into_iter().max().unwrap_or_default();
    println!("interop: codex: {TURNS} turns beside {LOOPS} loops, {} ms at most", most.as_millis());
    assert_eq!(session.machine.turns_begun(), TURNS, "{}", session.machine.logs());
    session.end();
}

/// How long a turn may be silent there: the server's own part of each look at it is then too small
/// a share of a core for a sign of life.
const STUCK_AFTER_MS: u64 = 60_000;

#[test]
#[ignore = "make interop runs it"]
fn codex_that_hears_nothing_from_its_model_is_stuck() {
    let mut session = Session::prepared("codex-stuck", "open");
    let path = session.machine.home.join("providers/codex.json");
    let text = std::fs::read_to_string(&path).expect("settings");
    let mut settings: Value = serde_json::from_str(&text).expect("settings");
    settings["stuckAfterMs"] = json!(STUCK_AFTER_MS);
    std::fs::write(&path, settings.to_string()).expect("settings");
    session.run();
    session.send("HANG");
    let stuck = wait_for("a word of the stuck turn", LONG + 3 * STUCK_AFTER_MS / 1000, || {
        let status = session.machine.status("a");
        (status["status"] == "stuck").then_some(status)
    });
    assert_eq!(stuck["agentStatus"], "busy", "{stuck}");
    assert!(
        stuck["why"].as_str().is_some_and(|why| why.contains("no network of codex")),
        "{stuck}"
    );
}
