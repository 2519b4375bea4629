//! Permissions and questions: what people see, and the answers in the program's words.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use super::activity::summary;
use crate::core::session::{Approval, Decision};
use crate::provider::reader::Damage;
use crate::provider::redact::{covered, cut, shown};
use crate::wire::control::CUT;

/// The tool that asks a person.
pub const QUESTION: &str = "AskUserQuestion";
/// Characters of a title.
const TITLE_CHARS_MAX: usize = 300;

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
    /// What of it could not be read. It is allowed as it was asked, this once.
    pub damage: Damage,
}

impl Ask {
    /// From a hook's payload or a control request; wrong types count as missing.
    pub fn read(record: &Value, input_field: &str) -> Ask {
        Ask {
            tool: record
                .get("tool_name")
                .and_then(Value::as_str)
                .unwrap_or("Tool")
                .chars()
                .take(200)
                .collect(),
            input: record.get(input_field).and_then(Value::as_object).cloned().unwrap_or_default(),
            suggestions: record
                .get("permission_suggestions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            is_cut: record.get(CUT).is_some(),
            damage: Damage::of(record),
        }
    }

    /// It is a question with answers to choose from.
    pub fn is_question(&self) -> bool {
        self.tool == QUESTION
    }

    /// The command of a shell, if it is that and nothing more.
    pub fn command(&self) -> Option<&str> {
        const HARMLESS: [&str; 3] = ["command", "description", "timeout"];
        let is_whole = !self.is_cut && self.damage == Damage::None;
        let is_plain = self.tool == "Bash" && is_whole;
        let command = self.input.get("command").and_then(Value::as_str);
        command.filter(|_| is_plain && self.input.keys().all(|name| HARMLESS.contains(&&**name)))
    }

    /// What people see; long texts are cut, secrets are covered.
    pub fn view(&self, id: &str) -> Approval {
        let mut detail = Map::new();
        detail.insert("tool".into(), json!(self.tool));
        let (title, options) = if self.is_question() {
            let questions = self.input.get("questions").cloned().unwrap_or_default();
            let first =
                questions.pointer("/0/question").and_then(Value::as_str).unwrap_or("a question");
            let title = covered(&first.split_whitespace().collect::<Vec<_>>().join(" "));
            detail.insert("questions".into(), shown(&questions));
            (title, "answer deny abort")
        } else {
            (summary(&self.tool, &self.input), "approve approve-session deny abort")
        };
        // Nothing more is allowed than this once, and a question that is not whole has no answer.
        let is_whole = self.damage == Damage::None;
        let options = options
            .split(' ')
            .filter(|word| is_whole || !["answer", "approve-session"].contains(word));
        if !self.suggestions.is_empty() && !self.is_question() && is_whole {
            detail.insert("suggestions".into(), shown(&json!(self.suggestions)));
        }
        let input = shown(&Value::Object(self.input.clone()));
        Approval {
            id: id.into(),
            title: cut(&self.damage.title(&title), TITLE_CHARS_MAX),
            kind: kind(&self.tool).into(),
            input,
            options: options.map(String::from).collect(),
            detail,
        }
    }

    /// The answer to a decision.
    pub fn answer(
        &self,
        decision: Decision,
        reason: Option<&str>,
        answers: Option<&Value>,
    ) -> Answer {
        let refusal = |text: &str, interrupt: bool| Answer::Deny {
            message: reason.unwrap_or(text).to_string(),
            interrupt,
        };
        match decision {
            Decision::Deny => refusal("Denied by a person through the relay.", false),
            Decision::Abort => {
                refusal("Denied by a person through the relay, who also ended the turn.", true)
            }
            Decision::Approve | Decision::ApproveSession if self.is_question() => match answers
                .and_then(Value::as_object)
            {
                Some(answers) => {
                    let mut input = self.input.clone();
                    input.insert("answers".into(), Value::Object(answers.clone()));
                    Answer::Allow { input, rules: Vec::new() }
                }
                None => {
                    refusal("The person did not choose an answer; go on as you think best.", false)
                }
            },
            Decision::Approve => Answer::Allow { input: self.own_input(), rules: Vec::new() },
            Decision::ApproveSession => {
                Answer::Allow { input: self.own_input(), rules: self.session_rules() }
            }
        }
    }

    /// The input as it was; empty where only a part of it is known.
    fn own_input(&self) -> Map<String, Value> {
        if self.is_cut || self.damage != Damage::None { Map::new() } else { self.input.clone() }
    }

    /// What is suggested, for this session only; without a suggestion a rule for just this. Changes
    /// of the mode are no rules: they would allow more than was asked.
    fn session_rules(&self) -> Vec<Value> {
        if self.damage != Damage::None {
            return Vec::new();
        }
        let mut rules: Vec<Value> = self
            .suggestions
            .iter()
            .filter(|rule| rule.get("type").and_then(Value::as_str) != Some("setMode"))
            .cloned()
            .collect();
        for rule in &mut rules {
            if let Some(rule) = rule.as_object_mut() {
                rule.insert("destination".into(), json!("session"));
            }
        }
        rules.retain(|rule| {
            rule.is_object() && rule.get("behavior").is_none_or(|behavior| behavior == "allow")
        });
        if !rules.iter().any(|rule| rule["type"] == "addRules") {
            let rule = self.own_rule();
            rules.extend(rule.map(|rule| json!({"type": "addRules", "rules": [rule], "behavior": "allow", "destination": "session"})));
        }
        rules
    }

    /// A rule that allows this and nothing else; `None`: there is no such rule, and it is allowed
    /// this once.
    fn own_rule(&self) -> Option<Value> {
        if crate::planted::is("whole-tool") && !self.tool.is_empty() {
            return Some(json!({"toolName": self.tool}));
        }
        let text = |field: &str| {
            self.input
                .get(field)
                .and_then(Value::as_str)
                .filter(|text| !text.trim().is_empty() && !self.is_cut)
        };
        // In a rule, these signs stand for more than themselves.
        let exact = |text: &&str| !text.contains(['*', '?', '[', '{', '!', '\\']);
        let (tool, content) = match self.tool.as_str() {
            "Bash" => (
                "Bash",
                text("command")
                    .filter(|command| !command.contains('*') && !command.contains('\\'))?
                    .to_string(),
            ),
            "Read" => (
                "Read",
                format!(
                    "/{}",
                    text("file_path").filter(exact).filter(|path| path.starts_with('/'))?
                ),
            ),
            "Edit" | "Write" | "MultiEdit" => (
                "Edit",
                format!(
                    "/{}",
                    text("file_path").filter(exact).filter(|path| path.starts_with('/'))?
                ),
            ),
            "WebFetch" => {
                let host = text("url")?
                    .split_once("://")?
                    .1
                    .split(['/', '?', '#', '\\'])
                    .next()
                    .filter(|host| !host.contains('@'))?;
                let host = host.split(':').next().filter(|host| !host.is_empty())?;
                ("WebFetch", format!("domain:{}", Some(host).filter(exact)?))
            }
            // Tools of servers have no finer rule (the program itself offers none).
            name if name.starts_with("mcp__") => return Some(json!({"toolName": name})),
            _ => return None,
        };
        Some(json!({"toolName": tool, "ruleContent": content}))
    }

    /// Why a decision cannot be carried out, before it is.
    pub fn objection(&self, decision: Decision, answers: Option<&Value>) -> Option<String> {
        let allows = matches!(decision, Decision::Approve | Decision::ApproveSession);
        if !self.is_question() || !allows {
            return None;
        }
        if self.damage != Damage::None {
            return Some(
                "this question is unreadable in part, so it cannot be answered: deny it and say \
                 with --reason what you would have answered"
                    .into(),
            );
        }
        let answers = answers.and_then(Value::as_object);
        let questions =
            self.input.get("questions").and_then(Value::as_array).cloned().unwrap_or_default();
        let missing = questions
            .iter()
            .filter_map(|question| question.get("question")?.as_str())
            .find(|question| !answers.is_some_and(|answers| answers.contains_key(*question)));
        missing.map(|question| {
            format!("this is a question: say the answer with --answer {question:?}=<choice>")
        })
    }
}

/// An answer in neutral form.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum Answer {
    Allow {
        /// Empty: as it was asked.
        input: Map<String, Value>,
        /// What is allowed without a question from now on.
        rules: Vec<Value>,
    },
    Deny {
        /// What the model is told.
        message: String,
        /// The turn ends, too.
        interrupt: bool,
    },
}

