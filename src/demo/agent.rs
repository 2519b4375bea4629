//! The demo agent as a pure machine: JSON-RPC lines in, lines out, its disk behind a trait.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::core::session::RESTART_MARK;
use crate::core::time::{Now, Tick};
use crate::provider::jsonrpc::{self, Frame, INTERNAL_ERROR, PARSE_ERROR};

/// Where conversations are kept.
pub trait Disk {
    /// The record of a conversation, if there is one.
    fn load(&mut self, session: &str) -> Option<Vec<Entry>>;
    /// Adds to the record; durable when it returns.
    fn append(&mut self, session: &str, entry: &Entry);
    /// Loses every conversation.
    fn forget(&mut self);
    /// A fresh session id.
    fn new_session(&mut self) -> String;
}

/// One text of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// From the user, else from the agent.
    pub user: bool,
    /// The text.
    pub text: String,
}

/// What the world must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A line for the client.
    Line(String),
    /// So many bytes of noise for the client, as message chunks of the open turn.
    Flood {
        /// Session to name.
        session: String,
        /// Bytes in all.
        bytes: u64,
    },
    /// Leave a child process behind.
    LeaveChild,
    /// From now on neither the end of the input nor SIGTERM ends it.
    GoDeaf,
    /// Die at once.
    Crash,
}

/// What it can do.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// `session/load`.
    pub load: bool,
    /// `session/resume`.
    pub resume: bool,
}

/// Words that a message may begin with.
pub const HELP: &str = "work [s], ask, slow [s], flood [MB], garbage, hang, crash, error, child, forget, uninvited, longline, deaf";

/// The error of a conversation that is not there.
const NO_SESSION: i64 = -32002;

#[derive(Debug)]
struct Turn {
    id: Value,
    session: String,
    /// What is still to be done, in order.
    steps: Vec<Step>,
    answer: String,
    wait: Option<Tick>,
    asked: Option<u64>,
    hanging: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Work(u64),
    Ask,
    Slow(u64),
    Flood(u64),
    Garbage,
    Hang,
    Crash,
    Error,
    Child,
    Forget,
    Uninvited,
    LongLine,
    Deaf,
    Word(String),
    ToolDone,
}

/// The state of one process of the demo agent.
pub struct DemoAgent {
    abilities: Abilities,
    sessions: BTreeMap<String, ()>,
    turn: Option<Turn>,
    next_id: u64,
    tools: u64,
    out: Vec<Output>,
}

impl DemoAgent {
    /// A fresh process.
    pub fn new(abilities: Abilities) -> DemoAgent {
        DemoAgent {
            abilities,
            sessions: BTreeMap::new(),
            turn: None,
            next_id: 0,
            tools: 0,
            out: Vec::new(),
        }
    }

    /// One line of the client.
    pub fn line(&mut self, now: Now, line: &str, disk: &mut dyn Disk) -> Vec<Output> {
        match Frame::parse(line) {
            Some(Frame::Request { id, method, params }) => {
                self.call(now, id, &method, &params, disk)
            }
            Some(Frame::Notification { method, params }) => {
                self.call(now, Value::Null, &method, &params, disk)
            }
            Some(Frame::Reply { id, result }) => {
                self.answered(now, id.as_ref(), &result.unwrap_or_default(), disk)
            }
            None => self.refuse(&Value::Null, PARSE_ERROR, "Parse error"),
        }
        std::mem::take(&mut self.out)
    }

    /// A deadline has passed.
    pub fn wake(&mut self, now: Now, disk: &mut dyn Disk) -> Vec<Output> {
        if self.next_deadline().is_some_and(|at| at <= now.tick) {
            if let Some(turn) = &mut self.turn {
                turn.wait = None;
            }
            self.go_on(now, disk);
        }
        std::mem::take(&mut self.out)
    }

