//! From settings to a start of the provider: environment, host, and the files that must be there first.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::settings::{Settings, agent_dir, token_file};
use crate::config::env;
use crate::core::agent::config::ReplyMode;
use crate::edge::provider::{Host, Plan, Planner, Refusal, find_command};
use crate::os;
use crate::provider::{Disk, Laid, Layout, Provider, SessionSettings, Transport, Want};
use crate::wire::control::{ENV_HOOKS, ENV_REPLY_MODE, ENV_TOKEN_FILE};

/// Longest path of a socket that leaves room for its name (108 bytes in all).
const RUNTIME_DIR_MAX: usize = 84;

/// The provider's variables; the provider thread adds the token and what changes at every start.
fn environment(settings: &Settings) -> Vec<(String, String)> {
    let mut all = settings.config.resolved_env();
    // Flag and file come first, then what the environment has, then the preset's own.
    for (name, value) in settings.preset.iter().flat_map(|preset| preset.env_for(settings.approval)) {
        let set = env(name).or_else(|| all.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone()));
        match set {
            None => all.push((name.into(), value.into())),
            Some(set) if set != value => {
                log::warn!(target: "runner", "{name} is set already and stays; the approval mode would set it to {value}")
            }
            Some(_) => {}
        }
    }
    let program = std::env::current_exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    if settings.config.reply_mode == ReplyMode::Explicit {
        all.push((ENV_REPLY_MODE.into(), "explicit".into()));
    }
    for (name, value) in [
        ("AGENT_RELAY_RUNNER_ID", settings.runner_id.clone()),
        ("AGENT_RELAY_ID", settings.agent_id.clone()),
        ("AGENT_RELAY_URL", settings.global.relay_url.clone()),
        ("AGENT_RELAY_APPROVAL", settings.approval.word().to_string()),
        ("AGENT_RELAY_HOME", settings.global.home.to_string_lossy().into_owned()),
        ("AGENT_RELAY_BIN", program),
        (ENV_TOKEN_FILE, token_file(&settings.global.home, &settings.agent_id).to_string_lossy().into_owned()),
    ] {
        all.push((name.into(), value));
    }
    all
}

/// Short name that only this agent of this home has: for sockets, whose paths are limited to 108 bytes.
fn short_name(settings: &Settings) -> String {
    os::sha256_hex(&format!("{}\0{}", settings.global.home.display(), settings.agent_id))[..12].to_string()
}

/// Who hosts the provider.
pub(super) fn host(settings: &Settings) -> Host {
    match settings.transport {
        Transport::Stream => Host::Pipes,
        Transport::Terminal => Host::Inherited,
        Transport::Tmux => Host::Tmux {
            socket: format!("agent-relay-{}", short_name(settings)),
            dir: agent_dir(&settings.global.home, &settings.agent_id).join("terminal"),
        },
    }
}

/// What every start has in common.
fn want(settings: &Settings) -> Want {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let dir = agent_dir(&settings.global.home, &settings.agent_id);
    let near = dir.join("run");
    let runtime_dir = match near.as_os_str().len() <= RUNTIME_DIR_MAX {
        true => near,
        false => std::env::temp_dir().join(format!("agent-relay-{}-{}", rustix::process::getuid().as_raw(), short_name(settings))),
    };
    let added = environment(settings);
    let mut all: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    all.remove(ENV_HOOKS); // of a session that this runner was started in
    all.extend(added);
    Want {
        session: SessionSettings {
            cwd: text(&settings.cwd),
            approval_mode: settings.approval,
            mode: settings.config.mode.clone(),
            approval_timeout: settings.approval_timeout,
            capture_full: settings.config.capture_full,
        },
        transport: settings.transport,
        command: settings.config.command.clone(),
        rig: settings.rig.clone(),
        default_args: settings.config.default_args.clone(),
        args: settings.command.clone(),
        model: settings.model.clone(),
        effort: settings.effort.clone(),
        system_prompt: settings.system_prompt.clone(),
        plugin_dirs: settings.config.plugin_dirs.clone(),
        explicit_replies: settings.config.reply_mode == ReplyMode::Explicit,
        home: text(&settings.global.home),
        dir: text(&dir),
        user_home: env("HOME").unwrap_or_else(|| "/".into()),
        runtime_dir: text(&runtime_dir),
        bin: std::env::current_exe().map(|path| text(&path)).unwrap_or_default(),
        isolated: settings.isolated,
        is_root: rustix::process::geteuid().is_root(),
        env: all,
        conversation: String::new(),
        fresh: String::new(),
    }
}

