//! From arguments, environment and files to the settings of one agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::{Failure, path_failure};
use super::print;
use crate::config::{Global, ProviderConfig, env};
use crate::core::agent::prompt::{Prompt, StartKey};
use crate::os;
use crate::provider::{self, ApprovalMode, Preset, Transport};
use crate::wire::api::{AGENT_ID_RULE, is_agent_id};

/// What was typed.
#[derive(Debug, Default)]
pub(super) struct Typed {
    pub provider: String,
    pub values: std::collections::BTreeMap<&'static str, String>,
    pub headless: bool,
    pub replace: bool,
    pub quiet: bool,
    pub isolated: bool,
    pub prompt_again: bool,
    pub help: bool,
    pub provider_args: Vec<String>,
}

/// Settings that are the same for every start of this agent.
pub(super) struct Settings {
    pub agent_id: String,
    pub runner_id: String,
    pub label: Option<String>,
    pub cwd: PathBuf,
    pub approval: ApprovalMode,
    pub approval_timeout: Duration,
    pub config: ProviderConfig,
    pub global: Global,
    pub command: Vec<String>,
    pub preset: Option<&'static Preset>,
    pub transport: Transport,
    pub isolated: bool,
    pub model: Option<String>,
    pub effort: Option<String>,
    pub rig: Option<String>,
    pub system_prompt: Option<String>,
}

/// Reads flags, environment and files.
pub(super) fn settings(typed: &Typed, provider: &provider::Provider) -> Result<Settings, Failure> {
    let value = |name: &str| typed.values.get(name).cloned();
    let global = Global::for_runner(value("--relay-url"), value("--token"))?;
    let config = ProviderConfig::load(&global.home, provider.name)?;
    let here = std::env::current_dir().map_err(|error| path_failure(&error, format!("the current folder cannot be used: {error}")))?;
    let cwd = value("--cwd").map(PathBuf::from).or_else(|| global.default_cwd.clone()).unwrap_or_else(|| here.clone());
    let cwd = here.join(cwd);
    let real = cwd
        .canonicalize()
        .map_err(|error| path_failure(&error, format!("the working directory {} cannot be used: {error}", cwd.display())))?;
    if !real.is_dir() {
        return Err(Failure::usage(format!("the working directory {} is no directory", cwd.display())));
    }
    let mode = value("--approval").or_else(|| env("AGENT_RELAY_APPROVAL")).unwrap_or_else(|| config.default_approval_mode.clone());
    let approval = ApprovalMode::parse(&mode)
        .ok_or_else(|| Failure::usage(format!("the approval mode {mode:?} is not known; use open, guarded or read-only")))?;
    let named = preset(provider, value("--preset").as_deref())?;
    let mut command: Vec<String> = match named {
        // What follows `--` are further arguments of the known agent.
        Some(preset) => preset.command.iter().map(|word| word.to_string()).chain(typed.provider_args.clone()).collect(),
        None => typed.provider_args.clone(),
    };
    if command.first().is_some_and(|program| program == "agent-relay") {
        command[0] = std::env::current_exe().map_or_else(|_| "agent-relay".into(), |path| path.to_string_lossy().into_owned());
    }
    if command.is_empty() && provider.needs_command {
        command = config.command.clone().into_iter().chain(config.default_args.clone()).collect();
    }
    // A known agent that was typed out is the same agent.
    let preset = named.or_else(|| {
        let program = command.first().map(|program| program.rsplit('/').next().unwrap_or_default().to_string());
        let known = |preset: &&Preset| {
            preset.command.first().copied() == program.as_deref() && command[1..].starts_with(&words(&preset.command[1..]))
        };
        (provider.presets)().into_iter().find(known)
    });
    if command.is_empty() && provider.needs_command {
        let example = format!("agent-relay run {0} --preset opencode` or `agent-relay run {0} -- opencode acp", provider.name);
        return Err(Failure::usage(format!("say which agent to run: `{example}`")));
    }
    let label = value("--label").or_else(|| env("AGENT_RELAY_LABEL"));
    let host = os::hostname();
    let part = label_part(label.as_deref(), &real);
    let hash = os::sha256_hex(&format!("{}\0{}\0{}", provider.name, real.display(), label.as_deref().unwrap_or_default()));
    let agent_id = value("--agent-id").or_else(|| env("AGENT_RELAY_AGENT_ID"));
    let agent_id = agent_id.unwrap_or_else(|| format!("{host}-{}-{part}-{}", provider.name, &hash[..8]));
    if !is_agent_id(&agent_id) {
        return Err(Failure::usage(format!("{agent_id:?} cannot be an agent id: {AGENT_ID_RULE}")));
    }
    let suffix = u32::from_le_bytes(os::random_bytes::<4>());
    let runner_id = format!("{host}-{}-{part}-{suffix:08x}", provider.name);
    if let Some(objection) = (provider.objection)(&typed.provider_args) {
        return Err(Failure::usage(objection));
    }
    let transport = transport(typed, provider, &config)?;
    let isolated = typed.isolated || config.isolated || profile_isolates();
    let (model, effort) = (value("--model").or_else(|| config.model.clone()), value("--effort").or_else(|| config.effort.clone()));
    let rig = value("--rig").or_else(|| config.rig.clone());
    let system_prompt = value("--system-prompt-append").or_else(|| env("AGENT_RELAY_SYSTEM_PROMPT_APPEND"));
    Ok(Settings {
        agent_id,
        runner_id,
        label,
        cwd: real,
        approval,
        approval_timeout: config.approval_timeout.unwrap_or(provider.approval_timeout).min(provider.approval_timeout_max),
        config,
        global,
        command,
        preset,
        transport,
        isolated,
        model,
        effort,
        rig,
        system_prompt,
    })
}

