//! `run`: from settings to a running runner, and what is left when it has ended.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use serde_json::json;

use super::exit::{Failure, Kind, OK, Outcome};
use super::options::{self, RunArgs, Unknown};
use super::paths::{info_path, store_dir, token_file};
use super::settings::{RunSettings, settings};
use super::{inside, print};
use crate::clock::Clock;
use crate::config::env;
use crate::core::agent::config::AgentConfig;
use crate::core::agent::effect::Outcome as RunOutcome;
use crate::edge::http::{Base, Http};
use crate::edge::provider::{ControlAccess, Launch};
use crate::edge::store::Store;
use crate::edge::{aside, gate, heartbeat};
use crate::os;
use crate::provider::registry;
use crate::runtime::runner::{RunnerParts, run};
use crate::secret::Secret;
use crate::wire::control::{ENV_AGENT, ENV_SESSION_LAUNCH, LogLevel, RunnerInfo};

/// `run` with the words behind it.
pub fn from_arguments(default_provider: &str, arguments: &[String], unknown: Unknown) -> Outcome {
    let args = options::parse(default_provider, arguments, unknown)?;
    if args.help {
        let of_provider = format!("{default_provider}-relay");
        print::trusted(&options::help(if default_provider.is_empty() {
            "agent-relay run <provider>"
        } else {
            &of_provider
        }));
        return Ok(OK);
    }
    if args.provider.is_empty() {
        return Err(Failure::usage(format!(
            "say which provider to run: {}; for example `{}`",
            registry::names(),
            options::example()
        )));
    }
    let Some(provider) = registry::by_name(&args.provider) else {
        return Err(Failure::usage(format!(
            "this version cannot run {}; it can run: {}",
            args.provider,
            registry::names()
        )));
    };
    if args.prompt_again && args.prompt.is_none() {
        return Err(Failure::usage(
            "--prompt-again repeats a first prompt: say which one with --prompt TEXT",
        ));
    }
    start(args, provider)
}

/// Files of this runner that others read while it lives.
struct RunnerFiles {
    info: PathBuf,
    token: PathBuf,
}

/// What the runner has taken for itself before it starts.
struct OpenStore {
    dir: PathBuf,
    store: Store,
    /// What became of a store that was damaged, for people.
    note: Option<String>,
    /// Only one runner has it; released with the process.
    _lock: File,
}

fn start(args: RunArgs, provider: &'static registry::Provider) -> Outcome {
    let clock = Clock::start();
    let started_at = clock.now().wall.0;
    let (replace, quiet) = (args.replace, args.quiet);
    let settings = settings(args, provider, started_at)?;
    // Inside the session of another agent its token and files are not ours to use; started by an
    // orchestrator it is this agent.
    if env(ENV_AGENT).is_some_and(|session| session != settings.agent.agent_id) {
        return Err(inside::refusal("run"));
    }
    let base = Base::parse(&settings.global.relay_url).map_err(Failure::usage)?;
    if let Some(text) = settings.planner.missing_command() {
        return Err(Failure::usage(text));
    }
    let (home, agent_id) = (settings.global.home.clone(), settings.agent.agent_id.clone());
    start_log(&home, &agent_id)?;
    let files =
        RunnerFiles { info: info_path(&home, &agent_id), token: token_file(&home, &agent_id) };
    let opened = open_store(&settings, &files, replace)?;

    let no_port =
        |error: std::io::Error| Failure::system(format!("cannot open the control port: {error}"));
    let control = gate::listen("127.0.0.1:0").map_err(no_port)?;
    let port = control.local_addr().map_err(no_port)?.port();
    let control_token = Secret::new(os::secret());
    let info = RunnerInfo {
        agent_id,
        runner_id: settings.agent.runner_id.clone(),
        provider: provider.name.into(),
        control_url: format!("http://127.0.0.1:{port}"),
        control_token: control_token.expose().to_string(),
        pid: std::process::id(),
        started_at,
        ..Default::default()
    };
    write_info(&files, &info)?;
    // Nothing is printed in a person's own terminal: the provider draws there.
    let quiet = quiet || settings.agent.in_user_terminal;
    greet(&settings, &base, quiet);

    let (child_registrations_in, child_registrations) = unbounded();
    let launch = Launch {
        cwd: settings.cwd,
        host: settings.host,
        planner: settings.planner,
        control: ControlAccess { port, token: control_token.clone() },
        child_registrations: child_registrations_in,
        clock,
    };
    let is_spawned = env(ENV_SESSION_LAUNCH).is_some() && settings.global.token_by_hand;
    let config_file = (!is_spawned).then(|| settings.global.file());
    let store_note = opened.note.or_else(|| aside::note(&opened.dir));
    let outcome = run(RunnerParts {
        config: AgentConfig { store_note, ..settings.agent },
        files: heartbeat::Files { config: config_file, token: files.token.clone() },
        store: opened.store,
        launch,
        control,
        control_token,
        child_registrations,
        clock,
        tell: if quiet { |_| {} } else { print::notice },
    });
    remove_info(&files.info, |told| told.runner_id == info.runner_id && told.pid == info.pid);
    let _ = std::fs::remove_file(&files.token);
    end(outcome.map_err(Failure::system)?, quiet)
}

