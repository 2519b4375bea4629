//! Permission modes by agent. Default modes of some agents let a model judge commands, so "guarded" is only guarded
//! when the mode is set (ACP FACTS section 3).

use crate::provider::ApprovalMode;

/// Modes of one agent, by the `agentInfo.name` that it reports.
struct Modes {
    agent: &'static str,
    open: &'static str,
    guarded: &'static str,
    read_only: &'static str,
}

const TABLE: &[Modes] = &[
    Modes { agent: "OpenCode", open: "build", guarded: "build", read_only: "plan" },
    Modes { agent: "@agentclientprotocol/claude-agent-acp", open: "default", guarded: "default", read_only: "plan" },
    Modes { agent: "@agentclientprotocol/codex-acp", open: "agent-full-access", guarded: "read-only", read_only: "read-only" },
    Modes { agent: "codex-acp", open: "full-access", guarded: "read-only", read_only: "read-only" },
    Modes { agent: "gemini-cli", open: "yolo", guarded: "default", read_only: "plan" },
    Modes { agent: "qwen-code", open: "yolo", guarded: "default", read_only: "plan" },
    Modes { agent: "agent-relay-demo", open: "ask", guarded: "ask", read_only: "ask" },
];

/// The mode to set for an agent, if it is known.
pub fn mode_for(agent: &str, approval: ApprovalMode) -> Option<&'static str> {
    let modes = TABLE.iter().find(|modes| modes.agent == agent)?;
    Some(match approval {
        ApprovalMode::Open => modes.open,
        ApprovalMode::Guarded => modes.guarded,
        ApprovalMode::ReadOnly => modes.read_only,
    })
}
