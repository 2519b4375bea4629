//! The control port beside two other servers.

use super::*;

pub fn one_shot(port: u16, token: &str) -> Duration {
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

pub fn post() {
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
