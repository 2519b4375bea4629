//! The relay is away, refuses, or is only half there; the disk is full.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{BIN, Machine, Running, skip, wait_for};

#[test]
fn the_relay_is_away_at_the_start_and_for_a_while() {
    let machine = Machine::new("away");
    // First the home must know its relay.
    let mut hub = machine.hub();
    hub.kill();
    let runner = machine.runner("a");
    wait_for("the provider without a relay", 60, || {
        (machine.status("a")["providerProcess"]["state"] == "ready").then_some(())
    });
    assert_eq!(machine.status("a")["status"], "idle");
    let mut hub = machine.hub();
    machine.wait_status("a", "idle");
    let first = machine.send("a", "work 1");
    machine.wait_status("a", "busy");
    hub.kill();
    wait_for("the end of the turn", 60, || (machine.status("a")["status"] == "idle").then_some(()));
    let _hub = machine.hub();
    let second = machine.send("a", "again");
    machine.settle(&[first, second], 60);
    drop(runner);
}

#[test]
fn a_wrong_token_ends_the_start() {
    let machine = Machine::new("token");
    let _hub = machine.hub();
    let mut wrong = machine.command(BIN);
    wrong.env("AGENT_RELAY_TOKEN", "wrong").args([
        "run",
        "acp",
        "--quiet",
        "--agent-id",
        "a",
        "--",
        BIN,
        "demo-agent",
    ]);
    let output = wrong.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("refuses the token") && !text.contains("wrong\""), "{text}");
    let left: Vec<_> = machine.left_over();
    assert_eq!(left.len(), 1, "only the hub is left");
    let output = machine
        .command(BIN)
        .env("AGENT_RELAY_TOKEN", "wrong")
        .args(["agents"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2));
}

/// A middleman that can turn deaf: bytes are taken and go nowhere, nothing is closed. It knows
/// nothing of HTTP: a dead connection is one below it.
struct Proxy {
    port: u16,
    deaf: Arc<AtomicBool>,
    /// What was taken and went nowhere.
    lost: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    fn start(to: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let deaf = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(Mutex::new(Vec::new()));
        let (flag, swallowed) = (deaf.clone(), lost.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                for (from, to) in [
                    (client.try_clone(), server.try_clone()),
                    (server.try_clone(), client.try_clone()),
                ] {
                    let (mut from, mut to) = (from.expect("clones"), to.expect("clones"));
                    let (flag, swallowed) = (flag.clone(), swallowed.clone());
                    std::thread::spawn(move || {
                        let mut buffer = [0u8; 4096];
                        let mut lost = false;
                        while let Ok(size @ 1..) = from.read(&mut buffer) {
                            lost |= flag.load(Ordering::Relaxed);
                            if lost {
                                swallowed.lock().expect("whole").extend_from_slice(&buffer[..size]);
                            } else if to.write_all(&buffer[..size]).is_err() {
                                return;
                            }
                        }
                        if !lost {
                            let _ = to.shutdown(std::net::Shutdown::Both);
                        }
                    });
                }
            }
        });
        Proxy { port, deaf, lost }
    }
}

#[test]
fn a_half_open_socket_is_noticed() {
    let mut machine = Machine::new("half-open");
    let _hub = machine.hub();
    let url = machine.config()["relayUrl"].as_str().expect("url").to_string();
    let proxy = Proxy::start(url.trim_start_matches("http://").to_string());
    let direct = machine.second_home();
    machine.set("AGENT_RELAY_URL", &format!("http://127.0.0.1:{}", proxy.port));
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    proxy.deaf.store(true, Ordering::Relaxed);
    let id = direct.send("a", "hello into the void");
    wait_for("the frame to go into the dead connection", 60, || {
        String::from_utf8_lossy(&proxy.lost.lock().expect("whole"))
            .contains("hello into the void")
            .then_some(())
    });
    // Connections made from here on are sound again; the old one is dead without knowing it.
    proxy.deaf.store(false, Ordering::Relaxed);
    machine.settle(&[id], 180);
}

