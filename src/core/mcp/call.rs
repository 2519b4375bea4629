//! One call of a tool: the calls of the relay's API that it is made of, one after the other.

use serde_json::{Map, Value, json};

use super::ToolResult;
use super::text;
use super::tools::{Tool, Verb};
use crate::core::ids::MessageId;
use crate::wire::api::{AgentCommand, TokenRecord, encode, path};

/// A call of the relay's API.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiCall {
    /// Upper case.
    pub method: &'static str,
    /// Path, with its query.
    pub path: String,
    /// JSON, if it has one.
    pub body: Option<Value>,
}

/// What a runner knows of the message that is answered or reacted to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownMessage {
    /// Its sender; empty where that is not known any more.
    pub from: String,
    /// The generation of the relay's data that gave it its number.
    pub generation: Option<String>,
}

/// How a call goes on.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Ask this, then tell [`ToolCall::next`] what was answered.
    Ask(ApiCall),
    /// It is over.
    Done(ToolResult),
}

/// A tool that is being carried out. It is pure: whoever carries it out asks the relay.
#[derive(Debug, PartialEq)]
pub struct ToolCall {
    tool: &'static Tool,
    arguments: Map<String, Value>,
    /// Under this key a message that is sent twice is one.
    key: Option<String>,
    known: Option<KnownMessage>,
    /// What was asked last.
    asked: Option<ApiCall>,
    /// Whose token it is, once that was asked.
    own: Option<TokenRecord>,
}

fn get(path: String) -> ApiCall {
    ApiCall { method: "GET", path, body: None }
}

fn post(path: String, body: Value) -> ApiCall {
    ApiCall { method: "POST", path, body: Some(body) }
}

impl ToolCall {
    /// Begins a call. `Err`: the arguments are wrong, and the text says what is right.
    pub fn new(
        tool: &'static Tool,
        arguments: &Map<String, Value>,
        key: Option<String>,
    ) -> Result<ToolCall, ToolResult> {
        let arguments = tool.read(arguments).map_err(ToolResult::failed)?;
        Ok(ToolCall { tool, arguments, key, known: None, asked: None, own: None })
    }

    /// The message that it answers or reacts to.
    pub fn message(&self) -> Option<MessageId> {
        let acts = matches!(self.tool.verb, Verb::Reply | Verb::React);
        self.arguments.get("messageId").and_then(Value::as_u64).filter(|_| acts).map(MessageId)
    }

    /// What the runner knows of that message: then the relay is not asked whose it is.
    pub fn know(&mut self, known: KnownMessage) {
        self.known = Some(known);
    }

