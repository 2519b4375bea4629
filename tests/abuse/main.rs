//! What strangers may do to both servers, the hub and a runner's control port: the process lives,
//! its memory stays bounded, and a normal client gets its answer meanwhile.

mod bus;
mod scene;
mod token;

#[path = "../it/support.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_relay::core::ids::ProcessRef;
use agent_relay::os;
use serde_json::{Value, json};
use support::{Machine, Running, wait_for};
use tungstenite::{Message, WebSocket};

/// One at a time: answers are timed.
static ALONE: Mutex<()> = Mutex::new(());
/// A normal client's answer comes in that time (nine of ten), on a quiet machine.
const ANSWER: Duration = Duration::from_millis(100);
/// Memory of either process under attack.
const RSS_KB_MAX: u64 = 160 << 10;

/// A server under attack.
struct Target {
    name: &'static str,
    address: String,
    process: ProcessRef,
    /// Path that needs a token, and the header with it.
    path: &'static str,
    header: String,
    _hub: Running,
    _runner: Option<Running>,
    machine: Machine,
}

impl Target {
    fn hub(limit: Option<u32>) -> Target {
        let machine = Machine::new("abuse-hub");
        let running = match limit {
            None => machine.hub(),
            Some(limit) => {
                let mut command = machine.command("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).args([
                    support::BIN,
                    "hub",
                    "--port",
                    "0",
                ]);
                Running { child: command.spawn().expect("prlimit is in util-linux") }
            }
        };
        let info = wait_for("the hub", 60, || {
            serde_json::from_str::<Value>(
                &std::fs::read_to_string(machine.home.join("hub/hub.json")).ok()?,
            )
            .ok()
        });
        let config = machine.config();
        let pid = info["pid"].as_u64().expect("pid") as u32;
        Target {
            name: "hub",
            address: config["relayUrl"].as_str().expect("url").trim_start_matches("http://").into(),
            process: os::process(pid),
            path: "/api/agents",
            header: format!("X-Agent-Relay-Token: {}", config["token"].as_str().expect("token")),
            _hub: running,
            _runner: None,
            machine,
        }
    }

    fn control() -> Target {
        let machine = Machine::new("abuse-control");
        let hub = machine.hub();
        let runner = machine.runner("a");
        machine.wait_status("a", "idle");
        let info: Value = serde_json::from_str(
            &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info"),
        )
        .expect("JSON");
        let pid = info["pid"].as_u64().expect("pid") as u32;
        Target {
            name: "control",
            address: info["controlUrl"].as_str().expect("url").trim_start_matches("http://").into(),
            process: os::process(pid),
            path: "/status",
            header: format!(
                "Authorization: Bearer {}",
                info["controlToken"].as_str().expect("token")
            ),
            _hub: hub,
            _runner: Some(runner),
            machine,
        }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
        socket.set_write_timeout(Some(Duration::from_secs(10))).expect("sets");
        socket
    }

    /// A normal client, on a connection of its own.
    fn ask(&self) -> (u16, Duration) {
        let begin = Instant::now();
        let mut socket = self.connect();
        write!(
            socket,
            "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\nConnection: close\r\n\r\n",
            self.path, self.header
        )
        .expect("sends");
        let mut text = String::new();
        let _ = socket.read_to_string(&mut text);
        (status_of(&text), begin.elapsed())
    }

    /// While an attack is on.
    #[track_caller]
    fn is_well(&self, during: &str) {
        let answers: Vec<(u16, Duration)> = (0..20).map(|_| self.ask()).collect();
        assert!(
            answers.iter().all(|(status, _)| *status == 200),
            "{} {during}: {answers:?}",
            self.name
        );
        let limit = self.machine.within(ANSWER);
        let late = answers.iter().filter(|(_, took)| *took > limit).count();
        assert!(late <= 2, "{} {during}: more than {limit:?}: {answers:?}", self.name);
        assert!(
            os::is_alive(self.process),
            "{} {during}: the process is gone\n{}",
            self.name,
            self.machine.logs()
        );
        assert!(self.rss_kb() < RSS_KB_MAX, "{} {during}: {} kB", self.name, self.rss_kb());
    }

    fn rss_kb(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid))
            .unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn bus(&self) -> WebSocket<TcpStream> {
        let (name, token) = self.header.split_once(": ").expect("a header");
        let request = tungstenite::http::Request::builder()
            .uri(format!("ws://{}/bus", self.address))
            .header("Host", &self.address)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
            .header(name, token)
            .body(())
            .expect("a request");
        tungstenite::client(request, self.connect()).expect("a WebSocket").0
    }

    fn peer(&self, id: &str) -> WebSocket<TcpStream> {
        let mut bus = self.bus();
        let payload =
            json!({"role": "provider", "agentId": id, "componentId": id, "instanceId": id});
        bus.send(Message::text(
            json!({"type": "register", "id": "r", "payload": payload}).to_string(),
        ))
        .expect("sends");
        let answer = bus.read().expect("an answer").to_string();
        assert!(answer.contains("registered"), "{answer}");
        bus
    }
}