#[test]
fn a_full_disk_stops_acceptance_and_nothing_else() {
    // The limit of a running process is set from outside. Where the tool is missing the test is
    // skipped.
    let has_tool = std::process::Command::new("prlimit")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_tool {
        return skip("prlimit is missing; install it with: sudo apt-get install util-linux");
    }
    let machine = Machine::new("full");
    let _hub = machine.hub();
    let mut first = machine.runner("a");
    machine.wait_status("a", "idle");
    first.terminate();
    assert_eq!(first.wait(60).0, 0);
    // The store may grow by a little and then no more.
    let state = machine.home.join("demo").to_string_lossy().into_owned();
    let script = format!(
        "trap '' XFSZ; exec {BIN} run acp --agent-id a --approval open -- {BIN} demo-agent --state {state}"
    );
    let mut command = machine.command("/bin/sh");
    let child = command
        .args(["-c", &script])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let runner = Running { child };
    machine.wait_status("a", "idle");
    let pid = runner.child.id().to_string();
    let limit = |value: &str| {
        let done = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--fsize={value}:unlimited")])
            .status();
        assert!(done.expect("prlimit of util-linux is there").success());
    };
    limit("4096");
    let ids: Vec<u64> = (0..5).map(|n| machine.send("a", &format!("number {n}"))).collect();
    wait_for("the store's trouble to be told", 60, || {
        let truth = machine.status("a");
        truth["lastErrors"]["store"]["text"].is_string().then_some(())
    });
    assert!(machine.delivered().is_empty(), "nothing is delivered that is not durable");
    limit("unlimited");
    machine.settle(&ids, 60);
    assert!(machine.status("a")["lastErrors"]["store"].is_null());
}

/// A relay whose bus cannot be reached: HTTP brings everything that the bus would bring, and the
/// operator sees of such an agent what he would see of another one.
#[test]
fn polling_suffices() {
    let mut machine = Machine::new("polling");
    let _hub = machine.hub();
    machine.shut_the_bus();
    let _runner = machine.runner_with("a", &["--approval", "guarded", "--label", "quiet"], &[]);
    let card = || -> Option<Value> {
        machine.ok(&["agents", "--json"]).lines().find_map(|line| serde_json::from_str(line).ok())
    };
    // Known with its true status although no frame of it ever came, and before the second round of
    // polls, which comes 20 s after the first.
    let begin = Instant::now();
    wait_for("the agent at the relay", 60, || {
        card().filter(|card| card["status"] == "idle" && card["meta"]["status"] == "idle")
    });
    let took = begin.elapsed();
    assert!(took < machine.within(Duration::from_secs(12)), "{took:?}");
    let id = machine.send("label:quiet", "ask");
    wait_for("the operator to see what the agent waits for", 60, || {
        let card = card()?;
        (card["meta"]["status"] == "blocked" && card["meta"]["statusSince"].is_number())
            .then_some(())
    });
    assert!(machine.ok(&["agents"]).contains("blocked"), "{}", machine.ok(&["agents"]));
    let open: Value = serde_json::from_str(&wait_for("the approval", 60, || {
        let text = machine.ok(&["approvals", "--json"]);
        (!text.is_empty()).then_some(text)
    }))
    .expect("JSON");
    assert_eq!(
        (open["title"].as_str(), open["agentId"].as_str()),
        (Some("rm -rf demo-scratch"), Some("a"))
    );
    let decided = machine.ok(&["approvals", "approve", open["approvalId"].as_str().expect("id")]);
    assert!(decided.contains("succeeded"), "{decided}");
    machine.settle(&[id], 60);
    assert!(machine.ok(&["inbox"]).contains("You allowed it."));
    wait_for("nothing to be open any more", 60, || {
        (machine.ok(&["approvals"]) == "no open approvals").then_some(())
    });
    wait_for("the agent to be idle", 60, || {
        card().filter(|card| card["status"] == "idle" && card["meta"]["status"] == "idle")
    });
    let task: Value =
        serde_json::from_str(&machine.ok(&["send", "a", "--task", "--json", "hello"]))
            .expect("JSON");
    wait_for("the task to be done", 60, || {
        machine.ok(&["tasks", "--json"]).contains("\"status\":\"done\"").then_some(())
    });
    assert_eq!(machine.delivered().get(&task["messageId"].as_u64().expect("id")), Some(&1));
    let output = machine.run(&["command", "a", "interrupt"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("succeeded"), "{}", machine.logs());
}

#[test]
fn a_lost_conversation_is_said_and_nothing_is_repeated() {
    let machine = Machine::new("lost");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "forget");
    machine.settle(&[first], 60);
    let second = machine.send("a", "work 600");
    machine.wait_status("a", "busy");
    wait_for("the evidence", 60, || {
        machine.status("a")["turn"]["phase"].as_str().filter(|phase| *phase == "taken").map(|_| ())
    });
    // The record of the conversation goes too: what the first message left behind.
    for entry in std::fs::read_dir(machine.home.join("demo")).expect("reads").flatten() {
        if entry.file_name().to_string_lossy().starts_with("session-") {
            std::fs::remove_file(entry.path()).expect("removes");
        }
    }
    machine.ok(&["command", "a", "restart"]);
    machine.settle(&[second], 60);
    assert!(machine.ok(&["inbox"]).contains("the conversation was lost"), "{}", machine.logs());
}

