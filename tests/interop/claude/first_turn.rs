//! Kills in the first moments of the first turn, when the program has written only bookkeeping of
//! its conversation, or half a line, or nothing.

use std::time::Duration;

use agent_relay::os;
use rustix::process::Signal;
use serde_json::json;

use super::super::LONG;
use super::super::support::{pause, wait_for};
use super::{Hooks, Session};

/// Sessions that are killed, each at a moment of its own.
const MOMENTS: u64 = 30;
/// From one moment to the next: all of them reach over the first second.
const STEP: Duration = Duration::from_millis(35);
/// Sessions that run at the same time.
const LANES: u64 = 3;

/// A message is there, the program is killed `after` that time; the answer comes all the same.
fn killed_after(session: &Session, agent: &str, mark: &str, after: Duration) {
    let machine = &session.machine;
    let mut runner = machine.start(&["run", "claude", "--headless", "--agent-id", agent]);
    let ready = || (machine.status(agent)["status"] == "idle").then_some(());
    wait_for(&format!("{agent} to be ready"), LONG, ready);
    let pid = machine.status(agent)["providerProcess"]["pid"].as_u64().expect("a process");
    let process = os::process(pid as u32);
    let id = machine.send(agent, mark);
    pause(after.as_millis() as u64);
    os::kill(process, Signal::KILL);
    let answered = || {
        let inbox = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        inbox.contains(&format!("\"replyTo\":{id},")).then_some(())
    };
    let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the answer", LONG, answered)
    }));
    if came.is_err() {
        panic!("{agent}: no answer after {after:?}: {}\n{}", machine.status(agent), machine.logs());
    }
    machine.ok(&["command", agent, "shutdown"]);
    assert_eq!(runner.wait(60).0, 0);
}

fn killed_in_the_first_turn(transport: &'static str) {
    let session = Session::prepared(transport, Hooks::All, json!({"firstMs": 100, "mostMs": 500}));
    let lane = |lane: u64| {
        for moment in (lane..MOMENTS).step_by(LANES as usize) {
            let (agent, mark) = (format!("a{moment}"), format!("MARK-{moment:04}."));
            killed_after(&session, &agent, &mark, STEP * moment as u32);
        }
    };
    std::thread::scope(|scope| {
        for number in 0..LANES {
            scope.spawn(move || lane(number));
        }
    });
    for moment in 0..MOMENTS {
        super::once(&session, &format!("MARK-{moment:04}."));
    }
}

#[test]
#[ignore = "make interop runs it"]
fn a_kill_in_the_first_turn_in_the_terminal_loses_nothing() {
    killed_in_the_first_turn("tmux");
}

#[test]
#[ignore = "make interop runs it"]
fn a_kill_in_the_first_turn_over_the_stream_loses_nothing() {
    killed_in_the_first_turn("stream");
}
