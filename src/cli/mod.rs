//! Commands: what was typed, one match to what is done, exit codes.

pub mod agents;
pub mod approvals;
pub mod args;
pub mod attach;
mod cards;
mod chosen;
pub mod client;
pub mod command;
mod config_file;
pub mod doctor;
pub mod exit;
pub mod generate;
mod handed;
mod health;
pub mod hook;
pub mod hub;
mod inside;
mod launch;
mod listener;
mod look;
mod mcp;
pub mod messages;
pub mod monitor;
mod options;
mod orchestrator;
mod paths;
pub mod print;
mod registration;
pub mod run;
pub mod send;
mod service;
mod sessions;
mod settings;
pub mod status;
pub mod tasks;
pub mod token;
mod told;
pub mod up;

use std::ffi::OsString;

use argh::{ArgsInfo, FromArgs};

use self::args::{Command, Top};
use self::exit::{Failure, Kind, OK, Outcome, USAGE};
use self::inside::Reach;
use self::options::Unknown;
use crate::demo::agent::Abilities;

/// Runs the program; returns its exit code.
pub fn main(words: Vec<OsString>) -> u8 {
    let mut arguments = Vec::with_capacity(words.len());
    for word in words {
        match word.into_string() {
            Ok(word) => arguments.push(word),
            Err(word) => {
                print::error(&format!("the argument {word:?} is not UTF-8 text"));
                // In a hook, 2 would stop some providers.
                return if arguments.get(1).is_some_and(|command| command == "hook") {
                    exit::NO
                } else {
                    USAGE
                };
            }
        }
    }
    let program = if arguments.is_empty() { String::new() } else { arguments.remove(0) };
    let begun = inside::leave(&program, &mut arguments)
        .and_then(|()| handed::take_environment(&program, &arguments));
    let outcome = begun.and_then(|()| match crate::provider::registry::by_program(&program) {
        Some(provider) => run::from_arguments(provider, &arguments, Unknown::PassOn),
        None => dispatch(arguments),
    });
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            print::error(&failure.text);
            failure.code()
        }
    }
}

fn dispatch(mut arguments: Vec<String>) -> Outcome {
    // Slash forms: agents type `agent-relay /reply 12`.
    if let Some(name) =
        arguments.first().and_then(|first| first.strip_prefix('/')).map(str::to_string)
    {
        arguments[0] = name;
    }
    match arguments.first().map(String::as_str) {
        // What a service runs may have options of any name: nothing of it is moved.
        Some("service")
            if arguments.get(1).is_some_and(|word| word == "install") && arguments.len() > 2 =>
        {
            if !arguments[2..].iter().any(|word| word == "--help") {
                let mut action = arguments.split_off(1);
                if action.get(2).is_some_and(|word| word == "--") {
                    action.remove(2);
                }
                inside::check(Reach::Operator, "service")?;
                return service::service(&args::Service { action, json: false });
            }
            arguments = vec!["service".into(), "--help".into()];
        }
        // Without the table of commands: a hook is to cost as little as can be.
        Some("hook") if arguments.len() == 2 && !arguments[1].starts_with('-') => {
            return hook::hook(&arguments[1]);
        }
        Some("run") => return run::from_arguments("", &arguments[1..], Unknown::Refuse),
        Some("--version" | "-V") => arguments = vec!["version".into()],
        // `help send` is `send --help`.
        Some("help") if arguments.len() == 2 => {
            arguments = vec![arguments[1].clone(), "--help".into()]
        }
        Some("-h" | "help") | None => arguments = vec!["--help".into()],
        Some(_) => {}
    }
    // `argh` takes options only before a positional that eats the rest, so they are moved to the
    // front.
    let arguments = options_first(arguments);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let top = match Top::from_args(&["agent-relay"], &words) {
        Ok(top) => top,
        Err(early) => {
            let hook = words.first() == Some(&"hook");
            return match early.status {
                Ok(()) => {
                    print::trusted(&args::with_examples(early.output.trim_end()));
                    Ok(OK)
                }
                Err(()) => Err(Failure::new(
                    if hook { Kind::No } else { Kind::Usage },
                    misuse(&early.output, &words),
                )),
            };
        }
    };
    inside::check(inside::reach(&top.command), words.first().copied().unwrap_or_default())?;
    execute(top.command)
}

