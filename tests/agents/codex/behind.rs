//! What goes on behind the end of a turn, and what no proper server says.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Server;

impl Server {
    /// It ends at once, and nothing of its threads is on disk; the next one does not.
    pub fn vanish(&self) {
        let threads = self.threads.lock().expect("a lock");
        if threads.is_first_time("vanished") {
            threads.forget_all();
            std::process::exit(1);
        }
    }

    /// A subagent that works on behind the turn.
    pub fn child(self: &Arc<Server>, thread: &str, turn: &str, ms: u64) {
        let child = format!("child-{turn}");
        let item = json!({
            "type": "collabAgentToolCall", "id": format!("s-{turn}"), "tool": "spawnAgent",
            "status": "completed", "prompt": "look around", "receiverThreadIds": [child]
        });
        self.item("started", thread, turn, &item);
        self.item("completed", thread, turn, &item);
        let server = self.clone();
        std::thread::spawn(move || {
            server.begin(&child, "child-turn");
            let said = json!({"type": "agentMessage", "id": "child-said", "text": "found"});
            server.item("completed", &child, "child-turn", &said);
            std::thread::sleep(Duration::from_millis(ms));
            let turn = json!({"id": "child-turn", "status": "completed", "items": []});
            server.notify("turn/completed", json!({"threadId": child, "turn": turn}));
        });
    }

    /// A command that runs on behind the turn.
    pub fn back(self: &Arc<Server>, thread: &str, turn: &str, ms: u64) {
        let command = |status: &str| {
            json!({
                "type": "commandExecution", "id": format!("b-{turn}"), "command": "serve",
                "processId": "1", "status": status
            })
        };
        self.item("started", thread, turn, &command("inProgress"));
        let (server, thread, turn) = (self.clone(), thread.to_string(), turn.to_string());
        let done = command("completed");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(ms));
            server.item("completed", &thread, &turn, &done);
        });
    }

    /// A turn is over, and still its pieces come, and the word that the thread is at work.
    pub fn late(self: &Arc<Server>, thread: &str, turn: &str) {
        let (server, thread, turn) = (self.clone(), thread.to_string(), turn.to_string());
        std::thread::spawn(move || {
            while server.threads.lock().expect("a lock").running.is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(50));
            let status = json!({"type": "active", "activeFlags": []});
            server.notify("thread/status/changed", json!({"threadId": thread, "status": status}));
            let begun = json!({"id": turn, "status": "inProgress", "items": []});
            server.notify("turn/started", json!({"threadId": thread, "turn": begun}));
            let said = json!({"type": "agentMessage", "id": "late", "text": "late words"});
            server.item("started", &thread, &turn, &said);
            server.item("completed", &thread, &turn, &said);
            let threads = server.threads.lock().expect("a lock");
            (0..9).any(|n| threads.is_first_time(&format!("late{n}")));
        });
    }

    /// A lone surrogate where a text stands, a frame that is cut off, and one that is no object.
    pub fn half(&self, thread: &str, turn: &str) {
        let mut item = json!({"type": "reasoning", "id": "r", "summary": ["SURROGATE"]});
        let frame = |item: &Value| {
            let params = json!({"threadId": thread, "turnId": turn, "item": item});
            json!({"method": "item/completed", "params": params}).to_string()
        };
        self.clients.tell_text(&frame(&item).replace("SURROGATE", "half \\ud83d a sign"));
        item["id"] = json!("cut");
        let whole = frame(&item);
        self.clients.tell_text(&whole[..whole.len() - 9]);
        self.clients.tell_text("[1, 2");
    }
}
