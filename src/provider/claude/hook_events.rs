//! Words of the program's hooks: events, fields of their payloads, and what a hook may answer.

use serde_json::{Value, json};

use crate::provider::hooks::{HookCall, Hooks};
use crate::wire::words::words;

words! {
    /// What a hook tells: an event as the program's payloads name it, or a word of ours.
    HookName {
        SessionStart = "SessionStart",
        UserPromptSubmit = "UserPromptSubmit",
        Stop = "Stop",
        StopFailure = "StopFailure",
        SubagentStart = "SubagentStart",
        SubagentStop = "SubagentStop",
        PreCompact = "PreCompact",
        PostCompact = "PostCompact",
        SessionEnd = "SessionEnd",
        PermissionRequest = "PermissionRequest",
        Notification = "Notification",
        PreSkillShellCommand = "PreSkillShellCommand",
        /// The status line: no payload names it.
        StatusLine = "status-line",
        /// A command has shown messages to the session.
        Fetched = "fetched",
        /// The bare status post of a hook whose program could not be run.
        Busy = "busy",
        /// The same at the end of a turn.
        Idle = "idle",
    }
}

/// Its hooks.
pub const HOOKS: Hooks = Hooks {
    events: &[
        "session-start",
        "user-prompt-submit",
        "stop",
        "stop-failure",
        "subagent-start",
        "subagent-stop",
        "pre-compact",
        "post-compact",
        "session-end",
        "permission-request",
        "notification",
        "pre-skill-shell-command",
        "status-line",
    ],
    status_post,
    // A payload that names its own event is one source among others there. The status line has
    // none.
    is_for_session: |event, payload| {
        payload.get("hook_event_name").is_some() || event == HookName::StatusLine.as_str()
    },
    may_be_held_back: |event, payload| {
        event == "stop" && payload.get("stop_hook_active") != Some(&json!(true))
    },
    hold_back: |reason| json!({"decision": "block", "reason": reason}),
    input_field: "tool_input",
    from_older_endpoint,
};

fn status_post(event: &str, payload: &Value) -> Value {
    let text = |field: &str| payload.get(field).and_then(Value::as_str).unwrap_or_default();
    let subagent = || {
        let id = [text("agent_id"), text("subagent_id")]
            .into_iter()
            .find(|id| !id.is_empty())
            .unwrap_or("subagent")
            .to_string();
        (id, text("agent_type").to_string())
    };
    match event {
        "user-prompt-submit" => json!({"status": "busy"}),
        "session-start" => json!({"status": "idle"}),
        "stop" => json!({"status": "idle", "clear": ["subagent"]}),
        "stop-failure" => {
            json!({"status": "idle", "clear": ["subagent"], "metadata": {"error": text("error")}})
        }
        "subagent-start" => {
            let (id, label) = subagent();
            json!({"status": "busy", "reason": "subagent", "id": id, "label": label})
        }
        "subagent-stop" => {
            let (id, _) = subagent();
            json!({"status": "idle", "reason": "subagent", "id": id})
        }
        "pre-compact" => json!({"status": "busy", "timeline": {"status": "compacting"}}),
        "post-compact" => json!({"status": "idle", "timeline": {"status": "compacted"}}),
        // These go on with another session of the same program.
        "session-end" if matches!(text("reason"), "clear" | "compact") => {
            json!({"status": "idle", "clear": ["subagent"]})
        }
        "session-end" => json!({"status": "offline"}),
        // The others say nothing that a bare status could.
        _ => Value::Null,
    }
}

/// The bodies of the older endpoints, in the words of today's payloads.
fn from_older_endpoint(path: &str, body: &Value) -> Option<HookCall> {
    let (event, name, fields): (_, _, &[(&str, &str)]) = match path {
        "/user-prompt" => (
            "user-prompt-submit",
            HookName::UserPromptSubmit,
            &[("prompt", "prompt"), ("transcriptPath", "transcript_path")],
        ),
        "/session-turn" => (
            "stop",
            HookName::Stop,
            &[
                ("lastAssistantMessage", "last_assistant_message"),
                ("transcriptPath", "transcript_path"),
            ],
        ),
        "/session-end" => (
            "session-end",
            HookName::SessionEnd,
            &[("reason", "reason"), ("transcriptPath", "transcript_path")],
        ),
        _ => return None,
    };
    let mut payload = json!({"hook_event_name": name.as_str()});
    for (from, to) in fields {
        if let Some(text) = body.get(*from).and_then(Value::as_str) {
            payload[*to] = json!(text);
        }
    }
    Some(HookCall { event, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_posts() {
        for (event, payload, want) in [
            ("stop", json!({}), json!({"status": "idle", "clear": ["subagent"]})),
            ("user-prompt-submit", json!({"prompt": "x"}), json!({"status": "busy"})),
            (
                "subagent-start",
                json!({"agent_id": "s1", "agent_type": "Explore"}),
                json!({"status": "busy", "reason": "subagent", "id": "s1", "label": "Explore"}),
            ),
            (
                "session-end",
                json!({"reason": "clear"}),
                json!({"status": "idle", "clear": ["subagent"]}),
            ),
            ("session-end", json!({"reason": "logout"}), json!({"status": "offline"})),
            ("notification", json!({}), Value::Null),
            ("pre-skill-shell-command", json!({"command_name": "x"}), Value::Null),
        ] {
            assert_eq!(status_post(event, &payload), want, "{event}");
        }
    }

    #[test]
    fn older_endpoints_say_what_hooks_say() {
        let body = json!({"prompt": "x", "transcriptPath": "/t", "lastAssistantMessage": "y", "reason": 5});
        for (path, event, payload) in [
            (
                "/user-prompt",
                "user-prompt-submit",
                json!({"hook_event_name": "UserPromptSubmit", "prompt": "x", "transcript_path": "/t"}),
            ),
            (
                "/session-turn",
                "stop",
                json!({"hook_event_name": "Stop", "last_assistant_message": "y", "transcript_path": "/t"}),
            ),
            (
                "/session-end",
                "session-end",
                json!({"hook_event_name": "SessionEnd", "transcript_path": "/t"}),
            ),
        ] {
            assert_eq!(
                from_older_endpoint(path, &body),
                Some(HookCall { event, payload }),
                "{path}"
            );
            assert!(HOOKS.events.contains(&event));
        }
        assert_eq!(from_older_endpoint("/stop", &body), None);
    }

    #[test]
    fn only_the_first_end_of_a_turn_is_held_back() {
        for (event, payload, want) in [
            ("stop", json!({}), true),
            ("stop", json!({"stop_hook_active": false}), true),
            ("stop", json!({"stop_hook_active": true}), false),
            ("session-end", json!({}), false),
        ] {
            assert_eq!((HOOKS.may_be_held_back)(event, &payload), want, "{event} {payload}");
        }
    }
}
