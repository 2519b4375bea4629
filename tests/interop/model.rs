//! A model server on loopback that says what the newest message asks for, and remembers every
//! request.
//!
//! Words in a message: `TOOL` (call a shell command first), `NAP` (one that takes three seconds),
//! `WHOAMI` (one that asks who the session is), `LATE` (one that waits for the file `go`, then
//! sends something), `ASK` (ask a question first), `AGENT` (start a subagent first), `HANG` (say a
//! word, then nothing, once for each message), `MUTE` (nothing at all, once), `SLOW` (three seconds
//! of words), `ERR400`, `ERR529` (twice, then well).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// One request of a main turn.
#[derive(Clone)]
pub struct Asked {
    pub body: Value,
    /// Newest text of the person.
    pub newest: String,
}

#[derive(Default)]
struct Memory {
    asked: Vec<Asked>,
    hung: BTreeSet<String>,
    open: Vec<TcpStream>,
    tools: u64,
}

pub struct Model {
    pub port: u16,
    memory: Arc<Mutex<Memory>>,
}

impl Model {
    pub fn start() -> Model {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let memory = Arc::new(Mutex::new(Memory::default()));
        let shared = memory.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(socket, &shared));
            }
        });
        Model { port, memory }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.memory.lock().expect("whole").asked.clone()
    }

    /// The most often that a text stands in one request: more than once means that the conversation
    /// holds it twice. Counts over all requests, since a compaction takes texts away.
    pub fn most(&self, text: &str) -> usize {
        let asked = self.asked();
        asked
            .iter()
            .map(|asked| {
                said_by_people(&asked.body).iter().map(|said| said.matches(text).count()).sum()
            })
            .max()
            .unwrap_or(0)
    }

    /// All texts of all requests that hold a text, as the model saw them.
    pub fn texts_with(&self, text: &str) -> Vec<String> {
        let asked = self.asked();
        let all = asked.iter().flat_map(|asked| said_by_people(&asked.body));
        all.filter(|said| said.contains(text)).collect()
    }

    /// How often a text stands in what people said, as the model saw it last (history is repeated
    /// in every request).
    pub fn count(&self, text: &str) -> usize {
        let asked = self.asked();
        let Some(last) = asked.last() else { return 0 };
        said_by_people(&last.body).iter().filter(|said| said.contains(text)).count()
    }
}

/// Texts of people in a request, oldest first.
fn said_by_people(body: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let late = |message: &&Value| {
        // What joins a running turn comes as a notice of the program.
        let text = message["content"].to_string();
        message["role"] == "system"
            && (text.contains("new message while you were working")
                || text.contains("sent a message while"))
    };
    let by_people = |message: &&Value| message["role"] == "user" || late(message);
    for message in body["messages"].as_array().into_iter().flatten().filter(by_people) {
        match &message["content"] {
            Value::String(text) => all.push(text.clone()),
            Value::Array(blocks) => all.extend(
                blocks.iter().filter_map(|block| block["text"].as_str()).map(str::to_string),
            ),
            _ => {}
        }
    }
    all.retain(|text| {
        let notice = text.starts_with("<system-reminder>") && !text.contains("[relay message");
        !notice
            && !text.starts_with("[Request interrupted")
            && !text.starts_with("<local-command")
            && !text.starts_with("<command-name>")
    });
    all
}

/// Whether the request brings the result of a tool.
fn has_tool_result(body: &Value) -> bool {
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let last = messages.iter().rev().find(|message| message["role"] != "system");
    let Some(last) = last else { return false };
    // A refused call may lead the next message of a person, and a reminder may follow a result.
    let blocks = last["content"].as_array().cloned().unwrap_or_default();
    let newest = blocks.iter().rev().find(|block| {
        !block["text"].as_str().is_some_and(|text| text.starts_with("<system-reminder>"))
    });
    last["role"] == "tool" || newest.is_some_and(|block| block["type"] == "tool_result")
}

