//! What a start costs, to the registration at a relay.

use super::*;

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

pub fn start() {
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
    let nop = nop_time();
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

/// What it costs to start the least of all programs.
fn nop_time() -> Duration {
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let at = Instant::now();
            Command::new("/bin/true").status().expect("runs");
            at.elapsed()
        })
        .collect();
    percentile(&mut times, 0.5)
}
