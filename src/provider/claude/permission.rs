//! Permissions and questions: what people see, and the answers in the program's words (Claude FACTS section 6).

use serde_json::{Map, Value, json};

use super::mirror::summary;
use crate::core::session::{Approval, Decision};
use crate::wire::control::CUT;

/// The tool that asks a person.
pub const QUESTION: &str = "AskUserQuestion";
/// Characters of a text in a view.
const FIELD_CHARS_MAX: usize = 2000;
/// Words that mark a field whose value nobody may see.
const SECRET: [&str; 5] = ["token", "secret", "password", "api_key", "authorization"];

/// A request for permission.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ask {
    /// Name of the tool.
    pub tool: String,
    /// What it would be called with.
    pub input: Map<String, Value>,
    /// What the program suggests to allow from now on.
    pub suggestions: Vec<Value>,
    /// The input was too long and is cut here: it must not be given back.
    pub is_cut: bool,
}

impl Ask {
    /// From a hook's payload or a control request; wrong types count as missing (P-36).
    pub fn read(record: &Value, input_field: &str) -> Ask {
        Ask {
            tool: record.get("tool_name").and_then(Value::as_str).unwrap_or("Tool").chars().take(200).collect(),
            input: record.get(input_field).and_then(Value::as_object).cloned().unwrap_or_default(),
            suggestions: record.get("permission_suggestions").and_then(Value::as_array).cloned().unwrap_or_default(),
            is_cut: record.get(CUT).is_some(),
        }
    }

    /// It is a question with answers to choose from.
    pub fn is_question(&self) -> bool {
        self.tool == QUESTION
    }

    /// What people see; long texts are cut, secrets are covered.
    pub fn view(&self, id: &str) -> Approval {
        let mut detail = Map::new();
        detail.insert("tool".into(), json!(self.tool));
        let title = match self.is_question() {
            true => {
                detail.insert("questions".into(), shown(&self.input.get("questions").cloned().unwrap_or_default(), ""));
                let first = self.input.get("questions").and_then(|questions| questions.pointer("/0/question")).and_then(Value::as_str);
                first.unwrap_or("a question").to_string()
            }
            false => summary(&self.tool, &self.input),
        };
        if !self.suggestions.is_empty() {
            detail.insert("suggestions".into(), shown(&json!(self.suggestions), ""));
        }
        let options = match self.is_question() {
            true => ["answer", "deny", "abort"].map(String::from).into(),
            false => ["approve", "approve-session", "deny", "abort"].map(String::from).into(),
        };
        let input = shown(&Value::Object(self.input.clone()), "");
        Approval { id: id.into(), title: cut(&title, 300), kind: kind(&self.tool).into(), input, options, detail }
    }

    /// The answer to a decision (P-39, P-40).
    pub fn answer(&self, decision: Decision, reason: Option<&str>, answers: Option<&Value>) -> Answer {
        let refusal = |text: &str, interrupt: bool| Answer::Deny { message: reason.unwrap_or(text).to_string(), interrupt };
        match decision {
            Decision::Deny => refusal("Denied by a person through the relay.", false),
            Decision::Abort => refusal("Denied by a person through the relay, who also ended the turn.", true),
            Decision::Approve | Decision::ApproveSession if self.is_question() => match answers.and_then(Value::as_object) {
                Some(answers) => {
                    let mut input = self.input.clone();
                    input.insert("answers".into(), Value::Object(answers.clone()));
                    Answer::Allow { input, rules: Vec::new() }
                }
                None => refusal("The person did not choose an answer; go on as you think best.", false),
            },
            Decision::Approve => Answer::Allow { input: self.own_input(), rules: Vec::new() },
            Decision::ApproveSession => Answer::Allow { input: self.own_input(), rules: self.session_rules() },
        }
    }

    /// The input as it was; empty where only a part of it is known.
    fn own_input(&self) -> Map<String, Value> {
        if self.is_cut { Map::new() } else { self.input.clone() }
    }

    /// What is suggested, for this session only; without a suggestion the tool itself. Changes of the mode are no rules.
    fn session_rules(&self) -> Vec<Value> {
        let mut rules: Vec<Value> =
            self.suggestions.iter().filter(|rule| rule.get("type").and_then(Value::as_str) != Some("setMode")).cloned().collect();
        for rule in &mut rules {
            if let Some(rule) = rule.as_object_mut() {
                rule.insert("destination".into(), json!("session"));
            }
        }
        rules.retain(Value::is_object);
        if !rules.iter().any(|rule| rule["type"] == "addRules") {
            rules.push(json!({"type": "addRules", "rules": [{"toolName": self.tool}], "behavior": "allow", "destination": "session"}));
        }
        rules
    }

    /// Why a decision cannot be carried out, before it is.
    pub fn objection(&self, decision: Decision, answers: Option<&Value>) -> Option<String> {
        let allows = matches!(decision, Decision::Approve | Decision::ApproveSession);
        if !self.is_question() || !allows {
            return None;
        }
        let answers = answers.and_then(Value::as_object);
        let questions = self.input.get("questions").and_then(Value::as_array).cloned().unwrap_or_default();
        let missing = questions
            .iter()
            .filter_map(|question| question.get("question")?.as_str())
            .find(|question| !answers.is_some_and(|answers| answers.contains_key(*question)));
        missing.map(|question| format!("this is a question: say the answer with --answer {question:?}=<choice>"))
    }
}