fn serve(mut socket: TcpStream, memory: &Mutex<Memory>) {
    let mut bytes = Vec::new();
    let mut piece = [0u8; 65536];
    let (head, body) = loop {
        let Ok(size @ 1..) = socket.read(&mut piece) else { return };
        bytes.extend_from_slice(&piece[..size]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|n| n.trim().parse().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            break (
                head,
                serde_json::from_slice::<Value>(&bytes[end + 4..]).unwrap_or(Value::Null),
            );
        }
    };
    let messages_api = head.contains("/v1/messages");
    let has_tools = body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    if !has_tools {
        // Titles and the like.
        let text = if messages_api { r#"{"title": "A title"}"# } else { "A title" };
        return stream(&mut socket, &words(messages_api, text));
    }
    let newest = said_by_people(&body).pop().unwrap_or_default();
    let result = has_tool_result(&body);
    let (hangs, mute, busy, agent, tool) = {
        let mut memory = memory.lock().expect("whole");
        memory.asked.push(Asked { body, newest: newest.clone() });
        memory.tools += 1;
        let mut once = |word: &str, mark: &str| {
            newest.contains(word) && memory.hung.insert(format!("{mark}{newest}"))
        };
        let (hangs, mute) = (once("HANG", ""), once("MUTE", ""));
        let busy = once("ERR529", "1") || once("ERR529", "2");
        let agent = once("AGENT", "a");
        (hangs, mute, busy, agent, memory.tools)
    };
    if mute {
        memory.lock().expect("whole").open.push(socket);
        return;
    }
    if busy {
        return refuse(
            &mut socket,
            "529 Overloaded",
            &json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        );
    }
    if newest.contains("ERR400") {
        let text = match messages_api {
            true => {
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "the model says no"}})
            }
            false => json!({"error": {"message": "the model says no", "type": "x"}}),
        };
        return refuse(&mut socket, "400 Bad Request", &text);
    }
    if newest.contains("SLOW") && !result {
        let line = format!("Heard: {} ", newest.lines().last().unwrap_or_default());
        let whole = words(messages_api, &line);
        let (head, tail) = whole.split_at(whole.len() - if messages_api { 3 } else { 2 });
        stream_open(&mut socket, head);
        for word in 0..30 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let piece = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": format!("w{word} ")}});
            if socket.write_all(event(&piece).as_bytes()).is_err() {
                return;
            }
        }
        for event in tail {
            let _ = socket.write_all(event.as_bytes());
        }
        return;
    }
    if hangs {
        let whole = words(messages_api, "half a word ");
        let parts = whole.len() - if messages_api { 3 } else { 2 };
        stream_open(&mut socket, &whole[..parts]);
        memory.lock().expect("whole").open.push(socket);
        return;
    }
    let questions = json!({"questions": [{"question": "Which colour?", "header": "Colour", "multiSelect": false,
        "options": [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}]}]});
    let whoami = json!({"command": "\"$AGENT_RELAY_BIN\" whoami --json >>who.txt", "description": "asks who it is"});
    let wait = "touch waiting; while [ ! -e go ]; do sleep 0.05; done";
    let late = json!({"command": format!("{wait}; \"$AGENT_RELAY_BIN\" send user late-words >late.txt 2>&1"), "description": "tells later"});
    let nap = json!({"command": "touch napping; sleep 3", "description": "sleeps"});
    let task = json!({"description": "Look around", "subagent_type": "general-kind_of_call", "prompt": "SUBTASK SLOW look around"});
    // A Stop hook that says what is owed: it is given.
    let owed = newest
        .split("You owe an answer to relay message #")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let reply = json!({"command": format!("\"$AGENT_RELAY_BIN\" reply {} my-own-answer", owed.unwrap_or(0)), "description": "replies"});
    match result {
        false if owed.is_some() => stream(&mut socket, &call_of(tool, "Bash", &reply)),
        false if newest.contains("TOOL") => stream(&mut socket, &call(messages_api, tool)),
        false if newest.contains("WRITE ") => {
            let path = newest
                .split("WRITE ")
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next())
                .unwrap_or_default();
            stream(
                &mut socket,
                &call_of(
                    tool,
                    "Write",
                    &json!({"file_path": path, "content": newest.lines().last()}),
                ),
            )
        }
        false if newest.contains("MAKE") => {
            stream(&mut socket, &call_of(tool, "Bash", &json!({"command": "make -s nothing"})))
        }
        false if newest.contains("WHOAMI") => stream(&mut socket, &call_of(tool, "Bash", &whoami)),
        false if newest.contains("LATE") => stream(&mut socket, &call_of(tool, "Bash", &late)),
        false if newest.contains("NAP") => stream(&mut socket, &call_of(tool, "Bash", &nap)),
        false if newest.contains("ASK") => {
            stream(&mut socket, &call_of(tool, "AskUserQuestion", &questions))
        }
        false if agent => stream(&mut socket, &call_of(tool, "Agent", &task)),
        _ => stream(
            &mut socket,
            &words(messages_api, &format!("Heard: {}", newest.lines().last().unwrap_or_default())),
        ),
    }
}

