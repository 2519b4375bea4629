//! What a run was given: flags, environment and files, the earlier before the later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::{Failure, path_failure};
use super::options::{OPTIONS, RunArgs};
use super::print;
use crate::config::{Global, ProviderConfig, env};
use crate::os;
use crate::provider::capabilities::{Preset, Provider};
use crate::provider::launch::Transport;
use crate::provider::registry;
use crate::provider::settings::ApprovalMode;
use crate::wire::api::{AGENT_ID_RULE, is_agent_id};

/// What was chosen from flags, environment and files; both halves of the settings are made of it.
pub(super) struct Chosen {
    pub provider: &'static Provider,
    /// Filled in from environment and file.
    pub args: RunArgs,
    pub config: ProviderConfig,
    pub global: Global,
    pub agent_id: String,
    pub runner_id: String,
    pub label: Option<String>,
    pub cwd: PathBuf,
    pub approval: ApprovalMode,
    pub approval_timeout: Duration,
    pub transport: Transport,
    /// Program and arguments of an agent that has no program of its own.
    pub command: Vec<String>,
    pub preset: Option<&'static Preset>,
}

/// Reads flags, environment and files.
pub(super) fn choose(mut args: RunArgs, provider: &'static Provider) -> Result<Chosen, Failure> {
    let global = Global::for_runner(args.relay_url.clone(), args.token.clone())?;
    let mut config = ProviderConfig::load(&global.home, provider.name)?;
    OPTIONS.iter().for_each(|setting| setting.fill(&mut args, &env, &config.record));
    registry::settings().for_each(|(_, setting)| setting.fill(&mut args.own, &env, &config.record));
    if profile_isolates() {
        args.own.isolated = true;
        leave_out_environment(&mut config, provider);
    }
    let cwd = working_directory(args.cwd.as_deref(), &global)?;
    let mode = args.approval.as_deref().unwrap_or(ApprovalMode::Guarded.as_str());
    let approval = ApprovalMode::parse(mode).ok_or_else(|| {
        Failure::usage(format!(
            "the approval mode {mode:?} is not known; use open, guarded or read-only"
        ))
    })?;
    let Command { words: command, preset } = command(&args, provider, &config)?;
    let Ids { agent_id, runner_id } = ids(&args, provider, &cwd)?;
    if let Some(objection) = (provider.check_args)(&args.provider_args) {
        return Err(Failure::usage(objection));
    }
    Ok(Chosen {
        transport: transport(&args, provider)?,
        approval_timeout: config
            .approval_timeout
            .unwrap_or(provider.approval_timeout)
            .min(provider.approval_timeout_max),
        label: args.label.clone(),
        provider,
        args,
        config,
        global,
        agent_id,
        runner_id,
        cwd,
        approval,
        command,
        preset,
    })
}

/// The real path of the folder that the provider works in.
fn working_directory(said: Option<&str>, global: &Global) -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().map_err(|error| {
        path_failure(&error, format!("the current folder cannot be used: {error}"))
    })?;
    let cwd = match said {
        Some(said) => here.join(said),
        None => {
            global.default_cwd.as_ref().map_or_else(|| here.clone(), |default| here.join(default))
        }
    };
    let real = cwd.canonicalize().map_err(|error| {
        path_failure(
            &error,
            format!("the working directory {} cannot be used: {error}", cwd.display()),
        )
    })?;
    if !real.is_dir() {
        return Err(Failure::usage(format!(
            "the working directory {} is not a directory",
            cwd.display()
        )));
    }
    Ok(real)
}

/// What the provider is given to run, and the known agent that it is.
struct Command {
    words: Vec<String>,
    preset: Option<&'static Preset>,
}

fn command(
    args: &RunArgs,
    provider: &Provider,
    config: &ProviderConfig,
) -> Result<Command, Failure> {
    let named = preset(provider, args.preset.as_deref())?;
    // What follows `--` are further arguments of the known agent.
    let known = named.iter().flat_map(|preset| preset.command).map(|word| word.to_string());
    let mut command: Vec<String> = known.chain(args.provider_args.clone()).collect();
    if command.first().is_some_and(|program| program == "agent-relay") {
        command[0] = std::env::current_exe()
            .map_or_else(|_| "agent-relay".into(), |path| path.to_string_lossy().into_owned());
    }
    if command.is_empty() && provider.needs_command {
        command = config.command.clone().into_iter().chain(config.default_args.clone()).collect();
    }
    // A known agent that was typed out is the same agent.
    let preset = named.or_else(|| {
        let program = command.first()?.rsplit('/').next();
        let known = |preset: &&Preset| {
            preset.command.first().copied() == program
                && command[1..].starts_with(&words(&preset.command[1..]))
        };
        (provider.presets)().into_iter().find(known)
    });
    if command.is_empty() && provider.needs_command {
        let known = (provider.presets)().first().copied();
        let typed_out = known.map(|preset| preset.command.join(" ")).unwrap_or_default();
        let example = super::options::example();
        return Err(Failure::usage(format!(
            "say which agent to run: `{example}` or `agent-relay run {} -- {typed_out}`",
            provider.name
        )));
    }
    Ok(Command { words: command, preset })
}