fn status_of(text: &str) -> u16 {
    text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Writes until it is refused or `bytes` are through; then what was answered.
fn pour(mut socket: TcpStream, head: &str, piece: &[u8], bytes: usize) -> u16 {
    let _ = socket.write_all(head.as_bytes());
    let mut sent = 0;
    while sent < bytes && socket.write_all(piece).is_ok() {
        sent += piece.len();
    }
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(size @ 1..) = socket.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..size]);
    }
    status_of(&String::from_utf8_lossy(&answer))
}

#[test]
fn both_servers_stand_what_strangers_do() {
    let _alone = ALONE.lock();
    os::raise_descriptors();
    for target in [Target::hub(None), Target::control()] {
        target.is_well("at rest");
        slow(&target);
        malformed(&target);
        greedy(&target);
        target.is_well("afterwards");
    }
}

/// Those who hold connections.
fn slow(target: &Target) {
    let mut trickle: Vec<TcpStream> = (0..500).map(|_| target.connect()).collect();
    trickle.iter_mut().for_each(|socket| drop(socket.write_all(b"G")));
    target.is_well("500 heads byte by byte");
    trickle.iter_mut().for_each(|socket| drop(socket.write_all(b"E")));
    target.is_well("500 heads byte by byte");
    drop(trickle);
    let idle: Vec<TcpStream> = (0..2000).map(|_| target.connect()).collect();
    target.is_well("2000 idle connections");
    drop(idle);
    let head = format!(
        "POST {} HTTP/1.1\r\n{}\r\nContent-Length: 100000\r\n\r\nabc",
        target.path, target.header
    );
    let mut stalled: Vec<TcpStream> = (0..200).map(|_| target.connect()).collect();
    stalled.iter_mut().for_each(|socket| drop(socket.write_all(head.as_bytes())));
    target.is_well("200 stalled bodies");
    drop(stalled);
    // Whole requests, but the answers are never fetched.
    let ask = format!("GET {} HTTP/1.1\r\n{}\r\n\r\n", target.path, target.header).repeat(100);
    let mut deaf: Vec<TcpStream> = (0..100).map(|_| target.connect()).collect();
    deaf.iter_mut().for_each(|socket| drop(socket.write_all(ask.as_bytes())));
    target.is_well("answers that nobody reads");
}