fn stream_open(socket: &mut TcpStream, events: &[String]) {
    let _ = socket.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
    );
    for event in events {
        let _ = socket.write_all(event.as_bytes());
    }
    let _ = socket.flush();
}

fn stream(socket: &mut TcpStream, events: &[String]) {
    stream_open(socket, events);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut rest = [0u8; 1024];
    while let Ok(1..) = socket.read(&mut rest) {}
}

fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
}

fn chunk(delta: Value, finish: Option<&str>) -> String {
    let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    format!("data: {chunk}\n\n")
}

/// Every answer has an id of its own: answers with the same one are taken for parts of one answer.
fn begin() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let id = format!("msg_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    event(
        &json!({"type": "message_start", "message": {"id": id, "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1}}}),
    )
}

fn end(reason: &str) -> [String; 3] {
    [
        event(&json!({"type": "content_block_stop", "index": 0})),
        event(
            &json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 5}}),
        ),
        event(&json!({"type": "message_stop"})),
    ]
}

/// An answer of text, as events of either API; the last ones end it.
fn words(messages_api: bool, text: &str) -> Vec<String> {
    if !messages_api {
        return vec![
            chunk(json!({"role": "assistant", "content": text}), None),
            chunk(json!({}), Some("stop")),
            "data: [DONE]\n\n".into(),
        ];
    }
    let mut events = vec![
        begin(),
        event(
            &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        ),
        event(
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        ),
    ];
    events.extend(end("end_turn"));
    events
}

fn refuse(socket: &mut TcpStream, status: &str, body: &Value) {
    let text = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    let _ = socket.write_all((head + &text).as_bytes());
}

/// A call of any tool, in the Messages API.
fn call_of(number: u64, name: &str, input: &Value) -> Vec<String> {
    let mut events = vec![
        begin(),
        event(&json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "tool_use", "id": format!("toolu_{number}"), "name": name, "input": {}}})),
        event(
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": input.to_string()}}),
        ),
    ];
    events.extend(end("tool_use"));
    events
}

/// A call of the shell.
fn call(messages_api: bool, number: u64) -> Vec<String> {
    let input = json!({"command": "echo hi > made.txt", "description": "makes a file"}).to_string();
    if !messages_api {
        let call = json!([{"index": 0, "id": format!("call_{number}"), "type": "function", "function": {"name": "bash", "arguments": input}}]);
        return vec![
            chunk(json!({"role": "assistant", "tool_calls": call}), None),
            chunk(json!({}), Some("tool_calls")),
            "data: [DONE]\n\n".into(),
        ];
    }
    let mut events = vec![
        begin(),
        event(&json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "tool_use", "id": format!("toolu_{number}"), "name": "Bash", "input": {}}})),
        event(
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": input}}),
        ),
    ];
    events.extend(end("tool_use"));
    events
}
