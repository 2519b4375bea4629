//! The rest of the command line, as people and scripts use it.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, http, skip, wait_for};

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
            .contains("to policy:web (nobody yet")
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

/// The script of the hooks, in every shell that is here: where the binary is missing or cannot be
/// run, the bare status is posted to the runner alone, and the session never hears of it.
#[test]
fn a_hooks_script_falls_back_to_the_bare_status() {
    let machine = Machine::new("script");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/relay-hook.sh");
    let (tell, posts) = std::sync::mpsc::channel();
    let runner = http::serve(move |request, body| {
        let header = request.headers().iter().find(|header| header.field.equiv("Authorization"));
        let token = header.map(|header| header.value.to_string());
        let _ = tell.send((format!("{} {}", request.method(), request.url()), token, body));
        http::respond(request, 200, "text/plain", String::new());
    });
    let port = runner.to_string();
    let (damaged, alien) = (machine.work.join("damaged"), machine.work.join("alien"));
    for (path, text) in [(&damaged, "\u{7f}ELFdamaged"), (&alien, "#!/no/such/loader\n")] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text).expect("writes");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let has = |program: &str| {
        ["/bin", "/usr/bin"]
            .iter()
            .any(|folder| std::path::Path::new(folder).join(program).exists())
    };
    let bins =
        [damaged.display().to_string(), alien.display().to_string(), "/no/such/binary".to_string()];
    for shell in ["sh", "bash", "dash"].into_iter().filter(|shell| has(shell)) {
        let run = |bin: &str, event: &str, port: &str| {
            let mut command = std::process::Command::new(shell);
            command
                .args([script, event])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("AGENT_RELAY_BIN", bin);
            command.envs(agent_relay::planted::env());
            command
                .env("AGENT_RELAY_RUNNER_PORT", port)
                .env("AGENT_RELAY_RUNNER_TOKEN", "secret-token");
            command
                .env("AGENT_RELAY_PROVIDER_SESSION_ID", "s1")
                .env("http_proxy", "http://127.0.0.1:1");
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("starts")
        };
        let quiet = |child: std::process::Child, what: &str| {
            let output = child.wait_with_output().expect("ends");
            let silent = output.stdout.is_empty() && output.stderr.is_empty();
            assert!(output.status.success() && silent, "{shell} {what}: {output:?}");
        };
        // No runner, and an event that has no bare status: nothing at all.
        quiet(run("/no/such/binary", "stop", ""), "no runner");
        quiet(run("/no/such/binary", "permission-request", &port), "no bare status");
        if !has("curl") {
            return skip(
                "curl is missing, so that nothing is posted; install it with: sudo apt-get install curl",
            );
        }
        for bin in &bins {
            for (event, status) in
                [("stop", "idle"), ("user-prompt-submit", "busy"), ("session-end", "offline")]
            {
                let child = run(bin, event, &port);
                let post = posts.recv_timeout(Duration::from_secs(60)).expect("a post");
                let body = format!(r#"{{"status":"{status}","providerSessionId":"s1"}}"#);
                let token = Some("Bearer secret-token".to_string());
                assert_eq!(post, ("POST /status".to_string(), token, body), "{shell} {bin}");
                quiet(child, event);
            }
        }
    }
    assert!(posts.try_recv().is_err(), "nothing else was posted");
}

/// Runs `hook` as a provider would.
fn hook(
    machine: &Machine,
    event: &str,
    payload: &[u8],
    env: &[(&str, String)],
) -> (i32, String, Duration) {
    let begin = Instant::now();
    let mut command = machine.command(BIN);
    command.args(["hook", event]).envs(env.iter().map(|(name, value)| (*name, value.as_str())));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(payload);
    // An empty payload stands for an input that never ends.
    let open = payload.is_empty().then_some(stdin);
    let output = child.wait_with_output().expect("ends");
    drop(open);
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        begin.elapsed(),
    )
}

#[test]
fn hooks_report_and_never_hold_a_session() {
    let machine = Machine::new("hooks");
    let _hub = machine.hub();
    std::fs::create_dir_all(machine.home.join("providers")).expect("folder");
    std::fs::write(machine.home.join("providers/acp.json"), "{\"replyMode\": \"explicit\"}")
        .expect("config");
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let port = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .expect("a port")
        .to_string();
    let token = info["controlToken"].as_str().expect("token").to_string();
    let env = |port: &str| {
        vec![
            ("AGENT_RELAY_RUNNER_PORT", port.to_string()),
            ("AGENT_RELAY_RUNNER_TOKEN", token.clone()),
            ("AGENT_RELAY_REPLY_MODE", "explicit".to_string()),
        ]
    };
    // A hook takes 2 s at most; the rest is for a busy machine.
    let limit = Duration::from_secs(15);
    // No runner: quiet.
    assert_eq!(hook(&machine, "stop", b"{}", &[]).0, 0);
    assert_eq!(hook(&machine, "stop", b"{}", &env("1")).0, 0, "nobody listens there");
    assert_eq!(hook(&machine, "busy", b"{}", &env(&port)).0, 0);
    assert_eq!(machine.status("a")["status"], "busy");
    let (code, out, _) = hook(&machine, "stop", b"{\"stop_hook_active\": false}", &env(&port));
    assert_eq!((code, out.as_str(), machine.status("a")["status"].as_str()), (0, "", Some("idle")));
    // Trouble of the hook is not the session's: the status is posted all the same, and the trouble
    // is told to the runner.
    hook(&machine, "busy", b"{}", &env(&port));
    assert_eq!(hook(&machine, "stop", b"this is no JSON", &env(&port)).0, 0);
    assert_eq!(machine.status("a")["status"], "idle");
    wait_for("the report", 60, || {
        machine.logs().contains("the payload is not valid JSON").then_some(())
    });
    let (code, _, took) = hook(&machine, "stop", b"", &env(&port));
    assert!(code == 0 && took < limit, "an input that never ends: {code} {took:?}");
    // Somebody who takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let (code, _, took) = hook(
        &machine,
        "stop",
        b"{}",
        &env(&silent.local_addr().expect("bound").port().to_string()),
    );
    assert!(code == 0 && took < limit, "a deaf runner: {code} {took:?}");
    // What is owed holds an agent back once where it answers itself.
    let id = machine.send("a", "a question");
    let owed = wait_for("the obligation", 60, || {
        let (_, out, _) = hook(&machine, "stop", b"{}", &env(&port));
        (!out.is_empty()).then_some(out)
    });
    let decision: Value = serde_json::from_str(&owed).expect("JSON");
    assert!(
        decision["decision"] == "block"
            && decision["reason"].to_string().contains(&format!("#{id}")),
        "{decision}"
    );
    assert_eq!(
        hook(&machine, "stop", b"{\"stop_hook_active\": true}", &env(&port)).1,
        "",
        "only once"
    );
    assert_eq!(hook(&machine, "no-such-event", b"{}", &env(&port)).0, 1);
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
        machine
            .fails(2, &["hub", "stats"])
            .contains("status, backup FILE, restore FILE and vacuum")
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
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("binds")
        .local_addr()
        .expect("bound")
        .port();
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
