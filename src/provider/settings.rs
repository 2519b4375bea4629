//! What a session is set to, and the tables that say where each setting can be said.

use std::time::Duration;

use serde_json::{Map, Value};

use super::own_command;

/// What a provider can be told at its start beyond what is the same for all. Each field has one row
/// in [`SHARED`] or in the table of its provider.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct ProviderSettings {
    pub model: Option<String>,
    pub effort: Option<String>,
    pub permission_mode: Option<String>,
    pub rig: Option<String>,
    pub system_prompt: Option<String>,
    pub plugin_dirs: Vec<String>,
    pub isolated: bool,
    pub app_server: Option<String>,
}

/// A row of the settings of providers.
pub type ProviderSetting = Setting<ProviderSettings>;

/// Settings that every provider takes; one that cannot be told keeps them for the record.
pub const SHARED: &[ProviderSetting] = &[
    ProviderSetting::text(
        "--model",
        "NAME",
        "model; for the record where the agent itself chooses it",
        |all| &mut all.model,
    )
    .file("model"),
    ProviderSetting::text(
        "--effort",
        "LEVEL",
        "effort; for the record where the agent itself chooses it",
        |all| &mut all.effort,
    )
    .file("effort"),
    ProviderSetting::switch(
        "--isolated",
        "a home of its own instead of yours, where the provider has one; your login is linked",
        |all| &mut all.isolated,
    )
    .file("isolated"),
    ProviderSetting::text("", "", "permission mode instead of the known one", |all| {
        &mut all.permission_mode
    })
    .file("permissionMode"),
];

/// One setting: where it can be said, and the field that it is for. A flag counts more than a
/// variable of the environment, that more than the provider's file.
pub struct Setting<T> {
    /// Option of `run`; empty: none.
    pub flag: &'static str,
    /// What its value is called; empty for a switch.
    pub value: &'static str,
    /// What it does, for help texts.
    pub about: &'static str,
    /// Variable of the environment; empty: none.
    pub env: &'static str,
    /// Name in the file of the provider; empty: none.
    pub file: &'static str,
    field: Field<T>,
}

/// The field of a setting in the struct that holds it.
enum Field<T> {
    Text(fn(&mut T) -> &mut Option<String>),
    Switch(fn(&mut T) -> &mut bool),
    Folders(fn(&mut T) -> &mut Vec<String>),
}

/// A field to write to.
#[allow(missing_docs)] // the names say it
pub enum Slot<'a> {
    Text(&'a mut Option<String>),
    Switch(&'a mut bool),
    Folders(&'a mut Vec<String>),
}

/// What a setting holds in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum SettingKind {
    Text,
    Switch,
    Folders,
}

impl<T> Setting<T> {
    const fn new(
        flag: &'static str,
        value: &'static str,
        about: &'static str,
        field: Field<T>,
    ) -> Setting<T> {
        Setting { flag, value, about, env: "", file: "", field }
    }

    /// One with a text as its value.
    pub const fn text(
        flag: &'static str,
        value: &'static str,
        about: &'static str,
        field: fn(&mut T) -> &mut Option<String>,
    ) -> Setting<T> {
        Setting::new(flag, value, about, Field::Text(field))
    }

    /// One that is on or off.
    pub const fn switch(
        flag: &'static str,
        about: &'static str,
        field: fn(&mut T) -> &mut bool,
    ) -> Setting<T> {
        Setting::new(flag, "", about, Field::Switch(field))
    }

    /// A list of folders, which only a file can hold.
    pub const fn folders(
        file: &'static str,
        about: &'static str,
        field: fn(&mut T) -> &mut Vec<String>,
    ) -> Setting<T> {
        Setting::new("", "", about, Field::Folders(field)).file(file)
    }

    /// The same, also said by a variable.
    pub const fn env(mut self, name: &'static str) -> Setting<T> {
        self.env = name;
        self
    }

    /// The same, also said by the file of the provider.
    pub const fn file(mut self, name: &'static str) -> Setting<T> {
        self.file = name;
        self
    }

    /// What it holds.
    pub const fn kind(&self) -> SettingKind {
        match self.field {
            Field::Text(_) => SettingKind::Text,
            Field::Switch(_) => SettingKind::Switch,
            Field::Folders(_) => SettingKind::Folders,
        }
    }

    /// Its field of a struct.
    pub fn slot<'a>(&self, all: &'a mut T) -> Slot<'a> {
        match self.field {
            Field::Text(field) => Slot::Text(field(all)),
            Field::Switch(field) => Slot::Switch(field(all)),
            Field::Folders(field) => Slot::Folders(field(all)),
        }
    }

    /// Takes what environment and file say, if nothing was said before. A value of the wrong kind
    /// counts as none.
    pub fn fill(
        &self,
        all: &mut T,
        env: &dyn Fn(&str) -> Option<String>,
        file: &Map<String, Value>,
    ) {
        let in_file = file.get(self.file);
        match self.slot(all) {
            Slot::Text(field) if field.is_none() => {
                let text = || {
                    in_file
                        .and_then(Value::as_str)
                        .filter(|text| !text.is_empty())
                        .map(str::to_string)
                };
                *field = env(self.env).or_else(text);
            }
            Slot::Text(_) => {}
            Slot::Switch(field) => *field |= in_file == Some(&Value::Bool(true)),
            Slot::Folders(field) => *field = in_file.and_then(texts).unwrap_or_default(),
        }
    }
}

