//! A thousand agents in one thread: thin clients of the protocol.

use super::*;

/// One agent on the bus.
struct Thin {
    socket: TcpStream,
    buffer: Vec<u8>,
    upgraded: bool,
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
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fleet {
    pub fn start(hub: &Hub) -> Fleet {
        let seen = Arc::new(Seen::default());
        let (address, token, told) = (hub.address.clone(), hub.token.clone(), seen.clone());
        let thread = std::thread::spawn(move || drive(&address, &token, &told));
        Fleet { seen, thread: Some(thread) }
    }

    pub fn wait_registered(&self, count: u64) -> Duration {
        let begin = Instant::now();
        while self.seen.registered.load(Ordering::Relaxed) < count {
            assert!(begin.elapsed() < Duration::from_secs(60), "{count} agents register");
            std::thread::sleep(Duration::from_millis(1));
        }
        begin.elapsed()
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

fn connect(address: &str, token: &str) -> Option<TcpStream> {
    let mut socket = TcpStream::connect(address).ok()?;
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
fn drive(address: &str, token: &str, seen: &Seen) {
    let epoll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut agents: Vec<Option<Thin>> = (0..AGENTS).map(|_| None).collect();
    let mut again: Vec<(Instant, u32)> = vec![(Instant::now(), 0); AGENTS];
    let mut rng = Rng::new(7);
    let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
    let mut heartbeat = Instant::now() + Duration::from_secs(30);
    while !seen.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        for number in 0..AGENTS {
            if agents[number].is_none() && again[number].0 <= now {
                match connect(address, token) {
                    Some(socket) => {
                        let _ = epoll::add(
                            &epoll,
                            &socket,
                            epoll::EventData::new_u64(number as u64),
                            epoll::EventFlags::IN,
                        );
                        agents[number] = Some(Thin { socket, buffer: Vec::new(), upgraded: false });
                    }
                    None => again[number] = later(&mut rng, now, again[number].1),
                }
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
        for number in events.iter().map(|event| event.data.u64() as usize).collect::<Vec<_>>() {
            let Some(agent) = &mut agents[number] else { continue };
            if read(agent, number, seen) {
                again[number].1 = 0;
            } else {
                if agent.upgraded {
                    seen.registered.fetch_sub(1, Ordering::Relaxed);
                }
                agents[number] = None;
                again[number] = later(&mut rng, Instant::now(), again[number].1);
            }
        }
    }
}

fn later(rng: &mut Rng, now: Instant, tries: u32) -> (Instant, u32) {
    let most = (250u64 << tries.min(6)).min(15_000);
    (now + Duration::from_millis(rng.bits() % (most + 1)), tries + 1)
}

/// False: the connection is over.
fn read(agent: &mut Thin, number: usize, seen: &Seen) -> bool {
    let mut piece = [0u8; 65536];
    loop {
        match agent.socket.read(&mut piece) {
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
            _ => heard(&String::from_utf8_lossy(text), seen, &mut out),
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

fn heard(text: &str, seen: &Seen, out: &mut Vec<u8>) {
    let field = |name: &str, end: char| {
        text.split_once(name)
            .map(|(_, rest)| rest.split(end).next().unwrap_or_default().to_string())
    };
    if text.contains("\"type\":\"registered\"") {
        seen.registered.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if !text.contains("message.new") {
        return;
    }
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let id = value.pointer("/payload/data/id").and_then(Value::as_u64).unwrap_or(0);
    if seen.clock.load(Ordering::Relaxed) {
        seen.times.lock().expect("whole").insert(id, Instant::now());
    }
    if seen.deaf.load(Ordering::Relaxed) {
        return;
    }
    *seen.messages.lock().expect("whole").entry(id).or_default() += 1;
    let frame_id = value["id"]
        .as_str()
        .map(str::to_string)
        .or_else(|| field("\"id\":\"", '"'))
        .unwrap_or_default();
    out.extend(frame(&json!({"type": "ack", "payload": {"frameId": frame_id}}).to_string()));
}
