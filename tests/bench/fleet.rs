//! The hub under a whole machine's agents: thin protocol clients in one thread, so that what is
//! measured is the hub.

mod agents;
pub mod crowd;
pub mod history;
pub mod knee;

use agents::Fleet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_relay::core::hub::event::HubOp;
use agent_relay::core::rng::Rng;
use agent_relay::hub::store::HubStore;
use agent_relay::wire::api::Message;
use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};

use super::{Folder, Running, command, ms, percentile, row, us};

const AGENTS: usize = 1000;

/// A hub of its own, and how to reach it.
pub struct Hub {
    folder: Folder,
    running: Option<Running>,
    pub address: String,
    pub token: String,
}

impl Hub {
    pub fn new(name: &str) -> Hub {
        let mut hub = Hub {
            folder: Folder::new(name),
            running: None,
            address: String::new(),
            token: String::new(),
        };
        hub.start();
        hub
    }

    pub fn home(&self) -> &Path {
        &self.folder.0
    }

    /// Starts it and waits for the first answer; how long that took.
    pub fn start(&mut self) -> Duration {
        let port = self
            .address
            .rsplit(':')
            .next()
            .filter(|port| !port.is_empty())
            .unwrap_or("0")
            .to_string();
        let begin = Instant::now();
        self.running = Some(Running(
            command(&self.folder.0).args(["hub", "--port", &port]).spawn().expect("starts"),
        ));
        loop {
            let text =
                std::fs::read_to_string(self.folder.0.join("config.json")).unwrap_or_default();
            let config: Value = serde_json::from_str(&text).unwrap_or_default();
            let url = config["relayUrl"].as_str().unwrap_or_default();
            self.address = url.trim_start_matches("http://").to_string();
            self.token = config["token"].as_str().unwrap_or_default().to_string();
            if !self.address.is_empty() && self.try_ask("GET", "/api/agents", None).is_some() {
                return begin.elapsed();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "the hub starts");
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().expect("runs").0.id()
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.0.kill();
            let _ = running.0.wait();
        }
    }

    fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        Client::connect(self)?.ask(method, path, body)
    }

    /// A token of its own for each of so many agents, made as runners make theirs; and how often
    /// one was refused.
    fn tokens_of_agents(&self, count: usize) -> (Vec<String>, usize) {
        let makers = 16.min(count);
        let made: Vec<Option<String>> = std::thread::scope(|scope| {
            let make = |first: usize| {
                let mut client = Client::connect(self).expect("connects");
                let mut made = Vec::new();
                for number in (first..count).step_by(makers) {
                    let body = json!({"profileId": "provider-agent", "agentId": format!("agent-{number}")});
                    let answer = client.ask("POST", "/api/tokens", Some(&body));
                    made.push((
                        number,
                        answer.and_then(|it| Some(it["token"].as_str()?.to_string())),
                    ));
                }
                made
            };
            let threads: Vec<_> =
                (0..makers).map(|first| scope.spawn(move || make(first))).collect();
            let mut all: Vec<_> =
                threads.into_iter().flat_map(|thread| thread.join().expect("joins")).collect();
            all.sort();
            all.into_iter().map(|(_, token)| token).collect()
        });
        let refused = made.iter().filter(|token| token.is_none()).count();
        (made.into_iter().flatten().collect(), refused)
    }

    fn info(&self) -> Value {
        self.try_ask("GET", "/api/hub", None).expect("an answer")
    }

    /// Resident memory, MB, and processor time since its start.
    fn costs(&self) -> (f64, Duration) {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let kb: f64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0.0);
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 =
            fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0);
        (kb / 1024.0, Duration::from_millis(ticks * 10))
    }
}

/// An HTTP client on one kept connection.
pub struct Client {
    socket: TcpStream,
    token: String,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(hub: &Hub) -> Option<Client> {
        let socket = TcpStream::connect(&hub.address).ok()?;
        socket.set_nodelay(true).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        Some(Client { socket, token: hub.token.clone(), buffer: Vec::new() })
    }

    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        let answer = self.call(method, path, &body.map(Value::to_string).unwrap_or_default())?;
        Some(serde_json::from_slice(answer).unwrap_or(Value::Null))
    }

    /// Whether a call was answered with success; its answer is not parsed.
    fn post(&mut self, path: &str, body: &str) -> bool {
        self.call("POST", path, body).is_some()
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> Option<&[u8]> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nX-Agent-Relay-Token: {}\r\nContent-Length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        self.socket.write_all((head + body).as_bytes()).ok()?;
        self.buffer.clear();
        let mut piece = [0u8; 65536];
        loop {
            let size = self.socket.read(&mut piece).ok().filter(|size| *size > 0)?;
            self.buffer.extend_from_slice(&piece[..size]);
            let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .and_then(|n| n.parse::<usize>().ok());
            if self.buffer.len() < end + 4 + length.unwrap_or(0) {
                continue;
            }
            return head.starts_with("HTTP/1.1 2").then_some(&self.buffer[end + 4..]);
        }
    }
}

