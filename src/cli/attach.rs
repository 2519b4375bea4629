//! `attach`: the terminal of a headless agent.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::args::Attach;
use super::exit::{Failure, OK, Outcome};
use super::print;
use super::status::find_runner;
use crate::core::orchestrator::guests::AttachSpec;
use crate::edge::http::{Base, Http};
use crate::edge::orchestrator::terminal;
use crate::os;
use crate::secret::Secret;

/// `attach`
pub fn attach(options: &Attach) -> Outcome {
    let info = find_runner(options.agent.as_deref())?;
    let runner = os::process(info.pid);
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
    // Whoever took the port of a runner that is gone could have us run anything.
    if !os::is_own(runner) && !crate::planted::is("port-in-other-hands") {
        let text =
            format!("the runner of {} is gone; what answers at its port is not it", info.agent_id);
        return Err(Failure::no(text));
    }
    if options.json {
        print::json(&spec);
        return Ok(OK);
    }
    let spec = AttachSpec::parse(&spec, |_| true).map_err(Failure::no)?;
    let variables = terminal::variables(&spec).map_err(Failure::no)?;
    let program = &spec.command[0];
    let mut command = Command::new(program);
    // A terminal inside another one of the same kind is refused unless that one is forgotten.
    command.args(&spec.command[1..]).env_remove("TMUX").envs(variables);
    if options.read_only {
        if program != "tmux" {
            let text = format!("the window of {program} cannot be opened without typing");
            return Err(Failure::usage(text));
        }
        command.arg("-r");
    }
    let error = command.exec();
    Err(Failure::no(format!("cannot start {program}: {error}")))
}
