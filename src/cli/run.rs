//! `run`: from arguments, environment and files to a running runner.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use serde_json::{Map, Value, json};

use super::exit::{Failure, Kind, OK, Outcome};
use super::settings::{Settings, Typed, first_prompt, info_path, settings, store_dir, token_file};
use super::{inside, launch, print};
use crate::clock::Clock;
use crate::config::env;
use crate::core::agent::config::AgentConfig;
use crate::core::matching::Identity;
use crate::edge::http::{Base, Http};
use crate::edge::provider::Launch;
use crate::edge::{aside, gate, heartbeat};
use crate::os;
use crate::provider::{self, ApprovalMode, Transport};
use crate::runtime::agent::{Parts, run};
use crate::secret::Secret;
use crate::wire::VERSION;
use crate::wire::bus::Registration;
use crate::wire::control::{ENV_AGENT, ENV_TOKEN, LogLevel, RunnerInfo};

/// What happens to an unknown option before `--`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unknown {
    /// It goes to the provider, behind what follows `--`: how `claude-relay` and `codex-relay` always did.
    PassOn,
    /// It is an error.
    Refuse,
}

/// Options with a value, and what they mean. One table for parsing, help and suggestions.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("--preset", "NAME", "a known agent instead of a command; the list is below"),
    ("--cwd", "PATH", "working directory of the provider"),
    ("--relay-url", "URL", "relay (default http://127.0.0.1:4850)"),
    ("--token", "TOKEN", "relay token; better in AGENT_RELAY_TOKEN or config.json, since others can see arguments"),
    ("--approval", "MODE", "open, guarded or read-only (default guarded)"),
    ("--label", "NAME", "label that messages can be sent to"),
    ("--agent-id", "ID", "agent id (default: stable, made of host, provider, label or folder)"),
    ("--prompt", "TEXT", "first prompt: at a terminal said at every start, else once; --prompt-again repeats it"),
    ("--transport", "WAY", "how the provider is talked to: tmux, stream or terminal (claude; default tmux, terminal where you sit at one)"),
    ("--model", "NAME", "model (for acp: for the record)"),
    ("--effort", "LEVEL", "effort (for acp: for the record)"),
    ("--profile", "NAME", "profile, for the record"),
    ("--rig", "NAME", "rig that claude-rig starts"),
    ("--system-prompt-append", "TEXT", "further text for the system prompt (claude)"),
    ("--tags", "A,B", "further tags"),
    ("--caps", "A,B", "further capabilities"),
];

/// Options without a value.
const SWITCHES: &[(&str, &str)] = &[
    ("--headless", "no terminal of yours is used; the agent is marked as headless"),
    ("--isolated", "the provider gets a home of its own instead of yours; your login is linked (claude)"),
    ("--replace", "ask a runner of the same agent on this machine to stop first"),
    ("--prompt-again", "say the first prompt at this start whatever was delivered before"),
    ("--as-operator", "inside an agent's session: start as outside of it, with your own settings"),
    ("--quiet", "no lines on standard error but errors"),
    ("--help", "this text"),
];

/// All options with value name and text, for completions and the manual.
pub(super) fn options() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    OPTIONS.iter().copied().chain(SWITCHES.iter().map(|(name, about)| (*name, "", *about)))
}

