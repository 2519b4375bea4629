//! `attach`: the terminal of a headless agent.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::args::Attach;
use super::exit::{Failure, OK, Outcome};
use super::print;
use super::status::find_runner;
use crate::edge::http::{Base, Http};
use crate::secret::Secret;

/// `attach`
pub fn attach(options: &Attach) -> Outcome {
    let info = find_runner(options.agent.as_deref())?;
    let http =
        Http::new(Base::parse(&info.control_url).map_err(Failure::usage)?, Duration::from_secs(5));
    let answer =
        http.call_bearer("GET", "/terminal/attach-spec", None, &Secret::new(info.control_token));
    let spec = match answer {
        Ok((200, spec)) => spec,
        Ok((_, body)) => {
            let why = body["error"].as_str().unwrap_or("it refuses").to_string();
            return Err(Failure::no(format!("cannot attach to {}: {why}", info.agent_id)));
        }
        Err(cause) => {
            return Err(Failure::unreachable(format!(
                "the runner of {} does not answer: {cause}",
                info.agent_id
            )));
        }
    };
    if options.json {
        print::json(&spec);
        return Ok(OK);
    }
    let words: Vec<&str> =
        spec["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::no("the runner does not say how to attach".to_string()));
    };
    let mut command = Command::new(program);
    // A terminal inside another one of the same kind is refused unless that one is forgotten.
    command.args(arguments).env_remove("TMUX");
    for (name, value) in spec["env"].as_object().into_iter().flatten() {
        command.env(name, value.as_str().unwrap_or_default());
    }
    for (name, file) in spec["envFiles"].as_object().into_iter().flatten() {
        let file = file.as_str().unwrap_or_default();
        let value = std::fs::read_to_string(file)
            .map_err(|error| Failure::no(format!("cannot read {file}: {error}")))?;
        command.env(name, value.trim_end());
    }
    if options.read_only {
        if *program != "tmux" {
            let text = format!("the window of {program} cannot be opened without typing");
            return Err(Failure::usage(text));
        }
        command.arg("-r");
    }
    let error = command.exec();
    Err(Failure::no(format!("cannot start {program}: {error}")))
}
