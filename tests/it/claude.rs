//! Claude sessions in real tmux, with a program that behaves like the real one at its terminal
//! (`tests/agents/claude.rs`) and misbehaves on demand. What its transcript holds is the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;

use agent_relay::core::rng::Rng;
use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, pause, skip, wait_for};

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;

struct Claude {
    machine: Machine,
    hub: Option<Running>,
    runner: Option<Running>,
}

fn program() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let path =
        own.parent().and_then(|deps| deps.parent()).expect("a folder").join("examples/claude");
    assert!(path.exists(), "cargo build --examples makes {}", path.display());
    path
}

/// Scenarios need tmux; where it is missing they are skipped.
fn has_tmux() -> bool {
    let found = std::process::Command::new("tmux")
        .arg("-V")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip("tmux is missing; install it with: sudo apt-get install tmux");
    }
    found
}

impl Claude {
    fn prepared(name: &str, faults: &[(&str, &str)]) -> Claude {
        let mut machine = Machine::new(name);
        let tmux = machine.home.with_file_name("t");
        std::fs::create_dir_all(&tmux).expect("folder");
        machine.set("TMUX_TMPDIR", &tmux.to_string_lossy());
        machine.set("LANG", "C.UTF-8");
        let mut env: BTreeMap<&str, String> =
            faults.iter().map(|(name, value)| (*name, value.to_string())).collect();
        env.insert("FAKE_STATE", machine.home.join("fake").to_string_lossy().into_owned());
        let restart = json!({"firstMs": 50, "mostMs": 200, "exitsMax": 1000});
        let config = json!({"command": program().to_string_lossy(), "isolated": true, "env": env, "restart": restart});
        std::fs::create_dir_all(machine.home.join("providers")).expect("folder");
        std::fs::write(machine.home.join("providers/claude.json"), config.to_string())
            .expect("config");
        let hub = machine.hub();
        Claude { machine, hub: Some(hub), runner: None }
    }

    fn start(name: &str, faults: &[(&str, &str)]) -> Claude {
        let mut claude = Claude::prepared(name, faults);
        claude.run();
        claude.machine.wait_status("a", "idle");
        claude
    }

    fn run(&mut self) {
        self.runner = Some(self.machine.start(&["run", "claude", "--headless", "--agent-id", "a"]));
    }

    fn pid(&self) -> u32 {
        self.machine
            .status("a")
            .pointer("/providerProcess/pid")
            .and_then(Value::as_u64)
            .unwrap_or(0) as u32
    }

