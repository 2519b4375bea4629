//! The figures of the README, measured side by side in one run: `make bench`. A benchmark, never a
//! timed test.
//!
//! `figures start idle` runs only the rows named. The release binary must be built before.
//! `OLD_BIN` names an older release binary, which is measured right beside it, group by group.

mod claude;
mod fleet;
#[path = "../common/http.rs"]
mod http;
#[path = "../interop/model.rs"]
#[allow(dead_code)]
mod model;
mod table;

use agent_relay::core::commit::Commit;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use agent_relay::core::agent::effect::StoreCommand;
use agent_relay::core::agent::event::{Event, StoreEvent};
use agent_relay::core::agent::store::{InboxMessage, OutboxRow, StoreOp};
use agent_relay::core::ids::{MessageId, MessageRef};
use agent_relay::edge::http::{Base, Http};
use agent_relay::edge::store::{Store, run as run_store};
use agent_relay::secret::Secret;
use agent_relay::wire::api::{Message, path};
use agent_relay::wire::bus::{ClientFrame, Registered, Registration, RelayFrame};
use crossbeam_channel::bounded;
use serde_json::{Value, json};
use table::{BIN, OLD_BIN, bin, measure, row};
use tungstenite::Message as Frame;

fn main() {
    if let Ok(path) = std::env::var("BENCH_PROVIDER") {
        return provider(Path::new(&path));
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for path in [Some(&*BIN), OLD_BIN.as_ref()].into_iter().flatten() {
        assert!(
            Path::new(path).exists(),
            "{path} is not there; `make build` builds the release binary"
        );
    }
    println!("{}", machine());
    let commit = commit_time();
    match &*OLD_BIN {
        None => println!("| figure | goal | here |\n| --- | --- | --- |"),
        Some(_) => println!(
            "| figure | goal | here | older | here : older |\n| --- | --- | --- | --- | --- |"
        ),
    }
    // What runs our own code in this process, or writes the store that the hub then opens, has no
    // older side.
    let groups: &[(&str, bool, &dyn Fn())] = &[
        ("start", true, &start),
        ("latency", true, &|| latency(commit)),
        ("enqueue", false, &|| enqueue(commit)),
        ("drain", false, &drain),
        ("post", true, &post),
        ("hook", true, &hook),
        ("claude", true, &claude::prompt),
        ("follow", true, &claude::follow),
        ("idle", true, &idle),
        ("fleet", true, &fleet::fleet),
        ("history", false, &fleet::history),
    ];
    for (name, has_older, run) in groups
        .iter()
        .filter(|(name, ..)| wanted.is_empty() || wanted.iter().any(|word| word == name))
    {
        measure(*has_older, *run, name);
    }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "))
        .unwrap_or("unknown processor")
        .to_string();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let size = std::fs::metadata(&*BIN).map(|meta| meta.len()).unwrap_or(0) as f64 / 1e6;
    format!("Machine: {model}, {cores} cores, Linux {}. Binary {size:.2} MB.\n", kernel.trim())
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        // What an older binary finds must not be a newer one's.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir()
            .join(format!("agent-relay-bench-{}-{count}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.0.id();
        agent_relay::os::kill(agent_relay::os::process(pid), rustix::process::Signal::TERM);
        let until = Instant::now() + Duration::from_secs(15);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(bin());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("AGENT_RELAY_HOME", home);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

fn us(time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6)
}

/// Monotonic nanoseconds that all processes share.
fn mono() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One durable change in a file of ours, p50: what "a commit" costs here and now.
fn commit_time() -> Duration {
    let folder = Folder::new("commit");
    let mut store = Store::open(&folder.0.join("store.sqlite"), 1 << 30).expect("opens");
    let mut times: Vec<Duration> = (0..300)
        .map(|id| {
            let at = Instant::now();
            store.commit(&[(id, vec![stored(message(id + 1))])]).expect("commits");
            at.elapsed()
        })
        .collect();
    let mut file = std::fs::File::create(folder.0.join("raw")).expect("creates");
    let mut raw: Vec<Duration> = (0..300)
        .map(|_| {
            let at = Instant::now();
            file.write_all(&[7; 4096]).expect("writes");
            file.sync_data().expect("syncs");
            at.elapsed()
        })
        .collect();
    let (commit, sync) = (percentile(&mut times, 0.5), percentile(&mut raw, 0.5));
    println!(
        "In this run: one commit p50 {}, 4 KB append + fdatasync p50 {} (p99 {}).\n",
        us(commit),
        us(sync),
        us(percentile(&mut raw, 0.99))
    );
    commit
}

/// What a runner keeps of a message that came from its relay.
fn stored(message: Message) -> StoreOp {
    StoreOp::InboxPut(InboxMessage {
        at: MessageRef { family: 1, id: message.id, generation: 1 },
        message,
    })
}

fn message(id: u64) -> Message {
    Message {
        id: MessageId(id),
        from: "user".into(),
        to: "a".into(),
        kind: "chat".into(),
        body: "x".repeat(500),
        ..Default::default()
    }
}

// ---- start

/// A stand-in relay: tokens over HTTP, registration over the bus; tells when the register frame
/// came. Its sockets are plain: they turn into a WebSocket, below TLS too, and the time of a start
/// is not to be a library's.
fn stand_in(tls: Option<Arc<rustls::ServerConfig>>) -> (u16, crossbeam_channel::Receiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let (tell, told) = bounded(64);
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (tell, tls) = (tell.clone(), tls.clone());
            std::thread::spawn(move || {
                let _ = socket.set_nodelay(true);
                match tls {
                    None => serve(socket, &tell),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config).expect("a session");
                        serve(rustls::StreamOwned::new(session, socket), &tell);
                    }
                }
            });
        }
    });
    (port, told)
}