/// Logs into a file of the agent; a panic goes there and to standard error.
fn start_log(home: &Path, agent_id: &str) -> Result<(), Failure> {
    let name = crate::log::safe_name(agent_id);
    let log = home.join("logs").join(format!("session-mirror-{name}.log"));
    crate::log::start(Some(log.clone()), false)
        .map_err(|error| Failure::system(format!("cannot write {}: {error}", log.display())))?;
    std::panic::set_hook(Box::new(|info| {
        let recent = crate::runtime::event_loop::recent().join("; ");
        crate::log::write(LogLevel::Fatal, "runner", &format!("{info}; last events: {recent}"));
        print::error(&info.to_string());
        print::error(&format!("last events: {recent}"));
    }));
    Ok(())
}

/// Takes the agent's lock and opens its store; a damaged one is set aside, and that is told.
fn open_store(
    settings: &RunSettings,
    files: &RunnerFiles,
    replace: bool,
) -> Result<OpenStore, Failure> {
    let agent_id = &settings.agent.agent_id;
    let dir = store_dir(&settings.global.home, agent_id);
    os::make_private_dir(&dir)
        .map_err(|error| Failure::system(format!("cannot make {}: {error}", dir.display())))?;
    let lock = take_lock(&dir, &files.info, agent_id, replace)?;
    let path = dir.join("store.sqlite");
    let (store, note) = aside::open_or_set_aside(&path, settings.outbox_bytes_max)?;
    if let Some(note) = &note {
        log::error!(target: "runner", "{note}");
        print::notice(note);
    }
    Ok(OpenStore { dir, store, note, _lock: lock })
}

/// Tells tools and people of this machine where the runner is: without it they do not find it.
fn write_info(files: &RunnerFiles, info: &RunnerInfo) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(info).expect("plain data") + "\n";
    // The file of an earlier run of this agent is outdated, and on a full disk the new one needs
    // its room. Another agent's stays.
    remove_info(&files.info, |told| told.agent_id == info.agent_id);
    let _ = std::fs::remove_file(&files.token);
    os::replace_private_file(&files.info, &text, false).map_err(|error| {
        Failure::system(format!(
            "cannot write the runner info file {}: {error}",
            files.info.display()
        ))
    })
}

/// The first words: who runs where, and what the settings give cause to warn of.
fn greet(settings: &RunSettings, base: &Base, quiet: bool) {
    if !quiet {
        print::notice(&format!(
            "agent {0} on {1}; `agent-relay status {0} --why` shows its status",
            settings.agent.agent_id, base.url
        ));
        tell_if_away(base);
    }
    for warning in &settings.warnings {
        log::warn!(target: "runner", "{warning}");
        if !quiet {
            print::notice(warning);
        }
    }
    settings.log_only.iter().for_each(|warning| log::warn!(target: "runner", "{warning}"));
}