struct Ids {
    agent_id: String,
    runner_id: String,
}

/// The id of the agent is stable: it is given, or made of host, provider, label and folder. The id
/// of the runner is new at every start.
fn ids(args: &RunArgs, provider: &Provider, cwd: &Path) -> Result<Ids, Failure> {
    let label = args.label.as_deref();
    let host = os::hostname();
    let part = label_part(label, cwd);
    let hash = os::sha256_hex(&format!(
        "{}\0{}\0{}",
        provider.name,
        cwd.display(),
        label.unwrap_or_default()
    ));
    let agent_id = args
        .agent_id
        .clone()
        .unwrap_or_else(|| format!("{host}-{}-{part}-{}", provider.name, &hash[..8]));
    if !is_agent_id(&agent_id) {
        return Err(Failure::usage(format!("{agent_id:?} cannot be an agent id: {AGENT_ID_RULE}")));
    }
    let suffix = u32::from_le_bytes(os::random_bytes::<4>());
    Ok(Ids { agent_id, runner_id: format!("{host}-{}-{part}-{suffix:08x}", provider.name) })
}

/// How the provider is talked to: as given, else in the terminal of a person who did not ask for a
/// headless session, else the provider's usual way.
fn transport(args: &RunArgs, provider: &Provider) -> Result<Transport, Failure> {
    if let Some(word) = &args.transport {
        let names: Vec<&str> =
            provider.transports.iter().map(|transport| transport.as_str()).collect();
        let found =
            Transport::parse(word).filter(|transport| provider.transports.contains(transport));
        let found = found.ok_or_else(|| {
            Failure::usage(format!(
                "{} has no transport {word:?}; use {}",
                provider.name,
                names.join(", ")
            ))
        })?;
        if found == Transport::Terminal && !at_terminal() {
            return Err(Failure::usage(
                "--transport terminal needs a terminal; without one use tmux or stream",
            ));
        }
        return Ok(found);
    }
    let headless = args.headless
        || env("AGENT_RELAY_HEADLESS").is_some_and(|word| !matches!(word.as_str(), "0" | "false"));
    let in_user_terminal =
        provider.transports.contains(&Transport::Terminal) && !headless && at_terminal();
    Ok(if in_user_terminal { Transport::Terminal } else { provider.transports[0] })
}

fn at_terminal() -> bool {
    rustix::termios::isatty(std::io::stdin()) && print::stdout_is_terminal()
}

/// What stands in the settings of this machine's provider is not for a profile that is isolated
/// from it.
fn leave_out_environment(config: &mut ProviderConfig, provider: &Provider) {
    if !std::mem::take(&mut config.env).is_empty() {
        config.warnings.push(format!(
            "the profile is isolated, so `env` of providers/{}.json is left out",
            provider.name
        ));
    }
}

/// An agent profile may want a home of its own for the provider.
fn profile_isolates() -> bool {
    let profile: Option<Value> =
        env("AGENT_RELAY_AGENT_PROFILE_JSON").and_then(|text| serde_json::from_str(&text).ok());
    let says = |field: &str| {
        profile.as_ref().and_then(|profile| profile.get(field)).cloned().unwrap_or(Value::Null)
    };
    says("isolated") == json!(true) || says("base") == json!("isolated")
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| word.to_string()).collect()
}

/// The known agent of that name.
fn preset(provider: &Provider, name: Option<&str>) -> Result<Option<&'static Preset>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let known = (provider.presets)();
    match known.iter().find(|preset| preset.name == name) {
        Some(preset) => Ok(Some(preset)),
        None => {
            let names: Vec<&str> = known.iter().map(|preset| preset.name).collect();
            let there = if names.is_empty() {
                format!("{} has none", provider.name)
            } else {
                format!("there are {}", names.join(", "))
            };
            Err(Failure::usage(format!("no preset is called {name:?}; {there}")))
        }
    }
}

/// The label part of ids: the label, else the last part of the folder, in lower case, other signs
/// as one `-`.
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

#[cfg(test)]
mod tests {
    use super::*;

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