/// A panic of ours is an orderly stop with exit 70; the provider does not outlive it.
#[test]
fn a_bug_ends_with_seventy_and_leaves_nothing() {
    for place in ["panic@before-commit:5", "panic@event:25"] {
        let mut machine = Machine::new("bug");
        let hub = machine.hub();
        machine.set("AGENT_RELAY_CRASH_AT", place);
        let mut runner = machine.runner("a");
        machine.set("AGENT_RELAY_CRASH_AT", "");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while runner.child.try_wait().expect("waits").is_none() && std::time::Instant::now() < until
        {
            machine.run(&["send", "a", "hello"]);
        }
        let (code, text) = runner.wait(1);
        assert_eq!(code, 70, "{place}: {text}");
        assert!(
            text.contains("this is a bug") && machine.logs().contains("last events:"),
            "{text}"
        );
        let left: Vec<u32> = machine
            .left_over()
            .into_iter()
            .map(|process| process.pid)
            .filter(|pid| *pid != hub.child.id())
            .collect();
        assert!(left.is_empty(), "{place}: {left:?}");
        let _runner = machine.runner("a");
        machine.wait_status("a", "idle");
    }
}

/// Thousands of requests in one packet, on both servers, with and without a token: the process
/// lives and answers.
#[test]
fn pipelined_requests_do_not_pile_up() {
    let machine = Machine::new("pipeline");
    let hub = machine.hub();
    let runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let info: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let ports = [machine.config()["relayUrl"].clone(), info["controlUrl"].clone()];
    for (url, running) in ports.iter().zip([&hub, &runner]) {
        let address = url.as_str().expect("url").trim_start_matches("http://").to_string();
        for request in [
            "A / HTTP/1.1\r\n\r\n",
            "A /x HTTP/1.1\r\nupgrade:websocket\r\n\r\n",
            "GET /health HTTP/1.1\r\n\r\n",
        ] {
            let mut socket = TcpStream::connect(&address).expect("connects");
            socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("sets");
            let mut back = socket.try_clone().expect("clones");
            let reader = std::thread::spawn(move || {
                let mut answers = Vec::new();
                let _ = back.read_to_end(&mut answers);
                String::from_utf8_lossy(&answers).matches("HTTP/1.1 ").count()
            });
            socket.write_all(request.repeat(3000).as_bytes()).expect("writes");
            socket.shutdown(std::net::Shutdown::Write).expect("shuts");
            assert!(reader.join().expect("joins") > 0);
        }
        assert!(std::path::Path::new(&format!("/proc/{}/exe", running.child.id())).exists());
    }
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
}

/// An agent that refuses every conversation uses up its restart budget and ends the runner with 1.
#[test]
fn a_conversation_that_never_opens_is_given_up() {
    let machine = Machine::new("never-opens");
    let config = r#"{"restart": {"firstMs": 20, "mostMs": 50, "exitsMax": 4}, "headless": {"shutdownTimeoutMs": 300}}"#;
    std::fs::create_dir_all(machine.home.join("providers")).expect("dir");
    std::fs::write(machine.home.join("providers/acp.json"), config).expect("writes");
    let _hub = machine.hub();
    let refuses = r#"echo start >> starts; while read line; do echo '{"jsonrpc":"2.0","id":0,"error":{"code":-32603,"message":"not today"}}'; done"#;
    let mut runner = machine.start(&[
        "run",
        "acp",
        "--quiet",
        "--agent-id",
        "a",
        "--",
        "/bin/sh",
        "-c",
        refuses,
    ]);
    let (code, text) = runner.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not today"), "{text}");
    let starts =
        std::fs::read_to_string(machine.work.join("starts")).expect("noted").lines().count();
    assert_eq!(starts, 4, "the budget, and no more");
    // Its last word to the relay is not taken for the present.
    wait_for("the agent to be offline", 60, || {
        machine.ok(&["agents", "--json"]).contains("\"status\":\"offline\"").then_some(())
    });
    assert!(!machine.ok(&["agents"]).contains("starting"));
}

