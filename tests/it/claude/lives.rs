//! Starts, commands and ends of the session.

use super::*;

#[test]
fn commands_succeed_when_their_effect_is_seen() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-commands", &[]);
    claude.asks("MARK-ONE");
    claude.machine.ok(&["command", "a", "compact"]);
    let before = claude.machine.status("a").pointer("/providerProcess/session").cloned();
    claude.machine.ok(&["command", "a", "clearContext"]);
    assert_ne!(claude.machine.status("a").pointer("/providerProcess/session").cloned(), before);
    let id = claude.machine.send("a", "MARK-HANG HANG");
    claude.once("MARK-HANG");
    claude.machine.ok(&["command", "a", "interrupt"]);
    claude.answered(id);
    let pid = claude.pid();
    claude.machine.ok(&["command", "a", "restart"]);
    assert_ne!(claude.pid(), pid);
    assert!(claude.asks("MARK-TWO").contains("MARK-TWO"));
    claude.once("MARK-TWO");
    let spec: Value =
        serde_json::from_str(&claude.machine.ok(&["attach", "a", "--json"])).expect("JSON");
    assert_eq!((spec["mode"].as_str(), spec["command"][0].as_str()), (Some("guest"), Some("tmux")));
    // Why it is so: the hook, or whoever told of the end before it on a slow machine.
    let witnesses = ["hook Stop", "the session registry", "the transcript"];
    wait_for("a witness as the reason", 60, || {
        let why = claude.machine.ok(&["status", "a", "--why"]);
        witnesses.iter().any(|witness| why.contains(witness)).then_some(())
    });
    // Hooks of another provider process say nothing.
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(claude.machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let mut hook = claude.machine.command(BIN);
    let port = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .expect("a port")
        .to_string();
    hook.env("AGENT_RELAY_RUNNER_PORT", port)
        .env("AGENT_RELAY_RUNNER_TOKEN", info["controlToken"].as_str().expect("token"));
    hook.env("AGENT_RELAY_PROVIDER_SESSION_ID", "another")
        .args(["hook", "user-prompt-submit"])
        .stdin(Stdio::piped());
    let mut child = hook.spawn().expect("runs");
    let payload = json!({"hook_event_name": "UserPromptSubmit", "prompt": "x"});
    std::io::Write::write_all(
        &mut child.stdin.take().expect("piped"),
        payload.to_string().as_bytes(),
    )
    .expect("writes");
    assert!(child.wait().expect("ends").success());
    pause(300);
    assert_eq!(claude.machine.status("a")["status"], "idle");
}

#[test]
fn a_start_that_cannot_be_is_an_error_with_its_cure() {
    if !has_tmux() {
        return;
    }
    let mut trust = Claude::prepared("claude-trust", &[("FAKE_DIALOG", "trust")]);
    trust.run();
    let (code, text) = trust.runner.as_mut().expect("runs").wait(60);
    assert!(code == 1 && text.contains("trusted"), "{code} {text}");
    assert!(!trust.seen().contains("ANSWERED"), "nothing was pressed");
    let mut missing = Claude::prepared("claude-missing", &[]);
    let file = missing.machine.home.join("providers/claude.json");
    std::fs::write(&file, json!({"command": "no-such-claude"}).to_string()).expect("writes");
    missing.run();
    let (code, text) = missing.runner.as_mut().expect("runs").wait(60);
    assert!(
        code == 2 && text.contains("npm install -g @anthropic-ai/claude-code"),
        "{code} {text}"
    );
}

#[test]
fn after_a_kill_of_the_runner_nothing_is_left_and_the_next_one_goes_on() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::start("claude-kill", &[]);
    claude.asks("MARK-ONE");
    let id = claude.machine.send("a", "MARK-HANG HANG");
    claude.once("MARK-HANG");
    let session = claude.machine.status("a").pointer("/providerProcess/session").cloned();
    let pid = claude.pid();
    claude.runner = None;
    wait_for("the end of the program", 60, || (!os::is_alive(os::process(pid))).then_some(()));
    wait_for("the end of all", 60, || {
        claude
            .machine
            .left_over()
            .iter()
            .all(|process| Some(process.pid) == claude.hub.as_ref().map(|hub| hub.child.id()))
            .then_some(())
    });
    claude.run();
    assert!(claude.answered(id).contains("Heard:"));
    assert_eq!(claude.machine.status("a").pointer("/providerProcess/session").cloned(), session);
    claude.once("MARK-HANG");
    claude.machine.ok(&["command", "a", "shutdown"]);
    wait_for("no socket of tmux", 60, || {
        (!claude.machine.home.join("agents/a/run/tmux.sock").exists()).then_some(())
    });
}

/// The relay knows within a second that the program, or the terminal's server with it, is gone, and
/// not from a start after it: that is ten minutes away.
#[test]
fn a_killed_provider_is_offline_at_once() {
    if !has_tmux() {
        return;
    }
    for server in [false, true] {
        let mut claude = Claude::prepared(&format!("claude-gone-{server}"), &[]);
        let file = claude.machine.home.join("providers/claude.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("reads")).expect("JSON");
        config["restart"] = json!({"firstMs": 600_000, "mostMs": 600_000});
        std::fs::write(&file, config.to_string()).expect("writes");
        claude.run();
        claude.machine.wait_status("a", "idle");
        claude.asks("MARK-ONE");
        claude.machine.wait_status("a", "idle");
        let pid = claude.pid();
        if server {
            claude.tmux(&["kill-server"]);
        } else {
            os::kill(os::process(pid), Signal::KILL);
        }
        let begin = std::time::Instant::now();
        wait_for("offline at the relay", 60, || {
            let cards = claude.machine.ok(&["agents", "--json"]);
            let card: Value = serde_json::from_str(cards.lines().next()?).ok()?;
            (card["status"] == "offline").then_some(())
        });
        let took = begin.elapsed();
        let limit = claude.machine.within(std::time::Duration::from_secs(1));
        assert!(took < limit, "server={server}: {took:?}, more than {limit:?}");
        assert_eq!(claude.pid(), 0, "no other process of it was started meanwhile");
    }
}

/// A terminal server takes the search path of a session from elsewhere than all other variables.
#[test]
fn a_session_in_a_terminal_has_its_own_path_and_finds_our_program() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("own-path", &[("PATH", "/usr/bin:/bin:/planted-folder")]);
    let path = variable(claude.pid(), "PATH");
    let own = std::path::Path::new(BIN).parent().expect("a folder").display();
    assert_eq!(path, format!("/usr/bin:/bin:/planted-folder:{own}"));
}

/// What people say is pasted from a file whose path the terminal server expands.
#[test]
fn a_home_with_signs_of_tmux_formats_is_served() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("it's #{pid} #S %H $HOME", &[]);
    assert!(claude.asks("MARK-FORMATS").contains("Heard: MARK-FORMATS"));
    claude.once("MARK-FORMATS");
}
