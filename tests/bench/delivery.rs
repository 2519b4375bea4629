//! How long a message takes through a real hub and a real runner.

use super::*;

pub struct Setup {
    _runner: Running,
    _hub: Running,
    pub base: Base,
    pub token: Secret,
    pub folder: Folder,
    pub pids: (u32, u32),
}

pub fn setup(name: &str, provider: &[&str], env: &[(&str, String)]) -> Setup {
    let run = ["acp", "--agent-id", "a", "--approval", "open", "--"];
    setup_in(Folder::new(name), &[&run, provider].concat(), env)
}

/// A hub and a runner in a folder that may hold settings.
pub fn setup_in(folder: Folder, run: &[&str], env: &[(&str, String)]) -> Setup {
    let mut hub = command(&folder.0);
    let mut hub = hub.args(["hub", "--port", "0"]).stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(hub.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    let config: Value = serde_json::from_str(
        &std::fs::read_to_string(folder.0.join("config.json")).expect("config"),
    )
    .expect("JSON");
    let base = Base::parse(config["relayUrl"].as_str().expect("url")).expect("url");
    let token = Secret::new(config["token"].as_str().expect("token"));
    let mut runner = command(&folder.0);
    runner.arg("run").args(run).envs(env.iter().map(|(k, v)| (k, v)));
    let runner = runner.spawn().expect("starts");
    let pids = (hub.id(), runner.id());
    let http = Http::new(base.clone(), Duration::from_secs(5));
    loop {
        let (_, card) = http.call("GET", &path::agent("a"), None, &token).expect("answers");
        if card["status"] == "idle" && card["connected"] == true {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Setup { _runner: Running(runner), _hub: Running(hub), base, token, folder, pids }
}

/// An ACP agent that answers at once and notes when it was asked.
pub fn provider(log: &Path) {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("opens");
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let at = mono();
        let frame: Value = serde_json::from_str(&line).expect("JSON");
        let result = match frame["method"].as_str() {
            Some("initialize") => {
                json!({"protocolVersion": 1, "agentCapabilities": {}, "agentInfo": {"name": "bench", "version": "1"}})
            }
            Some("session/new") => json!({"sessionId": "s"}),
            Some("session/prompt") => {
                let update = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "pong"}});
                let params = json!({"sessionId": "s", "update": update});
                writeln!(
                    out,
                    "{}",
                    json!({"jsonrpc": "2.0", "method": "session/update", "params": params})
                )
                .expect("writes");
                json!({"stopReason": "end_turn"})
            }
            _ => continue,
        };
        writeln!(out, "{}", json!({"jsonrpc": "2.0", "id": frame["id"], "result": result}))
            .and_then(|_| out.flush())
            .expect("writes");
        if frame["method"] == "session/prompt" {
            writeln!(log, "{at} {}", mono()).expect("notes");
        }
    }
}

/// When the answer to that message came.
fn answer_heard(
    socket: &mut tungstenite::WebSocket<agent_relay::edge::stream::Stream>,
    id: &Value,
) -> u64 {
    loop {
        match socket.read() {
            Ok(Frame::Text(text)) => {
                if let Ok(RelayFrame::Event { data, .. }) = RelayFrame::parse(&text)
                    && data["kind"] == "chat"
                    && data["replyTo"] == *id
                {
                    return mono();
                }
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                let poll = rustix::event::PollFlags::IN;
                let mut fds = [rustix::event::PollFd::new(socket.get_ref(), poll)];
                agent_relay::os::wait(&mut fds, Some(Duration::from_secs(5)));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn latency(commit: Duration) {
    let own = std::env::current_exe().expect("own path").to_string_lossy().into_owned();
    let log = Folder::new("latency-log");
    let note = log.0.join("asked");
    let setup =
        setup("latency", &[&own], &[("BENCH_PROVIDER", note.to_string_lossy().into_owned())]);
    let http = Http::new(setup.base.clone(), Duration::from_secs(5));
    let mut socket = agent_relay::edge::bus::connect(&setup.base, &setup.token).expect("connects");
    let mut send = |frame: ClientFrame| socket.send(Frame::text(frame.to_text())).expect("sends");
    let registration = Registration {
        role: "channel".into(),
        component_id: "bench".into(),
        instance_id: "bench".into(),
        ..Default::default()
    };
    send(ClientFrame::Register { id: "r".into(), registration });
    std::thread::sleep(Duration::from_millis(200));
    send(ClientFrame::Subscribe {
        id: "s".into(),
        events: vec!["message.new".into()],
        scopes: vec!["user".into()],
    });
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for round in 0..420 {
        let sent = mono();
        let body = json!({"to": "a", "body": "ping"});
        let (status, answer) =
            http.call("POST", path::MESSAGES, Some(&body), &setup.token).expect("answers");
        assert_eq!(status, 201);
        let heard = answer_heard(&mut socket, &answer["id"]);
        let text = std::fs::read_to_string(&note).expect("noted");
        let (asked, answered) =
            text.lines().last().and_then(|line| line.split_once(' ')).expect("noted");
        if round >= 20 {
            there.push(Duration::from_nanos(asked.parse::<u64>().expect("a number") - sent));
            back.push(Duration::from_nanos(
                heard.saturating_sub(answered.parse::<u64>().expect("a number")),
            ));
        }
    }
    let (p50, p99) = (percentile(&mut there, 0.5), percentile(&mut there, 0.99));
    let goal = commit * 3 + Duration::from_micros(500);
    row(
        "send → provider, p50",
        "≤ 3 commits + 0.5 ms",
        format!(
            "{} (3 commits + 0.5 ms = {}, ratio {:.2})",
            us(p50),
            us(goal),
            p50.as_secs_f64() / goal.as_secs_f64()
        ),
    );
    row("send → provider, p99", "≤ 10 ms", ms(p99));
    row(
        "reply → sender, p50 (p99)",
        "–",
        format!("{} ({})", us(percentile(&mut back, 0.5)), us(percentile(&mut back, 0.99))),
    );
    drop(setup.folder);
}