fn parse(default_provider: &str, arguments: &[String], unknown: Unknown) -> Result<Typed, Failure> {
    let mut typed = Typed { provider: default_provider.into(), ..Default::default() };
    let split = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    typed.provider_args = arguments.get(split + 1..).unwrap_or_default().to_vec();
    let mut passed_on = Vec::new();
    let mut words = arguments[..split].iter().peekable();
    while let Some(word) = words.next() {
        let name = if word == "--approval-mode" { "--approval" } else { word.as_str() };
        if let Some((option, ..)) = OPTIONS.iter().find(|(option, ..)| *option == name) {
            // The next word is the value whatever it looks like; without one the option is unknown.
            match words.next_if(|value| !value.is_empty()) {
                Some(value) => {
                    typed.values.insert(option, value.clone());
                }
                None if unknown == Unknown::PassOn => passed_on.push(word.clone()),
                None => {
                    return Err(Failure::usage(format!("{word} needs a value; try `agent-relay run --help`")));
                }
            }
            continue;
        }
        match word.as_str() {
            "--headless" => typed.headless = true,
            "--replace" => typed.replace = true,
            "--quiet" => typed.quiet = true,
            "--isolated" => typed.isolated = true,
            "--prompt-again" => typed.prompt_again = true,
            "--help" | "-h" => {
                typed.help = true;
                return Ok(typed);
            }
            "claude" | "codex" => typed.provider = word.clone(),
            name if provider::by_name(name).is_some() => typed.provider = word.clone(),
            _ if unknown == Unknown::PassOn => passed_on.push(word.clone()),
            _ => return Err(Failure::usage(not_known(word))),
        }
    }
    typed.provider_args.extend(passed_on);
    Ok(typed)
}

/// Says what was probably meant.
fn not_known(word: &str) -> String {
    if let Some((flag, value)) = word.split_once('=')
        && OPTIONS.iter().any(|(option, ..)| *option == flag)
    {
        return format!("write {flag} {value} instead of {word}");
    }
    let names = options().map(|(option, ..)| option);
    let near = names.map(|name| (distance(name, word), name)).min().filter(|(distance, _)| *distance <= 3);
    let meant = match near {
        Some((_, name)) => format!("did you mean {name}?"),
        None if word.starts_with('-') => "options of the provider's command come after `--`".into(),
        None => match provider::PROVIDERS.iter().find(|provider| (provider.presets)().iter().any(|preset| preset.name == word)) {
            Some(provider) => format!("for that agent say `agent-relay run {} --preset {word}`", provider.name),
            None => format!("the provider must be one of: {}; its command comes after `--`", provider::names()),
        },
    };
    format!("unknown argument {word:?} before `--`: {meant}")
}

/// Edits between two words.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (corner + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

fn help(name: &str) -> String {
    let mut text =
        format!("Usage: {name} [options] [-- <command> [arguments]]\n\nSupervises one agent and connects it to the relay.\n\nProviders:\n");
    for provider in provider::PROVIDERS {
        text.push_str(&format!("  {:<24}{}\n", provider.name, provider.about));
    }
    for provider in provider::PROVIDERS.iter().filter(|provider| !(provider.presets)().is_empty()) {
        text.push_str(&format!("\nPresets of {}:\n", provider.name));
        for preset in (provider.presets)() {
            text.push_str(&format!("  {:<24}{}: {}\n", preset.name, preset.command.join(" "), preset.about));
        }
    }
    text.push_str("\nOptions:\n");
    for (option, value, about) in OPTIONS {
        text.push_str(&format!("  {:<31}{about}\n", format!("{option} {value}")));
    }
    for (option, about) in SWITCHES {
        text.push_str(&format!("  {option:<31}{about}\n"));
    }
    text.push_str(
        "\nExamples:\n  agent-relay run claude --headless --label web\n  agent-relay run claude --transport stream\n  agent-relay run acp --preset opencode\n  agent-relay run acp --label web --approval open -- gemini --acp\n  \
         agent-relay run acp --agent-id demo -- agent-relay demo-agent\n\nExit codes: 0 stopped as asked, 1 the provider failed for good, \
         2 wrong use or configuration, 3 the other side cannot be reached, 70 a bug, \
         71 the system refused something at the start (disk, descriptors, memory, permissions): trying again may help.",
    );
    text
}

