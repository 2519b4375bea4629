//! What a spawn is asked for: read from the parameters of `agent.spawn`, checked, and with one
//! sentence for whatever cannot be.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::systemd::Ceilings;
use crate::wire::api::{AGENT_ID_RULE, is_agent_id};

/// Longest label, characters: it is a part of names of files and units.
const LABEL_CHARS_MAX: usize = 80;
/// Longest word, bytes: a name, an id, a folder.
const WORD_BYTES_MAX: usize = 4096;
/// Longest text that is given as an argument, bytes; the kernel takes no more in one.
const TEXT_BYTES_MAX: usize = 120 << 10;
/// Most entries of a list or of an environment.
const ENTRIES_MAX: usize = 512;
/// Longest life of a session that is given one, seconds.
const RUNTIME_SECONDS_MAX: u64 = 366 * 24 * 3600;

crate::wire::words::words! {
    /// When a session that ended is started again.
    RestartRule {
        /// Always, unless it was told to stop.
        Always = "always",
        /// When it ended by a failure, a kill or a reboot.
        OnFailure = "on-failure",
        Never = "never",
    }

    /// In which folder a session works.
    WorkspaceMode {
        /// In the folder that was given.
        Inherit = "inherit",
        /// The same, and others may work there too.
        Shared = "shared",
        /// In a copy of its own.
        Isolated = "isolated",
    }
}

/// Everything that a spawn may be told.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpawnOptions {
    pub provider: String,
    pub cwd: String,
    pub approval_mode: String,
    pub rig: Option<String>,
    pub model: Option<String>,
    pub effort: Option<String>,
    pub profile: Option<String>,
    pub workspace_mode: Option<String>,
    pub workspace: Option<Map<String, Value>>,
    pub agent_profile: Option<Map<String, Value>>,
    pub label: Option<String>,
    pub agent_id: Option<String>,
    pub prompt: Option<String>,
    pub system_prompt_append: Option<String>,
    pub env: BTreeMap<String, String>,
    pub tags: Vec<String>,
    pub capabilities: Vec<String>,
    pub provider_args: Vec<String>,
    pub policy_name: Option<String>,
    /// What this spawn is called by whoever asks; repeated, it gives the session that it gave.
    pub spawn_request_id: Option<String>,
    pub automation_id: Option<String>,
    pub automation_run_id: Option<String>,
    /// One of [`RestartRule`].
    pub restart: Option<String>,
    /// What its unit may use.
    #[serde(flatten)]
    pub ceilings: Ceilings,
    /// Wait until it fits instead of being refused.
    pub queue: bool,
}

impl SpawnOptions {
    /// Reads parameters; an error is one sentence. Unknown fields are ignored.
    pub fn read(params: &Map<String, Value>, providers: &[String]) -> Result<SpawnOptions, String> {
        let mut told = params.clone();
        told.retain(|_, value| !value.is_null());
        let mut options: SpawnOptions = serde_json::from_value(Value::Object(told))
            .map_err(|error| format!("the parameters of the spawn cannot be read: {error}"))?;
        if options.approval_mode.is_empty() {
            options.approval_mode = "guarded".into();
        }
        options.check(providers)?;
        Ok(options)
    }

    fn check(&self, providers: &[String]) -> Result<(), String> {
        if !providers.contains(&self.provider) {
            return Err(format!(
                "\"provider\" is {:?}; it must be one of {}",
                self.provider,
                providers.join(", ")
            ));
        }
        if self.cwd.is_empty() || !self.cwd.starts_with('/') {
            return Err("\"cwd\" must be the absolute path of a folder".into());
        }
        if !["open", "guarded", "read-only"].contains(&self.approval_mode.as_str()) {
            return Err(format!(
                "\"approvalMode\" is {:?}; it must be open, guarded or read-only",
                self.approval_mode
            ));
        }
        self.check_words()?;
        let label = self.label.as_deref().unwrap_or_default();
        if label.chars().count() > LABEL_CHARS_MAX {
            return Err(format!("\"label\" must have at most {LABEL_CHARS_MAX} characters"));
        }
        if let Some(id) = self.agent_id.as_deref().filter(|id| !is_agent_id(id)) {
            return Err(format!("{id:?} cannot be an agent id: {AGENT_ID_RULE}"));
        }
        match self.workspace_mode.as_deref().map(WorkspaceMode::parse) {
            None | Some(Some(WorkspaceMode::Inherit | WorkspaceMode::Shared)) => {}
            Some(Some(WorkspaceMode::Isolated)) => {
                return Err("the workspace mode \"isolated\" (a copy of the folder of its own) is not there yet; use inherit or shared".into());
            }
            Some(None) => return Err("\"workspaceMode\" must be inherit or shared".into()),
        }
        if self.restart.as_deref().is_some_and(|word| RestartRule::parse(word).is_none()) {
            return Err("\"restart\" must be always, on-failure or never".into());
        }
        if self.ceilings.runtime_max.is_some_and(|most| !(1..=RUNTIME_SECONDS_MAX).contains(&most))
        {
            return Err(format!("\"runtimeMax\" must be 1 to {RUNTIME_SECONDS_MAX} seconds"));
        }
        self.ceilings.check()
    }