/// How the provider is talked to: as said, else in the terminal of a person who did not ask for a headless one, else the
/// provider's usual way.
fn transport(typed: &Typed, provider: &provider::Provider, config: &ProviderConfig) -> Result<Transport, Failure> {
    let usual = provider.transports[0];
    let said = typed.values.get("--transport").cloned().or_else(|| env("AGENT_RELAY_TRANSPORT")).or_else(|| config.transport.clone());
    if let Some(word) = said {
        let names: Vec<&str> = provider.transports.iter().map(|transport| transport.word()).collect();
        let found = Transport::parse(&word).filter(|transport| provider.transports.contains(transport));
        let found =
            found.ok_or_else(|| Failure::usage(format!("{} has no transport {word:?}; use {}", provider.name, names.join(", "))))?;
        if found == Transport::Terminal && !at_terminal() {
            return Err(Failure::usage("--transport terminal needs a terminal; without one use tmux or stream"));
        }
        return Ok(found);
    }
    let headless = typed.headless || env("AGENT_RELAY_HEADLESS").is_some_and(|word| !matches!(word.as_str(), "0" | "false"));
    let personal = provider.transports.contains(&Transport::Terminal) && !headless && at_terminal();
    Ok(if personal { Transport::Terminal } else { usual })
}

fn at_terminal() -> bool {
    rustix::termios::isatty(std::io::stdin()) && print::is_seen()
}

/// The first prompt, and what makes it a new wish: an orchestrator keeps its request's id through recovery and restart; each
/// start by a person is one; a unit, a container or a script repeats nothing but a changed text.
pub(super) fn first_prompt(text: String, again: bool) -> Prompt {
    let at_terminal = rustix::termios::isatty(std::io::stdin()) || print::is_heard();
    let key = match env("AGENT_RELAY_SPAWN_REQUEST_ID") {
        Some(id) => StartKey::Request(id),
        None if at_terminal => StartKey::Person,
        None => StartKey::Text,
    };
    Prompt { digest: os::sha256_hex(&text), text, key, again }
}