/// `run` with the words behind it.
pub fn from_arguments(default_provider: &str, arguments: &[String], unknown: Unknown) -> Outcome {
    let typed = parse(default_provider, arguments, unknown)?;
    let name = if default_provider.is_empty() { "agent-relay run <provider>".to_string() } else { format!("{default_provider}-relay") };
    if typed.help {
        print::own(&help(&name));
        return Ok(OK);
    }
    if typed.provider.is_empty() {
        return Err(Failure::usage(format!(
            "say which provider to run: {}; for example `agent-relay run acp --preset opencode`",
            provider::names()
        )));
    }
    let Some(provider) = provider::by_name(&typed.provider) else {
        return Err(Failure::usage(format!("this version cannot run {}; it can run: {}", typed.provider, provider::names())));
    };
    if typed.prompt_again && !typed.values.contains_key("--prompt") {
        return Err(Failure::usage("--prompt-again repeats a first prompt: say which one with --prompt TEXT"));
    }
    start(typed, provider)
}

fn start(typed: Typed, provider: &'static provider::Provider) -> Outcome {
    let clock = Clock::start();
    let settings = settings(&typed, provider)?;
    // Inside the session of another agent its token and files are not ours to use; started by an orchestrator it is this agent.
    if env(ENV_AGENT).is_some_and(|session| session != settings.agent_id) {
        return Err(inside::refusal("run"));
    }
    let base = Base::parse(&settings.global.relay_url).map_err(Failure::usage)?;
    if let Some(text) = launch::missing_command(provider, &settings) {
        return Err(Failure::usage(text));
    }
    let home = settings.global.home.clone();
    let name = crate::log::safe_name(&settings.agent_id);
    let log = home.join("logs").join(format!("session-mirror-{name}.log"));
    crate::log::start(Some(log.clone()), false).map_err(|error| Failure::system(format!("cannot write {}: {error}", log.display())))?;
    std::panic::set_hook(Box::new(|info| {
        let recent = crate::runtime::event_loop::recent().join("; ");
        crate::log::write(LogLevel::Fatal, "runner", &format!("{info}; last events: {recent}"));
        print::complain(&info.to_string());
        print::complain(&format!("last events: {recent}"));
    }));

    let dir = store_dir(&home, &settings.agent_id);
    os::make_private_dir(&dir).map_err(|error| Failure::system(format!("cannot make {}: {error}", dir.display())))?;
    let info_file = info_path(&home, &settings.agent_id);
    let token_file = token_file(&home, &settings.agent_id);
    let _lock = take_lock(&dir, &info_file, &settings.agent_id, typed.replace)?;
    let (store, said) = aside::open_or_set_aside(&dir.join("store.sqlite"), settings.config.outbox_bytes_max)?;
    if let Some(said) = &said {
        log::error!(target: "runner", "{said}");
        print::note(said);
    }
    let no_port = |error: std::io::Error| Failure::system(format!("cannot open the control port: {error}"));
    let control = gate::listen("127.0.0.1:0").map_err(no_port)?;
    let port = control.local_addr().map_err(no_port)?.port();
    let control_token = Secret::new(os::secret());

    let started_at = clock.now().wall.0;
    let info = RunnerInfo {
        agent_id: settings.agent_id.clone(),
        runner_id: settings.runner_id.clone(),
        provider: provider.name.into(),
        control_url: format!("http://127.0.0.1:{port}"),
        control_token: control_token.expose().to_string(),
        pid: std::process::id(),
        started_at,
        ..Default::default()
    };
    let text = serde_json::to_string_pretty(&info).expect("plain data") + "\n";
    // What an earlier life told is not true any more, and on a full disk this one has no other place. Another agent's stays.
    remove_info(&info_file, |told| told.agent_id == settings.agent_id);
    let _ = std::fs::remove_file(&token_file);
    // Without it neither tools nor people find this runner.
    os::replace_private_file(&info_file, &text, false)
        .map_err(|error| Failure::system(format!("cannot write the runner info file {}: {error}", info_file.display())))?;
    // In a person's own terminal not a word: the provider draws there.
    let quiet = typed.quiet || settings.transport == Transport::Terminal;
    if !quiet {
        print::note(&format!("agent {0} on {1}; `agent-relay status {0} --why` tells how it is", settings.agent_id, base.url));
        tell_if_away(&base);
    }
    for strange in &settings.config.strange {
        log::warn!(target: "runner", "{strange}");
        if !quiet {
            print::note(strange);
        }
    }
    let (custody_in, custody) = unbounded();
    let mut agent_config = agent_config(&typed, &settings, provider, started_at);
    agent_config.store_note = said.or_else(|| aside::note(&dir));
    let launch = Launch {
        cwd: settings.cwd.clone(),
        host: launch::host(&settings),
        plan: launch::planner(provider, &settings),
        control: (port, control_token.clone()),
        custody: custody_in,
        clock,
    };
    let tell: fn(&str) = if quiet { |_| {} } else { print::note };
    let parts = Parts {
        config: agent_config,
        files: heartbeat::Files { config: settings.global.file(), token: token_file.clone() },
        store,
        launch,
        control,
        control_token,
        custody,
        clock,
        tell,
    };
    let outcome = run(parts);
    remove_info(&info_file, |told| told.runner_id == settings.runner_id && told.pid == std::process::id());
    let _ = std::fs::remove_file(&token_file);
    let outcome = outcome.map_err(Failure::system)?;
    match outcome.message.is_empty() {
        true => Ok(outcome.code),
        false if outcome.code == OK => {
            log::info!(target: "runner", "{}", outcome.message);
            if !quiet {
                print::note(&outcome.message);
            }
            Ok(OK)
        }
        false => Err(Failure::new(Kind::of(outcome.code), outcome.message)),
    }
}

