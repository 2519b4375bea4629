//! Remote commands, approvals, and runners that meet each other.

use std::path::Path;
use std::process::Stdio;

use agent_relay::os;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{BIN, Machine, Running, wait_for, write_program};

#[test]
fn interrupt_restart_and_shutdown() {
    let machine = Machine::new("commands");
    let _hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    assert!(machine.ok(&["command", "a", "interrupt"]).contains("succeeded"));
    let hanging = machine.send("a", "hang");
    machine.wait_status("a", "busy");
    assert!(machine.ok(&["command", "a", "interrupt", "--reason", "test"]).contains("succeeded"));
    machine.wait_status("a", "idle");
    machine.settle(&[hanging], 60);
    assert!(machine.ok(&["inbox"]).contains("interrupted"));

    let before = machine.status("a")["providerProcess"].clone();
    assert!(machine.ok(&["command", "a", "restart"]).contains("succeeded"));
    let after = machine.status("a")["providerProcess"].clone();
    assert_ne!(before["pid"], after["pid"]);
    assert_eq!(before["session"], after["session"], "the same conversation");
    assert!(machine.ok(&["command", "a", "reconnect"]).contains("succeeded"));

    let output = machine.run(&["command", "a", "compact"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("provider does not support compact"));
    let output = machine.run(&["command", "a", "permissionDecision"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("approvalId required"));

    assert!(machine.ok(&["command", "a", "shutdown"]).contains("succeeded"));
    assert_eq!(runner.wait(60).0, 0);
    let agents = machine.ok(&["agents"]);
    assert!(
        agents.contains("offline") && agents.contains("stopped by the command shutdown"),
        "{agents}"
    );
}

/// A turn that a restart cuts off goes on afterwards; it is neither lost nor delivered twice.
#[test]
fn a_restart_goes_on_with_the_turn() {
    let machine = Machine::new("goes-on");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "hang");
    machine.wait_status("a", "busy");
    machine.ok(&["command", "a", "restart"]);
    machine.settle(&[id], 60);
    assert!(machine.ok(&["inbox"]).contains("restarted and went on"));
}

#[test]
fn kill_leaves_no_process() {
    let machine = Machine::new("kill");
    let hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "child");
    machine.settle(&[id], 60);
    machine.send("a", "hang");
    machine.wait_status("a", "busy");
    assert!(machine.ok(&["command", "a", "kill"]).contains("succeeded"));
    assert_eq!(runner.wait(60).0, 0);
    let left: Vec<u32> = machine
        .left_over()
        .into_iter()
        .map(|process| process.pid)
        .filter(|pid| *pid != hub.child.id())
        .collect();
    assert!(left.is_empty(), "{left:?} {}", machine.logs());
}

/// A program that gives up its parent, its session and its environment is of the session all the
/// same; what ends by itself is not kept; and the exit code of the provider is nobody else's.
#[test]
fn nothing_of_a_session_outlives_it() {
    let machine = Machine::new("outlives");
    let _hub = machine.hub();
    let script = machine.work.join("agent.sh");
    let (daemon, short) = (machine.work.join("daemon"), machine.work.join("short"));
    // The subshells end at once: what they have started is an orphan.
    let text = format!(
        "#!/bin/sh\n(setsid env -i /bin/sh -c 'echo $$ > {}; exec sleep 600' >/dev/null 2>&1 &)\n\
         (sh -c 'echo $$ > {}' >/dev/null 2>&1 &)\n\
         exec {BIN} demo-agent --state {}\n",
        daemon.display(),
        short.display(),
        machine.home.join("demo").display()
    );
    write_program(&script, &text);
    let script = script.to_string_lossy().into_owned();
    let mut runner =
        machine.start(&["run", "acp", "--agent-id", "a", "--approval", "open", "--", &script]);
    machine.wait_status("a", "idle");
    let pid = |file: &Path| {
        wait_for("a pid", 60, || std::fs::read_to_string(file).ok()?.trim().parse::<u32>().ok())
    };
    let left = os::process(pid(&daemon));
    assert!(os::is_alive(left));
    let short = pid(&short);
    let known = || Path::new(&format!("/proc/{short}")).exists();
    wait_for("the end of a short child to be noted", 60, || (!known()).then_some(()));

    let provider = machine.status("a")["providerProcess"]["pid"].as_u64().expect("a pid") as u32;
    os::kill(os::process(provider), Signal::KILL);
    wait_for("the exit code", 60, || {
        let text = machine.status("a")["providerProcess"]["lastError"]["text"].to_string();
        text.contains("code 137").then_some(())
    });
    assert!(!os::is_alive(left), "it ends with its provider");
    machine.wait_status("a", "idle");
    let left = wait_for("the next one", 60, || {
        Some(os::process(pid(&daemon))).filter(|next| next.pid != left.pid)
    });
    machine.ok(&["command", "a", "shutdown"]);
    assert_eq!(runner.wait(60).0, 0);
    assert!(!os::is_alive(left), "it ends with its runner");
}

