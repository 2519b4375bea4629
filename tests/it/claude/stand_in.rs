//! The stand-in itself.

use super::*;

/// The stand-in says nothing that the real program does not say, and leaves out nothing that
/// counts.
#[test]
fn the_stand_in_speaks_as_the_recordings_do() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-diff", &[]);
    claude.asks("MARK-ONE");
    let id = claude.machine.send("a", "MARK-PERM PERM");
    let approval = claude.approval();
    claude.machine.ok(&["approvals", "approve", &approval]);
    claude.answered(id);
    claude.machine.ok(&["command", "a", "compact"]);
    claude.machine.ok(&["command", "a", "clearContext"]);
    let log = std::fs::read_to_string(claude.machine.home.join("fake/hooks.log")).expect("log");
    let keys = |value: &Value| {
        value
            .as_object()
            .map(|map| map.keys().cloned().collect::<BTreeSet<String>>())
            .unwrap_or_default()
    };
    let fixtures =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/claude/hooks");
    let mut events = BTreeSet::new();
    for line in log.lines() {
        let payload: Value = serde_json::from_str(line).expect("JSON");
        let event = payload["hook_event_name"].as_str().expect("an event").to_string();
        let file = match payload["source"].as_str().or(payload["reason"].as_str()) {
            Some("clear") => format!("{event}.clear"),
            _ => event.clone(),
        };
        let text =
            std::fs::read_to_string(fixtures.join(format!("{file}.json"))).expect("recorded");
        let recorded = keys(&serde_json::from_str(&text).expect("JSON"));
        // What depends on settings and flags may be missing.
        let free = ["prompt_id", "permission_mode", "effort", "model", "session_title"];
        let wanted: BTreeSet<String> =
            recorded.iter().filter(|key| !free.contains(&key.as_str())).cloned().collect();
        let told: BTreeSet<String> =
            keys(&payload).into_iter().filter(|key| !free.contains(&key.as_str())).collect();
        assert_eq!(told, wanted, "{event}");
        events.insert(event);
    }
    let all = [
        "SessionStart",
        "UserPromptSubmit",
        "Stop",
        "PermissionRequest",
        "PreCompact",
        "PostCompact",
        "SessionEnd",
    ];
    assert!(all.iter().all(|event| events.contains(*event)), "{events:?}");
}