/// An agent profile may want a home of its own for the provider.
fn profile_isolates() -> bool {
    let profile: Option<Value> = env("AGENT_RELAY_AGENT_PROFILE_JSON").and_then(|text| serde_json::from_str(&text).ok());
    let says = |field: &str| profile.as_ref().and_then(|profile| profile.get(field)).cloned().unwrap_or(Value::Null);
    says("isolated") == json!(true) || says("base") == json!("isolated")
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| word.to_string()).collect()
}

/// The known agent of that name.
fn preset(provider: &provider::Provider, name: Option<&str>) -> Result<Option<&'static Preset>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let known = (provider.presets)();
    match known.iter().find(|preset| preset.name == name) {
        Some(preset) => Ok(Some(preset)),
        None => {
            let names: Vec<&str> = known.iter().map(|preset| preset.name).collect();
            let there = if names.is_empty() { format!("{} has none", provider.name) } else { format!("there are {}", names.join(", ")) };
            Err(Failure::usage(format!("no preset is called {name:?}; {there}")))
        }
    }
}

/// The label part of ids: the label, else the last part of the folder, in lower case, other signs as one `-`.
fn label_part(label: Option<&str>, cwd: &Path) -> String {
    let text = cwd.to_string_lossy();
    let last = text.split('/').rfind(|part| !part.is_empty()).unwrap_or("workspace");
    let mut part = String::new();
    for c in label.filter(|label| !label.is_empty()).unwrap_or(last).chars() {
        let fine = c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match (fine, part.ends_with('\u{0}')) {
            (true, _) => part.push(c.to_ascii_lowercase()),
            (false, false) => part.push('\u{0}'),
            (false, true) => {}
        }
    }
    part.replace('\u{0}', "-")
}

/// A directory name that no other agent id has: ids that a file name cannot hold as they are get a hash.
fn dir_name(agent_id: &str) -> String {
    let safe = crate::log::safe_name(agent_id);
    match safe == agent_id && !safe.starts_with('.') {
        true => safe,
        false => format!("{}-{}", safe.trim_start_matches('.'), &os::sha256_hex(agent_id)[..12]),
    }
}

/// Where the things of an agent lie on this machine.
pub fn agent_dir(home: &Path, agent_id: &str) -> PathBuf {
    home.join("agents").join(dir_name(agent_id))
}

/// The runner info file of an agent.
pub fn info_path(home: &Path, agent_id: &str) -> PathBuf {
    env("AGENT_RELAY_RUNNER_INFO_FILE").map(PathBuf::from).unwrap_or_else(|| agent_dir(home, agent_id).join("runner.json"))
}

/// Directory of the store: a variable, else beside the runner info file, else with the agent.
pub(super) fn store_dir(home: &Path, agent_id: &str) -> PathBuf {
    if let Some(dir) = env("AGENT_RELAY_RUNNER_OUTBOX_DIR") {
        return PathBuf::from(dir).join(dir_name(agent_id));
    }
    match env("AGENT_RELAY_RUNNER_INFO_FILE").and_then(|file| Path::new(&file).parent().map(Path::to_path_buf)) {
        Some(beside) => beside.join(format!("{}.store", dir_name(agent_id))),
        None => agent_dir(home, agent_id),
    }
}

/// Where the tools inside the session find the agent's token. Only the runner that holds the store's lock writes there.
pub(super) fn token_file(home: &Path, agent_id: &str) -> PathBuf {
    store_dir(home, agent_id).join("relay-token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_share_a_directory() {
        let names = ["a_b", "a/b", "a b", "\u{fc}", "\u{f6}", "..", ".", ".a", "a"].map(dir_name);
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert!(names.iter().all(|name| !name.starts_with('.') && !name.contains('/')), "{names:?}");
        assert_eq!(dir_name("my-agent"), "my-agent");
    }

    #[test]
    fn label_parts_follow_the_rule() {
        for (label, cwd, want) in [
            (Some("My Web//App"), "/a/b", "my-web-app"),
            (None, "/srv/Project X/", "project-x"),
            (None, "/", "workspace"),
            (Some("-x-"), "/a", "-x-"),
        ] {
            assert_eq!(label_part(label, Path::new(cwd)), want);
        }
    }
}