    /// The tool.
    pub fn tool(&self) -> &'static Tool {
        self.tool
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.arguments.get(name).and_then(Value::as_str)
    }

    fn id(&self) -> MessageId {
        MessageId(self.arguments.get("messageId").and_then(Value::as_u64).unwrap_or_default())
    }

    fn page(&self, whole: &str) -> ToolResult {
        let offset = self.arguments.get("offset").and_then(Value::as_u64).unwrap_or(0);
        ToolResult::said(text::page(whole, usize::try_from(offset).unwrap_or(usize::MAX)))
    }

    /// What to ask first.
    pub fn first(&mut self) -> ApiCall {
        let ask = match self.tool.verb {
            Verb::Send => post(path::MESSAGES.into(), self.new_message()),
            Verb::Reply => match self.known.clone().filter(|known| !known.from.is_empty()) {
                Some(known) => post(path::MESSAGES.into(), self.answer(&known)),
                None => get(path::message(self.id())),
            },
            Verb::React => post(path::message_part(self.id(), "reactions"), self.reaction()),
            Verb::GetMessage => get(path::message(self.id())),
            Verb::GetThread => get(path::message_part(self.id(), "thread")),
            Verb::FindAgents if self.text("spawnedBy") != Some("me") => self.find(),
            Verb::FindAgents | Verb::Whoami => get(path::TOKEN_SELF.into()),
            Verb::AgentStatus => get(path::agent(self.text("agentId").unwrap_or_default())),
            Verb::Shutdown => post(path::COMMANDS.into(), self.shutdown()),
        };
        self.asked = Some(ask.clone());
        ask
    }

    /// The relay has answered.
    pub fn next(&mut self, status: u16, answer: &Value) -> Next {
        if status >= 300 {
            return Next::Done(ToolResult::failed(text::refused(status, answer, self.tool.name)));
        }
        if answer["queued"] == true {
            return Next::Done(queued(answer));
        }
        let writes = self.asked.as_ref().is_some_and(|asked| asked.body.is_some());
        match self.tool.verb {
            Verb::Reply if !writes => {
                let word = |name: &str| answer[name].as_str().map(str::to_string);
                let from = word("from").unwrap_or_default();
                let known = KnownMessage { from, generation: word("generation") };
                self.ask(post(path::MESSAGES.into(), self.answer(&known)))
            }
            Verb::Send | Verb::Reply => Next::Done(sent(answer)),
            Verb::React => {
                let (emoji, id) = (text::short(self.text("emoji").unwrap_or_default()), self.id());
                Next::Done(ToolResult::said(format!("Reacted {emoji} to message #{id}.")))
            }
            Verb::GetMessage => match text::message(answer) {
                Some(text) => Next::Done(self.page(&text)),
                None => Next::Done(unreadable()),
            },
            Verb::GetThread => Next::Done(self.page(&text::thread(answer))),
            Verb::FindAgents if self.own.is_none() && answer.get("agents").is_none() => {
                self.own = Some(TokenRecord::of_answer(answer));
                self.ask(self.find())
            }
            Verb::FindAgents => Next::Done(self.found(answer)),
            Verb::AgentStatus => Next::Done(ToolResult::said(text::agent(answer))),
            Verb::Whoami => self.whoami(answer),
            Verb::Shutdown => {
                let id = text::short(answer["id"].as_str().unwrap_or("?"));
                Next::Done(ToolResult::said(format!(
                    "The runner was told to end it (command {id}); relay_agent_status shows when it is offline."
                )))
            }
        }
    }

    fn ask(&mut self, ask: ApiCall) -> Next {
        self.asked = Some(ask.clone());
        Next::Ask(ask)
    }

    /// The relay cannot be reached: what was asked may wait at the runner for its return. Path
    /// below the runner's control port, and body. Only what needs no answer at once.
    pub fn queueable(&self) -> Option<(String, &Value)> {
        let body = self.asked.as_ref()?.body.as_ref()?;
        match self.tool.verb {
            Verb::Send | Verb::Reply => Some(("/messages".into(), body)),
            Verb::React => Some((format!("/messages/{}/reactions", self.id()), body)),
            _ => None,
        }
    }

    /// The relay cannot be reached, and nothing waits for its return.
    pub fn unreachable(&self, why: &str) -> ToolResult {
        let why = text::short(why);
        let why = why.trim_end_matches('.');
        let now = match self.tool.reads {
            true => "Go on without it, or call again in some minutes.",
            false => "It is not known to be sent. Go on, and call again in some minutes.",
        };
        ToolResult::failed(format!(
            "{} failed: the relay cannot take it now. {now} ({why})",
            self.tool.name
        ))
    }

    fn new_message(&self) -> Value {
        let mut message = json!({"to": self.text("to"), "body": self.text("body")});
        if let Some(subject) = self.text("subject") {
            message["subject"] = json!(subject);
        }
        if let Some(expected) = self.arguments.get("replyExpected") {
            message["replyExpected"] = expected.clone();
        }
        self.keyed(message)
    }

    fn answer(&self, known: &KnownMessage) -> Value {
        let mut message = json!({
            "to": known.from, "body": self.text("body"), "replyTo": self.id(),
            "replyExpected": false
        });
        if let Some(generation) = &known.generation {
            message["generation"] = json!(generation);
        }
        self.keyed(message)
    }

    fn reaction(&self) -> Value {
        let mut body = json!({"emoji": self.text("emoji")});
        if let Some(generation) = self.known.as_ref().and_then(|known| known.generation.as_ref()) {
            body["generation"] = json!(generation);
        }
        self.keyed(body)
    }

    fn keyed(&self, mut body: Value) -> Value {
        if let Some(key) = &self.key {
            body["idempotencyKey"] = json!(key);
        }
        body
    }

    fn find(&self) -> ApiCall {
        let query: Vec<String> = ["label", "tag", "cap", "status"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", encode(self.text(name)?))))
            .collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        get(format!("{}{query}", path::AGENTS))
    }

    fn found(&self, answer: &Value) -> ToolResult {
        let own = self.own.as_ref().map(|own| own.agent_id.as_deref().unwrap_or_default());
        let maker = own.or(self.text("spawnedBy"));
        let is_meant =
            |card: &&Value| maker.is_none_or(|maker| card["spawnedBy"].as_str() == Some(maker));
        let cards = answer["agents"].as_array().into_iter().flatten().filter(is_meant);
        let lines: Vec<String> = cards.map(text::agent).collect();
        match lines.as_slice() {
            [] => ToolResult::said("No agent matches."),
            lines => self.page(&lines.join("\n")),
        }
    }

    fn shutdown(&self) -> Value {
        let mut params = json!({});
        if let Some(reason) = self.text("reason") {
            params["reason"] = json!(reason);
        }
        let kind = AgentCommand::Shutdown.as_str();
        json!({"type": kind, "target": self.text("agentId"), "params": params})
    }

    fn whoami(&mut self, answer: &Value) -> Next {
        if let Some(own) = &self.own {
            let (line, rights) = (text::agent(answer), own.scopes.join(", "));
            return Next::Done(ToolResult::said(format!("You are {line}\nRights: {rights}")));
        }
        let own = TokenRecord::of_answer(answer);
        match own.agent_id.clone() {
            Some(id) => {
                self.own = Some(own);
                self.ask(get(path::agent(&id)))
            }
            None => {
                let (profile, rights) = (text::short(&own.profile_id), own.scopes.join(", "));
                Next::Done(ToolResult::said(format!(
                    "You speak with a token of the profile {profile}, as user.\nRights: {rights}"
                )))
            }
        }
    }
}

fn unreadable() -> ToolResult {
    ToolResult::failed("The relay's answer is no message. Do not call again; go on without it.")
}

fn queued(answer: &Value) -> ToolResult {
    let key = text::short(answer["key"].as_str().unwrap_or("none"));
    ToolResult::said(format!(
        "Queued: the relay is away, and your runner sends it when it is back (key {key}). Do not send it again."
    ))
}

fn sent(answer: &Value) -> ToolResult {
    let to = text::short(answer["to"].as_str().unwrap_or("?"));
    let many = match answer["recipients"].as_u64() {
        Some(0) => " (no agent matches yet; the relay keeps it for a day)".to_string(),
        None | Some(1) => String::new(),
        Some(count) => format!(" ({count} agents)"),
    };
    let lost = match answer["replyToUnknown"] == true {
        true => {
            " The relay no longer has the message that it answers: it went without a reference to it."
        }
        false => "",
    };
    ToolResult::said(format!("Sent as message #{} to {to}{many}.{lost}", answer["id"]))
}
