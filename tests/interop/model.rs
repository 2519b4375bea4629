//! A model server on loopback that says what the newest message asks for, and remembers every
//! request.
//!
//! Words in a message: `TOOL` (call a shell command first), `NAP` (one that takes three seconds),
//! `RUN "..."` (this one), `CALL <tool> {...}` (a tool of the relay, SELF being the message's
//! number), `WHOAMI` (one that asks who the session is), `LATE` (one that waits for the file `go`,
//! then sends something), `ASK` (ask a question first), `AGENT` (start a subagent first),
//! `BACKGROUND` (the same; its answer is held back until it is released), `HANG` (say a word, then
//! nothing, once for each message), `MUTE` (nothing at all, once), `SLOW` (three seconds of words),
//! `ERR400`, `ERR529` (twice, then well).

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tiny_http::Request;

use super::http;

/// How a hook that holds a session back begins.
const OWED: &str = "You owe an answer to relay message #";

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
    /// Kept so that nobody is told that nothing will come.
    mute: Vec<Request>,
    hanging: Vec<Stream>,
    /// Subagents whose answer is held back.
    held: Vec<Request>,
    is_released: bool,
    tools: u64,
}

pub struct Model {
    pub port: u16,
    memory: Arc<Mutex<Memory>>,
}

impl Model {
    pub fn start() -> Model {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let shared = memory.clone();
        let port = http::serve(move |request, body| serve(request, &body, &shared));
        Model { port, memory }
    }

