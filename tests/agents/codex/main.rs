//! An app server that behaves like the real one and misbehaves on demand, for scenarios.
//! `codex app-server --listen unix://PATH ...`, or `ws://127.0.0.1:0` with a token: threads stand in the folder FAKE_STATE and outlive
//! the process; `said.jsonl` there holds every message that reached the model, once for each turn.
//!
//! What a message says is what its turn does: `sleep:MS`, `ask:COMMAND`, `flood:MIB`, `fail`,
//! `drop` (all connections break), `vanish` (the process ends at once and its threads are gone from
//! disk, once), `child:MS` and `back:MS` (a subagent and a command that outlive the turn), `late`
//! (what belongs to a turn comes behind its end), `half` (frames that are no proper JSON).
//! FAKE_REFUSES is what the first attempt to load a thread is refused with; with FAKE_NO_UNIX it is
//! a version without unix sockets, with FAKE_UNREADY=N its port is not ready when asked N times.

mod behind;
mod clients;
mod listen;
mod threads;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use clients::Clients;
use threads::Threads;

/// What all clients share.
pub struct Server {
    threads: Mutex<Threads>,
    clients: Clients,
}

fn text<'a>(of: &'a Value, at: &str) -> &'a str {
    of.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == "resume") {
        return listen::window(&words);
    }
    let state = std::env::var("FAKE_STATE").expect("FAKE_STATE");
    std::fs::create_dir_all(&state).expect("the folder");
    let server = Arc::new(Server {
        threads: Mutex::new(Threads::load(state.clone().into())),
        clients: Clients::default(),
    });
    listen::serve(&words, state.as_ref(), move |socket| {
        server.clients.serve(socket, |id, frame| server.on(id, frame));
    });
}

impl Server {
    fn notify(&self, method: &str, params: Value) {
        self.clients.tell(&json!({"method": method, "params": params, "emittedAtMs": 0}));
    }