/// Sends at a rate from several connections; ids with the moment of sending.
fn send(
    hub: &Hub,
    agents: u64,
    per_second: u64,
    seconds: u64,
    connections: u64,
) -> Vec<(u64, Instant, Duration)> {
    let threads: Vec<_> = (0..connections)
        .map(|number| {
            let mut client = Client::connect(hub).expect("connects");
            std::thread::spawn(move || {
                let mut sent = Vec::new();
                let begin = Instant::now();
                let gap = Duration::from_secs_f64(connections as f64 / per_second as f64);
                for turn in 0..per_second * seconds / connections {
                    let due = begin + gap * turn as u32;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let to = format!("agent-{}", (turn * connections + number) % agents);
                    let body = json!({"to": to, "body": "x".repeat(200), "replyExpected": false});
                    let at = Instant::now();
                    let answer = client.ask("POST", "/api/messages", Some(&body)).expect("stored");
                    sent.push((answer["id"].as_u64().expect("id"), at, at.elapsed()));
                }
                sent
            })
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("joins")).collect()
}

fn wait_acknowledged(hub: &Hub) -> Duration {
    let begin = Instant::now();
    while hub.info().pointer("/now/messagesUnacknowledged") != Some(&json!(0)) {
        assert!(begin.elapsed() < Duration::from_secs(60), "all is acknowledged");
        std::thread::sleep(Duration::from_millis(20));
    }
    begin.elapsed()
}

/// Rows of the README: a thousand agents.
pub fn fleet() {
    agent_relay::os::raise_descriptors();
    let mut hub = Hub::new("fleet");
    // As a thousand runners of one person do: each makes a token of its own with the operator's.
    let begin = Instant::now();
    let (tokens, refused) = hub.tokens_of_agents(AGENTS);
    let fleet = Fleet::start(&hub, tokens);
    fleet.wait_registered();
    row(
        "hub, 1,000 runners of one person: each makes a token of its own and registers",
        "none refused",
        format!("{:.2} s; {refused} refused", begin.elapsed().as_secs_f64()),
    );
    std::thread::sleep(Duration::from_secs(5));
    let (_, before) = hub.costs();
    std::thread::sleep(Duration::from_secs(60));
    let (rss, after) = hub.costs();
    let share = (after - before).as_secs_f64() / 60.0 * 100.0;
    row(
        "… 1,000 connected agents, idle: RSS; CPU of a core over 60 s",
        "≤ 150 MB; ≤ 2 %",
        format!("{rss:.1} MB; {share:.2} %"),
    );

    at_a_usual_rate(&hub, &fleet);
    let (rss_before, cpu_before) = hub.costs();
    let begin = Instant::now();
    let sent = send(&hub, fleet.count(), 2400, 20, 16);
    let took = begin.elapsed();
    let drained = wait_acknowledged(&hub);
    let (rss_after, cpu_after) = hub.costs();
    let once = {
        let seen = fleet.seen.messages.lock().expect("whole");
        sent.iter().filter(|(id, ..)| seen.get(id) == Some(&1)).count()
    };
    let mut waits: Vec<Duration> = sent.iter().map(|(.., wait)| *wait).collect();
    row(
        "… durable messages/s, each delivered once and acknowledged",
        "≥ 2,000/s, memory flat",
        format!(
            "{:.0}/s for {:.0} s ({once} of {} once), answer p99 {}, last acknowledged {} later; RSS {rss_before:.1} → {rss_after:.1} MB, {:.0} % of a core",
            sent.len() as f64 / took.as_secs_f64(),
            took.as_secs_f64(),
            sent.len(),
            ms(percentile(&mut waits, 0.99)),
            ms(drained),
            (cpu_after - cpu_before).as_secs_f64() / took.as_secs_f64() * 100.0
        ),
    );

    over_a_kill(&mut hub, &fleet, "≤ 10 s, nothing lost");
}

/// Unacknowledged messages for everybody, then the hub dies.
fn over_a_kill(hub: &mut Hub, fleet: &Fleet, goal: &str) {
    fleet.seen.deaf.store(true, Ordering::Relaxed);
    let kept = send(hub, fleet.count(), 2000, 2, 8);
    hub.kill();
    let begin = Instant::now();
    while fleet.seen.registered.load(Ordering::Relaxed) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "all notice");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_secs(3));
    fleet.seen.deaf.store(false, Ordering::Relaxed);
    hub.start();
    let begin = Instant::now();
    fleet.wait_registered();
    let registered = begin.elapsed();
    wait_acknowledged(hub);
    let settled = begin.elapsed();
    let seen = fleet.seen.messages.lock().expect("whole");
    let lost = kept.iter().filter(|(id, ..)| !seen.contains_key(id)).count();
    row(
        "… hub killed and started anew under them: all registered, all acknowledged",
        goal,
        format!(
            "{:.2} s, {:.2} s; {lost} of {} lost",
            registered.as_secs_f64(),
            settled.as_secs_f64(),
            kept.len()
        ),
    );
}

/// What an agent sees of 200 messages a second.
fn at_a_usual_rate(hub: &Hub, fleet: &Fleet) {
    fleet.seen.clock.store(true, Ordering::Relaxed);
    let sent = send(hub, fleet.count(), 200, 10, 4);
    wait_acknowledged(hub);
    let times = std::mem::take(&mut *fleet.seen.times.lock().expect("whole"));
    let mut frames: Vec<Duration> = sent
        .iter()
        .filter_map(|(id, at, _)| Some(times.get(id)?.saturating_duration_since(*at)))
        .collect();
    let (p50, p99) = (percentile(&mut frames, 0.5), percentile(&mut frames, 0.99));
    row(
        "… 200 messages/s: send → frame, p50 (p99)",
        "p99 ≤ 20 ms",
        format!("{} ({})", us(p50), ms(p99)),
    );
    fleet.seen.clock.store(false, Ordering::Relaxed);
}
