//! Status that scripts post from outside of a session, and hooks that say what became of them.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::{BIN, Machine};

/// What a script or a session runs: code, output and errors.
fn run(machine: &Machine, arguments: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = machine.command(BIN);
    command.args(arguments).envs(env.iter().copied()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[test]
fn a_script_posts_for_an_agent_and_people_see_that_it_was_posted() {
    let machine = Machine::new("posted");
    let _hub = machine.hub();
    let _runner = machine.runner_with("a", &["--label", "web"], &[]);
    machine.wait_status("a", "idle");
    let words = ["hook", "--agent", "a", "busy", "--why", "compiling, 3 of 10"];
    assert_eq!(run(&machine, &words, &[]).0, 0);
    machine.wait_status("a", "busy");
    let why = machine.ok(&["status", "a", "--why"]);
    assert!(why.contains("posted from outside: compiling, 3 of 10"), "{why}");
    assert!(!why.contains("handed"), "{why}");
    assert_eq!(machine.status("a")["source"], "posted");
    machine.ok(&["hook", "--agent", "a", "idle"]);
    machine.wait_status("a", "idle");
    // An error stays until the session answers something.
    machine.ok(&["hook", "--agent", "a", "error", "--why", "the license is over"]);
    machine.wait_status("a", "error");
    let shown = machine.ok(&["agents"]);
    assert!(shown.contains("error") && shown.contains("the license is over"), "{shown}");
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
    machine.wait_status("a", "idle");
    // Inside of another session that is a person's to say.
    let inside = [("AGENT_RELAY_ID", "b")];
    assert!(run(&machine, &words, &inside).2.contains("--as-operator"));
    for (words, code, said) in [
        (&["hook", "--agent", "nobody", "busy"][..], 1, "no runner of nobody"),
        (&["hook", "--agent", "a", "stop"], 1, "only its own hooks"),
        (&["hook", "--agent", "a", "bussy"], 1, "no hook event"),
    ] {
        let (is, _, errors) = run(&machine, words, &[]);
        assert!(is == code && errors.contains(said), "{words:?}: {is} {errors}");
    }
    // What an agent calls itself counts again when the label that was set goes.
    machine.ok(&["label", "a", "shop"]);
    let cleared = machine.ok(&["label", "a", "--clear"]);
    assert!(
        cleared.contains("calls itself web") && !cleared.contains("has the label"),
        "{cleared}"
    );
    // The end of a task belongs to its answer.
    machine.ok(&["send", "a", "--task", "--wait", "60", "do it"]);
    let tasks = machine.ok(&["tasks", "--json"]);
    let task: Value = serde_json::from_str(tasks.lines().next().expect("a task")).expect("JSON");
    assert_eq!(task["status"], "done", "{tasks}");
}

#[test]
fn a_hook_that_is_checked_says_what_happened() {
    let machine = Machine::new("checked");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let info = std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info");
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let port = info["controlUrl"].as_str().expect("a URL").rsplit(':').next().expect("a port");
    let token = info["controlToken"].as_str().expect("a token");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let gone = dead.local_addr().expect("bound").port().to_string();
    drop(dead);
    let (p, t) = ("AGENT_RELAY_RUNNER_PORT", "AGENT_RELAY_RUNNER_TOKEN");
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Variables, i32, &str); 8] = [
        ("stop", &[(p, port), (t, token)], 0, "stop would reach it"),
        ("busy", &[(p, port), (t, token)], 0, "was told: busy"),
        ("idle", &[(p, port), (t, token)], 0, "was told: idle"),
        ("stop", &[(p, port), (t, "wrong")], 1, "refuses the token"),
        ("busy", &[(p, port)], 1, "refuses the token"),
        ("stop", &[(p, &gone), (t, token)], 3, "no runner answers at"),
        ("stop", &[], 1, "not inside a session"),
        ("stpo", &[(p, port), (t, token)], 1, "no hook event \"stpo\""),
    ];
    for (event, env, code, said) in cases {
        let (is, output, errors) = run(&machine, &["hook", "--check", event], env);
        assert!(is == code && (output + &errors).contains(said), "{event} {env:?}: {is} {errors}");
        // Without it a hook is quiet, whatever happens.
        let quiet = (0, String::new(), String::new());
        if event != "stpo" {
            assert_eq!(run(&machine, &["hook", event], env), quiet, "{event} {env:?}");
            if event != "stop" {
                let why = ["hook", event, "--why", "x"];
                assert_eq!(run(&machine, &why, env), quiet, "{event} {env:?}");
            }
        }
    }
}
