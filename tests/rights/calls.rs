//! The calls of the table.

use super::*;

/// The request of a row, and what has to be done first.
fn request(name: &str) -> (&'static str, &'static str, Value) {
    let agent = json!({"id": "a", "role": "provider", "instanceId": "i"});
    match name {
        "POST /api/agents" => ("", "/api/agents", agent),
        "POST /api/agents {as orchestrator}" => {
            ("", "/api/agents", json!({"id": "o", "role": "orchestrator", "instanceId": "i"}))
        }
        "DELETE /api/agents" => ("", "/api/agents", json!({"ids": ["a"]})),
        "PUT /api/agents/{id}/status" => {
            ("", "/api/agents/a/status", json!({"status": "busy", "instanceId": "i"}))
        }
        "PUT /api/agents/{id}/ready" => {
            ("", "/api/agents/a/ready", json!({"ready": true, "instanceId": "i"}))
        }
        "POST /api/agents/{id}/heartbeat" => {
            ("", "/api/agents/a/heartbeat", json!({"instanceId": "i"}))
        }
        "PUT /api/agents/{id}/label" => ("", "/api/agents/a/label", json!({"label": "web"})),
        "GET /api/agents/{id}/reply-obligations" => {
            ("", "/api/agents/a/reply-obligations", json!({}))
        }
        "GET /api/agents/{id}" | "DELETE /api/agents/{id}" => ("", "/api/agents/a", json!({})),
        "POST /api/messages" => ("", "/api/messages", json!({"to": "a", "body": "x"})),
        "POST /api/messages {as a}" => {
            ("", "/api/messages", json!({"to": "b", "from": "a", "body": "x"}))
        }
        "POST /api/messages/batch" => {
            ("", "/api/messages/batch", json!({"messages": [{"to": "a", "body": "x"}]}))
        }
        "GET /api/messages" => ("", "/api/messages?for=a", json!({})),
        "GET /api/messages/{id}" => ("", "/api/messages/1", json!({})),
        "GET /api/messages/{id}/thread" => ("", "/api/messages/1/thread", json!({})),
        "POST /api/messages/{id}/claim" => ("", "/api/messages/2/claim", json!({"agentId": "a"})),
        "POST /api/messages/{id}/claim {as itself}" => ("", "/api/messages/2/claim", json!({})),
        "POST /api/messages/{id}/claim/renew" => {
            ("claim", "/api/messages/2/claim/renew", json!({"agentId": "a"}))
        }
        "DELETE /api/messages/{id}/claim" => {
            ("claim", "/api/messages/2/claim", json!({"agentId": "a"}))
        }
        "POST /api/messages/{id}/read" => ("", "/api/messages/1/read", json!({"agentId": "a"})),
        "POST /api/messages/{id}/read {as itself}" => ("", "/api/messages/1/read", json!({})),
        "POST /api/messages/{id}/reactions" => {
            ("", "/api/messages/1/reactions", json!({"agentId": "a", "emoji": "+"}))
        }
        "POST /api/messages/{id}/reactions {as itself}" => {
            ("", "/api/messages/1/reactions", json!({"emoji": "+"}))
        }
        "POST /api/tasks" => ("", "/api/tasks", json!({"to": "a", "title": "t"})),
        "GET /api/tasks/{id}" => ("", "/api/tasks/1", json!({})),
        "PATCH /api/tasks/{id}" => {
            ("claim", "/api/tasks/1", json!({"status": "in_progress", "agentId": "a"}))
        }
        "POST /api/commands" => {
            ("", "/api/commands", json!({"type": "agent.kill", "target": "component-a"}))
        }
        "POST /api/commands {for o}" => {
            ("", "/api/commands", json!({"type": "agent.spawn", "target": "component-o"}))
        }
        "GET /api/commands/{id}" => ("", "/api/commands/COMMAND", json!({})),
        "PATCH /api/commands/{id}" => ("", "/api/commands/COMMAND", json!({"status": "succeeded"})),
        "PATCH /api/commands/{id} {cancelled}" => {
            ("", "/api/commands/COMMAND", json!({"status": "cancelled"}))
        }
        "POST /api/tokens {provider-agent}" => {
            ("", "/api/tokens", json!({"profileId": "provider-agent", "agentId": "a"}))
        }
        "POST /api/tokens {operator}" => ("", "/api/tokens", json!({"profileId": "operator"})),
        "DELETE /api/tokens/{jti}" => ("", "/api/tokens/own", json!({})),
        "POST /api/mcp" => ("", "/api/mcp", json!({"id": 1, "method": "tools/list"})),
        "POST /api/insights/observations" => {
            ("", "/api/insights/observations", json!({"signal": "x"}))
        }
        _ => ("", "", json!({})),
    }
}

pub fn ask(name: &str, token: &str, gone: bool) -> String {
    let mut world = World::new();
    let (first, target, body) = request(name);
    if first == "claim" {
        assert_eq!(world.call("own", "POST", "/api/messages/2/claim", json!({})).0, "200");
    }
    let (method, path) = name.split_once(' ').expect("a method");
    let target = if target.is_empty() { path.split(" {").next().unwrap_or(path) } else { target };
    let command = world.call("root", "GET", "/api/commands", json!({})).1["commands"][0]["id"]
        .as_str()
        .expect("a command")
        .to_string();
    uncheck(gone, if name.ends_with("}") { strip_note(name) } else { name });
    let (status, _) = world.call(token, method, &target.replace("COMMAND", &command), body);
    uncheck(gone, "");
    status
}
