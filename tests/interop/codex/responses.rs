//! A model server on loopback for the Responses interface: it says what the newest message asks
//! for, and remembers every request.
//!
//! Words in a message: `RUN:<words of a command>;` (a shell command first), `ESC:<...>;` (one that
//! must leave the sandbox), `SLOW` (three seconds of words), `ERR400`.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tiny_http::Request;

use crate::http;

pub struct Responses {
    pub port: u16,
    asked: Arc<Mutex<Vec<Value>>>,
}

fn texts(item: &Value) -> Vec<String> {
    let parts = item["content"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).map(String::from).collect()
}

/// What people say in a request, without what the program puts in front.
fn said(body: &Value) -> Vec<String> {
    let input = body["input"].as_array().into_iter().flatten();
    let own = input.filter(|item| item["role"] == "user").flat_map(texts);
    own.filter(|text| !text.starts_with('<')).collect()
}

impl Responses {
    pub fn start() -> Responses {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = asked.clone();
        let port = http::serve(move |request, body| {
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            if body["input"].is_array() {
                shared.lock().expect("whole").push(body.clone());
                answer(request, &body);
            } else {
                http::respond(request, 404, "text/plain", "nothing here".into());
            }
        });
        Responses { port, asked }
    }

    /// The most often that a text stands in one request: more than once means that the thread holds
    /// it twice.
    pub fn most(&self, text: &str) -> usize {
        let asked = self.asked.lock().expect("whole");
        let count = |body: &Value| said(body).iter().map(|said| said.matches(text).count()).sum();
        asked.iter().map(count).max().unwrap_or(0)
    }

    /// In how many series of requests a text was the newest: a message that begins two turns is in
    /// two.
    pub fn series(&self, text: &str) -> usize {
        let asked = self.asked.lock().expect("whole");
        let mut before = 0;
        let mut series = 0;
        for body in asked.iter() {
            let all = said(body);
            let is_newest = all.last().is_some_and(|newest| newest.contains(text));
            if is_newest && before != all.len() {
                series += 1;
            }
            before = all.len();
        }
        series
    }

    /// Output of tools, as the model got it.
    pub fn outputs(&self) -> String {
        let asked = self.asked.lock().expect("whole");
        let input = asked.last().map(|body| body["input"].clone()).unwrap_or_default();
        let items = input.as_array().cloned().unwrap_or_default();
        let outputs = items.iter().filter(|item| item["type"] == "function_call_output");
        outputs.map(|item| item["output"].to_string()).collect::<Vec<_>>().join("\n")
    }
}

/// The words between a mark and a semicolon.
fn between(text: &str, mark: &str) -> Option<String> {
    Some(text.split_once(mark)?.1.split_once(';')?.0.to_string())
}

fn number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn answer(request: Request, body: &Value) {
    let newest = said(body).pop().unwrap_or_default();
    if newest.contains("ERR400") {
        let error = json!({"error": {"message": "no such thing", "type": "invalid_request_error"}});
        return http::respond(request, 400, "application/json", error.to_string());
    }
    let last = body["input"].as_array().and_then(|input| input.last()).cloned().unwrap_or_default();
    let has_run = last["type"] == "function_call_output";
    let (run, escape) = (between(&newest, "RUN:"), between(&newest, "ESC:"));
    let mut stream = Stream::of(request);
    let id = number();
    let _ = stream.send("response.created", json!({"response": {"id": format!("resp_{id}")}}));
    let call = run.map(|line| json!({"cmd": line})).or_else(|| {
        let why = "May I?";
        let line = escape?;
        Some(json!({
            "cmd": line, "sandbox_permissions": "require_escalated", "justification": why
        }))
    });
    if let Some(arguments) = call.filter(|_| !has_run) {
        let item = json!({
            "type": "function_call", "id": format!("fc_{id}"), "call_id": format!("call_{id}"),
            "name": "exec_command", "arguments": arguments.to_string()
        });
        let _ = stream.send("response.output_item.done", json!({"output_index": 0, "item": item}));
    } else {
        let words = newest.split_whitespace().last().unwrap_or_default();
        if !say(&mut stream, id, &format!("said {words}"), newest.contains("SLOW")) {
            return;
        }
    }
    let usage = json!({
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 120
    });
    let response = json!({"id": format!("resp_{id}"), "usage": usage});
    let _ = stream.send("response.completed", json!({"response": response}));
    let _ = stream.end();
}

/// A message, word by word. False: nobody listens any more.
fn say(stream: &mut Stream, id: u64, words: &str, slow: bool) -> bool {
    let id = format!("msg_{id}");
    let item = |content: Value| json!({"type": "message", "id": id, "role": "assistant", "content": content});
    let begun = json!({"output_index": 0, "item": item(json!([]))});
    let _ = stream.send("response.output_item.added", begun);
    for n in 0..if slow { 30 } else { 1 } {
        let delta = json!({
            "item_id": id, "output_index": 0, "content_index": 0, "delta": format!("{n} ")
        });
        if stream.send("response.output_text.delta", delta).is_err() {
            return false;
        }
        if slow {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let done = item(json!([{"type": "output_text", "text": words}]));
    let done = json!({"output_index": 0, "item": done});
    stream.send("response.output_item.done", done).is_ok()
}

/// An answer whose events go out as they come.
struct Stream(Box<dyn Write + Send>);

impl Stream {
    fn of(request: Request) -> Stream {
        let mut writer = request.into_writer();
        let kind = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked";
        let _ = writer.write_all(format!("HTTP/1.1 200 OK\r\n{kind}\r\n\r\n").as_bytes());
        Stream(writer)
    }

    fn send(&mut self, kind: &str, mut data: Value) -> std::io::Result<()> {
        data["type"] = json!(kind);
        let event = format!("event: {kind}\ndata: {data}\n\n");
        write!(self.0, "{:x}\r\n{event}\r\n", event.len())?;
        self.0.flush()
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")?;
        self.0.flush()
    }
}