/// An answer in neutral form.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It may.
    Allow {
        /// What it is called with.
        input: Map<String, Value>,
        /// What it may from now on.
        rules: Vec<Value>,
    },
    /// It may not.
    Deny {
        /// What the model is told.
        message: String,
        /// The turn ends.
        interrupt: bool,
    },
}

impl Answer {
    /// As decision of a PermissionRequest hook, or response to `can_use_tool`: both have the same fields.
    pub fn decision(&self) -> Value {
        match self {
            Answer::Allow { input, rules } => {
                let mut decision = json!({"behavior": "allow"});
                if !input.is_empty() {
                    decision["updatedInput"] = json!(input);
                }
                if !rules.is_empty() {
                    decision["updatedPermissions"] = json!(rules);
                }
                decision
            }
            Answer::Deny { message, interrupt } => json!({"behavior": "deny", "message": message, "interrupt": interrupt}),
        }
    }

    /// What the hook of that event prints.
    pub fn for_hook(&self, event: &str) -> Value {
        let output = match (event, self) {
            ("PreToolUse", Answer::Allow { input, .. }) => {
                json!({"hookEventName": event, "permissionDecision": "allow", "updatedInput": input})
            }
            ("PreToolUse", Answer::Deny { message, .. }) => {
                json!({"hookEventName": event, "permissionDecision": "deny", "permissionDecisionReason": message})
            }
            _ => json!({"hookEventName": "PermissionRequest", "decision": self.decision()}),
        };
        json!({"hookSpecificOutput": output})
    }
}

fn kind(tool: &str) -> &'static str {
    match tool {
        QUESTION => "question",
        "Bash" => "execute",
        "Edit" | "Write" | "NotebookEdit" | "MultiEdit" => "edit",
        "Read" | "Glob" | "Grep" | "LS" => "read",
        "WebFetch" | "WebSearch" => "fetch",
        "ExitPlanMode" => "switch_mode",
        _ => "other",
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// A value for people.
fn shown(value: &Value, name: &str) -> Value {
    let name = name.to_ascii_lowercase();
    match value {
        Value::String(_) if SECRET.iter().any(|word| name.contains(word)) => json!("********"),
        Value::String(text) => json!(cut(text, FIELD_CHARS_MAX)),
        Value::Array(items) => items.iter().take(64).map(|item| shown(item, &name)).collect(),
        Value::Object(map) => map.iter().take(64).map(|(key, value)| (key.clone(), shown(value, key))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bash() -> Ask {
        let record = json!({"tool_name": "Bash", "tool_input": {"command": "touch x", "api_token": "abc"},
            "permission_suggestions": [{"type": "addRules", "rules": [{"toolName": "Bash", "ruleContent": "touch *"}], "behavior": "allow", "destination": "localSettings"},
                {"type": "setMode", "mode": "acceptEdits", "destination": "session"}]});
        Ask::read(&record, "tool_input")
    }

    #[test]
    fn views_are_cut_and_covered() {
        let view = bash().view("p1");
        assert_eq!((view.title.as_str(), view.kind.as_str()), ("Bash: touch x", "execute"));
        assert_eq!(view.input["api_token"], "********");
        assert_eq!(Ask::read(&json!({"tool_name": 5, "tool_input": "x"}), "tool_input"), Ask { tool: "Tool".into(), ..Default::default() });
        let long = Ask {
            tool: "Bash".into(),
            input: [("command".to_string(), json!("x".repeat(9000)))].into_iter().collect(),
            ..Default::default()
        };
        assert!(long.view("p").input["command"].as_str().is_some_and(|text| text.chars().count() == FIELD_CHARS_MAX + 1));
    }

    #[test]
    fn decisions_become_answers() {
        let ask = bash();
        let rules = match ask.answer(Decision::ApproveSession, None, None) {
            Answer::Allow { rules, .. } => rules,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            rules,
            [
                json!({"type": "addRules", "rules": [{"toolName": "Bash", "ruleContent": "touch *"}], "behavior": "allow", "destination": "session"})
            ]
        );
        let denied = ask.answer(Decision::Deny, Some("not now"), None);
        assert_eq!(
            denied.for_hook("PermissionRequest")["hookSpecificOutput"]["decision"],
            json!({"behavior": "deny", "message": "not now", "interrupt": false})
        );
        assert_eq!(ask.answer(Decision::Abort, None, None).decision()["interrupt"], true);
    }

    #[test]
    fn a_question_needs_its_answers() {
        let questions = json!([{"question": "Which colour?", "options": [{"label": "Red"}]}]);
        let ask = Ask::read(&json!({"tool_name": QUESTION, "tool_input": {"questions": questions}}), "tool_input");
        assert!(ask.objection(Decision::Approve, None).is_some_and(|text| text.contains("Which colour?")));
        assert_eq!(ask.objection(Decision::Deny, None), None);
        let answers = json!({"Which colour?": "Red"});
        assert_eq!(ask.objection(Decision::Approve, Some(&answers)), None);
        let printed = ask.answer(Decision::Approve, None, Some(&answers)).for_hook("PreToolUse");
        assert_eq!(printed["hookSpecificOutput"]["updatedInput"], json!({"questions": questions, "answers": answers}));
        assert_eq!(ask.view("q").kind, "question");
    }
}