fn serve<S: Read + Write>(mut stream: S, tell: &crossbeam_channel::Sender<Instant>) {
    let mut head = Vec::new();
    let mut byte = [0u8; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        text.lines().find_map(|l| {
            l.to_lowercase().strip_prefix(name).map(|_| l[name.len()..].trim().to_string())
        })
    };
    if let Some(key) = header("sec-websocket-key:") {
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).and_then(|_| stream.flush()).expect("answers");
        let mut socket = tungstenite::WebSocket::from_raw_socket(
            stream,
            tungstenite::protocol::Role::Server,
            None,
        );
        while let Ok(frame) = socket.read() {
            let Frame::Text(text) = frame else { continue };
            if let Ok(ClientFrame::Register { id, .. }) = ClientFrame::parse(&text) {
                let _ = tell.send(Instant::now());
                let _ = socket.send(Frame::text(
                    RelayFrame::Registered { id, registered: Registered::default() }.to_text(),
                ));
            }
        }
        return;
    }
    let length: usize = header("content-length:").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0u8; length];
    let _ = stream.read_exact(&mut body);
    let end = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
        + 86_400;
    let answer =
        json!({"token": "t", "record": {"profileId": "provider-agent", "agentId": "a", "expiresAt": end}, "messages": []}).to_string();
    let status = if text.starts_with("POST /api/tokens") { "201 Created" } else { "200 OK" };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    );
    let _ = stream.write_all(answer.as_bytes()).and_then(|_| stream.flush());
}

