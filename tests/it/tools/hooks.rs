//! Hooks, as a provider runs them.

use super::*;

/// Starts the script of the hooks in a shell, as a provider would.
fn start_script(shell: &str, bin: &str, event: &str, port: &str) -> std::process::Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/relay-hook.sh");
    let mut command = std::process::Command::new(shell);
    command
        .args([script, event])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("AGENT_RELAY_BIN", bin);
    command.envs(agent_relay::planted::env());
    command.env("AGENT_RELAY_RUNNER_PORT", port).env("AGENT_RELAY_RUNNER_TOKEN", "secret-token");
    command.env("AGENT_RELAY_PROVIDER_SESSION_ID", "s1").env("http_proxy", "http://127.0.0.1:1");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// The script of the hooks, in every shell that is here: where the binary is missing or cannot be
/// run, the bare status is posted to the runner alone, and the session never hears of it.
#[test]
fn a_hooks_script_falls_back_to_the_bare_status() {
    let machine = Machine::new("script");
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
        let run = |bin: &str, event: &str, port: &str| start_script(shell, bin, event, port);
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

/// Port and token of the runner of a.
fn control_port(machine: &Machine) -> (String, String) {
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let url = info["controlUrl"].as_str().expect("a URL");
    let port = url.rsplit(':').next().expect("a port").to_string();
    (port, info["controlToken"].as_str().expect("token").to_string())
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
    let (port, token) = control_port(&machine);
    let env = |port: &str| {
        vec![
            ("AGENT_RELAY_RUNNER_PORT", port.to_string()),
            ("AGENT_RELAY_RUNNER_TOKEN", token.clone()),
            ("AGENT_RELAY_REPLY_MODE", "explicit".to_string()),
        ]
    };
    // A hook never holds a session for longer than this, whatever its input and its runner do.
    let limit = Duration::from_millis(2300);
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
    assert!(code == 0 && took < machine.within(limit), "an input that never ends: {code} {took:?}");
    // Somebody who takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let (code, _, took) = hook(
        &machine,
        "stop",
        b"{}",
        &env(&silent.local_addr().expect("bound").port().to_string()),
    );
    assert!(code == 0 && took < machine.within(limit), "a deaf runner: {code} {took:?}");
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
