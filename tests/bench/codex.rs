//! Codex: how long a message takes to the beginning of its turn, and how fast a busy turn is
//! followed. The server is this program: it says what the real one says, at once.

use std::os::unix::net::{UnixListener, UnixStream};

use tungstenite::WebSocket;

use super::delivery::setup_in;
use super::*;

/// Messages of one figure.
const MESSAGES: usize = 200;
/// Words of a busy turn, and bytes of each.
const WORDS: usize = 300_000;
const WORD_BYTES: usize = 64;

/// An app server with one client, which notes when each turn began and how long its words took.
pub fn serve(note: &Path) {
    let words: Vec<String> = std::env::args().collect();
    let at = words.iter().position(|word| word == "--listen").expect("--listen");
    let path = words[at + 1].strip_prefix("unix://").expect("a unix socket");
    let listener = UnixListener::bind(path).expect("binds");
    let mut note = std::fs::File::options().create(true).append(true).open(note).expect("opens");
    let (stream, _) = listener.accept().expect("a client");
    let mut socket = tungstenite::accept(stream).expect("the upgrade");
    while let Ok(message) = socket.read() {
        let frame: Value =
            serde_json::from_str(message.to_text().unwrap_or_default()).unwrap_or_default();
        let at = mono();
        let result = match frame["method"].as_str() {
            Some("initialize") => json!({"userAgent": "bench/0.171.0 (x)"}),
            Some("account/read") => json!({"requiresOpenaiAuth": false}),
            Some("thread/start") => json!({"thread": {"id": "t"}}),
            Some("turn/start") => json!({"turn": {"id": format!("u{at}")}}),
            Some("initialized") | None => continue,
            Some(_) => json!({}),
        };
        say(&mut socket, &json!({"id": frame["id"], "result": result}));
        if frame["method"] == "turn/start" {
            let took = turn(&mut socket, &frame["params"], &format!("u{at}"));
            writeln!(note, "{at} {}", took.as_nanos()).expect("notes");
        }
    }
}

fn say(socket: &mut WebSocket<UnixStream>, frame: &Value) {
    socket.send(Frame::text(frame.to_string())).expect("a client");
}

/// One turn; how long its words took to be heard.
fn turn(socket: &mut WebSocket<UnixStream>, params: &Value, turn: &str) -> Duration {
    let mut tell = |method: &str, mut params: Value| {
        params["threadId"] = json!("t");
        params["turnId"] = json!(turn);
        say(socket, &json!({"method": method, "params": params, "emittedAtMs": 0}));
    };
    tell("turn/started", json!({"turn": {"id": turn, "status": "inProgress"}}));
    let (input, client) = (&params["input"], &params["clientUserMessageId"]);
    let said = json!({"type": "userMessage", "id": "i", "clientId": client, "content": input});
    tell("item/completed", json!({"item": said}));
    let is_busy = input.to_string().contains("BUSY");
    let (begin, delta) = (Instant::now(), "x".repeat(WORD_BYTES));
    for _ in 0..if is_busy { WORDS } else { 1 } {
        tell("item/agentMessage/delta", json!({"itemId": "m", "delta": delta}));
    }
    let took = begin.elapsed();
    tell("item/completed", json!({"item": {"type": "agentMessage", "id": "m", "text": "done"}}));
    tell("turn/completed", json!({"turn": {"id": turn, "status": "completed"}}));
    took
}

/// Both figures, of one runner.
pub fn turns() {
    let own = std::env::current_exe().expect("own path").to_string_lossy().into_owned();
    let log = Folder::new("codex-log");
    let note = log.0.join("turns");
    let folder = Folder::new("codex");
    std::fs::create_dir_all(folder.0.join("providers")).expect("a folder");
    let settings = json!({"command": own}).to_string();
    std::fs::write(folder.0.join("providers/codex.json"), settings).expect("settings");
    let run = ["codex", "--headless", "--agent-id", "a", "--approval", "open"];
    let env = [("BENCH_CODEX", note.to_string_lossy().into_owned())];
    let setup = setup_in(folder, &run, &env);
    let http = Http::new(setup.base.clone(), Duration::from_secs(5));
    // When the turn of a message began, and how long its words took.
    let asks = |body: &str, number: usize| -> (Duration, Duration) {
        let (sent, body) = (mono(), json!({"to": "a", "body": body}));
        let (status, _) =
            http.call("POST", path::MESSAGES, Some(&body), &setup.token).expect("answers");
        assert_eq!(status, 201);
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let text = std::fs::read_to_string(&note).unwrap_or_default();
            if let Some((began, took)) = text.lines().nth(number).and_then(|it| it.split_once(' '))
            {
                let nanos = |text: &str| text.parse::<u64>().expect("a number");
                let there = Duration::from_nanos(nanos(began) - sent);
                return (there, Duration::from_nanos(nanos(took)));
            }
            assert!(Instant::now() < until, "no turn began");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let mut times: Vec<Duration> = (0..MESSAGES).map(|n| asks("ping", n).0).collect();
    row(
        "send → Codex's turn begins (a server that begins it at once): p50 (p99)",
        "–",
        format!("{} ({})", us(percentile(&mut times, 0.5)), us(percentile(&mut times, 0.99))),
    );
    let process = format!("/proc/{}", setup.pids.1);
    let memory = || {
        let text = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0)
    };
    let _ = std::fs::write(format!("{process}/clear_refs"), "5");
    let before = memory();
    let took = asks("BUSY", MESSAGES).1;
    row(
        "busy turn of 300,000 words of 64 bytes, each a frame: followed; memory at most",
        "≤ 8 MB",
        format!(
            "{:.0} frames/s; {:.1} MB more",
            WORDS as f64 / took.as_secs_f64(),
            memory().saturating_sub(before) as f64 / 1e3
        ),
    );
}
