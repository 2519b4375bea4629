//! Conversations, and how the command line speaks when it is misused.

use agent_relay::core::ids::ProcessRef;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{BIN, Machine, own_port, wait_for};

#[test]
fn up_holds_a_conversation_and_leaves_nothing_behind() {
    let mut machine = Machine::new("up");
    // A port of its own: other tests run beside this one.
    let port = own_port();
    machine.set("AGENT_RELAY_URL", &format!("http://127.0.0.1:{port}"));
    let text = machine.ok(&["up"]);
    assert!(text.contains("is ready") && text.contains("I am the demo agent"), "{text}");
    assert_eq!(machine.left_over(), [], "{}", machine.logs());

    let mut child = machine
        .command(BIN)
        .args(["up"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    // A line that is not UTF-8 is a message like others, and not the last one.
    child.stdin.take().expect("piped").write_all(b"first \xe9\nsecond\n").expect("writes");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("first") && text.contains("second"), "{text}");
    assert_eq!(machine.left_over(), []);
}

#[test]
fn up_without_a_terminal_ends_at_an_approval() {
    let mut machine = Machine::new("approval");
    let port = own_port();
    machine.set("AGENT_RELAY_URL", &format!("http://127.0.0.1:{port}"));
    let text = machine.fails(1, &["up", "--say", "ask"]);
    assert!(text.contains("asks for permission (rm -rf demo-scratch)"), "{text}");
    assert_eq!(machine.left_over(), []);
}

#[test]
fn agents_misbehave_and_the_runner_goes_on() {
    let machine = Machine::new("misbehave");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let ids: Vec<u64> =
        ["garbage", "error", "crash", "hello", "child"].map(|word| machine.send("a", word)).into();
    machine.settle(&ids, 60);
    let answers = machine.ok(&["inbox", "--json"]);
    assert!(answers.contains("the demo agent was asked to fail"), "{answers}");
    machine.wait_status("a", "idle");
}

#[test]
fn a_flood_neither_starves_nor_bloats() {
    let machine = Machine::new("flood");
    let _hub = machine.hub();
    let runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "flood 100");
    wait_for("the flood", 60, || (machine.status("a")["status"] == "busy").then_some(()));
    // The bus and the control port live while a hundred megabytes come in.
    let asked = Instant::now();
    assert_eq!(machine.status("a")["connection"]["state"], "registered");
    let took = asked.elapsed();
    assert!(took < machine.within(Duration::from_secs(5)), "{took:?}");
    machine.settle(&[id], 90);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", runner.child.id())).expect("lives");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("peak")
        .trim()
        .trim_end_matches(" kB");
    assert!(peak.parse::<u64>().expect("a number") < 60_000, "peak memory {peak} kB");
}

#[test]
fn an_agent_answers_itself_and_is_not_answered_for() {
    let machine = Machine::new("itself");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    // Its turn is not over before it has answered, however slow the machine is.
    let id = machine.send("a", "work 3600");
    wait_for("the delivery", 60, || machine.delivered().contains_key(&id).then_some(()));
    wait_for("the reading", 60, || {
        machine
            .ok(&["get-message", &id.to_string(), "--json"])
            .contains("\"readBy\":[\"a\"]")
            .then_some(())
    });
    // As the agent would: with its own token, from its own environment.
    let stored = machine.home.join("agents/a/store.sqlite");
    let token = wait_for("the agent's token", 60, || {
        let db = rusqlite::Connection::open(&stored).ok()?;
        let note: String = db
            .query_row("SELECT value FROM notes WHERE key = 'token'", [], |row| row.get(0))
            .ok()?;
        serde_json::from_str::<Value>(&note).ok()?["token"].as_str().map(str::to_string)
    });
    let own = |arguments: &[&str]| {
        let mut command = machine.command(BIN);
        let url = machine.config()["relayUrl"].as_str().unwrap_or_default().to_string();
        command
            .env("AGENT_RELAY_TOKEN", &token)
            .env("AGENT_RELAY_ID", "a")
            .env("AGENT_RELAY_URL", url);
        command.args(arguments).stdin(Stdio::null()).output().expect("runs")
    };
    let reply = own(&["/reply", &id.to_string(), "my own answer"]);
    assert!(reply.status.success(), "{}", String::from_utf8_lossy(&reply.stderr));
    let foreign = own(&["inbox", "--for", "user"]);
    let refused = String::from_utf8_lossy(&foreign.stderr).into_owned();
    assert_eq!(foreign.status.code(), Some(2), "an agent reads its own messages only: {refused}");
    assert!(refused.contains("reads its own messages only"), "{refused}");
    machine.ok(&["command", "a", "interrupt"]);
    // What the runner sends goes in order: an answer of its own to the first message would stand
    // before that to the second.
    let next = machine.send("a", "and now?");
    machine.settle(&[id, next], 60);
    let answers: Vec<Value> = machine
        .ok(&["inbox", "--all", "--json"])
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["kind"] == "chat" && message["replyTo"] == id)
        .collect();
    let bodies: Vec<&str> = answers.iter().filter_map(|answer| answer["body"].as_str()).collect();
    assert_eq!(bodies, ["my own answer"], "the answer of the agent itself, and nothing beside it");
}

