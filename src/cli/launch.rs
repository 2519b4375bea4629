//! From settings to what every start of the provider has in common: environment, host, request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::chosen::Chosen;
use super::paths::{agent_dir, token_file};
use crate::config::env;
use crate::core::agent::config::ReplyMode;
use crate::edge::provider::{Host, Planner};
use crate::os;
use crate::provider::launch::{LaunchRequest, Transport};
use crate::provider::settings::SessionSettings;
use crate::wire::control::{ENV_HOOKS, ENV_REPLY_MODE, ENV_TOKEN_FILE};

/// Longest path of a folder that leaves room for the name of a socket (108 bytes in all).
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
            dir: agent_dir(&chosen.global.home, &chosen.agent_id).join("terminal"),
            former: format!("agent-relay-{}", short_name(chosen)),
        },
    }
}

/// What every start has in common.
fn request(chosen: &Chosen, added: &[(String, String)]) -> LaunchRequest {
    let own = &chosen.args.own;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let dir = agent_dir(&chosen.global.home, &chosen.agent_id);
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
        user_home: os::user_home().as_deref().map_or_else(|| "/".into(), text),
        runtime_dir: String::new(), // chosen at each start, and the next one too
        at_port: false,
        bin: std::env::current_exe().map(|path| text(&path)).unwrap_or_default(),
        is_root: rustix::process::geteuid().is_root(),
        env: all,
    }
}

/// How each start is planned, and what the log is to say of it.
pub(super) fn planner(chosen: &Chosen) -> (Planner, Vec<String>) {
    let (env, warnings) = environment(chosen);
    let request = request(chosen, &env);
    (
        Planner { plan: chosen.provider.plan, request, env, socket_folders: folders(chosen) },
        warnings,
    )
}

/// Where the sockets of a session can be, the best place first: beside the agent's other files, or
/// else where a path is short. Not all are there, and not every file system has sockets.
fn folders(chosen: &Chosen) -> Vec<String> {
    let near = agent_dir(&chosen.global.home, &chosen.agent_id).join("run");
    let name = format!("agent-relay-{}-{}", rustix::process::getuid().as_raw(), short_name(chosen));
    socket_folders(near, &name, shared_folders().into_iter())
}

/// Folders of all where sockets of ours may lie. Nobody else's folder is made.
pub(super) fn shared_folders() -> Vec<String> {
    let all = [env("XDG_RUNTIME_DIR"), env("TMPDIR"), Some("/tmp".into()), Some("/var/tmp".into())];
    all.into_iter().flatten().filter(|folder| Path::new(folder).is_dir()).collect()
}

fn socket_folders(near: PathBuf, name: &str, shared: impl Iterator<Item = String>) -> Vec<String> {
    let shared = shared.map(PathBuf::from).filter(|folder| folder.is_absolute());
    let mut all: Vec<String> = Vec::new();
    for folder in [near].into_iter().chain(shared.map(|folder| folder.join(name))) {
        let folder = folder.to_string_lossy().into_owned();
        if folder.len() <= RUNTIME_DIR_MAX && !all.contains(&folder) {
            all.push(folder);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_where_their_path_is_short_enough() {
        let long = format!("/{}", "x".repeat(90));
        for (near, shared, want) in [
            ("/h/agents/a/run", vec!["/run/user/7"], vec!["/h/agents/a/run", "/run/user/7/n"]),
            (long.as_str(), vec![long.as_str(), "/tmp", "/tmp"], vec!["/tmp/n"]),
            (long.as_str(), vec!["relative", "/tmp"], vec!["/tmp/n"]),
        ] {
            let shared = shared.into_iter().map(String::from);
            assert_eq!(socket_folders(near.into(), "n", shared), want, "{near}");
        }
    }
}