    /// A frame of a client.
    fn on(self: &Arc<Server>, client: usize, frame: Value) {
        let method = text(&frame, "/method");
        let params = frame["params"].clone();
        if method.is_empty() {
            if self.clients.decide(&frame["id"], &frame) {
                let thread = self.threads.lock().expect("a lock").asking.clone();
                let resolved = json!({"threadId": thread, "requestId": frame["id"]});
                self.notify("serverRequest/resolved", resolved);
            }
            return;
        }
        if frame.get("id").is_none() {
            return;
        }
        let reply = match self.call(method, &params) {
            Ok(result) => json!({"id": frame["id"], "result": result}),
            Err(why) => json!({"id": frame["id"], "error": {"code": -32600, "message": why}}),
        };
        self.clients.say(client, &reply);
        match method {
            "turn/start" if reply["error"].is_null() => self.run(&params, &reply),
            "thread/compact/start" => self.compact(&params),
            "thread/resume" => self.clients.ask_again(client),
            _ => {}
        }
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, String> {
        let mut threads = self.threads.lock().expect("a lock");
        let thread = text(params, "/threadId").to_string();
        match method {
            "initialize" => Ok(json!({"userAgent": "runner/0.171.0 (fake)"})),
            "account/read" => Ok(json!({"account": null, "requiresOpenaiAuth": false})),
            "thread/start" => Ok(json!({"thread": {"id": threads.begin()}, "model": "fake"})),
            "thread/resume" => {
                if let Ok(why) = std::env::var("FAKE_REFUSES")
                    && threads.is_first_time("refused")
                {
                    return Err(why);
                }
                threads.resume(&thread)?;
                Ok(json!({"thread": {"id": thread}, "model": "fake"}))
            }
            "thread/name/set" => {
                threads.keep(&thread);
                Ok(json!({}))
            }
            "thread/turns/list" => threads.list(&thread, params["limit"].as_u64().unwrap_or(20)),
            "turn/start" => threads.start(&thread, params),
            "turn/steer" => threads.steer(&thread, params),
            "turn/interrupt" => threads.interrupt(&thread),
            "thread/compact/start" if threads.running.is_some() => Err("a turn runs".into()),
            "thread/compact/start" | "thread/unsubscribe" => Ok(json!({})),
            _ => Err(format!("Invalid request: unknown variant `{method}`")),
        }
    }

    fn item(&self, kind: &str, thread: &str, turn: &str, item: &Value) {
        let params = json!({"threadId": thread, "turnId": turn, "item": item});
        self.notify(&format!("item/{kind}"), params);
    }

    fn begin(&self, thread: &str, turn: &str) {
        let status = json!({"threadId": thread, "status": {"type": "active", "activeFlags": []}});
        self.notify("thread/status/changed", status);
        let turn = json!({"id": turn, "status": "inProgress", "items": []});
        self.notify("turn/started", json!({"threadId": thread, "turn": turn}));
    }

    fn end(&self, thread: &str, turn: &str, status: &str) {
        let error = (status == "failed").then(|| json!({"message": "it failed as it was told"}));
        self.threads.lock().expect("a lock").end(thread, turn, status, error.as_ref());
        let idle = json!({"threadId": thread, "status": {"type": "idle"}});
        self.notify("thread/status/changed", idle);
        let turn = json!({"id": turn, "status": status, "items": [], "error": error});
        self.notify("turn/completed", json!({"threadId": thread, "turn": turn}));
    }

    /// A text of the user goes into the turn, and to the model.
    fn say(&self, thread: &str, turn: &str, said: &Value) {
        let item = json!({
            "type": "userMessage", "id": format!("u-{}", text(said, "/clientUserMessageId")),
            "clientId": said["clientUserMessageId"], "content": said["input"]
        });
        self.threads.lock().expect("a lock").note(thread, turn, &item, true);
        self.item("started", thread, turn, &item);
        self.item("completed", thread, turn, &item);
    }

    /// A turn, in a thread of its own.
    fn run(self: &Arc<Server>, params: &Value, reply: &Value) {
        let (thread, turn) =
            (text(params, "/threadId").to_string(), text(reply, "/result/turn/id").to_string());
        if !self.threads.lock().expect("a lock").is_first(&turn) {
            return; // it joined a turn that runs
        }
        let (server, params) = (self.clone(), params.clone());
        std::thread::spawn(move || {
            server.begin(&thread, &turn);
            let status = server.work(&thread, &turn, params);
            server.end(&thread, &turn, status);
        });
    }

    /// Carries out what the texts of a turn say.
    fn work(self: &Arc<Server>, thread: &str, turn: &str, first: Value) -> &'static str {
        let mut said = Some(first);
        while let Some(params) = said {
            self.say(thread, turn, &params);
            let words = text(&params, "/input/0/text").to_string();
            for word in words.split_whitespace() {
                let (verb, value) = word.split_once(':').unwrap_or((word, ""));
                match verb {
                    "sleep" => {
                        for _ in 0..value.parse::<u64>().unwrap_or(0).div_ceil(10) {
                            std::thread::sleep(Duration::from_millis(10));
                            if self.threads.lock().expect("a lock").is_interrupted(turn) {
                                return "interrupted";
                            }
                        }
                    }
                    "ask" => self.ask(thread, turn, value),
                    "flood" => self.flood(thread, turn, value.parse().unwrap_or(1)),
                    "drop" => self.clients.drop_all(),
                    "vanish" => self.vanish(),
                    "child" => self.child(thread, turn, value.parse().unwrap_or(1)),
                    "back" => self.back(thread, turn, value.parse().unwrap_or(1)),
                    "late" => self.late(thread, turn),
                    "half" => self.half(thread, turn),
                    "fail" => return "failed",
                    _ => {}
                }
            }
            if self.threads.lock().expect("a lock").is_interrupted(turn) {
                return "interrupted";
            }
            let answer = words.split_whitespace().last().unwrap_or_default();
            let item = json!({
                "type": "agentMessage", "id": format!("m-{turn}-{answer}"), "phase": null,
                "text": format!("done {answer}")
            });
            self.item("started", thread, turn, &item);
            self.threads.lock().expect("a lock").note(thread, turn, &item, false);
            self.item("completed", thread, turn, &item);
            said = self.threads.lock().expect("a lock").next_steer(turn);
        }
        "completed"
    }

    fn ask(&self, thread: &str, turn: &str, command: &str) {
        let item = json!({
            "type": "commandExecution", "id": format!("c-{turn}"), "command": command,
            "processId": null, "status": "inProgress"
        });
        self.item("started", thread, turn, &item);
        self.threads.lock().expect("a lock").asking = thread.to_string();
        let params = json!({
            "threadId": thread, "turnId": turn, "itemId": format!("c-{turn}"), "command": command
        });
        let answer = self.clients.ask("item/commandExecution/requestApproval", &params, || {
            self.threads.lock().expect("a lock").is_interrupted(turn)
        });
        let accepted = answer.is_some_and(|answer| text(&answer, "/result/decision") == "accept");
        let mut item = item;
        item["status"] = json!(if accepted { "completed" } else { "declined" });
        self.item("completed", thread, turn, &item);
    }

    fn flood(&self, thread: &str, turn: &str, mib: u64) {
        let delta = "x".repeat(64 << 10);
        for _ in 0..mib * 16 {
            let params = json!({
                "threadId": thread, "turnId": turn, "itemId": "flood", "delta": delta
            });
            self.notify("item/agentMessage/delta", params);
        }
    }

    /// A compaction is a turn of its own.
    fn compact(self: &Arc<Server>, params: &Value) {
        let thread = text(params, "/threadId").to_string();
        let Some(turn) = self.threads.lock().expect("a lock").compact(&thread) else { return };
        let server = self.clone();
        std::thread::spawn(move || {
            server.begin(&thread, &turn);
            let item = json!({"type": "contextCompaction", "id": format!("x-{turn}")});
            server.item("started", &thread, &turn, &item);
            std::thread::sleep(Duration::from_millis(300));
            server.item("completed", &thread, &turn, &item);
            server.end(&thread, &turn, "completed");
        });
    }
}
