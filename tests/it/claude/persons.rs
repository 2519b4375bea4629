//! What a person at the terminal decides and does.

use super::*;

#[test]
fn permissions_are_decided_at_the_relay_or_at_the_terminal() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::start("claude-permission", &[]);
    let id = claude.machine.send("a", "MARK-A PERM");
    let approval = claude.approval();
    assert_eq!(claude.machine.status("a")["status"], "blocked");
    claude.machine.ok(&["approvals", "deny", &approval, "--reason", "not now"]);
    claude.answered(id);
    assert!(
        claude.seen().contains("not now") && !claude.seen().contains("ANSWERED-DIALOG"),
        "{}",
        claude.seen()
    );
    // A person is faster: the question disappears, and a late decision is refused.
    let id = claude.machine.send("a", "MARK-B PERM");
    let approval = claude.approval();
    // A message meanwhile must not answer the dialog.
    let waits = claude.machine.send("a", "MARK-C");
    pause(700);
    assert!(!claude.seen().contains("ANSWERED-DIALOG"));
    claude.keys(&["Enter"]);
    wait_for("the question to disappear", 60, || {
        claude.machine.ok(&["approvals", "--json"]).trim().is_empty().then_some(())
    });
    claude.machine.fails(1, &["approvals", "approve", &approval]);
    claude.answered(id);
    claude.answered(waits);
    assert_eq!(claude.seen().matches("ANSWERED-DIALOG").count(), 1, "by the person");
    // A runner that restarts withdraws what is open.
    claude.machine.send("a", "MARK-D PERM");
    claude.approval();
    claude.once("MARK-D");
    claude.runner = None;
    claude.run();
    wait_for("no approvals", 60, || {
        claude.machine.ok(&["approvals", "--json"]).trim().is_empty().then_some(())
    });
    claude.machine.wait_status("a", "idle");
}

/// Escape at the terminal in the turn of a task: the task waits, and nobody starts it again but who
/// asks for that.
#[test]
fn escape_at_the_terminal_blocks_the_task() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("escape-task", &[]);
    let task: Value = serde_json::from_str(&claude.machine.ok(&[
        "send",
        "a",
        "--task",
        "--json",
        "--subject",
        "t",
        "MARK-TASK HANG",
    ]))
    .expect("JSON");
    claude.once("MARK-TASK");
    claude.machine.wait_status("a", "busy");
    claude.keys(&["Escape"]);
    let blocked = wait_for("the task to be blocked", 60, || {
        let shown: Value = serde_json::from_str(&claude.machine.ok(&[
            "tasks",
            "show",
            &task["id"].to_string(),
            "--json",
        ]))
        .expect("JSON");
        (shown["status"] == "blocked").then_some(shown)
    });
    let last = blocked["history"]
        .as_array()
        .and_then(|entries| entries.last())
        .cloned()
        .unwrap_or_default();
    assert_eq!(
        (last["body"].as_str(), last["by"].as_str()),
        (Some("interrupted at the agent's terminal"), Some("a")),
        "{blocked}"
    );
    claude.machine.wait_status("a", "idle");
    claude.asks("hello meanwhile");
    assert_eq!(claude.count("MARK-TASK"), 1);
    claude.machine.ok(&["tasks", "reopen", &task["id"].to_string()]);
    wait_for("the task to come once more", 60, || (claude.count("MARK-TASK") == 2).then_some(()));
    // It says that it does, so the stand-in hangs anew: whoever sent it ends it.
    assert!(
        claude.prompts().iter().any(|prompt| prompt.contains("You were given this task before")),
        "{:?}",
        claude.prompts()
    );
    claude.machine.ok(&["tasks", "cancel", &task["id"].to_string()]);
    assert_eq!(claude.count("MARK-TASK"), 2);
}

/// In a person's own terminal, without the socket: monitors name what waits, the session's own tool
/// fetches it.
#[test]
fn at_a_persons_terminal_monitors_name_what_waits() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::prepared("claude-personal", &[("FAKE_SOCKET", "missing")]);
    // Another tmux plays the person's terminal.
    let run = format!("{BIN} run claude --agent-id a");
    let personal = |words: &[&str]| {
        claude
            .machine
            .command("tmux")
            .args(["-L", "personal", "-f", "/dev/null"])
            .args(words)
            .output()
            .expect("tmux runs")
    };
    personal(&["new-session", "-d", "-x", "120", "-y", "40", &run]);
    wait_for("the session", 60, || (claude.machine.status("a")["status"] == "idle").then_some(()));
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(claude.machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let session = std::fs::read(format!("/proc/{}/environ", claude.pid())).expect("lives");
    let session = String::from_utf8_lossy(&session)
        .split('\0')
        .find_map(|word| word.strip_prefix("AGENT_RELAY_PROVIDER_SESSION_ID=").map(str::to_string))
        .expect("set");
    let url = info["controlUrl"].as_str().expect("a URL");
    let port = url.rsplit(':').next().expect("a port").to_string();
    let inside = |arguments: &[&str], session: &str| {
        let mut command = claude.machine.command(BIN);
        command
            .args(arguments)
            .env("AGENT_RELAY_RUNNER_PORT", &port)
            .env("AGENT_RELAY_RUNNER_TOKEN", info["controlToken"].as_str().expect("token"));
        command
            .env("AGENT_RELAY_PROVIDER_SESSION_ID", session)
            .env("CLAUDE_PID", std::process::id().to_string());
        command
    };
    let mut monitors: Vec<(Running, &str)> = Vec::new();
    for of in [session.as_str(), session.as_str(), "an older process"] {
        let child = inside(&["monitor"], of)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        monitors.push((Running { child }, if of == session { "current" } else { "stale" }));
    }
    // A monitor that comes later is told of it too: it need not be waited for.
    let id = claude.machine.send("a", "MARK-NAMED");
    let heard = listen(&mut monitors);
    for (hear, (_, kind)) in heard.iter().zip(&monitors) {
        let seconds = if *kind == "current" { 60 } else { 1 };
        let line = hear.recv_timeout(std::time::Duration::from_secs(seconds));
        assert_eq!(line.is_ok(), *kind == "current", "{kind}: {line:?}");
        let named = format!("agent-relay get-message {id}");
        assert!(line.is_err() || line.as_ref().is_ok_and(|line| line.contains(&named)), "{line:?}");
    }
    assert_eq!(claude.machine.status("a")["turn"]["phase"], "sent", "printing proves nothing");
    let read = inside(&["get-message", &id.to_string()], &session).output().expect("runs");
    assert!(String::from_utf8_lossy(&read.stdout).contains("MARK-NAMED"), "{read:?}");
    wait_for("the proof", 60, || {
        (claude.machine.status("a")["turn"]["phase"] != "sent").then_some(())
    });
    claude.machine.ok(&["command", "a", "shutdown"]);
    personal(&["kill-server"]);
}

/// What each of them prints, line by line.
fn listen(monitors: &mut [(Running, &str)]) -> Vec<std::sync::mpsc::Receiver<String>> {
    monitors
        .iter_mut()
        .map(|(monitor, _)| {
            let (say, hear) = std::sync::mpsc::channel();
            let stdout = monitor.child.stdout.take().expect("piped");
            std::thread::spawn(move || {
                std::io::BufRead::lines(std::io::BufReader::new(stdout))
                    .map_while(Result::ok)
                    .try_for_each(|line| say.send(line))
            });
            hear
        })
        .collect()
}