fn start() {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("versions")
    .with_no_client_auth()
    .with_single_cert(vec![made.cert.der().clone()], key)
    .expect("a server");
    let measure = |name: &str,
                   url: String,
                   told: &crossbeam_channel::Receiver<Instant>,
                   fresh: bool,
                   certificate: Option<&Path>| {
        let folder = Folder::new(name);
        let mut times = Vec::new();
        for round in 0..21 {
            let home = if fresh { folder.0.join(round.to_string()) } else { folder.0.join("home") };
            std::fs::create_dir_all(&home).expect("home");
            let mut command = command(&home);
            command.env("AGENT_RELAY_URL", &url).env("AGENT_RELAY_TOKEN", "x");
            if let Some(path) = certificate {
                command.env("SSL_CERT_FILE", path);
            }
            command.args(["run", "acp", "--agent-id", "a", "--", bin(), "demo-agent"]);
            let at = Instant::now();
            let running = Running(command.spawn().expect("starts"));
            let registered = told.recv_timeout(Duration::from_secs(10)).expect("registers");
            if round > 0 {
                times.push(registered - at);
            }
            drop(running);
        }
        format!("{} (p90 {})", ms(percentile(&mut times, 0.5)), ms(percentile(&mut times, 0.9)))
    };
    let nop = {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let at = Instant::now();
                Command::new("/bin/true").status().expect("runs");
                at.elapsed()
            })
            .collect();
        percentile(&mut times, 0.5)
    };
    let (port, told) = stand_in(None);
    let plain = format!("http://127.0.0.1:{port}");
    row(
        "cold start to registered, existing store, http",
        "≤ 8 ms",
        measure("plain", plain.clone(), &told, false, None),
    );
    row(
        "… first start (store and token are made)",
        "–",
        measure("first", plain, &told, true, None),
    );
    let folder = Folder::new("certificate");
    let path = folder.0.join("ca.pem");
    std::fs::write(&path, made.cert.pem()).expect("writes");
    let (port, told) = stand_in(Some(Arc::new(config)));
    row(
        "… existing store, https",
        "–",
        measure("tls", format!("https://localhost:{port}"), &told, false, Some(&path)),
    );
    row("… beside it: /bin/true, start to exit", "–", ms(nop));
}

// ---- a real hub and runner

struct Setup {
    _runner: Running,
    _hub: Running,
    base: Base,
    token: Secret,
    folder: Folder,
    pids: (u32, u32),
}