#[test]
fn misuse_gives_one_clear_sentence() {
    let machine = Machine::new("misuse");
    for (arguments, hint) in [
        (vec!["dance"], "there is no command \"dance\""),
        (vec!["hub", "--port=1"], "write --port 1 instead"),
        (vec!["run"], "say which provider"),
        (vec!["run", "acp"], "say which agent to run"),
        (vec!["run", "acp", "--preset", "nobody"], "no preset is called"),
        (vec!["run", "acp", "--approval", "maybe", "--", "x"], "open, guarded or read-only"),
        (vec!["run", "acp", "--cwd", "/does/not/exist", "--", "x"], "working directory"),
        (vec!["run", "acp", "--agent-id", "a:b", "--", "x"], "cannot be an agent id"),
        (vec!["run", "acp", "--relay-url", "relay:4850", "--", "x"], "must begin with http://"),
        (vec!["run", "codex", "--", "x"], "cannot be passed on"),
        (vec!["run", "codex", "--transport", "tmux"], "use stream, terminal"),
        (vec!["run", "claude", "--transport", "pigeon"], "use tmux, stream, terminal"),
        (vec!["run", "claude", "--transport", "terminal"], "needs a terminal"),
        (vec!["run", "claude", "--", "-p", "hi"], "not a session to supervise"),
        (vec!["run", "claude", "--", "--resume", "x"], "leave --resume out"),
        (vec!["send", "someone"], "nothing to send"),
        (vec!["approvals", "perhaps"], "is not a decision"),
        (vec!["command", "a", "explode"], "there is no command"),
    ] {
        let text = machine.fails(2, &arguments);
        assert!(text.contains(hint), "{arguments:?}: {text}");
    }
    let text = machine.fails(3, &["agents"]);
    assert!(text.contains("agent-relay hub"), "{text}");
    for arguments in
        [vec!["--help"], vec!["send", "--help"], vec!["run", "--help"], vec!["version"]]
    {
        assert!(machine.ok(&arguments).len() > 10);
    }
    std::fs::create_dir_all(&machine.home).expect("home");
    std::fs::write(machine.home.join("config.json"), "{\n \"token\": nope }").expect("writes");
    let text = machine.fails(2, &["agents"]);
    assert!(text.contains("config.json:2:"), "{text}");
}

#[test]
fn commands_that_are_nowhere_end_with_two() {
    let machine = Machine::new("nosuch");
    let _hub = machine.hub();
    let mut runner =
        machine.start(&["run", "acp", "--quiet", "--agent-id", "a", "--", "/no/such/agent"]);
    let (code, text) = runner.wait(60);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("was not found"), "{text}");
}

#[test]
fn secrets_stay_secret() {
    let machine = Machine::new("secrets");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
    let token = machine.config()["token"].as_str().expect("operator token").to_string();
    assert!(!machine.logs().contains(&token));
    for ProcessRef { pid, .. } in machine.left_over() {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!arguments.contains(&token));
        // The operator's token never reaches the agent: its runner makes one of its own.
        let environment =
            std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!environment.contains(&token));
    }
    let mut open = vec![machine.home.clone()];
    while let Some(path) = open.pop() {
        use std::os::unix::fs::PermissionsExt;
        let demo = path.starts_with(machine.home.join("demo"));
        let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o077;
        assert!(demo || mode == 0, "{} is open to others: {mode:o}", path.display());
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path).expect("reads").map(|entry| entry.expect("entry").path()),
            );
        }
    }
}

/// The mirror of many turns neither hides an answer in the inbox nor makes `up` deaf.
#[test]
fn mail_is_found_behind_the_mirror() {
    let machine = Machine::new("mirror");
    let _hub = machine.hub();
    let runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let ids: Vec<u64> = (0..60).map(|n| machine.send("a", &format!("work 0 {n}"))).collect();
    machine.settle(&ids, 60);
    let last = machine.send("a", "the real one");
    machine.settle(&[last], 60);
    machine.ok(&["inbox", "--read", "--limit", "1000"]);
    assert_eq!(machine.ok(&["inbox"]), "no unread messages for user");
    assert!(machine.ok(&["inbox", "--mirror", "--limit", "1000"]).contains("work"));
    drop(runner);
    let text = machine.ok(&["up", "--say", "hello there", "--wait", "20"]);
    assert!(text.contains("You wrote: hello there"), "{text}");
}
