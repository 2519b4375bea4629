//! The table of tools: what a model is told of each, and what it may pass.

use serde_json::{Map, Value, json};

use super::text::short;
use crate::core::ids::MessageId;

/// What a tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Verb {
    Send,
    Reply,
    React,
    GetMessage,
    GetThread,
    FindAgents,
    AgentStatus,
    Whoami,
    Shutdown,
}

/// What an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text that is not empty.
    Text,
    /// The number of a message.
    Id,
    /// Where a page begins, bytes.
    Offset,
    /// Yes or no.
    Flag,
}

/// One argument.
#[derive(Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Without it nothing is done.
    pub required: bool,
    /// For the model; empty where the name says it.
    pub about: &'static str,
}

/// One tool.
#[derive(Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name: letters and `_` only, or some programs change it.
    pub name: &'static str,
    /// For people who are asked to permit it.
    pub title: &'static str,
    /// For the model.
    pub about: &'static str,
    /// What it does.
    pub verb: Verb,
    /// The scope that a token needs for it; empty: any token.
    pub scope: &'static str,
    /// It changes nothing.
    pub reads: bool,
    /// All that it takes.
    pub arguments: &'static [Argument],
}

const fn needed(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, required: true, about }
}

const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, required: false, about }
}

const MESSAGE: Argument = needed("messageId", Kind::Id, "number of the message, as 12 for #12");
const OFFSET: Argument = optional("offset", Kind::Offset, "where the next page begins");

/// Every tool.
pub const TOOLS: &[Tool] = &[
    Tool {
        name: "relay_reply",
        title: "Answer a message",
        about: "Answer a message that you were given. It goes to its sender.",
        verb: Verb::Reply,
        scope: "message:send",
        reads: false,
        arguments: &[MESSAGE, needed("body", Kind::Text, "your answer")],
    },
    Tool {
        name: "relay_send_message",
        title: "Write to an agent or a person",
        about: "Write to an agent or to people. An answer comes to you later as a message; do not wait or poll for it.",
        verb: Verb::Send,
        scope: "message:send",
        reads: false,
        arguments: &[
            needed(
                "to",
                Kind::Text,
                "an agent's id, user, label:L, tag:T, cap:C, policy:P or broadcast",
            ),
            needed("body", Kind::Text, "what you say"),
            optional("subject", Kind::Text, ""),
            optional("replyExpected", Kind::Flag, "false: nobody needs to answer"),
        ],
    },
    Tool {
        name: "relay_react",
        title: "React to a message",
        about: "Acknowledge a message lightly, without words.",
        verb: Verb::React,
        scope: "message:send",
        reads: false,
        arguments: &[MESSAGE, needed("emoji", Kind::Text, "one emoji")],
    },
    Tool {
        name: "relay_get_message",
        title: "Read a message",
        about: "The whole of a message that was cut.",
        verb: Verb::GetMessage,
        scope: "message:read",
        reads: true,
        arguments: &[MESSAGE, OFFSET],
    },
    Tool {
        name: "relay_get_thread",
        title: "Read a thread",
        about: "What was said before and after a message.",
        verb: Verb::GetThread,
        scope: "message:read",
        reads: true,
        arguments: &[MESSAGE, OFFSET],
    },
    Tool {
        name: "relay_find_agents",
        title: "Find agents",
        about: "Who is there, with status, label, tags and capabilities. Without arguments: everybody.",
        verb: Verb::FindAgents,
        scope: "",
        reads: true,
        arguments: &[
            optional("label", Kind::Text, ""),
            optional("tag", Kind::Text, ""),
            optional("cap", Kind::Text, "a capability"),
            optional("status", Kind::Text, "idle, busy or offline"),
            optional("spawnedBy", Kind::Text, "who asked for it; me: you"),
            OFFSET,
        ],
    },
    Tool {
        name: "relay_agent_status",
        title: "See how an agent is",
        about: "How one agent is.",
        verb: Verb::AgentStatus,
        scope: "",
        reads: true,
        arguments: &[needed("agentId", Kind::Text, "")],
    },
    Tool {
        name: "relay_whoami",
        title: "See who you are",
        about: "Your own id, label and rights. You never need your id to write.",
        verb: Verb::Whoami,
        scope: "",
        reads: true,
        arguments: &[],
    },
    Tool {
        name: "relay_shutdown_agent",
        title: "Shut an agent down",
        about: "End an agent in order.",
        verb: Verb::Shutdown,
        scope: "command:issue",
        reads: false,
        arguments: &[needed("agentId", Kind::Text, ""), optional("reason", Kind::Text, "")],
    },
];

