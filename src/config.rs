//! Settings. For every one of them: flag before environment before file before default.
//!
//! A missing file is not an error; a broken one is, and the error names file, line and reason. A
//! field of the wrong type and an empty environment variable count as absent.

pub mod orchestrator;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::core::agent::config::{ReplyMode, RestartPolicy, STUCK_AFTER};
use crate::provider::launch::Transport;
use crate::provider::reader::without_mark;
use crate::provider::registry;
use crate::provider::settings::{ApprovalMode, SettingKind, texts};
use crate::secret::Secret;
use crate::wire::control::{ENV_AGENT, ENV_TOKEN, ENV_TOKEN_FILE};

/// The relay's URL unless something else is configured.
pub const DEFAULT_RELAY_URL: &str = "http://127.0.0.1:4850";

/// A variable of the environment that is not empty.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Why settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// They are wrong: trying again without a change is in vain.
    Broken(String),
    /// The operating system refused to read or write them: trying again may help.
    System(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Trouble::Broken(text) | Trouble::System(text)) = self;
        f.write_str(text)
    }
}

/// Root of everything, logs, records and sessions included: `AGENT_RELAY_HOME`, else
/// `~/.agent-relay`.
pub fn home() -> Result<PathBuf, Trouble> {
    if let Some(home) = env("AGENT_RELAY_HOME") {
        return std::path::absolute(&home).map_err(|error| {
            Trouble::Broken(format!("AGENT_RELAY_HOME {home:?} is not a usable path: {error}"))
        });
    }
    match env("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".agent-relay")),
        None => {
            Err(Trouble::Broken("neither AGENT_RELAY_HOME nor HOME is set; set one of them".into()))
        }
    }
}

/// Reads a JSON record; missing = empty, broken = an error that names the place.
pub fn read_record(path: &Path) -> Result<Map<String, Value>, Trouble> {
    use std::io::ErrorKind;
    let place = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let told = format!("cannot read {place}: {error}");
            return match error.kind() {
                ErrorKind::NotFound => Ok(Map::new()),
                // Foreign bytes, or a folder: no second try reads those.
                ErrorKind::InvalidData => Err(Trouble::Broken(format!("{told}; save it as UTF-8"))),
                ErrorKind::IsADirectory => {
                    Err(Trouble::Broken(format!("{told}; fix or remove the file")))
                }
                _ => Err(Trouble::System(told)),
            };
        }
    };
    match serde_json::from_str::<Value>(without_mark(&text)) {
        Ok(Value::Object(record)) => Ok(record),
        Ok(_) => Err(Trouble::Broken(format!("{place}:1: the file must hold a JSON object {{…}}"))),
        Err(error) => Err(Trouble::Broken(format!(
            "{place}:{}: {error}; fix or remove the file",
            error.line()
        ))),
    }
}

fn text(record: &Map<String, Value>, field: &str) -> Option<String> {
    record.get(field).and_then(Value::as_str).filter(|value| !value.is_empty()).map(str::to_string)
}

/// The global settings.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct Global {
    pub home: PathBuf,
    pub relay_url: String,
    pub token: Option<Secret>,
    /// The URL came from a flag or the environment: the file does not count.
    pub url_by_hand: bool,
    /// The same of the token.
    pub token_by_hand: bool,
    /// Working directory of providers, if set.
    pub default_cwd: Option<PathBuf>,
    /// The agent in whose session this process runs, if it does.
    pub session: Option<String>,
}

/// Longest token in a file, bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The relay token of the session that this process runs in: from the runner's file, else the first
/// one. `None`: the relay has not given one yet. A file that cannot be read is an error: this
/// process belongs to another user or place.
pub fn session_token() -> Result<Option<String>, Trouble> {
    let Some(path) = env(ENV_TOKEN_FILE).map(PathBuf::from) else { return Ok(env(ENV_TOKEN)) };
    let unreadable = |error: std::io::Error| {
        Trouble::Broken(format!(
            "the file with this agent's relay token cannot be read: {}: {error}; run this as the user of the agent's runner, where that \
             file can be seen",
            path.display()
        ))
    };
    let mut text = String::new();
    match crate::os::open_file(&path)
        .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
    {
        Ok(_) => {}
        // Its folder is there as long as the runner is; where it is not, this is another place.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && path.parent().is_some_and(Path::is_dir) => {}
        Err(error) => return Err(unreadable(error)),
    }
    let token = text.trim();
    Ok(if token.is_empty() { env(ENV_TOKEN) } else { Some(token.to_string()) })
}