/// The runner has ended: its last words and its exit code.
fn end(outcome: RunOutcome, quiet: bool) -> Outcome {
    if outcome.message.is_empty() {
        return Ok(outcome.code);
    }
    if outcome.code != OK {
        return Err(Failure::new(Kind::of(outcome.code), outcome.message));
    }
    log::info!(target: "runner", "{}", outcome.message);
    if !quiet {
        print::notice(&outcome.message);
    }
    Ok(OK)
}

/// Removes the runner info file if `is_meant` accepts it: another runner may have replaced it
/// meanwhile. One that cannot be read stays.
fn remove_info(path: &Path, is_meant: impl Fn(&RunnerInfo) -> bool) {
    let told =
        std::fs::read_to_string(path).ok().map(|text| serde_json::from_str::<RunnerInfo>(&text));
    if told.is_some_and(|told| told.is_ok_and(|told| is_meant(&told))) {
        let _ = std::fs::remove_file(path);
    }
}

/// Warns on standard error if nothing listens at the relay's address: a person who mistyped it
/// would see nothing at all. It runs on a thread of its own, so that neither the start nor the
/// runner waits for it.
fn tell_if_away(base: &Base) {
    let (host, port, url) = (base.host.clone(), base.port, base.url.clone());
    let look = move || {
        if let Err(error) =
            crate::edge::stream::Stream::connect(&host, port, false, Duration::from_secs(5))
        {
            print::notice(&format!(
                "cannot reach the relay at {url} ({error}); retrying. Start one with `agent-relay hub`"
            ));
        }
    };
    let _ = std::thread::Builder::new().name("look".into()).stack_size(256 << 10).spawn(look);
}

/// One runner per agent and machine: takes the lock of its store; with `--replace` the other runner
/// is asked to stop.
fn take_lock(dir: &Path, info_file: &Path, agent_id: &str, replace: bool) -> Result<File, Failure> {
    let path = dir.join("lock");
    let say =
        |error: std::io::Error| Failure::system(format!("cannot lock {}: {error}", path.display()));
    let other = || -> Option<RunnerInfo> {
        serde_json::from_str(&std::fs::read_to_string(info_file).ok()?).ok()
    };
    let mut asked = false;
    let until = Instant::now() + Duration::from_secs(75);
    loop {
        if let Some(mut lock) = os::lock(&path).map_err(say)? {
            let _ = lock.set_len(0).and_then(|_| writeln!(lock, "{}", std::process::id()));
            return Ok(lock);
        }
        let pid = std::fs::read_to_string(&path).unwrap_or_default().trim().to_string();
        if !replace {
            return Err(Failure::usage(format!(
                "a runner of {agent_id} already runs here (pid {pid}); stop it, or start this one with --replace"
            )));
        }
        if !asked {
            asked = true;
            let Some(info) = other() else {
                return Err(Failure::usage(format!(
                    "cannot ask the runner with pid {pid} to stop: {} cannot be read",
                    info_file.display()
                )));
            };
            let base = Base::parse(&info.control_url).map_err(Failure::usage)?;
            let http = Http::new(base, Duration::from_secs(5));
            let stop = http.call_bearer(
                "POST",
                "/stop",
                Some(&json!({})),
                &Secret::new(info.control_token),
            );
            match stop {
                Ok((202, _)) => {}
                Ok((status, _)) => {
                    return Err(Failure::no(format!(
                        "the runner with pid {pid} refuses to stop (HTTP {status})"
                    )));
                }
                Err(cause) => {
                    return Err(Failure::unreachable(format!(
                        "cannot ask the runner with pid {pid} to stop: {cause}"
                    )));
                }
            }
        }
        if Instant::now() > until {
            return Err(Failure::no(format!("the runner with pid {pid} did not stop in time")));
        }
        std::thread::sleep(Duration::from_millis(20)); // flock has no wait with a limit
    }
}