/// Those who speak something else.
fn malformed(target: &Target) {
    let post = |rest: &str| format!("POST {} HTTP/1.1\r\n{}\r\n{rest}", target.path, target.header);
    for (what, text, want) in [
        ("a length of 10^15", post("Content-Length: 1000000000000000\r\n\r\n{"), 413),
        ("a length that is none", post("Content-Length: ten\r\n\r\n"), 400),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"), 400),
        ("a chunk size that is none", post("Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), 400),
        (
            "a chunk that is too long",
            post("Transfer-Encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n"),
            400,
        ),
        (
            "a chunk of 2^60 bytes",
            post("Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n"),
            413,
        ),
        ("an encoding", post("Transfer-Encoding: gzip\r\n\r\n"), 501),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}".repeat(30), 400),
        ("noise", "\u{0}\u{1}\u{2}\r\n\r\n".into(), 400),
        ("another protocol", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
        ("an upgrade that is none", post("Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), 400),
        ("a hundred headers", post(&"X: y\r\n".repeat(100)), 431),
    ] {
        let mut socket = target.connect();
        socket.write_all(text.as_bytes()).expect("sends");
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        assert_eq!(status_of(&answer), want, "{} {what}: {answer:?}", target.name);
    }
    target.is_well("after malformed requests");
    // Chunks that are in order are read as what they are.
    let mut socket = target.connect();
    let path = if target.name == "hub" { "/api/messages" } else { "/status" };
    let body =
        if target.name == "hub" { r#"{"to":"user","body":"x"}"# } else { r#"{"status":"idle"}"# };
    let (first, second) = body.split_at(7);
    let chunks = format!("7\r\n{first}\r\n{:x};a=b\r\n{second}\r\n0\r\nX: y\r\n\r\n", second.len());
    let head = format!(
        "POST {path} HTTP/1.1\r\n{}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        target.header
    );
    socket.write_all(format!("{head}{chunks}").as_bytes()).expect("sends");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!([200, 201].contains(&status_of(&answer)), "{} chunks: {answer}", target.name);
}

/// Those who send without end.
fn greedy(target: &Target) {
    let line = format!("X-Long: {}\r\n", "a".repeat(8000));
    let status = pour(target.connect(), "GET / HTTP/1.1\r\n", line.as_bytes(), 10 << 20);
    assert!([431, 0].contains(&status), "{} 10 MB of headers: {status}", target.name);
    let status = pour(target.connect(), "GET / HTTP/1.1\r\nX: ", &[b'a'; 65536], 10 << 20);
    assert!([431, 0].contains(&status), "{} one header of 10 MB: {status}", target.name);
    let head = format!(
        "POST {} HTTP/1.1\r\n{}\r\nTransfer-Encoding: chunked\r\n\r\n",
        target.path, target.header
    );
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(65536));
    let status = pour(target.connect(), &head, chunk.as_bytes(), 50 << 20);
    assert!([413, 0].contains(&status), "{} an endless body: {status}", target.name);
    let status = pour(target.connect(), &head, "1\r\na\r\n".repeat(1000).as_bytes(), 50 << 20);
    assert!([413, 0].contains(&status), "{} endless small chunks: {status}", target.name);
    // Bodies that are large but allowed, all at once and never finished: together they are bounded
    // too.
    let head = format!(
        "POST {} HTTP/1.1\r\n{}\r\nContent-Length: 1000000\r\n\r\n",
        target.path, target.header
    );
    let body = vec![b'a'; 900_000];
    let mut held: Vec<TcpStream> = (0..120).map(|_| target.connect()).collect();
    for socket in &mut held {
        socket.set_write_timeout(Some(Duration::from_millis(200))).expect("sets");
        let _ = socket.write_all(head.as_bytes()).and_then(|_| socket.write_all(&body));
    }
    target.is_well("120 bodies of a megabyte");
}

#[test]
fn without_descriptors_it_goes_on() {
    let _alone = ALONE.lock();
    os::raise_descriptors();
    let target = Target::hub(Some(200));
    let held: Vec<TcpStream> = (0..600).map(|_| target.connect()).collect();
    target.is_well("more connections than descriptors");
    // Those who stay take the room for good; a file can still be opened, and room comes back with
    // the first that goes.
    let mut peers: Vec<WebSocket<TcpStream>> = Vec::new();
    for number in 0..120 {
        peers.push(target.peer(&format!("p{number}")));
    }
    target.is_well("120 peers and 600 connections");
    drop(held);
    target.machine.ok(&[
        "hub",
        "backup",
        &target.machine.home.join("copy.sqlite").to_string_lossy(),
    ]);
    drop(peers);
    target.is_well("afterwards");
}

#[test]
fn a_token_has_its_rate() {
    let _alone = ALONE.lock();
    let target = Target::hub(None);
    let mut socket = target.connect();
    let mut read = [0u8; 65536];
    // Strangers share one rate (a burst, then so many a second); whoever has a token does not
    // notice. Asked until the first is refused, and counted against the time that it took.
    let ask = "GET /api/agents HTTP/1.1\r\nX-Agent-Relay-Token: wrong\r\n\r\n";
    let (burst, per_second) = (1000.0, 200.0);
    let (begin, mut asked, mut refused, mut text) = (Instant::now(), 0.0, 0.0, String::new());
    while refused == 0.0 && asked < 60_000.0 {
        socket.write_all(ask.repeat(100).as_bytes()).expect("sends");
        text.clear();
        while text.matches("HTTP/1.1").count() < 100 || !text.ends_with('}') {
            let size = socket.read(&mut read).expect("an answer");
            text.push_str(&String::from_utf8_lossy(&read[..size]));
        }
        asked += 100.0;
        refused += text.matches("HTTP/1.1 429 ").count() as f64;
    }
    assert!(refused > 0.0 && text.contains("Retry-After: 1"), "{}", &text[..300]);
    let most = burst + per_second * (begin.elapsed().as_secs_f64() + 1.0);
    assert!(asked - refused <= most, "{asked} asked, {refused} refused, {most} may be answered");
    target.is_well("strangers that guess tokens");
}