impl Global {
    /// Reads file and environment; flags come from the caller. Inside an agent's session the token
    /// is that agent's or none, never that of the configuration file, which is a person's.
    pub fn load(url_flag: Option<String>, token_flag: Option<String>) -> Result<Global, Trouble> {
        let Some(session) = env(ENV_AGENT) else { return Global::for_runner(url_flag, token_flag) };
        let token = match token_flag {
            None => session_token()?,
            flag => flag,
        };
        Global::read(url_flag, token, Some(session))
    }

    /// The same for the start of a runner by a person, a service or an orchestrator.
    pub fn for_runner(
        url_flag: Option<String>,
        token_flag: Option<String>,
    ) -> Result<Global, Trouble> {
        Global::read(url_flag, token_flag.or_else(|| env(ENV_TOKEN)), None)
    }

    fn read(
        url: Option<String>,
        token: Option<String>,
        session: Option<String>,
    ) -> Result<Global, Trouble> {
        let home = home()?;
        // Whoever may write there could name another relay, which would get the token.
        if let Some(why) = crate::os::exposed(&home) {
            return Err(Trouble::Broken(format!(
                "the files of agent-relay are not safe: {why}, or set AGENT_RELAY_HOME to another folder"
            )));
        }
        let file = read_record(&home.join("config.json"))?;
        for field in ["relayUrl", "token", "defaultCwd"] {
            if file.get(field).is_some_and(|value| !value.is_string() && !value.is_null()) {
                let file = home.join("config.json");
                return Err(Trouble::Broken(format!(
                    "{}: \"{field}\" must be a text in quotes; fix or remove it",
                    file.display()
                )));
            }
        }
        if let Some(token) = std::env::var_os(ENV_TOKEN).filter(|token| token.to_str().is_none()) {
            return Err(Trouble::Broken(format!(
                "AGENT_RELAY_TOKEN is not UTF-8 text ({} bytes); set it anew",
                token.len()
            )));
        }
        let url = url.or_else(|| env("AGENT_RELAY_URL"));
        let (url_by_hand, token_by_hand) = (url.is_some(), token.is_some());
        let relay_url = url.or_else(|| text(&file, "relayUrl"));
        let token = token.or_else(|| text(&file, "token").filter(|_| session.is_none()));
        if token
            .as_ref()
            .is_some_and(|token| token.chars().any(|c| c.is_whitespace() || c.is_control()))
        {
            return Err(Trouble::Broken(
                "the token holds white space or control characters; check --token, AGENT_RELAY_TOKEN or \"token\" in config.json".into(),
            ));
        }
        Ok(Global {
            relay_url: relay_url.unwrap_or_else(|| DEFAULT_RELAY_URL.into()),
            token: token.map(Secret::new),
            url_by_hand,
            token_by_hand,
            default_cwd: text(&file, "defaultCwd").map(PathBuf::from),
            session,
            home,
        })
    }

    /// The file of the global settings.
    pub fn file(&self) -> PathBuf {
        self.home.join("config.json")
    }
}

/// Sets fields of the global file, keeping the others; 0600, atomically.
pub fn write_global(home: &Path, fields: &[(&str, &str)]) -> Result<(), Trouble> {
    let path = home.join("config.json");
    let mut record = read_record(&path)?;
    for (field, value) in fields {
        record.insert(field.to_string(), Value::String(value.to_string()));
    }
    let text = serde_json::to_string_pretty(&record).expect("plain data") + "\n";
    crate::os::write_private_file(&path, &text)
        .map_err(|error| Trouble::System(format!("cannot write {}: {error}", path.display())))
}

/// Relay and token in a configuration file, if it can be read: one look, so both are of one writer.
pub fn relay_in(path: &Path) -> (Option<String>, Option<Secret>) {
    let record = read_record(path).unwrap_or_default();
    (text(&record, "relayUrl"), text(&record, "token").map(Secret::new))
}

/// Settings of one provider.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    pub command: Option<String>,
    /// Arguments before those of the command line.
    pub default_args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Registered with the relay.
    pub default_capabilities: Vec<String>,
    /// Registered with the relay.
    pub default_tags: Vec<String>,
    /// Time to end in order at a stop.
    pub shutdown_timeout: Duration,
    /// A final text is all text of a turn, not only its last message.
    pub capture_full: bool,
    /// When a provider that ended is started again.
    pub restart: RestartPolicy,
    /// A turn without any sign of life for so long is shown as stuck.
    pub stuck_after: Duration,
    /// Who answers messages: the runner with the final text, or the agent itself.
    pub reply_mode: ReplyMode,
    /// An approval that nobody answers in this time is denied.
    pub approval_timeout: Option<Duration>,
    pub outbox_bytes_max: u64,
    /// All of the file, for the tables of settings.
    pub record: Map<String, Value>,
    /// A sentence for each setting that is unknown or has a wrong type.
    pub warnings: Vec<String>,
}

