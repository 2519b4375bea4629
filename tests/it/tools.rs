//! The rest of the command line, as people and scripts use it.

mod hooks;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, http, own_port, skip, wait_for};

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn threads_reactions_tasks_and_labels() {
    let machine = Machine::new("tools");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
    let thread = machine.ok(&["thread", &id.to_string()]);
    assert!(
        thread.contains(&format!("#{id} from user to a"))
            && thread.contains(&format!("answers #{id}")),
        "{thread}"
    );
    machine.ok(&["react", &id.to_string(), "\u{1F44D}"]);
    assert!(machine.ok(&["message", &id.to_string()]).contains("\u{1F44D} by user"));
    assert!(machine.ok(&["/get-message", &id.to_string()]).contains("hello"), "slash form");

    let task = machine.ok(&["send", "a", "--task", "--json", "work 0"]);
    let number = lines(&task)[0]["id"].to_string();
    wait_for("the task to be done", 60, || {
        machine.ok(&["tasks", "show", &number]).contains("done by a").then_some(())
    });
    assert!(machine.ok(&["tasks", "--status", "open"]).contains("no tasks"));
    assert!(machine.fails(2, &["tasks", "finish", "1"]).contains("show, start, block"));
    assert!(machine.fails(1, &["tasks", "done", "99"]).contains("task"));

    assert!(machine.ok(&["label", "a", "web"]).contains("has the label web"));
    let id = machine.send("label:web", "by label");
    machine.settle(&[id], 60);
    // Labels are self-declared, so a sender sees how many have taken his words.
    assert!(
        machine.ok(&["send", "label:web", "--no-reply", "x"]).ends_with("to label:web (one agent)")
    );
    assert!(
        machine
            .ok(&["send", "policy:web", "--no-reply", "x"])
            .contains("to policy:web (no agent matches yet")
    );
    let named = [
        "token",
        "create",
        "--json",
        "--agent",
        "p",
        "--policy",
        "web",
        "--name",
        "the web's",
        "--scopes",
        "approve:spawned",
    ];
    let made = &lines(&machine.ok(&named))[0]["record"];
    assert_eq!(
        (made["policyName"].as_str(), made["name"].as_str()),
        (Some("web"), Some("the web's"))
    );
    assert_eq!(made["scopes"], json!(["approve:spawned"]));
    assert!(machine.ok(&["label", "a", "--clear"]).contains("has no label"));
    machine.fails(2, &["label", "a"]);
    machine.fails(1, &["label", "nobody", "x"]);
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let mut machine = Machine::new("tokens");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let made = lines(&machine.ok(&[
        "token",
        "create",
        "--agent",
        "x",
        "--ttl",
        "100",
        "--scopes",
        "message:send,message:read",
        "--json",
    ]));
    let (token, jti) = (
        made[0]["token"].as_str().expect("token"),
        made[0]["record"]["jti"].as_str().expect("id").to_string(),
    );
    assert_eq!(made[0]["record"]["scopes"], json!(["message:send", "message:read"]));
    let list = machine.ok(&["token", "list"]);
    assert!(list.contains(&jti) && !list.contains(token), "{list}");
    machine.set("AGENT_RELAY_TOKEN", token);
    let who = lines(&machine.ok(&["whoami", "--json"]));
    assert_eq!(
        (who[0]["id"].as_str(), who[0]["token"]["profileId"].as_str()),
        (Some("x"), Some("provider-agent"))
    );
    let id = machine.send("a", "from x");
    assert!(machine.ok(&["message", &id.to_string()]).contains("from x to a"));
    assert!(machine.fails(2, &["command", "a", "interrupt", "--no-wait"]).contains("scope"));
    machine.set("AGENT_RELAY_TOKEN", "");
    machine.ok(&["token", "revoke", &jti]);
    machine.set("AGENT_RELAY_TOKEN", token);
    assert!(machine.fails(2, &["whoami"]).contains("unknown or has expired"));
}

#[test]
fn an_inbox_is_followed_over_a_hub_that_goes_and_comes_back() {
    let machine = Machine::new("follow");
    let mut hub = machine.hub();
    machine.send("user", "before");
    let mut command = machine.command(BIN);
    let child = command
        .args(["inbox", "--follow", "--read", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut follower = Running { child: child.spawn().expect("starts") };
    let (told, heard) = std::sync::mpsc::channel();
    let output = follower.child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let body = serde_json::from_str::<Value>(&line).unwrap_or_default()["body"]
                .as_str()
                .unwrap_or_default()
                .to_string();
            let _ = told.send(body);
        }
    });
    let next = || heard.recv_timeout(Duration::from_secs(20)).expect("a message");
    assert_eq!(next(), "before");
    machine.send("user", "live");
    assert_eq!(next(), "live");
    hub.kill();
    let _hub = machine.hub();
    machine.send("user", "after");
    assert_eq!(next(), "after", "and nothing twice");
    wait_for("all to be read", 60, || machine.ok(&["inbox"]).contains("no unread").then_some(()));
}

