//! How messages reach the session.

use super::*;

#[test]
fn what_people_and_agents_say_arrives_once() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-talk", &[]);
    assert!(claude.asks("MARK-ONE").contains("Heard: MARK-ONE"));
    claude.once("MARK-ONE");
    claude.send_as("helper", "MARK-PEER");
    claude.once("MARK-PEER");
    let framed = |mark: &str| {
        claude
            .prompts()
            .iter()
            .any(|prompt| prompt.contains(mark) && prompt.contains("Another Claude session"))
    };
    assert!(framed("MARK-PEER") && !framed("MARK-ONE"));
    for text in [
        "/exit MARK-SLASH",
        "!ls MARK-BANG",
        "@x MARK-AT",
        "@/etc/hostname MARK-FILE",
        "ends with a backslash MARK-BACK\\",
        "#y MARK-HASH",
        "\u{1b}[201~\rMARK-ESC",
    ] {
        let mark = text.trim_end_matches('\\').split(['-', ' ']).next_back().expect("a word");
        claude.asks(text);
        claude.once(mark);
    }
    assert!(!claude.seen().contains("COMMAND"), "{}", claude.seen());
    assert!(
        !claude.prompts().iter().any(|prompt| prompt.contains("@/etc")),
        "a file that is named is not read"
    );
    let long = format!("MARK-LONG {}\nend \u{1f600}", "\u{e4}\u{5e9} zeile\n".repeat(700));
    claude.asks(&long);
    claude.once("MARK-LONG");
    // Many that come in one turn are one batch, in order.
    let first = claude.machine.send("a", "MARK-HANG HANG");
    claude.once("MARK-HANG");
    let ids: Vec<u64> =
        (0..20).map(|n| claude.machine.send("a", &format!("MARK-MANY{n:02}."))).collect();
    wait_for("all of them at the runner", 60, || {
        (claude.machine.status("a")["queues"]["inboxWaiting"].as_u64() >= Some(20)).then_some(())
    });
    claude.machine.ok(&["command", "a", "interrupt"]);
    claude.answered(first);
    claude.answered(ids[19]);
    let batch = wait_for("the batch", 60, || {
        claude.prompts().into_iter().find(|prompt| prompt.contains("MARK-MANY19."))
    });
    assert!(batch.contains("[agent-relay] These were"), "{batch}");
    let places: Vec<Option<usize>> =
        (0..20).map(|n| batch.find(&format!("MARK-MANY{n:02}."))).collect();
    assert!(places.iter().flatten().collect::<Vec<_>>().is_sorted(), "{places:?}");
    (0..20).for_each(|n| claude.once(&format!("MARK-MANY{n:02}.")));
}

#[test]
fn a_draft_in_the_box_stays_its_owners() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-draft", &[]);
    claude.keys(&["-l", "half a thought"]);
    wait_for("the draft", 60, || claude.screen().contains("half a thought").then_some(()));
    claude.asks("MARK-DRAFT");
    claude.once("MARK-DRAFT");
    wait_for("the draft again", 60, || claude.screen().contains("half a thought").then_some(()));
    assert!(!claude.prompts().iter().any(|prompt| prompt.contains("half a thought")));
}

#[test]
fn a_socket_that_fails_is_replaced_by_a_paste() {
    if !has_tmux() {
        return;
    }
    for fault in ["refuse", "hold", "drop", "missing"] {
        let claude = Claude::start(&format!("claude-socket-{fault}"), &[("FAKE_SOCKET", fault)]);
        claude.send_as("helper", "MARK-PEER");
        claude.once("MARK-PEER");
        claude.machine.wait_status("a", "idle");
    }
}

/// A person at the terminal says no to an agent's message: it is not typed as his own word then,
/// and the next one comes.
#[test]
fn what_a_person_refuses_is_not_typed() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-socket-deny", &[("FAKE_SOCKET", "deny")]);
    claude.send_as("helper", "MARK-PEER");
    wait_for("the refusal", 60, || {
        claude.machine.logs().contains("refused the message").then_some(())
    });
    assert!(claude.asks("MARK-PERSON").contains("MARK-PERSON"));
    assert!(!claude.seen().contains("MARK-PEER"), "{}", claude.seen());
    claude.machine.wait_status("a", "idle");
}
