//! Inside an agent's session a tool speaks as that agent or not at all. Which command does what
//! there, and the way out.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Command as Process;
use std::time::Duration;

use serde_json::Value;

use argh::ArgsInfo;

use super::args::{Command, Top};
use super::client::Client;
use super::exit::{Failure, Kind};
use crate::config::env;
use crate::core::ids::MessageId;
use crate::edge::http::{Base, Http};
use crate::os;
use crate::secret::Secret;
use crate::wire::control::{ENV_AGENT, ENV_CONTROL_TOKEN, ENV_PORT, ENV_TOKEN_FILE, RunnerInfo};

/// The switch that leads out of the session.
pub const AS_OPERATOR: &str = "--as-operator";

/// Our variables that mean the same inside and outside of a session.
const KEPT: [&str; 4] =
    ["AGENT_RELAY_HOME", "AGENT_RELAY_URL", "AGENT_RELAY_LOG_LEVEL", "AGENT_RELAY_CRASH_AT"];

/// Whose word a command is, inside an agent's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The agent's: with its token, about its own things.
    Agent,
    /// Nobody's: no relay token is used, at most this session's runner is asked.
    Local,
    /// A person's.
    Operator,
}

/// The column of the table of commands.
pub fn reach(command: &Command) -> Reach {
    match command {
        Command::Send(_) | Command::Reply(_) | Command::React(_) => Reach::Agent,
        Command::GetMessage(_) | Command::Message(_) | Command::Thread(_) | Command::Inbox(_) => {
            Reach::Agent
        }
        Command::Whoami(_) | Command::Tasks(_) | Command::Mcp(_) => Reach::Agent,
        Command::Label(label) if env(ENV_AGENT).as_deref() == Some(&label.agent) => Reach::Agent,
        // How it is itself; of all others a person asks.
        Command::Status(status) if status.agent.is_some() && env(ENV_AGENT) == status.agent => {
            Reach::Agent
        }
        Command::Hook(hook) if hook.agent.is_some() && hook.agent != env(ENV_AGENT) => {
            Reach::Operator
        }
        // `doctor` looks with the agent's token.
        Command::Doctor(_) | Command::Hook(_) | Command::Monitor(_) => Reach::Local,
        Command::Guide(_) | Command::Generate(_) | Command::Version(_) | Command::DemoAgent(_) => {
            Reach::Local
        }
        // But for a start of this very agent, which shows when the settings are known.
        Command::Run(_) => Reach::Operator,
        Command::Label(_) | Command::Up(_) | Command::Hub(_) | Command::Service(_) => {
            Reach::Operator
        }
        Command::Agents(_) | Command::Status(_) | Command::Attach(_) => Reach::Operator,
        Command::Approvals(_) | Command::Command(_) | Command::Token(_) => Reach::Operator,
        Command::Config(_) => Reach::Operator,
        Command::Orchestrator(_) | Command::Spawn(_) | Command::Stop(_) => Reach::Operator,
        Command::Sessions(_) | Command::Recover(_) => Reach::Operator,
        Command::Logs(_) | Command::Diagnose(_) => Reach::Operator,
    }
}

/// Commands that are the agent's own, and those that need no word of anybody's.
const OF_AGENTS: [&str; 10] = [
    "send",
    "reply",
    "react",
    "get-message",
    "message",
    "thread",
    "inbox",
    "whoami",
    "tasks",
    "mcp",
];

/// What an agent is told of its work with the relay: how messages come, and its commands as
/// `--help` lists them.
pub fn guide() -> String {
    let all = Top::get_args_info().commands;
    let about = |name: &str| {
        let known = all.iter().find(|command| command.name == name);
        known.map(|command| command.command.description).unwrap_or_default()
    };
    let names = OF_AGENTS.into_iter().filter(|name| !["message", "mcp"].contains(name));
    let lines: Vec<String> =
        names.map(|name| format!("  {name:<12} {}", one_sentence(about(name)))).collect();
    let text = include_str!("guide.txt").trim_end();
    text.replace("<commands>", &lines.join("\n"))
}

/// The beginning of a description, up to its first full stop.
fn one_sentence(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.split_once(". ").map_or(words.as_str(), |(first, _)| first).trim_end_matches('.').into()
}

/// Why a person's command does not run in a session, and how it does.
pub fn refusal(name: &str) -> Failure {
    let agent = env(ENV_AGENT).unwrap_or_default();
    Failure::usage(format!(
        "`{name}` is a person's command, and this is the session of agent {agent} (AGENT_RELAY_ID); say it with {AS_OPERATOR}, or outside of the \
         session: `env -u AGENT_RELAY_ID agent-relay {name} …`"
    ))
}