    /// Lets subagents answer whose answer was held back.
    pub fn release(&self) {
        let mut memory = self.memory.lock().expect("whole");
        memory.is_released = true;
        for request in std::mem::take(&mut memory.held) {
            http::respond(request, 200, "text/event-stream", words(true, "found it").concat());
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.memory.lock().expect("whole").asked.clone()
    }

    /// Some request's newest text holds this one.
    pub fn has_heard(&self, text: &str) -> bool {
        let memory = self.memory.lock().expect("whole");
        memory.asked.iter().rev().any(|asked| asked.newest.contains(text))
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

/// What a request gets.
enum Answer {
    /// All at once: events of either API.
    Events(Vec<String>),
    /// A status and why.
    Error(u16, Value),
    /// Its beginning; the rest never comes.
    Hang(Vec<String>),
    /// Its beginning, then one word after the other for three seconds, then its end.
    Slow { messages_api: bool, head: Vec<String>, tail: Vec<String> },
    /// Nothing at all.
    Mute,
    /// Something, when it is released.
    Held,
}

fn serve(request: Request, body: &str, memory: &Mutex<Memory>) {
    let messages_api = request.url().starts_with("/v1/messages");
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    match answer(messages_api, body, memory) {
        Answer::Events(events) => {
            http::respond(request, 200, "text/event-stream", events.concat());
        }
        Answer::Error(status, body) => {
            http::respond(request, status, "application/json", body.to_string());
        }
        Answer::Held => memory.lock().expect("whole").held.push(request),
        Answer::Mute => memory.lock().expect("whole").mute.push(request),
        Answer::Hang(events) => {
            let mut stream = Stream::of(request);
            let _ = stream.send(&events.concat());
            memory.lock().expect("whole").hanging.push(stream);
        }
        Answer::Slow { messages_api, head, tail } => {
            let mut stream = Stream::of(request);
            // Whoever asked may give up meanwhile.
            let _ = say_slowly(&mut stream, messages_api, &head, &tail);
        }
    }
}

fn say_slowly(
    stream: &mut Stream,
    messages_api: bool,
    head: &[String],
    tail: &[String],
) -> std::io::Result<()> {
    stream.send(&head.concat())?;
    for word in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        let word = format!("w{word} ");
        let delta = json!({"type": "text_delta", "text": word});
        let piece = json!({"type": "content_block_delta", "index": 0, "delta": delta});
        stream.send(&match messages_api {
            true => event(&piece),
            false => chunk(json!({"content": word}), None),
        })?;
    }
    stream.send(&tail.concat())?;
    stream.end()
}

fn answer(messages_api: bool, body: Value, memory: &Mutex<Memory>) -> Answer {
    let has_tools = body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    if !has_tools {
        // Titles and the like.
        let text = if messages_api { r#"{"title": "A title"}"# } else { "A title" };
        return Answer::Events(words(messages_api, text));
    }
    let mut newest = said_by_people(&body).pop().unwrap_or_default();
    // What a Stop hook says comes as a text of a person or as a notice, by the program's version.
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    let last = last.map(Value::to_string).unwrap_or_default();
    if let Some((_, owed)) = last.split_once(OWED).filter(|_| !newest.contains(OWED)) {
        newest = format!("{OWED}{}", owed.split(['.', '"']).next().unwrap_or_default());
    }
    if newest.contains("SUBTASK HELD") && !memory.lock().expect("whole").is_released {
        return Answer::Held;
    }
    let result = has_tool_result(&body);
    let mut memory = memory.lock().expect("whole");
    memory.asked.push(Asked { body, newest: newest.clone() });
    memory.tools += 1;
    let number = memory.tools;
    let mut once = |word: &str, mark: &str| {
        newest.contains(word) && memory.hung.insert(format!("{mark}{newest}"))
    };
    let (hangs, mute) = (once("HANG", ""), once("MUTE", ""));
    let busy = once("ERR529", "1") || once("ERR529", "2");
    let agent = once("AGENT", "a") || once("BACKGROUND", "a");
    if mute {
        return Answer::Mute;
    }
    if busy {
        let error = json!({"type": "overloaded_error", "message": "Overloaded"});
        return Answer::Error(529, json!({"type": "error", "error": error}));
    }
    if newest.contains("ERR400") {
        let kind = if messages_api { "invalid_request_error" } else { "x" };
        let error = json!({"type": kind, "message": "the model says no"});
        return Answer::Error(400, json!({"type": "error", "error": error}));
    }
    // Events that end an answer.
    let end = if messages_api { 3 } else { 2 };
    let heard = format!("Heard: {}", newest.lines().last().unwrap_or_default());
    if newest.contains("SLOW") && !result {
        let mut head = words(messages_api, &format!("{heard} "));
        let tail = head.split_off(head.len() - end);
        return Answer::Slow { messages_api, head, tail };
    }
    if hangs {
        let mut head = words(messages_api, "half a word ");
        head.truncate(head.len() - end);
        return Answer::Hang(head);
    }
    let call = if result { None } else { tool_call(messages_api, &newest, number, agent) };
    Answer::Events(call.unwrap_or_else(|| words(messages_api, &heard)))
}

/// The tool that a text asks for.
fn tool_call(messages_api: bool, newest: &str, number: u64, agent: bool) -> Option<Vec<String>> {
    let shell = |command: &str, description: &str| {
        let input = json!({"command": command, "description": description});
        Some(call_of(number, "Bash", &input))
    };
    let word_after = |mark: &str| newest.split(mark).nth(1)?.split_whitespace().next();
    // A Stop hook that says what is owed: it is given.
    let owed = word_after(OWED);
    if let Some(id) = owed.and_then(|id| id.parse::<u64>().ok()) {
        let command = format!("\"$AGENT_RELAY_BIN\" reply {id} my-own-answer");
        return shell(&command, "replies");
    }
    // A command of the test's own, as a JSON string.
    if let Some((_, rest)) = newest.split_once("RUN ") {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let command = values.next().and_then(Result::ok).unwrap_or_default();
        return shell(&command, "runs");
    }
    if let Some((name, input)) = relay_tool(newest) {
        let family = if messages_api { "mcp__relay__" } else { "relay_" };
        return Some(any_call(messages_api, number, &format!("{family}{name}"), &input));
    }
    if newest.contains("TOOL") {
        return Some(call(messages_api, number));
    }
    if newest.contains("WRITE ") {
        let path = word_after("WRITE ").unwrap_or_default();
        let input = json!({"file_path": path, "content": newest.lines().last()});
        return Some(call_of(number, "Write", &input));
    }
    if newest.contains("MAKE") {
        return Some(call_of(number, "Bash", &json!({"command": "make -s nothing"})));
    }
    if newest.contains("WHOAMI") {
        return shell("\"$AGENT_RELAY_BIN\" whoami --json >>who.txt", "asks who it is");
    }
    if newest.contains("LATE") {
        let wait = "touch waiting; while [ ! -e go ]; do sleep 0.05; done";
        let send = "\"$AGENT_RELAY_BIN\" send user late-words >late.txt 2>&1";
        return shell(&format!("{wait}; {send}"), "tells later");
    }
    if newest.contains("NAP") {
        return shell("touch napping; sleep 3", "sleeps");
    }
    if newest.contains("ASK") {
        let options = json!([{"label": "Red", "description": "warm"},
            {"label": "Blue", "description": "cold"}]);
        let question = json!({"question": "Which colour?", "header": "Colour",
            "multiSelect": false, "options": options});
        return Some(call_of(number, "AskUserQuestion", &json!({"questions": [question]})));
    }
    if agent {
        let (prompt, behind) = match newest.contains("BACKGROUND") {
            true => ("SUBTASK HELD look around", true),
            false => ("SUBTASK SLOW look around", false),
        };
        let mut task = json!({"description": "Look around", "prompt": prompt,
            "subagent_type": "general-purpose"});
        if behind {
            task["run_in_background"] = json!(true);
        }
        return Some(call_of(number, "Agent", &task));
    }
    None
}

/// An answer whose events go out as they come. The library collects the pieces of such an answer
/// before it sends them, so that head and pieces are written here.
struct Stream(Box<dyn Write + Send>);

impl Stream {
    fn of(request: Request) -> Stream {
        let mut writer = request.into_writer();
        let kind = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked";
        let _ = writer.write_all(format!("HTTP/1.1 200 OK\r\n{kind}\r\n\r\n").as_bytes());
        Stream(writer)
    }

    fn send(&mut self, events: &str) -> std::io::Result<()> {
        write!(self.0, "{:x}\r\n{events}\r\n", events.len())?;
        self.0.flush()
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")?;
        self.0.flush()
    }
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

/// The tool of the relay that a message asks for, and its input: what stands behind `CALL`.
pub fn relay_tool(newest: &str) -> Option<(String, Value)> {
    let (before, rest) = newest.split_once("CALL ")?;
    let (name, rest) = rest.split_once(' ')?;
    let number = before.rsplit_once("[relay message #")?.1.split(' ').next()?;
    let rest = rest.replace("SELF", number);
    let mut values = serde_json::Deserializer::from_str(&rest).into_iter::<Value>();
    Some((name.to_string(), values.next()?.ok()?))
}

/// A call of a tool, in either API.
fn any_call(messages_api: bool, number: u64, name: &str, input: &Value) -> Vec<String> {
    if messages_api {
        return call_of(number, name, input);
    }
    let function = json!({"name": name, "arguments": input.to_string()});
    let id = format!("call_{number}");
    let call = json!([{"index": 0, "id": id, "type": "function", "function": function}]);
    vec![
        chunk(json!({"role": "assistant", "tool_calls": call}), None),
        chunk(json!({}), Some("tool_calls")),
        "data: [DONE]\n\n".into(),
    ]
}

/// A call of the shell.
fn call(messages_api: bool, number: u64) -> Vec<String> {
    let input = json!({"command": "echo hi > made.txt", "description": "makes a file"});
    if !messages_api {
        return any_call(messages_api, number, "bash", &input);
    }
    let input = input.to_string();
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
