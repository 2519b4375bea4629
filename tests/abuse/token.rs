//! What one agent's token may do to the hub, and what whoever has a control token may do to a
//! runner. Each row is judged by counters, answers and bytes; beside each an honest agent gets all
//! its answers, none of them a refusal, and keeps its connection.

use super::scene::{Scene, bus, call, close_code, next_text, register};
use super::*;

fn deep(levels: usize) -> String {
    format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
}

/// What no client could read is not taken, wherever something free enters.
#[test]
fn what_is_nested_too_deeply_is_refused_at_both_servers() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let deep = deep(100);
    scene.beside("deep bodies", || {
        let mut socket = bus(&scene.target, &header).expect("a bus");
        register(&mut socket, "greedy", json!({}));
        for (method, path, body) in [
            (
                "POST",
                "/api/messages",
                format!(r#"{{"to":"user","body":"x","payload":{{"p":{deep}}}}}"#),
            ),
            (
                "POST",
                "/api/messages/batch",
                format!(r#"{{"messages":[{{"to":"user","payload":{{"p":{deep}}}}}]}}"#),
            ),
            ("POST", "/api/agents", format!(r#"{{"id":"greedy","meta":{{"p":{deep}}}}}"#)),
            ("POST", "/api/agents/greedy/heartbeat", format!(r#"{{"meta":{{"p":{deep}}}}}"#)),
            ("PATCH", "/api/tasks/1", format!(r#"{{"status":"done","metadata":{deep}}}"#)),
            ("POST", "/api/messages", format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000))),
        ] {
            let answer = call(&scene.target, &header, method, path, &body);
            assert_eq!(
                (answer.status, &answer.body()["code"]),
                (422, &json!("too_deep")),
                "{path}"
            );
        }
        let frame =
            format!(r#"{{"id":"f1","type":"command.update","payload":{{"result":{deep}}}}}"#);
        socket.send(Message::text(frame)).expect("sends");
        let told: Value = serde_json::from_str(&next_text(&mut socket)).expect("JSON");
        assert_eq!((&told["id"], &told["payload"]["code"]), (&json!("f1"), &json!("too_deep")));
        // The connection goes on; whoever goes on with such frames does not.
        socket
            .send(Message::text(r#"{"type":"subscribe","id":"s","payload":{"events":[]}}"#))
            .expect("sends");
        assert!(next_text(&mut socket).contains("\"frameId\":\"s\""));
        for _ in 0..200 {
            let _ = socket.send(Message::text(deep.clone()));
        }
        assert_eq!(close_code(&mut socket), Some(1008));
    });
    assert!(scene.metric("agents") >= 2);
    for list in [&["agents", "--json"][..], &["tasks", "--json"], &["inbox", "--json"]] {
        scene.target.machine.ok(list);
    }
    let control = Target::control();
    let body = format!(r#"{{"to":"user","body":"x","payload":{{"p":{deep}}}}}"#);
    let answer = call(&control, &control.header, "POST", "/messages", &body);
    assert_eq!((answer.status, &answer.body()["code"]), (422, &json!("too_deep")), "{answer:?}");
    // A provider may write what it likes: it is read as far as it goes.
    let body = format!(r#"{{"providerSessionId":"p","payload":{{"tool_input":{deep}}}}}"#);
    let answer = call(&control, &control.header, "POST", "/hook/stop", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    control.is_well("after deep bodies");
}

/// One body may hold so many values, however few bytes each has.
#[test]
fn what_has_too_many_values_is_refused_at_both_servers() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let wide: String = (0..80_000).map(|number| format!("\"m{number}\":1,")).collect();
    let body = format!(r#"{{"to":"user","body":"x","payload":{{{wide}"z":1}}}}"#);
    scene.beside("bodies of 80,000 values", || {
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let answer = call(&scene.target, &header, "POST", "/api/messages", &body);
                    assert!(
                        answer.body()["code"] == "too_many_members" || answer.status == 429,
                        "{answer:?}"
                    );
                });
            }
        });
    });
    let control = Target::control();
    let answer = call(&control, &control.header, "POST", "/messages", &body);
    assert_eq!((answer.status, &answer.body()["code"]), (422, &json!("too_many_members")));
    control.is_well("after bodies of 80,000 values");
}

/// What one token has beyond its connections is refused by name, and the token can be revoked.
#[test]
fn a_token_has_so_many_connections_and_peers() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let (target, listing) = (&scene.target, "/api/agents");
    let peers = scene.beside("connections without end", || {
        let mut peers = Vec::new();
        let refused = (0..400)
            .filter(|_| match bus(target, &header) {
                Ok(socket) => {
                    peers.push(socket);
                    false
                }
                Err(error) => {
                    assert!(error.contains("429"), "{error}");
                    true
                }
            })
            .count();
        assert_eq!((peers.len(), refused), (16, 384));
        let refused = call(target, &header, "GET", "/api/events", "");
        assert_eq!((refused.status, &refused.body()["code"]), (429, &json!("too_many_peers")));
        assert!(refused.text.contains("Retry-After: 1"), "{}", refused.text);
        // Connections that are kept for further requests count too.
        let mut kept = Vec::new();
        let mut codes = std::collections::BTreeMap::new();
        for _ in 0..200 {
            let mut socket = target.connect();
            write!(socket, "GET {listing} HTTP/1.1\r\n{header}\r\n\r\n").expect("sends");
            let mut answer = [0u8; 4096];
            let size = socket.read(&mut answer).expect("an answer");
            let text = String::from_utf8_lossy(&answer[..size]).into_owned();
            *codes.entry(status_of(&text)).or_insert(0) += 1;
            if status_of(&text) == 429 {
                assert!(text.contains("too_many_connections"), "{text}");
            }
            kept.push(socket);
        }
        assert_eq!((codes[&200], codes[&429]), (64 - 16, 200 - 48));
        peers
    });
    let metrics = scene.metrics();
    let named = metrics.lines().find(|line| line.starts_with("agent_relay_hub_greediest_line{"));
    assert!(named.is_some_and(|line| line.contains("agent=\"greedy\"")), "{metrics}");
    let status = target.machine.ok(&["hub", "status"]);
    assert!(status.contains("the agent greedy"), "{status}");
    assert!(scene.metric("limits_met_total") >= 384 + 152);
    drop(peers);
    // Who made it can end it all the same, and places come back.
    let mut again = wait_for("a place", 30, || bus(target, &header).ok());
    let tokens = call(target, &target.header, "GET", "/api/tokens", "").body();
    let own =
        tokens["tokens"].as_array().expect("a list").iter().find(|it| it["agentId"] == "greedy");
    target.machine.ok(&["token", "revoke", own.expect("it")["jti"].as_str().expect("an id")]);
    assert_eq!(close_code(&mut again), Some(4001));
}

/// Messages that never end, on as many connections as there are.
#[test]
fn unfinished_messages_are_counted_and_the_greediest_connection_is_closed() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    // The head of a piece of a text of one megabyte, and all but the end of it.
    let piece =
        [&[0x01u8, 0xff, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xff, 1, 2, 3, 4][..], &[b'x'; 900_000]]
            .concat();
    let codes = scene.beside("unfinished messages", || {
        let mut peers: Vec<_> =
            (0..16).map(|_| bus(&scene.target, &header).expect("a bus")).collect();
        for peer in &mut peers {
            let _ = peer.get_mut().write_all(&piece);
        }
        wait_for("what is held to be known", 60, || {
            (scene.metric("limits_met_total") > 0).then_some(())
        });
        let held = scene.metric("line_bytes_max");
        assert!(held <= (8 << 20) + (1 << 20), "{held} bytes of one agent");
        peers
            .iter_mut()
            .filter_map(|peer| {
                peer.get_mut().set_read_timeout(Some(Duration::from_millis(200))).expect("sets");
                close_code(peer)
            })
            .collect::<Vec<u16>>()
    });
    assert!(codes.len() >= 6 && codes.iter().all(|code| *code == 1008), "{codes:?}");
}

/// Who subscribes and never reads holds no more than its line may.
#[test]
fn what_is_not_read_is_counted() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let body = json!({"to": "greedy", "body": "x".repeat(500_000)}).to_string();
    scene.beside("subscribers that never read", || {
        let mut deaf = Vec::new();
        for number in 0..16 {
            if number % 2 == 0 {
                let mut socket = target_events(&scene.target, &header);
                socket.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
                let mut head = [0u8; 64];
                assert!(socket.read(&mut head).expect("a head") > 0);
                deaf.push(socket);
                continue;
            }
            let mut socket = bus(&scene.target, &header).expect("a bus");
            for frame in [
                json!({"type": "register", "id": "r", "payload": {"role": "channel", "componentId": "c", "instanceId": "c"}}),
                json!({"type": "subscribe", "id": "s", "payload": {"events": ["*"]}}),
            ] {
                socket.send(Message::text(frame.to_string())).expect("sends");
            }
            while !next_text(&mut socket).contains("\"frameId\":\"s\"") {}
            deaf.push(socket.get_mut().try_clone().expect("a socket"));
            std::mem::forget(socket);
        }
        for _ in 0..12 {
            let answer = call(&scene.target, &scene.target.header, "POST", "/api/messages", &body);
            assert_eq!(answer.status, 201, "{}", answer.text);
        }
        let held = scene.metric("line_bytes_max");
        assert!(held <= (8 << 20) + (2 << 20), "{held} bytes of one agent");
    });
}

/// A reader of events.
fn target_events(target: &Target, header: &str) -> TcpStream {
    let mut socket = target.connect();
    write!(socket, "GET /api/events HTTP/1.1\r\n{header}\r\n\r\n").expect("sends");
    socket
}

/// Pieces without end, each of them empty: the connection rests, and others do not notice.
#[test]
fn empty_pieces_make_their_own_connection_rest() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let over = Arc::new(AtomicBool::new(false));
    scene.beside("empty pieces", || {
        let floods: Vec<_> = (0..4)
            .map(|_| {
                let (mut socket, over) =
                    (bus(&scene.target, &header).expect("a bus"), over.clone());
                std::thread::spawn(move || {
                    let mut pieces = vec![0x01u8, 0x80, 0, 0, 0, 0];
                    pieces.extend([0x00u8, 0x80, 0, 0, 0, 0].repeat(20_000));
                    let within = Some(Duration::from_millis(200));
                    socket.get_mut().set_write_timeout(within).expect("sets");
                    while !over.load(Ordering::Relaxed) {
                        let _ = socket.get_mut().write_all(&pieces);
                        pieces[0] = 0;
                    }
                })
            })
            .collect();
        wait_for("the floods to rest", 60, || {
            (scene.metric("limits_met_total") >= 8).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        floods.into_iter().for_each(|flood| flood.join().expect("joins"));
    });
}

/// Chunks of one byte each: refused after some thousand bytes, whoever sends them.
#[test]
fn chunks_of_one_byte_end_soon() {
    let _alone = ALONE.lock();
    for target in [Target::hub(None), Target::control()] {
        for header in [target.header.as_str(), "X-Nothing: here"] {
            let head = format!(
                "POST {} HTTP/1.1\r\n{header}\r\nTransfer-Encoding: chunked\r\n\r\n",
                target.path
            );
            let mut socket = target.connect();
            socket.write_all(head.as_bytes()).expect("sends");
            let _ = socket.write_all("1\r\na\r\n".repeat(2000).as_bytes());
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            let status = status_of(&String::from_utf8_lossy(&answer));
            assert_eq!(status, 413, "{} with {header}", target.name);
        }
    }
}

/// Registrations and statuses of hundreds of kilobytes, one after the other on one connection: they
/// wait for their turn, and between two of them others have theirs.
#[test]
fn large_frames_wait_for_their_turn() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let meta = json!({"m": "x".repeat(380_000)});
    let payload = json!({"role": "provider", "agentId": "greedy", "componentId": "greedy", "instanceId": "greedy", "meta": meta});
    let frames = [
        json!({"type": "register", "id": "r", "payload": payload}).to_string(),
        json!({"type": "status", "payload": {"agentStatus": "busy", "meta": meta}}).to_string(),
        json!({"type": "heartbeat", "payload": {"status": "busy", "meta": meta}}).to_string(),
    ];
    scene.beside("frames of 380 KB", || {
        let socket = bus(&scene.target, &header).expect("a bus");
        let over = Arc::new(AtomicBool::new(false));
        let mut reading = socket.get_ref().try_clone().expect("a socket");
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0u8; 1 << 20];
            while matches!(reading.read(&mut buffer), Ok(1..)) {}
        });
        let sender = std::thread::spawn({
            let (mut socket, over) = (socket, over.clone());
            move || {
                let within = Some(Duration::from_millis(500));
                socket.get_mut().set_write_timeout(within).expect("sets");
                for number in 0..450 {
                    let frame = Message::text(frames[number % 3].clone());
                    if over.load(Ordering::Relaxed) || socket.send(frame).is_err() {
                        break;
                    }
                }
                let _ = socket.get_ref().shutdown(std::net::Shutdown::Both);
            }
        });
        wait_for("the sender to rest", 120, || {
            (scene.metric("limits_met_total") >= 3).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        sender.join().expect("joins");
        reader.join().expect("joins");
    });
    scene.turns_are_kept();
}

/// A thousand small frames at once from each of sixteen connections: others have their turns.
#[test]
fn many_small_frames_take_turns_with_others() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    scene.beside("sixteen connections full of small frames", || {
        let frame = json!({"type": "status", "payload": {"agentStatus": "busy"}}).to_string();
        let senders: Vec<_> = (0..16)
            .map(|number| {
                let mut socket = bus(&scene.target, &header).expect("a bus");
                let frame = Message::text(frame.clone());
                std::thread::spawn(move || {
                    if number == 0 {
                        register(&mut socket, "greedy", json!({}));
                    }
                    socket.get_mut().set_write_timeout(Some(Duration::from_secs(5))).expect("sets");
                    let _ = (0..2000).try_for_each(|_| socket.send(frame.clone()));
                    socket
                })
            })
            .collect();
        let sockets: Vec<_> = senders.into_iter().map(|it| it.join().expect("joins")).collect();
        drop(sockets);
    });
    scene.turns_are_kept();
}

/// Notes of a megabyte on one's own task, targets of 900 KB, hundreds of messages that match
/// nobody, and a record that grows name by name: each is refused by its name, and lists stay lists.
#[test]
fn what_is_kept_for_long_is_bounded() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    let target = &scene.target;
    let long = |bytes: usize| "x".repeat(bytes);
    scene.beside("notes, targets and records without end", || {
        let mut socket = bus(target, &header).expect("a bus");
        register(&mut socket, "greedy", json!({}));
        let ask = |method: &str, path: &str, body: Value| {
            let answer = call(target, &header, method, path, &body.to_string());
            (answer.status, answer.body()["code"].as_str().unwrap_or_default().to_string())
        };
        let told = |code: &str| (422, code.to_string());
        let task = call(target, &header, "POST", "/api/tasks", r#"{"to":"greedy","title":"t"}"#);
        let path = format!("/api/tasks/{}", task.body()["id"]);
        let note = |bytes: usize| json!({"status": "in_progress", "body": long(bytes)});
        assert_eq!(ask("PATCH", &path, note(1_000_000)), told("field_too_long"));
        let notes: Vec<_> = (0..40).map(|_| ask("PATCH", &path, note(60_000))).collect();
        assert!(notes.contains(&(200, String::new())), "{notes:?}");
        assert_eq!(notes.last(), Some(&told("too_many_notes")));
        assert_eq!(call(target, &header, "GET", "/api/tasks", "").status, 200);
        let to = format!("label:{}", long(900_000));
        assert_eq!(ask("POST", "/api/messages", json!({"to": to})), told("field_too_long"));
        let waiting: Vec<_> = (0..400)
            .map(|number| ask("POST", "/api/messages", json!({"to": format!("label:l{number}")})))
            .collect();
        let kept = waiting.iter().filter(|(status, _)| *status == 201).count();
        assert_eq!(kept, 256);
        assert_eq!(waiting[399], (429, "too_many_unresolved".to_string()));
        let names: Value = (0..1000).map(|n| (format!("n{n}"), json!(""))).collect();
        let path = "/api/agents/greedy/heartbeat";
        assert_eq!(ask("POST", path, json!({"meta": names})).0, 200);
        for number in 0..30 {
            let part = json!({"meta": {format!("n{number}"): long(400_000)}});
            assert_eq!(ask("POST", path, part).0, 200);
        }
        let part = json!({"meta": {"n0": long(900_000)}});
        assert_eq!(ask("POST", path, part), told("field_too_long"));
        let card = call(target, &header, "GET", "/api/agents/greedy", "");
        assert!(card.status == 200 && card.text.len() < 600_000, "{} bytes", card.text.len());
    });
    target.machine.ok(&["agents", "--json"]);
}

/// Requests in advance wait in the socket while one is answered, and do not keep the gate awake.
#[test]
fn requests_in_advance_do_not_keep_the_gate_awake() {
    let _alone = ALONE.lock();
    let scene = Scene::new();
    let header = scene.header_of("greedy");
    // More than the gate reads at once, so that some of it stays in the socket.
    let (asked, request) = (400, format!("GET /api/agents HTTP/1.1\r\n{header}\r\n\r\n"));
    let before = scene.metric("gate_turns_total");
    let mut socket = scene.target.connect();
    socket.write_all(request.repeat(asked).as_bytes()).expect("sends");
    let (mut text, mut buffer) = (String::new(), [0u8; 65536]);
    while text.matches("HTTP/1.1 200").count() < asked || !text.ends_with('}') {
        let size = socket.read(&mut buffer).expect("answers");
        assert!(size > 0, "{} answers", text.matches("HTTP/1.1 200").count());
        text.push_str(&String::from_utf8_lossy(&buffer[..size]));
    }
    let turns = scene.metric("gate_turns_total") - before;
    assert!(turns < 5 * asked as u64, "{turns} turns for {asked} requests");
}