/// Makes the plan of each start, and lays out its files.
pub(super) fn planner(provider: &'static Provider, settings: &Settings) -> Planner {
    let (want, common) = (want(settings), environment(settings));
    Box::new(move |conversation, fresh| {
        let want = Want { conversation: conversation.into(), fresh: fresh.into(), ..want.clone() };
        let layout = (provider.layout)(&want, &RealDisk).map_err(|(reason, permanent)| Refusal { reason, permanent })?;
        let Layout { command, env, mut unset, files, mailbox, session, hint } = layout;
        for laid in &files {
            lay(laid)
                .map_err(|error| Refusal { reason: format!("cannot prepare the start of the provider: {error}"), permanent: false })?;
        }
        // Of an agent that this runner was started by.
        if !common.iter().any(|(name, _)| name == ENV_REPLY_MODE) {
            unset.push(ENV_REPLY_MODE.into());
        }
        let mut all: Vec<(String, String)> = common.iter().filter(|(name, _)| !unset.contains(name)).cloned().collect();
        all.extend(env);
        Ok(Plan { command, env: all, unset, mailbox: mailbox.map(|(ours, theirs)| (ours.into(), theirs.into())), session, hint })
    })
}

/// The sentence for a command that is nowhere: known before anything is started. What cannot be laid out is told later.
pub(super) fn missing_command(provider: &'static Provider, settings: &Settings) -> Option<String> {
    let want = Want { fresh: "0".into(), ..want(settings) };
    let layout = (provider.layout)(&want, &RealDisk).ok()?;
    let mut env = environment(settings);
    env.extend(layout.env);
    let program = layout.command.first()?;
    find_command(program, &env).is_none().then(|| crate::edge::provider::missing_command(program, &env, layout.hint))
}

struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(path).ok()
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

fn lay(laid: &Laid) -> Result<(), String> {
    let say = |path: &str, error: std::io::Error| format!("{path}: {error}");
    match laid {
        Laid::Folder(path) => {
            os::make_private_dir(Path::new(path)).map_err(|error| say(path, error))?;
            // It may have been there before, open to others, or be a link of somebody else's.
            let meta = fs::symlink_metadata(path).map_err(|error| say(path, error))?;
            if !meta.is_dir() || std::os::unix::fs::MetadataExt::uid(&meta) != rustix::process::geteuid().as_raw() {
                return Err(format!("{path} is no folder of this user; remove it"));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| say(path, error))
        }
        Laid::File { path, text } => os::replace_private_file(Path::new(path), text, false).map_err(|error| say(path, error)),
        Laid::Link { path, to } => {
            if fs::read_link(path).is_ok_and(|there| there == Path::new(to)) {
                return Ok(());
            }
            if fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_symlink()) {
                return Ok(()); // a file of its own, for example of a login in this very profile
            }
            let _ = fs::remove_file(path);
            std::os::unix::fs::symlink(to, path).map_err(|error| say(path, error))
        }
        Laid::Tree { path, files } => lay_tree(Path::new(path), files).map_err(|error| say(path, error)),
    }
}

/// The folder appears whole: it is made beside its place and moved there. One that is there with the same texts stays.
fn lay_tree(path: &Path, files: &[(String, String, bool)]) -> std::io::Result<()> {
    let same = |(name, text, _): &(String, String, bool)| fs::read_to_string(path.join(name)).is_ok_and(|there| there == *text);
    if files.iter().all(same) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&beside);
    for (name, text, program) in files {
        let file = beside.join(name);
        os::make_private_dir(file.parent().unwrap_or(&beside))?;
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(if *program { 0o700 } else { 0o600 }))?;
    }
    // In one step: a session that starts just now finds the one or the other.
    let flags = if path.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    if renameat_with(CWD, &beside, CWD, path, flags).is_ok() {
        let _ = fs::remove_dir_all(&beside);
        return Ok(());
    }
    // A file system that cannot do that, or another runner was faster.
    let old = path.with_file_name(format!(".{name}.{}.old", std::process::id()));
    let _ = fs::rename(path, &old);
    let moved = fs::rename(&beside, path);
    let _ = fs::remove_dir_all(&old);
    let _ = fs::remove_dir_all(&beside);
    // Another runner may have been faster; then it must have laid the same.
    match moved {
        Err(_) if files.iter().all(same) => Ok(()),
        moved => moved,
    }
}