    fn tmux(&self, words: &[&str]) -> String {
        let status = self.machine.status("a");
        let socket = status
            .pointer("/terminal/tmuxSocket")
            .and_then(Value::as_str)
            .unwrap_or("none")
            .to_string();
        let output = self
            .machine
            .command("tmux")
            .args(["-L", &socket])
            .args(words)
            .output()
            .expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "agent"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "agent"])
    }

    /// Prompts of the conversations, as the transcripts hold them.
    fn prompts(&self) -> Vec<String> {
        let folder = self.machine.home.join("agents/a/claude/projects/-fake");
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let texts: Vec<String> =
            files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect();
        let lines = texts
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["type"] == "user")
            .filter_map(|line| line["message"]["content"].as_str().map(str::to_string))
            .collect()
    }

    fn count(&self, mark: &str) -> usize {
        self.prompts().iter().map(|prompt| prompt.matches(mark).count()).sum()
    }

    #[track_caller]
    fn once(&self, mark: &str) {
        wait_for(mark, 60, || (self.count(mark) > 0).then_some(()));
        assert_eq!(self.count(mark), 1, "{mark}: {:?}\n{}", self.prompts(), self.machine.logs());
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(self.machine.home.join("fake/seen.log")).unwrap_or_default()
    }

    #[track_caller]
    fn answered(&self, id: u64) -> String {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the answer", 60, || {
                let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
                let messages: Vec<Value> =
                    inbox.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
                let mine = |message: &&Value| {
                    message["replyTo"] == id
                        || message["payload"]["answers"]
                            .as_array()
                            .is_some_and(|ids| ids.contains(&json!(id)))
                };
                messages
                    .iter()
                    .find(mine)
                    .and_then(|message| message["body"].as_str().map(str::to_string))
            })
        }));
        found.unwrap_or_else(|_| {
            panic!(
                "no answer to {id}: {}\n{}\n{}",
                self.screen(),
                self.machine.status("a"),
                self.machine.logs()
            )
        })
    }

    #[track_caller]
    fn asks(&self, text: &str) -> String {
        let id = self.machine.send("a", text);
        self.answered(id)
    }

    fn send_as(&self, agent: &str, text: &str) {
        let made = self.machine.ok(&["token", "create", "--agent", agent, "--json"]);
        let token = serde_json::from_str::<Value>(&made).expect("JSON")["token"]
            .as_str()
            .expect("a token")
            .to_string();
        let sent = self
            .machine
            .command(BIN)
            .args(["send", "a", text])
            .env("AGENT_RELAY_TOKEN", token)
            .output()
            .expect("runs");
        assert!(sent.status.success(), "{sent:?}");
    }

    #[track_caller]
    fn approval(&self) -> String {
        wait_for("an approval", 60, || {
            let open = self.machine.ok(&["approvals", "--json"]);
            serde_json::from_str::<Value>(open.lines().next()?).ok()?["approvalId"]
                .as_str()
                .map(str::to_string)
        })
    }
}

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
    // Why it is so, and since when.
    wait_for("the hook as the reason", 60, || {
        claude.machine.ok(&["status", "a", "--why"]).contains("hook Stop").then_some(())
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
    let sockets = || {
        std::fs::read_dir(claude.machine.home.with_file_name("t")).into_iter().flatten().flatten()
    };
    wait_for("no socket of tmux", 60, || {
        sockets()
            .all(|dir| std::fs::read_dir(dir.path()).is_ok_and(|mut files| files.next().is_none()))
            .then_some(())
    });
}

/// The relay knows at once that the program, or the terminal's server with it, is gone.
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
        config["restart"] = json!({"firstMs": 60_000, "mostMs": 60_000});
        std::fs::write(&file, config.to_string()).expect("writes");
        claude.run();
        claude.machine.wait_status("a", "idle");
        claude.asks("MARK-ONE");
        claude.machine.wait_status("a", "idle");
        let pid = claude.pid();
        match server {
            true => drop(claude.tmux(&["kill-server"])),
            false => os::kill(os::process(pid), Signal::KILL),
        }
        // Nothing else would tell within that time: the next start is a minute away, and what polls
        // is slower.
        wait_for("offline at the relay", 30, || {
            let cards = claude.machine.ok(&["agents", "--json"]);
            let card: Value = serde_json::from_str(cards.lines().next()?).ok()?;
            (card["status"] == "offline").then_some(())
        });
    }
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
    let port = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .expect("a port")
        .to_string();
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
    let heard: Vec<std::sync::mpsc::Receiver<String>> = monitors
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
        .collect();
    for (hear, (_, kind)) in heard.iter().zip(&monitors) {
        let line = hear.recv_timeout(std::time::Duration::from_secs(if *kind == "current" {
            60
        } else {
            1
        }));
        assert_eq!(line.is_ok(), *kind == "current", "{kind}: {line:?}");
        assert!(
            line.is_err()
                || line
                    .as_ref()
                    .is_ok_and(|line| line.contains(&format!("agent-relay get-message {id}"))),
            "{line:?}"
        );
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

/// The stand-in says nothing that the real program does not say, and leaves out nothing that
/// counts.
#[test]
fn the_stand_in_speaks_as_the_recordings_do() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-diff", &[]);
    claude.asks("MARK-ONE");
    let id = claude.machine.send("a", "MARK-PERM PERM");
    let approval = claude.approval();
    claude.machine.ok(&["approvals", "approve", &approval]);
    claude.answered(id);
    claude.machine.ok(&["command", "a", "compact"]);
    claude.machine.ok(&["command", "a", "clearContext"]);
    let log = std::fs::read_to_string(claude.machine.home.join("fake/hooks.log")).expect("log");
    let keys = |value: &Value| {
        value
            .as_object()
            .map(|map| map.keys().cloned().collect::<BTreeSet<String>>())
            .unwrap_or_default()
    };
    let fixtures =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/claude/hooks");
    let mut events = BTreeSet::new();
    for line in log.lines() {
        let payload: Value = serde_json::from_str(line).expect("JSON");
        let event = payload["hook_event_name"].as_str().expect("an event").to_string();
        let file = match payload["source"].as_str().or(payload["reason"].as_str()) {
            Some("clear") => format!("{event}.clear"),
            _ => event.clone(),
        };
        let text =
            std::fs::read_to_string(fixtures.join(format!("{file}.json"))).expect("recorded");
        let recorded = keys(&serde_json::from_str(&text).expect("JSON"));
        // What depends on settings and flags may be missing.
        let free = ["prompt_id", "permission_mode", "effort", "model", "session_title"];
        let wanted: BTreeSet<String> =
            recorded.iter().filter(|key| !free.contains(&key.as_str())).cloned().collect();
        let told: BTreeSet<String> =
            keys(&payload).into_iter().filter(|key| !free.contains(&key.as_str())).collect();
        assert_eq!(told, wanted, "{event}");
        events.insert(event);
    }
    let all = [
        "SessionStart",
        "UserPromptSubmit",
        "Stop",
        "PermissionRequest",
        "PreCompact",
        "PostCompact",
        "SessionEnd",
    ];
    assert!(all.iter().all(|event| events.contains(*event)), "{events:?}");
}