/// Whoever starts them with `nohup` wants them to outlive the terminal.
#[test]
fn who_ignores_the_end_of_the_terminal_outlives_it() {
    let machine = Machine::new("nohup");
    let nohup = |words: &[&str]| {
        let mut command = machine.command("/bin/sh");
        command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", BIN]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Running { child: command.spawn().expect("starts") }
    };
    let hub = nohup(&["hub", "--port", "0"]);
    wait_for("the hub", 60, || machine.run(&["hub", "status"]).status.success().then_some(()));
    let state = machine.home.join("demo").to_string_lossy().into_owned();
    let agent = ["run", "acp", "--agent-id", "a", "--approval", "open", "--", BIN, "demo-agent"];
    let runner = nohup(&[&agent[..], &["--state", &state]].concat());
    machine.wait_status("a", "idle");
    for process in [&hub, &runner] {
        os::kill(os::process(process.child.id()), Signal::HUP);
    }
    // A signal that is handled is handled before the work that comes after it.
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
    for process in [&hub, &runner] {
        assert!(os::is_alive(os::process(process.child.id())));
    }
    // Without that it ends them, whatever the tests themselves were started with.
    let mut command = machine.command("env");
    command.args(["--default-signal=HUP", BIN, "run", "acp", "--agent-id", "b"]);
    command.args(["--approval", "open", "--", BIN, "demo-agent", "--state", &state]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut plain = Running { child: command.spawn().expect("starts") };
    machine.wait_status("b", "idle");
    os::kill(os::process(plain.child.id()), Signal::HUP);
    assert_eq!(plain.wait(60).0, 0);
}

#[test]
fn approvals_are_asked_and_answered() {
    let machine = Machine::new("approvals");
    let _hub = machine.hub();
    let _runner = machine.runner_with("a", &["--approval", "guarded"], &[]);
    machine.wait_status("a", "idle");
    let id = machine.send("a", "ask");
    machine.wait_status("a", "blocked");
    let approval: Value = serde_json::from_str(&wait_for("the approval", 60, || {
        let text = machine.ok(&["approvals", "--json"]);
        (!text.is_empty()).then_some(text)
    }))
    .expect("JSON");
    assert_eq!(
        (approval["title"].as_str(), approval["agentId"].as_str()),
        (Some("rm -rf demo-scratch"), Some("a"))
    );
    machine.fails(1, &["approvals", "approve", "no-such"]);
    machine.ok(&["approvals", "approve", approval["approvalId"].as_str().expect("id")]);
    machine.settle(&[id], 60);
    assert!(machine.ok(&["inbox"]).contains("You allowed it."));
    assert_eq!(machine.ok(&["approvals"]), "no open approvals");

    let id = machine.send("a", "ask");
    machine.wait_status("a", "blocked");
    let open = wait_for("the approval", 60, || {
        serde_json::from_str::<Value>(&machine.ok(&["approvals", "--json"])).ok()
    });
    machine.ok(&["approvals", "deny", open["approvalId"].as_str().expect("id")]);
    machine.settle(&[id], 60);
    assert!(machine.ok(&["inbox"]).contains("You did not allow it."));
}

#[test]
fn read_only_rejects() {
    let machine = Machine::new("read-only");
    let _hub = machine.hub();
    let _runner = machine.runner_with("a", &["--approval", "read-only"], &[]);
    machine.wait_status("a", "idle");
    let id = machine.send("a", "ask");
    machine.settle(&[id], 60);
    assert!(machine.ok(&["inbox"]).contains("You did not allow it."));
}

#[test]
fn tasks_are_claimed_and_done() {
    let machine = Machine::new("tasks");
    let _hub = machine.hub();
    let _a = machine.runner("a");
    machine.wait_status("a", "idle");
    let ids: Vec<u64> = (0..3)
        .map(|n| {
            let task: Value = serde_json::from_str(&machine.ok(&[
                "send",
                "tag:acp",
                "--task",
                "--json",
                &format!("work 0 {n}"),
            ]))
            .expect("JSON");
            task["messageId"].as_u64().expect("id")
        })
        .collect();
    machine.settle(&ids, 60);
    let config = machine.config();
    let http = agent_relay::edge::http::Http::new(
        agent_relay::edge::http::Base::parse(config["relayUrl"].as_str().expect("url"))
            .expect("url"),
        std::time::Duration::from_secs(60),
    );
    let token = agent_relay::secret::Secret::new(config["token"].as_str().expect("token"));
    wait_for("the tasks to be done", 60, || {
        let (_, tasks) = http.call("GET", "/api/tasks", None, &token).expect("answers");
        tasks["tasks"].as_array()?.iter().all(|task| task["status"] == "done").then_some(())
    });
}

#[test]
fn a_second_runner_is_refused_or_replaces() {
    let machine = Machine::new("second");
    let _hub = machine.hub();
    let mut first = machine.runner("a");
    machine.wait_status("a", "idle");
    let mut second = machine.runner_with("a", &["--quiet"], &[]);
    let (code, text) = second.wait(60);
    assert_eq!(code, 2);
    assert!(text.contains(&format!("pid {}", first.child.id())), "{text}");
    let third = machine.runner_with("a", &["--replace"], &[]);
    assert_eq!(first.wait(60).0, 0);
    wait_for("the third runner", 60, || {
        let info: Value = serde_json::from_str(
            &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).ok()?,
        )
        .ok()?;
        (info["pid"] == third.child.id()).then_some(())
    });
    machine.wait_status("a", "idle");
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
}

