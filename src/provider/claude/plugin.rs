//! The plugin that a session gets: hooks, skills, and for a person's own terminal a monitor. Its
//! source is `plugins/claude`.

use crate::provider::launch::TreeFile;

const fn text(path: &'static str, text: &'static str) -> TreeFile {
    TreeFile { path, text, is_program: false }
}

const fn program(path: &'static str, text: &'static str) -> TreeFile {
    TreeFile { path, text, is_program: true }
}

/// Files of the plugin.
pub const FILES: &[TreeFile] = &[
    text(
        ".claude-plugin/plugin.json",
        include_str!("../../../plugins/claude/.claude-plugin/plugin.json"),
    ),
    text("hooks/hooks.json", include_str!("../../../plugins/claude/hooks/hooks.json")),
    program("hooks/relay-hook.sh", include_str!("../../../hooks/relay-hook.sh")),
    text("skills/reply/SKILL.md", include_str!("../../../plugins/claude/skills/reply/SKILL.md")),
    text("skills/react/SKILL.md", include_str!("../../../plugins/claude/skills/react/SKILL.md")),
    text(
        "skills/read-message/SKILL.md",
        include_str!("../../../plugins/claude/skills/read-message/SKILL.md"),
    ),
    text(
        "skills/message/SKILL.md",
        include_str!("../../../plugins/claude/skills/message/SKILL.md"),
    ),
    text("skills/guide/SKILL.md", include_str!("../../../plugins/claude/skills/guide/SKILL.md")),
    text("skills/label/SKILL.md", include_str!("../../../plugins/claude/skills/label/SKILL.md")),
    text(
        "interactive/.claude-plugin/plugin.json",
        include_str!("../../../plugins/claude/interactive/.claude-plugin/plugin.json"),
    ),
    text(
        "interactive/monitors/monitors.json",
        include_str!("../../../plugins/claude/interactive/monitors/monitors.json"),
    ),
];

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::provider::launch::TreeFile;

    #[test]
    fn every_file_reads_and_every_hook_is_bounded() {
        for TreeFile { path, text, .. } in
            super::FILES.iter().filter(|file| file.path.ends_with(".json"))
        {
            let record: Value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"));
            if path.ends_with("plugin.json") {
                assert_eq!(record["agentRelayContracts"]["providerPluginProtocol"], 1, "{path}");
                assert_eq!(
                    record["version"],
                    crate::wire::VERSION,
                    "{path} carries the version of the binary"
                );
            }
            for hook in record["hooks"]
                .as_object()
                .into_iter()
                .flatten()
                .flat_map(|(_, groups)| groups.as_array().cloned().unwrap_or_default())
            {
                assert!(
                    hook["hooks"][0]["timeout"].as_u64().is_some_and(|seconds| seconds > 0),
                    "{hook}"
                );
                let command = hook["hooks"][0]["command"].as_str().unwrap_or_default();
                assert!(
                    command.starts_with("\"${CLAUDE_PLUGIN_ROOT}\"/hooks/relay-hook.sh "),
                    "{command}"
                );
            }
        }
    }
}
