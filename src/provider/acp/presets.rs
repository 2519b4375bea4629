//! Agents that are known: start command, permission modes, tested version, and what keeps them from
//! asking by themselves. `tests/interop/install.sh` reads the tested versions here.
//!
//! Default modes of some agents let a model judge commands, and one asks nothing unless it is told
//! to, so "guarded" is only guarded when the mode and the environment are set.

use crate::provider::capabilities::Preset;
use crate::provider::settings::ApprovalMode;

/// Permission modes: for `open`, `guarded` and `read-only`.
type Modes = [&'static str; 3];

/// One known agent.
struct Known {
    preset: Preset,
    /// The `agentInfo.name` that it reports; empty: never run here.
    agent: &'static str,
    modes: Option<Modes>,
}

/// Asks for everything that changes or leaves the workspace.
const OPENCODE_ASKS: &str = r#"{"permission":{"bash":"ask","edit":"ask","webfetch":"ask"}}"#;
const OPENCODE_DENIES: &str = r#"{"permission":{"bash":"deny","edit":"deny","webfetch":"ask"}}"#;

macro_rules! known {
    ($name:literal, $command:expr, $agent:literal, $version:literal, $modes:expr, $env:expr, $guarded:expr, $read_only:expr, $about:literal) => {
        Known {
            preset: Preset {
                name: $name,
                command: &$command,
                version: $version,
                about: $about,
                env: &$env,
                guarded_env: &$guarded,
                read_only_env: &$read_only,
            },
            agent: $agent,
            modes: $modes,
        }
    };
}

#[rustfmt::skip]
const TABLE: &[Known] = &[
    known!("opencode", ["opencode", "acp"], "OpenCode", "1.18.33", Some(["build", "build", "plan"]),
        [("OPENCODE_DISABLE_AUTOUPDATE", "1")], [("OPENCODE_CONFIG_CONTENT", OPENCODE_ASKS)], [("OPENCODE_CONFIG_CONTENT", OPENCODE_DENIES)],
        "OpenCode; its providers stand in ~/.config/opencode/opencode.json"),
    known!("claude-agent", ["claude-agent-acp"], "@agentclientprotocol/claude-agent-acp", "0.101.0", Some(["default", "default", "plan"]),
        [("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("DISABLE_AUTOUPDATER", "1")], [], [],
        "Claude Agent adapter; ANTHROPIC_API_KEY or a login; needs Node 22 or newer"),
    known!("codex", ["codex-acp"], "@agentclientprotocol/codex-acp", "2.6.0", Some(["agent-full-access", "read-only", "read-only"]), [], [], [],
        "Codex adapter; OPENAI_API_KEY or a login"),
    known!("codex-zed", ["codex-acp"], "codex-acp", "0.16.0", Some(["full-access", "read-only", "read-only"]), [], [], [],
        "Codex adapter of Zed (older)"),
    known!("gemini", ["gemini", "--acp"], "gemini-cli", "0.61.0", Some(["yolo", "default", "plan"]), [("GEMINI_CLI_TRUST_WORKSPACE", "true")], [], [],
        "Gemini CLI; GEMINI_API_KEY; needs Node 20 or newer"),
    known!("qwen", ["qwen", "--acp"], "qwen-code", "0.24.4", Some(["yolo", "default", "plan"]), [], [], [],
        "Qwen Code; OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL; needs Node 22 or newer"),
    known!("auggie", ["auggie", "--acp"], "", "", None, [], [], [], "Auggie; log in first (not tested here)"),
    known!("droid", ["droid", "exec", "--output-format", "acp"], "", "", None, [], [], [], "Factory Droid; log in first (not tested here)"),
    known!("copilot", ["copilot-language-server", "--acp"], "", "", None, [], [], [], "GitHub Copilot; log in first (not tested here)"),
    known!("kimi", ["kimi", "acp"], "", "", None, [], [], [], "Kimi; log in first (not tested here)"),
    known!("vibe", ["vibe-acp"], "", "", None, [], [], [], "Mistral Vibe; an API key (not tested here)"),
    known!("qoder", ["qodercli", "--acp"], "", "", None, [], [], [], "Qoder; log in first (not tested here)"),
    known!("goose", ["goose", "acp"], "", "", None, [], [], [], "Goose; an API key (not tested here)"),
    known!("demo", ["agent-relay", "demo-agent"], "agent-relay-demo", "", Some(["ask", "ask", "ask"]), [], [], [], "the built-in demo agent, without a model"),
];

/// All presets, in the order of help texts.
pub fn all() -> impl Iterator<Item = &'static Preset> {
    TABLE.iter().map(|known| &known.preset)
}

/// The mode to set for an agent, if it is known.
pub fn mode_for(agent: &str, approval: ApprovalMode) -> Option<&'static str> {
    let modes = TABLE.iter().find(|known| !known.agent.is_empty() && known.agent == agent)?.modes?;
    Some(match approval {
        ApprovalMode::Open => modes[0],
        ApprovalMode::Guarded => modes[1],
        ApprovalMode::ReadOnly => modes[2],
    })
}

/// The tested version of an agent, if the one at hand is older: an old Node silently installs an
/// old agent.
pub fn older_than_tested(agent: &str, version: &str) -> Option<&'static str> {
    let known = TABLE.iter().find(|known| !known.agent.is_empty() && known.agent == agent)?;
    let parts = |text: &str| -> Option<Vec<u64>> {
        text.split(['.', '-']).take(3).map(|part| part.parse().ok()).collect()
    };
    (parts(version)? < parts(known.preset.version)?).then_some(known.preset.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, older) in [
            ("1.18.33", false),
            ("1.18.4", true),
            ("1.9.99", true),
            ("2.0.0", false),
            ("1.18.33-beta", false),
            ("dev", false),
        ] {
            assert_eq!(older_than_tested("OpenCode", version).is_some(), older, "{version}");
        }
        assert_eq!(older_than_tested("somebody", "0.0.1"), None);
    }

    #[test]
    fn every_tested_agent_has_explicit_modes() {
        for known in TABLE {
            assert_eq!(known.agent.is_empty(), known.modes.is_none(), "{}", known.preset.name);
            assert!(!known.preset.command.is_empty());
        }
    }
}
