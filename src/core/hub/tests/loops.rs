//! Two agents that answer each other without end.

use super::*;
use crate::core::limits::{LOOP_DELAY_FIRST, LOOP_DELAY_MAX, LOOP_TURNS, LOOP_WINDOW};

/// One agent writes to the other; whether it waits.
fn writes(bench: &mut Bench, from: &str, to: &str) -> bool {
    let (status, message) =
        bench.call(from, "POST", "/api/messages", json!({"to": to, "body": "again"}));
    assert_eq!(status, 201);
    // What it said of the loop is committed too.
    bench.commit();
    bench.hub.loops.holds(id_of(&message), to)
}

fn id_of(message: &Value) -> MessageId {
    MessageId(message["id"].as_u64().expect("an id"))
}

/// So many changes of sides, ten seconds apart; how many messages waited.
fn answer_each_other(bench: &mut Bench, turns: usize) -> usize {
    let mut held = 0;
    for turn in 0..turns {
        bench.later(Duration::from_secs(10));
        let (from, to) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        held += usize::from(writes(bench, from, to));
    }
    held
}

/// Notices of the hub in the queues of the agents.
fn queued(bench: &Bench, agent: &str) -> usize {
    bench.hub.queues.get(agent).map_or(0, |queue| queue.ids.len())
}

#[test]
fn a_loop_is_noticed_and_slowed_down_and_nothing_is_dropped() {
    let mut bench = Bench::new();
    assert_eq!(answer_each_other(&mut bench, LOOP_TURNS - 1), 0);
    let (before, last) = (queued(&bench, "a") + queued(&bench, "b"), bench.hub.last_message);
    assert!(writes(&mut bench, "b", "a"), "the next one waits");
    // Itself, and a notice to each of both and to the user.
    assert_eq!(bench.hub.last_message, last.plus(4));
    assert_eq!(queued(&bench, "a") + queued(&bench, "b"), before + 3, "it is in the queue");
    // Each further one waits twice as long, and none for ever.
    let mut delay = LOOP_DELAY_FIRST;
    for turn in 0..12 {
        bench.later(LOOP_DELAY_MAX);
        assert_eq!(bench.hub.loops.next(), None, "what waited was delivered");
        let (from, to) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        assert!(writes(&mut bench, from, to));
        delay = (delay * 2).min(LOOP_DELAY_MAX);
        assert_eq!(bench.hub.loops.next(), Some(bench.now.tick + delay));
    }
    assert_eq!(delay, LOOP_DELAY_MAX);
    // Told once.
    assert_eq!(bench.hub.last_message, last.plus(4 + 12));
}

#[test]
fn a_person_or_a_task_ends_it_at_once() {
    for (token, path, body) in [
        ("operator", "/api/messages", json!({"to": "a", "body": "stop"})),
        ("operator", "/api/tasks", json!({"to": "b", "title": "do this"})),
        ("b", "/api/tasks", json!({"to": "a", "title": "do that"})),
    ] {
        let mut bench = Bench::new();
        assert_eq!(answer_each_other(&mut bench, LOOP_TURNS), 1);
        assert!(bench.hub.loops.next().is_some());
        assert_eq!(bench.call(token, "POST", path, body.clone()).0, 201);
        bench.later(Duration::from_millis(1));
        assert_eq!(bench.hub.loops.next(), None, "{body}: what waited is delivered");
        assert_eq!(answer_each_other(&mut bench, LOOP_TURNS - 1), 0, "{body}: it begins anew");
    }
}

#[test]
fn what_only_looks_like_a_loop_is_none() {
    // One speaks often.
    let mut bench = Bench::new();
    assert!((0..100).all(|_| !writes(&mut bench, "a", "b")));
    // Both speak, and take their time.
    for turn in 0..3 * LOOP_TURNS {
        bench.later(LOOP_WINDOW / (LOOP_TURNS as u32 - 1) + Duration::from_secs(1));
        let (from, to) = if turn % 2 == 0 { ("b", "a") } else { ("a", "b") };
        assert!(!writes(&mut bench, from, to), "turn {turn}");
    }
    // Each is answered by the user.
    for _ in 0..3 * LOOP_TURNS {
        assert!(!writes(&mut bench, "a", "user"));
        bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": "go on"}));
    }
}
