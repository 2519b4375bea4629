//! A hub with a greedy and an honest agent.

use super::*;

/// A hub, an agent whose token is in hostile hands, and an honest one beside it.
pub struct Scene {
    pub target: Target,
    /// Memory before anything happened.
    idle_kb: u64,
}

/// What an HTTP exchange brought.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub text: String,
}

impl Answered {
    pub fn body(&self) -> Value {
        let body = self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or(Value::Null)
    }
}

impl Scene {
    pub fn new() -> Scene {
        os::raise_descriptors();
        let target = Target::hub(None);
        let idle_kb = target.rss_kb();
        Scene { target, idle_kb }
    }

    /// The header of a token of that agent.
    pub fn header_of(&self, agent: &str) -> String {
        let made = self.target.machine.ok(&["token", "create", "--agent", agent, "--json"]);
        let made: Value = serde_json::from_str(&made).expect("JSON");
        format!("X-Agent-Relay-Token: {}", made["token"].as_str().expect("a token"))
    }

    /// Runs an attack while an honest agent works, and looks at memory afterwards.
    #[track_caller]
    pub fn beside<T>(&self, what: &str, attack: impl FnOnce() -> T) -> T {
        let honest = Honest::start(self, what);
        let outcome = attack();
        honest.end_well();
        let (held, most) = (self.target.rss_kb(), 3 * self.idle_kb + (64 << 10));
        assert!(held <= most, "{what}: {held} kB, idle {} kB", self.idle_kb);
        outcome
    }

    pub fn metrics(&self) -> String {
        let path = "/metrics";
        let answer = call(&self.target, &self.target.header, "GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let (name, text) = (format!("agent_relay_hub_{name} "), self.metrics());
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().expect("a number")
    }
}

/// One call on a connection of its own.
#[track_caller]
pub fn call(target: &Target, header: &str, method: &str, path: &str, body: &str) -> Answered {
    let mut socket = target.connect();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    // Whoever is refused early need not be read to the end.
    let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body.as_bytes()));
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answered { status: status_of(&text), text }
}

/// A WebSocket with that token.
pub fn bus(target: &Target, header: &str) -> Result<WebSocket<TcpStream>, String> {
    let (name, token) = header.split_once(": ").expect("a header");
    let request = tungstenite::http::Request::builder()
        .uri(format!("ws://{}/bus", target.address))
        .header("Host", &target.address)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
        .header(name, token)
        .body(())
        .expect("a request");
    tungstenite::client(request, target.connect())
        .map(|(socket, _)| socket)
        .map_err(|error| error.to_string())
}

/// Registers an agent on a connection.
pub fn register(bus: &mut WebSocket<TcpStream>, id: &str, meta: Value) -> String {
    let payload = json!({"role": "provider", "agentId": id, "componentId": id, "instanceId": id, "meta": meta});
    let frame = json!({"type": "register", "id": "r", "payload": payload});
    bus.send(Message::text(frame.to_string())).expect("sends");
    next_text(bus)
}

/// The next text frame.
#[track_caller]
pub fn next_text(bus: &mut WebSocket<TcpStream>) -> String {
    loop {
        match bus.read().expect("a frame") {
            Message::Text(text) => return text.to_string(),
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

/// An agent that works as agents do: heartbeats, statuses, messages to itself that it acknowledges.
struct Honest {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<u32, String>>,
    what: String,
}

impl Honest {
    fn start(scene: &Scene, what: &str) -> Honest {
        let header = scene.header_of("honest");
        let mut socket = bus(&scene.target, &header).expect("a bus");
        let answer = register(&mut socket, "honest", json!({}));
        assert!(answer.contains("registered"), "{answer}");
        let over = Arc::new(AtomicBool::new(false));
        let (address, ended) = (scene.target.address.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            // At least one round also where the attack is over in a moment.
            while rounds < 3 || !ended.load(Ordering::Relaxed) {
                round(&address, &header, &mut socket)?;
                rounds += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(rounds)
        });
        Honest { over, thread, what: what.into() }
    }

    #[track_caller]
    fn end_well(self) {
        self.over.store(true, Ordering::Relaxed);
        let outcome = self.thread.join().expect("joins");
        assert!(outcome.is_ok(), "the honest agent beside {}: {outcome:?}", self.what);
    }
}

/// A heartbeat, a message to itself, its delivery and its acknowledgement.
fn round(address: &str, header: &str, bus: &mut WebSocket<TcpStream>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let say = |bus: &mut WebSocket<TcpStream>, frame: Value| {
        bus.send(Message::text(frame.to_string())).map_err(|error| error.to_string())
    };
    say(bus, json!({"type": "heartbeat", "payload": {"status": "idle"}}))?;
    let mut socket = TcpStream::connect(address).map_err(|error| failed(&error))?;
    socket.set_read_timeout(Some(Duration::from_secs(60))).map_err(|error| failed(&error))?;
    let body = json!({"to": "honest", "body": "x"}).to_string();
    write!(
        socket,
        "POST /api/messages HTTP/1.1\r\n{header}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .map_err(|error| failed(&error))?;
    let mut text = String::new();
    socket.read_to_string(&mut text).map_err(|error| failed(&error))?;
    if status_of(&text) != 201 {
        return Err(text);
    }
    let _ = bus.get_ref().set_read_timeout(Some(Duration::from_secs(60)));
    loop {
        let frame = bus.read().map_err(|error| failed(&error))?;
        let Message::Text(text) = frame else {
            if let Message::Close(frame) = frame {
                return Err(format!("closed: {frame:?}"));
            }
            continue;
        };
        let frame: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        if frame["payload"]["event"] == "message.new" {
            return say(bus, json!({"type": "ack", "payload": {"frameId": frame["id"]}}));
        }
        if frame["type"] == "error" {
            return Err(text.to_string());
        }
    }
}

impl Scene {
    /// What the state thread has taken of one line while another one waited.
    #[track_caller]
    pub fn turns_are_kept(&self) {
        let (events, bytes) = (self.metric("turn_events_max"), self.metric("turn_bytes_max"));
        let members = self.metric("turn_members_max");
        assert!(
            events <= 16 && bytes < 256 << 10 && members < 4096,
            "{events} events, {bytes} bytes, {members} values in a row"
        );
    }
}

/// The code of the close frame that comes next.
pub fn close_code(bus: &mut WebSocket<TcpStream>) -> Option<u16> {
    loop {
        match bus.read() {
            Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}