/// The tool of that name.
pub fn find(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// Tools for a token with these scopes. Where they are not known, those that every agent has.
pub fn listed(scopes: Option<&[String]>) -> impl Iterator<Item = &'static Tool> {
    let may = move |tool: &&Tool| match scopes {
        None => tool.scope != "command:issue",
        Some(scopes) => {
            tool.scope.is_empty() || scopes.iter().any(|own| own == tool.scope || own == "admin")
        }
    };
    let names: Vec<&'static Tool> = TOOLS.iter().filter(may).collect();
    names.into_iter()
}

impl Kind {
    /// Plain objects only: one schema that a program does not take hides all tools from it.
    fn schema(self, about: &str) -> Value {
        let word = match self {
            Kind::Text => "string",
            Kind::Id | Kind::Offset => "integer",
            Kind::Flag => "boolean",
        };
        match about {
            "" => json!({"type": word}),
            about => json!({"type": word, "description": about}),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Kind::Text => "a text that is not empty",
            Kind::Id => "the number of a message",
            Kind::Offset => "a number",
            Kind::Flag => "true or false",
        }
    }

    /// The value as the tool takes it. Numbers may come as text, as they stand in a prompt.
    fn read(self, value: &Value) -> Option<Value> {
        match self {
            Kind::Text => {
                value.as_str().filter(|text| !text.trim().is_empty()).map(|text| json!(text))
            }
            Kind::Flag => value.as_bool().map(Value::from),
            Kind::Id => {
                let text = value.as_str().map(str::trim);
                let id = text.and_then(|text| text.parse::<MessageId>().ok());
                let id = id.map(|id| id.0).or_else(|| value.as_u64());
                id.filter(|id| *id > 0 && *id < 1 << 53).map(Value::from)
            }
            Kind::Offset => {
                let text = value.as_str().and_then(|text| text.trim().parse::<u64>().ok());
                text.or_else(|| value.as_u64()).map(Value::from)
            }
        }
    }
}

impl Tool {
    /// What a client is told of it.
    pub fn definition(&self) -> Value {
        let properties: Map<String, Value> = self
            .arguments
            .iter()
            .map(|argument| (argument.name.to_string(), argument.kind.schema(argument.about)))
            .collect();
        let required: Vec<&str> =
            self.arguments.iter().filter(|argument| argument.required).map(|a| a.name).collect();
        let mut annotations = json!({"readOnlyHint": self.reads});
        if !self.reads {
            annotations["destructiveHint"] = json!(self.verb == Verb::Shutdown);
        }
        json!({
            "name": self.name, "title": self.title, "description": self.about,
            "inputSchema": {
                "type": "object", "properties": properties, "required": required,
                "additionalProperties": false
            },
            "annotations": annotations
        })
    }

    /// The arguments as they are used, or a sentence that says what is right. No client checks
    /// them.
    pub fn read(&self, given: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let known = |name: &str| self.arguments.iter().find(|argument| argument.name == name);
        if let Some(name) = given.keys().find(|name| known(name).is_none()) {
            return Err(format!("{} does not take {:?}. {}", self.name, short(name), self.usage()));
        }
        let mut read = Map::new();
        for argument in self.arguments {
            let value = given.get(argument.name).filter(|value| !value.is_null());
            let Some(value) = value else {
                if argument.required {
                    let name = argument.name;
                    return Err(format!("{} needs {name:?}. {}", self.name, self.usage()));
                }
                continue;
            };
            let Some(value) = argument.kind.read(value) else {
                let (name, wanted) = (argument.name, argument.kind.wanted());
                return Err(format!("{name:?} must be {wanted}. {}", self.usage()));
            };
            read.insert(argument.name.to_string(), value);
        }
        Ok(read)
    }

    fn usage(&self) -> String {
        let name = |argument: &Argument| match argument.required {
            true => argument.name.to_string(),
            false => format!("{} (optional)", argument.name),
        };
        let names: Vec<String> = self.arguments.iter().map(name).collect();
        match names.as_slice() {
            [] => format!("{} takes no arguments.", self.name),
            names => format!("{} takes {}.", self.name, names.join(", ")),
        }
    }
}
