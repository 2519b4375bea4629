//! Whose data a store holds, and which ids are of which generation.

use super::*;

fn data(names: &[&str], end: u64, starts: u64) -> DataState {
    let named = |name: &&str| StoredGeneration {
        name: name.to_string(),
        first_message: MessageId(1),
        first_task: TaskId(1),
        ..Default::default()
    };
    let generations = names.iter().map(named).collect();
    DataState {
        generations,
        messages_end: MessageId(end),
        tasks_end: TaskId(64),
        starts,
        copied: false,
    }
}

fn mark(name: &str, end: u64, starts: u64, last: Option<u64>) -> Mark {
    let orderly_end =
        last.map(|last| OrderlyEnd { last_message_id: MessageId(last), last_task_id: TaskId(0) });
    Mark {
        generation: name.into(),
        message_block_end: MessageId(end),
        task_block_end: TaskId(64),
        starts,
        orderly_end,
        revoked: Vec::new(),
    }
}

/// What a hub finds at its start.
struct Found {
    what: &'static str,
    data: DataState,
    last: u64,
    mark: Option<Mark>,
}

fn found(what: &'static str, data: DataState, last: u64, mark: Option<Mark>) -> Found {
    Found { what, data, last, mark }
}

/// Data that ran here last, or nobody can say otherwise.
fn own_data() -> [Found; 8] {
    let nothing = DataState::default;
    let kept = || data(&["g1"], 256, 3);
    let killed = |end| Some(mark("g1", end, 3, None));
    [
        found("the first start", nothing(), 0, None),
        found("a store from before generations", nothing(), 40, None),
        found("a moved machine", kept(), 40, None),
        found("after an orderly end", kept(), 40, Some(mark("g1", 256, 3, Some(40)))),
        found("after a kill", kept(), 40, killed(256)),
        found(
            "killed between store and mark, with a new block",
            data(&["g1"], 512, 3),
            300,
            killed(256),
        ),
        found("killed between store and mark, at a start", data(&["g1"], 256, 4), 40, killed(256)),
        found(
            "killed between store and mark, with a new generation",
            data(&["g1", "g2"], 768, 4),
            40,
            killed(512),
        ),
    ]
}

/// Data that are not those that ran here last.
fn foreign_data() -> [Found; 8] {
    let nothing = DataState::default;
    let kept = || data(&["g1"], 256, 3);
    let killed = |end| Some(mark("g1", end, 3, None));
    let copied = DataState { copied: true, ..data(&["g1"], 512, 3) };
    [
        found(
            "a store from before generations, with a mark of newer data",
            nothing(),
            40,
            Some(mark("g1", 256, 1, None)),
        ),
        found("a backup", copied, 40, killed(512)),
        found("a copy of an earlier block", kept(), 40, killed(512)),
        found("a copy of an earlier start", data(&["g1"], 512, 2), 40, killed(512)),
        found(
            "a copy of the same block, after an orderly end",
            kept(),
            40,
            Some(mark("g1", 256, 3, Some(41))),
        ),
        found("an empty file", nothing(), 0, Some(mark("g1", 256, 3, Some(40)))),
        found("another machine's mark", kept(), 40, Some(mark("h1", 128, 1, None))),
        found(
            "a copy from before the last restore",
            data(&["g1"], 900, 9),
            40,
            Some(mark("g2", 512, 3, None)),
        ),
    ]
}

#[test]
fn whose_data_these_are() {
    let is_foreign = |found: &Found| {
        foreign(&found.data, MessageId(found.last), TaskId(0), found.mark.as_ref()).is_some()
    };
    for own in own_data() {
        assert!(!is_foreign(&own), "{}", own.what);
    }
    for other in foreign_data() {
        assert!(is_foreign(&other), "{}", other.what);
    }
}

#[test]
fn an_id_belongs_to_the_generation_in_which_it_was_given() {
    let all = vec![
        StoredGeneration {
            name: "g1".into(),
            first_message: MessageId(1),
            first_task: TaskId(1),
            ..Default::default()
        },
        StoredGeneration {
            name: "g2".into(),
            first_message: MessageId(513),
            first_task: TaskId(65),
            follows_message: MessageId(300),
            follows_task: TaskId(9),
        },
    ];
    let generations = Generations { all, ..Default::default() };
    for (id, own) in [
        (1, Some("g1")),
        (300, Some("g1")),
        (301, None),
        (512, None),
        (513, Some("g2")),
        (9999, Some("g2")),
    ] {
        assert_eq!(generations.of(Named::Message(MessageId(id))), own, "{id}");
    }
    assert_eq!(
        (
            generations.of(Named::Task(TaskId(9))),
            generations.of(Named::Task(TaskId(10))),
            generations.newest()
        ),
        (Some("g1"), None, "g2")
    );
}

#[test]
fn a_mark_remembers_revoked_tokens_until_they_would_have_ended() {
    let mut mark = Mark::default();
    let revoke = |jti: &str, end, at| HubOp::TokenRevoke {
        hash: "h".into(),
        jti: jti.into(),
        expires_at: end,
        at,
    };
    assert!(
        mark.note(&revoke("a", Some(100), 10))
            && mark.note(&revoke("b", None, 20))
            && mark.note(&revoke("c", Some(300), 150))
    );
    assert_eq!(
        mark.revoked.iter().map(|revoked| revoked.jti.as_str()).collect::<Vec<_>>(),
        ["b", "c"]
    );
}
