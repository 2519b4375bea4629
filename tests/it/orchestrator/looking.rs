//! Logs, terminals and diagnoses of sessions that an orchestrator has.

use std::io::Write;
use std::path::PathBuf;

use agent_relay::edge::http::{Base, Http};
use agent_relay::secret::Secret;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Host, process_of};
use crate::support::{ran, skip, wait_for};

impl Host {
    /// Asks the interface as a program does; status and body.
    fn call(&self, operation: &str, params: Value) -> (u16, Value) {
        let file = self.machine.home.join("orchestrator/orchestrator.json");
        let told = std::fs::read_to_string(file).expect("it says where it is");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let text = |name: &str| told[name].as_str().expect("text").to_string();
        let http = Http::new(
            Base::parse(&text("url")).expect("a URL"),
            std::time::Duration::from_secs(60),
        );
        let path = format!("/orchestrator.{operation}");
        http.call_bearer("POST", &path, Some(&params), &Secret::new(text("token")))
            .expect("an answer")
    }

    fn append(&self, name: &str, text: &str) {
        let log = self.log(name);
        let file = std::fs::File::options().append(true).open(log);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("writes");
    }

    fn log(&self, name: &str) -> PathBuf {
        self.machine.home.join("logs").join(format!("{name}.log"))
    }
}

#[test]
fn a_log_is_shown_without_what_a_terminal_would_act_on() {
    let host = Host::new("logs");
    let name = host.spawn("web", &[])["sessionName"].as_str().expect("a name").to_string();
    host.append(
        &name,
        "\u{1b}]0;title\u{7}\u{1b}[31mred\u{1b}[0m\u{1b}[5Cwords\r\n\n\u{202e}turned\n",
    );
    let shown = host.machine.ok(&["logs", "web", "--lines", "2"]);
    assert_eq!(shown, "red     words\n\\u{202e}turned");
    let raw = host.machine.ok(&["logs", "web", "--lines", "2", "--raw"]);
    assert!(raw.starts_with("\\u{1b}]0;title") && !raw.contains('\u{1b}'), "{raw}");
    let told = host.machine.ok(&["logs", &name, "--lines", "1", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&told).expect("JSON"),
        json!({"line": "\u{202e}turned"})
    );
    let (status, told) = host.call("logs", json!({"session": name, "lines": 2}));
    assert_eq!((status, &told["lines"]), (200, &json!(["red     words", "\u{202e}turned"])));
    assert_eq!(told["running"], json!(true));
    for odd in ["../config.json", "agent-relay-../../../config.json", "nobody", ""] {
        assert_eq!(host.call("logs", json!({"session": odd})).0, 422, "{odd}");
        assert!(!host.machine.run(&["logs", odd]).status.success(), "{odd}");
    }
    // What comes is shown as it comes, until nobody reads any more.
    let mut follow = host.machine.command(crate::support::BIN);
    follow.args(["logs", "web", "--lines", "1", "--follow"]).stdout(std::process::Stdio::piped());
    let mut follow = follow.spawn().expect("runs");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().expect("piped")));
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(next(), "\\u{202e}turned");
    host.append(&name, "\u{1b}[1mnew\u{1b}[0m\n");
    assert_eq!(next(), "new");
    agent_relay::os::kill(agent_relay::os::process(follow.id()), Signal::KILL);
    follow.wait().expect("ends");
    // A log stays, and can be read though the session is over and nobody keeps it.
    host.machine.ok(&["stop", "web"]);
    assert!(host.machine.ok(&["logs", &name]).ends_with("new"));
    let mut host = host;
    host.kill();
    assert!(host.machine.ok(&["logs", &name]).ends_with("new"));
}

#[test]
fn a_session_is_diagnosed_while_it_runs_and_after_its_end() {
    let host = Host::new("diagnose");
    let report = host.spawn("web", &["--restart", "never"]);
    let name = report["sessionName"].as_str().expect("a name").to_string();
    host.append(&name, "the last words, with API_KEY=abcdefghijklmnop\n");
    let page = host.machine.ok(&["diagnose", "web"]);
    for want in [
        &format!("{name} runs for "),
        "agent web, provider acp, mode open",
        "lives; kept by process",
        "has told where it is",
        "terminal    none",
        "    | the last words, with API_KEY=********",
    ] {
        assert!(page.contains(want), "{want}: {page}");
    }
    let told: Value =
        serde_json::from_str(&host.machine.ok(&["diagnose", "web", "--json"])).expect("JSON");
    assert_eq!((&told["alive"], &told["currentPid"]), (&json!(true), &report["pid"]));
    assert!(!told.to_string().contains("controlToken"), "{told}");
    agent_relay::os::kill(process_of(&report), Signal::KILL);
    let known = wait_for("its end", 60, || {
        let told = host.machine.run(&["diagnose", &name, "--json"]);
        let told: Value = serde_json::from_slice(&told.stdout).ok()?;
        (told["alive"] == json!(false) && (told["ends"].is_array() || told["parked"].is_string()))
            .then_some(told)
    });
    assert!(known.to_string().contains("signal 9"), "{known}");
    let page = host.machine.ok(&["diagnose", &name]);
    assert!(page.contains("is over") && page.contains("help"), "{page}");
    let said = host.machine.fails(1, &["diagnose", "agent-relay-acp-never"]);
    assert!(said.contains("nothing is known of"), "{said}");
}