    /// Lengths, and what no argument and no variable can hold.
    fn check_words(&self) -> Result<(), String> {
        let words = [
            ("cwd", Some(&self.cwd)),
            ("rig", self.rig.as_ref()),
            ("model", self.model.as_ref()),
            ("effort", self.effort.as_ref()),
            ("profile", self.profile.as_ref()),
            ("label", self.label.as_ref()),
            ("policyName", self.policy_name.as_ref()),
            ("spawnRequestId", self.spawn_request_id.as_ref()),
            ("automationId", self.automation_id.as_ref()),
            ("automationRunId", self.automation_run_id.as_ref()),
        ];
        for (name, word) in words {
            let bad =
                |word: &&String| word.len() > WORD_BYTES_MAX || word.contains(char::is_control);
            if word.is_some_and(|word| bad(&word)) {
                return Err(format!(
                    "\"{name}\" must be a text of one line, at most {WORD_BYTES_MAX} bytes"
                ));
            }
        }
        let texts = [&self.prompt, &self.system_prompt_append].into_iter().flatten();
        let lists = [&self.tags, &self.capabilities, &self.provider_args];
        let all = texts.chain(lists.into_iter().flatten()).chain(self.env.values());
        for text in all {
            if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
                return Err(format!(
                    "each text must have at most {TEXT_BYTES_MAX} bytes and no NUL"
                ));
            }
        }
        if lists.iter().any(|list| list.len() > ENTRIES_MAX) || self.env.len() > ENTRIES_MAX {
            return Err(format!("each list must have at most {ENTRIES_MAX} entries"));
        }
        match self.env.keys().find(|name| !is_variable(name)) {
            Some(name) => Err(format!("{name:?} in \"env\" cannot be the name of a variable")),
            None => Ok(()),
        }
    }

    /// When it is started again.
    pub fn restart_rule(&self) -> RestartRule {
        let told = self.restart.as_deref().and_then(RestartRule::parse);
        told.unwrap_or(RestartRule::OnFailure)
    }

    /// How long it may run, if it was told.
    pub fn runtime_max(&self) -> Option<Duration> {
        self.ceilings.runtime_max.map(Duration::from_secs)
    }

    /// The workspace mode of its runner.
    pub fn workspace_mode(&self) -> &str {
        self.workspace_mode.as_deref().unwrap_or(WorkspaceMode::Inherit.as_str())
    }
}

/// Whether a text is the name of a variable: letters, digits, underscores, no digit first.
pub fn is_variable(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(told: Value) -> Result<SpawnOptions, String> {
        let base = json!({"provider": "p", "cwd": "/w"});
        let mut params = base.as_object().cloned().expect("a record");
        params.extend(told.as_object().cloned().expect("a record"));
        SpawnOptions::read(&params, &["p".into(), "q".into()])
    }

    #[test]
    fn a_spawn_is_read_with_its_defaults() {
        let plain = read(json!({"label": null, "unknown": 1})).expect("reads");
        assert_eq!(plain.approval_mode, "guarded");
        assert_eq!(plain.restart_rule(), RestartRule::OnFailure);
        assert_eq!((plain.workspace_mode(), &plain.label), ("inherit", &None));
        let full = read(json!({
            "label": "web", "env": {"A": "b"}, "tags": ["x"], "restart": "never",
            "memoryMax": 1048576, "tasksMax": 50, "cpuQuota": 50, "queue": true,
        }))
        .expect("reads");
        assert_eq!(full.env["A"], "b");
        assert_eq!((full.ceilings.memory_max, full.ceilings.tasks_max), (Some(1 << 20), Some(50)));
        assert!(full.queue);
        // What is written down is read again.
        let text = serde_json::to_string(&full).expect("plain data");
        assert_eq!(serde_json::from_str::<SpawnOptions>(&text).expect("reads"), full);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_cure() {
        for (told, want) in [
            (json!({"provider": "x"}), "must be one of p, q"),
            (json!({"cwd": "work"}), "absolute path"),
            (json!({"cwd": 5}), "cannot be read"),
            (json!({"approvalMode": "yolo"}), "open, guarded or read-only"),
            (json!({"agentId": "a b"}), "cannot be an agent id"),
            (json!({"label": "x".repeat(81)}), "at most 80 characters"),
            (json!({"label": "a\nb"}), "one line"),
            (json!({"workspaceMode": "isolated"}), "is not there yet; use inherit or shared"),
            (json!({"workspaceMode": "mine"}), "inherit or shared"),
            (json!({"restart": "sometimes"}), "always, on-failure or never"),
            (json!({"env": {"A B": "x"}}), "cannot be the name of a variable"),
            (json!({"prompt": "x".repeat(121 << 10)}), "at most 122880 bytes"),
            (json!({"runtimeMax": 0}), "1 to"),
            (json!({"memoryMax": 5}), "memoryMax"),
        ] {
            let refused = read(told.clone()).expect_err("is refused");
            assert!(refused.contains(want), "{told}: {refused}");
        }
    }
}