/// A person's command in an agent's session is refused.
pub fn check(reach: Reach, name: &str) -> Result<(), Failure> {
    if reach == Reach::Operator && env(ENV_AGENT).is_some() { Err(refusal(name)) } else { Ok(()) }
}

/// Takes the switch out of the arguments; what follows `--` is the provider's command.
fn take_switch(arguments: &mut Vec<String>) -> bool {
    let end = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    let found = arguments[..end].iter().position(|word| word == AS_OPERATOR);
    found.map(|at| arguments.remove(at)).is_some()
}

/// Leaves the session if that was asked for, by the switch or by taking AGENT_RELAY_ID away: the
/// program starts once more without anything that the session's runner has put into the
/// environment. Then it is where a person would have started it.
pub fn leave(program: &str, arguments: &mut Vec<String>) -> Result<(), Failure> {
    let asked = take_switch(arguments);
    // A hook or monitor of a session is that in any case.
    let of_session = matches!(arguments.first().map(String::as_str), Some("hook" | "monitor"));
    let left = env(ENV_AGENT).is_none()
        && env(ENV_TOKEN_FILE).is_some()
        && env("AGENT_RELAY_RUNNER_ID").is_some()
        && !of_session;
    if !(left || (asked && env(ENV_AGENT).is_some())) {
        return Ok(());
    }
    // By its descriptor: the file may have been replaced by a newer one since.
    let mut again = Process::new("/proc/self/exe");
    again.arg0(program).args(arguments.iter());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("AGENT_RELAY_") && !KEPT.contains(&&*name) {
            again.env_remove(&*name);
        }
    }
    again.envs(crate::planted::env());
    Err(Failure::system(format!("cannot start anew outside of the session: {}", again.exec())))
}

/// The runner answers from memory and its disk.
const RUNNER_TIME: Duration = Duration::from_secs(10);

/// Longest runner info file, bytes.
const INFO_BYTES_MAX: u64 = 64 << 10;

/// The control port of this session's runner, as its file tells it: after a restart another program
/// may have the port that the session was started with, and would get the message and the port's
/// token.
fn port(client: &Client, agent: &str) -> Option<(String, String)> {
    let mut text = String::new();
    let file = os::open_file(&super::paths::info_path(client.home(), agent));
    let read = file.and_then(|file| file.take(INFO_BYTES_MAX).read_to_string(&mut text));
    let told = serde_json::from_str::<RunnerInfo>(&text)
        .ok()
        .filter(|told| read.is_ok() && told.agent_id == agent);
    let started = || {
        Some((
            format!("http://127.0.0.1:{}", env(ENV_PORT)?),
            env(ENV_CONTROL_TOKEN).unwrap_or_default(),
        ))
    };
    told.map(|told| (told.control_url, told.control_token)).or_else(started)
}

/// One exchange with the runner of this session; `None`: there is none, or it does not answer.
pub fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Option<(u16, Value)> {
    let agent = client.session()?;
    let (url, token) = port(client, agent)?;
    Http::new(Base::parse(&url).ok()?, RUNNER_TIME)
        .call_bearer(method, path, body, &Secret::new(token))
        .ok()
}

/// Whether the relay cannot take it now, or not yet, and the runner of this session can.
pub fn is_away(client: &Client, failure: &Failure) -> bool {
    client.session().is_some() && failure.kind == Kind::Unreachable
}

/// What the relay cannot take now goes to the runner, which sends it on; every other failure stays.
pub fn through_runner(
    client: &Client,
    failure: Failure,
    path: &str,
    body: &Value,
) -> Result<Value, Failure> {
    if is_away(client, &failure) { to_runner(client, failure, path, body) } else { Err(failure) }
}

/// To the runner, which puts it into its outbox.
pub fn to_runner(
    client: &Client,
    failure: Failure,
    path: &str,
    body: &Value,
) -> Result<Value, Failure> {
    if client.session().is_none() {
        return Err(failure);
    }
    let text = |answer: &Value| answer["error"].as_str().unwrap_or("it gave no reason").to_string();
    match ask(client, "POST", path, Some(body)) {
        Some((202, answer)) => Ok(answer),
        Some((400 | 403 | 413 | 422, answer)) => Err(Failure::usage(text(&answer))),
        // An older runner takes nothing.
        Some((404 | 405, _)) => Err(failure),
        Some((_, answer)) => Err(Failure::new(
            failure.kind,
            format!("{}; its runner does not take it either: {}", failure.text, text(&answer)),
        )),
        None => Err(Failure::new(
            failure.kind,
            format!("{}; its runner does not answer either", failure.text),
        )),
    }
}