#[test]
fn a_session_without_a_terminal_says_so() {
    let host = Host::new("no-terminal");
    let name = host.spawn("web", &[])["sessionName"].as_str().expect("a name").to_string();
    host.machine.wait_status("web", "idle");
    let (status, told) = host.call("terminal.snapshot", json!({"session": name}));
    assert_eq!((status, &told["running"], &told["agentAlive"]), (200, &json!(false), &json!(true)));
    for (operation, params, want) in [
        (
            "terminal.input",
            json!({"session": name, "data": "x"}),
            "terminal session is not running",
        ),
        (
            "terminal.resize",
            json!({"session": name, "cols": 80, "rows": 24}),
            "terminal session is not running",
        ),
        ("terminal.guest", json!({"agentId": "web"}), "provider does not support terminal attach"),
    ] {
        let (status, told) = host.call(operation, params);
        assert_eq!((status, &told["error"]), (409, &json!(want)), "{operation}");
    }
    for word in ["web", name.as_str()] {
        let said = host.machine.fails(1, &["attach", word]);
        assert!(said.contains("provider does not support terminal attach"), "{said}");
    }
}

#[test]
fn the_relay_learns_how_the_host_is() {
    let host = Host::new("report");
    host.spawn("web", &[]);
    let report = wait_for("the report", 60, || {
        let cards = host.machine.ok(&["agents", "--json"]);
        let mut cards = cards.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        cards.find_map(|card| card.pointer("/meta/host").cloned())
    });
    assert!(report["memory"]["available"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
    assert!(report["disk"]["free"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
    assert!(report["load"].as_array().is_some_and(|load| load.len() == 3), "{report}");
    assert_eq!(report["version"], json!(agent_relay::wire::VERSION));
    let (status, now) = host.call("host", json!({}));
    assert_eq!((status, &now["sessions"]), (200, &json!({"running": 1, "parked": 0})));
}

/// Claude Code's stand-in in a terminal of its own, as a session of an orchestrator.
#[test]
fn a_terminal_is_seen_typed_into_and_lent_to_guests_by_commands() {
    let found = std::process::Command::new("tmux").arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        return skip("tmux is missing; install it with: sudo apt-get install tmux");
    }
    ran("tmux");
    let host = Host::new("terminal");
    let own = std::env::current_exe().expect("own path");
    let program =
        own.parent().and_then(|deps| deps.parent()).expect("a folder").join("examples/claude");
    let state = host.machine.home.join("fake").to_string_lossy().into_owned();
    let config = json!({"command": program.to_string_lossy(), "isolated": true, "env": {"FAKE_STATE": state}});
    std::fs::create_dir_all(host.machine.home.join("providers")).expect("folder");
    std::fs::write(host.machine.home.join("providers/claude.json"), config.to_string())
        .expect("config");
    let cwd = host.machine.work.to_string_lossy().into_owned();
    let words = ["spawn", "--json", "--agent-id", "web", "--label", "web", "--cwd", &cwd, "claude"];
    let report: Value = serde_json::from_str(&host.machine.ok(&words)).expect("JSON");
    let name = report["sessionName"].as_str().expect("a name").to_string();
    host.machine.wait_status("web", "idle");
    let shown = |session: &str, text: &str| {
        wait_for(text, 60, || {
            let (status, told) = host.call("terminal.snapshot", json!({"session": session}));
            assert_eq!(status, 200, "{told}");
            told["content"].as_str()?.contains(text).then_some(told)
        })
    };
    let (status, told) = host.call("terminal.input", json!({"session": name, "data": "a draft;"}));
    assert_eq!((status, &told["sent"]), (200, &json!(1)), "{told}");
    let told = shown(&name, "a draft;");
    assert_eq!((&told["cols"], &told["agentAlive"]), (&json!(200), &json!(true)));
    let size = json!({"session": name, "cols": 100, "rows": 30});
    assert_eq!(host.call("terminal.resize", size).0, 200);
    assert_eq!(shown(&name, "a draft;")["cols"], json!(100));
    let (status, guest) = host.call("terminal.guest", json!({"agentId": "web"}));
    assert_eq!(
        (status, &guest["mode"], &guest["interactive"]),
        (200, &json!("guest"), &json!(true))
    );
    let guest_name = guest["session"].as_str().expect("a name").to_string();
    shown(&guest_name, "a draft;");
    let (_, page) = host.call("diagnose", json!({"agentId": "web"}));
    assert_eq!(page["terminalAvailable"], json!(true), "{page}");
    let (status, ended) = host.call("terminal.stop", json!({"session": guest_name}));
    assert_eq!((status, &ended["stopped"]), (200, &json!(true)));
    let spec: Value =
        serde_json::from_str(&host.machine.ok(&["attach", &name, "--json"])).expect("JSON");
    assert_eq!(spec["command"][0], json!("tmux"));
    host.machine.ok(&["stop", "web"]);
    let (status, gone) = host.call("terminal.snapshot", json!({"session": name}));
    assert_eq!(status, 404, "{gone}");
}
