//! A second client at the same server, as a person's window is one.

use std::os::unix::net::UnixStream;

use tungstenite::{Message, WebSocket};

use super::*;
use crate::support::ran;

/// A client that asks and answers what it is told to.
struct Second {
    socket: WebSocket<UnixStream>,
    next: u64,
}

impl Second {
    fn of(codex: &Codex) -> Second {
        let path = codex.machine.home.join("agents/a/run/codex.sock");
        let stream = UnixStream::connect(path).expect("the socket");
        let (socket, _) = tungstenite::client("ws://localhost/", stream).expect("the upgrade");
        Second { socket, next: 0 }
    }

    fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).expect("it is sent");
    }

    fn call(&mut self, method: &str, params: Value) {
        self.next += 1;
        self.send(json!({"id": self.next, "method": method, "params": params}));
    }

    /// Reads until a frame of that method comes.
    fn until(&mut self, method: &str) -> Value {
        loop {
            let message = self.socket.read().expect("a frame");
            let frame: Value =
                serde_json::from_str(message.to_text().unwrap_or_default()).unwrap_or_default();
            if frame["method"] == method {
                return frame;
            }
        }
    }
}

#[test]
fn turns_of_another_client_are_shown_and_answered_to_nobody() {
    let codex = Codex::start("codex-second");
    let mut second = Second::of(&codex);
    let thread = codex.machine.status("a")["providerProcess"]["session"].clone();
    let input = json!([{"type": "text", "text": "sleep:800 typed"}]);
    second.call("turn/start", json!({"threadId": thread, "input": input}));
    second.until("turn/started");
    codex.machine.wait_status("a", "busy");
    // It waits for the turn of the other, instead of joining it.
    let id = codex.machine.send("a", "mine");
    assert_eq!(codex.answered(id), "done mine");
    let turns: Vec<String> = codex
        .said()
        .iter()
        .map(|said| said["content"][0]["text"].as_str().unwrap_or_default().to_string())
        .collect();
    assert_eq!(turns.len(), 2, "{turns:?}");
    assert_eq!(turns[0], "sleep:800 typed");
    let mirror = codex.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
    assert!(mirror.contains("sleep:800 typed") && mirror.contains("done typed"), "{mirror}");
    let chat = codex.machine.ok(&["inbox", "--all", "--json"]);
    assert!(!chat.contains("done typed"), "{chat}");
    ran("codex-second");
}

#[test]
fn the_first_answer_to_a_question_counts() {
    let codex = Codex::start("codex-race");
    let mut second = Second::of(&codex);
    for n in 0..5 {
        let id = codex.machine.send("a", &format!("ask:touch n{n}"));
        let asked = second.until("item/commandExecution/requestApproval");
        let approval = codex.approval();
        let decline = json!({"id": asked["id"], "result": {"decision": "decline"}});
        if n % 2 == 0 {
            second.send(decline);
            wait_for("the question to be gone", 30, || codex.approvals().is_empty().then_some(()));
            let late = codex.machine.fails(1, &["approvals", "approve", &approval]);
            assert!(late.contains("approv"), "{late}");
        } else {
            codex.machine.ok(&["approvals", "approve", &approval]);
            second.until("serverRequest/resolved");
            second.send(decline);
        }
        assert_eq!(codex.answered(id), format!("done n{n}"));
    }
}
