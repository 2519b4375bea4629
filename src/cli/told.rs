//! `hook` with options: for people and scripts, who want to know what became of it. A status is
//! posted with its words, also from outside of the session; `--check` says whether hooks arrive.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::Hook;
use super::exit::{Failure, OK, Outcome};
use super::hook::{self, STATUS_WORDS};
use super::{print, status};
use crate::config::env;
use crate::core::Cause;
use crate::edge::http::{Base, Http};
use crate::secret::Secret;
use crate::wire::control::{
    ENV_AGENT, ENV_CONTROL_TOKEN, ENV_PORT, ENV_PROVIDER_SESSION, OUTSIDE, POSTED,
};

/// A runner answers from memory.
const LIMIT: Duration = Duration::from_secs(5);

/// Where a runner listens, and how it is called.
struct Runner {
    name: String,
    url: String,
    token: String,
}

impl Runner {
    /// The one that is meant: of that agent on this machine, else of the session we are in.
    fn find(agent: Option<&str>) -> Result<Runner, Failure> {
        if let Some(agent) = agent {
            let info = status::find_runner(Some(agent))?;
            return Ok(Runner {
                name: info.agent_id,
                url: info.control_url,
                token: info.control_token,
            });
        }
        let Some(port) = env(ENV_PORT) else {
            return Err(Failure::no(format!(
                "{ENV_PORT} is not set: this is not inside a session, where hooks do nothing; `--agent ID` names an agent of this machine"
            )));
        };
        let port: u16 = port
            .parse()
            .map_err(|_| Failure::no(format!("{ENV_PORT} is {port:?}, which is no port")))?;
        Ok(Runner {
            name: env(ENV_AGENT).unwrap_or_else(|| "this session".into()),
            url: format!("http://127.0.0.1:{port}"),
            token: env(ENV_CONTROL_TOKEN).unwrap_or_default(),
        })
    }

    /// One exchange, or what is wrong, in one sentence with the cure.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let (name, url) = (&self.name, &self.url);
        let http = Http::new(Base::parse(url).map_err(Failure::usage)?, LIMIT);
        match http.call_bearer(method, path, body, &Secret::new(self.token.clone())) {
            Ok((200..=299, body)) => Ok(body),
            Ok((401, _)) => Err(Failure::no(format!(
                "what listens at {url} refuses the token: {ENV_CONTROL_TOKEN} is not that of the runner of {name}; it is new at every start of a runner"
            ))),
            Ok((status, body)) => Err(Failure::no(format!(
                "what listens at {url} answers {status} {}; is it the runner of {name}?",
                body["error"].as_str().unwrap_or_default()
            ))),
            Err(Cause::Offline(_) | Cause::Protocol(_)) => Err(Failure::unreachable(format!(
                "no runner answers at {url}: that of {name} has ended, or listens at another port since its last start"
            ))),
            Err(cause) => Err(Failure::unreachable(format!(
                "the runner of {name} does not answer at {url}: {cause}"
            ))),
        }
    }
}

/// `hook` with options.
pub fn hook(options: &Hook) -> Outcome {
    let event = options.event.as_str();
    let is_status = STATUS_WORDS.contains(&event);
    hook::must_be_known(event)?;
    if !is_status && (options.agent.is_some() || options.why.is_some()) {
        return Err(Failure::no(format!(
            "{event} is an event of a session, which only its own hooks report; --agent and --why belong to {}",
            STATUS_WORDS.join(", ")
        )));
    }
    let runner = Runner::find(options.agent.as_deref());
    // A hook that tells why is a hook all the same: without a runner it is quiet.
    let quiet = options.agent.is_none() && !options.check;
    let runner = match runner {
        Err(_) if quiet => return Ok(OK),
        runner => runner?,
    };
    if !is_status {
        runner.ask("GET", "/status", None)?;
        let (name, url) = (&runner.name, &runner.url);
        print::line(&format!("the runner of {name} at {url} answers: {event} would reach it"));
        return Ok(OK);
    }
    let mut post = json!({"status": event, "reason": POSTED, "why": options.why});
    if options.agent.is_some() {
        post["source"] = json!(OUTSIDE);
    } else if let Some(session) = env(ENV_PROVIDER_SESSION) {
        post["providerSessionId"] = json!(session);
    }
    match runner.ask("POST", "/status", Some(&post)) {
        Err(_) if quiet => {}
        told => {
            told?;
            if !quiet {
                print::line(&format!("the runner of {} was told: {event}", runner.name));
            }
        }
    }
    Ok(OK)
}