/// What a setting of a file must be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Number,
    Switch,
    Texts,
    /// A map of texts.
    Environment,
    /// A map of settings, which have names of their own.
    Group,
}

const NO_PREFIX: &str = "headless.tmuxPrefix has no effect: every agent has a terminal server of its own; `agent-relay attach` finds it";

/// Settings of a provider's file that are the same for all providers. Those that a provider can be
/// told at its start stand in its own table.
const PROVIDER_SETTINGS: &[(&str, Kind)] = &[
    ("command", Kind::Text),
    ("defaultArgs", Kind::Texts),
    ("env", Kind::Environment),
    ("defaultCapabilities", Kind::Texts),
    ("defaultApprovalMode", Kind::Text),
    ("defaultTags", Kind::Texts),
    ("headless", Kind::Group),
    ("headless.tmuxPrefix", Kind::Text),
    ("headless.shutdownTimeoutMs", Kind::Number),
    ("chatCaptureMode", Kind::Text),
    ("restart", Kind::Group),
    ("restart.firstMs", Kind::Number),
    ("restart.mostMs", Kind::Number),
    ("restart.exitsMax", Kind::Number),
    ("restart.windowMs", Kind::Number),
    ("restart.healthyMs", Kind::Number),
    ("stuckAfterMs", Kind::Number),
    ("replyMode", Kind::Text),
    ("approvalTimeoutMs", Kind::Number),
    ("outboxMaxBytes", Kind::Number),
    ("transport", Kind::Text),
];

impl From<SettingKind> for Kind {
    fn from(kind: SettingKind) -> Kind {
        match kind {
            SettingKind::Text => Kind::Text,
            SettingKind::Switch => Kind::Switch,
            SettingKind::Folders => Kind::Texts,
        }
    }
}

impl Kind {
    /// What a setting must be; `None`: nobody knows it.
    fn of(name: &str) -> Option<Kind> {
        let shared =
            PROVIDER_SETTINGS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let own = || registry::settings().find(|(_, setting)| setting.file == name);
        shared.or_else(|| own().map(|(_, setting)| setting.kind().into()))
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Kind::Text => value.is_string(),
            Kind::Number => value.as_u64().is_some_and(|n| n > 0),
            Kind::Switch => value.is_boolean(),
            Kind::Environment => {
                value.as_object().is_some_and(|map| map.values().all(Value::is_string))
            }
            Kind::Texts => texts(value).is_some(),
            Kind::Group => value.is_object(),
        }
    }
}

/// What is wrong with a provider file, one sentence each; the defaults are used instead.
fn check_settings(record: &Map<String, Value>, prefix: &str, warnings: &mut Vec<String>) {
    for (name, value) in record {
        let name = format!("{prefix}{name}");
        let Some(kind) = Kind::of(&name) else {
            warnings.push(format!("the setting {name:?} is not known and has no effect"));
            continue;
        };
        if !kind.fits(value) && !value.is_null() {
            warnings.push(format!(
                "the setting {name:?} has a value of the wrong kind and has no effect"
            ));
        }
        if let (Kind::Group, Some(inner)) = (kind, value.as_object()) {
            check_settings(inner, &format!("{name}."), warnings);
        }
    }
}

/// A sentence for each setting that must be one of some words and is another one.
fn check_words(record: &Map<String, Value>, warnings: &mut Vec<String>) {
    let transports = Transport::ALL.map(Transport::as_str);
    let modes = ApprovalMode::ALL.map(ApprovalMode::as_str);
    let known = [
        ("replyMode", &["auto", "explicit"][..]),
        ("chatCaptureMode", &["final", "full"]),
        ("transport", &transports),
        ("defaultApprovalMode", &modes),
    ];
    for (name, words) in known {
        if let Some(word) = text(record, name).filter(|word| !words.contains(&word.as_str())) {
            warnings.push(format!("{name} is {word:?}; it must be one of {}", words.join(", ")));
        }
    }
}

/// A sentence for each folder that is not there.
fn check_folders(record: &Map<String, Value>, warnings: &mut Vec<String>) {
    for (_, setting) in registry::settings() {
        if setting.kind() != SettingKind::Folders {
            continue;
        }
        let folders = record.get(setting.file).and_then(texts).unwrap_or_default();
        for dir in folders.iter().filter(|dir| !Path::new(dir).is_dir()) {
            warnings.push(format!("{} names {dir:?}, which is not a folder", setting.file));
        }
    }
}