fn execute(command: Command) -> Outcome {
    match command {
        Command::Up(up) => up::up(up),
        Command::Hub(options) => hub::hub(&options),
        Command::Run(run) => run::from_arguments("", &run.rest, Unknown::Refuse),
        Command::Send(send) => send::send(send),
        Command::Inbox(inbox) => messages::inbox(&inbox),
        Command::GetMessage(get) => messages::get_message(get.id, get.json),
        Command::Message(get) => messages::get_message(get.id, get.json),
        Command::Thread(thread) => messages::thread(&thread),
        Command::React(react) => send::react(&react),
        Command::Tasks(tasks) => tasks::tasks(&tasks),
        Command::Whoami(whoami) => token::whoami(&whoami),
        Command::Guide(_) => {
            print::trusted(&inside::guide());
            Ok(OK)
        }
        Command::Mcp(_) => mcp::mcp(),
        Command::Reply(reply) => send::reply(reply),
        Command::Agents(agents) => agents::agents(&agents),
        Command::Status(status) => status::status(&status),
        Command::Attach(options) => attach::attach(&options),
        Command::Monitor(_) => monitor::monitor(),
        Command::Approvals(approvals) => approvals::approvals(&approvals),
        Command::Command(issue) => command::command(&issue),
        Command::Label(label) => token::label(&label),
        Command::Token(options) => token::token(&options),
        Command::Config(options) => config_file::config(&options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Hook(options) => told::hook(&options),
        Command::Generate(options) => generate::generate(&options.what, options.which.as_deref()),
        Command::Service(options) => service::service(&options),
        Command::Orchestrator(options) => orchestrator::orchestrator(&options),
        Command::Spawn(options) => sessions::spawn(&options),
        Command::Stop(options) => sessions::stop(&options),
        Command::Sessions(options) => sessions::sessions(&options),
        Command::Recover(options) => sessions::recover(&options),
        Command::Logs(options) => look::logs(&options),
        Command::Diagnose(options) => look::diagnose(&options),
        Command::DemoAgent(demo) => {
            let dir = match demo.state {
                Some(dir) => dir.into(),
                None => crate::config::home()?.join("demo"),
            };
            let abilities = Abilities { load: !demo.no_load, resume: !demo.no_resume };
            crate::demo::run::serve(dir, abilities).map(|()| OK).map_err(Failure::no)
        }
        Command::Version(options) => {
            let (version, protocol) = (crate::wire::VERSION, crate::wire::PROTOCOL);
            if options.json {
                print::json(&serde_json::json!({"version": version, "protocol": protocol}));
            } else {
                print::line(&format!("agent-relay {version} (relay protocol {protocol})"));
            }
            Ok(OK)
        }
    }
}

/// One sentence of what `argh` says, and where help is.
fn misuse(output: &str, words: &[&str]) -> String {
    let first: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let equals = words.iter().find(|word| word.starts_with("--") && word.contains('='));
    if let Some(word) = equals {
        let (flag, value) = word.split_once('=').unwrap_or((word, ""));
        return format!("write {flag} {value} instead of {word}");
    }
    let command = words
        .first()
        .filter(|word| !word.starts_with('-'))
        .map(|word| format!(" {word}"))
        .unwrap_or_default();
    let known = Top::get_args_info().commands;
    match words.first() {
        Some(word)
            if !word.starts_with('-') && !known.iter().any(|command| command.name == *word) =>
        {
            let near = known
                .iter()
                .map(|command| (options::distance(command.name, word), command.name))
                .min()
                .filter(|(edits, _)| *edits <= 2 && edits * 2 < word.len());
            let meant =
                near.map(|(_, name)| format!(" (did you mean {name}?)")).unwrap_or_default();
            format!("there is no command {word:?}{meant}; `agent-relay --help` lists them")
        }
        _ => {
            format!("{}; try `agent-relay{command} --help`", first.join(" ").trim_end_matches('.'))
        }
    }
}

/// Puts the options of `send`, `reply` and `up` before their free text; what follows `--` stays.
fn options_first(arguments: Vec<String>) -> Vec<String> {
    let with_value: &[&str] = match arguments.first().map(String::as_str) {
        Some("send") => &["--subject", "--key", "--wait"],
        Some("reply" | "react") => &[],
        Some("tasks") => &["--status"],
        Some("hub") => &["--port", "--listen", "--tls-cert", "--tls-key", "--url"],
        Some("token") => &["--agent", "--profile", "--ttl", "--scopes", "--name", "--policy"],
        Some("spawn") => &[
            "--cwd",
            "--approval",
            "--label",
            "--agent-id",
            "--prompt",
            "--model",
            "--effort",
            "--policy",
            "--tags",
            "--caps",
            "--env",
            "--restart",
            "--workspace-mode",
            "--request-id",
            "--memory-max",
            "--cpu-weight",
            "--cpu-quota",
            "--tasks-max",
            "--runtime-max",
        ],
        Some("up") => &["--say", "--agent-id", "--approval", "--wait"],
        _ => return arguments,
    };
    let (mut options, mut rest) = (vec![arguments[0].clone()], Vec::new());
    let mut words = arguments.into_iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--" {
            rest.extend(words);
            break;
        }
        if word.starts_with("--") && word.len() > 2 {
            let takes = with_value.contains(&word.as_str());
            options.push(word);
            if takes {
                options.extend(words.next());
            }
        } else {
            rest.push(word);
        }
    }
    if !rest.is_empty() && rest.iter().any(|word| word.starts_with('-')) {
        options.push("--".into());
    }
    options.extend(rest);
    options
}