#[test]
fn an_agent_that_closes_its_output_is_noticed() {
    let machine = Machine::new("closed");
    let _hub = machine.hub();
    let _runner = machine.start(&[
        "run",
        "acp",
        "--quiet",
        "--agent-id",
        "a",
        "--",
        "/bin/sh",
        "-c",
        "exec >&-; sleep 600",
    ]);
    wait_for("the reason in the status", 60, || {
        let truth = machine.status("a");
        truth["lastErrors"]["provider"]["text"]
            .as_str()
            .filter(|text| text.contains("closed its standard output"))
            .map(|_| ())
    });
}

/// A hub whose data were lost gives ids from 1 again; what was settled under those ids must not
/// hide new messages.
#[test]
fn a_reset_hub_is_another_relay() {
    let machine = Machine::new("reset");
    let mut hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let before: Vec<u64> = ["one", "two", "three"].map(|word| machine.send("a", word)).into();
    machine.settle(&before, 60);
    hub.kill();
    std::fs::remove_dir_all(machine.home.join("hub")).expect("removes");
    // Without the mark beside the data the hub cannot know that ids were given before: as on
    // another machine.
    std::fs::remove_file(machine.home.join("hub-mark.json")).expect("removes");
    let _hub = machine.hub();
    machine.wait_status("a", "idle");
    let again = machine.send("a", "after the reset");
    assert!(before.contains(&again), "the id is given a second time");
    // What the agent itself has received, and an answer to this very message: the mirror of the
    // session proves neither.
    let got = || {
        std::fs::read_to_string(machine.home.join("demo/log.jsonl"))
            .unwrap_or_default()
            .matches("after the reset")
            .count()
    };
    wait_for("the agent to have it", 60, || (got() > 0).then_some(()));
    let answer = wait_for("the answer", 60, || {
        let inbox = machine.ok(&["inbox", "--all", "--json"]);
        let mut messages =
            inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        messages.find(|message| message["kind"] == "chat" && message["replyTo"] == again)
    });
    assert!(
        answer["body"].as_str().is_some_and(|body| body.contains("after the reset")),
        "{answer}"
    );
    assert_eq!((got(), machine.answered().get(&again)), (1, Some(&1)));
}

/// A peer whose machine is gone says nothing and closes nothing: it is let go after 45 s, and its
/// agent is offline then.
#[test]
fn a_peer_that_falls_silent_is_let_go() {
    let machine = Machine::new("silent");
    let _hub = machine.hub();
    let config = machine.config();
    let address =
        config["relayUrl"].as_str().expect("url").trim_start_matches("http://").to_string();
    let request = tungstenite::http::Request::builder()
        .uri(format!("ws://{address}/bus"))
        .header("Host", &address)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
        .header("X-Agent-Relay-Token", config["token"].as_str().expect("token"))
        .body(())
        .expect("a request");
    let socket = std::net::TcpStream::connect(&address).expect("connects");
    let (mut bus, _) = tungstenite::client(request, socket).expect("a WebSocket");
    let payload = serde_json::json!({"role": "provider", "agentId": "ghost", "componentId": "ghost", "instanceId": "ghost"});
    let frame = serde_json::json!({"type": "register", "id": "r", "payload": payload}).to_string();
    bus.send(tungstenite::Message::text(frame)).expect("sends");
    assert!(bus.read().expect("an answer").to_string().contains("registered"));
    // From here on it neither reads nor answers a ping.
    let card = || -> Value {
        serde_json::from_str(&machine.ok(&["agents", "--json"])).unwrap_or_default()
    };
    assert_eq!(
        (card()["connected"].as_bool(), card()["status"].as_str()),
        (Some(true), Some("idle"))
    );
    wait_for("the hub to let it go", 60, || (card()["connected"] == false).then_some(()));
    wait_for("the agent to be offline", 60, || (card()["status"] == "offline").then_some(()));
    drop(bus);
}
