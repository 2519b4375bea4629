//! Agents by the thousand in one thread: thin clients of the protocol, cheap enough that the hub is
//! what is measured.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::net;
use serde::Deserialize;

use super::*;

/// One agent on the bus.
struct Thin {
    socket: TcpStream,
    buffer: Vec<u8>,
    upgraded: bool,
    registered: bool,
}

/// What all agents of the fleet have seen.
#[derive(Default)]
pub struct Seen {
    pub registered: AtomicU64,
    /// Message id → how often it came.
    pub messages: Mutex<HashMap<u64, u32>>,
    /// When each message id came.
    pub times: Mutex<BTreeMap<u64, Instant>>,
    pub deaf: AtomicBool,
    pub stop: AtomicBool,
    pub clock: AtomicBool,
}

/// All agents, driven by one thread.
pub struct Fleet {
    pub seen: Arc<Seen>,
    count: u64,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fleet {
    /// As many agents as there are tokens, each with its own.
    pub fn start(hub: &Hub, tokens: Vec<String>) -> Fleet {
        let seen = Arc::new(Seen::default());
        let count = tokens.len() as u64;
        let (address, told) = (hub.address.clone(), seen.clone());
        let thread = std::thread::spawn(move || drive(&address, &tokens, &told));
        Fleet { seen, count, thread: Some(thread) }
    }

    /// Waits until all are registered.
    pub fn wait_registered(&self) -> Duration {
        let begin = Instant::now();
        while self.seen.registered.load(Ordering::Relaxed) < self.count {
            assert!(begin.elapsed() < Duration::from_secs(120), "{} agents register", self.count);
            std::thread::sleep(Duration::from_millis(1));
        }
        begin.elapsed()
    }

    /// How many agents there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many messages came once, and how many more often; both begin anew.
    pub fn take_seen(&self) -> (u64, u64) {
        let seen = std::mem::take(&mut *self.seen.messages.lock().expect("whole"));
        let once = seen.values().filter(|times| **times == 1).count() as u64;
        (once, seen.len() as u64 - once)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81];
    match text.len() {
        size @ 0..=125 => bytes.push(0x80 | size as u8),
        size => bytes.extend([0x80 | 126, (size >> 8) as u8, size as u8]),
    }
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    bytes
}

/// Connects from one of many addresses: thousands that come back soon must not meet what the
/// kernel still remembers of their ports.
fn connect(address: &str, number: usize, token: &str) -> Option<TcpStream> {
    let to: SocketAddrV4 = address.parse().ok()?;
    let from = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1), 0);
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).ok()?;
    net::bind(&socket, &from).ok()?;
    net::connect(&socket, &to).ok()?;
    let mut socket = TcpStream::from(socket);
    socket.set_nodelay(true).ok()?;
    let head = format!(
        "GET /bus HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Agent-Relay-Token: {token}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Connects, registers, acknowledges, answers pings, sends heartbeats, and comes back by the
/// protocol's backoff.
fn drive(address: &str, tokens: &[String], seen: &Seen) {
    let epoll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut agents: Vec<Option<Thin>> = tokens.iter().map(|_| None).collect();
    let mut tries: Vec<u32> = vec![0; tokens.len()];
    // Who is away, by when it comes back.
    let mut away: BTreeSet<(Instant, usize)> =
        (0..tokens.len()).map(|number| (Instant::now(), number)).collect();
    let mut rng = Rng::new(7);
    let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
    let mut piece = vec![0u8; 64 << 10];
    let mut heartbeat = Instant::now() + Duration::from_secs(30);
    while !seen.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, number)) = away.first().copied().filter(|(at, _)| *at <= now) {
            away.pop_first();
            match connect(address, number, &tokens[number]) {
                Some(socket) => {
                    let name = epoll::EventData::new_u64(number as u64);
                    let _ = epoll::add(&epoll, &socket, name, epoll::EventFlags::IN);
                    let (buffer, upgraded, registered) = (Vec::new(), false, false);
                    agents[number] = Some(Thin { socket, buffer, upgraded, registered });
                }
                None => drop(away.insert((later(&mut rng, now, &mut tries[number]), number))),
            }
        }
        if now >= heartbeat {
            heartbeat = now + Duration::from_secs(30);
            let text =
                frame(&json!({"type": "heartbeat", "payload": {"status": "idle"}}).to_string());
            agents.iter_mut().flatten().for_each(|agent| drop(agent.socket.write_all(&text)));
        }
        events.clear();
        let limit = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&limit));
        for number in events.iter().map(|event| event.data.u64() as usize) {
            let Some(agent) = &mut agents[number] else { continue };
            if read(agent, number, seen, &mut piece) {
                tries[number] = 0;
            } else {
                if agent.registered {
                    seen.registered.fetch_sub(1, Ordering::Relaxed);
                }
                agents[number] = None;
                away.insert((later(&mut rng, Instant::now(), &mut tries[number]), number));
            }
        }
    }
}