fn one(seed: u64) {
    let mut claude = Claude::start(
        &format!("claude-chaos{seed}"),
        &[("FAKE_HOOKS", "lossy"), ("FAKE_SEED", &seed.to_string())],
    );
    let mut rng = Rng::new(seed);
    let (mut ids, mut story) = (Vec::new(), Vec::new());
    for n in 0..10 {
        let word = ["", "SLOW", "PERM", "HANG", ""][rng.below(5) as usize];
        let id = claude.machine.send("a", &format!("MARK-{n}. {word}"));
        ids.push((id, word));
        story.push(format!("{n} {word}"));
        pause(rng.below(400));
        match rng.below(8) {
            0 => {
                claude.runner = None;
                claude.run();
                story.push("runner killed".into());
            }
            1 | 2 => {
                let pid = claude.pid();
                if pid > 1 {
                    os::kill(os::process(pid), Signal::KILL);
                }
                story.push("provider killed".into());
            }
            3 => {
                claude.tmux(&["kill-server"]);
                story.push("tmux killed".into());
            }
            _ => {}
        }
    }
    // What hangs or asks is helped on until all is answered.
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("answers to all", 240, || {
            for line in claude.machine.ok(&["approvals", "--json"]).lines() {
                let approval: Value = serde_json::from_str(line).unwrap_or_default();
                claude.machine.run(&[
                    "approvals",
                    "approve",
                    approval["approvalId"].as_str().unwrap_or_default(),
                ]);
            }
            let status = claude.machine.status("a");
            let hangs =
                status["status"] == "busy" && status["sinceMs"].as_u64().unwrap_or(0) > 2500;
            if hangs {
                claude.machine.run(&["command", "a", "interrupt"]);
            }
            let inbox = claude.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
            let messages: Vec<Value> =
                inbox.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let answered = |id: &u64| {
                messages.iter().any(|m| {
                    m["replyTo"] == *id
                        || m["payload"]["answers"]
                            .as_array()
                            .is_some_and(|ids| ids.contains(&json!(id)))
                })
            };
            ids.iter().all(|(id, _)| answered(id)).then_some(())
        });
        claude.machine.wait_status("a", "idle");
    }));
    let told = || {
        format!(
            "seed {seed}: {story:?}\n{}\n{:?}\n{}\n{}",
            claude.screen(),
            claude.prompts(),
            claude.machine.status("a"),
            claude.machine.logs()
        )
    };
    assert!(settled.is_ok(), "{}", told());
    pause(300);
    let seen = claude.seen();
    for n in 0..10 {
        // Killed just after its end, a turn is answered and not on disk: it was there once, and is
        // never said again.
        let (mark, count) = (format!("MARK-{n}."), claude.count(&format!("MARK-{n}.")));
        assert!(count <= 1 && seen.contains(&mark), "MARK-{n} {count} {}", told());
    }
    assert!(!claude.seen().contains("ANSWERED-DIALOG"), "{}", told());
    claude.machine.ok(&["command", "a", "shutdown"]);
}

#[test]
fn random_kills_and_lossy_hooks_lose_and_double_nothing() {
    if !has_tmux() {
        return;
    }
    let seeds =
        std::env::var("CHAOS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let next = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed > seeds {
                        return;
                    }
                    one(seed);
                }
            });
        }
    });
}