/// A sentence for each variable that takes its value from one that is not set.
fn unset_variables(
    env: &BTreeMap<String, String>,
    is_set: impl Fn(&str) -> bool,
) -> impl Iterator<Item = String> {
    env.iter().filter_map(move |(key, value)| {
        let name = value.strip_prefix("$env:").filter(|name| !is_set(name))?;
        Some(format!(
            "env.{key} takes its value from {name}, which is not set here; it is left out"
        ))
    })
}

/// A map of settings; empty where there is none.
fn group(record: &Map<String, Value>, field: &str) -> Map<String, Value> {
    record.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// A setting in milliseconds.
fn duration(record: &Map<String, Value>, field: &str) -> Option<Duration> {
    let ms = record.get(field).and_then(Value::as_u64)?;
    (ms > 0 && ms < (1 << 53)).then(|| Duration::from_millis(ms))
}

fn restart_policy(restart: &Map<String, Value>) -> RestartPolicy {
    let standard = RestartPolicy::default();
    RestartPolicy {
        first: duration(restart, "firstMs").unwrap_or(standard.first),
        most: duration(restart, "mostMs").unwrap_or(standard.most),
        exits_max: restart
            .get("exitsMax")
            .and_then(Value::as_u64)
            .filter(|n| *n > 0)
            .unwrap_or(standard.exits_max as u64) as usize,
        window: duration(restart, "windowMs").unwrap_or(standard.window),
        healthy: duration(restart, "healthyMs").unwrap_or(standard.healthy),
    }
}

impl ProviderConfig {
    /// Reads `<home>/providers/<provider>.json`.
    pub fn load(home: &Path, provider: &str) -> Result<ProviderConfig, Trouble> {
        let path = home.join("providers").join(format!("{provider}.json"));
        let mut config = ProviderConfig::read(&read_record(&path)?);
        let unset = unset_variables(&config.env, |name| std::env::var_os(name).is_some());
        config.warnings.extend(unset);
        config.warnings.iter_mut().for_each(|text| *text = format!("{}: {text}", path.display()));
        Ok(config)
    }

    fn read(record: &Map<String, Value>) -> ProviderConfig {
        let list = |field: &str| record.get(field).and_then(texts);
        let env = record.get("env").and_then(Value::as_object).and_then(|map| {
            map.iter()
                .map(|(key, value)| value.as_str().map(|value| (key.clone(), value.to_string())))
                .collect::<Option<_>>()
        });
        let headless = group(record, "headless");
        let mut warnings = Vec::new();
        check_settings(record, "", &mut warnings);
        check_words(record, &mut warnings);
        check_folders(record, &mut warnings);
        if headless.contains_key("tmuxPrefix") {
            warnings.push(NO_PREFIX.into());
        }
        ProviderConfig {
            record: record.clone(),
            warnings,
            command: text(record, "command"),
            default_args: list("defaultArgs").unwrap_or_default(),
            env: env.unwrap_or_default(),
            default_capabilities: list("defaultCapabilities")
                .unwrap_or_else(|| ["chat", "code", "review"].map(String::from).into()),
            default_tags: list("defaultTags").unwrap_or_default(),
            shutdown_timeout: duration(&headless, "shutdownTimeoutMs")
                .unwrap_or(Duration::from_secs(10)),
            capture_full: text(record, "chatCaptureMode").as_deref() == Some("full"),
            restart: restart_policy(&group(record, "restart")),
            stuck_after: duration(record, "stuckAfterMs").unwrap_or(STUCK_AFTER),
            reply_mode: match text(record, "replyMode").as_deref() {
                Some("explicit") => ReplyMode::Explicit,
                _ => ReplyMode::Auto,
            },
            approval_timeout: duration(record, "approvalTimeoutMs"),
            outbox_bytes_max: record
                .get("outboxMaxBytes")
                .and_then(Value::as_u64)
                .filter(|n| *n >= 1 << 20)
                .unwrap_or(crate::core::limits::OUTBOX_BYTES_MAX),
        }
    }

    /// The environment, each value `$env:NAME` replaced by that variable of ours; what names one
    /// that is not set is left out.
    pub fn resolved_env(&self) -> Vec<(String, String)> {
        let resolve = |value: &String| match value.strip_prefix("$env:") {
            Some(name) => std::env::var(name).ok(),
            None => Some(value.clone()),
        };
        self.env.iter().filter_map(|(key, value)| Some((key.clone(), resolve(value)?))).collect()
    }
}

#[cfg(test)]
mod tests;