    /// When it wants [`DemoAgent::wake`].
    pub fn next_deadline(&self) -> Option<Tick> {
        self.turn.as_ref().and_then(|turn| turn.wait)
    }

    fn send(&mut self, value: Value) {
        self.out.push(Output::Line(value.to_string()));
    }

    fn reply(&mut self, id: &Value, result: Value) {
        self.send(jsonrpc::result(id, result));
    }

    fn refuse(&mut self, id: &Value, code: i64, message: &str) {
        self.send(jsonrpc::error(id, code, message));
    }

    fn update(&mut self, session: &str, update: Value) {
        self.send(update_of(session, update));
    }

    fn say(&mut self, session: &str, kind: &str, text: &str) {
        self.update(
            session,
            json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}}),
        );
    }

    /// A request, or a notification: that one has a null id.
    fn call(&mut self, now: Now, id: Value, method: &str, params: &Value, disk: &mut dyn Disk) {
        let session =
            params.get("sessionId").and_then(Value::as_str).unwrap_or_default().to_string();
        let modes =
            json!({"currentModeId": "ask", "availableModes": [{"id": "ask", "name": "Ask"}]});
        match method {
            "initialize" => {
                let resume = if self.abilities.resume { json!({"resume": {}}) } else { json!({}) };
                let capabilities =
                    json!({"loadSession": self.abilities.load, "sessionCapabilities": resume});
                let info = json!({"name": "agent-relay-demo", "version": crate::wire::VERSION});
                self.reply(&id, json!({"protocolVersion": 1, "agentCapabilities": capabilities, "agentInfo": info, "authMethods": []}));
            }
            "session/new" => {
                let session = disk.new_session();
                self.sessions.insert(session.clone(), ());
                self.reply(&id, json!({"sessionId": session, "modes": modes}));
            }
            "session/load" | "session/resume" => {
                let offered = if method == "session/load" {
                    self.abilities.load
                } else {
                    self.abilities.resume
                };
                let Some(record) = disk.load(&session).filter(|_| offered) else {
                    return self.refuse(&id, NO_SESSION, &format!("no session {session}"));
                };
                self.sessions.insert(session.clone(), ());
                for entry in record.iter().filter(|_| method == "session/load") {
                    let kind =
                        if entry.user { "user_message_chunk" } else { "agent_message_chunk" };
                    self.say(&session, kind, &entry.text);
                }
                self.reply(&id, json!({"modes": modes}));
            }
            "session/set_mode" | "session/set_config_option" => self.reply(&id, json!({})),
            "session/prompt" => self.prompt(now, id, session, params, disk),
            "session/cancel" => self.cancel(),
            _ if id.is_null() => {}
            method => self.send(jsonrpc::method_not_found(&id, method)),
        }
    }

    fn prompt(
        &mut self,
        now: Now,
        id: Value,
        session: String,
        params: &Value,
        disk: &mut dyn Disk,
    ) {
        if !self.sessions.contains_key(&session) {
            return self.refuse(&id, NO_SESSION, &format!("no session {session}"));
        }
        if self.turn.is_some() {
            return self.refuse(&id, INTERNAL_ERROR, "a prompt is running already");
        }
        let blocks = params.get("prompt").and_then(Value::as_array).cloned().unwrap_or_default();
        let text: Vec<&str> =
            blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str)).collect();
        let text = text.join("\n");
        disk.append(&session, &Entry { user: true, text: text.clone() });
        let bodies = bodies_of(&text);
        let steps = bodies.iter().filter_map(|body| step_of(body)).collect();
        let answer = answer_to(&bodies, text.contains(RESTART_MARK));
        self.turn =
            Some(Turn { id, session, steps, answer, wait: None, asked: None, hanging: false });
        self.go_on(now, disk);
    }

    /// Works through the steps until one has to wait; then answers.
    fn go_on(&mut self, now: Now, disk: &mut dyn Disk) {
        loop {
            let Some(turn) = self.turn.as_mut() else {
                return;
            };
            if turn.wait.is_some() || turn.asked.is_some() || turn.hanging {
                return;
            }
            if turn.steps.is_empty() {
                return self.finish(disk);
            }
            let session = turn.session.clone();
            let step = turn.steps.remove(0);
            let seconds = |n: u64| Some(now.tick + Duration::from_secs(n));
            match step {
                Step::Work(n) => {
                    turn.wait = seconds(n);
                    turn.steps.insert(0, Step::ToolDone);
                    self.begin_tool(&session, n);
                }
                Step::ToolDone => {
                    let done = json!({"sessionUpdate": "tool_call_update", "toolCallId": format!("t{}", self.tools), "status": "completed"});
                    self.update(&session, done);
                }
                Step::Ask => {
                    self.next_id += 1;
                    turn.asked = Some(self.next_id);
                    self.ask(&session);
                }
                Step::Slow(n) => {
                    for i in (0..n * 4).rev() {
                        turn.steps.insert(0, Step::Word(format!("word {} ", n * 4 - i)));
                    }
                }
                Step::Word(word) => {
                    turn.wait = Some(now.tick + Duration::from_millis(250));
                    self.say(&session, "agent_thought_chunk", &word);
                }
                Step::Flood(megabytes) => {
                    self.out.push(Output::Flood { session, bytes: megabytes << 20 })
                }
                Step::Garbage => self.say_garbage(&session),
                Step::Hang => turn.hanging = true,
                Step::Crash => {
                    self.turn = None; // it dies in the middle of its turn
                    return self.out.push(Output::Crash);
                }
                Step::Child => self.out.push(Output::LeaveChild),
                Step::Forget => disk.forget(),
                Step::Deaf => self.out.push(Output::GoDeaf),
                Step::LongLine => {
                    // One real agent lists its commands in a line of 560 kB (see
                    // `provider/acp/FACTS.md`).
                    let command = json!({"name": "demo", "description": "d".repeat(1000)});
                    self.update(&session, json!({"sessionUpdate": "available_commands_update", "availableCommands": vec![command; 560]}));
                }
                Step::Uninvited => return self.cancel(),
                Step::Error => {
                    let id = turn.id.clone();
                    self.turn = None;
                    return self.refuse(&id, INTERNAL_ERROR, "the demo agent was asked to fail");
                }
            }
        }
    }

    fn begin_tool(&mut self, session: &str, seconds: u64) {
        self.tools += 1;
        let call = json!({"sessionUpdate": "tool_call", "toolCallId": format!("t{}", self.tools),
            "title": format!("work for {seconds} s"), "kind": "execute", "status": "in_progress"});
        self.update(session, call);
    }

    fn ask(&mut self, session: &str) {
        self.tools += 1;
        let call = json!({"toolCallId": format!("t{}", self.tools), "title": "rm -rf demo-scratch", "kind": "execute",
            "status": "pending", "rawInput": {"command": "rm -rf demo-scratch"}});
        let options = json!([{"optionId": "yes", "kind": "allow_once", "name": "Allow once"},
            {"optionId": "always", "kind": "allow_always", "name": "Always allow"},
            {"optionId": "no", "kind": "reject_once", "name": "Reject"}]);
        let params = json!({"sessionId": session, "toolCall": call, "options": options});
        self.send(jsonrpc::request(self.next_id, "session/request_permission", params));
    }

    /// What a client must stand: lines that are not JSON, answers to nothing, requests and updates
    /// that it does not know.
    fn say_garbage(&mut self, session: &str) {
        self.out.push(Output::Line("this is no JSON".into()));
        self.out.push(Output::Line("{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":{}}".into()));
        self.send(jsonrpc::notification("demo/notify", json!([1, 2])));
        self.send(jsonrpc::request(900, "demo/unknown", json!({})));
        self.update(session, json!({"sessionUpdate": "never_heard_of"}));
        self.update(session, json!(null));
    }

    fn finish(&mut self, disk: &mut dyn Disk) {
        let Some(turn) = self.turn.take() else { return };
        // On disk before it is said: what a client has heard is never lost.
        disk.append(&turn.session, &Entry { user: false, text: turn.answer.clone() });
        self.say(&turn.session, "agent_message_chunk", &turn.answer);
        self.reply(&turn.id, json!({"stopReason": "end_turn"}));
    }

    fn cancel(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.reply(&turn.id, json!({"stopReason": "cancelled"}));
        }
    }

    /// The client answered the permission request.
    fn answered(&mut self, now: Now, id: Option<&Value>, result: &Value, disk: &mut dyn Disk) {
        let id = id.and_then(Value::as_u64);
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.asked.is_some() && turn.asked == id)
        else {
            return;
        };
        turn.asked = None;
        let allowed = matches!(
            result.pointer("/outcome/optionId").and_then(Value::as_str),
            Some("yes" | "always")
        );
        let (status, words) = if allowed {
            ("completed", "You allowed it.")
        } else {
            ("failed", "You did not allow it.")
        };
        turn.answer = format!("{words} {}", turn.answer);
        let session = turn.session.clone();
        let done = json!({"sessionUpdate": "tool_call_update", "toolCallId": format!("t{}", self.tools), "status": status});
        self.update(&session, done);
        self.go_on(now, disk);
    }
}