fn later(rng: &mut Rng, now: Instant, tries: &mut u32) -> Instant {
    let most = (250u64 << (*tries).min(6)).min(15_000);
    *tries += 1;
    now + Duration::from_millis(rng.bits() % (most + 1))
}

/// False: the connection is over.
fn read(agent: &mut Thin, number: usize, seen: &Seen, piece: &mut [u8]) -> bool {
    loop {
        match agent.socket.read(piece) {
            Ok(0) => return false,
            Ok(size) => agent.buffer.extend_from_slice(&piece[..size]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return false,
        }
    }
    if !agent.upgraded {
        let Some(end) = agent.buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
            return true;
        };
        agent.buffer.drain(..end + 4);
        agent.upgraded = true;
        let id = format!("agent-{number}");
        let payload = json!({"role": "provider", "agentId": id, "componentId": id, "instanceId": id, "protocol": 1});
        let text = json!({"type": "register", "id": "r", "payload": payload}).to_string();
        if agent.socket.write_all(&frame(&text)).is_err() {
            return false;
        }
    }
    let mut at = 0;
    let mut out = Vec::new();
    while let Some((code, start, size)) = head_of(&agent.buffer[at..]) {
        let Some(text) = agent.buffer.get(at + start..at + start + size) else { break };
        match code {
            9 => out.extend([0x8a, 0x80, 0, 0, 0, 0]),
            8 => return false,
            _ => {
                let text = String::from_utf8_lossy(text);
                if !agent.registered && text.contains("\"type\":\"registered\"") {
                    agent.registered = true;
                    seen.registered.fetch_add(1, Ordering::Relaxed);
                } else {
                    heard(&text, seen, &mut out);
                }
            }
        }
        at += start + size;
    }
    agent.buffer.drain(..at);
    out.is_empty() || agent.socket.write_all(&out).is_ok()
}

fn head_of(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let code = bytes.first()? & 15;
    Some(match *bytes.get(1)? {
        126 => (code, 4, usize::from(*bytes.get(2)?) << 8 | usize::from(*bytes.get(3)?)),
        127 => {
            (code, 10, bytes.get(2..10)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        }
        size => (code, 2, usize::from(size)),
    })
}

/// What is looked at in an event that brings a message.
#[derive(Deserialize)]
struct Event {
    id: String,
    payload: EventPayload,
}

#[derive(Deserialize)]
struct EventPayload {
    data: EventData,
}

#[derive(Deserialize)]
struct EventData {
    id: u64,
}

fn heard(text: &str, seen: &Seen, out: &mut Vec<u8>) {
    if !text.contains("message.new") {
        return;
    }
    let Ok(Event { id: frame_id, payload }) = serde_json::from_str(text) else { return };
    let id = payload.data.id;
    if seen.clock.load(Ordering::Relaxed) {
        seen.times.lock().expect("whole").insert(id, Instant::now());
    }
    if seen.deaf.load(Ordering::Relaxed) {
        return;
    }
    *seen.messages.lock().expect("whole").entry(id).or_default() += 1;
    out.extend(frame(&json!({"type": "ack", "payload": {"frameId": frame_id}}).to_string()));
}