impl Answer {
    /// As decision of a PermissionRequest hook, or response to `can_use_tool`: both have the same
    /// fields.
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
            Answer::Deny { message, interrupt } => {
                json!({"behavior": "deny", "message": message, "interrupt": interrupt})
            }
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

/// The same call of the same tool has the same number.
pub fn number(tool: &str, input: &Map<String, Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (tool, Value::Object(input.clone()).to_string()).hash(&mut hasher);
    hasher.finish()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::FIELD_CHARS_MAX;

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
        assert_eq!(
            Ask::read(&json!({"tool_name": 5, "tool_input": "x"}), "tool_input"),
            Ask { tool: "Tool".into(), ..Default::default() }
        );
        let long = Ask {
            tool: "Bash".into(),
            input: [("command".to_string(), json!("x".repeat(9000)))].into_iter().collect(),
            ..Default::default()
        };
        assert!(
            long.view("p").input["command"]
                .as_str()
                .is_some_and(|text| text.chars().count() == FIELD_CHARS_MAX + 1)
        );
    }

    #[test]
    fn a_session_is_allowed_no_more_than_was_asked() {
        let rules = |tool: &str, input: Value, suggestions: Value| {
            let record = json!({"tool_name": tool, "tool_input": input, "permission_suggestions": suggestions});
            match Ask::read(&record, "tool_input").answer(Decision::ApproveSession, None, None) {
                Answer::Allow { rules, .. } => json!(rules),
                other => panic!("{other:?}"),
            }
        };
        let rule = |tool: &str, content: &str| json!([{"type": "addRules", "rules": [{"toolName": tool, "ruleContent": content}], "behavior": "allow", "destination": "session"}]);
        let none = || json!([]);
        for (tool, input, want) in [
            ("Bash", json!({"command": "touch x1"}), rule("Bash", "touch x1")),
            // With these signs it would be a pattern.
            ("Bash", json!({"command": "rm *"}), none()),
            ("Bash", json!({"command": "git log:*"}), none()),
            ("Bash", json!({}), none()),
            ("Write", json!({"file_path": "/w/a.txt"}), rule("Edit", "//w/a.txt")),
            ("Edit", json!({"file_path": "/w/**"}), none()),
            ("Read", json!({"file_path": "/etc/x"}), rule("Read", "//etc/x")),
            (
                "WebFetch",
                json!({"url": "https://a.example:8/x?y"}),
                rule("WebFetch", "domain:a.example"),
            ),
            ("WebFetch", json!({"url": "https://a@b/x"}), none()),
            ("WebFetch", json!({"url": "https://good.example:pw@evil.example/"}), none()),
            (
                "mcp__s__t",
                json!({}),
                json!([{"type": "addRules", "rules": [{"toolName": "mcp__s__t"}], "behavior": "allow", "destination": "session"}]),
            ),
            ("Agent", json!({"prompt": "x"}), none()),
        ] {
            assert_eq!(rules(tool, input.clone(), none()), want, "{tool} {input}");
        }
        let cut = json!({"tool_name": "Bash", "tool_input": {"command": "long"}, CUT: true});
        assert_eq!(Ask::read(&cut, "tool_input").session_rules(), Vec::<Value>::new());
        // The recorded request suggests a folder and a mode, and no rule.
        let recorded = include_str!("../../../tests/fixtures/claude/hooks/PermissionRequest.json");
        let ask = Ask::read(&serde_json::from_str(recorded).expect("recording"), "tool_input");
        assert_eq!(
            json!(ask.session_rules()),
            json!([{"type": "addDirectories", "directories": ["/workspace"], "destination": "session"}, rule("Bash", "touch /workspace/x1")[0]])
        );
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
    fn what_is_damaged_is_allowed_once_at_most() {
        for damage in [Damage::Patched, Damage::Broken] {
            let record = |tool: &str| {
                let mut record = json!({
                    "tool_name": tool, "tool_input": {"command": "x\u{fffd}"},
                    "permission_suggestions": [{"type": "addRules", "behavior": "allow"}]
                });
                damage.mark(&mut record);
                record
            };
            for tool in ["Bash", "mcp__s__t", ""] {
                let ask = Ask::read(&record(tool), "tool_input");
                assert_eq!(ask.command(), None, "nothing of it is allowed unasked");
                let view = ask.view("p");
                assert!(view.title.starts_with("unreadable"), "{}", view.title);
                assert_eq!(view.options, ["approve", "deny", "abort"]);
                for decision in [Decision::Approve, Decision::ApproveSession] {
                    let nothing = Answer::Allow { input: Map::new(), rules: Vec::new() };
                    assert_eq!(ask.answer(decision, None, None), nothing, "{tool}");
                }
            }
            let question = Ask::read(&record(QUESTION), "tool_input");
            assert_eq!(question.view("p").options, ["deny", "abort"]);
            let answers = json!({"x": "y"});
            assert!(question.objection(Decision::Approve, Some(&answers)).is_some());
            assert_eq!(question.objection(Decision::Deny, None), None);
        }
    }

    #[test]
    fn a_question_needs_its_answers() {
        let questions = json!([{"question": "Which colour?", "options": [{"label": "Red"}]}]);
        let ask = Ask::read(
            &json!({"tool_name": QUESTION, "tool_input": {"questions": questions}}),
            "tool_input",
        );
        assert!(
            ask.objection(Decision::Approve, None)
                .is_some_and(|text| text.contains("Which colour?"))
        );
        assert_eq!(ask.objection(Decision::Deny, None), None);
        let answers = json!({"Which colour?": "Red"});
        assert_eq!(ask.objection(Decision::Approve, Some(&answers)), None);
        let printed = ask.answer(Decision::Approve, None, Some(&answers)).for_hook("PreToolUse");
        assert_eq!(
            printed["hookSpecificOutput"]["updatedInput"],
            json!({"questions": questions, "answers": answers})
        );
        assert_eq!(ask.view("q").kind, "question");
    }
}
