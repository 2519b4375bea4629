//! What an agent is on the relay: its machine's settings, with what is registered.

use serde_json::{Map, Value, json};

use super::chosen::Chosen;
use super::print;
use crate::config::env;
use crate::core::agent::config::AgentConfig;
use crate::core::agent::prompt::{Prompt, StartKey};
use crate::core::matching::Identity;
use crate::os;
use crate::provider::launch::Transport;
use crate::provider::settings::{ApprovalMode, ProviderSettings};
use crate::secret::Secret;
use crate::wire::VERSION;
use crate::wire::bus::Registration;
use crate::wire::control::ENV_TOKEN;

/// Lists without duplicates, in order.
fn list(parts: &[&[String]]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for item in parts.iter().flat_map(|part| part.iter()) {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    all
}

fn commas(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect()
}

/// What every runner can do, whatever its provider: capabilities by which others find it.
const RUNNER_CAPABILITIES: [&str; 7] = [
    "lifecycle.shutdown.hard",
    "lifecycle.restart.hard",
    "lifecycle.status.semantic",
    "lifecycle.heartbeat",
    "lifecycle.reconnect.transport",
    "commands.lifecycle",
    "capabilities.report",
];

/// What the agent is found by: its id, label, tags and capabilities.
fn identity(chosen: &Chosen) -> Identity {
    let Chosen { args, config, .. } = chosen;
    let capabilities = list(&[
        &config.default_capabilities,
        &commas(args.caps.clone()),
        &commas(env("AGENT_RELAY_CAPS").or_else(|| env("AGENT_RELAY_CAPABILITIES"))),
        &RUNNER_CAPABILITIES.map(String::from),
    ]);
    let is_headless = args.headless || chosen.transport == Transport::Tmux;
    let headless: &[String] = if is_headless { &["headless".to_string()] } else { &[] };
    let tags = list(&[
        &[chosen.provider.name.to_string()],
        &commas(env("AGENT_RELAY_TAGS")),
        &commas(args.tags.clone()),
        &config.default_tags,
        headless,
    ]);
    let profile: Option<Value> =
        env("AGENT_RELAY_AGENT_PROFILE_JSON").and_then(|text| serde_json::from_str(&text).ok());
    let broad_targets =
        profile.as_ref().and_then(|p| p.pointer("/relay/context")) != Some(&json!(false));
    Identity {
        agent_id: chosen.agent_id.clone(),
        label: chosen.label.clone(),
        tags,
        capabilities,
        broad_targets,
    }
}

/// A UUID of this start.
fn new_instance_id() -> String {
    let random = os::random_bytes::<8>();
    crate::core::rng::Rng::new(u64::from_le_bytes(random)).uuid()
}

/// The settings of the agent's machine. `started_at`: wall clock, ms.
pub(super) fn agent_config(chosen: &Chosen, started_at: i64) -> AgentConfig {
    let Chosen { args, config, global, .. } = chosen;
    // What the environment says of a token counts only if its own token is the one in use.
    let is_described = env(ENV_TOKEN).map(Secret::new) == global.token;
    let said = |name: &str| env(name).filter(|_| is_described);
    let identity = identity(chosen);
    let instance_id = new_instance_id();
    let registration = Registration {
        role: "provider".into(),
        component_id: chosen.runner_id.clone(),
        agent_id: Some(chosen.agent_id.clone()),
        instance_id: instance_id.clone(),
        capabilities: identity.capabilities.clone(),
        tags: identity.tags.clone(),
        machine: os::hostname(),
        meta: registration_meta(chosen, started_at),
        ..Default::default()
    };
    AgentConfig {
        agent_id: chosen.agent_id.clone(),
        runner_id: chosen.runner_id.clone(),
        instance_id,
        provider: chosen.provider.name.into(),
        identity,
        registration,
        approval_mode: chosen.approval.as_str().into(),
        prompt: args.prompt.clone().map(|text| first_prompt(text, args.prompt_again)),
        relay_url: global.relay_url.clone(),
        url_by_hand: global.url_by_hand,
        token_by_hand: global.token_by_hand,
        token: global.token.clone(),
        token_profile: said("AGENT_RELAY_TOKEN_PROFILE"),
        token_jti: said("AGENT_RELAY_TOKEN_JTI"),
        token_expires_at: said("AGENT_RELAY_TOKEN_EXPIRES_AT")
            .and_then(|text| text.parse().ok())
            .filter(|end| *end > 0),
        shutdown_timeout: config.shutdown_timeout,
        restart: config.restart.clone(),
        stuck_after: config.stuck_after,
        reply_mode: config.reply_mode,
        session: chosen.provider.capabilities,
        in_user_terminal: chosen.transport == Transport::Terminal,
        store_note: None,
        started_at,
    }
}

/// What the relay keeps of an agent; absent values are null, not omitted.
fn registration_meta(chosen: &Chosen, started_at: i64) -> Map<String, Value> {
    let (provider, approval, transport) =
        (chosen.provider.name, chosen.approval.as_str(), chosen.transport);
    let ProviderSettings { model, effort, .. } = &chosen.args.own;
    let workspace: Option<Value> = env("AGENT_RELAY_WORKSPACE_JSON")
        .and_then(|text| serde_json::from_str(&text).ok())
        .filter(Value::is_object);
    let mode =
        workspace.as_ref().and_then(|w| w.get("requestedMode").or_else(|| w.get("mode"))).cloned();
    let writes = chosen.approval != ApprovalMode::ReadOnly;
    // A server is told, also while a person has its window; a terminal of his is not typed into.
    let told = transport != Transport::Terminal || chosen.provider.capabilities.takes_guests;
    let steers = chosen.provider.capabilities.changes_context && told;
    let meta = json!({
        "package": {"name": "agent-relay-runner", "version": VERSION},
        "version": VERSION, "provider": provider, "model": model, "effort": effort,
        "transport": transport.as_str(), "profile": chosen.args.profile, "agentProfile": null,
        "processStart": {"boot": os::boot_id(), "ticks": Some(os::process(std::process::id()).start).filter(|ticks| *ticks > 0)},
        "runnerId": chosen.runner_id, "startedAt": started_at, "tmuxSession": env("AGENT_RELAY_TMUX_SESSION"), "tmuxSocket": null,
        "policyName": env("AGENT_RELAY_POLICY"), "spawnRequestId": env("AGENT_RELAY_SPAWN_REQUEST_ID"),
        "automationId": env("AGENT_RELAY_AUTOMATION_ID"), "automationRunId": env("AGENT_RELAY_AUTOMATION_RUN_ID"),
        "workspace": workspace, "workspaceMode": mode.or_else(|| env("AGENT_RELAY_WORKSPACE_MODE").map(Value::from)),
        "runnerManaged": true, "cwd": chosen.cwd.to_string_lossy(), "approvalMode": approval, "label": chosen.label,
        "lifecycleCapabilities": {"shutdownHard": true, "restartHard": true, "semanticStatus": true, "transportReconnect": true},
        "providerCapabilities": {
            "lifecycle": {"managed": true, "shutdownHard": true, "restartHard": true, "semanticStatus": true, "reconnect": true},
            "model": {"provider": provider, "alias": model, "id": model, "effort": effort,
                      "source": "runtime", "confidence": if model.is_some() { "reported" } else { "unknown" }, "lastUpdatedAt": started_at},
            "session": {"approvalMode": approval, "fileRead": true, "fileWrite": writes, "shell": writes,
                        "source": "runtime", "confidence": "reported", "lastUpdatedAt": started_at},
            "context": {"compact": steers, "clear": steers, "inject": true},
            "terminal": match transport {
                Transport::Tmux => json!({"live": {"read": true, "write": true}}),
                _ if chosen.provider.capabilities.takes_guests => {
                    json!({"attach": {"create": true, "read": true, "write": true, "detach": true}})
                }
                _ => Value::Null,
            },
            "source": "runtime", "confidence": "reported", "lastUpdatedAt": started_at,
        },
    });
    meta.as_object().cloned().unwrap_or_default()
}

/// The first prompt, and the key under which it is delivered once. An orchestrator keeps the id of
/// its request through recovery and restart; each start by a person has a new key; a unit, a
/// container or a script has the same key as long as the text is the same.
fn first_prompt(text: String, again: bool) -> Prompt {
    let at_terminal = rustix::termios::isatty(std::io::stdin()) || print::stderr_is_terminal();
    let key = match env("AGENT_RELAY_SPAWN_REQUEST_ID") {
        Some(id) => StartKey::Request(id),
        None if at_terminal => StartKey::Person,
        None => StartKey::Text,
    };
    Prompt { digest: os::sha256_hex(&text), text, key, again }
}