#[test]
fn agents_are_watched() {
    let machine = Machine::new("watch");
    let _hub = machine.hub();
    let mut command = machine.command(BIN);
    let child = command
        .args(["agents", "--watch", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut watcher = Running { child: child.spawn().expect("starts") };
    let (told, heard) = std::sync::mpsc::channel();
    let output = watcher.child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let card: Value = serde_json::from_str(&line).unwrap_or_default();
            let _ = told.send(format!(
                "{} {}",
                card["id"].as_str().unwrap_or_default(),
                card["status"].as_str().unwrap_or_default()
            ));
        }
    });
    let sees = |what: &str| {
        let until = Instant::now() + Duration::from_secs(20);
        while heard.recv_timeout(until.saturating_duration_since(Instant::now())).expect(what)
            != what
        {}
    };
    let _runner = machine.runner("a");
    sees("a idle");
    machine.send("a", "work 1");
    sees("a busy");
    sees("a idle");
}

#[test]
fn a_doctor_names_what_is_wrong_and_the_cure() {
    let mut machine = Machine::new("doctor");
    let ill = machine.run(&["doctor", "--json"]);
    assert_eq!(ill.status.code(), Some(1));
    let text = String::from_utf8_lossy(&ill.stdout).into_owned();
    let finding = |text: &str, check: &str| {
        lines(text).into_iter().find(|finding| finding["check"] == check).unwrap_or_default()
    };
    assert_eq!(finding(&text, "relay")["grade"], "fail");
    assert!(
        finding(&text, "relay")["cure"]
            .as_str()
            .is_some_and(|cure| cure.contains("agent-relay hub")),
        "{text}"
    );
    let hub = machine.hub();
    let well = machine.ok(&["doctor", "--json"]);
    for check in ["home", "modes", "disk", "relay", "clock", "token"] {
        assert_eq!(finding(&well, check)["grade"], "ok", "{check}: {well}");
    }
    // Others can read a secret; a token that nobody knows.
    use std::os::unix::fs::PermissionsExt;
    let config = machine.home.join("config.json");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    machine.set("AGENT_RELAY_TOKEN", "unknown");
    let ill = String::from_utf8_lossy(&machine.run(&["doctor", "--json"]).stdout).into_owned();
    assert!(
        finding(&ill, "modes")["cure"].as_str().is_some_and(|cure| cure.contains("chmod")),
        "{ill}"
    );
    assert_eq!(finding(&ill, "token")["grade"], "fail");
    // A provider's file that cannot be read, and a word that nobody knows.
    let providers = machine.home.join("providers");
    std::fs::create_dir_all(&providers).expect("folder");
    for (text, grade, word) in [
        ("garbage{", "fail", "claude.json"),
        (r#"{"replyMode": "sometimes"}"#, "warn", "replyMode"),
    ] {
        std::fs::write(providers.join("claude.json"), text).expect("writes");
        let ill = String::from_utf8_lossy(&machine.run(&["doctor", "--json"]).stdout).into_owned();
        let said = lines(&ill).into_iter().any(|finding| {
            finding["check"] == "settings"
                && finding["grade"] == grade
                && finding["found"].as_str().is_some_and(|found| found.contains(word))
        });
        assert!(said, "{ill}");
    }
    drop(hub);
}

/// A mistake in the address, or a hub that is not there: a person at the terminal sees it at once,
/// with the cure.
#[test]
fn a_runner_says_that_its_relay_is_away() {
    let machine = Machine::new("away");
    let mut command = machine.command(BIN);
    command.args([
        "run",
        "acp",
        "--agent-id",
        "lost",
        "--relay-url",
        "http://127.0.0.1:1",
        "--",
        "cat",
    ]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let stderr = child.stderr.take().expect("piped");
    let mut running = Running { child };
    let said = BufReader::new(stderr)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("cannot reach the relay"));
    assert!(
        said.is_some_and(|line| line.contains("127.0.0.1:1") && line.contains("agent-relay hub"))
    );
    running.terminate();
    running.wait(60);
}

#[test]
fn a_hub_is_looked_after() {
    let machine = Machine::new("hub-care");
    let hub = machine.hub();
    let ids: Vec<u64> =
        (0..50).map(|n| machine.send("user", &format!("{n} {}", "x".repeat(2000)))).collect();
    let copy = machine.home.join("copy.sqlite").to_string_lossy().into_owned();
    machine.ok(&["hub", "backup", &copy]);
    assert!(machine.fails(2, &["hub", "backup", &copy]).contains("exists already"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&copy).expect("a copy").permissions().mode() & 0o777, 0o600);
    machine.ok(&["hub", "vacuum"]);
    let status: Value =
        serde_json::from_str(&machine.ok(&["hub", "status", "--json"])).expect("JSON");
    assert_eq!(
        (status["now"]["lastMessageId"].as_u64(), status["process"]["pid"].as_u64()),
        (ids.last().copied(), Some(hub.child.id() as u64))
    );
    assert!(
        machine.fails(2, &["hub", "stats"]).contains("status, backup FILE, restore FILE or vacuum")
    );
    assert!(
        machine.fails(2, &["hub", "--listen", "0.0.0.0", "--port", "0"]).contains("already runs")
    );
    drop(hub);
    assert!(
        machine.fails(2, &["hub", "--listen", "0.0.0.0", "--port", "0"]).contains("--tls-cert")
    );
    machine.ok(&["hub", "vacuum"]);
    // A hub on the copy knows everything that was stored by then.
    machine.ok(&["hub", "restore", &copy]);
    let _hub = machine.hub();
    assert_eq!(lines(&machine.ok(&["inbox", "--all", "--json", "--limit", "100"])).len(), 50);
}

#[test]
fn texts_for_shells_and_manuals_are_made() {
    let machine = Machine::new("generate");
    for (what, word) in [
        ("bash", "complete -o default"),
        ("zsh", "#compdef"),
        ("fish", "complete -c"),
        ("man", ".TH"),
    ] {
        assert!(machine.ok(&["generate", what]).contains(word), "{what}");
    }
    for which in ["hub", "agent"] {
        assert!(machine.ok(&["generate", "unit", which]).contains("Type=notify"), "{which}");
    }
    assert!(machine.fails(2, &["generate", "unit"]).contains("hub"));
    assert!(machine.fails(2, &["generate", "csh"]).contains("bash, zsh, fish, man or unit"));
    let script = machine.home.join("completion.bash");
    std::fs::create_dir_all(&machine.home).expect("folder");
    std::fs::write(&script, machine.ok(&["generate", "bash"])).expect("writes");
    let text = format!(
        ". {}; COMP_WORDS=(agent-relay ta); COMP_CWORD=1; _agent_relay; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let output = machine.command("/bin/bash").args(["-c", &text]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "tasks");
    assert!(machine.ok(&["guide"]).contains("agent-relay reply"));
    assert!(machine.fails(2, &["agnets"]).contains("did you mean agents?"));
}

#[test]
fn a_provider_that_cannot_start_is_an_error_for_everybody() {
    let machine = Machine::new("no-provider");
    let _hub = machine.hub();
    // A command that is there and cannot run: one that is nowhere ends the start before anybody
    // hears of it.
    let program = machine.home.join("program");
    std::fs::write(&program, "#!/nonexistent/interpreter\n").expect("writes");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("sets");
    let program = program.to_string_lossy().into_owned();
    let mut runner = machine.start(&["run", "acp", "--agent-id", "a", "--", &program]);
    let (code, text) = runner.wait(60);
    assert!(code == 1 && text.contains(&program), "{code} {text}");
    let table = machine.ok(&["agents"]);
    assert!(table.contains("error") && table.contains(&program), "{table}");
}

#[test]
fn output_that_nobody_can_read_is_no_success() {
    let mut machine = Machine::new("full");
    let hub = machine.hub();
    let to_full = |arguments: &[&str]| {
        let full =
            std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        machine
            .command(BIN)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(full)
            .output()
            .expect("runs")
    };
    for arguments in [&["version"][..], &["generate", "bash"], &["agents"], &["token", "create"]] {
        let output = to_full(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written")
        );
    }
    drop(hub);
    // What `up` started ends with it, whoever stops reading.
    let port = own_port();
    machine.set("AGENT_RELAY_URL", &format!("http://127.0.0.1:{port}"));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    let output = machine
        .command(BIN)
        .args(["up", "--say", "hi"])
        .stdin(Stdio::null())
        .stdout(full)
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(machine.left_over(), [], "{}", machine.logs());
}

#[test]
fn a_web_server_is_no_relay() {
    let mut machine = Machine::new("stranger");
    let port = http::serve(|request, _| {
        http::respond(request, 200, "text/html", "<html></html>".into());
    });
    machine.set("AGENT_RELAY_URL", &format!("http://127.0.0.1:{port}"));
    for arguments in
        [&["send", "x", "y"][..], &["inbox"], &["agents"], &["approvals"], &["whoami"], &["tasks"]]
    {
        assert!(machine.fails(3, arguments).contains("is not a relay"), "{arguments:?}");
    }
}