/// Removes the runner info file if it is the one that is meant: somebody else may have written there meanwhile. One that says
/// nothing is nobody's.
fn remove_info(path: &Path, is_meant: impl Fn(&RunnerInfo) -> bool) {
    let told = std::fs::read_to_string(path).ok().map(|text| serde_json::from_str::<RunnerInfo>(&text));
    if told.is_some_and(|told| told.is_ok_and(|told| is_meant(&told))) {
        let _ = std::fs::remove_file(path);
    }
}

/// A word on standard error if nobody listens at the relay's address: else a person who made a mistake there sees nothing
/// at all. A thread of its own, so that neither the start nor the runner waits for it.
fn tell_if_away(base: &Base) {
    let (host, port, url) = (base.host.clone(), base.port, base.url.clone());
    let look = move || {
        if let Err(error) = crate::edge::stream::Stream::connect(&host, port, false, Duration::from_secs(5)) {
            print::note(&format!("cannot reach the relay at {url} ({error}); it is tried on. Start one with `agent-relay hub`"));
        }
    };
    let _ = std::thread::Builder::new().name("look".into()).stack_size(256 << 10).spawn(look);
}

/// One runner per agent and machine: takes the lock of its store; with `--replace` the other runner is asked to stop.
fn take_lock(dir: &Path, info_file: &Path, agent_id: &str, replace: bool) -> Result<std::fs::File, Failure> {
    let path = dir.join("lock");
    let say = |error: std::io::Error| Failure::system(format!("cannot lock {}: {error}", path.display()));
    let other = || -> Option<RunnerInfo> { serde_json::from_str(&std::fs::read_to_string(info_file).ok()?).ok() };
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
            let stop = http.call_bearer("POST", "/stop", Some(&json!({})), &Secret::new(info.control_token));
            match stop {
                Ok((202, _)) => {}
                Ok((status, _)) => return Err(Failure::no(format!("the runner with pid {pid} refuses to stop (HTTP {status})"))),
                Err(cause) => return Err(Failure::unreachable(format!("cannot ask the runner with pid {pid} to stop: {cause}"))),
            }
        }
        if Instant::now() > until {
            return Err(Failure::no(format!("the runner with pid {pid} did not stop in time")));
        }
        std::thread::sleep(Duration::from_millis(20)); // flock has no wait with a limit
    }
}

