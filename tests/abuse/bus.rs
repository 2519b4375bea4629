//! What peers of the bus may do.

use super::*;

#[test]
fn peers_of_the_bus_are_bounded() {
    let _alone = ALONE.lock();
    let target = Target::hub(None);
    large_frames(&target);
    empty_pieces(&target);
    vanishing_peers(&target);
    let _noisy = garbage_frames(&target);
    deaf_subscribers(&target);
    floods(&target);
}

/// Frames that are too large, in one piece and in endless pieces.
fn large_frames(target: &Target) {
    let mut bus = target.bus();
    let _ = bus.send(Message::text("x".repeat(3 << 20)));
    assert!(bus_ends(&mut bus), "a frame of 3 MB is refused");
    let mut socket = target.bus();
    let piece =
        [&[0x01u8, 0xff, 0, 0, 0, 0, 0, 0x01, 0, 0, 1, 2, 3, 4][..], &[0u8; 65536][..]].concat();
    let ended = (0..2000).any(|_| socket.get_mut().write_all(&piece).is_err());
    assert!(ended, "a message of endless fragments is refused");
}

/// A message of endless empty pieces: six bytes each, no limit of size ever reached.
fn empty_pieces(target: &Target) {
    let sent = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let flood = std::thread::spawn({
        let (mut bus, sent, over) = (target.bus(), sent.clone(), over.clone());
        move || {
            let mut pieces = vec![0x01u8, 0x80, 0, 0, 0, 0];
            pieces.extend([0x00u8, 0x80, 0, 0, 0, 0].repeat(20_000));
            while !over.load(Ordering::Relaxed) && bus.get_mut().write_all(&pieces).is_ok() {
                pieces[0] = 0;
                sent.fetch_add(pieces.len(), Ordering::Relaxed);
            }
        }
    });
    wait_for("the flood", 60, || (sent.load(Ordering::Relaxed) > 2 << 20).then_some(()));
    target.is_well("a message of endless empty pieces");
    over.store(true, Ordering::Relaxed);
    flood.join().expect("joins");
}

/// Those who vanish between the question and the answer are not kept.
fn vanishing_peers(target: &Target) {
    for _ in 0..200 {
        for path in ["/api/events", "/bus"] {
            let mut socket = target.connect();
            let upgrade = if path == "/bus" {
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            } else {
                ""
            };
            write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n{upgrade}{}\r\n\r\n", target.header)
                .expect("sends");
            // A reset instead of a goodbye.
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("sets");
        }
    }
    wait_for("the hub to forget those who vanished", 60, || {
        let status: Value =
            serde_json::from_str(&target.machine.ok(&["hub", "status", "--json"])).expect("JSON");
        (status["now"]["eventStreams"] == 0 && status["now"]["peers"] == 0).then_some(())
    });
}

/// Garbage frames are answered and ignored; unknown ones are ignored. The peer stays.
fn garbage_frames(target: &Target) -> WebSocket<TcpStream> {
    let mut bus = target.peer("noisy");
    for text in [
        "",
        "null",
        "[]",
        "{",
        "{\"type\":5}",
        "{\"type\":\"newer\",\"payload\":{}}",
        "{\"type\":\"heartbeat\",\"payload\":{\"status\":\"idle\"}}",
    ] {
        bus.send(Message::text(text)).expect("sends");
    }
    bus.send(Message::text(
        json!({"type": "subscribe", "id": "s", "payload": {"events": ["agent.status"]}})
            .to_string(),
    ))
    .expect("sends");
    let until = Instant::now() + Duration::from_secs(10);
    while !bus.read().expect("the connection stays").to_string().contains("\"frameId\":\"s\"") {
        assert!(Instant::now() < until, "no acknowledgement");
    }
    bus
}

/// A subscriber that never reads is let go before it holds much; the peer that was noisy stays.
fn deaf_subscribers(target: &Target) {
    let mut deaf = target.bus();
    for frame in [
        json!({"type": "register", "id": "r", "payload": {"role": "channel", "componentId": "deaf", "instanceId": "deaf"}}),
        json!({"type": "subscribe", "id": "s", "payload": {"events": ["message.new"], "scopes": ["user"]}}),
    ] {
        deaf.send(Message::text(frame.to_string())).expect("sends");
    }
    let readers: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut socket = target.connect();
            write!(socket, "GET /api/events HTTP/1.1\r\n{}\r\n\r\n", target.header).expect("sends");
            socket
        })
        .collect();
    let body = json!({"to": "user", "body": "x".repeat(200_000)}).to_string();
    for _ in 0..100 {
        let mut socket = target.connect();
        write!(
            socket,
            "POST /api/messages HTTP/1.1\r\n{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            target.header,
            body.len()
        )
        .expect("sends");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        assert_eq!(status_of(&answer), 201);
    }
    target.is_well("subscribers that never read");
    wait_for("the hub to let go of all that do not read", 60, || {
        let status: Value =
            serde_json::from_str(&target.machine.ok(&["hub", "status", "--json"])).expect("JSON");
        (status["now"]["eventStreams"] == 0 && status["now"]["peers"] == 1).then_some(())
    });
    drop(readers);
}

/// A flood of frames from one peer slows down that peer only.
fn floods(target: &Target) {
    let over = Arc::new(AtomicBool::new(false));
    let flood = std::thread::spawn({
        let (mut bus, over) = (target.peer("flood"), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                let text =
                    json!({"type": "status", "payload": {"agentStatus": "busy"}}).to_string();
                if bus.send(Message::text(text)).is_err() {
                    return;
                }
            }
        }
    });
    target.is_well("a peer that floods");
    over.store(true, Ordering::Relaxed);
    flood.join().expect("joins");
}

/// Whether the other side ends the connection.
fn bus_ends(bus: &mut WebSocket<TcpStream>) -> bool {
    loop {
        match bus.read() {
            Ok(Message::Close(_)) => return true,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                return false;
            }
            Err(_) => return true,
        }
    }
}
