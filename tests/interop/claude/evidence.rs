//! What the real program does is judged by when it was so: beside busy loops, and while a subagent
//! works in the background.

use std::time::Instant;

use super::*;
use crate::loops::{BusyLoops, LOOPS};

/// Turns beside busy loops.
const TURNS: usize = 100;
fn session() -> Session {
    Session::start("tmux", Hooks::All, json!({"firstMs": 100, "mostMs": 500, "exitsMax": 50}))
}

/// Each message is one turn, at the model and for the runner: none begins that nobody began.
#[test]
#[ignore = "make interop runs it"]
fn claude_has_no_phantom_turns_beside_busy_loops() {
    let session = session();
    let loops = BusyLoops::start();
    let began = Instant::now();
    for number in 0..TURNS {
        let mark = format!("MARK-{number:03}.");
        assert!(session.asks(&mark).contains(&mark));
    }
    session.wait("idle");
    let begun = session.machine.turns_begun();
    println!("interop: {TURNS} turns beside {LOOPS} loops in {} s", began.elapsed().as_secs());
    drop(loops);
    let asked = session.model.asked();
    for number in 0..TURNS {
        let mark = format!("MARK-{number:03}.");
        let first = asked.iter().filter(|asked| asked.newest.contains(&mark)).count();
        assert_eq!(first, 1, "{mark}\n{}", session.machine.logs());
    }
    assert_eq!(begun, TURNS, "{}", session.machine.logs());
    session.end();
}

/// The answer of the subagent is held back: whatever happens before it is released happened behind
/// it.
#[test]
#[ignore = "make interop runs it"]
fn claude_is_reached_and_commanded_behind_a_background_subagent() {
    let session = session();
    let id = session.machine.send("a", "MARK-BACK BACKGROUND");
    session.answer_of(id);
    let works = || {
        let work = session.machine.status("a")["work"].clone();
        work.as_array().is_some_and(|work| work.iter().any(|item| item["kind"] == "subagent"))
    };
    session.waits("a subagent at work", || works().then_some(()));
    let began = Instant::now();
    let heard = session.asks("MARK-BEHIND it");
    assert!(heard.contains("MARK-BEHIND"), "{heard}");
    println!("interop: answered behind a subagent in {} ms", began.elapsed().as_millis());
    let id = session.machine.send("a", "MARK-STOP HANG");
    session.wait_asked("MARK-STOP");
    session.machine.ok(&["command", "a", "interrupt"]);
    session.answer_of(id);
    // Of a model that has said nothing the program gives the prompt back.
    session.machine.send("a", "MARK-SILENT MUTE");
    session.wait_asked("MARK-SILENT");
    session.machine.ok(&["command", "a", "interrupt"]);
    assert!(session.asks("MARK-NEXT").contains("MARK-NEXT"));
    session.machine.ok(&["command", "a", "compact"]);
    assert!(session.asks("MARK-COMPACTED").contains("MARK-COMPACTED"));
    session.machine.ok(&["command", "a", "clearContext"]);
    assert!(session.asks("MARK-CLEARED").contains("MARK-CLEARED"));
    assert!(works(), "its answer is still held back");
    session.model.release();
    session.wait("idle");
    session.waits("the end of the subagent", || (!works()).then_some(()));
    for mark in ["MARK-BEHIND", "MARK-NEXT", "MARK-COMPACTED", "MARK-CLEARED"] {
        once(&session, mark);
    }
    session.end();
}

/// As prepared, before the program has started.
fn prepared(file: &str, text: &str) -> Session {
    Session::start_with("tmux", Hooks::All, json!({"firstMs": 100}), |machine| {
        let home = machine.home.join("agents/a/claude");
        std::fs::create_dir_all(&home).expect("folder");
        std::fs::write(home.join(file), text).expect("a file of the user's");
    })
}

#[test]
#[ignore = "make interop runs it"]
fn claude_without_hooks_says_so() {
    let session = prepared("settings.json", r#"{"disableAllHooks": true}"#);
    session.machine.send("a", "MARK-UNHEARD TOOL");
    session.waits("a word about hooks", || {
        session
            .machine
            .ok(&["status", "a", "--why"])
            .contains("hooks are switched off")
            .then_some(())
    });
    let off = "hooks are switched off";
    let listed = session.machine.run(&["approvals"]);
    assert!(String::from_utf8_lossy(&listed.stderr).contains(off), "{listed:?}");
    let doctor = session.machine.run(&["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains(off), "{doctor:?}");
    session.end();
}

#[test]
#[ignore = "make interop runs it"]
fn claude_with_enter_bound_elsewhere_is_typed_at() {
    let bindings = json!({"enter": "chat:newline", "ctrl+j": "chat:submit"});
    let file = json!({"bindings": [{"context": "Chat", "bindings": bindings}]});
    let session = prepared("keybindings.json", &file.to_string());
    assert!(session.asks("MARK-REBOUND").contains("MARK-REBOUND"));
    once(&session, "MARK-REBOUND");
    session.end();
}
