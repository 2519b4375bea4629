//! The commit rule, step by step.

use super::*;
use crate::core::commit::Commit;
use crate::core::store::{StoreError, StoreKind};

type Queue = CommitQueue<&'static str, &'static str>;

/// One step of a machine or its store, and what is seen of it.
enum Step {
    /// An event that writes and defers these.
    Event(&'static [&'static str], &'static [&'static str]),
    /// The store has everything up to this number.
    Durable(u64),
}

use Step::{Durable as Stored, Event};

/// What becomes visible, step by step; commits as `#number: operations`.
fn seen(steps: &[Step]) -> Vec<String> {
    let mut queue = Queue::default();
    let mut lines = Vec::new();
    for step in steps {
        let mut line = Vec::new();
        match step {
            Event(ops, after) => {
                ops.iter().for_each(|op| queue.write(op));
                queue.defer_all(after.iter().copied());
                let Closed { commit, visible } = queue.close(Tick(0));
                let commit = commit.map(|it| format!("#{}: {}", it.number, it.ops.join(" ")));
                line.extend(commit);
                line.extend(visible.into_iter().map(str::to_string));
            }
            Stored(upto) => {
                while let Some(durable) = queue.next_durable(*upto, Tick(0)) {
                    line.extend(durable.after.into_iter().map(str::to_string));
                }
            }
        }
        lines.push(line.join(", "));
    }
    lines
}

#[test]
fn nothing_is_visible_before_it_is_durable() {
    let table: &[(&str, &[Step], &[&str])] = &[
        ("what changes nothing is visible at once", &[Event(&[], &["a"])], &["a"]),
        ("nothing follows from nothing", &[Event(&[], &[]), Stored(9)], &["", ""]),
        (
            "one transaction for each event",
            &[Event(&["put", "mark"], &["ack"]), Stored(0), Stored(1)],
            &["#1: put mark", "", "ack"],
        ),
        (
            "what tells of earlier changes waits for the newest",
            &[
                Event(&["x"], &["a"]),
                Event(&["y"], &["b"]),
                Event(&[], &["c"]),
                Stored(1),
                Stored(2),
            ],
            &["#1: x", "#2: y", "", "a", "b, c"],
        ),
        (
            "one answer for several commits, in their order",
            &[
                Event(&["x"], &["a"]),
                Event(&["y"], &["b"]),
                Event(&["z"], &["c"]),
                Stored(3),
                Stored(3),
            ],
            &["#1: x", "#2: y", "#3: z", "a, b, c", ""],
        ),
        (
            "numbers go on when all is durable",
            &[Event(&["x"], &[]), Stored(1), Event(&[], &["a"]), Event(&["y"], &["b"]), Stored(2)],
            &["#1: x", "", "a", "#2: y", "b"],
        ),
    ];
    for (what, steps, want) in table {
        assert_eq!(seen(steps), *want, "{what}");
    }
}

#[test]
fn a_commit_in_the_middle_takes_what_came_before_it() {
    let mut queue = Queue::default();
    assert_eq!(queue.commit(Tick(0)), None, "nothing was written");
    queue.write("x");
    queue.defer("a");
    assert!(!queue.is_durable() && queue.is_idle());
    assert_eq!(queue.commit(Tick(10)), Some(Commit { number: 1, ops: vec!["x"] }));
    queue.defer("b");
    assert_eq!(queue.take_after(), ["b"], "the caller knows that it waits for nothing");
    assert_eq!((queue.newest(), queue.in_flight(), queue.is_idle()), (1, 1, false));
    let durable = Durable { took: Duration::from_micros(15), after: vec!["a"] };
    assert_eq!(queue.next_durable(1, Tick(25)), Some(durable));
    assert_eq!(queue.next_durable(1, Tick(25)), None);
    assert!(queue.is_durable());
}

#[test]
fn trouble_is_told_once_and_tried_again_until_the_store_takes_changes() {
    let cause = |kind| Cause::from(StoreError::new(kind, "the store", "no"));
    let mut queue = Queue::default();
    assert!(!queue.on_accepted(), "it was never in trouble");
    assert!(queue.on_stalled(Tick(5), cause(StoreKind::Full)));
    assert_eq!(queue.retry_at(), Some(Tick(5) + STORE_RETRY));
    queue.forget_retry();
    assert_eq!(queue.retry_at(), None);
    assert!(!queue.on_stalled(Tick(7), cause(StoreKind::Denied)), "no news");
    let pause = StoreKind::Denied.retry().expect("it may pass");
    assert_eq!(queue.retry_at(), Some(Tick(7) + pause));
    let newest = Trouble { cause: cause(StoreKind::Denied), since: Tick(5) };
    assert_eq!(queue.trouble(), Some(&newest));
    assert!(queue.on_accepted());
    assert_eq!((queue.trouble(), queue.retry_at()), (None, None));
}

#[test]
fn damage_is_not_tried_again_and_what_waited_is_never_seen() {
    let mut queue = Queue::default();
    queue.write("x");
    queue.defer("a");
    queue.close(Tick(0));
    queue.on_stalled(Tick(1), Cause::Failed("no".into()));
    queue.on_broken(Tick(2), StoreError::whole(StoreKind::Corrupt, "damaged").into());
    assert_eq!(queue.retry_at(), None);
    assert_eq!(queue.trouble().map(|trouble| trouble.since), Some(Tick(2)));
    assert_eq!(queue.waiting().map(|after| after.len()).collect::<Vec<_>>(), [1]);
    queue.write("y");
    queue.abandon();
    assert!(queue.is_durable());
    assert_eq!(queue.next_durable(9, Tick(3)), None);
    assert_eq!(queue.close(Tick(3)), Closed { commit: None, visible: vec![] });
}

#[test]
fn credit_ends_before_the_room_does() {
    let mut queue = Queue::default();
    for under_way in 0..COMMITS_IN_FLIGHT_MAX {
        for reserve in [0, 1, COMMITS_IN_FLIGHT_MAX] {
            let want = under_way + reserve < COMMITS_IN_FLIGHT_MAX;
            assert_eq!(queue.has_credit(reserve), want, "{under_way} {reserve}");
        }
        queue.write("x");
        assert!(queue.commit(Tick(0)).is_some());
    }
    assert!(!queue.has_credit(0));
    let one_more = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        queue.write("x");
        queue.commit(Tick(0))
    }));
    assert!(one_more.is_err(), "a lane was served without credit");
}

/// What nobody waits for makes no commit of its own, and stays in its place.
#[test]
fn late_changes_go_with_the_next_commit_before_what_came_after_them() {
    let mut queue = Queue::default();
    queue.write_late("ack 1");
    assert_eq!(queue.close(Tick(0)).commit, None);
    queue.write("offer again 1");
    queue.write_late("ack 2");
    let commit = queue.close(Tick(0)).commit.expect("a commit");
    assert_eq!(commit.ops, ["ack 1", "ack 2", "offer again 1"], "of one event in either order");
    queue.write_late("ack 3");
    assert!(!queue.is_durable() && queue.late() == 1);
    queue.hurry();
    assert_eq!(queue.close(Tick(0)).commit.expect("a commit").ops, ["ack 3"]);
    assert_eq!(queue.late(), 0);
}