/// A list that holds only texts.
pub fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_string)).collect()
}

/// Settings of a session machine.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Id of the agent.
    pub agent: String,
    /// Absolute working directory.
    pub cwd: String,
    /// `open`, `guarded` or `read-only`.
    pub approval_mode: ApprovalMode,
    /// Permission mode to set, instead of the one from the table of the provider.
    pub mode: Option<String>,
    /// An approval that nobody answers in this time is denied.
    pub approval_timeout: Duration,
    /// All text of a turn is its final text, not only its last message.
    pub capture_full: bool,
}

impl SessionSettings {
    /// Whether this command of a shell is allowed without a person.
    pub fn allows_unasked(&self, command: &str) -> bool {
        self.approval_mode == ApprovalMode::Guarded
            && own_command::may_run_unasked(command, &self.agent)
    }

    /// Whether everything that asks is rejected.
    pub fn rejects_all(&self) -> bool {
        self.approval_mode == ApprovalMode::ReadOnly
    }
}

/// Who decides about permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalMode {
    /// Everything is allowed.
    Open,
    /// The relay is asked.
    Guarded,
    /// Everything is rejected.
    ReadOnly,
}

impl ApprovalMode {
    /// All of them.
    pub const ALL: [ApprovalMode; 3] =
        [ApprovalMode::Open, ApprovalMode::Guarded, ApprovalMode::ReadOnly];

    /// Parses the value of flag, environment and file.
    pub fn parse(word: &str) -> Option<ApprovalMode> {
        ApprovalMode::ALL.into_iter().find(|mode| mode.as_str() == word)
    }

    /// The value of flag, environment and file.
    pub fn as_str(self) -> &'static str {
        match self {
            ApprovalMode::Open => "open",
            ApprovalMode::Guarded => "guarded",
            ApprovalMode::ReadOnly => "read-only",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_flag_counts_more_than_the_environment_and_that_more_than_the_file() {
        let setting = Setting::text("--x", "X", "", |all: &mut ProviderSettings| &mut all.model)
            .env("ENV")
            .file("x");
        for (flag, env, file, want) in [
            (Some("flag"), Some("env"), json!("file"), Some("flag")),
            (None, Some("env"), json!("file"), Some("env")),
            (None, None, json!("file"), Some("file")),
            (None, None, json!(""), None),
            (None, None, json!(5), None),
        ] {
            let mut all =
                ProviderSettings { model: flag.map(str::to_string), ..Default::default() };
            let record = [("x".to_string(), file)].into_iter().collect();
            setting.fill(
                &mut all,
                &|name| env.filter(|_| name == "ENV").map(str::to_string),
                &record,
            );
            assert_eq!(all.model.as_deref(), want);
        }
    }

    #[test]
    fn switches_and_lists_of_the_wrong_kind_count_as_none() {
        let switch =
            Setting::switch("", "", |all: &mut ProviderSettings| &mut all.isolated).file("on");
        let list = Setting::folders("dirs", "", |all: &mut ProviderSettings| &mut all.plugin_dirs);
        for (on, dirs, want) in [
            (json!(true), json!(["/a", "/b"]), (true, 2)),
            (json!("true"), json!(["/a", 1]), (false, 0)),
            (json!(null), json!("/a"), (false, 0)),
        ] {
            let mut all = ProviderSettings::default();
            let record = [("on".to_string(), on), ("dirs".to_string(), dirs)].into_iter().collect();
            switch.fill(&mut all, &|_| None, &record);
            list.fill(&mut all, &|_| None, &record);
            assert_eq!((all.isolated, all.plugin_dirs.len()), want);
        }
    }
}