/// The message of a number that this session's agent was given.
pub struct ReceivedMessage {
    /// Its sender; empty where that is not known any more.
    pub from: String,
    /// The generation of the relay's data that gave it the number.
    pub generation: Option<String>,
    current: bool,
}

/// A number that means two messages means none.
fn twofold(id: MessageId, from: &[&str]) -> Failure {
    let who = |name: &&str| if name.is_empty() { "somebody" } else { name }.to_string();
    let names: Vec<String> = from.iter().map(|name| format!("one from {}", who(name))).collect();
    Failure::no(format!(
        "#{id} means two messages here, of two generations of the relay's data: {}; nothing was sent. Write to whom you mean: `agent-relay send {} …`",
        names.join(", "),
        from.last().map(who).unwrap_or_default()
    ))
}

impl ReceivedMessage {
    /// What the relay calls by that number must be what the agent was given.
    pub fn must_be(&self, id: MessageId, told: &Value) -> Result<(), Failure> {
        let other = match (&self.generation, told["generation"].as_str()) {
            (Some(given), Some(told)) => given != told,
            (None, Some(_)) => !self.current,
            _ => false,
        };
        if other {
            Err(twofold(id, &[&self.from, told["from"].as_str().unwrap_or_default()]))
        } else {
            Ok(())
        }
    }
}

/// Which message of that number the agent of this session was given: its runner knows. `None`: it
/// does not, or this is no session.
pub fn given(client: &Client, id: MessageId) -> Result<Option<ReceivedMessage>, Failure> {
    let Some((200, answer)) = ask(client, "GET", &format!("/messages/{id}"), None) else {
        return Ok(None);
    };
    let all = answer["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let from = |one: &Value| one["from"].as_str().unwrap_or_default().to_string();
    match all {
        [] => Ok(None),
        [one] => {
            let generation = one["generation"].as_str().map(str::to_string);
            Ok(Some(ReceivedMessage {
                from: from(one),
                generation,
                current: one["current"] == true,
            }))
        }
        more => Err(twofold(
            id,
            &more.iter().map(|one| one["from"].as_str().unwrap_or_default()).collect::<Vec<_>>(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use argh::FromArgs;

    use super::*;

    /// What a command needs to be read at all.
    const NEEDED: &[(&str, &[&str])] = &[
        ("send", &["x", "y"]),
        ("get-message", &["1"]),
        ("message", &["1"]),
        ("thread", &["1"]),
        ("reply", &["1", "y"]),
        ("react", &["1", "y"]),
        ("label", &["x", "y"]),
        ("hook", &["busy"]),
        ("generate", &["man"]),
        ("command", &["x", "interrupt"]),
        ("stop", &["x"]),
        ("logs", &["x"]),
        ("diagnose", &["x"]),
    ];

    #[test]
    fn every_command_has_its_place_inside_a_session() {
        let agent = OF_AGENTS;
        let local = ["hook", "monitor", "guide", "generate", "version", "doctor", "demo-agent"];
        let all = Top::get_args_info().commands;
        assert!(all.len() > 20);
        for command in all {
            let needed = NEEDED
                .iter()
                .find(|(name, _)| *name == command.name)
                .map_or(&[][..], |(_, needed)| needed);
            let words: Vec<&str> =
                [command.name].into_iter().chain(needed.iter().copied()).collect();
            let top = Top::from_args(&["agent-relay"], &words).expect(command.name);
            // What is not named is a person's.
            let want = match command.name {
                name if agent.contains(&name) => Reach::Agent,
                name if local.contains(&name) => Reach::Local,
                _ => Reach::Operator,
            };
            assert_eq!(reach(&top.command), want, "{}", command.name);
        }
    }

    #[test]
    fn the_guide_names_every_command_of_an_agent() {
        let guide = guide();
        assert!(!guide.contains("<commands>") && guide.lines().all(|line| line.len() <= 160));
        for name in OF_AGENTS.iter().filter(|name| !["message", "mcp"].contains(*name)) {
            let line = guide.lines().find(|line| line.trim_start().starts_with(name));
            assert!(line.is_some_and(|line| line.len() > 25), "{name}: {line:?}");
        }
    }

    #[test]
    fn the_switch_stands_anywhere_before_what_is_somebody_elses() {
        for (line, taken, rest) in [
            ("--as-operator agents", true, "agents"),
            ("agents --json --as-operator", true, "agents --json"),
            ("run acp -- x --as-operator", false, "run acp -- x --as-operator"),
            ("agents", false, "agents"),
        ] {
            let mut words: Vec<String> = line.split(' ').map(String::from).collect();
            assert_eq!((take_switch(&mut words), words.join(" ").as_str()), (taken, rest));
        }
    }
}
