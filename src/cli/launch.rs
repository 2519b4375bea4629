//! From settings to what every start of the provider has in common: environment, host, request.

use std::collections::BTreeMap;
use std::path::Path;

use super::chosen::Chosen;
use super::paths::{agent_dir, token_file};
use crate::config::env;
use crate::core::agent::config::ReplyMode;
use crate::edge::provider::{Host, Planner};
use crate::os;
use crate::provider::launch::{LaunchRequest, Transport};
use crate::provider::settings::SessionSettings;
use crate::wire::control::{ENV_HOOKS, ENV_REPLY_MODE, ENV_TOKEN_FILE};

/// Longest path of a socket that leaves room for its name (108 bytes in all).
const RUNTIME_DIR_MAX: usize = 84;

/// Variables of every start, and what the log is to say of them; the token and what changes at
/// every start is added by the provider thread.
fn environment(chosen: &Chosen) -> (Vec<(String, String)>, Vec<String>) {
    let (mut all, mut warnings) = (chosen.config.resolved_env(), Vec::new());
    // Flag and file come first, then what the environment has, then the preset's own.
    for (name, value) in chosen.preset.iter().flat_map(|preset| preset.env_for(chosen.approval)) {
        let set = env(name)
            .or_else(|| all.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone()));
        match set {
            None => all.push((name.into(), value.into())),
            Some(set) if set != value => {
                warnings.push(format!(
                    "{name} is set already and stays; the approval mode would set it to {value}"
                ));
            }
            Some(_) => {}
        }
    }
    let program =
        std::env::current_exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    if chosen.config.reply_mode == ReplyMode::Explicit {
        all.push((ENV_REPLY_MODE.into(), "explicit".into()));
    }
    for (name, value) in [
        ("AGENT_RELAY_RUNNER_ID", chosen.runner_id.clone()),
        ("AGENT_RELAY_ID", chosen.agent_id.clone()),
        ("AGENT_RELAY_URL", chosen.global.relay_url.clone()),
        ("AGENT_RELAY_APPROVAL", chosen.approval.as_str().to_string()),
        ("AGENT_RELAY_HOME", chosen.global.home.to_string_lossy().into_owned()),
        ("AGENT_RELAY_BIN", program),
        (
            ENV_TOKEN_FILE,
            token_file(&chosen.global.home, &chosen.agent_id).to_string_lossy().into_owned(),
        ),
    ] {
        all.push((name.into(), value));
    }
    (all, warnings)
}

/// Short name that only this agent of this home has: for sockets, whose paths are limited.
fn short_name(chosen: &Chosen) -> String {
    os::sha256_hex(&format!("{}\0{}", chosen.global.home.display(), chosen.agent_id))[..12]
        .to_string()
}

/// Who hosts the provider.
pub(super) fn host(chosen: &Chosen) -> Host {
    match chosen.transport {
        Transport::Stream => Host::Pipes,
        Transport::Terminal => Host::Inherited,
        Transport::Tmux => Host::Tmux {
            socket: format!("agent-relay-{}", short_name(chosen)),
            dir: agent_dir(&chosen.global.home, &chosen.agent_id).join("terminal"),
        },
    }
}

/// What every start has in common.
fn request(chosen: &Chosen, added: &[(String, String)]) -> LaunchRequest {
    let own = &chosen.args.own;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let dir = agent_dir(&chosen.global.home, &chosen.agent_id);
    let near = dir.join("run");
    let runtime_dir = if near.as_os_str().len() <= RUNTIME_DIR_MAX {
        near
    } else {
        std::env::temp_dir().join(format!(
            "agent-relay-{}-{}",
            rustix::process::getuid().as_raw(),
            short_name(chosen)
        ))
    };
    let mut all: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    all.remove(ENV_HOOKS); // of a session that this runner was started in
    all.extend(added.iter().cloned());
    LaunchRequest {
        session: SessionSettings {
            agent: chosen.agent_id.clone(),
            cwd: text(&chosen.cwd),
            approval_mode: chosen.approval,
            mode: own.permission_mode.clone(),
            approval_timeout: chosen.approval_timeout,
            capture_full: chosen.config.capture_full,
        },
        transport: chosen.transport,
        command: chosen.config.command.clone(),
        settings: own.clone(),
        default_args: chosen.config.default_args.clone(),
        args: chosen.command.clone(),
        explicit_replies: chosen.config.reply_mode == ReplyMode::Explicit,
        home: text(&chosen.global.home),
        dir: text(&dir),
        user_home: env("HOME").unwrap_or_else(|| "/".into()),
        runtime_dir: text(&runtime_dir),
        bin: std::env::current_exe().map(|path| text(&path)).unwrap_or_default(),
        is_root: rustix::process::geteuid().is_root(),
        env: all,
    }
}

/// How each start is planned, and what the log is to say of it.
pub(super) fn planner(chosen: &Chosen) -> (Planner, Vec<String>) {
    let (env, warnings) = environment(chosen);
    (Planner { plan: chosen.provider.plan, request: request(chosen, &env), env }, warnings)
}
