//! A model server on loopback for the Responses interface: it says what the newest message asks
//! for, and remembers every request.
//!
//! Words in a message: `CALL <tool> {...}` (a tool of the relay first), `RUN:<words of a command>;`
//! (a shell command first), `ESC:<...>;` (one that must leave the sandbox), `TOOL` (the same, of
//! its own choice), `THINK` (a thought before that), `AGENT` (a subagent first, whose answer is
//! held back until it is released), `SLOW` (three seconds of words), `HANG` (a word, then nothing,
//! once for each message), `MUTE` (nothing at all, once), `ERR400`.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tiny_http::Request;

use crate::http;
use crate::model::relay_tool;

/// What a subagent is told to do.
const SUBTASK: &str = "SUBTASK look around";

/// One request, and when it was under way.
struct Asked {
    body: Value,
    /// What it brought besides: the login.
    login: String,
    began: Instant,
    ended: Option<Instant>,
}

#[derive(Default)]
struct Memory {
    asked: Vec<Asked>,
    hung: BTreeSet<String>,
    /// Kept so that nobody is told that nothing will come.
    mute: Vec<Request>,
    hanging: Vec<Stream>,
    /// Answers of subagents that are held back.
    held: Vec<Request>,
    is_released: bool,
}

pub struct Responses {
    pub port: u16,
    memory: Arc<Mutex<Memory>>,
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
        let memory: Arc<Mutex<Memory>> = Arc::default();
        let shared = memory.clone();
        let port = http::serve(move |request, body| {
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            if !body["input"].is_array() {
                return http::respond(request, 404, "text/plain", "nothing here".into());
            }
            let header = |name: &'static str| {
                let found = request.headers().iter().find(|header| header.field.equiv(name));
                found.map(|header| header.value.to_string()).unwrap_or_default()
            };
            let (login, began) = (header("Authorization"), Instant::now());
            let number = {
                let asked = &mut shared.lock().expect("whole").asked;
                asked.push(Asked { body: body.clone(), login, began, ended: None });
                asked.len() - 1
            };
            if answer(request, &body, &shared) {
                shared.lock().expect("whole").asked[number].ended = Some(Instant::now());
            }
        });
        Responses { port, memory }
    }

    /// Lets subagents answer.
    pub fn release(&self) {
        let mut memory = self.memory.lock().expect("whole");
        memory.is_released = true;
        for request in std::mem::take(&mut memory.held) {
            std::thread::spawn(move || says(request, number(), "found it", false));
        }
    }

    /// Whether a request was under way at that time.
    pub fn works_at(&self, at: Instant) -> bool {
        let memory = self.memory.lock().expect("whole");
        let has_ended = |asked: &Asked| asked.ended.is_some_and(|ended| ended < at);
        memory.asked.iter().any(|asked| asked.began <= at && !has_ended(asked))
    }

    /// The login that the newest request brought.
    pub fn login(&self) -> String {
        let memory = self.memory.lock().expect("whole");
        memory.asked.last().map(|asked| asked.login.clone()).unwrap_or_default()
    }

    /// The newest texts of the newest requests, for whoever reads why a test failed.
    pub fn newest(&self, count: usize) -> Vec<String> {
        let memory = self.memory.lock().expect("whole");
        let newest = memory.asked.iter().rev().take(count);
        newest.filter_map(|asked| said(&asked.body).pop()).collect()
    }

    /// Whether a text was the newest of some request.
    pub fn is_asked(&self, text: &str) -> bool {
        let memory = self.memory.lock().expect("whole");
        memory
            .asked
            .iter()
            .any(|asked| said(&asked.body).last().is_some_and(|newest| newest.contains(text)))
    }

    /// The most often that a text stands in one request: more than once means that the thread holds
    /// it twice.
    pub fn most(&self, text: &str) -> usize {
        let asked = &self.memory.lock().expect("whole").asked;
        let times =
            |asked: &Asked| said(&asked.body).iter().map(|said| said.matches(text).count()).sum();
        asked.iter().map(times).max().unwrap_or(0)
    }

    /// In how many series of requests a text was the newest: a message that begins two turns is in
    /// two.
    pub fn series(&self, text: &str) -> usize {
        let asked = &self.memory.lock().expect("whole").asked;
        let mut before = 0;
        let mut series = 0;
        for asked in asked {
            let all = said(&asked.body);
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
        let asked = &self.memory.lock().expect("whole").asked;
        let input = asked.last().map(|asked| asked.body["input"].clone()).unwrap_or_default();
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

/// Answers. False: the answer has no end yet.
fn answer(request: Request, body: &Value, memory: &Mutex<Memory>) -> bool {
    let newest = said(body).pop().unwrap_or_default();
    if newest.contains("ERR400") {
        let error = json!({"error": {"message": "no such thing", "type": "invalid_request_error"}});
        http::respond(request, 400, "application/json", error.to_string());
        return true;
    }
    let id = number();
    let mut memory = memory.lock().expect("whole");
    if newest.contains(SUBTASK) && !memory.is_released {
        memory.held.push(request);
        return false;
    }
    let mut once = |word: &str| newest.contains(word) && memory.hung.insert(newest.clone());
    let (hangs, is_mute) = (once("HANG"), once("MUTE"));
    if is_mute {
        memory.mute.push(request);
        return false;
    }
    if hangs {
        let mut stream = Stream::of(request);
        let _ = stream.begin(id);
        memory.hanging.push(stream);
        return false;
    }
    drop(memory);
    let last = body["input"].as_array().and_then(|input| input.last()).cloned().unwrap_or_default();
    let call = (last["type"] != "function_call_output").then(|| tool_call(body, &newest)).flatten();
    match call {
        Some((of, arguments)) => calls(request, id, of, &arguments, newest.contains("THINK")),
        None => {
            let words = format!("Heard: {}", newest.lines().last().unwrap_or_default());
            says(request, id, &words, newest.contains("SLOW"));
        }
    }
    true
}

/// The tool that a text asks for: its name with its family, and its arguments.
fn tool_call(body: &Value, newest: &str) -> Option<(Value, Value)> {
    let shell = json!({"name": "exec_command"});
    if let Some((name, arguments)) = relay_tool(newest) {
        return Some((json!({"name": name, "namespace": "mcp__relay"}), arguments));
    }
    if let Some(line) = between(newest, "RUN:") {
        return Some((shell, json!({"cmd": line})));
    }
    let outside = newest.contains("TOOL").then(|| "true".to_string());
    if let Some(line) = between(newest, "ESC:").or(outside) {
        let (sandbox, why) = ("require_escalated", "May I?");
        let wanted = json!({"cmd": line, "sandbox_permissions": sandbox, "justification": why});
        return Some((shell, wanted));
    }
    newest.contains("AGENT").then(|| (spawner(body), json!({"message": SUBTASK})))
}

/// The tool that starts a subagent, as this version offers it.
fn spawner(body: &Value) -> Value {
    let families = body["tools"].as_array().into_iter().flatten();
    for family in families {
        let tools = family["tools"].as_array().into_iter().flatten();
        if tools.into_iter().any(|tool| tool["name"] == "spawn_agent") {
            return json!({"name": "spawn_agent", "namespace": family["name"]});
        }
    }
    json!({"name": "spawn_agent"})
}

/// An answer that calls a tool, after a thought or without.
fn calls(request: Request, id: u64, of: Value, arguments: &Value, thinks: bool) {
    let mut stream = Stream::of(request);
    let created = json!({"response": {"id": format!("resp_{id}")}});
    let _ = stream.send("response.created", created);
    if thinks {
        let thought = json!([{"type": "summary_text", "text": "thought of a tool"}]);
        let item = json!({"type": "reasoning", "id": format!("rs_{id}"), "summary": thought});
        let _ = stream.send("response.output_item.done", json!({"output_index": 0, "item": item}));
    }
    let mut item = json!({
        "type": "function_call", "id": format!("fc_{id}"), "call_id": format!("call_{id}"),
        "arguments": arguments.to_string()
    });
    for (name, value) in of.as_object().into_iter().flatten() {
        item[name] = value.clone();
    }
    let _ = stream.send("response.output_item.done", json!({"output_index": 0, "item": item}));
    let _ = stream.complete(id);
}

/// An answer of words, at once or for three seconds.
fn says(request: Request, id: u64, words: &str, slow: bool) {
    let mut stream = Stream::of(request);
    let id_of = format!("msg_{id}");
    let item = |content: Value| json!({"type": "message", "id": id_of, "role": "assistant", "content": content});
    let mut told = stream.begin(id).is_ok();
    for n in 0..if slow { 30 } else { 0 } {
        std::thread::sleep(Duration::from_millis(100));
        told = told && stream.word(id, &format!("{n} ")).is_ok();
    }
    let done = item(json!([{"type": "output_text", "text": words}]));
    if told
        && stream
            .send("response.output_item.done", json!({"output_index": 0, "item": done}))
            .is_ok()
    {
        let _ = stream.complete(id);
    }
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

    /// A message begins, with a first word.
    fn begin(&mut self, id: u64) -> std::io::Result<()> {
        self.send("response.created", json!({"response": {"id": format!("resp_{id}")}}))?;
        let item = json!({
            "type": "message", "id": format!("msg_{id}"), "role": "assistant", "content": []
        });
        self.send("response.output_item.added", json!({"output_index": 0, "item": item}))?;
        self.word(id, "well ")
    }

    fn word(&mut self, id: u64, word: &str) -> std::io::Result<()> {
        let place = format!("msg_{id}");
        let delta = json!({
            "item_id": place, "output_index": 0, "content_index": 0, "delta": word
        });
        self.send("response.output_text.delta", delta)
    }

    fn complete(&mut self, id: u64) -> std::io::Result<()> {
        let usage = json!({
            "input_tokens": 100, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 120
        });
        let response = json!({"id": format!("resp_{id}"), "usage": usage});
        self.send("response.completed", json!({"response": response}))?;
        self.end()
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")?;
        self.0.flush()
    }
}
