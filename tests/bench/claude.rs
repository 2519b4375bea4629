//! Claude Code: how long a message takes to the model, and how fast a transcript is followed.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_relay::core::ids::VerbNumber;
use agent_relay::core::session::{Input, MessageFingerprint, Resume, Session, Verb};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::edge::provider::file_watcher::FileWatcher;
use agent_relay::provider::claude::tui::TuiSession;
use agent_relay::provider::{ApprovalMode, SessionSettings, Start};
use serde_json::{Value, json};

use super::model::Model;
use super::{Folder, Running, command, ms, percentile, row};

/// Messages of one figure.
const MESSAGES: usize = 60;
/// How long a session is left alone before the next message.
const AT_ITS_PROMPT: Duration = Duration::from_millis(500);
/// Bytes of the transcript, and of one line.
const TRANSCRIPT: (usize, usize) = (500 << 20, 1 << 20);

/// send → the model server sees the prompt, beside what the program itself needs for a prompt that
/// is typed.
pub fn prompt() {
    let Some(dir) = std::env::var_os("INTEROP_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.join("bin/claude").exists())
    else {
        return row(
            "send → the model sees the prompt (Claude)",
            "–",
            "not measured: INTEROP_DIR holds no claude (make interop installs it)".into(),
        );
    };
    let dir = dir.canonicalize().expect("a folder");
    for transport in ["stream", "tmux"] {
        let folder = Folder::new(&format!("claude-{transport}"));
        let model = Model::start();
        let tmux = folder.0.join("t");
        std::fs::create_dir_all(&tmux).expect("folder");
        std::fs::create_dir_all(folder.0.join("providers")).expect("folder");
        write_config(&folder, &model);
        let path = format!("{}:/usr/bin:/bin", dir.join("bin").display());
        let start = |words: &[&str]| {
            let mut command = command(&folder.0);
            command.args(words).env("PATH", &path).env("TMUX_TMPDIR", &tmux).env("LANG", "C.UTF-8");
            Running(command.spawn().expect("starts"))
        };
        let _hub = start(&["hub", "--port", "0"]);
        wait_until(Duration::from_secs(20), || {
            folder.0.join("hub/hub.json").exists() && folder.0.join("config.json").exists()
        });
        let _runner =
            start(&["run", "claude", "--headless", "--agent-id", "a", "--transport", transport]);
        let run = |words: &[&str]| {
            let output = command(&folder.0)
                .args(words)
                .stdout(std::process::Stdio::piped())
                .output()
                .expect("runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let idle = || {
            serde_json::from_str::<Value>(&run(&["status", "a", "--json"]))
                .is_ok_and(|status| status["status"] == "idle")
        };
        wait_until(Duration::from_secs(60), idle);
        let by_hand = (transport == "tmux").then(|| Keyboard::of(&run(&["attach", "a", "--json"])));
        let (mut times, mut typed) = (Vec::new(), Vec::new());
        for n in 0..MESSAGES {
            let took = until_heard(&model, &format!("MARK-{n}."), |mark| {
                run(&["send", "a", mark]);
            });
            times.push(took);
            wait_until(Duration::from_secs(30), idle);
            if let Some(keyboard) = &by_hand {
                let text = format!("HAND-{n}.");
                typed.push(until_heard(&model, &text, |text| keyboard.paste_and_enter(text)));
                wait_until(Duration::from_secs(30), idle);
            }
        }
        told(transport, times, typed);
        run(&["command", "a", "kill"]);
    }
}

/// The rows of one transport; `typed`: what a keyboard beside it needed, if there was one.
fn told(transport: &str, mut times: Vec<Duration>, mut typed: Vec<Duration>) {
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    row(
        &format!("send → the model of an idle Claude sees the prompt, {transport}: p50 (p99)"),
        if transport == "tmux" { "p50 ≤ 80 ms" } else { "–" },
        format!("{} ({})", ms(p50), ms(p99)),
    );
    if !typed.is_empty() {
        let (hand, worst) = (percentile(&mut typed, 0.5), percentile(&mut typed, 0.99));
        let ratio = p50.as_secs_f64() / hand.as_secs_f64();
        row(
            "… pasted into the same terminal by hand, with Enter right behind it: p50 (p99)",
            "–",
            format!("{} ({}); the runner's {ratio:.2} × of it", ms(hand), ms(worst)),
        );
    }
}

/// Time from the sending of a text to its request at the model.
fn until_heard(model: &Model, text: &str, send: impl FnOnce(&str)) -> Duration {
    // Behind the end of a turn the program is not at its prompt for a tenth of a second.
    std::thread::sleep(AT_ITS_PROMPT);
    let begin = Instant::now();
    send(text);
    while !model.has_heard(text) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{text} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

/// A person at the terminal of a session, who looks at nothing: the program's own part of the time.
struct Keyboard {
    socket: String,
}

impl Keyboard {
    /// `spec`: how to attach, as `attach --json` says it.
    fn of(spec: &str) -> Keyboard {
        let spec: Value = serde_json::from_str(spec).expect("an attach spec");
        let words: Vec<&str> =
            spec["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let at = words.iter().position(|word| *word == "-S").expect("the socket of a server");
        Keyboard { socket: words[at + 1].to_string() }
    }

    fn paste_and_enter(&self, text: &str) {
        let session = agent_relay::core::session::TERMINAL_SESSION;
        let mut tmux = std::process::Command::new("tmux");
        tmux.args(["-S", &self.socket, "set-buffer", "-b", "hand", text, ";"]);
        tmux.args(["paste-buffer", "-p", "-d", "-b", "hand", "-t", session, ";"]);
        tmux.args(["send-keys", "-t", session, "Enter"]);
        assert!(tmux.status().expect("tmux runs").success());
    }
}

/// The program with our model.
fn write_config(folder: &Folder, model: &Model) {
    let env = json!({"ANTHROPIC_BASE_URL": format!("http://127.0.0.1:{}", model.port), "ANTHROPIC_API_KEY": "sk-fake-0123456789abcdef0123",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1"});
    std::fs::write(
        folder.0.join("providers/claude.json"),
        json!({"env": env, "isolated": true}).to_string(),
    )
    .expect("config");
}

fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < until, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A transcript of 500 MB with lines of 1 MB is read for evidence.
pub fn follow() {
    let folder = Folder::new("follow");
    std::fs::create_dir_all(&folder.0).expect("folder");
    let path = folder.0.join("t.jsonl");
    write_transcript(&path);
    let settings = SessionSettings {
        agent: "a".into(),
        cwd: "/w".into(),
        approval_mode: ApprovalMode::Guarded,
        mode: None,
        approval_timeout: Duration::from_secs(60),
        capture_full: false,
    };
    let path = path.to_string_lossy().into_owned();
    let start = Start {
        resumes: true,
        transcript: Some(path.clone()),
        terminal: true,
        ..Default::default()
    };
    let mut session = TuiSession::new(settings, start);
    let now = Now { tick: Tick(1), wall: Wall(1) };
    let evidence_for = vec![MessageFingerprint {
        header: "[relay message #5 from user]".into(),
        start: "x".into(),
        is_whole: false,
    }];
    session.handle(
        now,
        Input::Verb(
            VerbNumber(1),
            Verb::Open { resume: Some(Resume { session: "s".into(), evidence_for }) },
        ),
    );
    let mut watcher = FileWatcher::new();
    watcher.follow(&path, true);
    let memory = || {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0)
    };
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = memory();
    let begin = Instant::now();
    let mut bytes = 0;
    loop {
        let seen = watcher.read_changes();
        let caught = seen.contains(&Input::CaughtUp);
        for input in seen {
            if let Input::FileAppended(piece) = &input {
                bytes += piece.len();
            }
            session.handle(now, input);
        }
        if caught {
            break;
        }
    }
    let (took, more) = (begin.elapsed(), memory().saturating_sub(before));
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    row(
        "transcript of 500 MB with lines of 1 MB: followed; memory at most",
        "≤ 8 MB",
        format!("{rate:.0} MB/s; {:.1} MB more", more as f64 / 1e3),
    );
}

/// Long results of tools, and between them short answers.
fn write_transcript(path: &std::path::Path) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("creates"));
    // In small pieces: what this process has held once would hide what is held later.
    const PIECE: [u8; 4096] = [b'x'; 4096];
    let head = r#"{"type":"user","uuid":"u","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":""#;
    let (pieces, tail) = (TRANSCRIPT.1 / PIECE.len(), "\"}]}}\n");
    let answer = json!({"type": "assistant", "uuid": "a", "message": {"id": "m", "model": "m", "stop_reason": "tool_use", "content": [{"type": "text", "text": "working on it"}]}});
    let answer = format!("{answer}\n");
    for _ in 0..TRANSCRIPT.0 / (head.len() + pieces * PIECE.len() + tail.len() + answer.len()) {
        file.write_all(head.as_bytes()).expect("writes");
        (0..pieces).for_each(|_| file.write_all(&PIECE).expect("writes"));
        file.write_all(tail.as_bytes())
            .and_then(|()| file.write_all(answer.as_bytes()))
            .expect("writes");
    }
    file.flush().expect("writes");
    drop(file);
}