fn setup(name: &str, provider: &[&str], env: &[(&str, String)]) -> Setup {
    let folder = Folder::new(name);
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
    runner
        .args(["run", "acp", "--agent-id", "a", "--approval", "open", "--"])
        .args(provider)
        .envs(env.iter().map(|(k, v)| (k, v)));
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
fn provider(log: &Path) {
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

fn latency(commit: Duration) {
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
        let heard = loop {
            match socket.read() {
                Ok(Frame::Text(text)) => {
                    if let Ok(RelayFrame::Event { data, .. }) = RelayFrame::parse(&text)
                        && data["kind"] == "chat"
                        && data["replyTo"] == answer["id"]
                    {
                        break mono();
                    }
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    let mut fds = [rustix::event::PollFd::new(
                        socket.get_ref(),
                        rustix::event::PollFlags::IN,
                    )];
                    agent_relay::os::wait(&mut fds, Some(Duration::from_secs(5)));
                }
                Err(error) => panic!("{error}"),
            }
        };
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

fn idle() {
    let setup = setup("idle", &[bin(), "demo-agent"], &[]);
    std::thread::sleep(Duration::from_secs(3));
    for (name, pid, goal) in [
        ("runner", setup.pids.1, "≤ 8 MB PSS; ≤ 20 a minute besides heartbeats and pings"),
        ("hub", setup.pids.0, "–"),
    ] {
        let (before, after) = (switches(pid), {
            std::thread::sleep(Duration::from_secs(60));
            switches(pid)
        });
        let rollup =
            std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let kb = |field: &str| {
            rollup
                .lines()
                .find_map(|l| l.strip_prefix(field))
                .and_then(|v| v.trim().trim_end_matches(" kB").parse::<f64>().ok())
        };
        let pss = kb("Pss:").unwrap_or(0.0) / 1024.0;
        row(
            &format!("idle {name}: PSS; wake-ups in 60 s, all included"),
            goal,
            format!("{pss:.1} MB; {}", after - before),
        );
    }
}

/// Voluntary switches of all threads.
fn switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let count = |text: String| {
        text.lines().find_map(|line| {
            line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok()
        })
    };
    tasks.filter_map(read).filter_map(count).sum()
}

// ---- store

/// 16 producers that each wait for their own commit, at the store's thread.
fn producers(store: Store, first: u64, seconds: u64) -> (f64, f64, Duration) {
    let (orders, inbox) = bounded(512);
    let (lane, events) = bounded(512);
    let thread = std::thread::spawn(move || run_store(store, inbox, lane));
    let done = Arc::new((Mutex::new(0u64), Condvar::new()));
    let commits = Arc::new(AtomicU64::new(0));
    let (told, counted) = (done.clone(), commits.clone());
    let listener = std::thread::spawn(move || {
        for event in events {
            if let Event::Store(StoreEvent::Committed { upto, .. }) = event {
                counted.fetch_add(1, Ordering::Relaxed);
                *told.0.lock().expect("lock") = upto;
                told.1.notify_all();
            }
        }
    });
    let number = Arc::new(Mutex::new(0u64));
    let until = Instant::now() + Duration::from_secs(seconds);
    let at = Instant::now();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let (orders, done, number) = (orders.clone(), done.clone(), number.clone());
            std::thread::spawn(move || {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let started = Instant::now();
                    let mine = {
                        let mut number = number.lock().expect("lock");
                        *number += 1;
                        let commit =
                            Commit { number: *number, ops: vec![stored(message(first + *number))] };
                        orders.send(StoreCommand::Commit(commit)).expect("sends");
                        *number
                    };
                    let mut upto = done.0.lock().expect("lock");
                    while *upto < mine {
                        upto = done.1.wait(upto).expect("waits");
                    }
                    drop(upto);
                    waits.push(started.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits: Vec<Duration> =
        workers.into_iter().flat_map(|worker| worker.join().expect("joins")).collect();
    let seconds = at.elapsed().as_secs_f64();
    drop(orders);
    thread.join().expect("joins");
    listener.join().expect("joins");
    let rows = waits.len() as f64;
    (rows / seconds, rows / commits.load(Ordering::Relaxed) as f64, percentile(&mut waits, 0.5))
}

fn enqueue(commit: Duration) {
    let folder = Folder::new("enqueue");
    let sync = {
        let mut file = std::fs::File::create(folder.0.join("raw")).expect("creates");
        let mut raw: Vec<Duration> = (0..300)
            .map(|_| {
                let at = Instant::now();
                file.write_all(&[7; 4096]).and_then(|_| file.sync_data()).expect("syncs");
                at.elapsed()
            })
            .collect();
        percentile(&mut raw, 0.5)
    };
    let open = |name: &str| Store::open(&folder.0.join(name), 8 << 30).expect("opens");
    let (rate, group, wait) = producers(open("empty.sqlite"), 0, 4);
    let limit = group / sync.as_secs_f64();
    let here = format!(
        "{rate:.0} rows/s, {group:.1} rows a commit, wait p50 {}; {:.2} × of {limit:.0} (one commit {})",
        us(wait),
        rate / limit,
        us(commit)
    );
    row("durable enqueue, 16 producers", "≥ 0.35 × (rows per commit ÷ fdatasync)", here);
    let mut store = open("full.sqlite");
    for block in 0..1000u64 {
        let ops = (0..1000).map(|n| stored(message(block * 1000 + n + 1))).collect();
        store.commit(&[(block, ops)]).expect("commits");
    }
    drop(store);
    let (full, group, wait) = producers(open("full.sqlite"), 10_000_000, 4);
    row(
        "… with 1,000,000 rows waiting",
        "≤ 1.5 × the empty queue (time a row)",
        format!(
            "{full:.0} rows/s, {group:.1} rows a commit, wait p50 {}; {:.2} ×",
            us(wait),
            rate / full
        ),
    );
}

fn drain() {
    let folder = Folder::new("drain");
    let measure = |rows: u64, drained: u64| {
        let mut store =
            Store::open(&folder.0.join(format!("{rows}.sqlite")), 8 << 30).expect("opens");
        let payload = json!({"to": "user", "body": "x".repeat(480)});
        for block in 0..rows / 1000 {
            let row = |n: u64| OutboxRow {
                kind: "session-message".into(),
                key: format!("k{block}-{n}"),
                occurred_at: 1,
                payload: payload.clone(),
                generation: 0,
            };
            store
                .commit(&[(block, (0..1000).map(|n| StoreOp::OutboxAppend(row(n))).collect())])
                .expect("commits");
        }
        let (at, mut done) = (Instant::now(), 0);
        while done < drained {
            let rows = store.outbox().expect("reads");
            done += rows.len() as u64;
            store
                .commit(&[(
                    0,
                    vec![StoreOp::OutboxDelete(rows.iter().map(|row| row.seq).collect())],
                )])
                .expect("commits");
        }
        done as f64 / at.elapsed().as_secs_f64()
    };
    let empty = measure(50_000, 50_000);
    row(
        "drain into a no-op sender, 64 rows at a time",
        "≥ 50,000 rows/s",
        format!("{empty:.0} rows/s"),
    );
    let full = measure(1_000_000, 100_000);
    row(
        "… with 1,000,000 rows waiting",
        "≤ 1.5 × (time a row)",
        format!("{full:.0} rows/s; {:.2} ×", empty / full),
    );
}

// ---- control port

fn one_shot(port: u16, token: &str) -> Duration {
    let body = "{\"status\":\"idle\"}";
    let request = format!(
        "POST /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let at = Instant::now();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    socket.set_nodelay(true).expect("sets");
    socket.write_all(request.as_bytes()).expect("writes");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("reads");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    at.elapsed()
}

fn post() {
    let setup = setup("post", &[bin(), "demo-agent"], &[]);
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(setup.folder.0.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let port: u16 = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .and_then(|p| p.parse().ok())
        .expect("port");
    let token = info["controlToken"].as_str().expect("token").to_string();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let bare = listener.local_addr().expect("bound").port();
    // The least that a server can do is what the gate is measured by: no library.
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let _ = socket.set_nodelay(true);
            let mut buffer = [0u8; 4096];
            let mut size = 0;
            while !String::from_utf8_lossy(&buffer[..size]).contains("\r\n\r\n{") {
                match socket.read(&mut buffer[size..]) {
                    Ok(more @ 1..) => size += more,
                    _ => break,
                }
            }
            let _ = socket.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"ok\":true}",
            );
        }
    });
    let tiny = tiny();
    let (mut ours, mut theirs, mut tinys) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..4200 {
        let (a, b, c) = (one_shot(port, &token), one_shot(bare, &token), one_shot(tiny, &token));
        if round >= 200 {
            ours.push(a);
            theirs.push(b);
            tinys.push(c);
        }
    }
    let (a50, a99) = (percentile(&mut ours, 0.5), percentile(&mut ours, 0.99));
    let (b50, b99) = (percentile(&mut theirs, 0.5), percentile(&mut theirs, 0.99));
    let (c50, c99) = (percentile(&mut tinys, 0.5), percentile(&mut tinys, 0.99));
    let ratio = a99.as_secs_f64() / b99.as_secs_f64();
    row(
        "status post, one-shot, p99",
        "≤ 1.5 × a bare std server",
        format!(
            "{} against {}: {ratio:.2} × (p50 {} against {})",
            us(a99),
            us(b99),
            us(a50),
            us(b50)
        ),
    );
    row(
        "… the same at tiny_http, two workers, without a gate in front",
        "–",
        format!("p99 {}, p50 {}", us(c99), us(c50)),
    );
    let (ours, theirs) = (kept(port, &token), kept(tiny, &token));
    row(
        "status post, 16 kept connections for 2 s: posts of the slowest client, worst post",
        "nobody starved, ≤ 100 ms",
        format!("{} posts, {}; tiny_http {} posts, {}", ours.0, ms(ours.1), theirs.0, ms(theirs.1)),
    );
}

/// The designed library as it would serve the routes: two workers, answers at once.
fn tiny() -> u16 {
    let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").expect("binds"));
    let port = server.server_addr().to_ip().expect("an address").port();
    for _ in 0..2 {
        let server = server.clone();
        std::thread::spawn(move || {
            while let Ok(mut request) = server.recv() {
                let mut body = String::new();
                let _ = request.as_reader().read_to_string(&mut body);
                let _ = request.respond(tiny_http::Response::from_string("{\"ok\":true}"));
            }
        });
    }
    port
}

/// 16 clients that keep their connections: posts of the one that got the fewest, and the longest
/// wait of all.
fn kept(port: u16, token: &str) -> (u64, Duration) {
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let token = token.to_string();
            std::thread::spawn(move || {
                let body = "{\"status\":\"idle\"}";
                let request = format!(
                    "POST /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
                let _ = socket.set_nodelay(true).and_then(|_| socket.set_read_timeout(Some(Duration::from_secs(3))));
                let (mut posts, mut worst, begin) = (0u64, Duration::ZERO, Instant::now());
                let mut buffer = [0u8; 4096];
                while begin.elapsed() < Duration::from_secs(2) {
                    let at = Instant::now();
                    let answered = socket.write_all(request.as_bytes()).is_ok() && matches!(socket.read(&mut buffer), Ok(1..));
                    worst = worst.max(at.elapsed());
                    if !answered {
                        break;
                    }
                    posts += 1;
                }
                (posts, worst)
            })
        })
        .collect();
    let all: Vec<(u64, Duration)> =
        clients.into_iter().map(|client| client.join().expect("joins")).collect();
    (
        all.iter().map(|one| one.0).min().unwrap_or(0),
        all.iter().map(|one| one.1).max().unwrap_or_default(),
    )
}

// ---- processes

/// What a hook costs as a whole process, beside a shell that posts with curl; and what starting
/// costs.
fn hook() {
    let setup = setup("hook", &[bin(), "demo-agent"], &[]);
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(setup.folder.0.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let port = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .expect("port")
        .to_string();
    let token = info["controlToken"].as_str().expect("token").to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/relay-hook.sh");
    let curl = format!(
        "set -euo pipefail; curl -s -o /dev/null -m 2 -X POST -H 'Content-Type: application/json' -H 'Authorization: Bearer {token}' \
         -d '{{\"status\":\"idle\"}}' http://127.0.0.1:{port}/status"
    );
    let payload = setup.folder.0.join("payload.json");
    std::fs::write(
        &payload,
        json!({"session_id": "s", "hook_event_name": "Stop", "stop_hook_active": false})
            .to_string(),
    )
    .expect("writes");
    let runs: [(&str, Vec<&str>); 5] = [
        ("bash and curl", vec!["/bin/bash", "-c", &curl]),
        ("hook stop, direct", vec![bin(), "hook", "stop"]),
        ("hook stop, through the shell script", vec!["/bin/sh", script, "stop"]),
        ("agent-relay version", vec![bin(), "version"]),
        ("/bin/true", vec!["/bin/true"]),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); runs.len()];
    for round in 0..210 {
        for (at, (name, words)) in runs.iter().enumerate() {
            let mut command = command(&setup.folder.0);
            command
                .env("AGENT_RELAY_RUNNER_PORT", &port)
                .env("AGENT_RELAY_RUNNER_TOKEN", &token)
                .env("AGENT_RELAY_BIN", bin());
            // As the provider's own process would: a post of another session is dropped, which
            // costs the same.
            command
                .env("AGENT_RELAY_PROVIDER_SESSION_ID", "bench")
                .stdin(std::fs::File::open(&payload).expect("payload"));
            let mut real = Command::new(words[0]);
            real.env_clear().envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))),
            );
            real.args(&words[1..])
                .stdin(std::fs::File::open(&payload).expect("payload"))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let begin = Instant::now();
            let status = real.status().expect("runs");
            let took = begin.elapsed();
            assert!(status.success(), "{name}");
            if round >= 10 {
                times[at].push(took);
            }
        }
    }
    let p50: Vec<Duration> = times.iter_mut().map(|times| percentile(times, 0.5)).collect();
    let share = |at: usize| {
        format!(
            "{}: {:.2} × ({} with bash and curl)",
            ms(p50[at]),
            p50[at].as_secs_f64() / p50[0].as_secs_f64(),
            ms(p50[0])
        )
    };
    row(
        "stop hook as a whole process (payload, post), direct, p50",
        "≤ 0.15 × bash and curl",
        share(1),
    );
    row("… through a shell script", "≤ 0.25 ×", share(2));
    let over = p50[3].saturating_sub(p50[4]);
    row(
        "process start: `agent-relay version`, p50",
        "≤ 1 ms over a nop",
        format!("{} ({} over /bin/true)", ms(p50[3]), us(over)),
    );
    let size = std::fs::metadata(&*BIN).map(|meta| meta.len()).unwrap_or(0) as f64 / 1e6;
    row("binary, static, TLS included", "≤ 7.2 MB", format!("{size:.2} MB"));
}