#[test]
fn the_newer_registration_wins() {
    let machine = Machine::new("superseded");
    let _hub = machine.hub();
    let mut first = machine.runner("a");
    machine.wait_status("a", "idle");
    let other = machine.second_home();
    let _second = other.runner("a");
    let (code, text) = first.wait(60);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("another"), "{text}");
    other.wait_status("a", "idle");
}

/// The control port: one open route, a token for the rest, the whole truth behind it.
#[test]
fn the_control_port_demands_its_token_and_tells_the_truth() {
    use agent_relay::edge::http::{Base, Http};
    use agent_relay::secret::Secret;
    use serde_json::json;
    let machine = Machine::new("control");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let base = Base::parse(info["controlUrl"].as_str().expect("url")).expect("url");
    let http = Http::new(base, std::time::Duration::from_secs(60));
    let token = Secret::new(info["controlToken"].as_str().expect("token"));
    let none = Secret::default();
    let call = |method: &str, path: &str, body: Value| {
        http.call_bearer(method, path, Some(&body), &token).expect("answers")
    };
    let health = http.call("GET", "/health", None, &none).expect("answers");
    assert_eq!(health, (200, json!({"ok": true})));
    for path in ["/status", "/log-level", "/reply-obligations", "/terminal/attach-spec"] {
        assert_eq!(http.call("GET", path, None, &none).expect("answers").0, 401, "{path}");
        let wrong = http.call_bearer("GET", path, None, &Secret::new("wrong")).expect("answers");
        assert_eq!(wrong.0, 401, "{path}");
    }
    const FIELDS: &str = "status why since work claims queues connection providerProcess lastErrors \
                          approvals";
    let (_, truth) = call("GET", "/status", Value::Null);
    for field in FIELDS.split(' ') {
        assert!(truth.get(field).is_some(), "{field} is missing in {truth}");
    }
    // A hook posts work of its own; late posts of another provider process are dropped.
    assert_eq!(
        call("POST", "/status", json!({"status": "busy", "reason": "subagent", "id": "s1"})),
        (200, json!({"ok": true, "status": "busy"}))
    );
    machine.wait_status("a", "busy");
    let late =
        json!({"status": "idle", "reason": "subagent", "id": "s1", "providerSessionId": "old"});
    assert_eq!(call("POST", "/status", late).0, 200);
    machine.wait_status("a", "busy");
    call("POST", "/status", json!({"status": "idle", "reason": "subagent", "id": "s1"}));
    machine.wait_status("a", "idle");
    assert_eq!(call("POST", "/status", json!({"status": "asleep"})).0, 400);
    assert_eq!(call("GET", "/log-level", Value::Null).1["level"], "debug");
    assert_eq!(call("POST", "/log-level", json!({"level": " INFO "})).1["previous"], "debug");
    assert_eq!(call("POST", "/log-level", json!({"level": "fatal"})).1["level"], "fatal");
    assert_eq!(call("GET", "/log-level", Value::Null).1["level"], "fatal");
    assert_eq!(call("POST", "/log-level", json!({"level": "loud"})).0, 400);
    assert_eq!(
        call("POST", "/hook-fatal", json!({"hook": " ", "error": 5})),
        (200, json!({"ok": true}))
    );
    assert!(machine.logs().contains("FATAL [hook:unknown] (no detail)"));
    // The report reaches the relay, which keeps none (409): that counts as delivered.
    wait_for("the outbox to be empty", 60, || {
        (call("GET", "/status", Value::Null).1["queues"]["outbox"]["pending"] == 0).then_some(())
    });
    assert_eq!(
        call("GET", "/reply-obligations", Value::Null).1,
        json!({"obligations": [], "replyMode": "auto"})
    );
    assert_eq!(call("GET", "/nothing", Value::Null).0, 404);
}

#[test]
fn the_program_acts_by_its_name() {
    let machine = Machine::new("name");
    let link = machine.work.join("codex-relay");
    std::os::unix::fs::symlink(crate::support::BIN, &link).expect("links");
    let output =
        machine.command(&link.to_string_lossy()).args(["--odd", "x"]).output().expect("runs");
    // What it does not know is the provider's, which takes no such word.
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"--odd\""));
    let output = machine.command(&link.to_string_lossy()).args(["--help"]).output().expect("runs");
    assert!(
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).starts_with("Usage: codex-relay")
    );
}