/// Something that happens in a conversation, as the client is told it.
pub(super) fn update_of(session: &str, update: Value) -> Value {
    jsonrpc::notification("session/update", json!({"sessionId": session, "update": update}))
}

/// The bodies of the relay messages in a prompt; a prompt without header lines is one body.
fn bodies_of(text: &str) -> Vec<String> {
    let mut bodies: Vec<String> = Vec::new();
    let mut any = false;
    for line in text.lines() {
        if line.starts_with("[relay message #") {
            any = true;
            bodies.push(String::new());
        } else if ["Subject: ", "[agent-relay] "].iter().any(|mark| line.starts_with(mark))
            && bodies.last().is_some_and(String::is_empty)
        {
        } else if let Some(body) = bodies.last_mut() {
            if !body.is_empty() {
                body.push('\n');
            }
            body.push_str(line);
        }
    }
    if any {
        bodies.iter().map(|body| body.trim().to_string()).collect()
    } else {
        vec![text.trim().to_string()]
    }
}

fn step_of(body: &str) -> Option<Step> {
    let mut words = body.split_whitespace();
    let first = words.next()?;
    let number = |default: u64| {
        body.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(default)
    };
    Some(match first {
        "work" => Step::Work(number(1).min(3600)),
        "ask" => Step::Ask,
        "slow" => Step::Slow(number(2).min(600)),
        "flood" => Step::Flood(number(1).min(4096)),
        "garbage" => Step::Garbage,
        "hang" => Step::Hang,
        "crash" => Step::Crash,
        "error" => Step::Error,
        "child" => Step::Child,
        "forget" => Step::Forget,
        "uninvited" => Step::Uninvited,
        "longline" => Step::LongLine,
        "deaf" => Step::Deaf,
        _ => return None,
    })
}

fn answer_to(bodies: &[String], again: bool) -> String {
    if again {
        return "I was restarted and went on: done.".into();
    }
    let said: Vec<String> = bodies.iter().map(|body| body.chars().take(200).collect()).collect();
    match said.as_slice() {
        [one] if step_of(one).is_some() => format!("Done: {one}"),
        [one] if one.to_lowercase().contains("who are you") => {
            format!(
                "I am the demo agent: no model, but a real session. Begin a message with one of these to see me do it: {HELP}."
            )
        }
        [one] => format!("You wrote: {one}"),
        many => format!("You wrote {} messages: {}", many.len(), many.join(" | ")),
    }
}