/// Lists without duplicates, in order.
fn list(parts: &[&[String]]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for item in parts.iter().flat_map(|part| part.iter()) {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    all
}

fn commas(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect()
}

fn agent_config(typed: &Typed, settings: &Settings, kind: &provider::Provider, started_at: i64) -> AgentConfig {
    let provider = kind.name;
    let value = |name: &str| typed.values.get(name).cloned();
    let config = &settings.config;
    let fixed = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let env_caps = commas(env("AGENT_RELAY_CAPS").or_else(|| env("AGENT_RELAY_CAPABILITIES")));
    let capabilities = list(&[
        &config.default_capabilities,
        &commas(value("--caps")),
        &env_caps,
        &fixed(&[
            "lifecycle.shutdown.hard",
            "lifecycle.restart.hard",
            "lifecycle.status.semantic",
            "lifecycle.heartbeat",
            "lifecycle.reconnect.transport",
            "commands.lifecycle",
            "capabilities.report",
        ]),
    ]);
    let headless = if typed.headless || settings.transport == Transport::Tmux { fixed(&["headless"]) } else { Vec::new() };
    let tags =
        list(&[&[provider.to_string()], &commas(env("AGENT_RELAY_TAGS")), &commas(value("--tags")), &config.default_tags, &headless]);
    let profile: Option<Value> = env("AGENT_RELAY_AGENT_PROFILE_JSON").and_then(|text| serde_json::from_str(&text).ok());
    let broad_targets = profile.as_ref().and_then(|p| p.pointer("/relay/context")) != Some(&json!(false));
    // What the environment says of a token is about the one that stands beside it.
    let described = env(ENV_TOKEN).map(Secret::new) == settings.global.token;
    let said = |name: &str| env(name).filter(|_| described);
    let instance = os::random_bytes::<16>();
    let instance_id = crate::core::rng::Rng::new(u64::from_le_bytes(instance[..8].try_into().expect("8 bytes"))).uuid();
    let registration = Registration {
        role: "provider".into(),
        component_id: settings.runner_id.clone(),
        agent_id: Some(settings.agent_id.clone()),
        instance_id: instance_id.clone(),
        capabilities: capabilities.clone(),
        tags: tags.clone(),
        machine: os::hostname(),
        meta: registration_meta(typed, settings, provider, started_at),
        ..Default::default()
    };
    AgentConfig {
        agent_id: settings.agent_id.clone(),
        runner_id: settings.runner_id.clone(),
        instance_id,
        provider: provider.into(),
        identity: Identity { agent_id: settings.agent_id.clone(), label: settings.label.clone(), tags, capabilities, broad_targets },
        registration,
        approval_mode: settings.approval.word().into(),
        prompt: value("--prompt").map(|text| first_prompt(text, typed.prompt_again)),
        relay_url: settings.global.relay_url.clone(),
        url_by_hand: settings.global.url_by_hand,
        token_by_hand: settings.global.token_by_hand,
        token: settings.global.token.clone(),
        token_profile: said("AGENT_RELAY_TOKEN_PROFILE"),
        token_expires_at: said("AGENT_RELAY_TOKEN_EXPIRES_AT").and_then(|text| text.parse().ok()).filter(|end| *end > 0),
        shutdown_timeout: config.shutdown_timeout,
        restart: config.restart.clone(),
        reply_mode: config.reply_mode,
        apart: kind.apart,
        takes_urgent: kind.takes_urgent,
        judges: kind.judges,
        personal: settings.transport == Transport::Terminal,
        terminal_dir: env("TMUX_TMPDIR"),
        store_note: None,
        started_at,
    }
}

/// The part of the registration's meta that never changes; absent values are null.
fn registration_meta(typed: &Typed, settings: &Settings, provider: &str, started_at: i64) -> Map<String, Value> {
    let value = |name: &str| typed.values.get(name).cloned();
    let workspace: Option<Value> =
        env("AGENT_RELAY_WORKSPACE_JSON").and_then(|text| serde_json::from_str(&text).ok()).filter(Value::is_object);
    let mode = workspace.as_ref().and_then(|w| w.get("requestedMode").or_else(|| w.get("mode"))).cloned();
    let writes = settings.approval != ApprovalMode::ReadOnly;
    let steers = provider != "acp" && settings.transport != Transport::Terminal;
    let meta = json!({
        "package": {"name": "agent-relay-runner", "version": VERSION},
        "version": VERSION, "provider": provider, "model": settings.model, "effort": settings.effort,
        "transport": settings.transport.word(), "profile": value("--profile").or_else(|| env("AGENT_RELAY_AGENT_PROFILE")), "agentProfile": null,
        "processStart": {"boot": os::boot_id(), "ticks": Some(os::process(std::process::id()).start).filter(|ticks| *ticks > 0)},
        "runnerId": settings.runner_id, "startedAt": started_at, "tmuxSession": env("AGENT_RELAY_TMUX_SESSION"), "tmuxSocket": null,
        "policyName": env("AGENT_RELAY_POLICY"), "spawnRequestId": env("AGENT_RELAY_SPAWN_REQUEST_ID"),
        "automationId": env("AGENT_RELAY_AUTOMATION_ID"), "automationRunId": env("AGENT_RELAY_AUTOMATION_RUN_ID"),
        "workspace": workspace, "workspaceMode": mode.or_else(|| env("AGENT_RELAY_WORKSPACE_MODE").map(Value::from)),
        "runnerManaged": true, "cwd": settings.cwd.to_string_lossy(), "approvalMode": settings.approval.word(), "label": settings.label,
        "lifecycleCapabilities": {"shutdownHard": true, "restartHard": true, "semanticStatus": true, "transportReconnect": true},
        "providerCapabilities": {
            "lifecycle": {"managed": true, "shutdownHard": true, "restartHard": true, "semanticStatus": true, "reconnect": true},
            "model": {"provider": provider, "alias": settings.model, "id": settings.model, "effort": settings.effort,
                      "source": "runtime", "confidence": if settings.model.is_some() { "reported" } else { "unknown" }, "lastUpdatedAt": started_at},
            "session": {"approvalMode": settings.approval.word(), "fileRead": true, "fileWrite": writes, "shell": writes,
                        "source": "runtime", "confidence": "reported", "lastUpdatedAt": started_at},
            "context": {"compact": steers, "clear": steers, "inject": true},
            "terminal": if settings.transport == Transport::Tmux { json!({"live": {"read": true, "write": true}}) } else { Value::Null },
            "source": "runtime", "confidence": "reported", "lastUpdatedAt": started_at,
        },
    });
    meta.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn arguments_are_split_and_passed_on() {
        let typed = parse("codex", &words("--cwd /x --odd --label claude acp --headless -- a --b -- c"), Unknown::PassOn).expect("parses");
        assert_eq!(typed.provider, "acp");
        assert_eq!(typed.values.get("--label").map(String::as_str), Some("claude"));
        assert_eq!(typed.provider_args, words("a --b -- c --odd"));
        assert!(typed.headless);
        let typed = parse("codex", &words("--label"), Unknown::PassOn).expect("passes on");
        assert_eq!(typed.provider_args, ["--label"]);
    }

    #[test]
    fn unknown_words_are_refused_with_a_hint() {
        for (line, hint) in [
            ("acp --lable x", "did you mean --label?"),
            ("acp --label=x", "write --label x instead"),
            ("acp --dangerous", "after `--`"),
            ("opencode", "--preset opencode"),
            ("nobody", "must be one of: claude, acp"),
            ("acp --cwd", "--cwd needs a value"),
        ] {
            let failure = parse("", &words(line), Unknown::Refuse).expect_err(line);
            assert!(failure.text.contains(hint), "{line}: {}", failure.text);
            assert_eq!(failure.code(), 2);
        }
    }
}
